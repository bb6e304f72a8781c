"""What HTCondor's condor_q and condor_history answer: job ClassAds as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from logging import getLogger
from typing import Any

from cjdask.backends.htcondor_submit import LIMITS
from cjdask.command import Output
from cjdask.errors import ParseError
from cjdask.resources import ArraySpec
from cjdask.status import JobInfo, Reason, Status, combine

__all__ = ["ATTRIBUTES", "jobs"]

logger = getLogger(__name__)

_NAMES = """
ClusterId ProcId JobStatus CjdaskArray CjdaskNodes ExitBySignal ExitCode ExitSignal HoldReason
HoldReasonCode LastHoldReason LastHoldReasonCode RemoveReason NumJobStarts RemoteHost
LastRemoteHost QDate JobCurrentStartDate EnteredCurrentStatus JobMaterializeNextProcId
"""
ATTRIBUTES = ",".join(_NAMES.split())
"""The attributes that are asked for. ``ExitStatus`` is always 0 and says nothing."""

IDLE, RUNNING, REMOVED, COMPLETED, HELD, TRANSFERRING, SUSPENDED = range(1, 8)
"""Values of JobStatus (manual, job ClassAd attributes)."""

_WORDS = ("", "IDLE", "RUNNING", "REMOVED", "COMPLETED", "HELD", "TRANSFERRING", "SUSPENDED")


def jobs(output: Output, ended: bool) -> Iterator[JobInfo]:
    """Read job ads: a record for each task of an array, one for all nodes of a job.

    With ``ended`` they are those of jobs that left the queue.

    Raises:
        ParseError: they are not understood.
    """
    # Ads are bytes in no certain encoding. Without any job condor_q prints nothing at all.
    text = output.raw_stdout.decode("utf-8", "replace")
    nodes: dict[str, list[JobInfo]] = {}
    wanted: dict[str, int] = {}
    to_come: dict[str, tuple[int, ...]] = {}
    try:
        for ad in json.loads(text) if text.strip() else []:
            info = _info(ad)
            count = ad.get("CjdaskNodes", 1)
            if count > 1:
                nodes.setdefault(info.job_id, []).append(info)
                wanted[info.job_id] = count
            else:
                yield info
            if "JobMaterializeNextProcId" in ad:  # of an array with a limit
                next_one = ad["JobMaterializeNextProcId"]
                to_come[info.job_id] = _indices(ad["CjdaskArray"])[next_one:]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ParseError(f"job ads are not understood: {error!r}", output) from None
    for job_id, tasks in to_come.items() if not ended else ():
        yield from (JobInfo(job_id, Status.PENDING, task, "NOT MATERIALIZED") for task in tasks)
    for job_id, infos in nodes.items():
        if len(infos) == wanted[job_id]:
            yield _merged(infos)
        elif not ended:  # nodes that are not listed have ended
            yield replace(_merged(infos), status=Status.RUNNING)


def _merged(infos: list[JobInfo]) -> JobInfo:
    """Make one record of those of all nodes: that of the node that ended worst."""
    status = combine([info.status for info in infos])
    worst = max(infos, key=lambda info: (info.status is status, info.status, info.reason != ""))
    starts = [info.start_time for info in infos if info.start_time is not None]
    ends = [info.end_time for info in infos if info.end_time is not None]
    return replace(
        worst,
        status=status,
        nodes=tuple(sorted({node for info in infos for node in info.nodes})),
        start_time=min(starts, default=None),
        end_time=max(ends, default=None) if status.ended else None,
    )


def _info(ad: dict[str, Any]) -> JobInfo:
    job_id, code = str(ad["ClusterId"]), ad["JobStatus"]
    known = 0 < code < len(_WORDS)
    if not known:
        _unknown(code)
    status, reason, message = _state(ad, job_id)
    host = ad.get("RemoteHost") or ad.get("LastRemoteHost") or ""
    array = ad.get("CjdaskArray")
    by_itself = code == COMPLETED
    return JobInfo(
        job_id=job_id,
        status=status,
        task=_indices(array)[ad["ProcId"]] if array else None,
        native=_WORDS[code] if known else str(code),
        reason=reason,
        message=message,
        exit_code=ad.get("ExitCode") if by_itself else None,
        signal=ad.get("ExitSignal") if by_itself and ad.get("ExitBySignal") else None,
        nodes=(host.rpartition("@")[2],) if host else (),
        submit_time=ad.get("QDate"),
        start_time=ad.get("JobCurrentStartDate"),
        end_time=ad.get("EnteredCurrentStatus") if status.ended else None,
    )


def _state(ad: dict[str, Any], job_id: str) -> tuple[Status, Reason, str]:
    """Tell status, reason, message. The status first: a removed job may have an exit code."""
    code = ad["JobStatus"]
    if code == IDLE:
        return Status.PENDING, Reason.REQUEUED if ad.get("NumJobStarts") else Reason.NONE, ""
    if code == COMPLETED:
        if ad.get("ExitBySignal"):
            return Status.FAILED, Reason.SIGNALED, ""
        if ad["ExitCode"] != 0:
            return Status.FAILED, Reason.NONZERO_EXIT, ""
        return Status.COMPLETED, Reason.NONE, ""
    if code == HELD:
        why = str(ad.get("HoldReason") or "")
        if (limit := ad.get("HoldReasonCode")) in LIMITS:
            return Status.FAILED, Reason(LIMITS[limit]), why
        way = f"; condor_release {job_id} lets it go on, condor_rm {job_id} removes it"
        return Status.PENDING, Reason.HELD, why + way
    if code == REMOVED:
        why = str(ad.get("RemoveReason") or "")
        limit = ad.get("LastHoldReasonCode")
        if limit in LIMITS and "PeriodicRemove" in why:
            return Status.FAILED, Reason(LIMITS[limit]), str(ad.get("LastHoldReason") or why)
        return Status.CANCELLED, Reason.NONE, why
    if code == SUSPENDED:
        return Status.PENDING, Reason.SUSPENDED, ""
    return Status.RUNNING, Reason.NONE, ""


@cache
def _indices(text: str) -> tuple[int, ...]:
    return ArraySpec.parse(text).indices


@cache  # logs once per process and code
def _unknown(code: int) -> None:
    logger.warning("HTCondor's JobStatus %s is not known; taken as RUNNING", code)
