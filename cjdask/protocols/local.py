"""This machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from cjdask.command import Command, Output
from cjdask.errors import ProtocolError
from cjdask.protocols.base import Progress, Protocol, as_command
from cjdask.protocols.forwarding import DirectForward
from cjdask.protocols.trees import copy

__all__ = ["LocalProtocol"]


class LocalProtocol(Protocol):
    """Runs commands and keeps files on this machine."""

    host = "localhost"

    def run(self, command: Command | Sequence[str], timeout: float | None = None) -> Output:
        command = as_command(command)
        env = command.environment(os.environ)
        try:
            if command.cwd is not None:
                os.makedirs(command.cwd, exist_ok=True)
                env["PWD"] = os.path.abspath(command.cwd)  # as a shell does: oarsub goes by it
            stdin = command.input or b""
            if command.stdin_path is not None:
                stdin = Path(command.cwd or ".", command.stdin_path).read_bytes()
            done = subprocess.run(
                command.argv,
                input=stdin.encode() if isinstance(stdin, str) else stdin,
                capture_output=True,
                env=env,
                cwd=command.cwd,
                timeout=timeout,
                pass_fds=command.hold,
                start_new_session=True,  # Ctrl-C in a terminal is for us, not for this command
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProtocolError(
                f"no answer after {timeout:g} s on {self.host}: {command}"
            ) from None
        except (OSError, ValueError) as error:
            raise ProtocolError(f"cannot run on {self.host}: {command}: {error}") from error
        return Output(command.argv, self.host, done.returncode, done.stdout, done.stderr)

    def which(self, program: str) -> str | None:
        return shutil.which(program)

    def expand(self, path: str) -> str:
        return str(Path(path).expanduser().absolute())

    def create(self, path: str, content: str | bytes, executable: bool = False) -> None:
        target = Path(self.expand(path))
        try:
            _write(target, content.encode() if isinstance(content, str) else content, executable)
        except OSError as error:
            raise ProtocolError(f"cannot write {target} on {self.host}: {error}") from error

    def read(self, path: str, tail: int | None = None) -> bytes:
        target = self.expand(path)
        try:
            with open(target, "rb") as file:
                if tail is not None:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - tail))
                return file.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ProtocolError(f"cannot read {target} on {self.host}: {error}") from error

    def upload(
        self,
        local_entries: Iterable[str | os.PathLike[str]],
        remote_path: str,
        progress: Progress | None = None,
    ) -> None:
        copy([os.fspath(entry) for entry in local_entries], remote_path, progress)

    def download(
        self,
        remote_entries: Iterable[str],
        local_path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> None:
        copy(list(remote_entries), os.fspath(local_path), progress)

    def forward(self, port: int, host: str = "localhost", local_port: int = 0) -> DirectForward:
        if local_port not in (0, port):
            raise ValueError(f"local_port={local_port}: on this machine port {port} is what it is")
        return DirectForward(host, port)

    def close(self) -> None:
        pass


def _write(target: Path, content: bytes, executable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    mask = os.umask(0)
    os.umask(mask)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:180]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, (0o777 if executable else 0o666) & ~mask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
