"""The checks of a site: what works there, and what to do where it does not."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjdask.backends import BatchBackend, get_backend, survey
from cjdask.errors import ClusterjobError, SchedulerError, SubmitError
from cjdask.jobscript import JobScript
from cjdask.journal import JournalFile
from cjdask.resources import Resources
from cjdask.run import AsyncResult, cancel_all
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.status import JobInfo, Status

__all__ = ["Check", "Examination"]

NODES, PPN = 2, 2
"""The shape of the trial job."""
EXIT_CODE = 3
"""What the job returns that is to fail."""
SETTLING = 20.0
"""Seconds that a scheduler's record of an ended job may come late."""
FILES_LATE = 20.0
"""Seconds that a shared folder may take to show here what a node wrote."""

_NO_FOLDER = "if nodes have no such folder, name one that they have by --workdir"

_PROCESS = """
f={folder}/process.$CLUSTERJOB_RANK
(
    uname -n
    echo "$CLUSTERJOB_NODE_RANK"
    cat {folder}/token
    {python} -c {program} 2>&1 | tail -n 1
) >$f.new
mv $f.new $f
"""
_PROGRAM = "import cjdask, platform; print('Python', platform.python_version())"


@dataclass(frozen=True)
class Check:
    """One finding: ``ok``, ``warn`` or ``fail``, what it is about, and what to do."""

    state: str
    about: str
    text: str
    advice: str = ""


@dataclass
class Examination:
    """Looks at a scheduler and sends trial jobs; `checks` tells what it finds as it goes.

    ``asked`` is what every trial job asks for. ``say`` is told what is being waited for. No
    job and no file of it is left when the checks are over, or are closed.
    """

    name: str
    asked: Mapping[str, Any]
    workdir: str
    patience: float
    say: Callable[[str], None]
    nodes: int = NODES
    _runs: dict[str, AsyncResult] = field(default_factory=dict)
    _scripts: dict[str, JobScript] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _begun: float = field(default_factory=time.time)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler that is looked at."""
        return scheduler_for(self.name)

    def checks(self) -> Generator[Check, None, None]:
        """Yield what is found; the jobs are sent where the scheduler answers."""
        for look in (self._commands, self._answer):
            yield (check := look())
            if check.state == "fail":
                return
        yield from self._records_command()
        yield from self._folder_checks()

    # -- without a job ---------------------------------------------------------------------------

    def _commands(self) -> Check:
        found = next(each for each in survey() if each.name == self.name)
        backend = get_backend(self.name)
        if not isinstance(backend, BatchBackend):
            text = f"{self.name} is a backend of this site, which is asked about one job at a time"
            return Check("warn", "scheduler", text)
        if None in found.paths.values():
            advice = "call this where jobs are submitted, or put the commands on PATH"
            return Check("fail", "scheduler", f"{self.name}: {found.why}", advice)
        if self.name == "local":
            others = any(each.found and each.name != self.name for each in survey())
            what = "is used" if others else "is found"
            text = f"no scheduler {what} but the embedded one: jobs run on this machine"
            return Check("ok", "scheduler", text)
        return Check("ok", "scheduler", f"{self.name}: {found.why}")

    def _answer(self) -> Check:
        begun = time.monotonic()
        try:
            self.scheduler.query(["1"])
        except ClusterjobError as error:
            return Check("fail", "answer", str(error), "see to the scheduler first")
        return Check("ok", "answer", f"it answers in {time.monotonic() - begun:.1f} s")

    def _records_command(self) -> Iterator[Check]:
        backend = self.scheduler.backend
        command = backend.ended_command(["1"]) if isinstance(backend, BatchBackend) else None
        if command is not None and self.scheduler.protocol.which(command.argv[0]) is None:
            text = f"{command.argv[0]} is not there: jobs that left the queue cannot be asked for"
            yield Check("warn", "accounting", text, "keep exit_record = True, the default")

    # -- the trial jobs --------------------------------------------------------------------------

    def _folder_checks(self) -> Iterator[Check]:
        try:
            folder = os.path.realpath(tempfile.mkdtemp(prefix="cjdask-doctor-", dir=self.workdir))
        except OSError as error:
            yield Check("fail", "folder", f"{error}", "name a folder of yours by --workdir")
            return
        try:
            Path(folder, "token").write_text(self._token + "\n")
            yield from self._trial(folder)
        finally:
            self._end_jobs()
            shutil.rmtree(folder, ignore_errors=True)

    def _trial(self, folder: str) -> Iterator[Check]:
        yield from self._submit_shape(folder)
        if "nodes" in self._runs:
            yield self._check_tag(self._runs["nodes"])
        yield from self._submit("array", folder, "true", array="1-2")
        yield from self._submit("fails", folder, f"exit {EXIT_CODE}")
        if not self._runs:
            return
        yield from self._wait()
        if self._ended("nodes"):
            yield from self._check_nodes(folder)
        if self._ended("array"):
            yield self._check_array()
        if self._ended("fails"):
            yield self._check_exit_code()
        yield from self._check_records()

    def _submit_shape(self, folder: str) -> Iterator[Check]:
        """Submit the job of several processes: on two nodes, or on one if that cannot be."""
        if self.name != "local":
            yield from self._submit("nodes", folder, "{launch}", nodes=NODES, ppn=PPN)
        if "nodes" not in self._runs:
            self.nodes = 1
            yield from self._submit("nodes", folder, "{launch}", ppn=PPN)

    def _submit(self, name: str, folder: str, body: str, **more: Any) -> Iterator[Check]:
        script = JobScript(body, f"doctor-{name}", backend=self.name, rootdir=folder, workdir=name)
        script.resources.update({"time": "10", **self.asked, **more})
        try:
            script.launch = self._launch(script.resources, folder)
            self._runs[name] = script.submit(
                cache_id=name, cache_folder=os.path.join(folder, "runs")
            )
            self._scripts[name] = script
        except (ClusterjobError, KeyError) as error:
            what = (
                f"a job with {', '.join(f'{k}={v}' for k, v in more.items())}" if more else "a job"
            )
            told = "is refused" if isinstance(error, SubmitError) else "cannot be submitted"
            advice = "say by -r KEY=VALUE what the site wants: queue, account, ..."
            yield Check("fail", name, f"{what} {told}: {error}", advice)

    def _launch(self, asked: Mapping[str, Any], folder: str) -> str:
        process = _PROCESS.format(
            folder=shlex.quote(folder),
            python=shlex.quote(sys.executable),
            program=shlex.quote(_PROGRAM),
        )
        backend = self.scheduler.renderer
        if not isinstance(backend, BatchBackend):
            return f"CLUSTERJOB_RANK=0 CLUSTERJOB_NODE_RANK=0\n{process}"
        return backend.launcher(Resources.of(asked), process)

    def _wait(self) -> Iterator[Check]:
        """Wait for the trial jobs, as long as the patience lasts."""
        names = ", ".join(run.job_id for run in self._runs.values())
        self.say(f"waiting for the trial jobs {names}, at most {self.patience:g} s")
        deadline = time.monotonic() + self.patience
        for name, run in self._runs.items():
            run.wait(max(0.0, deadline - time.monotonic()))
            if not run.known().status.ended:
                text = f"job {run.job_id} is {run.known().describe()} after {self.patience:g} s"
                advice = "give it more --patience, or by -r what would start it sooner"
                yield Check("fail", name, text, advice)

    def _ended(self, name: str) -> bool:
        return name in self._runs and self._runs[name].known().status.ended

    def _end_jobs(self) -> None:
        """Cancel the jobs that are still there, and wait a little for that."""
        left = [run for run in self._runs.values() if not run.known().status.ended]
        if left:
            cancel_all(left)
            for run in left:
                run.wait(SETTLING / len(left))

    # -- what came of them -----------------------------------------------------------------------

    def _check_nodes(self, folder: str) -> Iterator[Check]:
        run = self._runs["nodes"]
        expected = self.nodes * PPN
        answers = self._answers(folder, expected if run.known().status is Status.COMPLETED else 0)
        if run.known().status is not Status.COMPLETED:
            yield self._failed(run)
            return
        info = run.known()
        after = ""
        if info.start_time and info.submit_time:
            after = f", {info.start_time - info.submit_time:.0f} s after its submission"
        yield Check("ok", "job", f"job {run.job_id} ran{after}, and returned 0")
        yield self._check_folder(answers)
        yield self._check_launcher(answers, expected)
        if answers:
            yield self._check_python(answers)

    def _answers(self, folder: str, expected: int) -> dict[int, list[str]]:
        """Return what the processes wrote, by their ranks; wait for ``expected`` of them."""
        deadline = time.monotonic() + (FILES_LATE if expected else 0.0)
        while True:
            os.listdir(folder)  # has a network file system look anew
            found = {
                int(path.name.removeprefix("process.")): path.read_text().splitlines()
                for path in Path(folder).glob("process.*[0-9]")
            }
            if len(found) >= expected or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def _failed(self, run: AsyncResult) -> Check:
        try:
            log, advice = run.stderr(tail=10) or run.stdout(tail=10), ""
        except (OSError, ClusterjobError, ValueError):
            log, advice = f"it left no log in {os.path.abspath(self.workdir)}", _NO_FOLDER
        nodes = ", ".join(run.known().nodes) or "no node"
        text = f"job {run.job_id} on {nodes} is {run.known().describe()}\n{log.rstrip()}"
        return Check("fail", "job", text, advice)

    def _check_folder(self, answers: Mapping[int, list[str]]) -> Check:
        advice = f"name a folder that all nodes share by --workdir; {self.workdir} is none"
        if not answers:
            text = f"nothing that the job wrote in {self.workdir} can be seen here"
            return Check("fail", "folder", text, advice)
        blind = {lines[0] for lines in answers.values() if self._token not in lines}
        if blind:
            text = f"what is written here cannot be read on {', '.join(sorted(blind))}"
            return Check("fail", "folder", text, advice)
        hosts = ", ".join(sorted({lines[0] for lines in answers.values()}))
        return Check("ok", "folder", f"{os.path.abspath(self.workdir)} is shared with {hosts}")

    def _check_launcher(self, answers: Mapping[int, list[str]], expected: int) -> Check:
        hosts = sorted({lines[0] for lines in answers.values()})
        if sorted(answers) != list(range(expected)):
            text = f"of {expected} processes {len(answers)} ran, of ranks {sorted(answers)}"
            return Check("fail", "launcher", text, "see the scheduler's page in the documentation")
        text = f"{expected} processes on {', '.join(hosts)}, ranks 0 to {expected - 1}"
        if len(hosts) < self.nodes:
            text = f"{text}: one machine for {self.nodes} nodes"
            return Check("warn", "launcher", text, "ask for whole nodes, or see the site's rules")
        return Check("ok", "launcher", text)

    def _check_python(self, answers: Mapping[int, list[str]]) -> Check:
        told = {lines[0]: lines[-1] for lines in answers.values()}
        bad = [f"{host}: {text}" for host, text in told.items() if not text.startswith("Python ")]
        if bad:
            text = f"{sys.executable} does not start with cjdask on all nodes\n" + "\n".join(bad)
            advice = "Dask workers and Python calls need it: install it in a shared folder"
            return Check("warn", "python", text, advice)
        return Check("ok", "python", f"{sys.executable} starts there ({next(iter(told.values()))})")

    def _check_array(self) -> Check:
        run = self._runs["array"]
        tasks = run.known_tasks()
        if all(info.status is Status.COMPLETED for info in tasks.values()):
            return Check("ok", "array", f"tasks 1 and 2 of job {run.job_id} ended well")
        told = ", ".join(f"task {index} is {info.describe()}" for index, info in tasks.items())
        return Check("fail", "array", f"{told} in job {run.job_id}")

    def _check_exit_code(self) -> Check:
        run = self._runs["fails"]
        info = run.known()
        known = (info.status, info.exit_code) == (Status.FAILED, EXIT_CODE)
        text = f"job {run.job_id}, which is to return {EXIT_CODE}, is {info.describe()}"
        return Check("ok" if known else "fail", "exit code", text)

    def _check_records(self) -> Iterator[Check]:
        """Ask the scheduler for the ended jobs."""
        wanted = {run.job_id for name, run in self._runs.items() if self._ended(name)}
        if not wanted:
            return
        deadline = time.monotonic() + SETTLING
        while True:
            rows: list[JobInfo] = []
            try:
                rows = self.scheduler.ended(sorted(wanted)) or self.scheduler.query(sorted(wanted))
            except ClusterjobError as error:
                yield Check("warn", "accounting", str(error), "see to the scheduler's accounting")
                return
            listed = {row.job_id for row in rows if row.status.ended}
            if listed == wanted or time.monotonic() > deadline:
                break
            time.sleep(1.0)
        if listed == wanted:
            yield Check("ok", "accounting", "the scheduler has records of the ended jobs")
        else:
            text = "the scheduler has no records of jobs that have left the queue"
            advice = "their exit codes come from what job scripts leave: keep exit_record = True"
            yield Check("warn", "accounting", text, advice)

    def _check_tag(self, run: AsyncResult) -> Check:
        """Look for a job by its tag, as is done after a crash while it was submitted."""
        entry = JournalFile(run.cache_file or "").read()
        assert entry is not None
        try:
            found = self.scheduler.find(entry.tag, time.time() - self._begun)
        except SchedulerError as error:
            text, advice = str(error), "a crash during a submission may need a look by hand"
            return Check("warn", "tag", text, advice)
        if found == run.job_id:
            return Check("ok", "tag", "jobs are found by the tag that they carry")
        text = f"job {run.job_id} is not found by its tag"
        return Check("warn", "tag", text, "after a crash its own record in .cjdask is looked for")
