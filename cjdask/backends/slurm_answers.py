"""What Slurm's programs answer: states, records of jobs, node lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import product
from logging import getLogger

from cjdask.resources import ArraySpec
from cjdask.status import JobInfo, Reason, Status

__all__ = ["GONE", "NO_NODES", "STATES", "UNAVAILABLE", "expand_nodes", "infos"]

logger = getLogger(__name__)

STATES: dict[str, tuple[Status, Reason]] = {
    "BOOT_FAIL": (Status.FAILED, Reason.NODE_FAIL),
    "CANCELLED": (Status.CANCELLED, Reason.NONE),
    "COMPLETED": (Status.COMPLETED, Reason.NONE),
    "COMPLETING": (Status.RUNNING, Reason.NONE),
    "CONFIGURING": (Status.PENDING, Reason.NONE),
    "DEADLINE": (Status.FAILED, Reason.TIMEOUT),
    "EXPEDITING": (Status.PENDING, Reason.NONE),
    "FAILED": (Status.FAILED, Reason.NONE),
    "LAUNCH_FAILED": (Status.FAILED, Reason.LAUNCH_FAILURE),
    "NODE_FAIL": (Status.FAILED, Reason.NODE_FAIL),
    "OUT_OF_MEMORY": (Status.FAILED, Reason.OUT_OF_MEMORY),
    "PENDING": (Status.PENDING, Reason.NONE),
    "POWER_UP_NODE": (Status.PENDING, Reason.NONE),
    "PREEMPTED": (Status.FAILED, Reason.PREEMPTED),
    "RECONFIG_FAIL": (Status.FAILED, Reason.NODE_FAIL),
    "REQUEUED": (Status.PENDING, Reason.REQUEUED),
    "REQUEUE_FED": (Status.PENDING, Reason.REQUEUED),
    "REQUEUE_HOLD": (Status.PENDING, Reason.HELD),
    "RESIZING": (Status.RUNNING, Reason.NONE),
    "RESV_DEL_HOLD": (Status.PENDING, Reason.HELD),
    # A federation started the job on another cluster: no end.
    "REVOKED": (Status.RUNNING, Reason.NONE),
    "RUNNING": (Status.RUNNING, Reason.NONE),
    "SIGNALING": (Status.RUNNING, Reason.NONE),
    # Put back into the queue, and held there for somebody to look at.
    "SPECIAL_EXIT": (Status.PENDING, Reason.HELD),
    "STAGE_OUT": (Status.RUNNING, Reason.NONE),
    "STOPPED": (Status.PENDING, Reason.SUSPENDED),
    "SUSPENDED": (Status.PENDING, Reason.SUSPENDED),
    "TIMEOUT": (Status.FAILED, Reason.TIMEOUT),
    "UPDATE_DB": (Status.RUNNING, Reason.NONE),
}
"""Every state that Slurm documents (squeue(1), sacct(1), job_state_codes)."""

UNAVAILABLE = re.compile(
    "Unable to contact|Socket timed out|[Cc]onnection (?:refused|timed out|reset)|"
    "Problem talking to the database|failed to open persistent connection|"
    "Zero Bytes were transmitted|[Aa]uthentication error|[Mm]unge|in standby mode|"
    "Unexpected message received|Resource temporarily unavailable|"
    "No route to host|Network is unreachable|can't be reached now"
)
"""What Slurm's programs print when a daemon does not answer."""

GONE = re.compile("Invalid job id specified|Job/step already completing or completed")
"""What Slurm's programs print about a job that there is not, or no more."""

_NO_TIME = ("N/A", "None", "Unknown", "")
NO_NODES = ("None assigned", "(null)", "")
_NOTHING_NEW = ("", "None", "NonZeroExitCode", "OutOfMemory", "TimeLimit")
"""Words of squeue that say no more than the state does."""
_LAUNCH_FAILURE = 53
"""Slurm's own "signal" for a job that could not be started, for instance without its log."""


def expand_nodes(text: str) -> tuple[str, ...]:
    """List the names in Slurm's short form of a node list.

    >>> expand_nodes("n[1-3,5],login")
    ('n1', 'n2', 'n3', 'n5', 'login')
    >>> expand_nodes("r[1-2]n[08-10]")[2:4]
    ('r1n10', 'r2n08')
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        pieces = re.split(r"\[([^\]]*)\]", part)
        choices = [_numbers(p) if i % 2 else [p] for i, p in enumerate(pieces)]
        names += map("".join, product(*choices))
    return tuple(names)


def _numbers(text: str) -> list[str]:
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += [f"{i:0{len(first)}d}" for i in range(int(first), int(last or first) + 1)]
    return found


@cache  # logs once per process and word
def _unknown(word: str) -> tuple[Status, Reason]:
    pending = re.search("PEND|HOLD|HELD|QUEUE|WAIT", word)
    status = Status.PENDING if pending else Status.RUNNING
    logger.warning("Slurm's job state %r is not known; taken as %s", word, status.name)
    return status, Reason.NONE


def infos(
    ident: str, state: str, code: str, times: Sequence[str], nodes: str, why: str = ""
) -> list[JobInfo]:
    """Make the records of one line.

    Raises:
        ValueError: a field is not understood.
    """
    match = re.fullmatch(r"([0-9]+)(?:_([0-9]+)|_\[([-0-9,:%]+)\]|\+([0-9]+))?", ident)
    states = re.fullmatch(r"([A-Z_?]+)(?: by (\S+))?", state)
    if not match or not states:
        raise ValueError(ident)
    job_id, single, several, component = match.groups()
    if int(component or 0) > 0:
        return []  # the first component of a heterogeneous job runs its script
    tasks = ArraySpec.parse(several).indices if several else [int(single) if single else None]
    word = states[1]
    status, reason = STATES.get(word) or _unknown(word)
    exit_code, signal = _exit(code)
    if word == "FAILED":
        reason, signal = _why_failed(exit_code, signal)
    elif word == "COMPLETED":
        exit_code, signal = exit_code or 0, None
    else:
        exit_code = signal = None  # Slurm's numbers for these say nothing about the script
    reason, message = _explained(
        status, reason, f"by user id {states[2]}" if states[2] else "", why
    )
    names = () if nodes in NO_NODES else expand_nodes(nodes)
    submit, start, end = (None if t in _NO_TIME else float(int(t)) for t in times)
    begun = status is not Status.PENDING and not (status.ended and not names)
    return [
        JobInfo(
            job_id=job_id,
            status=status,
            task=task,
            native=word,
            reason=reason,
            message=message,
            exit_code=exit_code,
            signal=signal,
            nodes=names,
            submit_time=submit,
            start_time=start if begun else None,  # else when it is expected to
            end_time=end if status.ended else None,  # else its time limit
        )
        for task in tasks
    ]


def _exit(text: str) -> tuple[int | None, int | None]:
    """Read exit code and signal: ``3:0``, or the wait status (squeue before 23.02)."""
    code, colon, signal = text.partition(":")
    if colon:
        return (None, int(signal)) if int(signal) else (int(code), None)
    status = int(text or 0)
    return (None, status & 0x7F) if status & 0x7F else (status >> 8 & 0xFF, None)


def _why_failed(exit_code: int | None, signal: int | None) -> tuple[Reason, int | None]:
    if signal == _LAUNCH_FAILURE:
        return Reason.LAUNCH_FAILURE, None
    if signal:
        return Reason.SIGNALED, signal
    return (Reason.NONZERO_EXIT if exit_code else Reason.NONE), None


def _explained(status: Status, reason: Reason, message: str, why: str) -> tuple[Reason, str]:
    """Refine reason and message by squeue's word; a cancelled job may still show an old one."""
    if why.startswith("Dependency") and status in (Status.PENDING, Status.CANCELLED):
        return Reason.DEPENDENCY, why
    if status is Status.CANCELLED or why in _NOTHING_NEW:
        return reason, message
    if why == "JobLaunchFailure" and reason is not Reason.LAUNCH_FAILURE:
        return reason, message  # said of every job that a signal ended, too
    if status is Status.PENDING and why.startswith(("JobHeld", "JobHoldMaxRequeue")):
        return Reason.HELD, why
    return reason, why
