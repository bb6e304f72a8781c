"""The OAR backend.

Facts are from the manual pages and the source of OAR 2.5.9 and were checked on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from logging import getLogger
from typing import Any, ClassVar

from cjdask.backends.base import BatchBackend
from cjdask.backends.launching import launch
from cjdask.backends.oar_options import headers
from cjdask.command import Command, Output
from cjdask.errors import (
    ParseError,
    ResourcesNotSupportedError,
    SchedulerError,
    SchedulerUnavailableError,
    SubmitError,
)
from cjdask.resources import Resources
from cjdask.status import JobInfo, Reason, Status

__all__ = ["OarBackend"]

logger = getLogger(__name__)

STATES: dict[str, tuple[Status, Reason]] = {
    "Error": (Status.FAILED, Reason.NONE),
    "Finishing": (Status.RUNNING, Reason.NONE),
    "Hold": (Status.PENDING, Reason.HELD),
    "Launching": (Status.PENDING, Reason.NONE),
    "Resuming": (Status.PENDING, Reason.SUSPENDED),
    "Running": (Status.RUNNING, Reason.NONE),
    "Suspended": (Status.PENDING, Reason.SUSPENDED),
    "Terminated": (Status.COMPLETED, Reason.NONE),
    "Waiting": (Status.PENDING, Reason.NONE),
    "toAckReservation": (Status.PENDING, Reason.NONE),
    "toError": (Status.RUNNING, Reason.NONE),
    "toLaunch": (Status.PENDING, Reason.NONE),
}
"""Every state of the table of jobs (pg_structure.sql)."""

EVENTS: dict[str, tuple[Status, Reason]] = {
    "WALLTIME": (Status.FAILED, Reason.TIMEOUT),
    "BESTEFFORT_KILL": (Status.FAILED, Reason.PREEMPTED),
    "FRAG_JOB_REQUEST": (Status.CANCELLED, Reason.NONE),
    "WORKING_DIRECTORY": (Status.FAILED, Reason.LAUNCH_FAILURE),
    "OUTPUT_FILES": (Status.FAILED, Reason.LAUNCH_FAILURE),
    "CPUSET_ERROR": (Status.FAILED, Reason.NODE_FAIL),
    "PING_CHECKER_NODE_SUSPECTED": (Status.FAILED, Reason.NODE_FAIL),
}
"""What the events of a job in state Error tell, what counts most first. The walltime and the
end of a besteffort job are carried out by a kill request, as a cancel is."""

_CLOCKS = 86400
"""Seconds by which the clocks of two machines may differ."""

_UNAVAILABLE = re.compile(
    "[Cc]onnection refused|could not connect|DB connection error|Cannot connect|"
    "could not translate host|No route to host|timeout expired|server closed the connection"
)


class OarBackend(BatchBackend):
    """OAR.

    A job runs the script file itself, not a copy: it must stay as it is until the job starts.
    OAR passes no environment on to the job.

    Args:
        memory: the property that has the memory of a node in MB, such as ``memnode``; with it
            ``mem`` can be asked for. Sites name it as they like, or have none.
    """

    name = "oar"
    extension = "oar"
    prefix = "#OAR"
    programs = ("oarsub", "oarstat", "oardel")
    own_id = "$OAR_ARRAY_ID"  # a task has an id of its own
    max_array_size = 10000  # OAR has no limit; what one command line and one answer bear
    task_mark = "%jobid%"
    job_vars: ClassVar = {
        "CLUSTERJOB_ID": "OAR_JOB_ID",
        "CLUSTERJOB_WORKDIR": "OAR_WORKING_DIRECTORY",
        "CLUSTERJOB_SUBMIT_HOST": '$(: "OAR does not tell the host of the submission")',
        "CLUSTERJOB_NAME": "OAR_JOB_NAME",
        "CLUSTERJOB_NODELIST": '$(uniq "$OAR_NODEFILE")',
        "CLUSTERJOB_ARRAY_INDEX": "OAR_ARRAY_INDEX",
    }

    def __init__(self, memory: str | None = None) -> None:
        self.memory = memory

    # -- rendering ---------------------------------------------------------------------------

    def headers(self, resources: Resources) -> list[str]:
        return headers(resources, self.prefix, self.memory)

    def launcher(self, resources: Resources, command: str) -> str:
        """Run the command on this node, on others with ``oarsh``, which passes exit codes on."""
        return launch(
            resources,
            command,
            hosts='uniq "$OAR_NODEFILE"',
            start="oarsh {host} {program}",
            own=("OAR_RESOURCE_FILE", "OAR_CPUSET"),
        )

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        """Return where a job writes: ``OAR.NAME.ID.stdout`` in its folder unless it is told.

        The tasks of an array are jobs whose ids follow each other (they are inserted into the
        database by one statement, OAR/IO.pm).
        """
        name = f".{resources.jobname}" if resources.jobname else ""
        path = getattr(resources, stream) or f"OAR{name}.%jobid%.{stream}"
        own_id = job_id if task is None else str(int(job_id) + task - 1)
        return str(path).replace("%jobid%", own_id).replace("%jobname%", resources.jobname or "")

    # -- asking ------------------------------------------------------------------------------

    def submit_command(self, resources: Resources, script: str) -> Command:
        if not re.fullmatch(r"[\w./+-]+", script):
            raise ResourcesNotSupportedError(
                f"filename={script!r}: OAR (backend 'oar') takes the name of a script for a shell "
                "command; use letters, digits and ._/+- only"
            )
        path = script if "/" in script else f"./{script}"
        return Command(("oarsub", "-S", path), drop=("OAR_JOB_KEY_FILE",))

    def parse_submit(self, output: Output) -> str:
        """Read the job's id, for an array that of the array; it is below 0 for a refused job."""
        ids = re.findall(r"^OAR_(?:ARRAY|JOB)_ID=([0-9]+)$", output.stdout, re.MULTILINE)
        if output.exit_code == 0 and ids:
            return str(ids[-1] if "OAR_ARRAY_ID=" in output.stdout else ids[0])
        if _UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("OAR does not answer", output)
        if output.exit_code == 0:
            raise ParseError("oarsub names no job id, and may have submitted the job", output)
        raise SubmitError("OAR did not accept the job", output)

    def query_command(self, ids: Sequence[str]) -> Command:
        """Ask for the jobs by the array that each is in, if it be one of itself alone.

        ``--array`` takes one id, and ``-j`` the ids of tasks only. Ended jobs are listed for
        ever.
        """
        return Command.ask("oarstat", "-f", "-J", "--sql", _where(ids))

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        if _UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("OAR does not answer", output)
        if output.exit_code != 0:
            raise SchedulerError("oarstat failed", output)
        try:
            rows = json.loads(output.stdout or "{}")
            return [_info(row) for _, row in sorted(rows.items(), key=lambda job: int(job[0]))]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ParseError(
                f"the answer of oarstat is not understood ({error!r})", output
            ) from None

    def cancel_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("oardel", "--sql", _where(ids))

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        if _UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("OAR does not answer", output)
        lines = [line for line in output.stderr.splitlines() if line.strip()]
        if not all("already killed" in line for line in lines) or (output.exit_code and not lines):
            raise SchedulerError("OAR did not cancel all jobs", output)

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask for the job whose command is the script with the tag in its name.

        Its name and project stay what they are. OAR keeps its jobs for ever, so that only the
        new ones are looked through.
        """
        since = f"$(($(date +%s) - {int(age) + _CLOCKS}))"
        which = f"command LIKE '%{tag}%' AND submission_time >= {since}"
        return (Command.ask("/bin/sh", "-c", f'exec oarstat -f -J --sql "{which}"'),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        found = self.parse_query(output, ())
        return found[0].job_id if found else None

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}[{task}]"


def _where(ids: Sequence[str]) -> str:
    """Return the condition on OAR's table of jobs for these jobs, arrays and tasks.

    Raises:
        ValueError: an id that is none, or none at all.
    """
    wholes, tasks = [], []
    for name in ids:
        match = re.fullmatch(r"([0-9]+)(?:\[([0-9]+)\])?", name)
        if not match:
            raise ValueError(f"{name!r} is no id of an OAR job")
        if match[2]:
            tasks.append(f"(array_id = {match[1]} AND array_index = {match[2]})")
        else:
            wholes.append(match[1])
    whole = [f"array_id IN ({', '.join(wholes)})"] if wholes else []
    if not ids:
        raise ValueError("no job ids: OAR would take all jobs that there are")
    return " OR ".join([*whole, *tasks])


@cache  # logs once per process and word
def _unknown(word: str) -> tuple[Status, Reason]:
    logger.warning("OAR's job state %r is not known; taken as RUNNING", word)
    return Status.RUNNING, Reason.NONE


def _info(row: dict[str, Any]) -> JobInfo:
    """Make the record of one job; ``initial_request`` tells an array of one from a single job."""
    word, code = row["state"], row["exit_code"]
    status, reason = STATES.get(word) or _unknown(word)
    message = row["message"] if status is Status.PENDING else ""
    message = "" if message.startswith("R=") else message  # just what was asked for
    exit_code = signal = None
    if word == "Terminated" and code is not None:  # a wait status
        signal = code & 0x7F or None
        exit_code = None if signal else code >> 8
        if code:
            status = Status.FAILED
            reason = Reason.SIGNALED if signal else Reason.NONZERO_EXIT
    elif word == "Terminated":
        status, message = Status.FAILED, "OAR has no exit code of the job"
    elif word == "Error":
        status, reason, message = _why(row)
    if status is Status.PENDING and "due to dependency" in message:
        reason = Reason.DEPENDENCY
    in_array = re.search(r"--array[ =][0-9]|--array-param-file", row["initial_request"])
    return JobInfo(
        job_id=str(row["array_id"]),
        status=status,
        task=int(row["array_index"]) if in_array else None,
        native=word,
        reason=reason,
        message=message,
        exit_code=exit_code,
        signal=signal,
        nodes=tuple(dict.fromkeys(row["assigned_network_address"])),
        submit_time=_time(row["submissionTime"]),
        start_time=_time(row["startTime"]),
        end_time=_time(row["stopTime"]) if status.ended else None,
    )


def _time(seconds: int) -> float | None:
    return float(seconds) if seconds else None


def _why(row: dict[str, Any]) -> tuple[Status, Reason, str]:
    """Tell from its events why a job is in state Error: killed, or never started."""
    events = {event["type"]: event["description"] for event in row["events"]}
    for kind, (status, reason) in EVENTS.items():
        if kind in events:
            return status, reason, events[kind]
    return Status.FAILED, Reason.LAUNCH_FAILURE, "; ".join(events.values()) or row["message"]
