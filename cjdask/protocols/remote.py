"""What all ways to another machine have in common: one connection, and shell commands over it."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import secrets
import shlex
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from cjdask.command import Command, Output
from cjdask.errors import LinkLostError, ProtocolError, UnreachableError
from cjdask.protocols.base import Progress, as_command
from cjdask.protocols.link import Link
from cjdask.protocols.parameters import ConnectionParameters
from cjdask.protocols.shell import Ending, Unframer, command_script, read_ending, shell_line

__all__ = ["STALL", "BusyError", "RemoteProtocol", "ScriptFailed"]

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

STALL = 300.0
"""Seconds without any byte after which the copying of a file counts as stuck."""
SMALL = 60.0
"""Seconds that the small commands of this module may take."""
GRACE = 15.0
"""Seconds beyond its time limit that a command is given to be ended there."""
SESSIONS = 8
"""How many commands run over one connection at a time; sshd allows 10 (``MaxSessions``)."""

_OF_A_SHELL = re.compile(r"_|SHLVL|PWD|OLDPWD|TERM|SHELLOPTS|BASHOPTS|PS\d|MOTD_SHOWN|SSH_\w+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_VALUE = 16_000

_READ = """
[ -e "$1" ] || exit 44
if [ "$2" ]; then exec tail -c "$2" -- "$1"; else exec cat -- "$1"; fi
"""
_CREATE = """
mkdir -p -- "$1" || exit
trap 'rm -f -- "$2"' EXIT
dd of="$2" bs=65536 conv=fsync status=none || exit
[ "$(wc -c <"$2")" -eq "$4" ] || { echo "only a part of it came" >&2; exit 1; }
[ -z "$5" ] || chmod +x "$2" || exit
mv -fT -- "$2" "$3"
"""
"""Where the link breaks, the input ends as if all was there: so the size is looked at."""
_WRITE_AT = """
exec dd of="$1" bs=262144 seek="$2" oflag=seek_bytes conv=notrunc,fsync status=none
"""
_READ_FROM = """
[ -e "$1" ] || exit 44
tail -c "+$2" -- "$1" | head -c "$3"
"""


class BusyError(Exception):
    """A machine takes no more commands at the moment; nothing was run."""


class ScriptFailed(ProtocolError):
    """A script of this package failed there, with that exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RemoteProtocol(Link):
    """A machine behind a connection, with a shell that commands are given to."""

    def __init__(self, params: ConnectionParameters | str, **testing: Any) -> None:
        self._sessions = threading.BoundedSemaphore(SESSIONS)
        self._asking = threading.Lock()
        self._login_environment: dict[str, str] | None = None
        self._home = ""
        super().__init__(params, **testing)

    @abstractmethod
    def _execute(
        self,
        line: str,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        total: float | None,
        stall: float | None,
    ) -> bytes:
        """Have a line run there: ``source`` is its input, ``sink`` takes its output.

        Return its standard error, with what the connection itself has to say.

        Raises:
            TimeoutError: it took longer than ``total`` seconds, or no byte went either way for
                ``stall`` seconds.
            LinkLostError: it could not be handed over.
            BusyError: the machine takes no more; the source has not been touched.
        """

    # -- commands ------------------------------------------------------------------------------

    def run(self, command: Command | Sequence[str], timeout: float | None = None) -> Output:
        command = as_command(command)
        if command.again:
            return self._again(partial(self._run, command, timeout))
        return self._run(command, timeout)

    def _run(self, command: Command, timeout: float | None) -> Output:
        login = self._login()
        data = command.input or b""
        source = [data.encode() if isinstance(data, str) else data]
        output = bytearray()
        began = self._clock()
        ending = self._framed(command, source, output.extend, timeout, None, login)
        if ending.exit_code is None:
            self._refuse(command, ending)
        elapsed = self._clock() - began
        if timeout is not None and elapsed >= timeout and ending.exit_code in (124, 137):
            self._late(command, timeout)
        return Output(command.argv, self.host, ending.exit_code, bytes(output), ending.stderr)

    def _framed(
        self,
        command: Command,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        timeout: float | None = SMALL,
        stall: float | None = None,
        login: Mapping[str, str] | None = None,
    ) -> Ending:
        """Run a command over the connection and return how it ended."""
        token = secrets.token_hex(8)
        try:
            line = shell_line(command_script(command, token, timeout, login or {}))
        except ValueError as error:
            raise ProtocolError(f"cannot run on {self.host}: {command}: {error}") from error
        return self._ask(command, line, token, source, sink, timeout, stall)

    def _ask(
        self,
        command: Command,
        line: str,
        token: str,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        timeout: float | None,
        stall: float | None,
    ) -> Ending:
        unframe = Unframer(token)
        total = None if timeout is None else timeout + GRACE
        until = self._clock() + SMALL
        while True:
            self.open()
            try:
                with self._sessions:
                    stderr = self._execute(
                        line, source, lambda data: sink(unframe(data)), total, stall
                    )
                break
            except TimeoutError:
                self._late(command, timeout if timeout is not None else stall)
            except BusyError as error:
                if self._clock() > until:
                    raise UnreachableError(
                        f"{self.host} takes no more commands over this connection: {error}; "
                        "its sshd may have a small MaxSessions"
                    ) from None
                self._sleep(0.1)
        ending = read_ending(stderr, token)
        if ending is None:
            said = stderr.rpartition(f"\n{token}\n".encode())[2].decode(errors="replace").strip()
            raise LinkLostError(
                f"the link to {self.host} broke; whether this came to its end is not known: "
                f"{_shown(command)}" + (f" ({said[-500:]})" if said else "")
            )
        return ending

    def _late(self, command: Command, seconds: float | None) -> NoReturn:
        raise ProtocolError(f"no answer after {seconds:g} s on {self.host}: {_shown(command)}")

    def _refuse(self, command: Command, ending: Ending) -> NoReturn:
        said = ending.stderr.decode(errors="replace").strip()
        why = {
            "missing": f"there is no program {command.argv[0]!r}",
            "folder": f"the folder {command.cwd!r} cannot be used: {said}",
            "input": f"there is no file {command.stdin_path!r} to read",
        }[ending.problem]
        cause = FileNotFoundError(2, why)
        raise ProtocolError(f"cannot run on {self.host}: {command}: {why}") from cause

    def _sh(
        self,
        what: str,
        script: str,
        *args: str,
        source: Iterable[bytes] = (),
        sink: Callable[[bytes], object] | None = None,
        stall: float | None = None,
    ) -> bytes:
        """Run a script of this package there; return what it prints where no sink takes it.

        ``what`` says what is tried, as messages show it: "read PATH".

        Raises:
            FileNotFoundError: it says so by exit code 44, having printed the path if not that.
            ScriptFailed: it failed otherwise.
        """
        output = bytearray()
        argv = ("/bin/sh", "-c", script, "cjdask", *args)
        command = Command(argv, env={"LC_ALL": "C"})
        limit = SMALL if stall is None else None
        ending = self._framed(command, source, sink or output.extend, limit, stall)
        if ending.exit_code == 44:
            path = os.fsdecode(bytes(output)) or what.partition(" ")[2]
            raise FileNotFoundError(2, f"no such file on {self.host}", path)
        if ending.exit_code != 0:
            code = -1 if ending.exit_code is None else ending.exit_code
            said = ending.stderr.decode(errors="replace").strip() or f"exit code {code}"
            raise ScriptFailed(f"cannot {what} on {self.host}: {said}", code)
        return bytes(output)

    # -- the environment of a login shell ------------------------------------------------------

    def _login(self) -> dict[str, str]:
        """Return what a login shell adds to the environment: where the schedulers' commands are.

        It is asked once. What start-up files print goes nowhere.
        """
        with self._asking:
            if self._login_environment is None:
                plain = self._again(self._plain_environment)
                self._home = plain.get("HOME", "/")
                self._login_environment = self._again(partial(self._added_by_login, plain))
            return self._login_environment

    def _plain_environment(self) -> dict[str, str]:
        output = bytearray()
        self._framed(Command(("env", "-0")), (), output.extend)
        return _variables(bytes(output))

    def _added_by_login(self, plain: Mapping[str, str]) -> dict[str, str]:
        token = secrets.token_hex(8)
        inner = shell_line(command_script(Command(("env", "-0")), token, None, {}))
        line = shell_line('exec "${SHELL:-/bin/sh}" -l')
        output = bytearray()
        command = Command(("login shell",))
        try:
            self._ask(command, line, token, [f"{inner}\n".encode()], output.extend, SMALL, None)
        except (LinkLostError, UnreachableError):
            raise
        except ProtocolError as error:
            logger.warning("commands on %s get no login environment: %s", self.host, error)
            return {}
        return {
            name: value
            for name, value in _variables(bytes(output)).items()
            if plain.get(name) != value and len(value) < _LONGEST_VALUE
        }

    def which(self, program: str) -> str | None:
        script = 'command -v -- "$1"'
        command = Command.ask("/bin/sh", "-c", script, "cjdask", program)
        output = self.run(command, SMALL)
        path = output.stdout.strip()
        return path if path.startswith("/") else None

    # -- files ---------------------------------------------------------------------------------

    def expand(self, path: str) -> str:
        self._login()
        user, slash, rest = path.partition("/")
        if user == "~":
            path = posixpath.join(self._home, rest)
        elif re.fullmatch(r"~[A-Za-z0-9_.-]+", user):
            # The name is plain, and must stand without quotes to be replaced.
            home = self._again(lambda: self._sh(f"find {user}", f"printf %s {user}")).decode()
            path = home + slash + rest
        return posixpath.normpath(posixpath.join(self._home, path))

    def create(self, path: str, content: str | bytes, executable: bool = False) -> None:
        data = content.encode() if isinstance(content, str) else content
        target = self.expand(path)
        folder, name = posixpath.split(target)
        temporary = posixpath.join(folder, f".{name[:200]}.{secrets.token_hex(4)}")
        flag = "x" if executable else ""
        args = (folder, temporary, target, str(len(data)), flag)
        self._again(partial(self._sh, f"write {target}", _CREATE, *args, source=[data]))

    def read(self, path: str, tail: int | None = None) -> bytes:
        target = self.expand(path)
        count = "" if tail is None else str(tail)

        def once() -> bytes:
            output = bytearray()
            self._sh(f"read {target}", _READ, target, count, sink=output.extend, stall=STALL)
            return bytes(output)

        return self._again(once)

    def upload(
        self,
        local_entries: Iterable[str | os.PathLike[str]],
        remote_path: str,
        progress: Progress | None = None,
    ) -> None:
        from cjdask.protocols.transfer import Transfer

        Transfer(self, progress).upload(local_entries, remote_path)

    def download(
        self,
        remote_entries: Iterable[str],
        local_path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> None:
        from cjdask.protocols.transfer import Transfer

        Transfer(self, progress).download(remote_entries, local_path)

    def _write_at(self, path: str, offset: int, source: Iterable[bytes]) -> None:
        """Write bytes into a file from a place in it on."""
        self._sh(f"write {path}", _WRITE_AT, path, str(offset), source=source, stall=STALL)

    def _read_from(
        self, path: str, offset: int, count: int, sink: Callable[[bytes], object]
    ) -> None:
        """Read that many bytes of a file from a place in it on, fewer where it ends before."""
        args = (path, str(offset + 1), str(count))
        self._sh(f"read {path}", _READ_FROM, *args, sink=sink, stall=STALL)


def _shown(command: Command) -> str:
    """Show a command in a message; of this module's own scripts only what they work on."""
    if command.argv[:2] == ("/bin/sh", "-c") and "cjdask" in command.argv[3:4]:
        return shlex.join(command.argv[4:])[:200]
    return str(command)


def _variables(raw: bytes) -> dict[str, str]:
    """Read what ``env -0`` printed, without what is a shell's own business."""
    pairs = (os.fsdecode(entry).partition("=") for entry in raw.split(b"\0"))
    return {
        name: value
        for name, _, value in pairs
        if _NAME.fullmatch(name) and not _OF_A_SHELL.fullmatch(name)
    }
