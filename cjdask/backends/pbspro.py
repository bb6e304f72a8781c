"""The PBS Pro backend, for PBS Professional and OpenPBS.

Facts are from qsub(1B), qstat(1B) and pbs_resources(7B) of OpenPBS 23.06, its sources, and
dialogues with it that are kept in ``tests/transcripts/pbspro``.
"""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from email.utils import parsedate
from typing import Any, ClassVar

from cjdask.backends.pbs_common import (
    PbsBackend,
    among,
    check,
    hosts,
    misunderstood,
    split_id,
    state_of,
    verdict,
)
from cjdask.command import Command, Output
from cjdask.errors import SchedulerError
from cjdask.resources import ArraySpec, Resources
from cjdask.status import JobInfo, Reason, Status

__all__ = ["PbsProBackend"]

OWN_CODES = {
    -24: Reason.NONE,  # more cores used than asked for
    -25: Reason.NONE,
    -26: Reason.OUT_OF_MEMORY,
    -27: Reason.OUT_OF_MEMORY,
    -28: Reason.TIMEOUT,
    -29: Reason.TIMEOUT,
}
"""Why PBS ended a job, by its ``Exit_status`` (``JOB_EXEC_KILL_*`` in job.h)."""

HELD_BY_DEPENDENCY = 22
DELETED = 91
"""Two of the numbers in ``substate`` (job.h); the second is of a job that ``qdel`` ended."""

_FIND = """
set -f; since=$(date -d "@$(($(date +%s) - {age}))" +%Y%m%d%H%M);
ids=$(qselect {history} -u "$(id -un)" "-tc.gt.$since") || exit;
[ -z "$ids" ] || exec qstat -E {history} -f -F dsv $ids
"""

_CLOCKS = 86400
"""Seconds by which the clocks of two machines, or an idea of a time zone, may differ."""

UNKNOWN, FINISHED = 15001 % 256, 15139 % 256
"""Exit codes of qstat: no such job; a job that ended, asked for without ``-x``."""


class PbsProBackend(PbsBackend):
    """PBS Professional and OpenPBS.

    Whether the server remembers ended jobs is found out once. Where it does, a job stays
    listed with its end for two weeks or what the site has set; where it does not, an ended job
    is just not listed any more.
    """

    name = "pbspro"
    programs = ("qsub", "qstat", "qdel", "pbsdsh", "pbs_tmrsh")
    job_vars: ClassVar[Mapping[str, str]] = {
        **PbsBackend.job_vars,
        "CLUSTERJOB_ARRAY_INDEX": "PBS_ARRAY_INDEX",
    }
    max_array_size = 10000
    # pbsdsh always ends with 0.
    starter = "pbs_tmrsh {host} {program}"

    def __init__(self, history: bool = True) -> None:
        self._history = history

    # -- rendering -----------------------------------------------------------------------------

    def size_options(self, resources: Resources) -> list[str]:
        ppn, threads = resources.ppn or 1, resources.threads or 1
        nodes = resources.nodes or 1
        chunk = f"{nodes}:ncpus={ppn * threads}:mpiprocs={ppn}:ompthreads={threads}"
        chunk += f":ngpus={resources.gpus}" if resources.gpus else ""
        chunk += f":mem={resources.mem}mb" if resources.mem else ""
        # Without scatter PBS puts all chunks on one host if they fit.
        place = (["scatter"] if nodes > 1 else []) + (["exclhost"] if resources.exclusive else [])
        return [f"-l select={chunk}", *([f"-l place={':'.join(place)}"] if place else [])]

    def array_option(self, array: ArraySpec) -> str:
        first, last = array.indices[0], array.indices[-1]
        step = array.indices[1] - first if len(array) > 1 else 0
        if not step or array.indices != tuple(range(first, last + 1, step)):
            raise self.refusal(
                "array",
                f"{array} is not at least two tasks at equal distances, as PBS Pro's arrays are; "
                "submit a single task without array=..., others as several arrays",
            )
        text = f"-J {first}-{last}" + (f":{step}" if step > 1 else "")
        return text + (f"%{array.limit}" if array.limit else "")

    def depends_option(self, ids: Sequence[str]) -> str:
        return f"-W depend=afterok:{':'.join(ids)}"

    def _given_path(self, path: str, resources: Resources) -> str:
        """Add the index of the task to a path without one: the tasks share the path else."""
        if resources.array is None or "^array_index^" in path or path.endswith("/"):
            return path
        return f"{path}.^array_index^"

    def task_path(self, path: str, task: str) -> str:
        if "^array_index^" in path:
            return path.replace("^array_index^", task)
        return f"{path}.{task}"

    # -- finding out ---------------------------------------------------------------------------

    def probe_commands(self) -> Sequence[Command]:
        return (Command.ask("qstat", "-B", "-f", "-F", "json"),)

    def probed(self, outputs: Sequence[Output]) -> PbsProBackend:
        """Learn from the server's attributes whether it keeps history, and how long arrays are."""
        check(outputs[0], self.name, ())
        try:
            server, *_ = _json(outputs[0])["Server"].values()
            found = copy(self)
            found._history = str(server.get("job_history_enable")) == "True"
            size = int(server.get("max_array_size", self.max_array_size))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            misunderstood(self.name, repr(error), outputs[0])
        found.max_array_size = size
        return found

    # -- asking --------------------------------------------------------------------------------

    def query_command(self, ids: Sequence[str]) -> Command:
        """Ask for queued and ended jobs and all tasks at once, as JSON.

        ``-E`` sends all ids to the server in one question (qstat(1B), since 18.1; known from the
        manual and the source, the recorded dialogues are without it). Else each id has a
        connection of its own, until the reserved ports run out (50 ids took 0.3 s, at times
        39 s), and ``-F json`` prints but the first (OpenPBS after 23.06, issue 2672). Without
        ids the jobs of all users would be sent, and ``-u`` excludes JSON. Times are printed
        without their zone, so it is set.
        """
        history = ("-x",) if self._history else ()
        return Command.ask(
            "qstat", "-E", *history, "-t", "-f", "-F", "json", *ids, env={"TZ": "UTC"}
        )

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        """Read the records. That a job is missing means nothing: unknown ids are left out."""
        if "not configured to maintain job history" in output.stderr:
            raise SchedulerError(
                "pbspro: the server was told to keep no history of jobs, so that it does not "
                "answer; start this program anew to ask without",
                output,
            )
        check(output, self.name, (UNKNOWN, FINISHED))
        try:
            jobs = _json(output).get("Jobs", {})
            found = [_info(name, job) for name, job in jobs.items()]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            misunderstood(self.name, repr(error), output)
        return among(found, ids)

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask for the jobs of this user that are new enough, with all that they show.

        The form for other programs (``dsv``) has a line for each job, line breaks in values are
        escaped. qselect has the ids (qselect(1B)); without them qstat would send the jobs of all
        users, of the two weeks that a server remembers.
        """
        history = "-x" if self._history else ""
        script = _FIND.format(history=history, age=int(age) + _CLOCKS)
        return (Command.ask("/bin/sh", "-c", " ".join(script.split())),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        check(output, self.name, (UNKNOWN, FINISHED))
        records = []
        for line in output.stdout.splitlines():
            match = re.match(r"Job Id: ([^|]+)\|", line)
            if not match:
                misunderstood(self.name, line, output)
            records.append((match[1], line))
        return self.found(records, tag)


def _json(output: Output) -> dict[str, Any]:
    """Read JSON of qstat, also where it is none.

    PBS passes bytes of variables on as they are. Until 2023 it printed values that look like
    numbers but are none in JSON (``005``, ``.5``; openpbs issues 1255 and 2603), until 2020
    backslashes as they came (pull request 2049).
    """
    text = output.raw_stdout.decode("utf-8", "replace")
    try:
        found = json.loads(text, strict=False)
    except ValueError:
        bare = r'^(\s*"(?:[^"\\\n]|\\.)*":[ \t]*)([^\s"{\[][^"\n]*?)(,?)[ \t]*$'
        text = re.sub(bare, r'\1"\2"\3', text, flags=re.MULTILINE)
        known = re.compile(r'["\\/bfnrt]|u[0-9a-fA-F]{4}')
        text = re.sub(
            r"\\(u[0-9a-fA-F]{4}|.)", lambda m: m[0] if known.fullmatch(m[1]) else m[1], text
        )
        found = json.loads(text, strict=False)
    if "pbs_version" not in found:
        raise ValueError("no answer of PBS")
    return dict(found)


def _info(name: str, job: Mapping[str, Any]) -> JobInfo:
    """Make the record of one job, array or task.

    ``Exit_status`` is read only where the job has ended: a queued task shows that of its array.
    """
    _, job_id, task = split_id(name)
    word, comment = job["job_state"], str(job.get("comment", ""))
    substate = int(job.get("substate", 0))
    exit_code = signal = None
    if word not in ("F", "X"):
        status, reason = state_of(word)
        if substate == HELD_BY_DEPENDENCY:
            reason = Reason.DEPENDENCY
    elif substate == DELETED:
        # Whatever the exit status: that of root's jobs is 0 then, others may be their array's.
        status, reason = Status.CANCELLED, Reason.NONE
    elif "Exit_status" in job:
        status, reason, exit_code, signal = verdict(int(job["Exit_status"]), OWN_CODES)
        if status is Status.CANCELLED and substate:
            status, reason = Status.FAILED, Reason.SIGNALED  # it was not qdel
    elif "stime" in job:
        status, reason = Status.FAILED, Reason.LAUNCH_FAILURE
    else:
        # It never ran and nobody deleted it: a job that it depends on failed or is not there.
        status, reason = Status.CANCELLED, Reason.DEPENDENCY
    return JobInfo(
        job_id=job_id,
        status=status,
        task=task,
        native=word,
        reason=reason,
        message="" if status in (Status.RUNNING, Status.COMPLETED) else comment,
        exit_code=exit_code,
        signal=signal,
        nodes=hosts(str(job.get("exec_host", ""))),
        submit_time=_time(job.get("ctime")),
        start_time=_time(job.get("stime")),
        end_time=_time(job.get("obittime")) if status.ended else None,
    )


def _time(text: str | None) -> float | None:
    """Read a time such as ``Sat Nov 21 01:02:50 2026``, in UTC."""
    if text is None:
        return None
    parsed = parsedate(text)
    if parsed is None:
        raise ValueError(f"{text!r} is no time")
    return float(calendar.timegm(parsed))
