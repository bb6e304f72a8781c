"""Adaptive scaling in whole jobs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distributed.deploy.adaptive import Adaptive

from cjdask.cluster_scaling import job_of
from cjdask.cluster_times import duration

if TYPE_CHECKING:
    from cjdask.cluster import ClusterjobCluster
    from cjdask.cluster_pool import Pool

__all__ = ["ClusterjobAdaptive"]

logger = logging.getLogger(__name__)

MAX_PAUSE = 300.0
"""Seconds until a refused job is tried again at most."""


class ClusterjobAdaptive(Adaptive):
    """Scales one pool of a `ClusterjobCluster` up and down with its load, by whole jobs.

    The parent counts workers. With several of them in a job that would cancel jobs for one
    idle worker, or cancel a pending job because it holds more workers than are wanted.

    A job goes when it has not been needed for ``idle_grace``, seconds or text such as "1m".
    """

    cluster: ClusterjobCluster

    def __init__(
        self,
        cluster: ClusterjobCluster,
        pool: Pool | None = None,
        idle_grace: str | float | None = None,
        **kwargs: Any,
    ) -> None:
        self.pool = pool or next(iter(cluster.pools.values()))
        grace = self.pool.options.idle_grace if idle_grace is None else idle_grace
        self.idle_grace = duration("idle_grace", grace)
        self._unneeded: dict[str, float] = {}
        # A lambda is pickled by value: the Dask scheduler need not have this package.
        kwargs.setdefault("worker_key", lambda worker: str(worker.name).rpartition("-")[0])
        super().__init__(cluster, **kwargs)
        self.forget()

    def forget(self) -> None:
        """Try to submit jobs at once, whatever failed before."""
        self.last_error: Exception | None = None
        self._refused = 0
        self._next_try = float("-inf")
        self.pool.keeper.patience.forget()

    async def target(self) -> int:
        """Return how many workers of this pool the load asks for."""
        comm: Any = self.cluster.scheduler_comm
        threads: int = await comm.cjdask_wanted_threads(
            pool=self.pool.name,
            prefix=self.pool.prefix,
            workers_have={
                name: (pool.options.threads, pool.offers)
                for name, pool in self.cluster.pools.items()
            },
            target_duration=self.target_duration,
        )
        return math.ceil(threads / self.pool.options.threads)

    async def safe_target(self) -> int:
        """Return how many workers there should be: whole jobs, within the limits."""
        size = self.pool.options.workers
        jobs = math.ceil(await self.target() / size)
        if math.isfinite(self.maximum):
            jobs = min(jobs, int(self.maximum // size))
        return max(jobs, math.ceil(self.minimum / size)) * size

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Tell what to do to have ``target`` workers: more, fewer, or nothing."""
        if self.plan != self.requested:
            await self.cluster.settle()
        size = self.pool.options.workers
        wanted = self._to_plan(target // size)
        surplus = len(self.pool.planned()) - wanted
        if surplus <= 0:
            self.close_counts.clear()
            self._unneeded.clear()
            return {"status": "up", "n": wanted * size} if surplus < 0 else {"status": "same"}
        pending = self.pool.jobs_not_started()
        idle = await self._idle_jobs() if len(pending) < surplus else []
        firm = self._long_unneeded([*pending, *idle][:surplus])
        # By themselves, since an idle job may be given a task while others are cancelled.
        firm = [job for job in firm if job in pending] or firm
        return {"status": "down", "workers": firm} if firm else {"status": "same"}

    def _to_plan(self, jobs: int) -> int:
        """Return how many jobs to plan so that ``jobs`` serve.

        Those that end soon by their walltime are planned no more; they count for the load and
        the maximum as long as they take tasks, but not for the minimum.
        """
        size, serving = self.pool.options.workers, self.pool.still_serving()
        wanted = max(jobs - serving, math.ceil(self.minimum / size))
        if math.isfinite(self.maximum):
            wanted = min(wanted, int(self.maximum // size) - serving)
        return max(wanted, 0)

    def _long_unneeded(self, candidates: list[str]) -> list[str]:
        """Return those that were candidates often enough, and for the time of grace."""
        now = time.monotonic()
        counts: dict[str, int] = self.close_counts  # type: ignore[assignment]
        for job in [job for job in self._unneeded if job not in candidates]:
            del self._unneeded[job], counts[job]
        for job in candidates:
            self._unneeded.setdefault(job, now)
            counts[job] += 1
        return [
            job
            for job in candidates
            if counts[job] >= self.wait_count and now - self._unneeded[job] >= self.idle_grace
        ]

    async def _idle_jobs(self) -> list[str]:
        """Return the jobs all of whose workers can go, those that hold least data first."""
        arrived, planned = self.cluster.arrived(), set(self.pool.planned())
        leaving: dict[str, set[str]] = {}
        for worker in await self.workers_to_close(None):
            if job_of(worker) in planned:
                leaving.setdefault(job_of(worker), set()).add(str(worker))
        return [job for job, workers in leaving.items() if workers >= arrived.get(job, {""})]

    async def workers_to_close(self, target: int | None) -> list[str]:
        """Return idle workers, by name; with no ``target`` only such as leave no work behind."""
        return list(await super().workers_to_close(target))  # type: ignore[arg-type]

    async def scale_up(self, n: int) -> None:  # type: ignore[override]
        """Submit jobs until ``n`` workers are planned.

        Where the scheduler refuses, the next try comes later each time.
        """
        if self.state == "stopped" or time.monotonic() < self._next_try:
            return
        if not self.pool.keeper.may_submit():
            return
        try:
            await self.pool.resize(n // self.pool.options.workers)
        except Exception as error:
            self.last_error = error
            self._refused += 1
            pause = min(2.0**self._refused, MAX_PAUSE)
            self._next_try = time.monotonic() + pause
            logger.error("the next try comes in %g s: %s", pause, error)
        else:
            self.last_error = None
            self._refused = 0

    async def scale_down(self, workers: Iterable[str]) -> None:  # type: ignore[override]
        """Retire and cancel jobs, by their names."""
        if self.state != "stopped":
            await self.cluster.scale_down(list(workers))
