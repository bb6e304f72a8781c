"""The contract of a protocol: run commands and keep files on one machine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING
from typing import Protocol as Structural

from cjdask.command import Command, Output

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Forward", "Progress", "Protocol", "as_command"]

Progress = Callable[[str, int, int], object]
"""Called as ``progress(name, done, total)`` while files are copied, in bytes."""


class Forward(Structural):
    """A port of another machine that can be reached on this one."""

    host: str
    port: int

    def close(self) -> None:
        """Stop it; connections that go through it may break."""


class Protocol(ABC):
    """A way to one machine. It knows nothing of schedulers.

    Every method raises `ProtocolError` where the machine cannot be reached or asked, and may be
    called from several threads at once. Used in a ``with`` statement it is closed at the end.
    """

    host: str
    """The machine, as messages show it."""
    connected: bool = True
    """Whether it can be reached without connecting first."""

    @abstractmethod
    def run(self, command: Command | Sequence[str], timeout: float | None = None) -> Output:
        """Run a command to its end and return what came back, whatever its exit code.

        Raises:
            UnreachableError: there is no connection; nothing was run.
            LinkLostError: the link broke meanwhile; the command may go on.
            ProtocolError: the program is not there, cannot be started, or takes longer than
                ``timeout`` seconds (it is ended then).
        """

    @abstractmethod
    def which(self, program: str) -> str | None:
        """Return the path of a program there, ``None`` if there is none."""

    @abstractmethod
    def expand(self, path: str) -> str:
        """Return the absolute path for a path there; ``~`` is the home folder there."""

    @abstractmethod
    def create(self, path: str, content: str | bytes, executable: bool = False) -> None:
        """Write a file in one step: it is there whole or not at all.

        Missing folders are made.
        """

    @abstractmethod
    def read(self, path: str, tail: int | None = None) -> bytes:
        """Return the bytes of a file, or its last ``tail`` bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def upload(
        self,
        local_entries: Iterable[str | os.PathLike[str]],
        remote_path: str,
        progress: Progress | None = None,
    ) -> None:
        """Copy files and folders of this machine to that one.

        They go into the folder ``remote_path``; if that is no folder and has no slash at its
        end, one entry becomes that very path. Missing folders are made, links are followed,
        modes are kept, and what is there of the same name is replaced. Each file appears in one
        step when it is complete; a folder that was not there does as a whole. A copy that was
        cut goes on where it was, also when it is asked for again later.

        Raises:
            FileNotFoundError: an entry is not there; nothing was copied.
        """

    @abstractmethod
    def download(
        self,
        remote_entries: Iterable[str],
        local_path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> None:
        """Copy files and folders of that machine to this one, as `upload` does.

        Raises:
            FileNotFoundError: an entry is not there.
        """

    @abstractmethod
    def forward(self, port: int, host: str = "localhost", local_port: int = 0) -> Forward:
        """Make a port that the machine can reach reachable on this one.

        ``host`` is as the machine sees it; the answer tells where to connect to here, at
        ``local_port`` if that is given. It is there until it is closed, and comes back by
        itself after the link was lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection; it is opened anew when it is needed again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def as_command(command: Command | Sequence[str]) -> Command:
    """Return a command, also for a plain list of arguments.

    Raises:
        TypeError: it is one text, which would have to be split somehow.
    """
    if isinstance(command, Command):
        return command
    if isinstance(command, str) or not command:
        raise TypeError(f"run takes a list of arguments such as ['ls', '-l'], not {command!r}")
    return Command(tuple(map(os.fspath, command)))
