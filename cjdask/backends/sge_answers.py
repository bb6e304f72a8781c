"""What Grid Engine's programs answer: jobs in the queue, records of ended ones."""

from __future__ import annotations

import re
import signal
from calendar import timegm
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from logging import getLogger
from time import strptime
from xml.etree import ElementTree

from cjdask.command import Output
from cjdask.errors import ParseError
from cjdask.status import JobInfo, Reason, Status

__all__ = [
    "FIELDS",
    "QUEUED",
    "UNAVAILABLE",
    "ParallelEnvironment",
    "environments",
    "listed",
    "records",
]

logger = getLogger(__name__)

UNAVAILABLE = re.compile(
    "commlib error|unable to (?:send message to|contact) qmaster|got (?:select|send) error|"
    "can't (?:connect|reach)|failed receiving gdi request|qmaster (?:is not|didn't)"
)
"""What Grid Engine's programs print when the qmaster does not answer."""

QUEUED = re.compile(
    "has registered the job|has deleted job|is already in deletion|"
    'denied: job "[^"]*" does not exist'
)
"""What qdel prints about a job that it deletes, or that there is not any more."""


# -- parallel environments ---------------------------------------------------------------------


@dataclass(frozen=True)
class ParallelEnvironment:
    """A parallel environment, as ``qconf -sp`` shows it, and the queues that it is in."""

    name: str
    rule: str
    """``$pe_slots`` (all slots on one host), ``$fill_up``, ``$round_robin``, or their number."""
    tight: bool = True
    """Whether programs can be started on the other hosts (``control_slaves``)."""
    queues: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} (allocation_rule {self.rule})"

    def fits(self, rules: Sequence[str], queue: str | None, several: bool) -> bool:
        """Tell whether it has one of these rules, is in the queue, reaches several hosts."""
        there = queue in self.queues if queue and re.fullmatch(r"[\w.-]+", queue) else self.queues
        return self.rule in rules and bool(there) and (self.tight or not several)


def environments(text: str) -> tuple[ParallelEnvironment, ...]:
    """Read the output of ``qconf -sp`` for several environments, each ended by its queues."""
    found = []
    known: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        known[key] = value.strip()
        if key == "queues" and "pe_name" in known:
            found.append(
                ParallelEnvironment(
                    known["pe_name"],
                    known.get("allocation_rule", ""),
                    known.get("control_slaves", "").upper() == "TRUE",
                    tuple(value.split()),
                )
            )
            known = {}
    return tuple(found)


# -- the queue ---------------------------------------------------------------------------------


def listed(output: Output) -> Iterator[JobInfo]:
    """Read ``qstat -r -xml``: a record for each job, or for each task of an array.

    Raises:
        ParseError: it is no such answer.
    """
    # A control character in a value makes it ill-formed; a ``<`` is written ``%lt;``.
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", output.stdout)
    try:
        tree = ElementTree.fromstring(text)
        for element in tree.iter():
            between = [element.text if len(element) else "", *(child.tail for child in element)]
            if "".join(filter(None, between)).strip():
                raise ValueError(f"text in <{element.tag}>")
        for row in tree.iter("job_list"):
            yield from _row({child.tag: child.text or "" for child in row})
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise ParseError(f"the answer of qstat is not understood: {error!r}", output) from None


def _row(row: dict[str, str]) -> Iterator[JobInfo]:
    job_id, letters = row["JB_job_number"], row["state"]
    status, reason, message = _state(letters, job_id, row.get("predecessor_jobs", ""))
    host = row.get("queue_name", "").partition("@")[2]
    for task in _tasks(row["tasks"]) if "tasks" in row else [None]:
        yield JobInfo(
            job_id=job_id,
            status=status,
            task=task,
            native=letters,
            reason=reason,
            message=message,
            nodes=(host,) if host else (),
            submit_time=_time(row.get("JB_submission_time", "")),
            start_time=_time(row.get("JAT_start_time", "")),
        )


def _tasks(text: str) -> Iterator[int]:
    """Read a list such as ``1-3:1,5,8``."""
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+)(?::([0-9]+))?)?", part)
        if match is None:
            raise ValueError(f"tasks {text}")
        first, last, step = match.groups()
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def _state(letters: str, job_id: str, waits_for: str) -> tuple[Status, Reason, str]:
    """Explain the letters of a state (qstat(1)), which combine: ``hqw``, ``dr``, ``Eqw``."""
    if "E" in letters:
        clear = (
            f"in error state: qstat -j {job_id} says why; qmod -cj {job_id} lets it try again, "
            f"qdel {job_id} removes it"
        )
        return Status.PENDING, Reason.HELD, clear
    if set(letters) - set("dhqrRsSNPTtw"):
        _unknown(letters)
    if "h" in letters:
        message = f"waits for {waits_for}" if waits_for else ""
        return Status.PENDING, Reason.DEPENDENCY if waits_for else Reason.HELD, message
    if set(letters) & set("qw"):
        return Status.PENDING, Reason.REQUEUED if "R" in letters else Reason.NONE, ""
    if set(letters) & set("sSNPT"):
        return Status.PENDING, Reason.SUSPENDED, ""
    status = Status.PENDING if "t" in letters else Status.RUNNING  # t: on its way to the host
    return status, Reason.NONE, "is being deleted" if "d" in letters else ""


@cache  # logs once per process and word
def _unknown(letters: str) -> None:
    logger.warning("Grid Engine's job state %r is not known; taken as no end", letters)


# -- the records of ended jobs -----------------------------------------------------------------

FIELDS = (
    *("hostname", "jobnumber", "taskid", "qsub_time", "start_time", "end_time", "failed"),
    *("exit_status", "granted_pe", "deleted_by"),
)
"""The fields of a record that are read; all but the last are in every version."""
WRITTEN = 20.0
"""Seconds after which the records of a job that ended are surely in the accounting file."""
_RAN = (0, 12, 13, 14, 15, 16, 30)
"""Codes in the field ``failed`` with which the script had ended by itself (accounting(5))."""
_LOST = (19, 21)
"""... whose host did not tell the end."""
_AGAIN = (24, 25)
"""... that stand for a job that went back to the queue: no end."""
_OVER_LIMIT = 37
_SIGNALLED = 100


def records(output: Output, loose: Collection[str] = ()) -> Iterator[JobInfo]:
    """Read the records that ``qacct -j`` prints, after a line with the time ``now``.

    Of several for one task the last counts: a job that was run again has one for each time, and
    one of a parallel environment has one for each program started on its hosts before its own.
    Records are written late, every 15 seconds by default, so that the last may be missing yet.
    Environments that are ``loose`` start no such programs.

    Raises:
        ParseError: a line is not understood, or a record lacks something.
    """
    rows: list[dict[str, str]] = []
    first, _, rest = output.stdout.partition("\n")
    try:
        now = float(first.removeprefix("now "))
        for line in rest.splitlines():
            key, _, value = line.partition(" ")
            if line.strip("= ") == "":
                rows.append({})
            elif key in FIELDS:
                rows[-1][key] = value.strip()
            else:
                raise ValueError(line)
        last = {(row["jobnumber"], row["taskid"]): row for row in rows}
        owned = (row for row in last.values() if not _of_a_program(row, now, loose))
        found = [_record(row) for row in owned]
    except (KeyError, IndexError, ValueError) as error:
        raise ParseError(f"the answer of qacct is not understood: {error!r}", output) from None
    yield from (info for info in found if info is not None)


def _of_a_program(row: dict[str, str], now: float, loose: Collection[str]) -> bool:
    """Tell whether a record may be that of a program of a parallel job, its own still to come.

    Nothing says so, but programs are submitted and started in the same second.
    """
    end = _time(row["end_time"])
    at_once = row["qsub_time"] == row["start_time"]
    tight = row["granted_pe"] not in ("NONE", *loose)
    return tight and at_once and end is not None and now - end < WRITTEN


def _record(row: dict[str, str]) -> JobInfo | None:
    failed, code = (int(row[key].split()[0]) for key in ("failed", "exit_status"))
    if failed in _AGAIN:
        return None
    status, reason = Status.FAILED, Reason.LAUNCH_FAILURE
    exit_code = number = None
    words = row["failed"].partition(":")[2].strip()
    deleted_by = row.get("deleted_by", "")  # only Univa and Altair have this
    if failed in _RAN:
        exit_code = code
        status = Status.FAILED if code else Status.COMPLETED
        reason = Reason.NONZERO_EXIT if code else Reason.NONE
    elif failed in _LOST:
        reason = Reason.NODE_FAIL
    elif failed == _OVER_LIMIT:
        reason, number = Reason.TIMEOUT, code - 128
    elif failed == _SIGNALLED:
        number, reason = code - 128, Reason.SIGNALED
        if deleted_by not in ("", "NONE"):
            status, reason, words = Status.CANCELLED, Reason.NONE, f"deleted by {deleted_by}"
        elif number == signal.SIGKILL and not deleted_by:
            # The record does not tell who killed the script. It is what qdel does.
            status, reason = Status.CANCELLED, Reason.NONE
            words = "killed by signal 9, which is what qdel does"
    return JobInfo(
        job_id=row["jobnumber"],
        status=status,
        task=int(row["taskid"]) if row["taskid"].isdigit() else None,
        native=f"failed {failed}, exit_status {code}",
        reason=reason,
        message=words,
        exit_code=exit_code,
        signal=number,
        nodes=(row["hostname"],),
        submit_time=_time(row["qsub_time"]),
        start_time=_time(row["start_time"]),
        end_time=_time(row["end_time"]),
    )


def _time(text: str) -> float | None:
    """Read a time, printed in UTC because the commands are run so."""
    for form in ("%Y-%m-%dT%H:%M:%S", "%a %b %d %H:%M:%S %Y", "%m/%d/%Y %H:%M:%S"):
        try:
            return float(timegm(strptime(text.partition(".")[0], form)))
        except ValueError:
            continue
    return None
