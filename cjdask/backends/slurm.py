"""The Slurm backend.

Facts are from the manual pages and sources of Slurm and were checked on 22.05.8. The oldest
version that has all that is used is 21.08 (``srun --gpu-bind=per_task``), without GPUs 20.11.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from cjdask.backends.base import BatchBackend
from cjdask.backends.slurm_answers import GONE, NO_NODES, UNAVAILABLE, infos
from cjdask.backends.slurm_options import headers
from cjdask.command import Command, Output
from cjdask.errors import ParseError, SchedulerError, SchedulerUnavailableError, SubmitError
from cjdask.resources import Resources
from cjdask.status import JobInfo

__all__ = ["SlurmBackend"]

_OF_A_JOB = """
ARRAY CLUSTER_NAME CPU DIST EXPORT_ENV GPU GTIDS HET HINT JOB KILL LAUNCH LOCALID MEM
NNODES NODE NPROCS NTASKS OVERCOMMIT PACK PRIO PROCID PROFILE RESTART RLIMIT SCRIPT SRUN STEP
SUBMIT TASK THREADS TOPOLOGY TRES UMASK WORKING_CLUSTER
"""
OF_AN_OUTER_JOB = tuple(f"SLURM_{name}" for name in _OF_A_JOB.split())
"""Beginnings of variables that a job has; they would bend a job that is submitted inside it."""

_NEVER = ("SBATCH_WAIT",)
"""It would keep sbatch from returning before the job has ended."""

_STAY = "trap | grep -q TERM || trap 'exit 143' TERM"
"""Keeps a script that is cancelled until its step has ended. Without it srun is gone by then, and
the job goes on for 2 s for each process whose end slurmstepd cannot tell it ("Failed to send
MESSAGE_TASK_EXIT")."""

_CLOCKS = 86400
"""Seconds by which the clocks of two machines, or an idea of a time zone, may differ."""

_FIELDS = "JobArrayID State Reason exit_code SubmitTime StartTime EndTime NodeList"
_RECORD = "JobID,State,ExitCode,Submit,Start,End,NodeList"


class SlurmBackend(BatchBackend):
    """Slurm.

    ``gpus`` is written as ``--gres=gpu:N``, which counts per node and works with every version
    and every select plugin. Common and native keys that say the same are refused together.

    The exit code is exact where squeue still lists the ended job (``MinJobAge``, 5 minutes
    unless a site changed it). Before 25.11 sacct prints exit codes from 128 on less 128: a 9 may
    be a 137, and is reported as printed.
    """

    name = "slurm"
    extension = "slr"
    prefix = "#SBATCH"
    programs = ("sbatch", "squeue", "scancel")
    own_id = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"
    max_array_size = 1000  # Slurm's default MaxArraySize is 1001: the highest index is 1000
    task_mark = "%a"
    job_vars: ClassVar = {
        "CLUSTERJOB_ID": "SLURM_JOB_ID",
        "CLUSTERJOB_WORKDIR": "SLURM_SUBMIT_DIR",
        "CLUSTERJOB_SUBMIT_HOST": "SLURM_SUBMIT_HOST",
        "CLUSTERJOB_NAME": "SLURM_JOB_NAME",
        "CLUSTERJOB_NODELIST": "SLURM_JOB_NODELIST",
        "CLUSTERJOB_ARRAY_INDEX": "SLURM_ARRAY_TASK_ID",
    }

    # -- rendering ---------------------------------------------------------------------------

    def headers(self, resources: Resources) -> list[str]:
        return headers(resources, self.prefix)

    def launcher(self, resources: Resources, command: str) -> str:
        """Run the command with ``srun``, or as it is where it is one process.

        One process needs no step, and without one it may call srun or mpirun itself. Processes
        are not bound to cores, but the job's cgroup holds them. Each gets an equal share of the
        node's GPUs; where there are more processes than GPUs several use the same.
        """
        if resources.processes == 1:
            ranks = ("CLUSTERJOB_RANK=0", "CLUSTERJOB_LOCAL_RANK=0", "CLUSTERJOB_NODE_RANK=0")
            return shlex.join(["env", *ranks, "/bin/bash", "-c", command])
        nodes, ppn = resources.nodes or 1, resources.ppn or 1
        gpus = resources.gpus or 0
        binding = f"per_task:{gpus // ppn}" if gpus >= ppn else f"single:{-(-ppn // (gpus or 1))}"
        # All counts are said: srun does not read sbatch's --cpus-per-task (since 22.05), and the
        # variables of an outer job may still be there.
        options = [
            f"--nodes={nodes}",
            f"--ntasks={nodes * ppn}",
            f"--ntasks-per-node={ppn}",
            f"--cpus-per-task={resources.threads or 1}",
            *([f"--gpu-bind={binding}"] if gpus else []),
            "--cpu-bind=none",
            "--export=ALL",
            "--kill-on-bad-exit=0",
            "--wait=0",
        ]
        ranks = (
            "export CLUSTERJOB_RANK=$SLURM_PROCID",
            "CLUSTERJOB_LOCAL_RANK=$SLURM_LOCALID",
            "CLUSTERJOB_NODE_RANK=$SLURM_NODEID",
        )
        srun = ["srun", *options, "/bin/bash", "-c", f"{' '.join(ranks)}; {command}"]
        return f"{_STAY}\n{shlex.join(srun)}"

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        """Return where a job writes, with Slurm's file name patterns filled in.

        Those that are not known from here stay as they are: ``%u``, ``%N``, and ``%j`` in an
        array, where each task has an id of its own.
        """
        default = "slurm-%j.out" if task is None else "slurm-%A_%a.out"
        path = resources.stdout or default
        if stream == "stderr":
            path = resources.stderr or path
        if "\\" in path:
            return path.replace("\\", "")  # Slurm's sign not to look for patterns
        known = {"A": job_id, "a": "4294967294" if task is None else str(task), "%": "%"}
        known |= {"n": "0", "t": "0", "s": "batch"}
        if task is None:
            known |= {"j": job_id, "J": job_id}
        if resources.jobname:
            known["x"] = resources.jobname

        def fill(match: re.Match[str]) -> str:
            width, letter = match.groups()
            text = known.get(letter, match[0])
            return text.zfill(int(width or 0)) if letter in "AajJnt" and letter in known else text

        return re.sub(r"%([0-9]*)([A-Za-z%])", fill, path)

    def array_command(self) -> Command:
        return Command.ask("scontrol", "show", "config")

    def parse_array(self, output: Output) -> int:
        """Read ``MaxArraySize``, which is one more than the highest index (slurm.conf(5))."""
        _check(output, "scontrol")
        size = re.search(r"^MaxArraySize\s*=\s*([0-9]+)\s*$", output.stdout, re.MULTILINE)
        return max(0, int(size[1]) - 1) if size else self.max_array_size

    # -- asking ------------------------------------------------------------------------------

    def submit_command(self, resources: Resources, script: str) -> Command:
        return Command(("sbatch", "--parsable", "--", script), drop=OF_AN_OUTER_JOB + _NEVER)

    def parse_submit(self, output: Output) -> str:
        match = re.fullmatch(r"([0-9]+)(;\S+)?", output.stdout.strip())
        if output.exit_code == 0 and match:
            return match[1]
        if output.exit_code != 0 and UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("Slurm does not answer", output)
        raise SubmitError("Slurm did not accept the job", output)

    def query_command(self, ids: Sequence[str]) -> Command:
        # Suffixes end the fields, since -O would else cut each at 20 characters.
        return Command.ask(
            *("squeue", "--all", "--noheader", "--array", "--states=all", _jobs(ids)),
            "--Format=" + ",".join(f"{field}:|" for field in _FIELDS.split()),
            drop=("SQUEUE_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"),
            env={"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"},
        )

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        if output.exit_code != 0 and GONE.search(output.stderr):
            return []  # the answer to one id that is not known; among several it is left out
        _check(output, "squeue")
        found = []
        for line in _lines(output):
            fields = line.split("|")
            if len(fields) != 9 or fields.pop():
                _misunderstood(line, output)
            job_id, state, why, code, submit, start, end, nodes = fields
            try:
                found += infos(job_id, state, code, (submit, start, end), nodes, why)
            except ValueError:
                _misunderstood(line, output)
        return _among(found, ids)

    def ended_command(self, ids: Sequence[str]) -> Command:
        return Command.ask(
            *("sacct", "--allocations", "--noheader", "--parsable2", _jobs(ids)),
            f"--format={_RECORD}",
            drop=("SACCT_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"),
            env={"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"},
        )

    def parse_ended(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        """Read what sacct printed; a row that is no end is a record that is not final.

        Rows of one task are preferred to those of a range of tasks, and later ones to earlier
        ones, since Slurm uses its job ids again. A site without accounting has no records.
        """
        if "accounting storage is disabled" in output.stderr:
            return []
        _check(output, "sacct")
        found: dict[tuple[str, int | None], tuple[tuple[float, bool, float], JobInfo]] = {}
        for line in _lines(output):
            fields = line.split("|")
            if len(fields) != 7:
                _misunderstood(line, output)
            job_id, state, code, submit, start, end, nodes = fields
            if (state, code) == ("FAILED", "0:0") and nodes not in NO_NODES:
                code = "128:0"  # before 25.11 sacct prints exit codes from 128 on less 128
            try:
                rows = infos(job_id, state, code, (submit, start, end), nodes)
            except ValueError:
                _misunderstood(line, output)
            for info in rows:
                rank = (info.submit_time or 0.0, "[" not in job_id, info.start_time or 0.0)
                key = info.job_id, info.task
                if key not in found or found[key][0] <= rank:
                    found[key] = rank, info
        return _among((info for _, info in found.values()), ids)

    def cancel_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("scancel", "--quiet", *ids, drop=("SCANCEL_",))

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        told = [line for line in output.stderr.splitlines() if line and not GONE.search(line)]
        if output.exit_code == 0 or (output.stderr and not told):
            return
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("Slurm does not answer", output)
        raise SchedulerError("Slurm did not cancel all jobs", output)

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add the tag to the job's comment."""
        key = next((key for key in ("comment", "--comment") if resources.get(key)), "comment")
        return {**resources, key: f"{resources.get(key) or ''} {tag}".lstrip()}

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask squeue, then sacct, which has comments where the site stores them
        (``AccountingStoreFlags=job_comment``, slurm.conf(5))."""
        live = ("squeue", "--me", "--noheader", "--states=all", "--Format=ArrayJobID:|,Comment:|")
        since = f"--starttime=now-{int(age) + _CLOCKS}"
        ended = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,Comment")
        return (
            Command.ask(*live, drop=("SQUEUE_",)),
            Command.ask(*ended, since, drop=("SACCT_", "SLURM_TIME_FORMAT")),
        )

    def parse_find(self, output: Output, tag: str) -> str | None:
        if "accounting storage is disabled" in output.stderr:
            return None
        _check(output, "the question for tagged jobs")
        return super().parse_find(output, tag)

    def task_id(self, job_id: str, task: int) -> str:
        """Return ``ID_TASK``. scancel does nothing, silently, for a task's own id."""
        return f"{job_id}_{task}"


def _jobs(ids: Sequence[str]) -> str:
    if not ids:
        raise ValueError("no job ids: Slurm would answer with all jobs that there are")
    return f"--jobs={','.join(ids)}"


def _lines(output: Output) -> list[str]:
    return [line for line in output.stdout.splitlines() if line.strip()]


def _check(output: Output, program: str) -> None:
    silent = not output.stdout.strip()
    if (output.exit_code != 0 or silent) and UNAVAILABLE.search(output.stderr):
        raise SchedulerUnavailableError("Slurm does not answer", output)
    if output.exit_code != 0:
        raise SchedulerError(f"{program} failed", output)


def _misunderstood(line: str, output: Output) -> NoReturn:
    raise ParseError(f"a line of Slurm's answer is not understood: {line}", output)


def _among(found: Iterable[JobInfo], ids: Sequence[str]) -> list[JobInfo]:
    wanted = set(ids)
    return [
        info
        for info in found
        if not wanted or info.job_id in wanted or f"{info.job_id}_{info.task}" in wanted
    ]
