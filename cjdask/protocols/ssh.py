"""Another machine by OpenSSH: one connection that all commands share."""

from __future__ import annotations

import logging
import os
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cjdask.errors import HostKeyError, LinkLostError, LoginError, ProtocolError, UnreachableError
from cjdask.protocols.forwarding import PortForward
from cjdask.protocols.link import end_with
from cjdask.protocols.parameters import ConnectionParameters
from cjdask.protocols.pump import pump
from cjdask.protocols.remote import BusyError, RemoteProtocol
from cjdask.protocols.shell import shell_line

__all__ = ["SshProtocol"]

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 15
"""Seconds for the machine, or each one on the way, to answer at all."""
LOGIN_TIMEOUT = 60.0
"""Seconds until the login must be done, with all jump hosts."""
ALIVE_EVERY, ALIVE_TRIES = 10, 3
"""Seconds between two signs of life, and how many may be missed."""
CONTROL_TIMEOUT = 20.0
_LONGEST_FOLDER = 80
"""A socket's path has 108 bytes at most, and ssh adds some while it makes it."""

_ASKPASS = """#!/bin/sh
# Hands the password over, from a pipe and never from a disk, to nobody but the machine it is for.
case $1 in
*"$CJDASK_LOGIN's password:"* | *"($CJDASK_LOGIN)"*)
    read -r password <"$CJDASK_PIPE" && printf '%s\\n' "$password" ;;
*) exit 1 ;;
esac
"""


class SshProtocol(RemoteProtocol):
    """A machine by the ``ssh`` command: with the user's configuration, agent and jump hosts.

    There is one connection, and one login, whatever number of commands and files; it lasts as
    long as this process. ``ssh`` is the program, with options if wanted.
    """

    def __init__(
        self, params: ConnectionParameters | str, ssh: str = "ssh", **testing: Any
    ) -> None:
        self.ssh = ssh
        self._program = shlex.split(ssh)
        if not self._program:
            raise ValueError("ssh is empty: name the program, such as 'ssh'")
        self._master: subprocess.Popen[bytes] | None = None
        self._ending: weakref.finalize[Any, Any] | None = None
        self._socket = ""
        self._owner = os.getpid()
        super().__init__(params, **testing)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.params.without_secret(), self.ssh)

    # -- the connection ------------------------------------------------------------------------

    def _is_open(self) -> bool:
        if self._owner != os.getpid():  # a fork has the connection, and cannot ask for its child
            return os.path.exists(self._socket)
        alive = self._master is not None and self._master.poll() is None
        return alive and os.path.exists(self._socket)

    def _open(self) -> None:
        self._drop()
        folder = _private_folder()
        token = secrets.token_hex(8)
        # It ends with the pipe that is its input, so with this process however that ends.
        keeper = shell_line(f"printf '\\n%s\\n' {token}; exec cat >/dev/null")
        try:
            argv = [*self._program, *self._options(), "-M", "-S", f"{folder}/s"]
            argv += ["--", self.params.host, keeper]
            with tempfile.TemporaryFile() as said, _Secret(self, folder) as environment:
                self._master = subprocess.Popen(
                    # What ssh leaves behind goes when it has ended, also if we have by then.
                    ["/bin/sh", "-c", '"$@"; rm -rf -- "$0"', folder, *argv],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=environment,
                    start_new_session=True,
                )
                self._owner, self._socket = os.getpid(), f"{folder}/s"
                self._ending = end_with(self, _end, self._master, folder, self._owner)
                if not self._await(token.encode()):
                    late = self._master.poll() is None
                    self._drop()
                    said.seek(0)
                    raise self._failure_of(said.read().decode(errors="replace"), late)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, ProtocolError):
                raise
            why = f"cannot run {self._program[0]!r}: {error.strerror}; is OpenSSH installed?"
            raise UnreachableError(f"{self.params.destination} cannot be reached: {why}") from error
        except BaseException:
            self._drop()
            raise

    def _options(self) -> list[str]:
        """Return the options of the connection; all others are as the user has them."""
        params = self.params
        config = params.config_path()
        words = [] if config is None else ["-F", config]
        words += ["-l", params.user] if params.user else []
        words += ["-p", str(params.port)] if params.port else []
        words += ["-K"] if params.gss_auth else []
        checking = "accept-new" if params.accept_new_host_key else self._checking(words)
        settings = {
            "IgnoreUnknown": "ForkAfterAuthentication,SessionType,StdinNull",  # new in 8.7
            "BatchMode": "no" if params.password else "yes",
            "NumberOfPasswordPrompts": "1",
            "StrictHostKeyChecking": checking,
            "ConnectTimeout": str(CONNECT_TIMEOUT),
            "ConnectionAttempts": "1",
            "ServerAliveInterval": str(ALIVE_EVERY),
            "ServerAliveCountMax": str(ALIVE_TRIES),
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "ForkAfterAuthentication": "no",
            "SessionType": "default",
            "StdinNull": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
        }
        return [*words, *(f"-o{name}={value}" for name, value in settings.items())]

    def _checking(self, words: list[str]) -> str:
        """Return how to check host keys: strictly, or as the user's file has it.

        A key that has changed is refused also where the user would take any.
        """
        setting = self._configuration(words).get("stricthostkeychecking")
        return "yes" if setting in ("true", "yes", "ask") else "accept-new"

    def _configuration(self, words: list[str] | None = None) -> dict[str, str]:
        """Return what the user's configuration says about this machine."""
        words = self._options() if words is None else words
        argv = [*self._program, "-G", *words, "--", self.params.host]
        done = _run(argv)
        if done is None or done.returncode != 0:
            why = "it took too long" if done is None else done.stderr.strip()
            raise UnreachableError(f"ssh cannot read its configuration for {self.host}: {why}")
        return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)

    def _await(self, token: bytes) -> bool:
        """Wait until the far side speaks; tell whether it does."""
        assert self._master
        assert self._master.stdout
        heard, stream = b"", self._master.stdout
        deadline = time.monotonic() + LOGIN_TIMEOUT
        while token not in heard:
            pause = deadline - time.monotonic()
            if pause <= 0 or not select.select([stream], [], [], pause)[0]:
                return False
            data = os.read(stream.fileno(), 65536)
            if not data:
                with suppress(subprocess.TimeoutExpired):
                    self._master.wait(5)
                return False
            heard = (heard + data)[-65536:]
        return True

    def _failure_of(self, said: str, late: bool) -> UnreachableError:
        """Return the error for what ssh said, with what to do about it."""
        where = self.params.destination
        lines = [line for line in said.splitlines() if line.strip(" @")]
        text = "\n".join(f"  | {line}" for line in lines[-15:])
        if "HOST IDENTIFICATION HAS CHANGED" in said:
            return HostKeyError(
                f"{where} has another host key than it had: somebody may sit between, or the "
                "machine was set up anew. Ask its administrators, and only if they confirm the "
                f"new fingerprint remove the old key by `ssh-keygen -R {self.host}`\n{text}"
            )
        if "Host key verification failed" in said or "host key is known" in said:
            return HostKeyError(
                f"the host key of {where} is not known. Run `ssh {where}` once in a terminal, "
                "compare the fingerprint that it shows with the one that the site publishes, and "
                f"accept it; or give accept_new_host_key=True for this first contact\n{text}"
            )
        if "Permission denied" in said or "Too many authentication" in said:
            kind = "password" if self.params.password else "key, ticket or agent"
            return LoginError(
                f"{where} does not let us in: wrong user or {kind}. What works without a question "
                f"by `ssh {where}` works here; give password=... where there is no key\n{text}"
            )
        why = f"no answer after {LOGIN_TIMEOUT:g} s" if late else "ssh ended"
        return UnreachableError(f"{where} cannot be reached: {why}" + (f"\n{text}" if text else ""))

    def _drop(self) -> None:
        self._master = None
        if self._ending is not None:
            self._ending()

    # -- over the connection -------------------------------------------------------------------

    def _client(self, *words: str) -> list[str]:
        """Return a command that uses the connection, and fails where there is none."""
        options = ["-F", "none", "-S", self._socket, "-oControlMaster=no", "-oProxyCommand=false"]
        return [self._program[0], *options, "-T", *words]

    def _execute(
        self,
        line: str,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        total: float | None,
        stall: float | None,
    ) -> bytes:
        try:
            process = subprocess.Popen(
                self._client("--", self.host, line),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise UnreachableError(f"cannot run {self._program[0]!r}: {error}") from error
        begun = [False]
        with process:
            try:
                stderr = pump(process, _noting(source, begun), sink, total, stall)
            except BaseException:
                process.kill()
                raise
        if b"open refused" in stderr and b"\n" not in stderr.partition(b"open refused")[0]:
            if begun[0] and not isinstance(source, list | tuple):
                raise LinkLostError(f"{self.host} takes no more commands at the moment")
            raise BusyError("session open refused")
        return stderr

    # -- ports ---------------------------------------------------------------------------------

    def _start_forward(self, forward: PortForward) -> None:
        for attempt in range(3):
            port = forward.port or _free_port()
            done = self._control("forward", _way(forward, port))
            if done.returncode == 0:
                forward.port = port
                return
            if forward.port and attempt:
                time.sleep(0.5)  # what was there before may still be going
        raise ProtocolError(
            f"port {port} here cannot lead to {forward.there}:{forward.port_there} at "
            f"{self.host}: {done.stderr.strip() or 'ssh refused'}"
        )

    def _stop_forward(self, forward: PortForward) -> None:
        if self._is_open():
            self._control("cancel", _way(forward, forward.port))

    def _control(self, what: str, way: str) -> subprocess.CompletedProcess[str]:
        done = _run(self._client("-O", what, "-L", way, "--", self.host))
        if done is None:
            raise LinkLostError(f"the connection to {self.host} does not answer")
        return done


def _end(master: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    """End the ssh of a connection; a fork of its owner leaves it alone."""
    if owner != os.getpid():
        return
    for stream in (master.stdin, master.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    for number, seconds in ((None, 1.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, None)):
        if number is not None:
            with suppress(ProcessLookupError):
                os.killpg(master.pid, number)
        with suppress(subprocess.TimeoutExpired):
            master.wait(seconds)
            break
    shutil.rmtree(folder, ignore_errors=True)


def _run(argv: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command that asks no machine; ``None`` if it takes too long all the same."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=CONTROL_TIMEOUT, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return None


def _noting(source: Iterable[bytes], begun: list[bool]) -> Iterator[bytes]:
    """Pass on a source, and note when something was taken from it."""
    for piece in source:
        begun[0] = True
        yield piece


class _Secret:
    """The environment of ssh while it logs in: with a way to the password, if there is one."""

    def __init__(self, protocol: SshProtocol, folder: str) -> None:
        self._protocol = protocol
        self._folder = folder
        self._pipe: IO[bytes] | None = None

    def __enter__(self) -> dict[str, str]:
        environment = dict(os.environ)
        password = self._protocol.params.password
        if not password:
            return environment
        settings = self._protocol._configuration()
        script, pipe = Path(self._folder, "askpass"), os.path.join(self._folder, "pipe")
        script.write_text(_ASKPASS)
        script.chmod(0o700)
        os.mkfifo(pipe, 0o600)
        # Open both ways, so that neither side waits; one line for each kind of question.
        self._pipe = open(os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), "r+b", 0)
        self._pipe.write(f"{password}\n{password}\n".encode())
        host = settings.get("hostkeyalias") or settings["hostname"]
        return environment | {
            "SSH_ASKPASS": str(script),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": environment.get("DISPLAY", "none"),  # what ssh before 8.4 asks for
            "CJDASK_LOGIN": f"{settings['user']}@{host}",
            "CJDASK_PIPE": pipe,
        }

    def __exit__(self, *exc: object) -> None:
        if self._pipe is not None:
            self._pipe.close()
            for name in ("askpass", "pipe"):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder, name))


def _private_folder() -> str:
    """Make a folder for our user alone whose path leaves room for a socket."""
    base = tempfile.gettempdir()
    if len(base) > _LONGEST_FOLDER:
        base = "/tmp"
    return tempfile.mkdtemp(prefix="cjdask-ssh-", dir=base)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _way(forward: PortForward, port: int) -> str:
    there = f"[{forward.there}]" if ":" in forward.there else forward.there
    return f"{forward.host}:{port}:{there}:{forward.port_there}"
