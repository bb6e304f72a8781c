"""Runs of other processes: attached to by file, by the scheduler's id, by cache_id."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cjdask import (
    AsyncResult,
    JobScript,
    JournalError,
    ResourcesNotSupportedError,
    Status,
    UnknownBackendError,
)
from cjdask import backends as backends_module
from cjdask import jobscript as jobscript_module
from cjdask import jobscript_cache as cache_module
from cjdask import jobscript_submit as submit_module
from cjdask import run as run_module
from cjdask.backends import get_backend, register_backend
from cjdask.journal import journal_file
from cjdask.scheduler import Scheduler, scheduler_for
from tests.fakes import FakeBackend, FakeProtocol


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProtocol:
    """Put a fake machine behind the fake backend, and have a journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(FakeBackend)
    protocol = FakeProtocol()
    scheduler = Scheduler(get_backend("fake"), protocol)

    def find(name: str) -> Scheduler:
        return scheduler if name == "fake" else scheduler_for(name)

    for module in (jobscript_module, submit_module, run_module, cache_module):
        monkeypatch.setattr(module, "scheduler_for", find)
    monkeypatch.setattr(JobScript, "cache_folder", tmp_path / "cache")
    monkeypatch.setattr(submit_module, "_asked", {})
    return protocol


def job(body: str = "true", **kwargs: Any) -> JobScript:
    """Return a job for the fake scheduler."""
    return JobScript(body, "relax", backend="fake", rootdir="jobs", **kwargs)


def test_by_cache_id(protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded run is found by its id, in the folder of the class, the default, or another."""
    run = job().submit(cache_id="si/7")
    found = JobScript.cached_run("si/7")
    assert (found.job_id, found.cache_id, found.jobname) == (run.job_id, "si/7", "relax")
    assert found.submitted == pytest.approx(time.time(), abs=60)
    assert found.cache_file == run.cache_file
    job().submit(cache_id="other", cache_folder="own")
    assert JobScript.cached_run("other", cache_folder="own").job_id == "2"
    monkeypatch.setattr(JobScript, "cache_folder", None)
    job().submit(cache_id="third")
    assert JobScript.cached_run("third").job_id == "3"


def test_no_such_cache_id(protocol: FakeProtocol) -> None:
    """An unknown id is an error that names similar ones; an intent says what to do."""
    with pytest.raises(FileNotFoundError, match=r"no run with cache_id='a' in .*cache$"):
        JobScript.cached_run("a")
    job().submit(cache_id="relax-7")
    with pytest.raises(FileNotFoundError, match=r"similar ones are 'relax-7'"):
        JobScript.cached_run("relax7")
    file = journal_file("cache", "clusterjob", "relax-7")
    entry = file.read()
    assert entry is not None
    file.write(replace(entry, job_id=None))
    with pytest.raises(JournalError, match=r"an intent to submit.*cache_id='relax-7'"):
        JobScript.cached_run("relax-7")


def test_a_list_of_recorded_runs(protocol: FakeProtocol, caplog: pytest.LogCaptureFixture) -> None:
    """All runs are listed in the order of submission; what cannot be read is told and left out."""
    assert JobScript.cached_runs() == []
    for name in "cabxyz":
        job().submit(cache_id=name)
    for name, damage in (("x", b"{"), ("y", None), ("z", b"")):
        file = journal_file("cache", "clusterjob", name)
        entry = file.read()
        assert entry is not None
        if damage is None:
            file.write(replace(entry, job_id=None))
        elif damage:
            Path(file.path).write_bytes(damage)
        else:
            file.write(replace(entry, backend="gone"))
    protocol.calls.clear()
    assert [run.cache_id for run in JobScript.cached_runs()] == ["c", "a", "b"]
    assert protocol.calls == []
    assert "clusterjob.x.json is damaged or cut short" in caplog.text
    assert "'gone'" in caplog.text


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """It is not taken for one without runs, as one that is not there is."""
    (tmp_path / "file").touch()
    for read in (JobScript.cached_runs, lambda folder: JobScript.cached_run("a", folder)):
        with pytest.raises(JournalError, match=r"file.* cannot be read: Not a directory"):
            read(tmp_path / "file")
    assert JobScript.cached_runs(tmp_path / "none") == []


def test_listing_a_thousand_runs(protocol: FakeProtocol) -> None:
    """A thousand runs are listed in less than a second of CPU, and asked for by one question."""
    job(epilogue="true", array=3).submit(cache_id="0")
    first = journal_file("cache", "clusterjob", "0")
    entry = first.read()
    assert entry is not None
    for i in range(1, 1000):
        other = journal_file("cache", "clusterjob", str(i))
        Path(other.path).write_text(
            Path(first.path)
            .read_text()
            .replace(entry.tag, f"{entry.tag}{i}")
            .replace('"job_id": "1"', f'"job_id": "{i + 1}"')
        )
        protocol.set(str(i + 1), Status.RUNNING)
    protocol.calls.clear()
    began = time.process_time()
    runs = JobScript.cached_runs()
    assert time.process_time() - began < 1.0
    assert (len(runs), protocol.calls) == (1000, [])
    runs[0]._monitor.min_interval = 3600.0
    began = time.process_time()
    counts = [run.counts for run in runs]
    assert counts[0] == {Status.PENDING: 3}
    assert {tuple(count) for count in counts[1:]} == {(Status.RUNNING,)}
    assert time.process_time() - began < 1.0
    assert [call[0] for call in protocol.calls] == ["fake-query"]


def test_by_the_scheduler_s_id(protocol: FakeProtocol) -> None:
    """A job that is known by its id has a status, an exit code and logs, and can be cancelled."""
    submitted = job().submit()
    run = AsyncResult.attach(submitted.job_id, "fake", "jobs", jobname="relax")
    assert (run.status, run.cache_id, run.submitted) == (Status.PENDING, None, None)
    Path("jobs/1.stdout").write_text("hello\n")
    assert run.stdout() == "hello\n"
    protocol.end("1", Status.FAILED, exit_code=3)
    assert (run.get(timeout=60), run.exit_code) == (Status.FAILED, 3)
    other = AsyncResult.attach("2", "fake")
    protocol.set("2", Status.RUNNING)
    other.cancel()
    assert other.get(timeout=60) is Status.CANCELLED
    array = AsyncResult.attach("3", "fake", array="0-9")
    assert len(array.tasks) == 10


def test_attaching_to_nonsense(protocol: FakeProtocol) -> None:
    """An unknown backend, or a wrong resource, is refused."""
    with pytest.raises(UnknownBackendError, match="'slrm'"):
        AsyncResult.attach("1", "slrm")
    with pytest.raises(ResourcesNotSupportedError, match="array='x'"):
        AsyncResult.attach("1", "fake", array="x")


SUBMIT = """
from cjdask import JobScript
body = "while [ ! -e go ]; do sleep 0.05; done; echo out $CLUSTERJOB_ARRAY_INDEX; exit 3"
run = JobScript(body, "relax", backend="local", array=2).submit(cache_id="a")
run.dump("run.json")
print(run.job_id)
"""
SEE = """
import sys
from cjdask import AsyncResult, JobScript
how, value = sys.argv[1:]
if how == "file":
    run = AsyncResult.load(value)
elif how == "cache_id":
    run = JobScript.cached_run(value)
else:
    run = AsyncResult.attach(value, "local", jobname="relax", array=2)
print(run.get(timeout=60).name, run.exit_code, run.stdout(task=1))
"""


@pytest.mark.long
def test_from_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the submitting process others wait for the job by file, by cache_id and by id."""
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))

    def python(*argv: str) -> subprocess.Popen[str]:
        argv = (sys.executable, "-W", "error", "-c", *argv)
        return subprocess.Popen(argv, cwd=tmp_path, text=True, stdout=subprocess.PIPE)

    job_id = python(SUBMIT).communicate(timeout=60)[0].strip()
    others = {
        "file": "run.json",
        "cache_id": "a",
        "id": job_id,
    }
    processes = [python(SEE, *how) for how in others.items()]
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert answers == ["FAILED 3 out 1\n\n"] * 3
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert {path.name for path in (tmp_path / ".cjdask").iterdir()} == {"README", "runs"}


SCRIPT = """
import sys
from cjdask import JobScript
JobScript.cache_folder = "cache"
run = JobScript({body!r}, "job", backend="local").submit()
print(run.job_id, run.get(timeout=60).name, run.stdout())
"""


@pytest.mark.long
def test_another_script_is_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scripts with the same settings and names get results of their own, each its own again."""
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))

    def answer(body: str) -> list[str]:
        argv = [sys.executable, "-W", "error", "-c", SCRIPT.format(body=body)]
        done = subprocess.run(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.split()

    assert answer("echo one") == ["1", "COMPLETED", "one"]
    assert answer("echo two") == ["2", "COMPLETED", "two"]
    assert answer("echo one") == ["1", "COMPLETED", "one"]
    assert answer("echo two") == ["2", "COMPLETED", "two"]
