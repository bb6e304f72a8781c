"""Transcripts: dialogues with schedulers as text, read and written.

A transcript is a text file. Its head says where it comes from, then come the steps::

    # scheduler: Slurm 22.05.8 (Debian 12)
    # what: one running job

    $ squeue --noheader --jobs=84
    84|RUNNING|
    [stderr]
    squeue: a warning
    [exit 0]
    [parse query ids=84]
    -> {"job_id": "84", "status": "RUNNING"}

``[stderr]`` is left out where there is none; further lines of a command begin with ``> ``. The
``[parse ...]`` line names the method and its arguments: ``submit script=FILE``, or ``query``,
``ended``, ``cancel`` with ``ids=A,B``, or ``find tag=TAG,N`` for the command number N that looks
for a tag. Below it is what the parser makes of the answer: ``-> "84"`` for the id of a job, else
one ``->`` line for each record, with the fields that are not as in an empty record, or
``-> none``; or ``!! ErrorClass: text in the message``. In commands ``PYTHON`` is the interpreter
and ``CJDASK`` the folder of the package.

A backend that has to be fitted to the scheduler first has a third line in its head: either
``# fitted: {...}`` with the arguments of its class, or ``# probed: FILE``, the transcript beside
it with the steps ``probe number=0``, ``number=1`` and so on.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path

import cjdask
from cjdask.backends import BatchBackend
from cjdask.command import Command, Output
from cjdask.errors import ClusterjobError
from cjdask.resources import Resources
from cjdask.status import JobInfo, Status

__all__ = [
    "PLACES",
    "Step",
    "anonymous",
    "fitted",
    "missing",
    "read",
    "shown",
    "write",
]

PLACES = {sys.executable: "PYTHON", str(Path(cjdask.__file__).parent): "CJDASK"}
"""Places of this machine that are part of commands, and their names in transcripts."""


_PARSE = re.compile(r"\[parse (submit|query|ended|cancel|find|probe) (\S+=\S+)\]")


@dataclass(frozen=True)
class Step:
    """One command, its answer, and what the parser is to make of it."""

    command: str
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    exit_code: int = 0
    verb: str = ""
    """``submit``, ``query``, ``ended``, ``cancel``, ``find`` or ``probe``."""
    argument: str = ""
    """What the method is called with: ``script=FILE``, ``ids=A,B``, ``tag=TAG,N``, ``number=N``."""
    expected: list[str] = field(default_factory=list)

    @property
    def value(self) -> str:
        """The argument without its name."""
        return self.argument.partition("=")[2]

    @property
    def output(self) -> Output:
        """The answer as the parser gets it."""
        stdout, stderr = ("".join(f"{s}\n" for s in lines) for lines in (self.stdout, self.stderr))
        return Output.of(stdout, stderr, self.exit_code, tuple(shlex.split(self.command)))

    def build(self, backend: BatchBackend) -> Command:
        """Return the command that the backend builds for this step.

        Raises:
            ValueError: the backend has no such command.
        """
        if self.verb == "submit":
            return backend.submit_command(Resources(), self.value)
        if self.verb == "probe":
            return dict(enumerate(backend.probe_commands()))[int(self.value)]
        if self.verb == "find":
            tag, _, number = self.value.partition(",")
            return dict(enumerate(backend.find_commands(tag, 0.0)))[int(number)]
        command = getattr(backend, f"{self.verb}_command")(self.value.split(","))
        if not isinstance(command, Command):
            raise ValueError(f"backend {backend.name!r} has no command for {self.verb!r}")
        return command

    def parse(self, backend: BatchBackend) -> str | list[JobInfo]:
        """Return what the backend makes of the answer: a job id, or records; none of a tag.

        Raises:
            SchedulerError: the parser refuses the answer.
        """
        if self.verb == "submit":
            return backend.parse_submit(self.output)
        if self.verb == "probe":
            return []
        if self.verb == "find":
            return backend.parse_find(self.output, self.value.partition(",")[0]) or []
        return getattr(backend, f"parse_{self.verb}")(self.output, self.value.split(",")) or []

    def made(self, backend: BatchBackend) -> list[str]:
        """Return the lines that say what the parser makes of the answer."""
        try:
            result = self.parse(backend)
        except ClusterjobError as error:
            sign, message = f"!! {type(error).__name__}: ", str(error)
            if len(self.expected) == 1 and self.expected[0].startswith(sign):
                text = self.expected[0].removeprefix(sign)
                if text in message:
                    return [sign + text]
            return [sign + message.splitlines()[0]]
        if isinstance(result, str):
            return [f"-> {json.dumps(result)}"]
        return [f"-> {shown(info)}" for info in result] or ["-> none"]

    def __str__(self) -> str:
        lines = ["$ " + self.command.replace("\n", "\n> "), *self.stdout]
        lines += ["[stderr]", *self.stderr] if self.stderr else []
        lines += [f"[exit {self.exit_code}]", f"[parse {self.verb} {self.argument}]"]
        return "\n".join([*lines, *self.expected]) + "\n"


def shown(info: JobInfo) -> str:
    """Write a record as JSON, without the fields that say nothing.

    >>> shown(JobInfo("84", Status.RUNNING, nodes=("n1",)))
    '{"job_id": "84", "status": "RUNNING", "nodes": ["n1"]}'
    """
    record = {
        f.name: value.name if isinstance(value, Enum) else value
        for f in fields(info)
        if (value := getattr(info, f.name)) != f.default or f.default is MISSING
    }
    return json.dumps(record, ensure_ascii=False)


def anonymous(command: Command) -> str:
    """Write a command without the places of this machine."""
    text = str(command)
    for place, name in PLACES.items():
        text = text.replace(place, name)
    return text


def write(path: Path, head: list[str], steps: list[Step]) -> None:
    """Write a transcript."""
    path.write_text("\n".join(["\n".join(head), "", *map(str, steps)]), encoding="utf-8")


def read(path: Path) -> tuple[list[str], list[Step]]:
    """Read a transcript: the lines of its head, its steps.

    Raises:
        ValueError: a line is out of place.
    """
    head, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    return head.splitlines(), list(_steps(body.splitlines(), path))


def _steps(lines: list[str], path: Path) -> Iterator[Step]:
    """Read the steps; the lines below one are its expectations up to the next ``$``."""
    step: Step | None = None
    into: list[str] | None = None
    for number, line in enumerate(lines):
        if step is None or step.verb:
            if line.startswith("$ "):
                if step is not None:
                    yield step
                step = Step(line[2:])
                into = step.stdout
            elif step is not None and line.startswith(("-> ", "!! ")):
                step.expected.append(line)
            elif line and not line.startswith("# "):
                raise ValueError(f"{path.name}: line {number} of the steps is odd: {line}")
        elif _goes_on(step.command):
            step = replace(step, command=f"{step.command}\n{line.removeprefix('> ')}")
        elif line == "[stderr]":
            into = step.stderr
        elif match := re.fullmatch(r"\[exit (-?[0-9]+)\]", line):
            step = replace(step, exit_code=int(match[1]))
            into = None
        elif match := re.fullmatch(
            r"\[parse (submit|query|ended|cancel|find|probe) (\S+=\S+)\]", line
        ):
            step = replace(step, verb=match[1], argument=match[2])
        elif into is None:
            raise ValueError(f"{path.name}: line {number} of the steps is odd: {line}")
        else:
            into.append(line)
    if step is None or not step.verb:
        raise ValueError(f"{path.name} has no whole step at its end")
    yield step


def _goes_on(command: str) -> bool:
    """Tell whether a quotation in a command goes on in the next line."""
    try:
        return not shlex.split(command)
    except ValueError:
        return True


def fitted(backend: BatchBackend, path: Path) -> BatchBackend:
    """Return the backend as the head of a transcript says that it was fitted.

    Raises:
        SchedulerError: the answers of the probe commands are not understood.
    """
    for line in read(path)[0]:
        key, _, text = line.removeprefix("# ").partition(": ")
        if key == "fitted":
            return type(backend)(**json.loads(text))
        if key == "probed":
            return backend.probed([step.output for step in read(path.with_name(text))[1]])
    return backend


def missing(steps: list[Step]) -> list[str]:
    """Say what the transcripts of a backend lack: a command, or a final status."""
    seen = {
        json.loads(line[3:])["status"]
        for step in steps
        for line in step.expected
        if step.verb in ("query", "ended") and line.startswith("-> {")
    }
    verbs = [verb for verb in ("submit", "query", "cancel") if verb not in {s.verb for s in steps}]
    ends = [status.name for status in Status if status.ended and status.name not in seen]
    return [f"a {verb} command" for verb in verbs] + [f"a job that is {end}" for end in ends]
