"""The files of runs in job folders: gone when they are of no use, there as long as they are."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cjdask import AsyncResult, JobScript, ScriptError, Status, SubmitError
from cjdask import backends as backends_module
from cjdask import jobscript as jobscript_module
from cjdask import jobscript_cache as cache_module
from cjdask import jobscript_submit as submit_module
from cjdask import monitor as monitor_module
from cjdask import run as run_module
from cjdask import run_files as files_module
from cjdask.backends import get_backend, register_backend
from cjdask.command import Command
from cjdask.errors import JournalError, ProtocolError
from cjdask.journal import JournalFile
from cjdask.monitor import LOST_AFTER, Monitor
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo
from tests.fakes import FakeBackend, FakeClock, FakeProtocol

RECORDS = Path("jobs/.cjdask")
DAY = 86400


@pytest.fixture(autouse=True)
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProtocol:
    """Put a fake machine behind the fake backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(FakeBackend)
    protocol = FakeProtocol()
    scheduler = Scheduler(get_backend("fake"), protocol)
    for module in (jobscript_module, submit_module, run_module, cache_module):
        monkeypatch.setattr(module, "scheduler_for", lambda _: scheduler)
    monkeypatch.setattr(JobScript, "cache_folder", None)
    monkeypatch.setattr(submit_module, "_asked", {})
    monkeypatch.setattr(files_module, "PAUSE", 0.0)
    return protocol


def job(body: str = "exit 0", **kwargs: Any) -> JobScript:
    """Return a job for the fake scheduler."""
    return JobScript(body, "j", backend="fake", rootdir="jobs", **kwargs)


def files(of: AsyncResult | None = None) -> set[str]:
    """Return the endings of the files of a run, or the names of all files but README."""
    names = {path.name for path in RECORDS.iterdir()} - {"README"}
    if of is None:
        return names
    tag = of._entry.tag
    return {name.removeprefix(f"{tag}.") for name in names if name.startswith(tag)}


def perform(run: AsyncResult, **env: str) -> None:
    """Run the script of a job, as its scheduler would."""
    script = RECORDS / f"{run._entry.tag}.fake"
    path = script if script.exists() else Path("jobs/j.fake")
    subprocess.run(["bash", path], env={**os.environ, "FAKE_ID": run.job_id, **env}, check=False)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process know nothing, as another one."""
    monkeypatch.setattr(monitor_module, "_monitors", {})
    monkeypatch.setattr(submit_module, "_asked", {})
    monkeypatch.setattr(files_module, "_files", {})


@pytest.mark.parametrize("cached", [True, False])
def test_nothing_is_left_of_a_run_that_is_over(protocol: FakeProtocol, cached: bool) -> None:
    """When its end is known its script and its records go, other files stay."""
    run = job().submit(cache_id="a" if cached else None)
    assert files(run) == ({"fake"} if cached else set())
    perform(run)
    assert files(run) == {"begin", "end"} | ({"fake"} if cached else set())
    (RECORDS / "notes").touch()
    protocol.end(run.job_id, Status.COMPLETED)
    assert run.get(timeout=60) is Status.COMPLETED
    assert files() == {"notes"}
    assert Path("jobs/j.fake").exists()


def test_tasks_keep_theirs_until_the_array_is_over(protocol: FakeProtocol) -> None:
    """The records of tasks go when all of them have ended."""
    run = job(array="0-1").submit(cache_id="a")
    perform(run, CLUSTERJOB_ARRAY_INDEX="0")
    queued = JobInfo(run.job_id, Status.PENDING)
    protocol.queue[run.job_id] = [replace(queued, task=0, status=Status.COMPLETED), queued]
    run._monitor.refresh(max_age=0)
    assert run.counts == {Status.PENDING: 1, Status.COMPLETED: 1}
    assert files(run) == {"fake", "0.begin", "0.end"}
    perform(run, CLUSTERJOB_ARRAY_INDEX="1")
    protocol.queue.clear()
    assert run.get(timeout=60) is Status.COMPLETED
    assert files() == set()


def test_many_runs_cost_few_commands(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that end at the same time are removed together, the last ones when others are."""
    monkeypatch.setattr(files_module, "PAUSE", 3600.0)
    runs = [job().submit(cache_id=str(i)) for i in range(30)]
    protocol.calls.clear()
    removed: list[int] = []
    run = protocol.run

    def counting(command: Any, timeout: float | None = None) -> Any:
        if files_module._REMOVE in command.argv:
            removed.append(len(command.argv) - 4)
        return run(command, timeout)

    monkeypatch.setattr(protocol, "run", counting)
    for each in runs:
        protocol.end(each.job_id, Status.COMPLETED)
    for each in runs:
        each.get(timeout=60)
    assert removed == [1]
    files_module.flush_all()
    assert removed == [1, 29]
    assert files() == set()


def test_what_a_killed_process_left(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that finds the end of a run recorded removes what is left of it at its own end."""
    run = job().submit(cache_id="a")
    protocol.end(run.job_id, Status.COMPLETED)
    with monkeypatch.context() as patch:
        patch.setattr(files_module.RunFiles, "over", lambda self, *records: None)
        run.get(timeout=60)
    assert files(run) == {"fake"}
    forget(monkeypatch)
    assert job().submit(cache_id="a").job_id == run.job_id
    assert files(run) == {"fake"}
    files_module.flush_all()
    assert files() == set()


def test_what_an_unfinished_submission_left(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script of a submission that no job came of goes at the latest with the next run's."""
    monkeypatch.setattr(FakeBackend, "find_commands", lambda *_: [Command.ask("fake-query")])
    monkeypatch.setattr(FakeBackend, "parse_find", lambda *_: None)
    first = job().submit(cache_id="a")
    file = first._file
    assert file is not None
    protocol.queue.clear()
    file.write(replace(first._entry, job_id=None))  # as if it was killed before there was a job
    forget(monkeypatch)
    with monkeypatch.context() as patch:  # and the next one before it removed the old script
        patch.setattr(files_module.RunFiles, "over", lambda self, *records: None)
        second = job().submit(cache_id="a")
    assert (files(first), files(second)) == ({"fake"}, {"fake"})
    protocol.end(second.job_id, Status.COMPLETED)
    assert second.get(timeout=60) is Status.COMPLETED
    assert files() == set()


def test_a_run_without_files_costs_nothing(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is not recorded, of a script that leaves no record, has nothing to remove."""
    run = job("#!/usr/bin/env python3\npass").submit()
    protocol.end(run.job_id, Status.COMPLETED)
    files_module.flush_all()  # what other tests have left
    commands: list[Any] = []
    monkeypatch.setattr(files_module.RunFiles, "_run", lambda self, *argv: commands.append(argv))
    run.dump("run.json")
    assert run.get(timeout=60) is Status.COMPLETED
    files_module.flush_all()
    assert commands == []
    assert not RECORDS.exists()


def test_a_refused_job_leaves_no_script(protocol: FakeProtocol) -> None:
    """What was written for a job that the scheduler refused is removed."""
    protocol.down = True
    with pytest.raises(SubmitError):
        job().submit(cache_id="a")
    assert files() == set()


def test_another_process_needs_no_record(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a run that another process saw the end of learns it from the journal."""
    run = job().submit(cache_id="a")
    monitor = Monitor(run._scheduler, clock=(clock := FakeClock()))
    other = monitor.track(run.job_id, record=run._evidence)
    perform(run)
    protocol.queue.clear()  # the scheduler forgets the job
    assert run.get(timeout=60) is Status.COMPLETED
    assert files() == set()
    clock.now += 1
    monitor.refresh(max_age=0)
    assert (other.status, other.infos[None].exit_code) == (Status.COMPLETED, 0)


def test_a_lost_job_is_lost(protocol: FakeProtocol) -> None:
    """Where neither a record nor the journal has the end the job is lost, after a time."""
    run = job().submit(cache_id="a")
    monitor = Monitor(run._scheduler, clock=(clock := FakeClock()))
    other = monitor.track(run.job_id, record=run._evidence)
    protocol.queue.clear()
    for _ in range(2):
        monitor.refresh(max_age=0)
        clock.now += LOST_AFTER
    assert other.status is Status.FAILED


def test_the_record_stays_where_the_end_is_not_noted(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the journal cannot be written the job's own record is kept, for the next process."""
    run = job().submit(cache_id="a")
    perform(run)
    protocol.end(run.job_id, Status.COMPLETED)

    def full(self: JournalFile, path: str, text: str) -> None:
        raise JournalError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(JournalFile, "_replace", full)
        assert run.get(timeout=60) is Status.COMPLETED
    assert "the end of job 1 is not recorded" in caplog.text
    assert files(run) == {"fake", "begin", "end"}


def test_an_attached_handle_removes_nothing(protocol: FakeProtocol) -> None:
    """A job that is known by its id only may be somebody else's, whose files stay."""
    run = job().submit(cache_id="a")
    perform(run)
    protocol.end(run.job_id, Status.COMPLETED)
    other = AsyncResult.attach(run.job_id, "fake", "jobs")
    assert other._entry.record == run._entry.record
    assert other.get(timeout=60) is Status.COMPLETED
    assert files(run) == {"fake", "begin", "end"}
    assert run.get(timeout=60) is Status.COMPLETED
    assert files() == set()


def test_forgetting_what_has_ended(protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry, force and clearing remove what is left of runs that have ended."""
    monkeypatch.setattr(JobScript, "cache_folder", "cache")
    seen = set()
    for how in ("retry", "force", "clear"):
        run = job().submit(cache_id="a")
        protocol.end(run.job_id, Status.FAILED, exit_code=3)
        run.get(timeout=60)
        (RECORDS / f"{run._entry.tag}.end").touch()  # as if it was killed before it removed them
        forget(monkeypatch)
        if how == "clear":
            JobScript.clear_cache_folder()
            assert files() == set()
        else:
            again = job().submit(cache_id="a", force=how == "force")
            assert (files(run), files(again)) == (set(), {"fake"})
            protocol.end(again.job_id, Status.COMPLETED, exit_code=0)
            again.get(timeout=60)
            JobScript.clear_cache_folder()
        seen.add(run.job_id)
    assert len(seen) == 3


@pytest.mark.parametrize("how", ["force", "clear"])
def test_forgetting_what_lives(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A job that may not have ended keeps its script and its records; they go with time."""
    monkeypatch.setattr(JobScript, "cache_folder", "cache")
    run = job().submit(cache_id="a")
    perform(run)
    if how == "clear":
        JobScript.clear_cache_folder()
    else:
        job().submit(cache_id="a", force=True)
    assert files(run) == {"fake", "begin", "end", "forgotten"}
    for name in files(run):
        age(RECORDS / f"{run._entry.tag}.{name}", 31)
    forget(monkeypatch)
    job().submit()
    assert files(run) == set()


def age(path: Path, days: float) -> None:
    """Let a file be as old as this."""
    past = time.time() - days * DAY
    os.utime(path, (past, past))


@pytest.mark.parametrize(
    ("names", "days", "left"),
    [
        (["begin", "end"], 29, True),
        (["begin", "end"], 31, False),
        (["begin"], 31, False),
        (["0.begin", "0.end", "1.begin"], 31, False),
        (["begin", "end", "kept"], 31, True),
        (["fake", "begin", "end"], 31, True),
        (["fake"], 364, True),
        (["fake", "begin", "end"], 366, False),
        (["fake", "begin", "end", "forgotten"], 31, False),
        (["fake", "begin", "end", "forgotten"], 29, True),
    ],
)
def test_time_removes_what_nobody_asks_for(names: list[str], days: float, left: bool) -> None:
    """Old files go with the next submission into the folder; those of recorded runs much later."""
    RECORDS.mkdir(parents=True)
    (RECORDS / "README").touch()
    age(RECORDS / "README", 1000)
    for name in names:
        path = RECORDS / f"cjdask-{'0' * 24}.{name}"
        path.touch()
        age(path, days)
    job().submit()
    assert files() == ({f"cjdask-{'0' * 24}.{name}" for name in names} if left else set())


def test_the_youngest_file_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that began long ago keeps its files until long after its end."""
    RECORDS.mkdir(parents=True)
    for name, days in (("begin", 100.0), ("end", 1.0)):
        path = RECORDS / f"cjdask-{'0' * 24}.{name}"
        path.touch()
        age(path, days)
    job().submit()
    assert len(files()) == 2


def test_a_dumped_run_is_kept(protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of a run that was dumped waits for the process that loads it."""
    run = job().submit()
    run.dump("run.json")
    perform(run)
    assert files(run) == {"begin", "end", "kept"}
    for name in files(run):
        age(RECORDS / f"{run._entry.tag}.{name}", 100)
    del run
    forget(monkeypatch)
    job("other").submit()
    del protocol.queue["1"]
    other = AsyncResult.load("run.json")
    assert other.get(timeout=60) is Status.COMPLETED
    assert files() == set()


def test_a_machine_that_does_not_answer(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that cannot be removed now disturb nobody."""
    run = job(epilogue="exit 3").submit(cache_id="a")
    protocol.end(run.job_id, Status.COMPLETED)
    run._monitor.refresh(max_age=0)

    def down(*_: Any, **__: Any) -> None:
        raise ProtocolError("no route to host")

    monkeypatch.setattr(protocol, "run", down)
    with pytest.raises(ScriptError):
        run.get(timeout=60)
    assert run.get() is Status.COMPLETED
    assert files(run) == {"fake"}
