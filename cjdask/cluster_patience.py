"""How long a cluster waits after failures, and when it gives up."""

from __future__ import annotations

import time

from cjdask.errors import ClusterjobError, JobError

__all__ = ["Patience"]

MAX_PAUSE = 300.0
"""Seconds until lost jobs are replaced at most."""


class Patience:
    """Counts failures in a row: how long to wait after each, and when to give up.

    Jobs that were submitted before a failure was known do not count again when they fail too.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self.failures = 0
        self.not_before = float("-inf")
        self._last = float("-inf")
        self._error: Exception | None = None

    @property
    def exhausted(self) -> bool:
        """Tell whether no more is to be tried."""
        return self.failures >= self.limit

    def count(self, error: Exception, began: float) -> None:
        """Note that what began at a time has failed now."""
        now = time.monotonic()
        if self._error is None or began >= self._last:
            self.failures += 1
            self._last = now
            self.pause(self.failures)
        self._error = error

    def pause(self, tries: int) -> None:
        """Have nothing tried for a while, for longer the more tries there were."""
        self.not_before = time.monotonic() + min(2.0 ** (tries - 1), MAX_PAUSE)

    def error(self) -> Exception | None:
        """Return why no more is tried, ``None`` if it is."""
        if not self.exhausted or self._error is None:
            return None
        error = self._error
        message = (
            f"no more jobs are submitted after {self.failures} failures in a row, until "
            f"scale(...) or adapt(...) is called. The last: {error.args[0]}"
        )
        if isinstance(error, JobError):
            again: Exception = type(error)(message)  # its text has the log already
            again.info, again.log = error.info, error.log  # type: ignore[attr-defined]
            return again
        failure = ClusterjobError(message)
        failure.__cause__ = error
        return failure
