"""What LSF's programs answer: rows of ``bjobs``, the histories of ``bhist -l``, notes.

Facts about IBM LSF are from its command reference, version 10.1 (bjobs, bhist, "Termination
reasons displayed by bacct, bhist, and bjobs"); what compatible systems print was recorded on
OpenLava 2.2.
"""

from __future__ import annotations

import re
from functools import cache
from logging import getLogger

from cjdask.command import Output
from cjdask.errors import ParseError, SchedulerUnavailableError
from cjdask.status import JobInfo, Reason, Status

__all__ = [
    "ABSENT",
    "FORMATTED",
    "ONLY_ID",
    "PLAIN",
    "TERMINATED",
    "WAITING",
    "histories",
    "infos",
    "rows",
]

logger = getLogger(__name__)

STATES: dict[str, tuple[Status, Reason]] = {
    "DONE": (Status.COMPLETED, Reason.NONE),
    "EXIT": (Status.FAILED, Reason.NONE),
    "FWD_PEND": (Status.PENDING, Reason.NONE),
    "PEND": (Status.PENDING, Reason.NONE),
    # The job is done, only what the site runs behind it is not, or went wrong.
    "POST_DONE": (Status.COMPLETED, Reason.NONE),
    "POST_ERR": (Status.COMPLETED, Reason.NONE),
    "PROV": (Status.PENDING, Reason.NONE),
    "PSUSP": (Status.PENDING, Reason.HELD),
    "RUN": (Status.RUNNING, Reason.NONE),
    "SSUSP": (Status.PENDING, Reason.SUSPENDED),
    # Its host does not answer, which is no end: it may run on and be found again.
    "UNKWN": (Status.RUNNING, Reason.NONE),
    "USUSP": (Status.PENDING, Reason.SUSPENDED),
    "WAIT": (Status.PENDING, Reason.NONE),
    "ZOMBI": (Status.RUNNING, Reason.NONE),
}
"""Every state that LSF documents (bjobs(1), 10.1)."""

_CANCELLED = "ADMIN BUCKET_KILL FORCE_ADMIN FORCE_OWNER OWNER REMOVE_HUNG_JOB"
_ENDS: dict[Reason, str] = {
    Reason.TIMEOUT: "CPULIMIT DEADLINE RUNLIMIT WINDOW",
    Reason.OUT_OF_MEMORY: "MEMLIMIT SWAP",
    Reason.PREEMPTED: "LOAD PREEMPT RC REQUEUE_RC",
    Reason.LAUNCH_FAILURE: "CSM_ALLOC CWD_NOTEXIST DATA PRE_EXEC_FAIL",
    Reason.NODE_FAIL: "SLURM ZOMBIE",
}
TERMINATED: dict[str, tuple[Status, Reason]] = {
    **{f"TERM_{word}": (Status.CANCELLED, Reason.NONE) for word in _CANCELLED.split()},
    "TERM_ORPHAN_SYSTEM": (Status.CANCELLED, Reason.DEPENDENCY),
    **{f"TERM_{w}": (Status.FAILED, r) for r, words in _ENDS.items() for w in words.split()},
}
"""LSF's termination reasons that say more than that the job was killed."""

FORMATTED = re.compile(
    r"(?P<id>\d+)\|(?P<index>\d+|-)\|(?P<state>[A-Z_]+)\|(?P<code>\d*|-)\|(?P<why>[^|]*)\|(?P<hosts>[^|]*)"
)
"""A row of ``bjobs -o "jobid jobindex stat exit_code exit_reason exec_host delimiter='|'"``."""

PLAIN = re.compile(
    r"(?P<id>\d+) +\S+ +(?P<state>[A-Z_]+) +\S.*?(?:\[(?P<index>\d+)\])? +"
    r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d(?: \d{4})? *|JOBID +USER +STAT .*"
)
"""A row of ``bjobs -w``, or its heading. Only the first three columns are safe to name: names
may hold blanks, and a job that does not run has no host. The name of a task ends in its index.
"""

ONLY_ID = re.compile(r"(?P<id>\d+) *")
"""A row of ``bjobs -o jobid``."""

ABSENT = re.compile(
    r"(?:Job <.*> is not found|No (?:[^ ]+ )?job found|.*: No matching job found)\.?"
)
"""What is printed about a job that LSF does not know, or no more."""

WAITING = re.compile(
    r"not responding|still trying|Please wait|LSF is down|Cannot connect to LSF|is down; try later"
)
"""What LSF's programs print while they wait for its daemons, before the answer or for ever."""

_STAMP = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?: \d{4})?: ?(.*)")
_HEAD = re.compile(r"Job (?:Id )?<(\d+)(?:\[(\d+)\])?>, .*")
_REST = re.compile(
    "| .*|-+|[A-Z]{2}.*|(?:Combined|Effective): .*|"
    "Summary of time in seconds spent in various states.*"
)
"""The lines of a history that are no events: limits, usage, requirements, sums."""
_END = re.compile(r"(Done successfully|Exited)(?: with exit code (\d+)| by signal (\d+))?")
_RUN_LIMIT = re.compile(r"^ RUNLIMIT *\n *([\d.]+) min", re.MULTILINE)
_RUN_TIME = re.compile(r"^ +PEND +PSUSP +RUN .*\n *\d+ +\d+ +(\d+)", re.MULTILINE)
_AT_THE_LIMIT = 140
"""128 + SIGUSR2: how the script's shell ends at the run limit where LSF gives no reason."""


@cache  # logs once per process and word
def _unknown(word: str) -> tuple[Status, Reason]:
    status = Status.PENDING if re.search("PEND|SUSP|WAIT", word) else Status.RUNNING
    logger.warning("LSF's job state %r is not known; taken as %s", word, status.name)
    return status, Reason.NONE


def infos(output: Output, row: re.Pattern[str]) -> list[JobInfo]:
    """Read the states in the rows of bjobs, as `rows` does."""
    return [_info(match) for match in rows(output, row)]


def rows(output: Output, row: re.Pattern[str]) -> list[re.Match[str]]:
    """Pick the rows of bjobs; jobs that it does not know are left out.

    Its exit code says nothing: with LSB_BJOBS_CONSISTENT_EXIT_CODE it is 255 when all went well.

    Raises:
        SchedulerUnavailableError: nothing but notes that it waits.
        ParseError: a line that is neither a row nor a note.
    """
    found, absent, waiting = [], False, False
    for line in [*output.stdout.splitlines(), *output.stderr.splitlines()]:
        if match := row.fullmatch(line):
            found += [match] if match["id"] else []
        elif ABSENT.fullmatch(line):
            absent = True
        elif WAITING.search(line):
            waiting = True
        elif line.strip():
            raise ParseError(f"a line of bjobs is not understood: {line}", output)
    if waiting and not found and not absent:
        raise SchedulerUnavailableError("LSF does not answer", output)
    if output.exit_code and not found and not absent:
        raise ParseError("bjobs failed without a word", output)
    return found


def _info(match: re.Match[str]) -> JobInfo:
    fields = match.groupdict()
    word, index = fields["state"], fields["index"]
    status, reason = STATES.get(word) or _unknown(word)
    why = (fields.get("why") or "").strip().strip("-")
    code = fields.get("code") or "-"
    exit_code = 0 if status is Status.COMPLETED else None
    if word == "EXIT":
        exit_code = None if code == "-" else int(code)
        status, reason = _ended(why, exit_code, None)
    hosts = re.sub(r"\b\d+\*", "", fields.get("hosts") or "-").split(":")
    return JobInfo(
        job_id=fields["id"],
        status=status,
        task=int(index) if index and index.strip("-0") else None,
        native=word,
        reason=reason,
        message=why if word == "EXIT" else "",
        exit_code=exit_code,
        nodes=tuple(dict.fromkeys(host for host in hosts if host not in ("-", ""))),
    )


def _ended(why: str, exit_code: int | None, signal: int | None) -> tuple[Status, Reason]:
    """Tell how a job ended badly: LSF's word for the reason counts most."""
    term = re.search(r"TERM_[A-Z_]+", why)
    if term and term[0] in TERMINATED:
        return TERMINATED[term[0]]
    if signal:
        return Status.FAILED, Reason.SIGNALED
    return Status.FAILED, Reason.NONZERO_EXIT if exit_code else Reason.NONE


def histories(output: Output) -> list[JobInfo]:
    """Read the histories that ``bhist -l`` prints.

    Raises:
        SchedulerUnavailableError: nothing but notes that it waits.
        ParseError: a line that has no place in a history.
    """
    # Long lines are broken in mid-word and go on behind 21 blanks.
    text = re.sub(r"\n {21}", "", output.stdout)
    preface, *blocks = re.split(r"^(?=Job <|Job Id <)", text, flags=re.MULTILINE)
    notes = [line for line in [*preface.splitlines(), *output.stderr.splitlines()] if line.strip()]
    absent = [line for line in notes if ABSENT.fullmatch(line)]
    for line in notes:
        if not (line in absent or WAITING.search(line) or set(line) == {"-"}):
            raise ParseError(f"a line of bhist is not understood: {line}", output)
    if not blocks and not absent and (notes or output.exit_code):
        raise SchedulerUnavailableError("LSF does not answer", output)
    return [_history(block, output) for block in blocks]


def _history(block: str, output: Output) -> JobInfo:
    """Read the history of one job or task: its last end, unless it began again."""
    first, *lines = block.splitlines()
    head = _HEAD.fullmatch(first)
    events = [match[1] for line in lines if (match := _STAMP.fullmatch(line))]
    strange = [line for line in lines if not _STAMP.fullmatch(line) and not _REST.fullmatch(line)]
    if head is None or strange or not events:
        raise ParseError(f"a history of bhist is not understood: {(strange or [first])[0]}", output)
    word, why, killed, exit_code, signal = "PEND", "", False, None, None
    for event in events:
        if end := _END.match(event):
            word = "DONE" if end[1] == "Done successfully" else "EXIT"
            exit_code = 0 if word == "DONE" else int(end[2]) if end[2] else None
            signal = int(end[3]) if end[3] else None
        elif re.match(r"Start|Dispatched|Running|\[\d+\] started", event):
            word = "RUN"
        elif re.match(r"Requeue|Pending|Job has been requeued", event):
            word, killed = "PEND", False
        killed = killed or event.startswith("Signal <KILL> requested by user")
        why = event if "TERM_" in event else why
    status, reason = STATES[word]
    if word == "EXIT":
        status, reason = _ended(why, exit_code, signal)
        if killed and not why:
            status, reason = Status.CANCELLED, Reason.NONE
        elif not why and (exit_code == _AT_THE_LIMIT or signal) and _over_run_limit(block):
            status, reason = Status.FAILED, Reason.TIMEOUT
    return JobInfo(
        job_id=head[1],
        status=status,
        task=int(head[2]) if head[2] else None,
        native=word,
        reason=reason,
        message=why.rstrip(";") if word == "EXIT" else "",
        exit_code=exit_code if status.ended else None,
        signal=signal if status.ended else None,
    )


def _over_run_limit(block: str) -> bool:
    limit, run = _RUN_LIMIT.search(block), _RUN_TIME.search(block)
    return bool(limit and run and int(run[1]) >= float(limit[1]) * 60)
