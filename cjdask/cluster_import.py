"""Import dask_jobqueue without its side effects.

Importing dask_jobqueue 0.9 replaces the handler of SIGINT, which fails in any thread but the
main one, and writes a file to the home folder. Here both calls are ignored while it runs.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask.config

__all__ = ["Job", "JobQueueCluster"]

_importing = threading.Lock()


def _deaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it ignores calls from dask_jobqueue."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "dask_jobqueue":
            return None
        return function(*args, **kwargs)

    return wrapper


@contextmanager
def _without_side_effects() -> Iterator[None]:
    with _importing:
        set_handler, ensure_file = signal.signal, dask.config.ensure_file
        signal.signal = _deaf(set_handler)
        dask.config.ensure_file = _deaf(ensure_file)
        try:
            yield
        finally:
            signal.signal = set_handler
            dask.config.ensure_file = ensure_file


with _without_side_effects():
    from dask_jobqueue.core import Job, JobQueueCluster
