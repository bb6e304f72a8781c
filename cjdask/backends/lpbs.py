"""The LPBS backend: jobs on one workstation with the commands of PBS.

Facts are from LPBS 0.9.1 (its sources, and dialogues with it that are kept in
``tests/transcripts/lpbs``). It needs Python 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from cjdask.backends.launching import local_processes
from cjdask.backends.pbs_common import PbsBackend, among, misunderstood, split_id, state_of
from cjdask.command import Command, Output
from cjdask.errors import SchedulerError, SubmitError
from cjdask.resources import ArraySpec, Resources
from cjdask.status import JobInfo, Reason, Status

__all__ = ["LpbsBackend"]

_LOGGED = re.compile(
    r"(?P<time>\d\d/\d\d/\d{4} \d\d:\d\d:\d\d [+-]\d{4}): "
    r"(?P<what>Submitted|Finished|Canceled|Failed to submit|Sent signal \d+ to) "
    r"job (?P<id>[^\s:]+)(?: with status (?P<code>-?\d+))?(?P<more>.*)"
)


class LpbsBackend(PbsBackend):
    """LPBS, which starts every job at once on this machine.

    It enforces neither walltime nor memory, and has neither arrays nor dependencies. Two jobs must
    not be submitted at the same time (its counter is not locked). ``LPBS_HOME`` and ``SHELL``
    must be set where its commands run.
    """

    name = "lpbs"
    programs = ("lqsub", "lqstat", "lqdel")
    max_array_size = None
    # Without -w a child holds the output open for 30 s; then it ends what is left of the job.
    qdel: ClassVar[tuple[str, ...]] = ("lqdel", "-w", "1")

    # -- rendering -----------------------------------------------------------------------------

    def size_options(self, resources: Resources) -> list[str]:
        if (resources.nodes or 1) > 1:
            raise self.refusal("nodes", "LPBS is for one machine; give nodes=1 or leave it out")
        if resources.gpus:
            raise self.refusal("gpus", "jobs can use all GPUs of the machine; leave it out")
        if resources.exclusive:
            raise self.refusal("exclusive", "LPBS starts every job at once; leave it out")
        mem = [f"-l mem={resources.mem}mb"] if resources.mem else []
        return [*mem, f"-l nodes=1:ppn={resources.cores_per_node}"]

    def array_option(self, array: ArraySpec) -> str:
        raise self.refusal("array", "LPBS has no arrays; submit each task as a job")

    def depends_option(self, ids: Sequence[str]) -> str:
        raise self.refusal("depends", "LPBS would ignore it; wait for the jobs and submit then")

    def _native(self, key: str, value: str | float) -> str:
        if (key.removeprefix("-"), value) == ("j", "eo"):
            raise self.refusal(key, "lqsub fails at '-j eo'; give j='oe'")
        return super()._native(key, value)

    def task_path(self, path: str, task: str) -> str:
        raise self.refusal("array", "LPBS has no arrays; submit each task as a job")

    def launcher(self, resources: Resources, command: str) -> str:
        self.size_options(resources)  # refuses several nodes
        return local_processes(resources.processes, command)

    # -- asking --------------------------------------------------------------------------------

    def submit_command(self, resources: Resources, script: str) -> Command:
        return Command(("lqsub", script))

    def parse_submit(self, output: Output) -> str:
        """Read the id. It is printed also where the job's own process fails to start the job."""
        if "Traceback" in output.stderr or not output.stdout.strip():
            words = output.stderr.strip().splitlines() or ["it gave no reason"]
            raise SubmitError(f"lpbs did not accept the job: {words[-1]}", output)
        return super().parse_submit(output)

    def query_command(self, ids: Sequence[str]) -> Command:
        """Ask for all jobs: ids would be compared by their beginnings only."""
        return Command.ask("lqstat", "-f")

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        try:
            found = [_running(name, job) for name, job in self._listed(output).items()]
            return among(found, ids)
        except (KeyError, ValueError) as error:
            misunderstood(self.name, repr(error), output)

    def _listed(self, output: Output) -> dict[str, dict[str, str]]:
        """Read the attributes of all running jobs."""
        if output.exit_code != 0:
            raise SchedulerError("lpbs: lqstat failed", output)
        jobs: dict[str, dict[str, str]] = {}
        fields: dict[str, str] | None = None
        for line in output.stdout.splitlines():
            if match := re.fullmatch(r"Job Id: (\S+)", line):
                fields = jobs[match[1]] = {}
            elif (match := re.fullmatch(r"    ([\w.]+) = (.*)", line)) and fields is not None:
                fields[match[1]] = match[2]
            elif line.strip():
                misunderstood(self.name, line, output)
        return jobs

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add the tag to the job's name: lqstat shows nothing else that could hold it."""
        return {**resources, "jobname": f"{resources.get('jobname') or 'job'}.{tag}"}

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask for running jobs; of those that ended the log has nothing but the id."""
        return (self.query_command(()),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        jobs = self._listed(output).items()
        return self.found(((name, job.get("Job_Name", "")) for name, job in jobs), tag)

    def ended_command(self, ids: Sequence[str]) -> Command:
        """Search the log of LPBS, the only place that tells how a job ended."""
        patterns = [word for job_id in ids for word in ("-e", f" job {job_id}")]
        search = 'exec grep -F "$@" "$LPBS_HOME/lpbs.log"'
        return Command.ask("/bin/sh", "-c", search, "grep", *patterns)

    def parse_ended(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        if output.exit_code not in (0, 1):  # 1: no line was found
            raise SchedulerError("lpbs: its log cannot be read; is LPBS_HOME set?", output)
        found: dict[str, JobInfo] = {}
        for line in output.stdout.splitlines():
            match = _LOGGED.fullmatch(line)
            if not match:
                misunderstood(self.name, line, output)
            if info := _ended(match):
                found[info.job_id] = info
        return among(found.values(), ids)

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        """Take the failure of ``lqdel`` for a job that is not there any more as a success."""
        errors = re.findall(r"^\w+Error: .*", output.stderr, re.MULTILINE)
        if output.exit_code == 0 or (errors and all("'NoneType'" in line for line in errors)):
            return
        raise SchedulerError("lpbs did not cancel all jobs", output)


def _running(name: str, job: dict[str, str]) -> JobInfo:
    """Make the record of a job in the list; LPBS 0.9.1 of PyPI prints no state."""
    split_id(name)
    word = job.get("job_state", "R")
    status, reason = state_of(word)
    return JobInfo(name, status, native=word, reason=reason, nodes=(job["exec_host"],))


def _ended(match: re.Match[str]) -> JobInfo | None:
    """Make the record that a line of the log tells of; ``None`` if it tells of no end."""
    time = datetime.strptime(match["time"], "%m/%d/%Y %H:%M:%S %z").timestamp()
    status, reason, exit_code, signal = Status.FAILED, Reason.NONE, None, None
    if match["what"] == "Canceled":
        status = Status.CANCELLED
    elif match["what"] == "Failed to submit":
        reason = Reason.LAUNCH_FAILURE
    elif match["what"] == "Finished" and match["code"]:
        code = int(match["code"])
        if code < 0:
            reason, signal = Reason.SIGNALED, -code
        else:
            status = Status.FAILED if code else Status.COMPLETED
            reason = Reason.NONZERO_EXIT if code else Reason.NONE
            exit_code = code
    else:
        return None
    return JobInfo(
        match["id"],
        status,
        native=match["what"],
        reason=reason,
        message=match["more"].strip(" :"),
        exit_code=exit_code,
        signal=signal,
        end_time=time,
    )
