"""Joblib on an executor, and with it what uses joblib, such as scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from joblib.parallel import ParallelBackendBase  # type: ignore[attr-defined]

__all__ = ["JoblibBackend"]


class JoblibBackend(ParallelBackendBase):
    """A backend of joblib that makes calls on an executor.

    >>> import joblib
    >>> with joblib.parallel_config(backend=JoblibBackend(executor)):  # doctest: +SKIP
    ...     joblib.Parallel()(joblib.delayed(abs)(n) for n in range(-5, 0))

    ``n_jobs=-1``, which is the default here, is what the executor can make at a time.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, executor: Executor | None = None, **options: Any) -> None:
        if executor is None:
            raise ValueError("give the executor: JoblibBackend(executor)")
        super().__init__(**options)
        self._executor = executor
        self._open: set[Future[Any]] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls may be made at a time."""
        if n_jobs == 0:
            raise ValueError("n_jobs=0 has no meaning; give -1 for as many as can be")
        most: int = getattr(self._executor, "_max_workers", 1)
        return most if n_jobs is None or n_jobs < 0 else n_jobs

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], None] | None = None
    ) -> Future[Any]:
        """Make a call; its future goes to the callback."""
        future = self._executor.submit(func)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """Return what a call returned, or raise what it raised."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the calls that are left when one has failed."""
        for future in list(self._open):
            future.cancel()
