"""What is due when a run has ended: its record, its output files, its epilogue."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from logging import getLogger
from typing import Any

from cjdask.errors import JournalError, StagingError
from cjdask.journal import Entry, JournalFile, task_key
from cjdask.journal_epilogue import run_once
from cjdask.monitor import Monitor, TrackedJob
from cjdask.run_files import files_of
from cjdask.run_script import run_script
from cjdask.run_staging import fetch
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo, Status

__all__ = ["EndingRun"]

logger = getLogger(__name__)

_SAME_TIME = 5.0
"""Seconds that two clocks may differ by in what they say of one moment."""


class EndingRun:
    """The part of a run that does what is due at its end, once, by whoever learns of it first."""

    job_id: str
    epilogue: str
    _scheduler: Scheduler
    _monitor: Monitor
    _entry: Entry
    _file: JournalFile | None
    _job: TrackedJob

    def __init__(self) -> None:
        self._settling = threading.Lock()
        self._ending = threading.Lock()
        self._epilogue_over = threading.Event()
        self._epilogue_begun = False

    def run_epilogue(self) -> None:
        """Run the epilogue now, in the folder that the run was submitted from.

        There is no need to, but for one that failed, or to run it again.

        Raises:
            ScriptError: it failed; what it printed is in the message.
            ValueError: the job has not ended.
        """
        if not self._job.status.ended:
            self._monitor.refresh()
        if not self._job.status.ended:
            raise ValueError(f"job {self.job_id} on {self._scheduler.name} has not ended")
        with self._ending:
            self._epilogue_begun = True
        try:
            self._run_epilogue(again=True)
        finally:
            self._epilogue_over.set()

    def _final(self) -> list[JobInfo]:
        return list(self._job.infos.values()) if self._job.status.ended else []

    def _known(self, locked: bool = False) -> Status:
        """Return the status as it is known; of a run that has ended, after all that is due then.

        ``locked`` says that the caller has the lock of the run's file, and forgets the run.
        """
        status = self._job.status
        if not status.ended:
            if not locked:
                self._note_unlisted()
            return status
        with self._settling:
            if not self._entry.ended and not locked and self._record_end():
                files_of(self._scheduler).over(*self._entry.records)
            missing = self._fetch_once(locked)
        with self._ending:
            first, self._epilogue_begun = not self._epilogue_begun, True
        if first:
            try:
                self._run_epilogue()
            finally:
                self._epilogue_over.set()
        else:
            self._epilogue_over.wait()
        if missing is not None:
            raise missing
        return status

    def _note_unlisted(self) -> None:
        """Note in the run's file since when which tasks are not listed, if that has changed.

        So a process that looks once, and another one later, come to an end of a lost job too.
        """
        now, noted = time.time(), self._entry.unlisted
        ages = self._monitor.unlisted(self._job)
        if not ages and not noted:
            return
        since = {task_key(task): now - age for task, age in ages.items()}
        if since.keys() == noted.keys() and all(
            since[key] < noted[key] + _SAME_TIME for key in since
        ):
            return
        self._note(unlisted=since)

    def _note_cancel(self, tasks: Collection[int] | None) -> None:
        """Note in the run's file that it was cancelled, or some tasks, for other processes."""
        if not self._job.status.ended:
            now, wanted = time.time(), self._job.open() if tasks is None else tasks
            self._note(cancelled={**self._entry.cancelled, **{task_key(t): now for t in wanted}})

    def _note(self, **times: Any) -> None:
        with self._settling:
            self._entry = replace(self._entry, **times)
            try:
                if self._file is not None:
                    self._file.update(self._entry.tag, **times)
            except JournalError as error:
                logger.warning("%s", error)

    def fetch(self) -> None:
        """Copy the output files here now, into the folder that the run was submitted from.

        There is no need to, but to try again what failed, or to see what is there already.

        Raises:
            StagingError: some are not there.
            ProtocolError: they could not be copied.
        """
        fetch(self._scheduler.protocol, self._entry)

    def _fetch_once(self, locked: bool) -> StagingError | None:
        """Copy the output files of a run that has ended, unless some process has done so.

        Return what there is to say of files that a job has not left that went well.
        """
        if self._entry.fetched or not self._entry.output_files:
            return None
        missing = None
        with self._file.lock("fetch") if self._file else nullcontext():
            now = self._file.read() if self._file else None
            if now is None or now.tag != self._entry.tag or not now.fetched:
                try:
                    self.fetch()
                except StagingError as error:
                    logger.warning("%s", error)
                    missing = error if self._job.status is Status.COMPLETED else None
                if self._file is not None and not locked:
                    self._file.update(self._entry.tag, fetched=True)
        self._entry = replace(self._entry, fetched=True)
        return missing

    def _record_end(self) -> bool:
        """Note the end in the run's file; tell whether the job's own record may go."""
        self._entry = self._entry.with_end(self._final())
        if not self._entry.written:  # it may be somebody else's
            return False
        try:
            if self._file is not None:
                self._file.update(self._entry.tag, ended=self._entry.ended)
        except JournalError as error:
            logger.warning("the end of job %s is not recorded: %s", self.job_id, error)
            return False
        return True

    def _run_epilogue(self, again: bool = False) -> None:
        what = f"the epilogue of job {self.job_id}, which is {self._job.status.name},"
        folder = self._entry.local_folder
        if self.epilogue and self._file is not None:
            run_once(self._file, self._entry.tag, what, self.epilogue, folder, again)
        elif self.epilogue:
            run_script(what, self.epilogue, folder)
