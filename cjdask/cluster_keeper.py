"""Notices the jobs of a cluster that end unasked, and has them replaced."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed.core import Status as ServerStatus
from distributed.exceptions import WorkerStartTimeoutError
from distributed.utils import Log

from cjdask.cluster_job import Placed
from cjdask.cluster_patience import Patience
from cjdask.cluster_table import JobRow
from cjdask.errors import (
    ClusterjobError,
    JobCancelled,
    JobFailed,
    ProtocolError,
    SchedulerUnavailableError,
)
from cjdask.status import JobInfo, Reason, Status

if TYPE_CHECKING:
    from cjdask.cluster_pool import Pool

__all__ = ["JobKeeper", "wait_for_workers"]

logger = logging.getLogger(__name__)

STABLE = 30.0
"""Seconds after which a job whose workers have come counts as good."""
GHOSTS = 10.0
"""Seconds after the end of a job until its workers are struck off, if they have not left."""
TOGETHER = 0.5
"""Seconds in which jobs whose walltimes are near get their successors with one submission."""
REMEMBERED = 200
"""How many ended jobs stay in the table."""
TAIL = 20
"""How many lines of a failed job's log an error shows."""

_NOT_ITS_FAULT = (Reason.PREEMPTED, Reason.NODE_FAIL)


@dataclass(eq=False)
class _Entry:
    """A job that was submitted, and what became of it."""

    name: str
    job: Placed
    submitted: float
    came: float | None = None
    """When its first worker came, on the clock of `time.monotonic`."""
    ended: bool = False
    lost: bool = False
    drop: Callable[[], None] = lambda: None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def stop_timers(self) -> None:
        while self.timers:
            self.timers.pop().cancel()

    @property
    def info(self) -> JobInfo:
        return self.job.run.known(self.job.task)

    def log_path(self, stream: str) -> str | None:
        try:
            return self.job.run.log_path(stream, self.job.task)
        except ValueError:  # a site's backend that does not tell
            return None

    def log(self, tail: int | None = None) -> str:
        """Return what the job wrote: standard error, or output where there is no error."""
        for read in (self.job.run.stderr, self.job.run.stdout):
            try:
                text = read(tail, self.job.task)
            except (OSError, ValueError, ClusterjobError):
                continue
            if text.strip():
                return text
        return ""


class JobKeeper:
    """Knows all jobs of one pool, living and dead, and keeps as many as were asked for.

    All is done in the event loop of the cluster; the monitor's thread only wakes it.
    """

    def __init__(self, pool: Pool, limit: int) -> None:
        self.patience = Patience(limit)
        self.target: int | None = None
        """How many jobs there should be; ``None`` while the pool adapts."""
        self._pool = pool
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._replacing = False
        self._judging = 0
        """How many losses are being looked at; what they mean for others is not known yet."""
        self._unanswered = 0

    # -- what the cluster tells ----------------------------------------------------------------

    def aim(self, target: int | None) -> None:
        """Keep that many jobs from now on, whatever failed before."""
        self.target = target
        self.patience.forget()

    def may_submit(self) -> bool:
        """Tell whether jobs may be submitted now."""
        patience = self.patience
        waits = patience.exhausted or time.monotonic() < patience.not_before
        return not (waits or self._judging)

    def follow(self, name: str, job: Placed, submitted: float | None = None) -> None:
        """Follow a job that has been submitted, now or at that time."""
        entry = _Entry(name, job, submitted or time.time())
        self._entries[name] = entry
        loop: Any = self._pool.cluster.loop
        this = weakref.ref(self)

        def ended() -> None:
            keeper = this()
            if keeper is not None:
                loop.add_callback(keeper._ended, name)

        entry.drop = job.run.when_ended(ended, job.task)
        old = [key for key, each in self._entries.items() if each.ended]
        for key in old[:-REMEMBERED]:
            del self._entries[key]

    def worker_came(self, job: str, left: float | None) -> None:
        """Note that a worker of a job has arrived, whose job ends ``left`` seconds from now."""
        entry = self._entries.get(job)
        if entry is not None and entry.came is None:
            entry.came = time.monotonic()
            loop = asyncio.get_running_loop()
            entry.timers.append(loop.call_later(STABLE, self._settle, job))
            if left is not None:
                drains = left - self._pool.options.walltime_margin
                ahead = max(0.0, drains - self._pool.options.successor_ahead)
                entry.timers.append(loop.call_later(ahead, self._expire, job, entry.came + drains))

    def worker_left(self, job: str) -> None:
        """Note that a worker of a job has gone; the scheduler may soon say why."""
        entry, cluster = self._entries.get(job), self._pool.open_cluster()
        if entry is None or cluster is None or job not in cluster.worker_spec:
            return
        if entry.ended:
            self._ended(job)
        else:
            entry.job.run.hurry()

    def stop(self) -> None:
        """Follow no job any more."""
        for entry in self._entries.values():
            entry.drop()
            entry.stop_timers()
        for task in list(self._tasks):
            task.cancel()

    # -- ends ----------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # else nothing might hold it
        task.add_done_callback(self._tasks.discard)

    def _ended(self, name: str) -> None:
        """Handle the end of a job; of one that was to end there is nothing to do."""
        cluster, entry = self._pool.open_cluster(), self._entries[name]
        entry.ended = True
        entry.stop_timers()
        if cluster is not None and name in cluster.expiring:
            cluster.drop_job(name)
            self._spawn(self._strike_off(name))
        if cluster is None or name not in cluster.worker_spec:
            return
        if entry.info.reason is Reason.LOST and cluster.arrived().get(name):
            return  # the scheduler does not list it, but its workers are there
        entry.lost = True
        cluster.drop_job(name)
        self._judging += 1
        self._spawn(self._handle_loss(entry))

    async def _handle_loss(self, entry: _Entry) -> None:
        try:
            await self._judge(entry)
        finally:
            self._judging -= 1
        self._spawn(self._strike_off(entry.name))
        self.replace()

    async def _judge(self, entry: _Entry) -> None:
        """Tell of a loss, and count it if it was the job's fault."""
        info, now = entry.info, time.monotonic()
        served = entry.came is not None and (
            now - entry.came >= STABLE
            or info.status is Status.CANCELLED
            or info.reason is Reason.TIMEOUT
        )
        which = f"{entry.name} ({entry.job.job_id} on {entry.job.run.backend})"
        said = f"job {which} ended {info.describe()}"
        if served or info.reason in _NOT_ITS_FAULT:
            self._tell(logging.WARNING, said)
        else:
            when = "before its workers came" if entry.came is None else "soon after it started"
            kind = JobCancelled if info.status is Status.CANCELLED else JobFailed
            where = entry.log_path("stderr")
            log = await asyncio.get_running_loop().run_in_executor(None, entry.log, TAIL)
            where = f"; its log is {where}" if where else ""
            self._count(kind(f"{said} {when}{where}", info, log), _began(entry))

    def _count(self, error: Exception, began: float) -> None:
        known = self.patience.exhausted
        self.patience.count(error, began)
        final = self.patience.error()
        if final is None:
            self._tell(logging.WARNING, str(error))
        elif not known:
            self._tell(logging.ERROR, str(final))

    def _tell(self, level: int, message: str) -> None:
        logger.log(level, message)
        if (cluster := self._pool.open_cluster()) is not None:
            cluster.note(message)

    async def _strike_off(self, job: str) -> None:
        """Have the Dask scheduler drop workers of an ended job whose connections hang.

        That is so after the loss of a node; else they wait for the heartbeat to be missed.
        """
        await asyncio.sleep(GHOSTS)
        cluster = self._pool.open_cluster()
        if cluster is None:
            return
        comm: Any = cluster.scheduler_comm
        if gone := cluster.addresses_of_workers({job}):
            await comm.cjdask_strike_off(workers=gone, why=f"cjdask-job-ended-{time.time()}")

    def _settle(self, job: str) -> None:
        """Count a job as good that is there some time after its workers came."""
        cluster = self._pool.open_cluster()
        if cluster is None or job not in cluster.worker_spec or not cluster.arrived().get(job):
            return
        resumed = self.patience.exhausted
        self.patience.forget()
        if resumed:
            self.replace()

    def _expire(self, job: str, drains: float) -> None:
        """Leave a job whose walltime is near to its workers, and have its successor submitted."""
        cluster = self._pool.open_cluster()
        if cluster is not None and cluster.worker_spec.pop(job, None) is not None:
            cluster.expiring[job] = drains
            again = asyncio.get_running_loop().call_later(TOGETHER, self.replace)
            self._entries[job].timers.append(again)

    # -- replacing -----------------------------------------------------------------------------

    def replace(self) -> None:
        """Submit what is missing, after the pause that failures call for."""
        if not self._replacing:
            self._replacing = True
            self._spawn(self._replace())

    async def _replace(self) -> None:
        try:
            await asyncio.sleep(max(0.0, self.patience.not_before - time.monotonic()))
        finally:
            self._replacing = False
        cluster = self._pool.open_cluster()
        if cluster is None or self.target is None or self.patience.exhausted or self._judging:
            return  # a loss that is being looked at comes here again
        began = time.monotonic()
        try:
            await self._pool.resize(self.target)
        except (SchedulerUnavailableError, ProtocolError) as error:
            self._unanswered += 1  # which says nothing about the jobs: it is tried for ever
            self.patience.pause(self._unanswered)
            self._tell(logging.WARNING, f"lost jobs could not be replaced: {error}")
            self.replace()
        except Exception as error:
            self._count(error, began)
            self.replace()
        else:
            self._unanswered = 0

    # -- what can be asked ---------------------------------------------------------------------

    def expecting(self) -> bool:
        """Tell whether workers are to come: jobs have not started, or lost ones are replaced."""
        waits = (self._replacing or self._judging) and not self.patience.exhausted
        return waits or bool(self._pool.jobs_not_started())

    def why_not(self) -> Exception | None:
        """Return why no worker can come any more, ``None`` if one can."""
        return None if self._pool.jobs_not_started() else self.patience.error()

    def followed(self, job: str) -> _Entry | None:
        """Return what is known of one job, ``None`` if it was not submitted or is long over."""
        return self._entries.get(job)

    def rows(self, arrived: Mapping[str, set[str]]) -> list[JobRow]:
        """Return what is known of all jobs, the ended ones too, whose workers have arrived."""
        pool, entries = self._pool, self._entries.values()
        return [_row(entry, len(arrived.get(entry.name, ())), pool) for entry in entries]

    async def logs(self) -> dict[str, Log]:
        """Return the logs of the jobs that ended unasked."""
        dead = [entry for entry in self._entries.values() if entry.lost]
        loop = asyncio.get_running_loop()
        texts = await asyncio.gather(*(loop.run_in_executor(None, e.log) for e in dead))
        return {
            f"Job {entry.name} ({entry.job.job_id})": Log(f"{entry.info.describe()}\n{text}")
            for entry, text in zip(dead, texts, strict=True)
        }


async def wait_for_workers(
    pools: Collection[Pool], count: Callable[[], int], n: int, timeout: float | None
) -> None:
    """Wait until ``count()`` is ``n``, which the jobs of ``pools`` see to.

    Raises:
        JobError, ClusterjobError: they cannot come; the message says why.
        TimeoutError: they have not come in time.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while (here := count()) < n:
        clusters = [pool.open_cluster() for pool in pools]
        if any(each is None or each.status != ServerStatus.running for each in clusters):
            raise ClusterjobError(f"the cluster is closed; it had {here} of {n} workers")
        errors = [pool.keeper.why_not() for pool in pools]
        failed = [error for error in errors if error is not None]
        if failed and not any(pool.keeper.expecting() for pool in pools):
            raise failed[0]
        if time.monotonic() > deadline:
            raise WorkerStartTimeoutError(here, n, timeout or 0.0)
        await asyncio.sleep(0.1)


def _began(entry: _Entry) -> float:
    return time.monotonic() - (time.time() - entry.submitted)


def _row(entry: _Entry, workers: int, pool: Pool) -> JobRow:
    info = entry.info
    queued: float | None = None
    if info.status is Status.PENDING:
        queued = time.time() - entry.submitted
    elif info.start_time is not None:
        queued = info.start_time - (info.submit_time or entry.submitted)
    return JobRow(
        name=entry.name,
        job_id=entry.job.job_id,
        status=info.status,
        reason=info.reason,
        message=info.message,
        queue_time=None if queued is None else max(queued, 0.0),
        nodes=info.nodes,
        workers=workers,
        workers_planned=pool.options.workers,
        exit_code=info.exit_code if info.status.ended else None,
        signal=info.signal,
        stdout=entry.log_path("stdout"),
        stderr=entry.log_path("stderr"),
        submitted=entry.submitted,
        pool=pool.name,
    )
