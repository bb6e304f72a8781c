"""Submit a job script once: the steps, in an order that a crash cannot upset."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cjdask.backends import BatchBackend
from cjdask.errors import (
    JournalError,
    ProtocolError,
    ResourcesNotSupportedError,
    SchedulerError,
)
from cjdask.jobscript_cache import forget
from cjdask.jobscript_once import NotSubmittedError, find_job, is_fence, never_came, submit
from cjdask.journal import Entry, JournalFile, entries
from cjdask.resources import ArraySpec, Resources
from cjdask.run import AsyncResult
from cjdask.run_depends import open_dependencies
from cjdask.run_files import files_of
from cjdask.run_record import RECORDS, last_line, record_lines
from cjdask.run_script import run_script
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.status import JobInfo, Status

if TYPE_CHECKING:
    from cjdask.jobscript import JobScript

__all__ = ["Submission"]

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a submission is begun that did not get to the scheduler as the link broke."""

FRESH = 30.0
"""Seconds for which an answer is good enough to decide whether a recorded run ended badly."""

_asked: dict[str, tuple[float, list[JobInfo]]] = {}
"""When the runs of a cache folder were asked for, by their tags, and the ends that were told."""


def _status(run: AsyncResult, file: JournalFile, prefix: str) -> Status:
    """Return the status of a recorded run; one question serves all of its cache folder."""
    monitor, job, tag = run._monitor, run._job, run._entry.tag
    if job.open() and time.monotonic() - _asked.get(tag, (float("-inf"),))[0] > FRESH:
        runs = [
            AsyncResult(run._scheduler, entry)
            for entry in entries(os.path.dirname(file.path), prefix)
            if entry.job_id is not None
            and not entry.ended
            and entry.backend == run.backend
            and entry.place == run._entry.place
        ]
        monitor.refresh(max_age=0)
        now = time.monotonic()
        _asked.update({other._entry.tag: (now, other._final()) for other in runs})
    elif job.open():
        monitor.track(run.job_id, ended=_asked[tag][1])
    return job.status


@dataclass(frozen=True)
class Submission:
    """A job script with all of it rendered, so that what is wrong with it is known by now."""

    script: JobScript
    scheduler: Scheduler
    resources: Resources
    folder: str
    text: str
    prologue: str
    epilogue: str
    content: str
    """A digest of all that makes the job what it is."""

    @classmethod
    def of(cls, script: JobScript, scheduler: Scheduler) -> Submission:
        """Render a job script.

        Raises:
            KeyError, ResourcesNotSupportedError: see `JobScript.render_script`.
        """
        resources = Resources.of(script.resources)
        if script.remote:
            _ = scheduler.backend  # what is rendered depends on that machine
        text = str(script)
        beside = {name: script.render_script(aux) for name, aux in script.aux_scripts.items()}
        prologue = script.render_script(script.prologue) if script.prologue else ""
        epilogue = script.render_script(script.epilogue) if script.epilogue else ""
        folder = scheduler.protocol.expand(script.folder)
        parts: list[Any] = [script.backend, folder, text, beside, prologue, resources.plain()]
        inputs = [os.path.abspath(os.path.expanduser(path)) for path in script.input_files]
        if script.remote or inputs:
            parts += [scheduler.remote, inputs]
        content = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cls(script, scheduler, resources, folder, text, prologue, epilogue, content)

    def once(
        self, file: JournalFile, cache_id: str, force: bool = False, retry: bool = True
    ) -> AsyncResult:
        """Return the run that the journal has, else submit the job and record it there."""
        with file.lock() as lock:
            if force:
                forget(file)
            entry = file.read()
            if entry is not None and entry.job_id is None:
                entry = self._find(file, entry)
            if entry is not None and entry.job_id is not None:
                run = AsyncResult(self._scheduler_of(entry), entry, file)
                if entry.content != self.content:
                    logger.warning(
                        "the run with cache_id %r is job %s of another script; force=True "
                        "submits this one",
                        cache_id,
                        entry.job_id,
                    )
                if not (retry and _status(run, file, self.script.cache_prefix) > Status.COMPLETED):
                    if entry.ended:
                        files_of(run._scheduler).stale(*entry.records)
                    return run
                run._known(locked=True)  # its epilogue, if that was not run
                entry = entry.with_end(run._final())
            return self.now(file, cache_id, (lock,), entry)

    def now(
        self,
        file: JournalFile | None = None,
        cache_id: str | None = None,
        hold: Sequence[int] = (),
        before: Entry | None = None,
    ) -> AsyncResult:
        """Run the prologue, record the intent, write the files, submit, record the job.

        ``before`` is what the file has of a run that ended badly; it stays there if this fails.
        """
        if self.prologue:
            run_script(
                f"the prologue of job {self.resources.jobname!r}", self.prologue, os.getcwd()
            )
        if self.script.input_files:
            self.scheduler.protocol.upload(self.script.input_files, f"{self.folder}/")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(file, cache_id, hold, before)
            except NotSubmittedError as error:
                if attempt == ATTEMPTS:
                    raise
                logger.info("%s; submitting again", error)
        raise AssertionError("unreachable")

    def _attempt(
        self,
        file: JournalFile | None,
        cache_id: str | None,
        hold: Sequence[int],
        before: Entry | None,
    ) -> AsyncResult:
        tag = f"cjdask-{secrets.token_hex(12)}"
        entry = Entry(
            tag=tag,
            backend=self.script.backend,
            remote=self.scheduler.remote,
            ssh=self.scheduler.ssh,
            resources=self.resources.plain(),
            folder=self.folder,
            record=os.path.join(self.folder, RECORDS, tag),
            local_folder=os.getcwd(),
            written=time.time(),
            cache_id=cache_id,
            content=self.content,
            epilogue=self.epilogue,
            output_files=list(self.script.output_files),
            max_sleep_interval=self.script.max_sleep_interval,
        )
        good = before.good() if before is not None and before.content == self.content else []
        asked, good = self._asked(good, tag if file is not None else None)
        entry = replace(entry, resources=Resources.of(asked).plain()).after(good)
        if before is not None and before.place == entry.place and not is_fence(before):
            # Those of a run that had a job went with that, or go when its end is known.
            old = before.records if before.job_id is None else (before.record,)
            entry = replace(entry, replaced=list(old))
        if file is None:
            submitted = self._write(entry, asked, named=False)
            job_id = submit(self.scheduler, submitted, entry)
            if not submitted._preamble and entry.remote is None:
                entry = replace(entry, record="")
            return self._run(entry, job_id, None)
        file.write(entry)
        try:
            submitted = self._write(entry, asked, named=True)
        except BaseException:
            self._undo(file, entry, before)
            raise
        try:
            job_id = submit(self.scheduler, submitted, entry, hold)
        except (SchedulerError, ProtocolError) as error:
            if never_came(error):
                self._undo(file, entry, before, fenced=isinstance(error, NotSubmittedError))
            else:
                file.write(replace(entry, unsure_since=time.time()))
            raise
        run = self._run(entry, job_id, file)
        try:
            file.write(run._entry)
        except JournalError as error:
            logger.warning(
                "job %s was submitted, but its id is not recorded; the next submit looks for the "
                "job by its tag: %s",
                job_id,
                error,
            )
        else:
            file.discard_epilogues(but=tag)
            if before is not None and not is_fence(before):
                files_of(self._scheduler_of(before)).over(*before.records)
        return run

    def _undo(
        self, file: JournalFile, entry: Entry, before: Entry | None, fenced: bool = False
    ) -> None:
        """Put the journal back to what it was before a submission of which no job came.

        What was ``fenced`` off may still come there, late, and must find that.
        """
        if before is not None and (before.job_id is not None or before.earlier):
            file.write(before)
        else:
            file.discard()
        if not fenced:
            files_of(self.scheduler).over(entry.record)

    def _asked(self, good: list[JobInfo], tag: str | None) -> tuple[dict[str, Any], list[JobInfo]]:
        """Return what to ask the scheduler for, and the tasks that need not run again.

        These are ``good`` or, where the scheduler cannot be asked for the others alone, none.

        Raises:
            JobFailed, JobCancelled: a job that this one depends on has ended so.
        """
        asked = dict(self.script.resources)
        if asked.get("depends"):
            asked["depends"] = open_dependencies(asked["depends"])
        backend, array = self.scheduler.backend, self.resources.array
        if not isinstance(backend, BatchBackend):
            return asked, []
        if array is not None and good:
            done = {info.task for info in good}
            left = tuple(index for index in array.indices if index not in done)
            part = {**asked, "array": ArraySpec(left, array.limit)}
            try:
                backend.headers(Resources.of(part))
                asked = part
            except ResourcesNotSupportedError as error:
                logger.info("all tasks of %r run again: %s", self.resources.jobname, error)
                good = []
        return backend.tagged(asked, tag) if tag else asked, good

    def _run(self, entry: Entry, job_id: str, file: JournalFile | None) -> AsyncResult:
        return AsyncResult(self.scheduler, replace(entry, job_id=job_id), file)

    def _write(self, entry: Entry, asked: dict[str, Any], named: bool) -> JobScript:
        """Write the files; return the script that is submitted.

        It is the one that is printed, and leaves a record of its end. One that is ``named``
        carries its tag, and has a file that no other process can write at the same time.
        """
        script = copy.copy(self.script)
        backend = self.scheduler.backend
        script._filename = self.script.filename
        script._named = self.script.resources
        script.__dict__["resources"] = asked
        if named:
            self.script.write()
            script.aux_scripts = {}
            ending = getattr(backend, "extension", "sh")
            script._filename = os.path.join(RECORDS, f"{entry.tag}.{ending}")
        resources = Resources.of(asked)
        if script.exit_record and not script._writes_itself():
            script._preamble = record_lines(self.text, backend, resources, entry.record)
            if script._preamble:
                # The folder is made by whoever writes into it first.
                self.scheduler.protocol.create(
                    os.path.join(self.folder, RECORDS, "README"),
                    "Records that jobs leave of their end; they may go when the jobs are over.\n",
                )
                script._postscript = last_line(self.text)
        if named or script._preamble:
            files_of(self.scheduler).sweep(self.folder)
        script.write()
        return script

    def _find(self, file: JournalFile, entry: Entry) -> Entry:
        """Find the job of an intent; return it as it is where there is none.

        The lock was free: the command that was to submit the job has ended, unless it runs on
        another machine.

        Raises:
            JournalError: it cannot be found out.
            SchedulerError, ProtocolError: the scheduler cannot be asked now.
        """
        job_id = find_job(self._scheduler_of(entry), entry)
        if job_id is None:
            return entry
        found = replace(entry, job_id=job_id, unsure_since=None)
        file.write(found)
        return found

    def _scheduler_of(self, entry: Entry) -> Scheduler:
        same = entry.backend == self.script.backend and entry.remote == self.scheduler.remote
        return self.scheduler if same else scheduler_for(entry.backend, *entry.place)
