"""The LSF backend, for IBM LSF and for systems compatible with it.

Facts about IBM LSF are from its documentation, version 10.1, and were not checked on one. What
is said of compatible systems was recorded on OpenLava 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from cjdask.backends.base import BatchBackend
from cjdask.backends.launching import launch
from cjdask.backends.lsf_answers import (
    ABSENT,
    FORMATTED,
    ONLY_ID,
    PLAIN,
    WAITING,
    histories,
    infos,
    rows,
)
from cjdask.backends.lsf_options import Dialect, default_log
from cjdask.command import Command, Output
from cjdask.errors import ParseError, SchedulerError, SchedulerUnavailableError, SubmitError
from cjdask.resources import Resources
from cjdask.status import JobInfo

__all__ = ["LsfBackend"]

_FORMAT = ("-o", "jobid jobindex stat exit_code exit_reason exec_host delimiter='|'", "-noheader")
_CONFIGURATION = ("/bin/sh", "-c", 'cat "${LSF_ENVDIR:-/etc}/lsf.conf"')
_BENDS_BSUB = ("BSUB_BLOCK", "BSUB_CHK_RESREQ", "BSUB_QUIET")
_BENDS_OUTPUT = ("LSB_BJOBS_FORMAT", "LSB_DISPLAY_YEAR")
_UNIT = re.compile(r'^\s*LSF_UNIT_FOR_LIMITS\s*=\s*"?(\w*)', re.MULTILINE)
_HOSTS = 'if [[ $LSB_HOSTS ]]; then tr " " "\\n" <<<"$LSB_HOSTS"; else cat "$LSB_DJOB_HOSTFILE"; fi'
"""LSB_HOSTS is not set where it would be longer than 4096 characters (IBM LSF 10.1)."""


class LsfBackend(BatchBackend):
    """LSF.

    A scheduler that is there is asked once (`probe_commands`) whether its ``bjobs`` has ``-o``,
    as IBM LSF has, and how it wants amounts of memory; elsewhere it is taken for an IBM LSF of
    today. A site that registers a backend with arguments (those of `Dialect`) is not asked.

    DONE is LSF's word for "exit code 0", and OpenLava says it also of a job whose shell was
    killed from outside. A job that has ended badly has an exit code if LSF knows one.
    """

    name = "lsf"
    extension = "lsf"
    prefix = "#BSUB"
    programs = ("bsub", "bjobs", "bkill")
    max_array_size = 1000  # the default of MAX_JOB_ARRAY_SIZE (lsb.params)
    task_mark = "%I"
    job_vars: ClassVar = {
        "CLUSTERJOB_ID": "LSB_JOBID",
        "CLUSTERJOB_WORKDIR": "LS_SUBCWD",
        "CLUSTERJOB_SUBMIT_HOST": "LSB_SUB_HOST",
        "CLUSTERJOB_NAME": "LSB_JOBNAME",
        "CLUSTERJOB_NODELIST": "LSB_HOSTS",
        "CLUSTERJOB_ARRAY_INDEX": "LSB_JOBINDEX",
    }

    def __init__(self, ibm: bool = True, unit: str | None = None) -> None:
        self.dialect = Dialect(ibm, unit)

    # -- finding out ---------------------------------------------------------------------------

    def probe_commands(self) -> Sequence[Command]:
        if self.dialect != Dialect():
            return ()
        trial = self._ask("bjobs", *_FORMAT, "1")
        return self._ask("bjobs", "-V"), trial, self._ask(*_CONFIGURATION)

    def probed(self, outputs: Sequence[Output]) -> LsfBackend:
        if not outputs:
            return self
        version, trial, configuration = outputs
        text = trial.stdout + trial.stderr
        ibm = re.search(r"(?:invalid|illegal) option|Usage:", text) is None
        if ibm:
            infos(trial, FORMATTED)
        found = re.search(r"LSF .*?([0-9]+(?:\.[0-9]+)+)", version.stdout + version.stderr)
        if found and tuple(map(int, found[1].split("."))) >= (10, 1, 0, 2):
            return self._speaking(ibm, None)
        unit = _UNIT.search(configuration.stdout)
        return self._speaking(ibm, unit[1] if unit else "")

    def _speaking(self, ibm: bool, unit: str | None) -> LsfBackend:
        found = copy(self)
        found.dialect = Dialect(ibm, unit)
        return found

    # -- rendering ---------------------------------------------------------------------------

    def headers(self, resources: Resources) -> list[str]:
        return self.dialect.headers(resources, self.prefix)

    def launcher(self, resources: Resources, command: str) -> str:
        """Run the command on this host, on several with IBM's ``blaunch``."""
        if (resources.nodes or 1) > 1:
            self.dialect.need_ibm("nodes", "nodes=1: its lsrun does not tell how a process ended")
        return launch(
            resources,
            command,
            hosts=_HOSTS,
            start="blaunch {host} {program}",
            own=("LS_JOBPID",),
            returns_code=False,  # not documented
        )

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        path = resources.stdout or default_log(resources)
        if stream == "stderr":
            path = resources.stderr or path
        return path.replace("%J", job_id).replace("%I", str(task or 0))

    # -- asking ------------------------------------------------------------------------------

    @staticmethod
    def _ask(*argv: str) -> Command:
        return Command.ask(*argv, drop=_BENDS_OUTPUT)

    def submit_command(self, resources: Resources, script: str) -> Command:
        """Return ``bsub < script``; it reads headers from its standard input only.

        A job without ``-o`` would send its output by mail.
        """
        named = resources.stdout or {"o", "oo", "-o", "-oo"} & set(resources.native)
        log = () if named else ("-o", default_log(resources))
        return Command(("bsub", *log), drop=_BENDS_BSUB, stdin_path=script)

    def cmd_submit(self, jobscript: Any) -> Sequence[str]:
        command = self.submit_command(Resources.of(jobscript.resources), jobscript.filename)
        return "/bin/sh", "-c", f"exec {command}"

    def parse_submit(self, output: Output) -> str:
        match = re.search(r"^Job <([0-9]+)> is submitted", output.stdout, re.MULTILINE)
        if output.exit_code == 0 and match:
            return match[1]
        if WAITING.search(output.stderr) and "not submitted" not in output.stderr:
            raise SchedulerUnavailableError("LSF does not answer", output)
        if output.exit_code == 0:
            raise ParseError("bsub names no job id, and may have submitted the job", output)
        raise SubmitError("LSF did not accept the job", output)

    def query_command(self, ids: Sequence[str]) -> Command:
        return self._ask("bjobs", *(_FORMAT if self.dialect.ibm else ("-w",)), *ids)

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        return infos(output, FORMATTED if self.dialect.ibm else PLAIN)

    def ended_command(self, ids: Sequence[str]) -> Command:
        """Return the command for histories, which have what bjobs leaves out or has forgotten.

        bjobs forgets a job after CLEAN_PERIOD (1 hour); without ``-o`` it knows no exit codes.
        """
        return self._ask("bhist", "-l", *ids)

    def parse_ended(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        return histories(output)

    def cancel_command(self, ids: Sequence[str]) -> Command:
        return self._ask("bkill", *ids)

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        lines = [*output.stdout.splitlines(), *output.stderr.splitlines()]
        gone = re.compile(r"Job <.*>: (Job has already finished|No matching job found)")
        taken = re.compile(r"Job <.*> is being (terminated|signaled)")
        known = [x for x in lines if gone.match(x) or taken.match(x) or ABSENT.fullmatch(x)]
        bad = [x for x in lines if x.strip() and x not in known and not WAITING.search(x)]
        if not known and not bad and WAITING.search(output.stderr + output.stdout):
            raise SchedulerUnavailableError("LSF does not answer", output)
        if output.exit_code != 0 and (bad or not known):
            raise SchedulerError("LSF did not cancel all jobs", output)

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add the tag to the job's description, where there is none (OpenLava) to its name."""
        if not self.dialect.ibm:
            return {**resources, "jobname": f"{resources.get('jobname') or 'cjdask'}.{tag}"}
        key = "-Jd" if resources.get("-Jd") else "Jd"
        return {**resources, key: f"{resources.get(key) or ''} {tag}".lstrip()}

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Ask for the jobs of this user, also those that ended, for an hour (CLEAN_PERIOD)."""
        with_tag = ("-Jd", f"*{tag}*", "-o", "jobid", "-noheader")
        return (self._ask("bjobs", "-a", *(with_tag if self.dialect.ibm else ("-w",))),)

    def parse_find(self, output: Output, tag: str) -> str | None:
        if self.dialect.ibm:  # it lists no other job
            found = rows(output, ONLY_ID)
        else:
            found = [row for row in rows(output, PLAIN) if tag in row[0]]
        return found[0]["id"] if found else None

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}[{task}]"
