"""The Dask side of an executor's pool: workers that take one batch of calls at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dask.config
from distributed import Client
from distributed.core import Status as WorkerStatus
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import KilledWorker

from cjdask.cluster import ClusterjobCluster
from cjdask.cluster_adaptive import ClusterjobAdaptive
from cjdask.cluster_drain import SECONDS_LEFT
from cjdask.cluster_keeper import TAIL
from cjdask.cluster_options import DEFAULT
from cjdask.cluster_scaling import job_of
from cjdask.errors import ClusterjobError
from cjdask.executor_worker import BatchResult, go_on, run_batch, stop_call
from cjdask.status import JobInfo

__all__ = ["CallCluster"]

logger = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks at how many workers are wanted."""
TURN = 0.1
"""Seconds between two looks at the workers of a Dask scheduler that runs apart."""


class CallCluster:
    """A cluster whose workers make batches of calls.

    ``tell`` is called in the event loop of the cluster with what happens, and must be quick:

    - ``("came", address)``, ``("gone", address)``: a worker
    - ``("done", batch, result)``: a `BatchResult`, the exception that kept it from being made,
      or ``None`` where the worker has gone
    - ``("hopeless", error, number)``: no worker can come any more, in that try

    ``wanted`` is called there too, for the number of workers that the calls are good for.
    """

    def __init__(
        self,
        options: dict[str, Any],
        maximum_jobs: int,
        tell: Callable[..., None],
        wanted: Callable[[], int],
    ) -> None:
        self._tell = tell
        self._gone: dict[str, asyncio.Event] = {}
        self._names: dict[str, str] = {}
        self._ends: dict[str, float] = {}
        self._drained: set[str] = set()
        self._logs = options["log_directory"]
        self._tasks: set[asyncio.Future[None]] = set()
        self._closing = False
        self._cluster: Any = ClusterjobCluster(**options)
        self._apart = self._cluster.options.place != "here"
        self._adaptive: Any = None
        self._client: Any = None
        try:
            self._cluster.sync(self._start)
            kind: Any = partial(CallAdaptive, load=wanted, tell=tell)
            self._adaptive = self._cluster.adapt(
                kind,
                minimum_jobs=0,
                maximum_jobs=maximum_jobs,
                interval=LOOK,
            )
        except BaseException:
            self._cluster.close()
            raise
        self._keeper = self._cluster.pools[DEFAULT].keeper

    async def _start(self) -> None:
        if self._apart:
            self._spawn(self._watch)
        else:
            plugin = _Watcher(self)
            self._cluster.scheduler.add_plugin(plugin, name="cjdask-calls")
        self._client = await Client(
            self._cluster.scheduler_address,
            security=self._cluster.security,
            asynchronous=True,
            set_as_default=False,
        )

    # -- from any thread -------------------------------------------------------------------------

    def send(self, batch: str, address: str, blob: bytes) -> None:
        """Have a worker make the calls of a batch."""
        work = (run_batch, batch, blob, self.call_log(address))
        self._cluster.loop.add_callback(self._spawn, self._run, batch, address, work)

    def go_on(self, batch: str, address: str) -> None:
        """Wait for the call that a worker still makes, as a new batch."""
        work = (go_on, batch)
        self._cluster.loop.add_callback(self._spawn, self._run, batch, address, work)

    def stop(self, batch: str, address: str) -> None:
        """Stop a batch whose calls nobody waits for."""
        self._cluster.loop.add_callback(self._spawn, self._stop, batch, address)

    def usable(self, address: str) -> bool:
        """Tell whether a worker takes calls: one whose job is about to end does not."""
        if self._apart:
            left = self._ends.get(address, -math.inf) - time.monotonic()
            return bool(left > self._cluster.options.walltime_margin + LOOK)
        worker = self._cluster.scheduler.workers.get(address)
        return worker is not None and worker.status is WorkerStatus.running

    def retry(self, number: int) -> None:
        """Try anew to have jobs, whatever failed before; the try has this number."""
        self._cluster.loop.add_callback(self._adaptive.retry, number)

    def info(self, address: str) -> JobInfo | None:
        """Return what is known of the job of a worker that is there or was."""
        job = self._job(address)
        return job.info if job is not None else None

    def job_over(self, address: str) -> bool:
        """Tell whether the job of a worker has ended; the scheduler is asked soon if not."""
        job = self._job(address)
        if job is None or job.info.status.ended:
            return True
        job.job.run.hurry()
        return False

    def left_in_time(self, address: str) -> bool:
        """Tell whether a worker has gone since the walltime of its job was near."""
        return address in self._drained

    def job_log(self, address: str) -> tuple[str, str | None]:
        """Return the end of the log of a worker's job, and its path."""
        job = self._job(address)
        return ("", None) if job is None else (job.log(TAIL), job.log_path("stderr"))

    def call_log(self, address: str) -> str:
        """Return the path of the file that the calls of a worker print to."""
        return os.path.join(self._logs, f"{self._names.get(address, 'unknown')}.log")

    def _job(self, address: str) -> Any:
        return self._keeper.followed(job_of(self._names.get(address, "")))

    def close(self) -> None:
        """End all jobs and the cluster.

        Raises:
            SchedulerError, ProtocolError: the jobs could not be cancelled.
        """
        self._closing = True
        try:
            self._cluster.sync(self._client.close)
        finally:
            self._cluster.close()

    # -- in the event loop of the cluster --------------------------------------------------------

    async def _watch(self) -> None:
        """Note the workers of a Dask scheduler that runs apart, of which the cluster hears.

        What it hears of one that comes is of that moment, so that the time left is, too.
        """
        cluster = self._cluster
        while not (cluster.leaving or cluster.scheduler.relay.over):
            workers = dict(cluster.scheduler_info["workers"])
            for address in [each for each in self._gone if each not in workers]:
                self.left(address)
            for address, worker in workers.items():
                if address not in self._gone:
                    self.came(address, str(worker["name"]), worker.get(SECONDS_LEFT))
            await asyncio.sleep(TURN)
        for address in list(self._gone):
            self.left(address)
        while self._adaptive is not None and not self._closing:
            error = ClusterjobError(
                "the Dask scheduler of the pool has ended; make another executor"
            )
            self._tell("hopeless", error, self._adaptive.number)
            await asyncio.sleep(LOOK)

    def came(self, address: str, name: str, left: float | None) -> None:
        """Note a worker that has come, whose job ends ``left`` seconds from now."""
        self._names[address] = name
        self._ends[address] = time.monotonic() + (left or math.inf)
        self._gone[address] = asyncio.Event()
        self._tell("came", address)

    def left(self, address: str) -> None:
        """Note a worker that has gone."""
        gone = self._gone.pop(address, None)
        left = self._ends.pop(address, math.inf) - time.monotonic()
        if left <= self._cluster.options.walltime_margin:
            self._drained.add(address)
        if gone is not None:
            gone.set()
            self._tell("gone", address)

    def _spawn(self, work: Callable[..., Any], *arguments: Any) -> None:
        task = asyncio.ensure_future(work(*arguments))
        self._tasks.add(task)  # else nothing might hold it
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: str, address: str, work: tuple[Any, ...]) -> None:
        gone = self._gone.get(address)
        if gone is None:
            self._tell("done", batch, None)
            return
        result: Any = None
        try:
            result = await self._answer(gone, batch, address, work)
        except (Exception, asyncio.CancelledError) as error:
            result = error
        finally:
            self._tell("done", batch, result)

    async def _answer(
        self, gone: asyncio.Event, batch: str, address: str, work: tuple[Any, ...]
    ) -> BatchResult | None:
        """Return what a worker makes of a batch, ``None`` if it goes before it has made it."""
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1PB"}):
            future = self._client.submit(
                *work,
                key=f"calls-{batch}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
            )
        answer = asyncio.ensure_future(future.result())
        lost = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            return None if gone.is_set() or not answer.done() else answer.result()
        except KilledWorker:
            return None
        finally:
            answer.cancel()
            lost.cancel()
            future.release()

    async def _stop(self, batch: str, address: str) -> None:
        try:
            await self._client.run(stop_call, batch, workers=[address], on_error="ignore")
        except (OSError, ValueError) as error:  # the worker has gone
            logger.info("batch %s could not be stopped: %s", batch, error)


class _Watcher(SchedulerPlugin):
    """Tells of the workers that come and go."""

    def __init__(self, calls: CallCluster) -> None:
        self._calls = calls

    def add_worker(self, scheduler: Any, worker: str) -> None:
        state = scheduler.workers[worker]
        self._calls.came(worker, str(state.name), state.extra.get(SECONDS_LEFT))

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        self._calls.left(worker)


class CallAdaptive(ClusterjobAdaptive):
    """Has as many workers as the calls are good for, which the Dask scheduler cannot know."""

    def __init__(
        self,
        cluster: ClusterjobCluster,
        load: Callable[[], int],
        tell: Callable[..., None],
        **kwargs: Any,
    ) -> None:
        self._load = load
        self._tell = tell
        self.number = 0
        super().__init__(cluster, **kwargs)

    def retry(self, number: int) -> None:
        """Try to submit jobs at once, whatever failed before."""
        self.forget()
        self.number = number

    async def target(self) -> int:
        """Return how many workers the calls are good for."""
        if (error := self._why_not()) is not None:
            self._tell("hopeless", error, self.number)
        return self._load()

    def _why_not(self) -> Exception | None:
        """Return why no worker can come, ``None`` if one is there or can come."""
        if self.cluster.arrived() or self.pool.jobs_not_started():
            return None
        return self.last_error or self.pool.keeper.why_not()
