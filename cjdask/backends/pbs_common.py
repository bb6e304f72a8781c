"""What the schedulers of the PBS family share: ``#PBS`` lines, file names, ``qsub``, ``qdel``.

Sources: the manuals qsub(1B) and qdel(1B) of OpenPBS 23.06 and TORQUE 6.1, the parsers of their
``#PBS`` lines (``make_argv`` in qsub.c and qsub_functions.c), and recorded dialogues.
"""

from __future__ import annotations

import re
import shlex
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from logging import getLogger
from typing import Any, ClassVar, NoReturn

from cjdask.backends.base import BatchBackend
from cjdask.backends.launching import launch
from cjdask.command import Command, Output
from cjdask.errors import (
    ParseError,
    ResourcesNotSupportedError,
    SchedulerError,
    SchedulerUnavailableError,
    SubmitError,
)
from cjdask.resources import ArraySpec, Resources, clock
from cjdask.status import JobInfo, Reason, Status

__all__ = [
    "PbsBackend",
    "among",
    "check",
    "hosts",
    "misunderstood",
    "split_id",
    "state_of",
    "verdict",
]

logger = getLogger(__name__)

UNAVAILABLE = re.compile(
    "cannot connect to server|Couldn't connect to cluster|could not connect to trqauthd|"
    "Cannot connect to specified server|Unable to communicate with|Connection refused|"
    "[Cc]onnection timed out|No route to host|Premature end of message|No free connections"
)
"""What the programs print when the server does not answer."""

GONE = re.compile(
    "Unknown Job Id|Job has finished|nonexistent job id|Request invalid for state of job"
)
"""What ``qdel`` prints about a job that has ended, is just ending, or is not known any more."""

_JOB_ID = re.compile(r"([0-9]+)(?:\[([0-9]*)\])?((?:\.[\w-]+)*)")

TAG_VARIABLE = "CJDASK_TAG"
"""The variable of a job that has its tag."""

_NO_NAME = r"[^!-~]|[/,:\[\]\"'\\]"
"""What a job's name must not have: blanks, what is not ASCII, and signs that paths or lists use."""

_NOT_FOR_JOBS = {
    "C": "it changes which lines of a script are options; leave it out",
    "I": "the job's script would not run; leave it out",
    "J": "give array=..., so that its tasks are known",
    "t": "give array=..., so that its tasks are known",
    "X": "it is for interactive jobs; leave it out",
    "z": "the job's id would not be printed; leave it out",
}
"""Options that are refused, and why."""


class PbsBackend(BatchBackend):
    """A scheduler that reads ``#PBS`` lines.

    Keys that are no common ones: ``F="nodes"`` is ``-F nodes``, ``V=True`` is ``-V``, a longer
    name is a resource (``software="x"`` is ``-l software=x``, ``True`` is written ``true``), and
    one that begins with a dash is written as it is.
    """

    extension = "pbs"
    prefix = "#PBS"
    qdel: ClassVar[tuple[str, ...]] = ("qdel",)
    """The command that cancels the job whose id follows."""
    starter: ClassVar[str]
    """The command that starts a program on another host (see `over_hosts`)."""
    starter_returns_code: ClassVar[bool] = True
    devices: ClassVar[str] = ":"
    """Prints the GPUs of a node where ``CUDA_VISIBLE_DEVICES`` is not set."""
    """Whether its exit code is that of what it started."""
    # A task has its own id there, 58[3].server
    own_id = r"""$(printf %s "$PBS_JOBID" | sed 's/\[[0-9]*]/[]/')"""
    job_vars: ClassVar[Mapping[str, str]] = {
        "CLUSTERJOB_ID": "PBS_JOBID",
        "CLUSTERJOB_WORKDIR": "PBS_O_WORKDIR",
        "CLUSTERJOB_SUBMIT_HOST": "PBS_O_HOST",
        "CLUSTERJOB_NAME": "PBS_JOBNAME",
        "CLUSTERJOB_NODELIST": '$(cat "$PBS_NODEFILE")',
        "CLUSTERJOB_ARRAY_INDEX": "PBS_ARRAYID",
    }

    # -- what differs --------------------------------------------------------------------------

    @abstractmethod
    def size_options(self, resources: Resources) -> list[str]:
        """Return the options for ``nodes ppn threads gpus mem exclusive``, given any of them."""

    @abstractmethod
    def array_option(self, array: ArraySpec) -> str:
        """Return the option for the tasks of an array."""

    @abstractmethod
    def depends_option(self, ids: Sequence[str]) -> str:
        """Return the option that lets a job start after others ended well."""

    @abstractmethod
    def task_path(self, path: str, task: str) -> str:
        """Return the log file of one task (an index) for the path that an array was given."""

    # -- rendering -----------------------------------------------------------------------------

    def headers(self, resources: Resources) -> list[str]:
        lines: list[str] = []
        said: dict[str, str] = {}
        for key in resources.given():
            for option in self._options(key, resources):
                line = f"{self.prefix} {option}"
                if line in lines:
                    continue  # several keys are one option
                name = _subject(option)
                if name in said:
                    raise self.refusal(key, f"{said[name]!r} says {name!r} too; give one of them")
                said[name] = key
                lines.append(line)
        return lines

    def _options(self, key: str, resources: Resources) -> list[str]:
        if key in resources.native:
            return [self._native(key, resources.native[key])]
        if key in ("nodes", "ppn", "threads", "gpus", "mem", "exclusive"):
            return self.size_options(resources)
        if key == "array" and resources.array:
            return [self.array_option(resources.array)]
        if key == "depends":
            return [self.depends_option(resources.depends)]
        if key == "time" and resources.time:
            return [f"-l walltime={clock(resources.time)}"]
        if key == "stderr" and resources.stderr == resources.stdout:
            return ["-j oe"]  # two files of one name would overwrite each other
        value = str(getattr(resources, key))
        if key in ("stdout", "stderr"):
            if ":" in value:
                raise self.refusal(key, f"PBS takes what is before the ':' in {value!r} as a host")
            value = self._given_path(value, resources)
        if key == "jobname" and re.search(_NO_NAME, value):
            raise self.refusal(key, f"{value!r} has a character that PBS does not take in a name")
        letter = {"jobname": "N", "queue": "q", "account": "A", "stdout": "o", "stderr": "e"}[key]
        return [f"-{letter} {_quoted(value)}"]

    def _native(self, key: str, value: str | float) -> str:
        letter = key.removeprefix("-")
        why = _NOT_FOR_JOBS.get(letter)
        if letter == "W" and "block" in str(value):
            why = "qsub would wait for the end of the job; leave it out and use run.wait()"
        if why:
            raise self.refusal(key, why)
        if not key.startswith("-") and len(key) > 1:
            return f"-l {_quoted(f'{key}=true' if value is True else f'{key}={value}')}"
        option = f"-{letter}" if not key.startswith("-") else key
        return option if value is True else f"{option} {_quoted(str(value))}"

    def refusal(self, key: str, why: str) -> ResourcesNotSupportedError:
        """Make the error for a key that cannot be asked for."""
        return ResourcesNotSupportedError(f"{key!r} cannot be asked for on {self.name!r}: {why}")

    def launcher(self, resources: Resources, command: str) -> str:
        """Start the processes directly on the first host, on the others through PBS."""
        return launch(
            resources,
            command,
            hosts='cat "$PBS_NODEFILE"',
            start=self.starter,
            own=("PBS_NODENUM", "PBS_TASKNUM", "PBS_VNODENUM", "PBS_MOMPORT"),
            returns_code=self.starter_returns_code,
            devices=self.devices,
        )

    def _given_path(self, path: str, resources: Resources) -> str:
        """Return the path to write into the option for a path that the user gave."""
        return path

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        """Return where a job writes, relative to the folder that it was submitted from.

        The files are brought there when the job ends.
        """
        joined = resources.native.get("j", resources.native.get("-j"))
        if resources.stdout and resources.stdout == resources.stderr:
            joined = "oe"
        if joined in ("oe", "eo"):
            stream = "stdout" if joined == "oe" else "stderr"
        letter = "o" if stream == "stdout" else "e"
        name = f"{resources.jobname or 'STDIN'}.{letter}{split_id(job_id)[0]}"
        path = resources.stdout if stream == "stdout" else resources.stderr
        if path is None or path.endswith("/"):
            path = (path or "") + name
        return path if task is None else self.task_path(path, str(task))

    # -- asking --------------------------------------------------------------------------------

    def submit_command(self, resources: Resources, script: str) -> Command:
        return Command(("qsub", script))

    def parse_submit(self, output: Output) -> str:
        if output.exit_code == 0:
            lines = map(str.strip, output.stdout.splitlines())
            ids = [line for line in lines if _JOB_ID.fullmatch(line)]
            if len(ids) == 1:
                return ids[0]
            raise ParseError(f"{self.name}: no job id in the answer to a submission", output)
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError(f"{self.name}: the server does not answer", output)
        words = output.stderr.strip().splitlines() or ["it gave no reason"]
        raise SubmitError(f"{self.name} did not accept the job: {words[0]}", output)

    def cancel_command(self, ids: Sequence[str]) -> Command:
        """Return one command that runs ``qdel`` for each id.

        A ``qdel`` with several ids must not be: with a known and an unknown one it ends the
        server of OpenPBS 23.06.06 (use after free, seen 4 times out of 4), TORQUE's reports only
        the first error, and ``lqdel`` stops at it.
        """
        if len(ids) == 1:
            return Command.ask(*self.qdel, *ids)
        loop = f'code=0; for id do {shlex.join(self.qdel)} "$id" || code=$?; done; exit "$code"'
        return Command.ask("/bin/sh", "-c", loop, *self.qdel[:1], *ids)

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        told = [line for line in output.stderr.splitlines() if line and not GONE.search(line)]
        if output.exit_code == 0 or (output.stderr.strip() and not told):
            return
        if UNAVAILABLE.search(output.stderr):
            raise SchedulerUnavailableError(f"{self.name}: the server does not answer", output)
        raise SchedulerError(f"{self.name} did not cancel all jobs", output)

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Add the tag to the job's variables (``-v``), which stay beside those of ``-V``."""
        key = "-v" if resources.get("-v") else "v"
        own = f"{resources[key]}," if resources.get(key) else ""
        return {**resources, key: f"{own}{TAG_VARIABLE}={tag}"}

    def found(self, records: Iterable[tuple[str, str]], tag: str) -> str | None:
        """Return the id of the job that a tag was given to, among ids with all they show.

        A job that is submitted inside another one with ``-V`` has its variables too, so it is
        the one that came first.
        """
        ids = [split_id(name)[1] for name, text in records if tag in text]
        return min(ids, key=lambda job_id: int(split_id(job_id)[0]), default=None)

    def task_id(self, job_id: str, task: int) -> str:
        return job_id.replace("[]", f"[{task}]", 1)


def _subject(option: str) -> str:
    """Return what an option is about; two lines about the same would contradict each other."""
    if match := re.match(r"-l ['\"]?([^=,\s]+)=[^,]*$", option):
        return f"-l {match[1]}"
    letter = option.split()[0]
    return option if letter in ("-l", "-W", "-v", "-M", "-m") else letter


def _quoted(text: str) -> str:
    """Quote an option's value as qsub reads it: as a shell does, without expansions."""
    return shlex.quote(text) if not text or re.search(r"[\s\"'\\]", text) else text


def split_id(name: str) -> tuple[str, str, int | None]:
    """Split the id of a job or task: its number, the id of the job, the index of the task.

    >>> split_id("58[3].server"), split_id("58[].server")
    (('58', '58[].server', 3), ('58', '58[].server', None))

    Raises:
        ValueError: it is no job id.
    """
    match = _JOB_ID.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} is no job id")
    number, index, server = match.groups()
    if index is None:
        return number, name, None
    return number, f"{number}[]{server}", int(index) if index else None


def hosts(exec_host: str) -> tuple[str, ...]:
    """Read the distinct hosts of ``exec_host``.

    >>> hosts("pn1/0*4+pn2/0*4"), hosts("tq2/0-3+tq1/1,3-5")
    (('pn1', 'pn2'), ('tq2', 'tq1'))
    """
    return tuple(dict.fromkeys(part.split("/")[0] for part in exec_host.split("+") if part))


STATES: dict[str, tuple[Status, Reason]] = {
    "B": (Status.RUNNING, Reason.NONE),
    "E": (Status.RUNNING, Reason.NONE),
    "H": (Status.PENDING, Reason.HELD),
    "M": (Status.PENDING, Reason.NONE),
    "Q": (Status.PENDING, Reason.NONE),
    "R": (Status.RUNNING, Reason.NONE),
    "S": (Status.RUNNING, Reason.SUSPENDED),
    "T": (Status.PENDING, Reason.NONE),
    "U": (Status.RUNNING, Reason.SUSPENDED),
    "W": (Status.PENDING, Reason.NONE),
}
"""The states that are no end, from qstat(1B): ``B`` is an array that has begun, ``E`` a job whose
output is being brought back, ``T`` and ``M`` one that moves to another server."""


@cache  # logs once per process and word
def state_of(word: str) -> tuple[Status, Reason]:
    """Return status and reason for a state that is no end; an unknown one is not final."""
    if word not in STATES:
        logger.warning("the job state %r of PBS is not known; taken as RUNNING", word)
    return STATES.get(word, (Status.RUNNING, Reason.NONE))


def verdict(
    code: int, own_codes: Mapping[int, Reason]
) -> tuple[Status, Reason, int | None, int | None]:
    """Read an exit status: status, reason, exit code, signal.

    Up to 255 it is the script's, from 257 it is 256 and a signal, below 0 the scheduler's own.
    SIGTERM is how ``qdel`` ends a job.
    """
    if code == 0:
        return Status.COMPLETED, Reason.NONE, 0, None
    if code == 256 + 15:
        return Status.CANCELLED, Reason.NONE, None, 15
    if code > 256:
        return Status.FAILED, Reason.SIGNALED, None, code - 256
    if code > 0:
        return Status.FAILED, Reason.NONZERO_EXIT, code, None
    return Status.FAILED, own_codes.get(code, Reason.LAUNCH_FAILURE), None, None


def check(output: Output, name: str, known: Iterable[int]) -> None:
    """Raise for an exit code of ``qstat`` that is none of ``known``."""
    if output.exit_code in {0, *known}:
        return
    if UNAVAILABLE.search(output.stderr):
        raise SchedulerUnavailableError(f"{name}: the server does not answer", output)
    raise SchedulerError(f"{name}: qstat failed", output)


def misunderstood(name: str, what: object, output: Output) -> NoReturn:
    """Raise for an answer that no rule understands."""
    raise ParseError(f"{name}: the answer is not understood: {what}", output)


def among(found: Iterable[JobInfo], ids: Sequence[str]) -> list[JobInfo]:
    """Pick the records of these jobs or tasks; all of them for no ids.

    That an array as a whole has ended is never told: PBS Pro then shows the exit status of the
    task that was the last to end, TORQUE shows it so while tasks still run.
    """
    wanted = {split_id(name)[1:] for name in ids}
    return [
        info
        for info in found
        if (not wanted or {(info.job_id, None), (info.job_id, info.task)} & wanted)
        and not (info.status.ended and info.task is None and "[" in info.job_id)
    ]
