"""The embedded scheduler (`cjdask.embedded`): batch jobs on a machine that has no scheduler."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cjdask.backends.base import BatchBackend
from cjdask.command import Command, Output
from cjdask.errors import (
    ParseError,
    ResourcesNotSupportedError,
    SchedulerError,
    SchedulerUnavailableError,
    SubmitError,
)
from cjdask.resources import Resources, clock
from cjdask.status import JobInfo, Reason, Status

__all__ = ["LocalBackend"]

PROGRAM = Path(__file__).parent.parent / "embedded.py"

NATIVE = {"simulate_nodes": "--simulate-nodes", "comment": "--comment"}
"""Options of the embedded scheduler beside the common ones."""

UNAVAILABLE = 3
"""Its exit code where the folder with its state cannot be used."""


class LocalBackend(BatchBackend):
    """Slots of this machine: as many as it has cores, first come first served.

    ``mem`` is noted but not enforced. ``nodes`` above 1 is refused unless the native option
    ``simulate_nodes=True`` asks for nodes that are all this machine.
    """

    name = "local"
    extension = "sh"
    prefix = "#CJ"
    programs = ()
    poll_interval = 0.25
    own_id = "${CJ_ARRAY_JOB_ID:-$CJ_JOB_ID}"
    max_array_size = 10000
    task_mark = "%a"
    job_vars: ClassVar = {
        "CLUSTERJOB_ID": "CJ_JOB_ID",
        "CLUSTERJOB_WORKDIR": "CJ_SUBMIT_DIR",
        "CLUSTERJOB_SUBMIT_HOST": "CJ_SUBMIT_HOST",
        "CLUSTERJOB_NAME": "CJ_JOB_NAME",
        "CLUSTERJOB_NODELIST": "CJ_NODELIST",
        "CLUSTERJOB_ARRAY_INDEX": "CJ_ARRAY_INDEX",
    }

    def __init__(self, python: str = sys.executable, program: str = str(PROGRAM)) -> None:
        self._program = (python, "-E", "-s", "-S", program)

    def headers(self, resources: Resources) -> list[str]:
        lines = []
        for key in resources.given():
            value: Any
            if key in resources.native:
                option, value = self._native(key), resources.native[key]
            else:
                option, value = f"--{key}", getattr(resources, key)
            if key == "time":
                value = clock(value)
            elif key == "depends":
                value = ",".join(value)
            text = option if value is True else f"{option}={shlex.quote(str(value))}"
            lines.append(f"{self.prefix} {text}")
        return lines

    def _native(self, key: str) -> str:
        if key not in NATIVE:
            raise ResourcesNotSupportedError(
                f"{key!r} is no option of the embedded scheduler (backend 'local'); "
                f"beside the common keys it has {', '.join(sorted(NATIVE))}"
            )
        return NATIVE[key]

    def launcher(self, resources: Resources, command: str) -> str:
        return shlex.join([*self._program, "launch", "--", "/bin/bash", "-c", command])

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        name = resources.jobname or "job"
        default = "%x-%j.out" if task is None else "%x-%A_%a.out"
        stdout = resources.stdout or default
        path = stdout if stream == "stdout" else resources.stderr or stdout
        whole = job_id if task is None else self.task_id(job_id, task)
        values = {"j": whole, "A": job_id, "a": "" if task is None else str(task), "x": name}
        return re.sub("%([jAax%])", lambda m: {**values, "%": "%"}[m[1]], path)

    def submit_command(self, resources: Resources, script: str) -> Command:
        return Command((*self._program, "submit", script))

    def parse_submit(self, output: Output) -> str:
        if output.exit_code == UNAVAILABLE:
            raise SchedulerUnavailableError("the embedded scheduler cannot work", output)
        if output.exit_code != 0:
            raise SubmitError("the embedded scheduler refused the job", output)
        try:
            return str(json.loads(output.stdout)["id"])
        except (ValueError, TypeError, KeyError):
            raise ParseError("no job id in the answer", output) from None

    def query_command(self, ids: Sequence[str]) -> Command:
        return Command.ask(*self._program, "query", *ids)

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        if output.exit_code != 0:
            raise SchedulerUnavailableError("the embedded scheduler cannot be asked", output)
        rows = []
        for line in output.stdout.splitlines():
            try:
                row = _info(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ParseError(f"a line is not understood ({error!r}): {line}", output) from None
            if row is not None:
                rows.append(row)
        return rows

    def cancel_command(self, ids: Sequence[str]) -> Command:
        return Command.ask(*self._program, "cancel", *ids)

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        if output.exit_code == UNAVAILABLE:
            raise SchedulerUnavailableError("the embedded scheduler cannot work", output)
        if output.exit_code != 0:
            raise SchedulerError("the embedded scheduler did not cancel", output)

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add the tag to the job's comment."""
        return {**resources, "comment": f"{resources.get('comment') or ''} {tag}".lstrip()}

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        return (Command.ask(*self._program, "query", "--all"),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        self.parse_query(output, ())  # for what is wrong with it
        rows = map(json.loads, output.stdout.splitlines())
        found = [row for row in rows if tag in row.get("comment", "")]
        return str(found[0]["array_id"] or found[0]["id"]) if found else None

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}_{task}"


def _info(row: dict[str, Any]) -> JobInfo | None:
    """Read one record of the query command; ``None`` for a job that it does not know."""
    if row["state"] == "UNKNOWN":
        return None
    index = row["array_index"]
    known = {reason.value for reason in Reason}
    told = row["reason"] in ("NONZERO_EXIT", "SIGNALED")  # the code and the signal say it all
    return JobInfo(
        job_id=row["id"] if index is None else row["array_id"],
        status=Status[row["state"]],
        task=index,
        native=row["state"],
        reason=Reason(row["reason"]) if row["reason"] in known else Reason.NONE,
        message="" if told else row["message"] or ("" if row["reason"] in known else row["reason"]),
        exit_code=row["exit_code"],
        signal=row["signal"],
        nodes=tuple(row["nodes"]),
        submit_time=row["submit_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
    )
