"""A run: one submission of a job script."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from logging import getLogger
from typing import TYPE_CHECKING, Any

from cjdask.journal import Entry, JournalFile, recorded_run
from cjdask.monitor import TrackedJob, monitor_for
from cjdask.protocols.base import Protocol
from cjdask.resources import Resources
from cjdask.run_attach import found_entry
from cjdask.run_end import EndingRun
from cjdask.run_files import Evidence, files_of
from cjdask.run_logs import log_path, read_log
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.status import JobInfo, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

__all__ = ["AsyncResult", "cancel_all"]

logger = getLogger(__name__)


class AsyncResult(EndingRun):
    """One submission of a job script: ask for its status, wait for it, cancel it.

    It has the methods of `multiprocessing.pool.AsyncResult`. All runs of a process that use
    the same scheduler share one poller, so that any number of them costs one command a cycle.

    By the first call that learns of the end the output files are copied here, and the epilogue
    is run on this machine. If it fails, or a job that COMPLETED has left no such files, that call
    raises a `ScriptError` or `StagingError`; the status of the run is what it is, and the calls
    after it return it. Where the files cannot be copied as the link is down, it is a
    `ProtocolError`, and the next call tries again.
    """

    def __init__(self, scheduler: Scheduler, entry: Entry, file: JournalFile | None = None) -> None:
        assert entry.job_id is not None
        self.job_id = entry.job_id
        self.max_sleep_interval = entry.max_sleep_interval
        self.epilogue = entry.epilogue
        self._scheduler = scheduler
        self._entry = entry
        self._file = file
        self._resources = Resources.of(entry.resources)
        self._folder = entry.folder
        self._monitor = monitor_for(scheduler)
        self._evidence = Evidence(scheduler.protocol, entry.record, entry.job_id, entry.tag)
        self._evidence.file = file
        self._job: TrackedJob = self._monitor.track(
            entry.job_id,
            entry.tasks,
            entry.max_sleep_interval,
            self._evidence,
            entry.infos(),
            self._evidence.cancelled,
            entry.unlisted_ages(),
        )
        super().__init__()

    @classmethod
    def attach(
        cls,
        job_id: str,
        backend: str,
        folder: str | os.PathLike[str] = ".",
        *,
        remote: str | None = None,
        ssh: str = "ssh",
        **resources: Any,
    ) -> AsyncResult:
        """Return a run for a job that is known by its id only, whoever submitted it.

        ``folder`` is the one that it was submitted from, on the machine ``remote`` if that is
        given. ``resources`` are what it was asked for, as far as it matters: the ``array`` of one
        that has tasks, and ``jobname stdout stderr``, by which its logs are found. It has no
        epilogue.

        Raises:
            ResourcesNotSupportedError: the resources are wrong.
            UnknownBackendError: there is no such backend.
        """
        scheduler = scheduler_for(backend, *((remote, ssh) if remote else ()))
        return cls(scheduler, found_entry(scheduler, str(job_id), os.fspath(folder), resources))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> AsyncResult:
        """Return the run that is in a file, one that `dump` wrote or one of a cache folder.

        Any process may do so, on this machine or on one that has the same folders.

        Raises:
            FileNotFoundError: there is no such file.
            JournalError: it cannot be read, or has no run that was submitted.
        """
        there, entry = recorded_run(file)
        return cls(scheduler_for(entry.backend, *entry.place), entry, there)

    def dump(self, file: str | os.PathLike[str]) -> None:
        """Write the run to a file that `load` reads, for its owner alone.

        It is JSON, and can be read by every process on this machine that has the same folders.

        Raises:
            JournalError: it cannot be written.
        """
        there = JournalFile(file)
        over = self._file is None and self._epilogue_begun
        if self._file is not None and self._file.path == there.path:
            return
        there.write(
            replace(
                self._entry.with_end(self._final()),
                home=self.cache_file,
                epilogue="" if over else self.epilogue,
            )
        )
        if self._file is None:
            files_of(self._scheduler).keep([self._entry.record])
            if not over:
                self._file = self._evidence.file = there

    @property
    def cache_id(self) -> str | None:
        """The name under which the run is recorded, ``None`` if it has none."""
        return self._entry.cache_id

    @property
    def jobname(self) -> str | None:
        """The name of the job, as far as it is known."""
        return self._entry.name

    @property
    def submitted(self) -> float | None:
        """When it was submitted, in seconds since the epoch; ``None`` if that is not known."""
        return self._entry.written or None

    @property
    def cache_file(self) -> str | None:
        """The file in which the run is recorded, ``None`` if it is in none."""
        return self._file.path if self._file else None

    def __repr__(self) -> str:
        there = f" at {self.protocol.host}" if self.remote else ""
        return f"<AsyncResult {self.backend}{there} job {self.job_id}: {self._job.status.name}>"

    @property
    def remote(self) -> str | None:
        """The machine of the job, ``None`` for this one."""
        return self._entry.remote

    @property
    def ssh(self) -> str:
        """The program by which that machine is reached."""
        return self._entry.ssh

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._scheduler.name

    @property
    def protocol(self) -> Protocol:
        """How the machine of the job is reached."""
        return self._scheduler.protocol

    @property
    def status(self) -> Status:
        """The status of the job; of an array, that of all its tasks together.

        The scheduler is asked unless its last answer is fresh. When it does not answer, this
        is the last status that was known, and a warning is logged.
        """
        if not self._job.status.ended:
            self._monitor.refresh()
        return self._known()

    @property
    def info(self) -> JobInfo:
        """What is known: status, reason, exit code, signal, nodes, times.

        For an array it is the record of the task that ended worst, with the status of all.
        """
        if not self._job.status.ended:
            self._monitor.refresh()
        return self.known()

    @property
    def tasks(self) -> dict[int, JobInfo]:
        """What is known of each task of an array, by its index; empty for other jobs."""
        if not self._job.status.ended:
            self._monitor.refresh()
        self._known()
        return self.known_tasks()

    def known_tasks(self) -> dict[int, JobInfo]:
        """Return what the last answer told of each task, without asking the scheduler."""
        return {task: info for task, info in self._job.infos.items() if task is not None}

    @property
    def counts(self) -> dict[Status, int]:
        """How many tasks are in each status that there is; another job counts as one task."""
        if not self._job.status.ended:
            self._monitor.refresh()
        self._known()
        return dict(sorted(Counter(info.status for info in self._job.infos.values()).items()))

    @property
    def exit_code(self) -> int | None:
        """The exit code, of an array that of the task that ended worst; ``None`` without one."""
        return self.info.exit_code

    def known(self, task: int | None = None) -> JobInfo:
        """Return what the last answer told, without asking the scheduler.

        ``task`` is the index of the task of an array; without one see `info`.
        """
        if task is not None:
            return self._job.infos[task]
        infos, status = list(self._job.infos.values()), self._job.status
        worst = max(infos, key=lambda info: (info.status is status, info.status))
        return replace(worst, status=status)

    def when_ended(
        self, callback: Callable[[], None], task: int | None = None
    ) -> Callable[[], None]:
        """Call ``callback()`` once the job, or a task of it, has ended; return what drops it.

        The call comes from the thread that finds the end out, or at once if it is known.
        """

        def call(_: TrackedJob) -> None:
            callback()

        self._monitor.when_ended(self._job, call, task)
        return lambda: self._monitor.forget(self._job, call, task)

    def hurry(self) -> None:
        """Have the scheduler asked soon, since there are signs that the job has ended."""
        self._monitor.hurry()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the job has ended, or ``timeout`` seconds have gone by."""
        self._monitor.wait(self._job, timeout)
        self._known()

    def get(self, timeout: float | None = None) -> Status:
        """Wait until the job has ended and return its final status.

        Raises:
            TimeoutError: it has not ended after ``timeout`` seconds; it goes on.
        """
        if not self._monitor.wait(self._job, timeout):
            error = self._monitor.last_error
            raise TimeoutError(
                f"job {self.job_id} on {self.backend} is {self._job.status.name} after "
                f"{timeout:g} s" + (f"; the scheduler does not answer: {error}" if error else "")
            )
        return self._known()

    def ready(self) -> bool:
        """Tell whether the job has ended."""
        return self.status.ended

    @property
    def unlisted(self) -> bool:
        """Whether the last answer had the job in the queue no more, and not its end either."""
        return not self._job.status.ended and self._job.left_queue()

    def left_queue(self, task: int | None = None) -> bool:
        """Tell whether the job, or a task of it, has ended.

        That is also so where the scheduler's record of the end is to come.
        """
        return self.ready() or self._job.left_queue(task)

    def successful(self) -> bool:
        """Tell whether the job has ended as COMPLETED.

        Raises:
            ValueError: it has not ended, as in `multiprocessing`.
        """
        if not self.ready():
            raise ValueError(f"job {self.job_id} on {self.backend} has not ended")
        return self._job.status is Status.COMPLETED

    def cancel(self, tasks: Collection[int] | None = None) -> None:
        """Ask the scheduler to end the job, or these tasks of an array.

        What has ended keeps its status.

        Raises:
            SchedulerError, ProtocolError: the request did not get through.
        """
        cancel_all([self], None if tasks is None else {self: tasks})

    def stdout(self, tail: int | None = None, task: int | None = None) -> str:
        """Return what the job wrote to standard output so far, or its last ``tail`` lines.

        ``task`` is the index of the task of an array.

        Raises:
            FileNotFoundError: the job has not written any, or the file is gone.
        """
        return self._log("stdout", tail, task)

    def stderr(self, tail: int | None = None, task: int | None = None) -> str:
        """Return what the job wrote to standard error, as `stdout` does.

        Where a scheduler joins both streams it is the same text.
        """
        return self._log("stderr", tail, task)

    def log_path(self, stream: str, task: int | None = None) -> str:
        """Return the path of the file that ``"stdout"`` or ``"stderr"`` goes to.

        Raises:
            ValueError: the job is an array and no task is named, or the other way round.
        """
        path = log_path(self._scheduler.backend, self._job, self._resources, stream, task)
        return os.path.join(self._folder, path)

    def _log(self, stream: str, tail: int | None, task: int | None) -> str:
        return read_log(self._scheduler.protocol, self.log_path(stream, task), tail)


def cancel_all(
    runs: Iterable[AsyncResult], tasks: Mapping[AsyncResult, Collection[int]] | None = None
) -> None:
    """Cancel many runs with one command for each scheduler.

    ``tasks`` names the arrays among them of which only these tasks are to go.

    Raises:
        SchedulerError, ProtocolError: a request did not get through.
    """
    asked = list(runs)
    only = {run._job: each for run, each in (tasks or {}).items()}
    by_scheduler: dict[Scheduler, list[TrackedJob]] = {}
    for run in asked:
        by_scheduler.setdefault(run._scheduler, []).append(run._job)
    for scheduler, jobs in by_scheduler.items():
        monitor_for(scheduler).cancel(jobs, only)
    for run in asked:
        run._note_cancel((tasks or {}).get(run))
