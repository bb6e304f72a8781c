"""A command for a scheduler and what came back, as plain data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["Command", "Output"]


@dataclass(frozen=True)
class Command:
    """A program to run: an argument list, its standard input, environment."""

    argv: tuple[str, ...]
    input: str | bytes | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""
    drop: tuple[str, ...] = ()
    """Beginnings of the names of variables that must not reach the command."""
    cwd: str | None = None
    """The folder to run in, made if it is not there."""
    stdin_path: str | None = None
    """A file there that is the standard input instead of ``input``, relative to ``cwd``."""
    hold: tuple[int, ...] = ()
    """Open files of this process that the command keeps open too, so that the lock on them
    lasts until it has ended, also if this process is killed. Of no effect on other machines."""
    again: bool = False
    """Whether it may run twice, so that it is run once more where a link broke before its end."""

    @classmethod
    def ask(cls, *argv: str, drop: tuple[str, ...] = (), env: Mapping[str, str] = {}) -> Command:
        """Make a command whose answer is read: plain C locale, nothing that bends its output.

        It may run twice. A command that submits a job must not be made this way, also since
        jobs inherit its environment.
        """
        return cls(argv, env={**env, "LC_ALL": "C"}, drop=drop, again=True)

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment to run in.

        >>> Command(("x",), env={"A": "1"}, drop=("B",)).environment({"BC": "2", "D": "3"})
        {'D': '3', 'A': '1'}
        """
        kept = {k: v for k, v in inherited.items() if not k.startswith(self.drop or ("\0",))}
        return {**kept, **self.env}

    def __str__(self) -> str:
        """Show the command as it would be typed.

        >>> print(Command(("bsub", "-q", "long"), stdin_path="job.lsf"))
        bsub -q long < job.lsf
        """
        stdin = "" if self.stdin_path is None else f" < {shlex.quote(self.stdin_path)}"
        return shlex.join(self.argv) + stdin


@dataclass(frozen=True)
class Output:
    """What a finished command left: exit code and the bytes of both streams.

    ``exit_code`` is negative for a command that was ended by that signal.

    >>> Output.of("12\\n").stdout
    '12\\n'
    """

    argv: tuple[str, ...]
    host: str
    exit_code: int
    raw_stdout: bytes = b""
    raw_stderr: bytes = b""

    @classmethod
    def of(
        cls,
        stdout: str = "",
        stderr: str = "",
        exit_code: int = 0,
        argv: tuple[str, ...] = (),
        host: str = "localhost",
    ) -> Output:
        """Make an output from text, as a transcript or a test has it."""
        return cls(argv, host, exit_code, stdout.encode(), stderr.encode())

    @cached_property
    def stdout(self) -> str:
        """Standard output as text; bytes that are no UTF-8 are shown as escapes."""
        return self.raw_stdout.decode("utf-8", "backslashreplace")

    @cached_property
    def stderr(self) -> str:
        """Standard error as text; bytes that are no UTF-8 are shown as escapes."""
        return self.raw_stderr.decode("utf-8", "backslashreplace")
