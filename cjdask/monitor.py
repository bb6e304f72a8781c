"""The one poller of a scheduler: asks for all jobs of the process with one command.

What is believed, in this order: the scheduler's word on jobs in the queue, its word on ended
jobs, the record that the job script left of its end, and after a grace period without any of
these, that the job is lost, or cancelled where the scheduler took our request for that: Grid
Engine keeps no record of a job that was deleted before it started. That the scheduler could
not be asked says nothing about any job.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from types import MappingProxyType

from cjdask.backends import BatchBackend
from cjdask.errors import ProtocolError, SchedulerError
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo, Reason, Status, combine

__all__ = ["Monitor", "TrackedJob", "monitor_for"]

logger = logging.getLogger(__name__)

MAX_INTERVAL = 60.0
"""Seconds between two questions when nothing has changed for long."""
LOST_AFTER = 120.0
"""Seconds for which no answer may list a job before it counts as lost."""
AFTER_CANCEL = 0.1
"""Seconds after a cancel until the scheduler is asked what came of it."""
SETTLE = 15.0
"""Seconds to wait for the exit code of a job that ended, or a record of one that we cancelled."""
_GROWTH = 1.5


Records = Callable[[Collection[int | None]], Mapping[int | None, JobInfo]]


@dataclass(eq=False)
class TrackedJob:
    """One job, or one array with all its tasks, and what is known about it.

    ``infos`` has one record per task, or one under ``None`` for a job that is no array.
    """

    job_id: str
    tasks: tuple[int, ...] | None = None
    infos: dict[int | None, JobInfo] = field(default_factory=dict)
    max_interval: float = MAX_INTERVAL
    record: Records | None = None
    """Reads what the job script itself recorded of the ends of tasks, those that it knows."""
    cancelled: Callable[[int | None], float | None] | None = None
    """Tells how many seconds ago another process cancelled a task, after ``record`` was called."""
    _unlisted_since: dict[int | None, float] = field(default_factory=dict)
    _cancelled_at: dict[int | None, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task in self.keys:
            self.infos.setdefault(task, JobInfo(self.job_id, Status.PENDING, task))

    @property
    def keys(self) -> tuple[int | None, ...]:
        """The tasks, or the single key ``None``."""
        return (None,) if self.tasks is None else self.tasks

    @property
    def status(self) -> Status:
        """The status of the whole."""
        return combine([info.status for info in self.infos.values()])

    def ended(self, task: int | None = None) -> bool:
        """Tell whether a task has ended; without one, whether all have."""
        return (self if task is None else self.infos[task]).status.ended

    def left_queue(self, task: int | None = None) -> bool:
        """Tell whether a task, or without one every task, is in the queue no more.

        That is by the last answer; how they ended may come later.
        """
        asked = [each for each in self.open() if task is None or each == task]
        return all(each in self._unlisted_since for each in asked)

    def open(self) -> list[int | None]:
        """Return the tasks whose end is not known."""
        return [task for task in self.keys if not self.infos[task].status.ended]

    def match(self, rows: Iterable[JobInfo]) -> dict[int | None, JobInfo]:
        """Pick the records of this job, one per open task.

        A record of an array without a task number stands for all tasks that have none of
        their own. If it says that the array has ended it is not believed: Slurm's accounting
        shows such a record while tasks still run.
        """
        mine = {row.task: row for row in rows}
        whole = mine.get(None)
        if self.tasks is not None and whole is not None and not whole.status.ended:
            return {t: mine.get(t, replace(whole, task=t)) for t in self.open()}
        return {t: mine[t] for t in self.open() if t in mine}


_Waited = tuple[TrackedJob, int | None]
"""A job, or one task of it."""


class Monitor:
    """Knows the state of every tracked job of one scheduler.

    A thread asks while somebody waits or wants to be called, and ends with the last of them.
    Jobs are held weakly: one that nobody refers to any more is not asked for.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        self.scheduler = scheduler
        self.min_interval = scheduler.poll_interval
        self.last_error: Exception | None = None
        self._clock = clock
        self._jobs: weakref.WeakValueDictionary[str, TrackedJob] = weakref.WeakValueDictionary()
        self._waited: dict[_Waited, list[Callable[[TrackedJob], None]]] = {}
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._interval = self.min_interval
        self._asked_at = float("-inf")

    # -- what the layers above use -------------------------------------------------------------

    def track(
        self,
        job_id: str,
        tasks: tuple[int, ...] | None = None,
        max_interval: float = MAX_INTERVAL,
        record: Records | None = None,
        ended: Sequence[JobInfo] = (),
        cancelled: Callable[[int | None], float | None] | None = None,
        unlisted: Mapping[int | None, float] = MappingProxyType({}),
    ) -> TrackedJob:
        """Start to follow a job; return the same object for the same id while it has not ended.

        Schedulers use their ids again, so that one that is followed anew after its end is
        another job.

        ``ended`` are the final records of one whose end is known from elsewhere, and ``unlisted``
        says for how many seconds its tasks had not been listed, as an earlier process saw it.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.status.ended:
                job = self._jobs[job_id] = TrackedJob(job_id, tasks, max_interval=max_interval)
                now = self._clock()
                job._unlisted_since = {task: now - age for task, age in unlisted.items()}
            job.record = job.record or record
            job.cancelled = job.cancelled or cancelled
            job.infos.update({info.task: info for info in ended if info.task in job.open()})
            self._interval = self.min_interval
            self._changed.notify_all()
            return job

    def unlisted(self, job: TrackedJob) -> dict[int | None, float]:
        """Tell for how many seconds open tasks have not been listed, of those that are not."""
        now, since = self._clock(), dict(job._unlisted_since)
        return {task: now - since[task] for task in job.open() if task in since}

    def refresh(self, max_age: float | None = None) -> None:
        """Ask now, unless the last answer is younger than ``max_age`` seconds.

        Callers at the same time share one question. When the scheduler does not answer the
        error is logged and kept in ``last_error``, and what was known stays.
        """
        age = self.min_interval if max_age is None else max_age
        with self._asking:
            if self._clock() - self._asked_at < age:
                return
            with self._changed:
                jobs = [job for job in self._jobs.values() if job.open()]
            if jobs:
                self._ask(jobs)
        self._tell()

    def wait(self, job: TrackedJob, timeout: float | None = None) -> bool:
        """Wait until a job has ended, at most ``timeout`` seconds; tell whether it has."""
        done = threading.Event()

        def set_done(_: TrackedJob) -> None:
            done.set()

        self.when_ended(job, set_done)
        ended = done.wait(timeout)
        if not ended:
            self.forget(job, set_done)
        return ended

    def when_ended(
        self, job: TrackedJob, callback: Callable[[TrackedJob], None], task: int | None = None
    ) -> None:
        """Call ``callback(job)`` once the job has ended, from the thread that finds it out.

        With ``task`` it is called when that task of an array has ended. If the end came
        before, the call is made at once.
        """
        with self._changed:
            ended = job.ended(task)
            if not ended:
                self._waited.setdefault((job, task), []).append(callback)
                self._ensure_thread()
        if ended:
            callback(job)

    def forget(
        self, job: TrackedJob, callback: Callable[[TrackedJob], None], task: int | None = None
    ) -> None:
        """Drop a callback given to `when_ended`, if it has not been called yet."""
        with self._changed:
            callbacks = self._waited.get((job, task), [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._waited.pop((job, task), None)
            self._changed.notify_all()

    def hurry(self) -> None:
        """Ask soon, since there are signs of a change; the pauses start anew at the shortest."""
        with self._changed:
            self._interval = self.min_interval
            self._changed.notify_all()

    def cancel(
        self, jobs: Iterable[TrackedJob], tasks: Mapping[TrackedJob, Collection[int]] | None = None
    ) -> None:
        """Cancel all jobs that have not ended with one command.

        ``tasks`` names arrays of which only these tasks are to go.

        Raises:
            SchedulerError, ProtocolError: the request did not get through.
        """
        asked = {job: self._to_cancel(job, (tasks or {}).get(job)) for job in jobs}
        if ids := [each for job, wanted in asked.items() for each in self._ids(job, wanted)]:
            self.scheduler.cancel([each for _, each in sorted(ids, key=itemgetter(0))])
        for job, wanted in asked.items():
            job._cancelled_at = {**dict.fromkeys(wanted, self._clock()), **job._cancelled_at}
        with self._changed:
            self._interval = self.min_interval
            self._asked_at = min(self._asked_at, self._clock() - self.min_interval + AFTER_CANCEL)
            self._changed.notify_all()

    def _ids(self, job: TrackedJob, wanted: Sequence[int | None]) -> list[tuple[bool, str]]:
        """Return the ids of tasks or of the whole job, with whether each runs.

        What runs is to be cancelled last, so that nothing starts in its place that is to go too.
        Of tasks the first are the first to run.
        """
        backend = self.scheduler.backend
        if len(wanted) == len(job.open()) or not isinstance(backend, BatchBackend):
            return [(job.status is Status.RUNNING, job.job_id)] if wanted else []
        return [
            (job.infos[task].status is Status.RUNNING, backend.task_id(job.job_id, task))
            for task in reversed(wanted)
            if task is not None
        ]

    @staticmethod
    def _to_cancel(job: TrackedJob, tasks: Collection[int] | None) -> list[int | None]:
        return [task for task in job.open() if tasks is None or task in tasks]

    # -- asking --------------------------------------------------------------------------------

    def _ask(self, jobs: Sequence[TrackedJob]) -> None:
        """Ask for these jobs and note what is learnt."""
        before = {job: dict(job.infos) for job in jobs}
        try:
            self._update(jobs)
        except Exception as error:
            # Whatever went wrong, the waiting ones must go on to wait, not hang unattended.
            if self.last_error is None:
                expected = isinstance(error, SchedulerError | ProtocolError)
                logger.warning(
                    "%s cannot be asked, trying on: %s",
                    self.scheduler,
                    error,
                    exc_info=not expected,
                )
            self.last_error = error
        else:
            if self.last_error is not None:
                logger.warning("%s answers again", self.scheduler)
            self.last_error = None
        self._asked_at = self._clock()
        changed = any(job.infos != infos for job, infos in before.items())
        self._interval = self.min_interval if changed else self._interval * _GROWTH

    def _update(self, jobs: Sequence[TrackedJob]) -> None:
        rows = _by_job(self.scheduler.query([job.job_id for job in jobs]))
        unsettled: dict[TrackedJob, dict[int | None, JobInfo | None]] = {}
        for job in jobs:
            found = job.match(rows.get(job.job_id, []))
            for task in job.open():
                row = found.get(task)
                if row is not None and (not row.status.ended or _complete(row)):
                    self._note(job, row)
                else:
                    unsettled.setdefault(job, {})[task] = row
        if not unsettled:
            return
        rows = _by_job(self.scheduler.ended([job.job_id for job in unsettled]))
        for job, open_tasks in unsettled.items():
            found = job.match(rows.get(job.job_id, []))
            doubtful: dict[int | None, JobInfo | None] = {}
            for task, seen in open_tasks.items():
                row = found.get(task)
                if row is not None and row.status.ended:
                    self._note(job, row)
                else:
                    doubtful[task] = seen
            records = job.record(list(doubtful)) if job.record and doubtful else {}
            for task, seen in doubtful.items():
                self._doubt(job, task, seen, records.get(task))

    def _note(self, job: TrackedJob, row: JobInfo) -> None:
        job.infos[row.task] = row
        job._unlisted_since.pop(row.task, None)

    def _doubt(
        self,
        job: TrackedJob,
        task: int | None,
        seen: JobInfo | None,
        record: JobInfo | None,
    ) -> None:
        """Handle a task that no list has, or that ended with its exit code still to come."""
        now = self._clock()
        if job.cancelled is not None and (age := job.cancelled(task)) is not None:
            job._cancelled_at.setdefault(task, now - age)
        if record is not None and (seen is None or not _complete(seen)):
            self._note(job, self._from_record(job, task, seen, record))
            return
        since = job._unlisted_since.setdefault(task, now)
        if seen is not None and now - since >= SETTLE:
            self._note(job, seen)
        elif seen is None and now - max(since, job._cancelled_at.get(task, now)) >= SETTLE:
            message = f"{self.scheduler.name} took our cancel and lists the job no more"
            self._note(job, replace(job.infos[task], status=Status.CANCELLED, message=message))
        elif seen is None and now - since >= LOST_AFTER:
            message = (
                f"{self.scheduler.name} has not listed the job for "
                f"{LOST_AFTER:g} s, neither as queued nor as ended"
            )
            lost = replace(
                job.infos[task], status=Status.FAILED, reason=Reason.LOST, message=message
            )
            self._note(job, lost)

    @staticmethod
    def _from_record(
        job: TrackedJob, task: int | None, seen: JobInfo | None, record: JobInfo
    ) -> JobInfo:
        """Complete what the scheduler told of an end by what the job recorded of it."""
        if seen is not None and seen.reason is not Reason.NONE:
            return replace(seen, exit_code=record.exit_code)
        known = replace(
            seen or job.infos[task],
            status=record.status,
            reason=record.reason,
            message="",
            exit_code=record.exit_code,
            nodes=(seen or job.infos[task]).nodes or record.nodes,
            end_time=record.end_time,
        )
        if task in job._cancelled_at and known.exit_code != 0:
            return replace(known, status=Status.CANCELLED, reason=Reason.NONE)
        return known

    # -- the thread ----------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            name = f"cjdask-monitor-{self.scheduler.name}"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while self._waited and (pause := self._pause()) > 0:
                    self._changed.wait(pause)
                if not self._waited:
                    self._thread = None
                    return
            self.refresh(max_age=0)

    def _pause(self) -> float:
        """Return the seconds until the next question is due."""
        ceiling = min((job.max_interval for job, _ in self._waited), default=MAX_INTERVAL)
        self._interval = min(self._interval, max(ceiling, self.min_interval))
        return self._asked_at + self._interval - self._clock()

    def _tell(self) -> None:
        """Make the calls that are due."""
        with self._changed:
            due = [key for key in self._waited if key[0].ended(key[1])]
            calls = [(key[0], callback) for key in due for callback in self._waited.pop(key)]
        for job, callback in calls:
            try:
                callback(job)
            except Exception:
                logger.exception("a callback for job %s failed", job.job_id)


def _complete(row: JobInfo) -> bool:
    """Tell whether a final record needs no second source: it has what there is to know."""
    known = row.exit_code is not None or row.signal is not None
    return known or row.status is Status.CANCELLED


def _by_job(rows: Iterable[JobInfo]) -> dict[str, list[JobInfo]]:
    grouped: dict[str, list[JobInfo]] = {}
    for row in rows:
        grouped.setdefault(row.job_id, []).append(row)
    return grouped


_monitors: dict[Scheduler, Monitor] = {}
_monitors_lock = threading.Lock()


def monitor_for(scheduler: Scheduler) -> Monitor:
    """Return the one monitor of a scheduler."""
    with _monitors_lock:
        if scheduler not in _monitors:
            _monitors[scheduler] = Monitor(scheduler)
        return _monitors[scheduler]
