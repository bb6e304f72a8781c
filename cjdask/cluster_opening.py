"""How the jobs of a cluster are submitted: those that start together at once."""

from __future__ import annotations

import asyncio

from distributed.core import Status

from cjdask.cluster_apart import ApartCluster
from cjdask.cluster_job import ClusterJob, batches
from cjdask.cluster_pool import Pool

__all__ = ["OpeningCluster"]


class OpeningCluster(ApartCluster):
    """The part of a cluster that makes its jobs those that are planned."""

    _turns: asyncio.Semaphore
    """Held by each submit command that runs."""

    async def settle(self) -> dict[Pool, Exception]:
        """Submit the jobs that are planned, cancel those that are not.

        Return the pools that did not get all their jobs, and why.

        Raises:
            SchedulerError, ProtocolError: jobs could not be cancelled.
        """
        refused: dict[Pool, Exception] = await super()._correct_state()
        return refused

    async def _correct_state(self) -> None:
        for error in (await self.settle()).values():
            raise error

    async def _correct_state_internal(self) -> dict[Pool, Exception]:  # type: ignore[override]
        async with self._lock:
            self._correct_state_waiting = None
            failures: list[Exception] = []
            refused: dict[Pool, Exception] = {}
            await self._close_jobs(failures)
            new = [name for name in self.worker_spec if name not in self.workers]
            if not failures:
                await asyncio.gather(*(self._open_jobs(names, refused) for names in batches(new)))
            for name in new:
                if name not in self.workers:
                    self.worker_spec.pop(name, None)
        if not self.leaving:
            self.save()
        if self.status in (Status.closing, Status.closed):
            return {}
        if failures:
            raise failures[0]
        return refused

    async def _open_jobs(self, names: list[str], refused: dict[Pool, Exception]) -> None:
        """Submit jobs of one pool whose numbers follow each other, as arrays where there are."""
        pool = self.pool_of(names[0])
        assert pool is not None
        most = await self._dispatcher.call(pool.most_tasks) if len(names) > 1 else 1
        parts = batches(names, most)
        await asyncio.gather(*(self._open_together(pool, part, refused) for part in parts))

    async def _open_together(
        self, pool: Pool, names: list[str], refused: dict[Pool, Exception]
    ) -> None:
        async with self._turns:
            for part in batches([name for name in names if name in self.worker_spec], len(names)):
                if pool in refused:
                    return  # after the first refusal no more are tried
                spec = self.worker_spec[part[0]]
                jobs = [spec["cls"](self.addresses(), name, **spec["options"]) for name in part]
                try:
                    await spec["cls"].start_together(jobs)
                except Exception as error:
                    refused[pool] = error
                    return
                self._note_opened(pool, jobs)

    def _note_opened(self, pool: Pool, jobs: list[ClusterJob]) -> None:
        for job in jobs:
            self._created.add(job)
            self.workers[job.name] = job
            if job.placed and job.name:
                pool.keeper.follow(job.name, job.placed)
