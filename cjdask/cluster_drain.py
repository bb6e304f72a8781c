"""Ends a worker of a batch job in time: before the walltime, so that no task is lost by it, and
when its Dask scheduler is gone, so that no job lasts for a task that nobody waits for.

Dask loads a copy of this file into each worker (``--preload``); it imports nothing of this
package, which the Python of the workers need not have. What dask has for this,
``--lifetime``, gives up the tasks that run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial
from typing import Any

import dask.config
from distributed.core import Status
from distributed.preloading import process_preloads

__all__ = ["ENDS", "END_TIME", "MARGIN", "SECONDS_LEFT", "dask_setup", "dask_teardown"]

logger = logging.getLogger("distributed.worker")

ENDS = "CLUSTERJOB_DASK_ENDS"
"""Variable with the time at which the job will be ended, in seconds since 1970."""
MARGIN = "CLUSTERJOB_DASK_MARGIN"
"""Variable with the seconds before that from which on a worker takes no more tasks."""
SECONDS_LEFT = "clusterjob_seconds_left"
"""What a worker tells the Dask scheduler when it comes: the seconds until its job ends."""
END_TIME = "clusterjob_end_time"
"""The same by the clock of its node, for who asks later."""
RESERVE = 30.0
"""Seconds before the end at which a worker leaves whatever it runs; a third of a short margin."""
CLOSING = 2.0
"""Seconds that a worker takes to close."""
TURN = 0.2
"""Seconds between two looks at a worker that ends."""
SLOWEST = 10.0
"""Seconds between two tries to move data away at most."""

_NOT_STARTED = ("waiting", "ready", "constrained")
_GOING = (Status.running, Status.paused, Status.closing_gracefully)

_tasks: dict[Any, asyncio.Task[None]] = {}
_others: dict[Any, Any] = {}


async def dask_setup(worker: Any) -> None:
    """Have the worker end in time. Dask calls this before the worker reports for work."""
    worker.handle_scheduler = partial(_work, worker)
    if ENDS in os.environ:
        ends, margin = float(os.environ[ENDS]), float(os.environ[MARGIN])
        worker.startup_information[SECONDS_LEFT] = lambda _: ends - time.time()
        worker.startup_information[END_TIME] = lambda _: ends
        _tasks[worker] = asyncio.create_task(_end_in_time(worker, ends, margin))
    if len(worker.preloads) == 1:
        # Named on the command line this file takes the place of those that are configured.
        names = dask.config.get("distributed.worker.preload")
        arguments = dask.config.get("distributed.worker.preload-argv")
        _others[worker] = process_preloads(
            worker, names, arguments, file_dir=worker.local_directory
        )
        await _others[worker].start()


async def dask_teardown(worker: Any) -> None:
    """Forget a worker that ends for another reason."""
    task = _tasks.pop(worker, None)
    if task is not None:
        task.cancel()
    if worker in _others:
        await _others.pop(worker).teardown()


async def _work(worker: Any, comm: Any) -> None:
    """Do what the Dask scheduler says until it is gone, then end, whatever runs.

    Dask would wait half a minute for the tasks that run.
    """
    try:
        await worker.handle_stream(comm)
    finally:
        await worker.close(executor_wait=False, reason="the Dask scheduler is gone")


async def _end_in_time(worker: Any, ends: float, margin: float) -> None:
    await asyncio.sleep(max(0.0, ends - margin - time.time()))
    if worker.status not in _GOING:
        return
    logger.info("The job ends in %.0f s: %s takes no more tasks", ends - time.time(), worker.name)
    await _drain(worker, ends, ends - min(margin / 3, RESERVE))
    if lost := [task.key for task in _busy(worker)]:
        logger.warning("The job ends, these tasks have to be run again elsewhere: %s", lost)
    _tasks.pop(worker, None)  # else this task would be cancelled by `dask_teardown`
    await worker.close(executor_wait=not lost, reason="the job is about to end")


async def _drain(worker: Any, ends: float, last: float) -> None:
    """Let the tasks of a worker end and its data move, until the time ``last``."""
    pause, next_try, was_idle = TURN, time.time() + TURN, False
    while time.time() < last:
        if worker.status not in _GOING:
            return
        if worker.status is not Status.closing_gracefully:
            worker.status = Status.closing_gracefully
        _give_back(worker)
        idle = not _busy(worker)
        if time.time() >= next_try or (idle and not was_idle):
            if await _retire(worker, last, remove=idle) and idle:
                return
            pause = min(pause * 2, SLOWEST)
            next_try = time.time() + pause
        was_idle = idle
        await asyncio.sleep(TURN)
    await _retire(worker, ends - CLOSING, remove=True)


def _busy(worker: Any) -> list[Any]:
    """Return the tasks that run, among them such as wait for others (``worker_client``)."""
    return [*worker.state.executing, *worker.state.long_running]


def _give_back(worker: Any) -> None:
    """Have the Dask scheduler give tasks that were not started to other workers."""
    for task in list(worker.state.tasks.values()):
        if task.state in _NOT_STARTED:
            stimulus = f"job-ends-{time.time()}"
            worker.batched_send({"op": "reschedule", "key": task.key, "stimulus_id": stimulus})


async def _retire(worker: Any, deadline: float, remove: bool) -> bool:
    """Have the data of a worker moved to others until a time; tell whether all could be."""
    try:
        moved = await asyncio.wait_for(
            worker.scheduler.retire_workers(
                workers=[worker.address],
                close_workers=False,
                remove=remove,
                stimulus_id=f"job-ends-{time.time()}",
            ),
            max(1.0, deadline - time.time()),
        )
    except (OSError, asyncio.TimeoutError) as error:
        logger.warning("The data of %s could not be moved: %s", worker.name, error)
        return False
    return worker.address in moved
