"""The HTCondor backend.

Facts are from the HTCondor manual (condor_submit, condor_q, condor_history, condor_rm, job
ClassAd attributes) and were checked on 23.9.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any, ClassVar

from cjdask.backends.base import BatchBackend
from cjdask.backends.htcondor_ads import ATTRIBUTES, jobs
from cjdask.backends.htcondor_submit import CLUSTER, NODE, TASK, description, log_file
from cjdask.backends.launching import local_processes
from cjdask.command import Command, Output
from cjdask.errors import ParseError, SchedulerError, SchedulerUnavailableError, SubmitError
from cjdask.resources import Resources
from cjdask.status import JobInfo

__all__ = ["HTCondorBackend"]

logger = getLogger(__name__)

UNAVAILABLE = re.compile(
    r"Can't find address of|\(null\)|SECMAN:|CEDAR:|communication error|Failed to connect|"
    "Failed to fetch ads|Can't connect to|Failed to end (?:remote )?classad"
)
"""What HTCondor's programs print when a daemon does not answer."""

_ROOT = (
    "Cannot allocate a cluster id",
    "HTCondor runs no jobs of root: submit as another user",
)
"""What condor_submit prints for root, among others, and what that means."""


def _of_ad(line: str, ad: str = "JOB") -> str:
    """Return shell text that reads a line of the ClassAds beside a job: no variable has it."""
    group = r"\1" if "(" in line else ""
    return f"$(sed -n 's/^{line}/{group}/p' \"$_CONDOR_{ad}_AD\")"


class HTCondorBackend(BatchBackend):
    """HTCondor: a file for condor_submit is written beside the script, with all resources.

    The job script has no header lines. A job of several nodes is a cluster of as many procs,
    each of which runs the whole script; HTCondor starts them one by one, as machines become
    free, and not at the same time. The environment of the submitter is passed on, but for
    values of several lines, which HTCondor drops; with a native ``environment`` also those
    that have a semicolon.

    ``depends`` is refused: only DAGMan knows dependencies.
    """

    name = "htcondor"
    extension = "sh"
    prefix = ""
    programs = ("condor_submit", "condor_q", "condor_history", "condor_rm")
    one_script = False
    max_ids = 2000
    max_array_size = 10000
    job_vars: ClassVar = {
        "CLUSTERJOB_ID": _of_ad("ClusterId = "),
        "CLUSTERJOB_WORKDIR": "_CONDOR_JOB_IWD",
        "CLUSTERJOB_SUBMIT_HOST": _of_ad(r'GlobalJobId = "\([^#]*\)#.*'),
        "CLUSTERJOB_NAME": _of_ad(r'JobBatchName = "\(.*\)"'),
        "CLUSTERJOB_NODELIST": _of_ad(r'Machine = "\(.*\)"', "MACHINE"),
        "CLUSTERJOB_ARRAY_INDEX": _of_ad("CjdaskTask = "),
    }

    # -- rendering ---------------------------------------------------------------------------

    def headers(self, resources: Resources) -> list[str]:
        """Check the resources; they are in the file of `submission_files`, not in the script."""
        description(resources, "script")
        return []

    def submission_files(self, resources: Resources, script: str) -> dict[str, str]:
        return {f"{script}.sub": description(resources, script)}

    def launcher(self, resources: Resources, command: str) -> str:
        """Run the processes of one node, since every node runs the script."""
        several = (resources.nodes or 1) > 1
        node = _of_ad("CjdaskRank = ") if several else "0"
        gpus = resources.gpus or 0
        return local_processes(resources.ppn or 1, command, node=node, gpus=gpus)

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        """Return where a job writes; of one of several nodes, where the first node does."""
        path = log_file(resources, stream)
        index = "" if task is None else str(task)
        for macro, value in ((CLUSTER, job_id), (TASK, index), (NODE, "")):
            path = path.replace(macro, value)
        path = re.sub(r"\$\(Cluster(Id)?\)", job_id, path, flags=re.IGNORECASE)
        if not resources.array:
            path = re.sub(r"\$\(Proc(Id|ess)\)", "0", path, flags=re.IGNORECASE)
        return path

    # -- asking ------------------------------------------------------------------------------

    def submit_command(self, resources: Resources, script: str) -> Command:
        return Command(("condor_submit", "-terse", f"{script}.sub"))

    def parse_submit(self, output: Output) -> str:
        if output.exit_code != 0:
            if UNAVAILABLE.search(output.stderr):
                raise SchedulerUnavailableError("HTCondor does not answer", output)
            words = " ".join(output.stderr.split()) or "it gives no reason"
            hint = f" ({_ROOT[1]})" if _ROOT[0] in words else ""
            raise SubmitError(f"HTCondor did not accept the job: {words}{hint}", output)
        match = re.fullmatch(r"([0-9]+)\.0 - \1\.[0-9]+", output.stdout.strip())
        if not match:
            raise ParseError("condor_submit printed no range of jobs of one cluster", output)
        for line in output.stderr.splitlines():
            if line.startswith("WARNING"):  # a misspelt option is no error for HTCondor
                logger.warning("condor_submit, job %s: %s", match[1], line)
        return match[1]

    def query_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("condor_q", *ids, "-json", "-attributes", ATTRIBUTES)

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        _check(output, "condor_q")
        return [info for info in jobs(output, ended=False) if not ids or info.job_id in ids]

    def ended_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("condor_history", *ids, "-json", "-attributes", ATTRIBUTES)

    def parse_ended(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        _check(output, "condor_history")
        return [info for info in jobs(output, ended=True) if not ids or info.job_id in ids]

    def cancel_command(self, ids: Sequence[str]) -> Command:
        """Return the command; a task is told by its attribute, since its proc is not known."""
        if all(job_id.isdigit() for job_id in ids):
            return Command.ask("condor_rm", *ids)
        return Command.ask("condor_rm", "-constraint", " || ".join(map(_constraint, ids)))

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        """Check the answer. Jobs that had ended and those of others look alike to HTCondor."""
        if output.exit_code == 0:
            return
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("HTCondor does not answer", output)
        gone = r"Couldn't find/remove all jobs|Job [0-9.]+ (not found|already marked for removal)"
        told = [line for line in output.stderr.splitlines() if line.strip()]
        if not told or not all(re.match(gone, line) for line in told):
            raise SchedulerError("HTCondor did not cancel all jobs", output)

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add an attribute with the tag to the job's ClassAd."""
        return {**resources, "+CjdaskTag": f'"{tag}"'}

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        which = ("-constraint", f'CjdaskTag == "{tag}"', "-af", "ClusterId", "CjdaskTag")
        return (
            Command.ask("condor_q", *which),
            Command.ask("condor_history", "-match", "1", *which),
        )

    def parse_find(self, output: Output, tag: str) -> str | None:
        _check(output, "the question for tagged jobs")
        return super().parse_find(output, tag)

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}_{task}"


def _constraint(ident: str) -> str:
    job_id, _, task = ident.partition("_")
    return f"ClusterId == {job_id}" + (f" && CjdaskTask == {task}" if task else "")


def _check(output: Output, program: str) -> None:
    if output.exit_code != 0:
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("HTCondor does not answer", output)
        raise SchedulerError(f"{program} failed", output)
