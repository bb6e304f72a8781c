"""The TORQUE backend, known as ``pbs``.

Facts are from qsub(1B) and qstat(1B) of TORQUE 6.1, its sources, and dialogues with it that are
kept in ``tests/transcripts/pbs``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

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
from cjdask.resources import ArraySpec, Resources
from cjdask.status import JobInfo, Reason, Status

__all__ = ["TorqueBackend"]

OWN_CODES = {-10: Reason.OUT_OF_MEMORY, -11: Reason.TIMEOUT, -12: Reason.TIMEOUT}
"""Why TORQUE ended a job, by its ``exit_status`` (``JOB_EXEC_OVERLIMIT_*`` in pbs_job.h)."""

UNKNOWN = 15001 % 256
"""Exit code of qstat where one of the ids is not known."""


class TorqueBackend(PbsBackend):
    """TORQUE.

    An ended job is listed for as long as the site has set with ``keep_completed``, often five
    minutes or nothing; what its exit code was cannot be asked for later.
    """

    name = "pbs"
    programs = ("qsub", "qstat", "qdel", "pbsdsh")
    max_array_size = 10000
    # It counts the lines of the node file, and always ends with 0.
    starter = "pbsdsh -n {index} {program}"
    starter_returns_code = False
    devices = (
        'sed -n "s/^$(hostname -s)\\(\\.[^-]*\\)\\?-gpu//p" <<<"$CLUSTERJOB_GPUS" | paste -sd,'
    )

    # -- rendering -----------------------------------------------------------------------------

    def launcher(self, resources: Resources, command: str) -> str:
        """Start the processes as on every PBS; the GPUs of all nodes are in a file of the first.

        Its lines are HOST-gpuNUMBER. Not every TORQUE sets ``CUDA_VISIBLE_DEVICES``.
        """
        text = super().launcher(resources, command)
        if not resources.gpus:
            return text
        return f'CLUSTERJOB_GPUS=$(cat "$PBS_GPUFILE")\nexport CLUSTERJOB_GPUS\n{text}'

    def size_options(self, resources: Resources) -> list[str]:
        """Return ``nodes=N:ppn=C``, whose ``ppn`` are cores, and ``mem``, which is of all nodes.

        ``naccesspolicy`` is read by Maui and Moab; pbs_sched ignores it.
        """
        options = []
        nodes = resources.nodes or 1
        if resources.mem:
            options.append(f"-l mem={resources.mem * nodes}mb")
        gpus = f":gpus={resources.gpus}" if resources.gpus else ""
        options.append(f"-l nodes={nodes}:ppn={resources.cores_per_node}{gpus}")
        if resources.exclusive:
            options.append("-l naccesspolicy=singlejob")
        return options

    def array_option(self, array: ArraySpec) -> str:
        return f"-t {array}"

    def depends_option(self, ids: Sequence[str]) -> str:
        jobs = [job_id for job_id in ids if "[" not in job_id]
        arrays = [job_id for job_id in ids if "[" in job_id]
        kinds = {"afterok": jobs, "afterokarray": arrays}
        return "-W depend=" + ",".join(":".join([k, *which]) for k, which in kinds.items() if which)

    def task_path(self, path: str, task: str) -> str:
        return f"{path}-{task}"

    # -- asking --------------------------------------------------------------------------------

    def query_command(self, ids: Sequence[str]) -> Command:
        """Ask for XML, the only form that values with line breaks cannot forge.

        Without ``-t`` an array's id would be answered with all jobs that there are.
        """
        tasks = ("-t",) if any("[" in job_id for job_id in ids) else ()
        return Command.ask("qstat", "-x", *tasks, *ids)

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        check(output, self.name, (UNKNOWN,))
        try:
            found = [_info(job) for job in _jobs(output)]
        except (ValueError, TypeError, ElementTree.ParseError) as error:
            misunderstood(self.name, repr(error), output)
        return among(found, ids)

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask for all jobs that there are, since qstat has XML of one user's jobs by ids only."""
        return (Command.ask("qstat", "-x"),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        check(output, self.name, ())
        try:
            jobs = list(_jobs(output))
        except (ValueError, ElementTree.ParseError) as error:
            misunderstood(self.name, repr(error), output)
        shown = ((job.findtext("Job_Id") or "", "\n".join(job.itertext())) for job in jobs)
        return self.found(shown, tag)


def _jobs(output: Output) -> Iterator[ElementTree.Element]:
    """Read one XML document for each id, without the control characters XML must not have."""
    text = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "", output.stdout)
    before, *documents = text.split("<?xml")
    if before.strip():
        raise ValueError(f"no XML: {before[:200]}")
    for document in documents:
        data = ElementTree.fromstring("<?xml" + document)
        if data.tag != "Data" or any(job.tag != "Job" for job in data):
            raise ValueError(f"no list of jobs: <{data.tag}>")
        yield from data


def _info(job: ElementTree.Element) -> JobInfo:
    """Make the record of one job, array or task."""
    _, job_id, task = split_id(job.findtext("Job_Id") or "")
    word, code = job.findtext("job_state"), job.findtext("exit_status")
    if not word:
        raise ValueError(f"job {job_id} has no state")
    exit_code = signal = None
    if word != "C":
        status, reason = state_of(word)
        if reason is Reason.HELD and job.find("depend") is not None:
            reason = Reason.DEPENDENCY
    elif code is not None:
        status, reason, exit_code, signal = verdict(int(code), OWN_CODES)
    else:
        status, reason = Status.CANCELLED, Reason.NONE  # deleted before it ran
    comment = job.findtext("comment") or ""
    return JobInfo(
        job_id=job_id,
        status=status,
        task=task,
        native=word,
        reason=reason,
        message=comment if status is Status.PENDING else "",
        exit_code=exit_code,
        signal=signal,
        nodes=hosts(job.findtext("exec_host") or ""),
        submit_time=_time(job, "ctime"),
        start_time=_time(job, "start_time"),
        end_time=_time(job, "comp_time"),
    )


def _time(job: ElementTree.Element, name: str) -> float | None:
    text = job.findtext(name)
    return None if text is None else float(text)
