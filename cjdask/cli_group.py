"""What all commands of ``cjdask`` have in common: exit codes, errors, signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any, NoReturn

import click

from cjdask.errors import (
    ClusterjobError,
    ProtocolError,
    ResourcesNotSupportedError,
    SchedulerUnavailableError,
    SettingsError,
    UnknownBackendError,
)

__all__ = ["Commands", "Exit", "Failure", "runs_go_on"]


class Exit(IntEnum):
    """The exit codes of all commands."""

    WELL = 0
    ERROR = 1
    """Something was refused or went wrong; the message says what."""
    USAGE = 2
    """The command line, a file of settings or a resource is wrong; nothing was done."""
    FAILED = 3
    """``wait``, ``logs -f``: a run is FAILED."""
    CANCELLED = 4
    """``wait``, ``logs -f``: a run is CANCELLED, and none is FAILED."""
    NOT_OVER = 5
    """``wait --timeout``: a run had not ended when the time was up."""
    NO_ANSWER = 6
    """The scheduler or its machine does not answer at the moment; try again."""
    INTERRUPTED = 130


class Failure(Exception):
    """The end of a command with a message and an exit code."""

    def __init__(self, message: str, code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Give an error of the package its exit code."""
        if isinstance(error, ResourcesNotSupportedError | SettingsError | UnknownBackendError):
            return cls(str(error), Exit.USAGE)
        if isinstance(error, SchedulerUnavailableError | ProtocolError):
            return cls(str(error), Exit.NO_ANSWER)
        return cls(str(error))


class Commands(click.Group):
    """A group of commands whose errors are messages with the exit codes of `Exit`.

    A signal that ends the program lets it clean up before: the terminal, trial jobs.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with _ending_by_exception(signal.SIGTERM, signal.SIGHUP):
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read has enough; click ends quietly
        except Failure as error:
            failure = error
        except (ClusterjobError, OSError) as error:
            failure = Failure.of(error)
        except KeyboardInterrupt:
            failure = Failure("Interrupted.", Exit.INTERRUPTED)
        head = "" if failure.code is Exit.INTERRUPTED else "Error: "
        click.echo(f"{head}{failure}", err=True)
        ctx.exit(int(failure.code))


@contextmanager
def runs_go_on() -> Iterator[None]:
    """Say at Ctrl-C that this ends the looking only."""
    try:
        yield
    except KeyboardInterrupt:
        raise Failure("Interrupted; the runs go on.", Exit.INTERRUPTED) from None


@contextmanager
def _ending_by_exception(*signals: signal.Signals) -> Iterator[None]:
    """Turn these signals into a `SystemExit`, so that blocks are left in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    ignored = [each for each in signals if signal.getsignal(each) is signal.SIG_IGN]
    before = {each: signal.signal(each, end) for each in signals if each not in ignored}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
