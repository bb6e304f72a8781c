"""Functions that the tests of executors call in jobs, in a module that loads next to nothing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


class NeedsTwo(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


class Unsayable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Exits:
    """Ends a process when it is pickled, or when it is made again from its pickle."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> tuple[Any, ...]:
        if self.when == "pickled":
            raise SystemExit(5)
        return sys.exit, (5,)


class ExitsError(Exception):
    """An exception that ends the process that loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (5,)


def throw(error: BaseException) -> None:
    """Raise an exception."""
    raise error


class Counts:
    """Counts to a number, and knows how far it came when it is interrupted."""

    def __init__(self, folder: str) -> None:
        self.reached = 0
        self.runs = 0
        self.started = os.path.join(folder, "started")

    def __call__(self, to: int) -> tuple[int, int]:
        self.runs += 1
        Path(f"{self.started}{self.runs}").touch()
        while self.reached < to:
            self.reached += 1
            if self.reached == 5 * self.runs:
                time.sleep(30 if self.runs < 3 else 0)
        return self.reached, self.runs

    def checkpoint(self, to: int) -> None:
        """Nothing but what is in this object has to be kept."""


class Thing:
    """Something to make a call of, and to make in one."""

    def method(self) -> None:
        """Do nothing."""


def make_thing(_: int) -> Thing:
    """Make one."""
    return Thing()


def wait_for(path: Path) -> None:
    """Wait until there is such a file."""
    while not path.exists():
        time.sleep(0.05)


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments."""
    return args, kwargs


def sleep_and_raise(seconds: float) -> None:
    """Raise after a while."""
    time.sleep(seconds)
    raise RuntimeError("an exception")  # with a comment
