"""The jobs of one kind in a Dask cluster: what they are like and how many there should be."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.utils import NoOpAwaitable

from cjdask.cluster_adaptive import ClusterjobAdaptive
from cjdask.cluster_address import NOWHERE
from cjdask.cluster_job import ClusterJob
from cjdask.cluster_keeper import JobKeeper, wait_for_workers
from cjdask.cluster_scaling import Bounds, job_of, limits
from cjdask.cluster_script import Recipe
from cjdask.cluster_table import JobTable
from cjdask.errors import ClusterjobError

if TYPE_CHECKING:
    from cjdask.cluster import ClusterjobCluster

__all__ = ["Pool", "unique_prefix"]


def unique_prefix(job_name: str) -> str:
    """Return what the names of jobs begin with, unlike that of any other pool or cluster."""
    return re.sub(r"[^\w.-]+", "_", job_name) + "-" + secrets.token_hex(3)


class Pool:
    """Jobs of one kind in a cluster, which are scaled and adapted by themselves.

    Its workers have a Dask resource of its name, one for each of their threads, by which tasks
    ask for them: ``client.submit(f, resources={"fat": 1})``. The cluster is held weakly, so
    that one that is dropped can go.
    """

    def __init__(
        self,
        cluster: ClusterjobCluster,
        recipe: Recipe,
        prefix: str,
        keywords: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.name = recipe.pool
        self.keywords = keywords
        """What it was asked for, beyond what was asked for the cluster."""
        self.options = recipe.options
        self.most_tasks = recipe.most_tasks
        self.offers = recipe.resources
        """The Dask resources of each of its workers, and how much of them."""
        self.prefix = prefix
        self.spec: dict[str, Any] = {
            "cls": cluster.job_cls,
            "options": {"recipe": recipe, "dispatcher": cluster._dispatcher},
            "group": [f"-{rank}" for rank in range(recipe.options.workers)],
        }
        self.keeper = JobKeeper(self, recipe.options.max_failures)
        self.adaptive: Adaptive | None = None
        self.adapting: dict[str, Any] | None = None
        """How the pool adapts, for a later process: options, and limits in ``jobs``; ``None``
        where it does not, or by a class or options that only this process has."""
        self._cluster = weakref.ref(cluster)
        self._next_job = 0
        self._scaling: set[asyncio.Future[None]] = set()
        str(recipe.script([NOWHERE], f"{prefix}-0"))  # raises early

    @property
    def cluster(self) -> ClusterjobCluster:
        """The cluster of this pool.

        Raises:
            ClusterjobError: nobody has kept it.
        """
        cluster = self._cluster()
        if cluster is None:
            raise ClusterjobError(f"the cluster of pool {self.name!r} is gone; keep a reference")
        return cluster

    def open_cluster(self) -> ClusterjobCluster | None:
        """Return the cluster, ``None`` if it closes, is closed or is gone."""
        cluster = self._cluster()
        return None if cluster is None or cluster.leaving else cluster

    def next_job(self) -> dict[str, dict[str, Any]]:
        """Return name and description of the next job. A name is never used again."""
        name = f"{self.prefix}-{self._next_job}"
        self._next_job += 1
        return {name: self.spec}

    def skip(self, job: str) -> None:
        """Note that a name has been used."""
        self._next_job = max(self._next_job, int(job.rpartition("-")[2]) + 1)

    def sample_job(self) -> ClusterJob:
        """Return what would be the next job."""
        cluster = self.cluster
        name = f"{self.prefix}-{self._next_job}"
        return cluster.job_cls(cluster.addresses(), name, **self.spec["options"])

    def job_script(self) -> str:
        """Return the script of the next job, exactly as it will be submitted.

        Jobs of a pool differ in nothing but the number at the end of their workers' names.
        """
        return self.sample_job().job_script()

    def owns(self, job: str) -> bool:
        """Tell whether a job, by its name, is one of this pool."""
        return job_of(job) == self.prefix

    def planned(self) -> list[str]:
        """Return the names of the jobs there should be, the oldest first."""
        return [name for name in self.cluster.worker_spec if self.owns(name)]

    def still_serving(self) -> int:
        """Count the jobs that are not planned any more, as they end soon, but still take tasks."""
        now = time.monotonic()
        expiring = self.cluster.expiring.items()
        return sum(drains > now for name, drains in expiring if self.owns(name))

    @property
    def jobs(self) -> JobTable:
        """The jobs of this pool by name, those that have ended too, as a table."""
        return JobTable(self.keeper.rows(self.cluster.arrived()))

    def here(self) -> int:
        """Return how many workers of this pool have arrived."""
        return sum(
            len(workers) for job, workers in self.cluster.arrived().items() if self.owns(job)
        )

    def wait_for_workers(self, n_workers: int, timeout: Any = None) -> Any:
        """Wait until this pool has ``n_workers`` workers.

        Raises:
            JobError: jobs fail so that they cannot come; the message has the log's tail.
            TimeoutError: they have not come in time (seconds, or text such as ``"5m"``).
        """
        seconds = timeout and parse_timedelta(timeout)
        return self.cluster.sync(wait_for_workers, [self], self.here, n_workers, seconds)

    def __repr__(self) -> str:
        shape = (
            f"nodes={self.options.nodes}, ppn={self.options.ppn}, threads={self.options.threads}"
        )
        return f"<Pool {self.name!r}: {shape}, jobs=({self.jobs.summary() or 'none'})>"

    # -- scaling -------------------------------------------------------------------------------

    def scale(
        self,
        n: int | None = None,
        jobs: int = 0,
        memory: str | int | None = None,
        cores: int | None = None,
    ) -> Any:
        """Have as many whole jobs as hold ``n`` workers, ``cores`` threads, ``memory``, ``jobs``.

        See `ClusterjobCluster.scale`.
        """
        cluster = self.cluster
        target = Bounds(jobs, n, cores, memory).least(self.options)
        if cluster.asynchronous:
            self.stop_adapting()
            self.keeper.aim(target)
            if cluster.status == Status.created:
                self._set_jobs(target, {})
                return NoOpAwaitable()
            task = asyncio.ensure_future(self._scale(target))
            self._scaling.add(task)  # else nothing might hold it
            task.add_done_callback(self._scaling.discard)
            return task

        async def scale() -> None:
            self.stop_adapting()
            self.keeper.aim(target)
            await self._scale(target)

        return cluster.sync(scale)

    async def _scale(self, jobs: int) -> None:
        try:
            await self.resize(jobs)
        except Exception:
            if self.keeper.target == jobs:
                self.keeper.aim(len(self.planned()))  # who scales is told, and may try again
            raise

    async def resize(self, jobs: int) -> None:
        """Have this many jobs, whether the pool is adaptive or not."""
        fewer = jobs < len(self.planned())
        comm: Any = self.cluster.scheduler_comm
        self._set_jobs(jobs, await comm.cjdask_loads() if fewer and comm is not None else {})
        refused = await self.cluster.settle()
        if self in refused:
            raise refused[self]

    def _set_jobs(self, jobs: int, loads: Mapping[str, tuple[int, int]]) -> None:
        cluster = self.cluster
        if jobs == 0:
            for name in filter(self.owns, list(cluster.expiring)):
                del cluster.expiring[name]
        surplus = len(self.planned()) - jobs
        for name in self._in_closing_order(loads)[: max(surplus, 0)]:
            del cluster.worker_spec[name]
        if cluster.status not in (Status.closing, Status.closed):
            for _ in range(-surplus):
                cluster.worker_spec.update(self.next_job())

    def jobs_not_started(self) -> list[str]:
        """Return the jobs none of whose workers has arrived, the youngest first."""
        arrived = self.cluster.arrived()
        return [name for name in reversed(self.planned()) if name not in arrived]

    def _in_closing_order(self, loads: Mapping[str, tuple[int, int]]) -> list[str]:
        """Return the names of all jobs, those that are missed least first."""
        idle = self.jobs_not_started()
        started = [name for name in reversed(self.planned()) if name not in idle]
        return idle + sorted(started, key=lambda name: loads.get(name, (0, 0)))

    def adapt(
        self,
        minimum: float = 0,
        maximum: float = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: str | None = None,
        maximum_memory: str | None = None,
        *,
        minimum_jobs: int | None = None,
        maximum_jobs: int | None = None,
        **kwargs: Any,
    ) -> Adaptive:
        """Scale with the load, between limits in workers, cores, memory or jobs.

        See `ClusterjobCluster.adapt`.
        """
        low = Bounds(minimum_jobs, minimum, minimum_cores, minimum_memory)
        high = Bounds(maximum_jobs, maximum, maximum_cores, maximum_memory)
        return self.start_adapting(partial(ClusterjobAdaptive, pool=self), low, high, kwargs)

    def start_adapting(
        self, kind: Callable[..., Adaptive], low: Bounds, high: Bounds, options: dict[str, Any]
    ) -> Adaptive:
        """Have an adaptive of this kind decide on the number of jobs from now on."""
        least, most = limits(self.options, low, high)
        size = self.options.workers
        self.stop_adapting()
        self.keeper.aim(None)
        self.adaptive = kind(
            self.cluster,
            minimum=least * size,
            maximum=math.inf if most is None else most * size,
            **options,
        )
        kept = type(self.adaptive) is ClusterjobAdaptive and all(
            isinstance(value, str | float | int | timedelta | None) for value in options.values()
        )
        self.adapting = {**options, "jobs": [least, most]} if kept else None
        self.cluster.save()
        return self.adaptive

    def take_up(self, target: int | None, adapting: Mapping[str, Any] | None) -> None:
        """Keep the number of jobs as another process has, whose values these are."""
        self.keeper.aim(target)
        if adapting is not None:
            options = dict(adapting)
            low, high = map(Bounds, options.pop("jobs"))
            kind = partial(ClusterjobAdaptive, pool=self)
            self.start_adapting(kind, low, high, options)

    def stop_adapting(self) -> None:
        """Let the number of jobs be what it is, or what `scale` says."""
        self.adapting = None
        if self.adaptive is not None:
            self.adaptive.stop(reason="scale")

    def stop(self) -> None:
        """Do nothing more by itself."""
        self.stop_adapting()
        self.keeper.stop()
