"""What a cluster asks of its Dask scheduler, wherever that runs, beyond what Dask offers."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from types import MethodType
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed.core import Status

from cjdask.cluster_scaling import job_of

__all__ = ["install", "pool_for", "wanted_threads"]

FULL = 0.6
"""Share of the workers' memory from which on there should be twice as many workers."""
SAMPLE = 100
"""How many waiting tasks are looked at to tell how long all of them will take."""


def install(scheduler: Any) -> None:
    """Have a Dask scheduler answer what is asked here: ``scheduler_comm.cjdask_...(...)``."""
    for function in (wanted_threads, loads, dismiss, strike_off):
        scheduler.handlers[f"cjdask_{function.__name__}"] = MethodType(function, scheduler)


def loads(scheduler: Any) -> dict[str, tuple[int, int]]:
    """Return the number of tasks and the bytes of data that the workers of each job have."""
    found: dict[str, tuple[int, int]] = {}
    for worker in scheduler.workers.values():
        tasks, data = found.get(job_of(worker.name), (0, 0))
        found[job_of(worker.name)] = tasks + len(worker.processing), data + worker.nbytes
    return found


async def dismiss(scheduler: Any, workers: Iterable[str], drop: bool) -> None:
    """Have workers, by their addresses, end, whatever they hold or run.

    With ``drop`` their tasks go to others at once.
    """
    order = {"op": "close", "executor_wait": False, "reason": "its job is not needed any more"}
    for address in workers:
        if address not in scheduler.workers:
            continue
        scheduler.worker_send(address, dict(order))  # `close_worker` would wait for its tasks
        if drop:
            why = f"cjdask-dismiss-{time.time()}"
            await scheduler.remove_worker(address, stimulus_id=why, expected=True, close=False)


async def strike_off(scheduler: Any, workers: Iterable[str], why: str) -> None:
    """Know no more of workers, by their addresses, and tell them nothing."""
    for address in workers:
        await scheduler.remove_worker(address, stimulus_id=why, close=False)


def pool_for(asked: Collection[str] | None, pools: Mapping[str, Collection[str]]) -> str:
    """Return the pool whose size follows a task that asks for these resources.

    It is the first that offers them all, or the first where none does.

    >>> pools = {"default": {"default"}, "fat": {"fat", "GPU"}}
    >>> pool_for({"GPU": 1}, pools), pool_for(None, pools), pool_for({"tape"}, pools)
    ('fat', 'default', 'default')
    """
    if asked:
        for name, offers in pools.items():
            if all(each in offers for each in asked):
                return name
    return next(iter(pools))


def wanted_threads(
    scheduler: Any,
    pool: str,
    prefix: str,
    workers_have: Mapping[str, tuple[int, Mapping[str, str]]],
    target_duration: float,
) -> int:
    """Return how many threads a pool needs to finish its tasks in ``target_duration`` seconds.

    ``prefix`` is that of the names of its jobs, ``workers_have`` are how many threads, and what
    Dask resources, a worker of each pool has. The pool has the work of its own workers and the
    tasks that wait for it (see `pool_for`). A task that asks for all of a resource of a worker
    takes all its threads. Where memory is short it is twice as much as there is. Workers that
    are about to leave do what they do by themselves, but need one that takes their data.
    """
    mine = [ws for ws in scheduler.workers.values() if job_of(job_of(ws.name)) == prefix]
    workers = [ws for ws in mine if ws.status is not Status.closing_gracefully]
    data_leaves = any(ws.has_what for ws in mine if ws not in workers)
    offers = {name: each for name, (_, each) in workers_have.items()}
    waiting = [
        task
        for task in chain(scheduler.queued, scheduler.unrunnable)
        if pool_for(task.resource_restrictions, offers) == pool
    ]
    running = [task for ws in workers for task in ws.processing]
    width = [_width(tasks, *workers_have[pool]) for tasks in (waiting, running)]
    work = width[0] * _seconds(waiting) + width[1] * math.fsum(ws.occupancy for ws in workers)
    # Few long tasks need no more threads than they can use.
    most = width[0] * len(waiting) + width[1] * len(running)
    threads = min(math.ceil(work / target_duration), math.ceil(most))
    if (waiting or data_leaves) and not workers:
        threads = max(threads, 1)
    limit = sum(ws.memory_limit for ws in workers)
    if limit and sum(ws.nbytes for ws in workers) > FULL * limit:
        threads = max(threads, 2 * sum(ws.nthreads for ws in workers))
    return threads


def _width(tasks: Sequence[Any], threads: int, offers: Mapping[str, str]) -> float:
    """Return how many threads of a worker each task takes, on average of the first of them."""
    sample = [
        _threads(task.resource_restrictions or {}, threads, offers) for task in tasks[:SAMPLE]
    ]
    return math.fsum(sample) / len(sample) if sample else 1.0


def _threads(asked: Mapping[str, float], threads: int, offers: Mapping[str, str]) -> float:
    taken = [1.0]
    for name, amount in asked.items():
        try:
            taken.append(threads * amount / float(offers[name]))
        except (KeyError, ValueError, ZeroDivisionError):
            continue  # none of its resources, or how much there is turns out on the node
    return min(max(taken), float(threads))


def _seconds(tasks: list[Any]) -> float:
    """Estimate how long tasks take, from what tasks like the first of them took."""
    if not tasks:
        return 0.0
    unknown = parse_timedelta(dask.config.get("distributed.scheduler.unknown-task-duration"))
    sample = [task.prefix for task in tasks[:SAMPLE]]
    known = [
        prefix.duration_average
        if prefix.duration_average >= 0
        else 2 * prefix.max_exec_time
        if prefix.max_exec_time > 0
        else unknown
        for prefix in sample
    ]
    return math.fsum(known) * len(tasks) / len(known)
