"""How the jobs of a cluster end when they are not wanted any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from cjdask.cluster_import import JobQueueCluster
from cjdask.cluster_job import Dispatcher
from cjdask.cluster_pool import Pool
from cjdask.cluster_scaling import job_of
from cjdask.errors import ClusterjobError

__all__ = ["EndingCluster"]

logger = logging.getLogger(__name__)

LET_GO = 40.0
"""Seconds for jobs to end by themselves when their workers are told to, before a cancel."""

LET_GO_CLOSING = 5.0
"""The same for a cluster that closes."""


class EndingCluster(JobQueueCluster):
    """The part of a cluster that lets jobs end, and cancels what does not."""

    pools: dict[str, Pool]
    """The pools of this cluster by name; the first is that of its own `scale` and `adapt`."""
    expiring: dict[str, float]
    """Jobs that end by themselves soon, by their walltime, and have their successors; when their
    workers take no more tasks, on the clock of `time.monotonic`."""
    _dispatcher: Dispatcher
    _leaving: asyncio.Event
    _cancel_failed: bool

    def pool_of(self, job: str) -> Pool | None:
        """Return the pool of a job, by its name; ``None`` for one that is not of this cluster."""
        return next((pool for pool in self.pools.values() if pool.owns(job)), None)

    def arrived(self) -> dict[str, set[str]]:
        """Return the workers that have reported to the Dask scheduler, by job."""
        jobs: dict[str, set[str]] = {}
        for worker in list(self.scheduler_info["workers"].values()):
            jobs.setdefault(job_of(worker["name"]), set()).add(str(worker["name"]))
        return jobs

    def addresses_of_workers(self, jobs: Collection[str]) -> list[str]:
        """Return the addresses of the workers of these jobs."""
        workers = list(self.scheduler_info["workers"].items())
        return [address for address, worker in workers if job_of(worker["name"]) in jobs]

    async def _close_jobs(self, failures: list[Exception]) -> None:
        """End all jobs that are not planned; those that wait first, lest they start yet.

        A job some of whose workers are still to come does not end by itself.
        """
        names = {*self.workers, *self._dispatcher.placed} - {*self.worker_spec, *self.expiring}
        if not names:
            return
        arrived = self.arrived()
        whole = {
            name
            for name in names
            if (pool := self.pool_of(name)) and len(arrived.get(name, ())) >= pool.options.workers
        }
        waiting = names - (whole if self._leaving.is_set() else set(arrived))
        await self._cancel(waiting, failures)
        await self._retire(names)
        await self._let_go(whole)
        await self._cancel(names, failures)
        for name in names:
            if name in self.workers:
                self.workers.pop(name).set_closed()

    async def _cancel(self, names: set[str], failures: list[Exception]) -> None:
        """Cancel jobs with one command; those that have ended need none."""
        # A cluster that closes has one try here and its last in `_close`.
        if failures or (self._leaving.is_set() and self._cancel_failed):
            return
        try:
            await self._dispatcher.cancel(names)
        except ClusterjobError as error:  # they stay `placed`: the next pass tries again
            self._cancel_failed = True
            failures.append(error)

    async def _retire(self, names: set[str]) -> None:
        """Let the workers of jobs move their data to others, and end; if closing, just end."""
        addresses = self.addresses_of_workers(names)
        if addresses and not self._leaving.is_set():
            comm: Any = self.scheduler_comm
            moving = asyncio.ensure_future(
                comm.retire_workers(workers=addresses, remove=False, close_workers=False)
            )
            leaving = asyncio.ensure_future(self._leaving.wait())
            await asyncio.wait({moving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not moving.done():
                moving.cancel()
            elif error := moving.exception():
                logger.warning("data of workers that go could not be moved: %s", error)
        await self._dismiss(addresses)

    async def _dismiss(self, addresses: Collection[str]) -> None:
        """Have workers end, whatever they hold or run; their tasks go to others."""
        if not addresses:
            return
        comm: Any = self.scheduler_comm
        try:
            await comm.cjdask_dismiss(workers=list(addresses), drop=not self._leaving.is_set())
        except OSError as error:  # the Dask scheduler has ended, so its workers end too
            logger.info("workers could not be told to end: %s", error)

    async def _let_go(self, names: set[str]) -> None:
        """Wait for jobs whose workers were told to end, so that they end by themselves.

        Their end is then COMPLETED.
        """
        jobs = [job for name, job in self._dispatcher.placed.items() if name in names]
        if jobs:
            seconds = LET_GO_CLOSING if self._leaving.is_set() else LET_GO
            await self._dispatcher.wait_gone(jobs, seconds)
