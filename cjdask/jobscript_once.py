"""One job for one submission: what to do when the answer of the scheduler did not come."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cjdask.backends import BatchBackend
from cjdask.errors import (
    JournalError,
    LinkLostError,
    ProtocolError,
    SubmitError,
    UnreachableError,
)
from cjdask.journal import Entry
from cjdask.run_record import begun_as
from cjdask.scheduler import Scheduler

if TYPE_CHECKING:
    from cjdask.jobscript import JobScript

__all__ = ["NotSubmittedError", "find_job", "is_fence", "never_came", "submit"]

logger = logging.getLogger(__name__)

UNSURE = 30.0
"""Seconds until a scheduler that did not answer a submission is believed to have lost it."""


class NotSubmittedError(ProtocolError):
    """The link broke before a job got to the scheduler; it never will."""


def submit(scheduler: Scheduler, script: JobScript, entry: Entry, hold: Sequence[int] = ()) -> str:
    """Submit a script that is written; return the id of the job.

    Where the link to another machine breaks meanwhile, what came of it is found out there.

    Raises:
        NotSubmittedError: nothing came of it; it can be submitted anew.
        SchedulerError, ProtocolError: see `Scheduler.submit`; what came of it may be unknown.
    """
    if entry.remote is None:
        return scheduler.submit(script, entry.folder, hold)
    claim = _claim(entry)
    try:
        return scheduler.submit(script, entry.folder, claim=claim)
    except LinkLostError as error:
        logger.info("%s; looking for what came of it", error)
        lost = error
    try:
        job_id = scheduler.submitted_by(claim)
    except TimeoutError:
        raise lost from None
    if job_id is None:
        raise NotSubmittedError(f"the job was not submitted: {lost}")
    return job_id


def never_came(error: Exception) -> bool:
    """Tell whether by this error no job came of a submission."""
    sure = isinstance(error, SubmitError | UnreachableError | NotSubmittedError)
    return sure or isinstance(error.__cause__, OSError)  # the command could not be started


def is_fence(entry: Entry) -> bool:
    """Tell whether the files of an intent keep it from being carried out, and must stay.

    What was sent over a link that is dead may still arrive, a quarter of an hour later.
    """
    return entry.remote is not None and entry.job_id is None


def find_job(scheduler: Scheduler, entry: Entry) -> str | None:
    """Return the id of the job of an intent, ``None`` where there is none and will be none.

    Raises:
        JournalError: it cannot be found out.
        SchedulerError, ProtocolError: the scheduler cannot be asked now.
    """
    if entry.remote is not None:
        try:
            return scheduler.submitted_by(_claim(entry))
        except SubmitError:
            return None
        except TimeoutError:
            logger.info("a submission of %s left no answer", entry.cache_id)
    backend = scheduler.backend
    known = isinstance(backend, BatchBackend) and backend.find_commands(entry.tag, 0.0)
    job_id = begun_as(scheduler.protocol, entry.record)
    if job_id is None and known:
        if entry.unsure_since is not None:
            time.sleep(max(0.0, min(UNSURE, entry.unsure_since + UNSURE - time.time())))
        job_id = scheduler.find(entry.tag, max(0.0, time.time() - (entry.written or 0.0)))
    if job_id is None:  # it may have begun, and ended, just now
        job_id = begun_as(scheduler.protocol, entry.record)
    if job_id is None and not known:
        raise JournalError(
            f"a process ended while it submitted {entry.cache_id!r} to {entry.backend}, "
            "which cannot be asked whether it got the job. Look for a job named "
            f"{entry.resources.get('jobname')!r} and, if there is none, submit with force=True"
        )
    return job_id


def _claim(entry: Entry) -> str:
    """Return the file on the other machine that tells what came of a submission."""
    return f"{entry.record}.claim"
