"""Wait for many runs."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from cjdask.errors import ProtocolError, ScriptError, StagingError
from cjdask.monitor import TrackedJob
from cjdask.run import AsyncResult
from cjdask.run_progress import progress_line
from cjdask.status import Status

__all__ = ["as_completed", "ask_all", "wait_all"]

AT_THE_END = (ScriptError, StagingError, ProtocolError)
"""What can go wrong of what is due at the end of a run."""


def ask_all(runs: Iterable[AsyncResult]) -> list[Exception]:
    """Ask for many runs now, with one command for each scheduler; run epilogues that are due.

    Return why schedulers did not answer, if some did not; what was known of their runs stays.

    Raises:
        ScriptError, StagingError, ProtocolError: an epilogue failed, or output files did not come;
            all runs have been asked for, all epilogues were run.
    """
    asked = list(runs)
    monitors = {run._monitor: None for run in asked if not run._job.status.ended}
    for monitor in monitors:
        monitor.refresh(max_age=0)
    failure: Exception | None = None
    for run in asked:
        try:
            run._known()
        except AT_THE_END as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return [monitor.last_error for monitor in monitors if monitor.last_error is not None]


def as_completed(
    runs: Iterable[AsyncResult], timeout: float | None = None, progress: bool = True
) -> Iterator[AsyncResult]:
    """Yield runs as they end, after their epilogue; any number costs one query a cycle.

    With ``progress`` a line shows how far they are where standard output is a terminal or a
    notebook.

    Raises:
        TimeoutError: not all have ended ``timeout`` seconds after the first was asked for.
        ScriptError, StagingError, ProtocolError: an epilogue failed, or output files did not come;
            it is raised when all runs were yielded.
    """
    waited = list(runs)
    deadline = None if timeout is None else time.monotonic() + timeout
    ended: queue.Queue[AsyncResult] = queue.Queue()
    callbacks = [(run, _putting(ended, run)) for run in waited]
    failure: Exception | None = None
    left = len(waited)
    try:
        for run, callback in callbacks:
            run._monitor.when_ended(run._job, callback)
        with progress_line(lambda: _counts(waited), "runs", progress and bool(waited)):
            while left:
                try:
                    run = ended.get(timeout=_until(deadline))
                except queue.Empty:
                    why = f"{left} of {len(waited)} runs have not ended after {timeout:g} s"
                    raise TimeoutError(why) from None
                left -= 1
                try:
                    run._known()
                except AT_THE_END as error:
                    failure = failure or error
                yield run
    finally:
        for run, callback in callbacks:
            run._monitor.forget(run._job, callback)
    if failure is not None:
        raise failure


def _until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _counts(runs: Sequence[AsyncResult]) -> Counter[Status]:
    return Counter(run._job.status for run in runs)


def _putting(ended: queue.Queue[AsyncResult], run: AsyncResult) -> Callable[[TrackedJob], None]:
    return lambda job: ended.put(run)


def wait_all(
    runs: Iterable[AsyncResult], timeout: float | None = None, progress: bool = True
) -> list[Status]:
    """Wait until all runs have ended and return their final statuses, in the order given.

    ``progress`` is as in `as_completed`.

    Raises:
        TimeoutError: not all have ended after ``timeout`` seconds; they go on.
        ScriptError, StagingError, ProtocolError: an epilogue failed, or output files did not come;
            all runs have ended.
    """
    waited = list(runs)
    for _ in as_completed(waited, timeout, progress):
        pass
    return [run.status for run in waited]
