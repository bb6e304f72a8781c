"""Make calls of all kinds on a real scheduler, and print what came of them as JSON.

    python executor_real.py BACKEND MODE WHAT [OPTION=VALUE ...]

The tests run it, as another user where a scheduler takes no jobs of root. WHAT is ``basic``, or
the ways to die, such as ``exit,segv,walltime``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cjdask import ClusterExecutor, ClusterFuture, JobDied
from cjdask.backends import BatchBackend
from cjdask.scheduler import scheduler_for


def square(n: int) -> int:
    """Return the square, of any number but 5."""
    if n == 5:
        raise ValueError("five")
    return n * n


def rank() -> str | None:
    """Return which process of a call this is."""
    return os.getenv("CLUSTERJOB_RANK")


def fill_memory(limit: int = 0) -> None:
    """Use more memory than the job has, but not all that there is.

    Where the scheduler sets no limit the system may: so many bytes.
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    kept: list[bytes] = []
    for _ in range(100):
        kept.append(b"x" * (10 << 20))


def interrupted() -> None:
    """Raise what Ctrl-C does."""
    raise KeyboardInterrupt


class Saves:
    """Goes on in another job before the first one ends."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> int:
        self.runs += 1
        if self.runs == 1:
            time.sleep(300)
        return self.runs

    def checkpoint(self) -> None:
        """What is in this object is enough."""


WAYS: dict[str, Callable[[], Any]] = {
    "good": lambda: time.sleep(3),
    "exit": lambda: os._exit(3),
    "exit well": lambda: os._exit(0),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SystemExit": lambda: sys.exit(4),
    "KeyboardInterrupt": interrupted,
    "unpicklable": lambda: (each for each in ()),
    "memory": fill_memory,
    "MemoryError": lambda: fill_memory(800 << 20),
    "walltime": lambda: time.sleep(300),
    "cancelled": lambda: time.sleep(300),
}


def noted(way: str, folder: str) -> Any:
    """Note when the call began, and end as it is told."""
    (Path(folder) / f"began {way}").touch()
    return WAYS[way]()


def submit(executor: ClusterExecutor, mode: str, way: str) -> ClusterFuture:
    """Submit a call that ends in a way."""
    if way in ("cancelled", "walltime") and mode == "pool":  # not a job that makes other calls
        executor = executor.with_options(ppn=1, maximum_jobs=1)
    if way in ("saves", "walltime"):
        executor = executor.with_options(time="1")
    if way == "saves":
        return executor.submit(Saves())
    if way == "argument":
        return executor.submit(list, (each for each in ()))
    return executor.submit(noted, way, os.getcwd())


def basic(executor: ClusterExecutor, backend: str, mode: str) -> dict[str, Any]:
    """Make some calls, one that raises, one to cancel, one of two processes."""
    began = time.monotonic()
    results: list[Any] = []
    for future in [executor.submit(square, n) for n in range(7)]:
        error = future.exception()
        results.append(type(error).__name__ if error else future.result())
    long = executor.submit(time.sleep, 300)
    while not long.running():
        time.sleep(0.1)
    long.cancel()
    found: dict[str, Any] = {"results": results, "cancelled": long.cancelled()}
    if mode == "array":
        several = executor.with_options(ppn=2).submit_ranks(rank)
        found["ranks"] = several.result()
    commands = scheduler_for(backend).commands
    found["commands"] = {"submit": commands["submit"], "query": commands["query"]}
    found["seconds"] = time.monotonic() - began
    return found


def deaths(executor: ClusterExecutor, backend: str, mode: str, ways: list[str]) -> dict[str, Any]:
    """Have calls die, all at the same time; tell how each ended, and how long after its begin."""
    ended: dict[str, float] = {}

    def note(way: str) -> Callable[[object], None]:
        return lambda _: ended.update({way: time.time()})

    calls = {way: submit(executor, mode, way) for way in ways}
    for way, call in calls.items():
        call.add_done_callback(note(way))
    if "cancelled" in calls:
        cancel_from_outside(calls["cancelled"], backend)
    found = {}
    for way, call in calls.items():
        error = call.exception()
        known: dict[str, Any] = {"type": type(error).__name__, "text": str(error)}
        if (mark := Path(f"began {way}")).exists():
            known["seconds"] = ended[way] - mark.stat().st_mtime
        if isinstance(error, JobDied):
            status = None if error.status is None else error.status.name
            known |= {"status": status, "reason": str(error.reason), "code": error.exit_code}
            known["log"] = error.log_file is not None and os.path.exists(error.log_file)
        elif error is None:
            known["result"] = call.result()
        found[way] = known
    return found


def cancel_from_outside(call: Any, backend: str) -> None:
    """Cancel the job of a call behind the back of its executor."""
    while not call.running():
        time.sleep(0.1)
    time.sleep(1)
    info, scheduler = call.info, scheduler_for(backend)
    assert isinstance(scheduler.backend, BatchBackend)
    name = info.job_id if info.task is None else scheduler.backend.task_id(info.job_id, info.task)
    scheduler.cancel([name])


def main() -> None:
    """Run as the arguments say."""
    backend, mode, what = sys.argv[1:4]
    options = {key: json.loads(value) for key, value in (w.split("=", 1) for w in sys.argv[4:])}
    with ClusterExecutor(backend, mode=mode, jobname="calls-test", **options) as executor:
        if what == "basic":
            found = basic(executor, backend, mode)
        else:
            found = deaths(executor, backend, mode, what.split(","))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
