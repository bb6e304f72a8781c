"""The journal: cached runs, what is on disk, and what can be wrong with it."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cjdask import AsyncResult, JobScript, JournalError, ScriptError, Status, SubmitError
from cjdask import backends as backends_module
from cjdask import jobscript as jobscript_module
from cjdask import jobscript_once as once_module
from cjdask import jobscript_submit as submit_module
from cjdask import monitor as monitor_module
from cjdask import run as run_module
from cjdask.backends import get_backend, register_backend
from cjdask.command import Command, Output
from cjdask.errors import ProtocolError
from cjdask.journal import journal_file
from cjdask.resources import Resources
from cjdask.scheduler import Scheduler
from tests.fakes import FakeBackend, FakeProtocol


class TaggingBackend(FakeBackend):
    """A fake scheduler whose jobs are told by their script's name, which holds the tag."""

    def find_commands(self, tag: str, age: float) -> tuple[Command, ...]:
        return (Command.ask("fake-find", tag),)


class TaggingProtocol(FakeProtocol):
    """Remembers which script each job has; may lose its answer to a submission."""

    lose_answer: Exception | None = None

    def run(self, command: Command, timeout: float | None = None) -> Output:
        output = super().run(command, timeout)
        if command.argv[0] == "fake-submit":
            if self.lose_answer:
                raise self.lose_answer
        elif command.argv[0] == "fake-find":
            jobs = [call for call in self.calls if call[0] == "fake-submit"]
            lines = [f"{i} {call[1]}" for i, call in enumerate(jobs, 1)]
            return Output.of("\n".join(lines))
        return output

    def submitted(self) -> int:
        return sum(call[0] == "fake-submit" for call in self.calls)


@pytest.fixture(autouse=True)
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaggingProtocol:
    """Put a fake machine behind the fake backend, and have a journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(TaggingBackend)
    protocol = TaggingProtocol()
    scheduler = Scheduler(get_backend("fake"), protocol)
    for module in (jobscript_module, submit_module, run_module):
        monkeypatch.setattr(module, "scheduler_for", lambda _: scheduler)
    monkeypatch.setattr(JobScript, "cache_folder", tmp_path / "cache")
    monkeypatch.setattr(once_module, "UNSURE", 0.0)
    monkeypatch.setattr(submit_module, "_asked", {})
    return protocol


def job(body: str = "true", **kwargs: Any) -> JobScript:
    """Return a job for the fake scheduler."""
    return JobScript(body, "j", backend="fake", rootdir="jobs", **kwargs)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the monitors know nothing, as in another process."""
    monkeypatch.setattr(monitor_module, "_monitors", {})
    monkeypatch.setattr(submit_module, "_asked", {})


def the_file() -> Path:
    """Return the one file of the journal."""
    (path,) = Path("cache").glob("*.json")
    return path


def test_a_cached_run_is_returned(protocol: TaggingProtocol) -> None:
    """The same script is submitted once, and its prologue runs once; another one is another job."""
    first = job(prologue="echo >>told").submit()
    second = job(prologue="echo >>told").submit()
    assert second.job_id == first.job_id
    assert second.cache_file == first.cache_file == str(the_file().absolute())
    assert (protocol.submitted(), Path("told").read_text()) == (1, "\n")
    for other in (job("false"), job(queue="q"), job(workdir="w"), job(aux_scripts={"a": "b"})):
        assert other.submit().job_id != first.job_id
    assert protocol.submitted() == 5


def test_nothing_is_cached_unless_asked(
    protocol: TaggingProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder and an id each submit is a job, and no journal is there."""
    monkeypatch.setattr(JobScript, "cache_folder", None)
    assert job().submit().job_id != job().submit().job_id
    assert not list(Path().rglob("*.json"))
    first = job().submit(cache_id="mine")
    assert job("other").submit(cache_id="mine").job_id == first.job_id
    assert first.cache_file is not None
    assert Path(first.cache_file).parent == Path(".cjdask/runs").absolute()
    assert job().submit(cache_id="mine", cache_folder="own").job_id != first.job_id
    assert Path("own/clusterjob.mine.json").exists()


def test_an_end_is_kept(protocol: TaggingProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once known, the end of a cached run needs no scheduler, and its epilogue ran."""
    run = job(epilogue="echo >>told").submit(cache_id="a")
    protocol.end(run.job_id, Status.COMPLETED, exit_code=0)
    assert run.get(timeout=60) is Status.COMPLETED
    forget(monkeypatch)
    protocol.history.clear()
    calls = len(protocol.calls)
    again = job(epilogue="echo >>told").submit(cache_id="a")
    assert again.successful()
    assert again.info.describe() == run.info.describe() == "COMPLETED (exit code 0)"
    assert (len(protocol.calls), Path("told").read_text()) == (calls, "\n")


@pytest.mark.parametrize("end", [Status.FAILED, Status.CANCELLED])
def test_retry_and_force(
    protocol: TaggingProtocol, monkeypatch: pytest.MonkeyPatch, end: Status
) -> None:
    """A bad end is submitted again unless ``retry=False``, a good one only with ``force``."""
    first = job(epilogue="echo >>told").submit(cache_id="a")
    protocol.end(first.job_id, end)
    forget(monkeypatch)
    assert job().submit(cache_id="a", retry=False).job_id == first.job_id
    second = job().submit(cache_id="a")
    assert second.job_id != first.job_id
    assert Path("told").read_text() == "\n"
    protocol.end(second.job_id, Status.COMPLETED, exit_code=0)
    forget(monkeypatch)
    assert job().submit(cache_id="a").job_id == second.job_id
    assert job().submit(cache_id="a", force=True).job_id not in (first.job_id, second.job_id)


def test_another_process_runs_the_epilogue(protocol: TaggingProtocol) -> None:
    """Whoever loads the run and sees its end first runs the epilogue, nobody else does."""
    run = job(epilogue="echo >>told").submit()
    run.dump("run.json")
    other = AsyncResult.load("run.json")
    assert (other.job_id, other.cache_file) == (run.job_id, run.cache_file)
    protocol.end(run.job_id, Status.COMPLETED)
    assert other.get(timeout=60) is run.get(timeout=10) is Status.COMPLETED
    assert AsyncResult.load("run.json").ready()
    assert Path("told").read_text() == "\n"


def test_a_failing_epilogue_is_told_to_one(protocol: TaggingProtocol) -> None:
    """A failing epilogue of a recorded run is told with its output, and not run again."""
    run = job(epilogue="echo broken | tee -a told; exit 3").submit()
    protocol.end(run.job_id, Status.COMPLETED)
    with pytest.raises(ScriptError, match=r"COMPLETED, failed(?s:.*)code 3(?s:.*)broken"):
        run.get(timeout=60)
    assert run.get() is job(epilogue="echo broken | tee -a told; exit 3").submit().status
    assert Path("told").read_text() == "broken\n"


def test_dump_and_load_without_a_journal(
    protocol: TaggingProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is in no journal can be dumped, and is loaded with all that is known of it."""
    monkeypatch.setattr(JobScript, "cache_folder", None)
    run = job(epilogue="echo >>told", array="0-2").submit()
    run.dump("run.json")
    assert stat.S_IMODE(os.stat("run.json").st_mode) == 0o600
    protocol.end(run.job_id, Status.FAILED, exit_code=3)
    forget(monkeypatch)
    other = AsyncResult.load("run.json")
    assert sorted(other.tasks) == [0, 1, 2]
    run.cancel()
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        AsyncResult.load("nothing.json")


def test_files_are_private_json(protocol: TaggingProtocol) -> None:
    """Folders are 0700, files 0600, and their text is JSON with a format number."""
    job(epilogue="true", time="10", array=2, depends="7").submit(cache_id="a/b*?")
    assert stat.S_IMODE(os.stat("cache").st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path("cache").iterdir()} == {0o600}
    data = json.loads(the_file().read_text())
    assert (data["format"], data["cache_id"], data["job_id"]) == (1, "a/b*?", "1")
    asked = Resources.of({"jobname": "j", "time": "10", "array": 2, "depends": "7"})
    assert Resources.of(data["resources"]) == asked


def test_clearing_leaves_other_files(protocol: TaggingProtocol) -> None:
    """Only the files of runs with our prefix are removed."""
    job(epilogue="true").submit(cache_id="a")
    for name in ("notes.txt", "other.a.json"):
        Path("cache", name).touch()
    JobScript.clear_cache_folder()
    assert sorted(os.listdir("cache")) == ["notes.txt", "other.a.json"]
    job().submit(cache_id="a")
    assert protocol.submitted() == 2


def test_cache_settings_belong_to_the_class() -> None:
    """An instance cannot have a cache folder or prefix of its own."""
    with pytest.raises(AttributeError, match="cache_folder"):
        job(cache_folder="x")
    with pytest.raises(AttributeError, match="cache_prefix"):
        job().cache_prefix = "x"  # type: ignore[misc]


def test_a_refused_job_leaves_nothing(protocol: TaggingProtocol) -> None:
    """After a refusal there is no intent, and the next submit does not look for a job."""
    protocol.down = True
    with pytest.raises(SubmitError):
        job().submit()
    assert not list(Path("cache").glob("*.json"))
    protocol.down = False
    assert job().submit().job_id == "1"
    assert not any(call[0] == "fake-find" for call in protocol.calls)


def test_a_lost_answer_is_found_again(protocol: TaggingProtocol) -> None:
    """A submission without an answer is an error; the next submit finds the job by its tag."""
    protocol.lose_answer = ProtocolError("no answer after 120 s")
    with pytest.raises(ProtocolError):
        job().submit()
    protocol.lose_answer = None
    assert job().submit().job_id == "1"
    assert protocol.submitted() == 1


def test_a_begun_job_is_known_by_its_record(
    protocol: TaggingProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the scheduler has forgotten the job, or has no tags, the job's own record tells."""
    monkeypatch.setattr(TaggingBackend, "find_commands", FakeBackend.find_commands)
    protocol.lose_answer = ProtocolError("no answer after 120 s")
    with pytest.raises(ProtocolError):
        job().submit()
    protocol.lose_answer = None
    with pytest.raises(JournalError, match=r"cannot be asked whether it got.*force=True"):
        job().submit()
    assert protocol.submitted() == 1
    (script,) = Path("jobs/.cjdask").glob("*.fake")
    subprocess.run(["bash", script], env={**os.environ, "FAKE_ID": "1"}, check=True)
    assert job().submit().job_id == "1"
    assert protocol.submitted() == 1


def damage(kind: str) -> None:
    """Make the journal's one file unusable."""
    path = the_file()
    data = json.loads(path.read_text())
    if kind == "cut short":
        path.write_text(path.read_text()[:100])
    elif kind == "future":
        path.write_text(json.dumps({**data, "format": 2, "new": 1}))
    elif kind == "no run":
        path.write_text("[1]")
    elif kind == "missing":
        del data["tag"]
        path.write_text(json.dumps(data))
    elif kind == "foreign":
        os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut short", "damaged or cut short.*force=True"),
        ("no run", "damaged or cut short"),
        ("missing", "damaged or cut short.*tag"),
        ("future", "has format 2, this version of cjdask reads format 1"),
        ("foreign", "belongs to another user .uid 12345."),
    ],
)
def test_an_unusable_file(protocol: TaggingProtocol, kind: str, words: str) -> None:
    """A file that cannot be believed is an error that names it, and nothing is submitted."""
    if kind == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    job().submit(cache_id="a")
    damage(kind)
    with pytest.raises(JournalError, match=words) as caught:
        job().submit(cache_id="a")
    assert "clusterjob.a.json" in str(caught.value)
    assert protocol.submitted() == 1
    if kind != "foreign":
        job().submit(cache_id="a", force=True)
        assert protocol.submitted() == 2


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_the_intent(protocol: TaggingProtocol) -> None:
    """Where the intent cannot be written nothing is submitted, and no part of a file is left."""
    with full_disk(), pytest.raises((JournalError, OSError), match="File too large"):
        job().submit()
    assert protocol.submitted() == 0
    file = journal_file("cache", "clusterjob", "a")
    job().submit(cache_id="a")
    before = Path(file.path).read_bytes()
    entry = file.read()
    assert entry is not None
    with full_disk(), pytest.raises(JournalError, match="make room"):
        file.write(entry)
    assert Path(file.path).read_bytes() == before
    assert not [name for name in os.listdir("cache") if name.startswith(".")]


def test_no_room_for_the_id(
    protocol: TaggingProtocol,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where only the id cannot be written the run is returned, and found again by its intent."""
    submit = protocol.run
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(command: Command, timeout: float | None = None) -> Output:
        output = submit(command, timeout)
        if command.argv[0] == "fake-submit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        return output

    monkeypatch.setattr(protocol, "run", fill)
    try:
        run = job().submit(cache_id="a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(protocol, "run", submit)
    assert "job 1 was submitted, but its id" in caplog.text
    assert job().submit(cache_id="a").job_id == run.job_id
    assert protocol.submitted() == 1


@pytest.mark.parametrize("folder", ["file/cache", "/sys/cjdask"])
def test_an_unwritable_folder(protocol: TaggingProtocol, tmp_path: Path, folder: str) -> None:
    """A folder that cannot be made or written is an error, and nothing is submitted."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be written"):
        job().submit(cache_folder=folder)
    assert protocol.submitted() == 0


def test_a_lock_lasts_as_long_as_the_command(tmp_path: Path) -> None:
    """A command that was given the lock keeps it when its parent is killed."""
    code = (
        "import os, signal, subprocess, sys\n"
        "from cjdask.journal import JournalFile\n"
        "with JournalFile(sys.argv[1]).lock() as lock:\n"
        "    argv = ['sh', '-c', 'sleep 0.7; echo >ended']\n"
        "    subprocess.Popen(argv, pass_fds=[lock])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "run.json"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    file = journal_file(tmp_path, "run", "x")
    file.path = str(path)
    with file.lock():
        assert (tmp_path / "ended").exists()


def test_the_record_can_be_left_out(protocol: TaggingProtocol) -> None:
    """What is submitted has the lines of the record, unless they are not wanted."""

    class Own(JobScript):
        def __str__(self) -> str:
            return super().__str__()

    job().submit(cache_folder=None)
    (first,) = Path("jobs/.cjdask").glob("*.fake")
    assert "cj_end" in first.read_text()
    assert "cj_end" not in Path("jobs/j.fake").read_text()
    job(exit_record=False, workdir="a").submit()
    Own("true", "j", backend="fake", rootdir="jobs", workdir="b").submit()
    for folder in "ab":
        (script,) = Path("jobs", folder, ".cjdask").glob("*.fake")
        assert script.read_text() == Path("jobs", folder, "j.fake").read_text()


@pytest.mark.long
def test_many_cached_runs_cost_one_question(
    protocol: TaggingProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitting a thousand recorded jobs again asks once, and so does their status."""
    first = job().submit(cache_id="0")
    file = journal_file("cache", "clusterjob", "0")
    entry = file.read()
    assert entry is not None
    for i in range(1, 1000):
        other = journal_file("cache", "clusterjob", str(i))
        other.write(replace(entry, tag=f"{entry.tag}{i}", cache_id=str(i), job_id=str(i + 1)))
        protocol.set(str(i + 1), Status.RUNNING)
    forget(monkeypatch)
    protocol.calls.clear()
    runs = [job().submit(cache_id=str(i)) for i in range(1000)]
    assert len({run.job_id for run in runs}) == 1000
    assert protocol.calls[0][0] == "fake-query"
    assert {call[0] for call in protocol.calls} == {"fake-query"}
    assert len(protocol.calls) == 1
    assert first.job_id == runs[0].job_id
    monkeypatch.setattr(runs[0]._monitor, "min_interval", 3600.0)
    runs[0]._monitor.refresh(max_age=0)
    began = time.process_time()
    assert {run.status for run in runs} == {Status.PENDING, Status.RUNNING}
    assert time.process_time() - began < 1.0
    assert len(protocol.calls) == 2
