"""A Dask cluster whose workers are batch jobs."""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Awaitable, Generator, Iterable
from dataclasses import replace
from typing import Any

from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.spec import SpecCluster
from distributed.scheduler import Scheduler
from distributed.security import Security

from cjdask.cluster_adaptive import ClusterjobAdaptive
from cjdask.cluster_address import addresses_for
from cjdask.cluster_apart import PATIENCE, Left
from cjdask.cluster_job import AT_ONCE, ClusterJob, Dispatcher
from cjdask.cluster_load import install
from cjdask.cluster_opening import OpeningCluster
from cjdask.cluster_options import DEFAULT, resolve_pool
from cjdask.cluster_place import PlacedScheduler
from cjdask.cluster_pool import Pool, unique_prefix
from cjdask.cluster_scaling import Bounds, job_of
from cjdask.cluster_script import Recipe
from cjdask.cluster_security import security_for
from cjdask.cluster_signals import guard, release

__all__ = ["ClusterjobCluster"]

logger = logging.getLogger(__name__)

GONE_WITHIN = 5.0
"""Seconds for which a cluster that closes waits for its jobs to leave the queue."""


class ClusterjobCluster(OpeningCluster):
    """A Dask cluster whose workers run in batch jobs, on any scheduler.

    One job holds ``nodes * ppn`` workers of ``threads`` threads, started on all its nodes.
    The Dask scheduler runs in this process, if nothing else is asked for. All that is not given
    comes from the section ``clusterjob`` of `dask.config`, then from the user's settings of cjdask.

    Parameters
    ----------
    backend : name of the scheduler; without one the scheduler that is installed, and where
        there is none the embedded one (``"local"``), which runs jobs on this machine
    nodes, ppn, threads : machines of a job, workers on each, threads of each worker
    mem : memory of each machine, MB of 2**20 bytes or text such as ``"4GiB"``
    time, queue, account, gpus : walltime, queue, project, GPUs of each machine
    n_workers, jobs : how many workers, or jobs, to start with
    security : who may connect. Without it the cluster makes a certificate of its own, for TLS;
        ``Client(cluster)`` has it. ``False`` lets everybody on the network in
    asynchronous, loop, name, silence_logs, shutdown_on_close : as for any cluster of Dask
    scheduler_cls : class of the Dask scheduler
    **options : further options, in the names of dask-jobqueue

        - ``cores``, ``processes``, ``memory``: threads, workers and memory of one job;
          ``walltime``; ``project``; they may be mixed with the names above if they agree
        - ``job_name``, ``job_cpu``, ``job_mem``, ``shebang``, ``job_script_prologue``,
          ``job_script_epilogue``, ``job_extra_directives``, ``job_directives_skip``: the script
        - ``log_directory`` (default ``dask-worker-logs``), ``shared_temp_directory`` for
          scripts and certificates (default: the present folder; both must be seen by nodes)
        - ``python``, ``worker_command``, ``worker_class``, ``worker_extra_args``, ``nanny``,
          ``death_timeout``, ``local_directory``: the workers
        - ``walltime_margin``: how long before the walltime workers take no more tasks;
          ``idle_grace``: how long an adaptive cluster keeps a job that it does not need;
          ``arrays=False``: jobs that start together are not submitted as an array
        - ``interface``, ``protocol``, ``host``, ``dashboard_address``,
          ``scheduler_options``: network and Dask scheduler
        - ``remote``, ``ssh``: the machine whose scheduler gets the jobs, if it is not this one
        - ``scheduler``: where the Dask scheduler runs: ``"here"``, ``"login"`` (a process of its
          own there) or ``"job"``; ``scheduler_resources`` of that job, ``idle_timeout``

        Whatever else is an option of the scheduler: ``constraint="haswell"``.

    Raises
    ------
    ResourcesNotSupportedError
        Two names of the same thing have different values, a keyword is unknown, or the
        scheduler cannot be asked for something.
    SubmitError
        The scheduler refused a job; its own words are in the message.

    Examples
    --------
    >>> cluster = ClusterjobCluster(nodes=2, ppn=4, threads=2, mem=8000)  # doctest: +SKIP
    >>> cluster.scale(jobs=10)  # doctest: +SKIP
    >>> cluster.adapt(maximum_jobs=20)  # doctest: +SKIP
    >>> cluster.add_pool("gpu", ppn=2, gpus=2).scale(jobs=1)  # doctest: +SKIP
    """

    job_cls = ClusterJob

    def __init__(
        self,
        backend: str | None = None,
        *,
        nodes: int | None = None,
        ppn: int | None = None,
        threads: int | None = None,
        mem: int | str | None = None,
        time: Any = None,
        queue: str | None = None,
        account: str | None = None,
        gpus: int | None = None,
        n_workers: int = 0,
        jobs: int = 0,
        asynchronous: bool = False,
        loop: Any = None,
        name: str | None = None,
        security: Security | bool | None = None,
        silence_logs: Any = "error",
        shutdown_on_close: bool = True,
        scheduler_cls: Any = Scheduler,
        _left: Left | None = None,
        **options: Any,
    ) -> None:
        self._left = _left
        own = {"backend": backend, "nodes": nodes, "ppn": ppn, "threads": threads, "mem": mem}
        own |= {"time": time, "queue": queue, "account": account, "gpus": gpus}
        self._keywords = {**own, **options}
        self.options = self._read_options()
        protocol = self.options.scheduler_options.get("protocol", self.options.protocol)
        security = security_for(security, protocol)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._leaving = asyncio.Event()
        self._cancel_failed = False
        self.expiring = {}
        pools = self._left.pools if self._left is not None else {}
        prefix = pools[DEFAULT]["prefix"] if pools else unique_prefix(self.options.job_name)
        recipe = Recipe.plan(self.options, prefix, security)
        self._dispatcher = Dispatcher(recipe)
        self._recipe = recipe
        self._pool = Pool(self, recipe, prefix)
        self.pools = {self._pool.name: self._pool}
        for pool in pools.keys() - self.pools.keys():
            self._make_pool(pool, pools[pool]["keywords"], pools[pool]["prefix"])
        self.new_spec = self._pool.spec
        scheduler = {"cls": scheduler_cls, "options": self._scheduler_options(security)}
        if self.options.place != "here":
            name = name or prefix
            scheduler = self._set_apart(name, recipe, security)
        first: dict[str, Any] = {}
        for _ in range(max(jobs, math.ceil(n_workers / self.options.workers))):
            first |= self.new_worker_spec()
        self._pool.keeper.aim(len(first))
        self._finalizer = weakref.finalize(self, self._dispatcher.end)
        self._finalizer.atexit = shutdown_on_close
        if shutdown_on_close:
            guard(self._finalizer)
        # The parent of the parent: JobQueueCluster reads a configuration of its own.
        try:
            SpecCluster.__init__(
                self,
                workers=first,
                scheduler=scheduler,
                worker=self.new_spec,
                loop=loop,
                security=security,
                silence_logs=silence_logs,
                asynchronous=asynchronous,
                name=name,
                shutdown_on_close=shutdown_on_close,
            )
        except BaseException:
            release(self._finalizer)
            raise

    def _scheduler_options(self, security: Security | None) -> dict[str, Any]:
        """Return the options of the Dask scheduler: where it listens, how it speaks."""
        protocol = self.options.protocol or ("tls://" if security is not None else None)
        common = {"protocol": protocol, "dashboard_address": ":8787", "security": security}
        options = {**common, **self.options.scheduler_options}
        if "host" not in options and "interface" not in options:
            if self.options.interface is not None:
                options["interface"] = self.options.interface
            elif self.options.backend == "local":
                options["host"] = "127.0.0.1"
        return options

    def add_pool(
        self,
        name: str,
        *,
        nodes: int | None = None,
        ppn: int | None = None,
        threads: int | None = None,
        mem: int | str | None = None,
        time: Any = None,
        queue: str | None = None,
        account: str | None = None,
        gpus: int | None = None,
        **options: Any,
    ) -> Pool:
        """Add jobs of another kind, which are scaled and adapted apart; none is submitted yet.

        What is not given is as for the cluster itself. Tasks ask for workers of the pool by
        its name: ``client.submit(f, resources={name: 1})``.

        Raises:
            ValueError: there is a pool of this name.
            ResourcesNotSupportedError: as for a cluster, or a keyword is that of a whole cluster.
        """
        if name in self.pools:
            raise ValueError(f"name={name!r}: the cluster has the pools {', '.join(self.pools)}")
        own = {"nodes": nodes, "ppn": ppn, "threads": threads, "mem": mem}
        own |= {"time": time, "queue": queue, "account": account, "gpus": gpus}
        pool = self._make_pool(name, {**own, **options})
        self.save()
        return pool

    def _make_pool(self, name: str, keywords: dict[str, Any], prefix: str | None = None) -> Pool:
        resolved = resolve_pool(name, keywords, self._keywords)
        recipe = replace(self._recipe, options=resolved, pool=name)
        pool = Pool(self, recipe, prefix or unique_prefix(resolved.job_name), keywords)
        self.pools[name] = pool
        return pool

    # -- jobs and their names ------------------------------------------------------------------

    def new_worker_spec(self) -> dict[str, Any]:
        """Return name and description of the next job. A name is never used again."""
        return self._pool.next_job()

    def _new_worker_name(self, worker_number: int) -> str:
        return f"{self._pool.prefix}-{worker_number}"

    def addresses(self) -> list[str]:
        """Return the addresses under which workers may find the Dask scheduler."""
        return addresses_for(self.scheduler, self.scheduler_spec["options"])

    @property
    def _dummy_job(self) -> ClusterJob:
        return self._pool.sample_job()

    def job_script(self) -> str:
        """Return the script of the next job, exactly as it will be submitted.

        Jobs differ in nothing but the number at the end of their workers' names.
        """
        return self._pool.job_script()

    # -- scaling -------------------------------------------------------------------------------

    def scale(  # type: ignore[override]
        self,
        n: int | None = None,
        jobs: int = 0,
        memory: str | int | None = None,
        cores: int | None = None,
    ) -> Any:
        """Have as many whole jobs as hold ``n`` workers, ``cores`` threads, ``memory``, ``jobs``.

        Of several numbers the largest counts. It ends `adapt`. The call returns when the jobs
        have been submitted (in an asynchronous cluster: the awaitable that it returns). From
        then on jobs that end unasked are replaced.

        Fewer jobs: those that have not started go first, then idle ones, then those that hold
        least data; the data of workers that go are moved before.

        Raises:
            SubmitError: the scheduler refused a job. Jobs before it stay; those that had not
                been submitted are not.
        """
        return self._pool.scale(n, jobs, memory, cores)

    def adapt(  # type: ignore[override]
        self,
        Adaptive: type[Adaptive] = ClusterjobAdaptive,
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

        Only whole jobs come and go: a minimum is rounded up to such, a maximum down. Of
        several limits the narrowest counts. ``kwargs`` are those of
        `distributed.deploy.Adaptive`: ``interval``, ``wait_count``, ``target_duration``.

        Raises:
            ValueError: the maximum is less than one job, or less than the minimum.
        """
        low = Bounds(minimum_jobs, minimum, minimum_cores, minimum_memory)
        high = Bounds(maximum_jobs, maximum, maximum_cores, maximum_memory)
        self._adaptive = self._pool.start_adapting(Adaptive, low, high, kwargs)
        return self._adaptive

    async def scale_down(self, workers: Iterable[str]) -> None:
        """Close the jobs that these workers (by name or address), or jobs, belong to."""
        known = self.scheduler_info["workers"]
        names = [str(known[each]["name"] if each in known else each) for each in workers]
        pools = set()
        for name in {*names, *map(job_of, names)} & set(self.worker_spec):
            del self.worker_spec[name]
            pools.add(self.pool_of(name))
        for pool in pools:
            if pool is not None and pool.keeper.target is not None:
                pool.keeper.aim(len(pool.planned()))
        await self._correct_state()

    # -- beginning and end -----------------------------------------------------------------------

    async def _start(self) -> None:
        await super()._start()
        if isinstance(self.scheduler, Scheduler):
            install(self.scheduler)

    def __await__(self) -> Generator[Any, Any, ClusterjobCluster]:
        async def start() -> ClusterjobCluster:
            starting = self.status == Status.created
            if starting:
                await self._start()
            try:
                await self.scheduler
                await self._correct_state()
            except Exception:
                if starting:
                    await self._close()
                raise
            return self

        return start().__await__()

    def close(self, timeout: float | None = None) -> Awaitable[None] | None:
        """End all workers, cancel all jobs with one command, and end the Dask scheduler.

        It returns when the jobs have left the queue, or after a few seconds.

        Raises:
            SchedulerError, ProtocolError: all is closed, but the jobs could not be cancelled.
        """
        try:
            return super().close(timeout)
        finally:
            if not self.asynchronous:
                release(self._finalizer)

    async def _close(self) -> None:
        if self._scheduler_has_ended():
            self.shutdown_scheduler = False  # it would be looked for in vain
        self._leaving.set()
        if isinstance(self.scheduler, PlacedScheduler):
            self.scheduler.hurry(PATIENCE)
        for pool in self.pools.values():
            pool.stop()
        self.worker_spec.clear()
        self.expiring.clear()
        placed = list(self._dispatcher.placed.values())
        try:
            await super()._close()
            if isinstance(self.scheduler, PlacedScheduler):
                await self.scheduler.close()
            await self._dispatcher.wait_gone(placed, GONE_WITHIN)
            if self._finalizer.alive:
                await self._dispatcher.call(self._finalizer)
        finally:
            release(self._finalizer)
