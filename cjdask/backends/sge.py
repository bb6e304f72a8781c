"""The Grid Engine backend.

Facts are from the manual pages of Son of Grid Engine (qsub(1), qstat(1), qacct(1), sge_pe(5),
accounting(5)) and were checked on 8.1.9.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from cjdask.backends.base import BatchBackend
from cjdask.backends.launching import launch
from cjdask.backends.sge_answers import (
    FIELDS,
    QUEUED,
    UNAVAILABLE,
    ParallelEnvironment,
    environments,
    listed,
    records,
)
from cjdask.backends.sge_options import COMMON, native
from cjdask.command import Command, Output
from cjdask.errors import (
    ResourcesNotSupportedError,
    SchedulerError,
    SchedulerUnavailableError,
    SubmitError,
)
from cjdask.resources import Resources
from cjdask.status import JobInfo

__all__ = ["SgeBackend"]

_BEND = ("SGE_LONG_", "SGE_SINGLE_LINE")
"""Variables that change what Grid Engine's programs print."""

_ASK_ENVIRONMENTS = """
qconf -sconf | grep max_aj_tasks
for pe in $(qconf -spl); do
    qconf -sp "$pe" || exit
    echo "queues $(qselect -pe "$pe" 2>/dev/null | sed 's/@.*//' | sort -u | tr '\\n' ' ')"
done
"""

_FILTER = (
    """awk -v ids="$*" 'BEGIN { split(ids, all); for (i in all) wanted[all[i]] } """
    """/^===/ { if (keep) printf "%s", text; text = keep = "" } { text = text $0 "\\n" } """
    """$1 == "jobnumber" { keep = $2 in wanted } END { if (keep) printf "%s", text }'"""
)
_ASK_RECORDS = (
    f'date "+now %s"; fields="^(==|{"|".join(FIELDS)})"; '
    'if [ $# -le 8 ]; then for job; do qacct -j "$job"; done; '
    f'else qacct -o "$(id -un)" -j; fi | grep -E "$fields" | {_FILTER}'
)
"""Asks for some jobs one by one, each a search of the accounting file, for many all at once."""

_ASK_CONTEXTS = (
    """qstat -j '*' | awk '$1 == "job_number:" { id = $2 } $1 == "context:" { print id, $2 }'"""
)

_HOSTS = """awk -v nodes={nodes} -v cores={cores} '
    {{ if (!($1 in free)) host[++hosts] = $1; free[$1] += $2 }}
    END {{
        for (best = host[1]; nodes > 0; nodes--) {{
            print best
            if ((free[best] -= cores) < 0) short = 1
            for (i = 1; i <= hosts; i++) if (free[host[i]] > free[best]) best = host[i]
        }}
        if (short) print "cjdask launcher: the slots are not in whole nodes, so that processes" \\
            " share cores; a parallel environment with allocation_rule " cores \\
            " prevents that" >"/dev/stderr"
    }}' "$PE_HOSTFILE\""""
"""Prints a host for each node: the master, then always the one with most slots left."""

_SHELLS = ("sh", "bash", "dash", "ksh", "zsh")

_EXIT_CODES = (
    "trap 'case $? in 99|100) exit 1;; esac' EXIT"
    "  # Grid Engine would run the job again (99) or put it into error state (100)"
)

_GUARD = """\
for cj_id in {ids}; do  # Grid Engine waits for the end of a job, not for a good one
    cj_n=0
    until qacct -j $cj_id >/dev/null 2>&1 || [ $cj_n -ge 30 ]; do
        cj_n=$((cj_n + 1))
        sleep 2
    done
    qacct -j $cj_id 2>/dev/null | awk '
        /^taskid/ && $2 != "undefined" || /^granted_pe/ && $2 != "NONE" {{ more = 1 }}
        END {{ exit !more }}' && sleep 20  # until all of its records are written
    qacct -j $cj_id 2>/dev/null | awk '
        /^taskid/ {{ task = $2 }}
        /^failed/ {{ bad[task] = $2 }}
        /^exit_status/ {{ bad[task] += $2; known = 1 }}
        END {{ for (task in bad) if (bad[task]) exit 1; exit !known }}' || {{
        echo "cjdask: not started: no record that job $cj_id ended well" >&2
        exit 121
    }}
done"""
"""Ends a job whose predecessors did not end well; their records may come some seconds late."""


class SgeBackend(BatchBackend):
    """Grid Engine: Son of Grid Engine and its relatives.

    Jobs of more than one core need a parallel environment. It is the one named by the option
    ``parallel_environment`` or ``SgeBackend(parallel_environment=...)``, else one of the site
    that fits: for one node with the allocation rule ``$pe_slots``, for several one that gives
    just the cores of a node on each host, else ``$fill_up`` or ``$round_robin``, where the
    shape is up to Grid Engine and the launcher makes the best of it.
    """

    name = "sge"
    extension = "sge"
    prefix = "#$"
    programs = ("qsub", "qstat", "qacct", "qconf")
    exit_trap = "case $? in 99|100) exit 1;; esac"
    max_ids = 5000  # qstat answers for all jobs of the user anyway
    max_array_size = 75000  # the default of max_aj_tasks in sge_conf(5)
    task_mark = "$TASK_ID"
    job_vars: ClassVar = {
        "CLUSTERJOB_ID": "JOB_ID",
        "CLUSTERJOB_WORKDIR": "SGE_O_WORKDIR",
        "CLUSTERJOB_SUBMIT_HOST": "SGE_O_HOST",
        "CLUSTERJOB_NAME": "JOB_NAME",
        "CLUSTERJOB_NODELIST": (
            '$(if [ -r "$PE_HOSTFILE" ]; then cut -d" " -f1 "$PE_HOSTFILE"; '
            'else echo "$HOSTNAME"; fi)'
        ),
        "CLUSTERJOB_ARRAY_INDEX": "SGE_TASK_ID",
    }

    def __init__(
        self,
        parallel_environment: str | None = None,
        environments: Sequence[ParallelEnvironment] | None = None,
    ) -> None:
        self._named = parallel_environment
        self._environments = environments

    # -- finding out ---------------------------------------------------------------------------

    def probe_commands(self) -> Sequence[Command]:
        single = {"SGE_SINGLE_LINE": "1"}
        return (
            Command.ask("qconf", "-spl"),
            Command.ask("sh", "-c", _ASK_ENVIRONMENTS.strip(), env=single),
        )

    def probed(self, outputs: Sequence[Output]) -> BatchBackend:
        for output in outputs:
            if UNAVAILABLE.search(output.stderr):
                raise SchedulerUnavailableError("Grid Engine does not answer", output)
        found = copy(self)
        found._environments = environments(outputs[-1].stdout)
        if limit := re.search(r"^max_aj_tasks\s+([1-9][0-9]*)", outputs[-1].stdout, re.M):
            found.max_array_size = int(limit[1])
        return found

    # -- rendering ---------------------------------------------------------------------------

    def headers(self, resources: Resources) -> list[str]:
        return self._headers(resources, "/bin/bash")

    def resource_headers(self, jobscript: Any) -> list[str]:
        """Return the header lines, and shell lines for what Grid Engine does differently.

        Those need a script in a POSIX shell; others get none, and no ``depends``.
        """
        resources = Resources.of(jobscript.resources)
        body = str(getattr(jobscript, "body", ""))
        first = body.partition("\n")[0][2:] if body.startswith("#!") else jobscript.shell
        shell = (first.split() or ["/bin/sh"])[0]
        lines = self._headers(resources, shell)
        if os.path.basename(shell) in _SHELLS:
            lines.append(_EXIT_CODES)
            if resources.depends:
                lines += _GUARD.format(ids=" ".join(resources.depends)).splitlines()
        elif resources.depends:
            raise ResourcesNotSupportedError(
                f"depends={resources.depends!r}: Grid Engine starts a job also after one that "
                f"failed; to find out needs a script in a shell, this one is run by {first}"
            )
        return lines

    def _headers(self, resources: Resources, shell: str) -> list[str]:
        own = {key.lstrip("-") for key in resources.given() if key in resources.native}
        lines = [] if "S" in own else [f"-S {shell}"]  # the line #! is not looked at
        if not own & {"cwd", "wd"}:
            lines.append("-cwd")  # else jobs run in the home folder
        shape = [key for key in ("nodes", "ppn", "threads") if getattr(resources, key)]
        for key in resources.given():
            if key == "parallel_environment":
                continue
            if key in resources.native:
                lines.append(native(key, resources.native[key]))
            elif key not in shape:
                lines += COMMON[key](getattr(resources, key), resources)
            elif key == shape[0] and "pe" not in own:
                lines += self._slots(resources)
        return [f"{self.prefix} {line}" for line in lines]

    def _slots(self, resources: Resources) -> list[str]:
        slots = (resources.nodes or 1) * resources.cores_per_node
        named = resources.native.get("parallel_environment") or self._named
        if slots == 1 and not named:
            return []
        return [f"-pe {named or self._environment(resources).name} {slots}"]

    def _environment(self, resources: Resources) -> ParallelEnvironment:
        nodes, cores = resources.nodes or 1, resources.cores_per_node
        if nodes == 1:
            rules = ["$pe_slots", str(cores)]
        else:
            spread = ["$round_robin", "$fill_up"]  # packed only where a node has several cores
            rules = [str(cores), *(spread if cores == 1 else reversed(spread))]
        known = self._environments or ()
        fitting = [pe for pe in known if pe.fits(rules, resources.queue, nodes > 1)]
        if fitting:
            return min(fitting, key=lambda pe: rules.index(pe.rule))
        there = "; ".join(map(str, known)) or "none"
        raise ResourcesNotSupportedError(
            f"nodes={nodes}, {cores} cores on each: Grid Engine (backend 'sge') needs a parallel "
            "environment for that. Name one of the site by parallel_environment=...; "
            + (
                f"there are {there}, and none fits by itself"
                if self._environments is not None
                else "qconf -spl lists them where Grid Engine is installed"
            )
        )

    def launcher(self, resources: Resources, command: str) -> str:
        """Run the processes of a node by ``qrsh -inherit``, those of the first one directly.

        The environment must be tightly integrated (``control_slaves TRUE``).
        """
        hosts = _HOSTS.format(nodes=resources.nodes or 1, cores=resources.cores_per_node)
        return launch(
            resources,
            command,
            hosts=hosts,
            each=True,
            start="qrsh -inherit {host} {program}",
            own=["TMPDIR", "TMP", "SGE_JOB_SPOOL_DIR", "SGE_BINARY_PATH", "QUEUE"],
        )

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        """Return where a job writes; ``$USER``, ``$HOME`` and ``$HOSTNAME`` stay as they are."""
        name = resources.jobname or "job"
        number = "undefined" if task is None else str(task)
        default = f"{name}.{stream[3]}{job_id}" + ("" if task is None else f".{number}")
        if str(resources.native.get("j", "")) in ("y", "yes", "True"):
            stream, default = "stdout", default.replace(f".e{job_id}", f".o{job_id}")
        path: str = getattr(resources, stream) or default
        for variable, value in (("JOB_ID", job_id), ("TASK_ID", number), ("JOB_NAME", name)):
            path = re.sub(rf"\${variable}\b", value, path)
        return path + default if path.endswith("/") else path

    # -- asking ------------------------------------------------------------------------------

    def submit_command(self, resources: Resources, script: str) -> Command:
        return Command(("qsub", "-terse", script), drop=_BEND)

    def parse_submit(self, output: Output) -> str:
        # -w w prints its warning before the id, also to the standard output.
        answer = r"(?:warning: .*\n)*([0-9]+)(?:\.[-0-9:]+)?"
        match = re.fullmatch(answer, output.stdout.strip())
        if output.exit_code == 0 and match:
            return match[1]
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("Grid Engine does not answer", output)
        words = output.stderr.strip() or output.stdout.strip() or "it printed no job id"
        raise SubmitError(f"Grid Engine did not accept the job: {words}", output)

    def query_command(self, ids: Sequence[str]) -> Command:
        # All options are said, since sge_qstat files of site and user have further defaults.
        argv = ("qstat", "-u", "$user", "-s", "psr", "-r", "-xml")
        return Command.ask(*argv, drop=_BEND, env={"TZ": "UTC"})

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        _check(output, "qstat")
        return [info for info in listed(output) if not ids or info.job_id in ids]

    def ended_command(self, ids: Sequence[str]) -> Command:
        argv = ("sh", "-c", _ASK_RECORDS, "sh", *ids)
        return Command.ask(*argv, drop=_BEND, env={"TZ": "UTC"})

    def parse_ended(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        told = [line for line in output.stderr.splitlines() if line.strip()]
        if any(not re.search("job id [0-9]+ not found", line) for line in told):
            raise SchedulerError("qacct cannot read the records of ended jobs", output)
        loose = {pe.name for pe in self._environments or () if not pe.tight}
        return [info for info in records(output, loose) if not ids or info.job_id in ids]

    def cancel_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("qdel", *ids, drop=_BEND)

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        _check(output, "qdel", (0, 1))
        told = output.stdout.splitlines() + output.stderr.splitlines()
        refused = [line for line in told if line.strip() and not QUEUED.search(line)]
        if output.exit_code != 0 and (refused or not told):
            raise SchedulerError("Grid Engine did not cancel all jobs", output)

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add the tag to the job's context (qsub(1), ``-ac``)."""
        key = "-ac" if resources.get("-ac") else "ac"
        own = f"{resources[key]}," if resources.get(key) else ""
        return {**resources, key: f"{own}cjdask={tag}"}

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask for the context of the jobs in the queue; the records of ended ones have none."""
        return (Command.ask("sh", "-c", _ASK_CONTEXTS, drop=_BEND),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        none = "Following jobs do not exist"
        told = [
            line for line in output.stderr.splitlines() if line.strip(" *") and none not in line
        ]
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError("Grid Engine does not answer", output)
        if told:
            raise SchedulerError("qstat cannot show the contexts of jobs", output)
        return super().parse_find(output, tag)

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}.{task}"


def _check(output: Output, program: str, codes: Sequence[int] = (0,)) -> None:
    if output.exit_code != 0 and UNAVAILABLE.search(output.stderr + output.stdout):
        raise SchedulerUnavailableError("Grid Engine does not answer", output)
    if output.exit_code not in codes:
        raise SchedulerError(f"{program} failed", output)
