"""The jobs of a recording, and the protocol that notes what is said."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from cjdask.backends import BatchBackend, get_backend
from cjdask.command import Command, Output
from cjdask.errors import (
    ClusterjobError,
    ResourcesNotSupportedError,
    SchedulerError,
    SubmitError,
)
from cjdask.jobscript import JobScript
from cjdask.protocols.base import Forward, Progress, Protocol, as_command
from cjdask.protocols.local import LocalProtocol
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo, Status
from cjdask.testing.dialogues import PLACES, Step

__all__ = ["Recorder", "RecordingError", "RecordingProtocol", "anonymiser"]

SETTLING = 20.0
"""Seconds that records of ended jobs may come later than the queue knows of the end."""

_NO_TAG = "cjdask-000000000000000000000000"

ARRAY_SIZE = 2
"""Tasks of the array."""


class RecordingError(Exception):
    """A recording cannot go on; the message says why and what to do."""


class RecordingProtocol(Protocol):
    """Another protocol; ``heard`` has the commands that it ran, with their outputs."""

    def __init__(self, inner: Protocol) -> None:
        self.inner = inner
        self.host = inner.host
        self.heard: list[tuple[Command, Output]] = []

    def run(self, command: Command | Sequence[str], timeout: float | None = None) -> Output:
        command = as_command(command)
        output = self.inner.run(command, timeout)
        self.heard.append((command, output))
        return output

    def which(self, program: str) -> str | None:
        return self.inner.which(program)

    def expand(self, path: str) -> str:
        return self.inner.expand(path)

    def create(self, path: str, content: str | bytes, executable: bool = False) -> None:
        self.inner.create(path, content, executable)

    def read(self, path: str, tail: int | None = None) -> bytes:
        return self.inner.read(path, tail)

    def upload(
        self,
        local_entries: Iterable[str | os.PathLike[str]],
        remote_path: str,
        progress: Progress | None = None,
    ) -> None:
        self.inner.upload(local_entries, remote_path, progress)

    def download(
        self,
        remote_entries: Iterable[str],
        local_path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> None:
        self.inner.download(remote_entries, local_path, progress)

    def forward(self, port: int, host: str = "localhost", local_port: int = 0) -> Forward:
        return self.inner.forward(port, host, local_port)

    def close(self) -> None:
        self.inner.close()


def anonymiser(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces whole words and paths in text, the longest first.

    >>> anonymiser({"ann": "user", "/home/ann": "/home/user"})("ann: /home/ann/x, annex")
    'user: /home/user/x, annex'
    """
    ordered = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, ordered))})(?![\w-])")
    return lambda text: pattern.sub(lambda match: names[match[0]], text) if names else text


@dataclass
class Scene:
    """What becomes one transcript: what it shows, and its steps."""

    shows: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


class Recorder:
    """Leads some jobs through their lives; ``scenes`` has what was said, a transcript each.

    ``jobs`` is what every job asks for, ``words`` what is replaced in the transcripts.
    """

    def __init__(
        self,
        backend: str,
        folder: str,
        jobs: Mapping[str, Any],
        words: Mapping[str, str],
        say: Callable[[str], None],
        patience: float,
    ) -> None:
        self.scenes: dict[str, Scene] = {}
        self._protocol = RecordingProtocol(LocalProtocol())
        self._scheduler = Scheduler(get_backend(backend), self._protocol)
        self._folder = folder
        self._asked = {"time": "10", **jobs}
        self._hide = anonymiser({**PLACES, **words})
        self._say = say
        self._patience = patience
        self._ids: dict[str, str] = {}
        self._open: set[str] = set()

    @property
    def backend(self) -> BatchBackend:
        """The backend, fitted to the scheduler."""
        backend = self._scheduler.backend
        assert isinstance(backend, BatchBackend)
        return backend

    # -- the play ------------------------------------------------------------------------------

    def play(self, held: Mapping[str, Any], refused: Mapping[str, Any]) -> None:
        """Record everything.

        Raises:
            RecordingError: a job does not start, or its end is not told.
            ClusterjobError: the scheduler refused what it must take, or does not answer.
        """
        _ = self.backend
        self._keep("probe", "what is asked before anything else", self._heard("probe", []))
        if refused:
            self._refusal(refused)
        self._submissions(held)
        self._running()
        self._ends("ended", ["good", "exit3", "array"])
        self._unknown()
        self._finds(held)
        self._cancels()
        self._ends("cancelled", ["long", "held", "waiting"])

    def clean_up(self) -> None:
        """Cancel the jobs that may not have ended."""
        ids = [self._ids[name] for name in sorted(self._open)]
        if not ids:
            return
        self._say(f"cancelling {', '.join(ids)}")
        try:
            self._scheduler.cancel(ids)
        except ClusterjobError as error:
            self._say(f"they may still be there: {error}")

    def _refusal(self, refused: Mapping[str, Any]) -> None:
        shown = ", ".join(f"{key}={value}" for key, value in refused.items())
        self._say(f"submitting a job with {shown}, to be refused")
        try:
            self._submit("refused", "true", refused)
        except SubmitError:
            self._keep("submit-refused", f"a job with {shown}", self._heard("submit", []))
            return
        raise RecordingError(f"a job with {shown} was not refused; name another --refused")

    def _submissions(self, held: Mapping[str, Any]) -> None:
        self._accepted("good", "a job", "true")
        self._accepted("exit3", "one to fail", "exit 3")
        body = "exit $(($CLUSTERJOB_ARRAY_INDEX - 1))"  # some schedulers count from 1 only
        self._if_possible("array", "an array", body, {"array": f"1-{ARRAY_SIZE}"})
        self._accepted("long", "one that runs long", "sleep 600")
        held = held or {"depends": self._ids["long"]}
        if self._if_possible("held", "two that may not start", "true", held):
            self._accepted("waiting", "", "true", held)

    def _running(self) -> None:
        ids = self._known(["long", "held", "waiting"])
        self._say(f"waiting until job {self._ids['long']} runs")
        for patient in self._polling():
            infos = self._ask("query-open", "query", ids)
            states = {info.job_id: info.status for info in infos}
            state = states.get(self._ids["long"], Status.PENDING)
            if state is Status.RUNNING:
                break
            if not patient or state.ended:
                raise RecordingError(f"job {self._ids['long']} is {state.name}, not RUNNING")
            if "query-open" not in self.scenes:
                self._keep("query-open", "pending jobs", self._heard("query", ids))
        shows = "one runs" + (", two may not start" if len(ids) > 1 else "")
        self._keep("query-open", shows, self._heard("query", ids))

    def _ends(self, what: str, names: Sequence[str]) -> None:
        """Wait until the scheduler tells that these jobs have ended, and keep its words."""
        ids = self._known(names)
        self._say(f"waiting until it is known that {', '.join(ids)} have ended")
        settled = inf
        for patient in self._polling():
            listed = self._ask(f"query-{what}", "query", ids)
            queue = self._heard("query", ids)
            told = self._ask(f"records-{what}", "ended", ids)
            records = self._heard("ended", ids)
            known = [*listed, *told]
            if all(
                self._over(listed, i) or self._over(told, i) or self._gone(known, i) for i in ids
            ):
                settled = min(settled, time.monotonic() + SETTLING)
            whole = settled < inf and (not records or all(self._over(told, i) for i in ids))
            if whole or time.monotonic() > settled or not patient:
                break
        shows = f"{what}: {', '.join(name for name in names if name in self._ids)}"
        self._keep(f"query-{what}", shows, queue)
        self._keep(f"records-{what}", shows, records)
        if settled == inf:
            raise RecordingError(
                f"after {self._patience:g} s it is not known that all of {', '.join(ids)} have "
                "ended; the last answers are in the transcripts. Is there another command for it?"
            )
        self._open -= set(names)

    def _gone(self, known: Iterable[JobInfo], job_id: str) -> bool:
        """Tell whether there is nothing of a job that never ran; some keep no record of it."""
        never_ran = job_id in self._known(["held", "waiting"])
        return never_ran and all(info.job_id != job_id for info in known)

    def _over(self, infos: Iterable[JobInfo], job_id: str) -> bool:
        own = [info for info in infos if info.job_id == job_id]
        tasks = ARRAY_SIZE if job_id == self._ids.get("array") else 1
        whole = len(own) >= tasks or any(info.task is None for info in own)
        return whole and all(info.status.ended for info in own)

    def _unknown(self) -> None:
        self._say("asking for a job that does not exist")
        for verb, ids in (
            ("query", [self._no_job()]),
            ("query", [self._no_job(), self._ids["long"]]),
            ("ended", [self._no_job()]),
        ):
            self._tolerant("unknown", "ids of no job, alone and beside another", verb, ids)

    def _finds(self, held: Mapping[str, Any]) -> None:
        """Look for a job by its tag, and for one that does not exist."""
        tag = f"cjdask-{secrets.token_hex(12)}"
        if not self.backend.find_commands(tag, 0.0):
            return
        self._say(f"looking for a job by its tag {tag}")
        self._submit("tagged", "true", self.backend.tagged(held, tag), f"{tag}.")
        for shows, wanted in (("a job by its tag", tag), ("one that is not there", _NO_TAG)):
            self._protocol.heard.clear()
            for command in self.backend.find_commands(wanted, 0.0):
                if self._protocol.which(command.argv[0]) is not None:
                    self._protocol.run(command)
            self._keep("find", shows, self._heard("find", [wanted]))

    def _cancels(self) -> None:
        ids = self._ids
        several = [ids["long"], ids.get("waiting", ids["good"])]
        orders = {
            "pending jobs": self._known(["held", "tagged"]),
            "several": several,
            "one that has ended": [ids["good"]],
            "one that does not exist": [self._no_job()],
        }
        for shows, order in orders.items():
            if order:
                self._say(f"cancelling {shows}: {', '.join(order)}")
                self._tolerant("cancel", shows, "cancel", order)

    # -- its parts -----------------------------------------------------------------------------

    def _known(self, names: Iterable[str]) -> list[str]:
        return [self._ids[name] for name in names if name in self._ids]

    def _no_job(self) -> str:
        """Return an id like those of this scheduler that no job has: all digits are nines."""
        return re.sub("[0-9]+", lambda m: "9" * max(6, len(m[0])), self._ids["long"], count=1)

    def _polling(self) -> Iterator[bool]:
        """Go on for ever, with a pause each time; tell whether there is still patience."""
        deadline = time.monotonic() + self._patience
        while True:
            yield time.monotonic() < deadline
            time.sleep(self._scheduler.poll_interval)

    def _submit(self, name: str, body: str, asked: Mapping[str, Any], prefix: str = "") -> None:
        wanted = {"jobname": f"cjdask-{name}", **self._asked, **asked}
        script = JobScript(body, wanted.pop("jobname"), backend=self._scheduler.name, **wanted)
        script.rootdir = f"{self._folder}/{name}"
        script.filename = prefix + self._script
        script.write()
        self._protocol.heard.clear()
        self._ids[name] = self._scheduler.submit(script, cwd=script.folder)
        self._open.add(name)

    @property
    def _script(self) -> str:
        return f"job.{self.backend.extension}"

    def _accepted(self, name: str, shows: str, body: str, asked: Mapping[str, Any] = {}) -> None:
        try:
            self._submit(name, body, asked)
        finally:
            self._keep("submit-accepted", shows, self._heard("submit", []))
        self._say(f"submitted job {self._ids[name]}: {body}")

    def _if_possible(self, name: str, shows: str, body: str, asked: Mapping[str, Any]) -> bool:
        try:
            self._submit(name, body, asked)
        except (ResourcesNotSupportedError, SubmitError) as error:
            self._say(f"left out {shows}: {error}")
            return False
        self._keep("submit-accepted", shows, self._heard("submit", []))
        self._say(f"submitted job {self._ids[name]}: {shows}")
        return True

    def _ask(self, scene: str, verb: str, ids: list[str]) -> list[JobInfo]:
        """Ask; an answer that is not understood is kept before the error goes on."""
        self._protocol.heard.clear()
        try:
            found: list[JobInfo] | None = getattr(self._scheduler, verb)(ids)
        except SchedulerError:
            self._keep(scene, "not understood", self._heard(verb, ids))
            raise
        return found or []

    def _tolerant(self, scene: str, shows: str, verb: str, ids: list[str]) -> None:
        self._protocol.heard.clear()
        try:
            getattr(self._scheduler, verb)(ids)
        except SchedulerError as error:
            self._say(f"the backend takes that for an error: {error}")
        self._keep(scene, shows, self._heard(verb, ids))

    # -- what was said -------------------------------------------------------------------------

    def _keep(self, scene: str, shows: str, steps: list[Step]) -> None:
        if steps:
            kept = self.scenes.setdefault(scene, Scene())
            kept.steps += steps
            if shows and shows not in kept.shows:
                kept.shows.append(shows)

    def _heard(self, verb: str, ids: Sequence[str]) -> list[Step]:
        """Return what was said since the last question, as steps."""
        steps = []
        size = self.backend.max_ids
        for number, (command, output) in enumerate(self._protocol.heard):
            if verb == "submit":
                argument = f"script={self._script}"
            elif verb == "probe":
                argument = f"number={number}"
            elif verb == "find":
                argument = f"tag={ids[0]},{number}"
            else:
                argument = f"ids={','.join(ids[number * size : (number + 1) * size])}"
            steps.append(self._step(verb, argument, command, output))
        return steps

    def _step(self, verb: str, argument: str, command: Command, output: Output) -> Step:
        texts = (str(command), output.stdout, output.stderr, argument)
        plain, hidden = (
            Step(text, out.splitlines(), err.splitlines(), output.exit_code, verb, arg)
            for text, out, err, arg in (texts, map(self._hide, texts))
        )
        if self._gist(plain) != self._gist(hidden):
            raise RecordingError(
                f"the answer to {command} reads otherwise when names are replaced: a user or host "
                "name is also a word of the scheduler. Keep it by --hide NAME=NAME"
            )
        return replace(hidden, expected=hidden.made(self.backend))

    def _gist(self, step: Step) -> object:
        try:
            parsed = step.parse(self.backend)
        except ClusterjobError as error:
            return type(error)
        if isinstance(parsed, str):
            return self._hide(parsed)
        return [(self._hide(info.job_id), info.task, info.status) for info in parsed]
