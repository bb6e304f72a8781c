"""Many calls of one function: `ClusterExecutor.map`."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from cjdask.errors import PayloadError
from cjdask.executor_calls import ClusterFuture, Task, dump_function, label_of
from cjdask.executor_depends import futures_in
from cjdask.run_progress import progress_line
from cjdask.status import Status

if TYPE_CHECKING:
    from cjdask.executor import ClusterExecutor
    from cjdask.executor_cache import MapCache

__all__ = ["Submission", "map_calls"]


def map_calls(
    submission: Submission,
    iterables: Iterable[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
    progress: bool,
) -> Iterator[Any]:
    """Do what `ClusterExecutor.map` documents."""
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError(f"buffersize={buffersize!r}: give a whole number, or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize={buffersize!r}: give a whole number of at least 1")
    end = None if timeout is None else timeout + time.monotonic()
    calls = zip(*iterables)  # noqa: B905 - as the builtin does
    futures = deque(submission(itertools.islice(calls, buffersize)))
    found = _results(futures, calls, submission, end, buffersize)
    return _shown(found, futures) if progress else found


class Submission:
    """Submits calls of one function, many at a time.

    With a cache it submits only what is not there and not under way.
    """

    def __init__(
        self,
        executor: ClusterExecutor,
        fn: Callable[..., Any],
        chunksize: int = 1,
        cache: MapCache | None = None,
        force: bool = False,
    ) -> None:
        if chunksize < 1:
            raise ValueError(f"chunksize={chunksize!r}: give a whole number of at least 1")
        self._executor = executor
        self._fn = fn
        self._chunksize = chunksize
        self._pickled: bytes | None = None
        self.cache = cache
        self._force = force

    def __call__(self, calls: Iterable[tuple[Any, ...]]) -> list[ClusterFuture]:
        """Submit one call for each tuple of arguments."""
        shared = self._executor._shared
        shared.check_open()
        futures: list[ClusterFuture] = []
        tasks: list[Task] = []
        calls = iter(calls)
        try:
            while chunk := list(itertools.islice(calls, self._chunksize)):
                if self.cache is None and futures_in(chunk):
                    futures += [self._executor.submit(self._fn, *args) for args in chunk]
                    continue
                made = [ClusterFuture(shared.ledger, label_of(self._fn)) for _ in chunk]
                futures += made
                tasks += self._tasks(chunk, made)
            if tasks and self.cache is not None:
                self._run_cached(self.cache, tasks)
            elif tasks:
                self._executor._enqueue(self._executor._options, tasks, together=True)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return futures

    def _tasks(self, chunk: list[tuple[Any, ...]], futures: list[ClusterFuture]) -> list[Task]:
        no_names: dict[str, Any] = {}
        options = self._executor._options
        try:
            if self._pickled is None:
                self._pickled = dump_function(self._fn)
            calls = [(args, no_names, future) for args, future in zip(chunk, futures, strict=True)]
            return [self._executor._task(options, self._fn, self._pickled, calls, self.cache)]
        except PayloadError as error:
            for future in futures:
                future.settle(error=error)
            return []

    def _run_cached(self, cache: MapCache, tasks: list[Task]) -> None:
        executor = self._executor
        with cache.lock():
            if self._force:
                cache.clear()
                self._force = False
            cache.check_function(self._fn)
            rest, batches = cache.sort(tasks)
            executor._shared.engine(executor._options.in_array()).run_now([], batches)
            executor._shared.engine(executor._options).run_now(rest, [])


def _results(
    futures: deque[ClusterFuture],
    calls: Iterator[tuple[Any, ...]],
    submission: Submission,
    end: float | None,
    buffersize: int | None,
) -> Iterator[Any]:
    """Yield results in order, and keep as many calls ahead as asked for.

    The next calls are submitted when half of the buffer is free, so that they are one array.
    """
    keep = submission.cache is not None  # what runs on is of use another time
    try:
        while futures:
            if buffersize is not None and len(futures) <= buffersize // 2:
                futures.extend(submission(itertools.islice(calls, buffersize - len(futures))))
            if not futures[0].done():  # it stays among them, for those who count
                wait([futures[0]], _left(end))
            yield _result(futures.popleft(), end, keep)
            if buffersize is not None and not futures:
                futures.extend(submission(itertools.islice(calls, buffersize)))
    finally:
        if not keep:
            for future in futures:
                future.cancel()


def _shown(results: Iterator[Any], left: deque[ClusterFuture]) -> Iterator[Any]:
    """Yield results and show how far the calls are."""
    taken = 0

    def counts() -> Mapping[Status, int]:
        found = Counter(_status(future) for future in list(left))
        found[Status.COMPLETED] += taken
        return found

    with progress_line(counts, "calls"):
        for result in results:
            taken += 1
            yield result
            del result


def _status(future: ClusterFuture) -> Status:
    if future.cancelled():
        return Status.CANCELLED
    if future.done():
        return Status.FAILED if future.exception() else Status.COMPLETED
    return Status.RUNNING if future.running() else Status.PENDING


def _result(future: Future[Any], end: float | None, keep: bool) -> Any:
    """Return a result without keeping it alive; cancel a call that is not waited for longer."""
    try:
        try:
            return future.result(_left(end))
        finally:
            if not keep:
                future.cancel()
    finally:
        del future


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
