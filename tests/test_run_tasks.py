"""Arrays as one run with tasks, and runs that depend on runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cjdask import (
    AsyncResult,
    JobCancelled,
    JobFailed,
    JobScript,
    Reason,
    ResourcesNotSupportedError,
    Status,
    SubmitError,
    wait_all,
)
from cjdask import backends as backends_module
from cjdask import jobscript as jobscript_module
from cjdask import jobscript_cache as cache_module
from cjdask import jobscript_submit as submit_module
from cjdask import monitor as monitor_module
from cjdask import run as run_module
from cjdask.backends import get_backend, register_backend
from cjdask.command import Output
from cjdask.resources import Resources
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo
from tests.fakes import FakeBackend, FakeProtocol


class ArrayBackend(FakeBackend):
    """A fake scheduler that prints what is asked for, and may refuse some arrays."""

    whole_only = False
    job_vars: ClassVar = {"CLUSTERJOB_ID": "FAKE_ID", "CLUSTERJOB_ARRAY_INDEX": "FAKE_TASK"}

    def headers(self, resources: Resources) -> list[str]:
        array = resources.array
        if self.whole_only and array and array.indices[-1] - array.indices[0] != len(array) - 1:
            raise ResourcesNotSupportedError("only arrays without a gap")
        asked = resources.plain()
        return [f"#FAKE {key}={asked[key]}" for key in resources.given()]

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        return f"{job_id}.{task}.{stream}"

    def tagged(self, resources: Any, tag: str) -> dict[str, Any]:
        return {**resources, "comment": tag}

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}_{task}"


@pytest.fixture(autouse=True)
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProtocol:
    """Put a fake machine behind the fake backend, and have a journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(ArrayBackend)
    protocol = FakeProtocol()
    scheduler = Scheduler(get_backend("fake"), protocol)
    for module in (jobscript_module, submit_module, run_module, cache_module):
        monkeypatch.setattr(module, "scheduler_for", lambda _: scheduler)
    monkeypatch.setattr(JobScript, "cache_folder", tmp_path / "cache")
    monkeypatch.setattr(submit_module, "_asked", {})
    return protocol


def job(body: str = "echo {array}", array: Any = "0-4", **kwargs: Any) -> JobScript:
    """Return an array for the fake scheduler."""
    return JobScript(body, "j", backend="fake", rootdir="jobs", array=array, **kwargs)


def end(protocol: FakeProtocol, job_id: str, codes: dict[int, int | None]) -> None:
    """Let the tasks of an array end with these exit codes, or cancelled."""
    protocol.queue.pop(job_id, None)
    protocol.history[job_id] = [
        JobInfo(job_id, Status.CANCELLED, task)
        if code is None
        else JobInfo(
            job_id,
            Status.FAILED if code else Status.COMPLETED,
            task,
            reason=Reason.NONZERO_EXIT if code else Reason.NONE,
            exit_code=code,
        )
        for task, code in codes.items()
    ]


def submitted(cache: str = "cache") -> list[str]:
    """Return what the last submitted script asked for."""
    last = max(Path("jobs/.cjdask").glob("*.fake"), key=lambda path: path.stat().st_mtime_ns)
    return [line for line in last.read_text().splitlines() if line.startswith("#FAKE array")]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the monitors know nothing, as in another process."""
    monkeypatch.setattr(monitor_module, "_monitors", {})
    monkeypatch.setattr(submit_module, "_asked", {})


def test_an_array_is_one_run(protocol: FakeProtocol) -> None:
    """Its tasks are counted by status, and each has its exit code, its record and its logs."""
    run = job().submit()
    assert run.counts == {Status.PENDING: 5}
    protocol.queue[run.job_id] = [
        JobInfo(run.job_id, Status.RUNNING, 0),
        JobInfo(run.job_id, Status.COMPLETED, 1, exit_code=0),
        JobInfo(run.job_id, Status.PENDING),
    ]
    run._monitor.refresh(max_age=0)
    assert run.counts == {Status.PENDING: 3, Status.RUNNING: 1, Status.COMPLETED: 1}
    assert (run.status, run.exit_code) == (Status.RUNNING, None)
    end(protocol, run.job_id, {0: 0, 1: 0, 2: 3, 3: None, 4: 0})
    assert run.get(timeout=60) is Status.FAILED
    assert {task: info.exit_code for task, info in run.tasks.items()} == {
        **{0: 0, 1: 0, 2: 3, 3: None, 4: 0}
    }
    assert run.counts == {Status.COMPLETED: 3, Status.CANCELLED: 1, Status.FAILED: 1}
    assert (run.exit_code, run.info.task) == (3, 2)
    Path("jobs", f"{run.job_id}.2.stderr").write_text("task two\n")
    assert run.stderr(task=2) == "task two\n"
    with pytest.raises(ValueError, match=r"is an array, name one of its tasks 0-4"):
        run.stderr()
    with pytest.raises(ValueError, match=r"task=9: .*0-4"):
        run.stderr(task=9)


def test_another_job_counts_as_one_task(protocol: FakeProtocol) -> None:
    """A run that is no array has one count and no tasks."""
    run = job("true", None).submit()
    protocol.end(run.job_id, Status.FAILED, exit_code=7)
    assert run.get(timeout=60) is Status.FAILED
    assert (run.counts, run.tasks, run.exit_code) == ({Status.FAILED: 1}, {}, 7)


def test_only_failed_tasks_run_again(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retried array submits the tasks that did not end well; the run still has all of them."""
    first = job(array="0-4%2").submit(cache_id="a")
    end(protocol, first.job_id, {0: 0, 1: 0, 2: 3, 3: None, 4: 0})
    assert first.get(timeout=60) is Status.FAILED
    forget(monkeypatch)
    again = job(array="0-4%2").submit(cache_id="a")
    assert again.job_id != first.job_id
    assert submitted() == ["#FAKE array=2-3%2"]
    assert again.counts == {Status.PENDING: 2, Status.COMPLETED: 3}
    assert again.status is Status.RUNNING
    end(protocol, again.job_id, {2: 0, 3: 0})
    assert again.get(timeout=60) is Status.COMPLETED
    assert sorted(again.tasks) == [0, 1, 2, 3, 4]
    assert {info.job_id for info in again.tasks.values()} == {first.job_id, again.job_id}
    Path("jobs", f"{first.job_id}.1.stdout").write_text("earlier")
    Path("jobs", f"{again.job_id}.2.stdout").write_text("later")
    assert (again.stdout(task=1), again.stdout(task=2)) == ("earlier", "later")
    with pytest.raises(ValueError, match="name one of its tasks 0-4"):
        again.stdout()
    forget(monkeypatch)
    calls = len(protocol.calls)
    last = job(array="0-4%2").submit(cache_id="a")
    assert (last.job_id, last.counts) == (again.job_id, {Status.COMPLETED: 5})
    assert len(protocol.calls) == calls


def test_the_text_of_a_retried_array_is_the_same(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What placeholders stand for does not change with what is asked of the scheduler."""
    first = job("echo {array} {jobname}").submit(cache_id="a")
    end(protocol, first.job_id, {0: 0, 1: 1, 2: 0, 3: 0, 4: 1})
    forget(monkeypatch)
    job("echo {array} {jobname}").submit(cache_id="a")
    assert submitted() == ["#FAKE array=1,4"]
    (script,) = Path("jobs/.cjdask").glob("*.fake")
    assert "\necho 0-4 j\n" in script.read_text()


def test_tasks_that_fail_again_and_again(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each retry leaves out what has ended well in any submission before."""
    run = job().submit(cache_id="a")
    for codes, asked in (
        ({0: 0, 1: 1, 2: 1, 3: 1, 4: 0}, "1-3"),
        ({1: 1, 2: 0, 3: 1}, "1,3"),
        ({1: 0, 3: 1}, "3"),
    ):
        end(protocol, run.job_id, dict(codes))
        forget(monkeypatch)
        run = job().submit(cache_id="a")
        assert submitted() == [f"#FAKE array={asked}"]
    end(protocol, run.job_id, {3: 0})
    forget(monkeypatch)
    assert AsyncResult.load("cache/clusterjob.a.json").get(timeout=60) is Status.COMPLETED


def test_all_tasks_run_again_where_it_must_be(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another script, force, or a scheduler without such arrays starts all tasks."""
    codes = {0: 0, 1: 1, 2: 0, 3: 0, 4: 1}
    run = job().submit(cache_id="a")
    for change in ("script", "force", "backend"):
        end(protocol, run.job_id, dict(codes))
        forget(monkeypatch)
        monkeypatch.setattr(ArrayBackend, "whole_only", change == "backend")
        body = "other" if change == "script" else "echo {array}"
        run = job(body).submit(cache_id="a", force=change == "force")
        assert submitted() == ["#FAKE array=0-4"], change
        assert run.counts == {Status.PENDING: 5}


def test_a_refused_retry_changes_nothing(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the scheduler refuses the retry, or the prologue fails, the ended run stays recorded."""
    run = job(epilogue="echo >>told").submit(cache_id="a")
    end(protocol, run.job_id, {0: 0, 1: 1, 2: 0, 3: 0, 4: 1})
    assert run.get(timeout=60) is Status.FAILED
    before = json.loads(Path("cache/clusterjob.a.json").read_text())
    forget(monkeypatch)

    def refuse(self: FakeBackend, output: Output) -> str:
        raise SubmitError("no more jobs today", output)

    with monkeypatch.context() as patch:
        patch.setattr(FakeBackend, "parse_submit", refuse)
        with pytest.raises(SubmitError):
            job(epilogue="echo >>told").submit(cache_id="a")
    assert json.loads(Path("cache/clusterjob.a.json").read_text()) == before
    again = job(epilogue="echo >>told").submit(cache_id="a")
    assert again.counts == {Status.PENDING: 2, Status.COMPLETED: 3}
    assert Path("told").read_text() == "\n"
    end(protocol, again.job_id, {1: 0, 4: 0})
    assert again.get(timeout=60) is Status.COMPLETED
    assert Path("told").read_text() == "\n\n"


def test_a_retry_that_was_killed_goes_on(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intent keeps which tasks had ended well, also where no job came of it."""
    run = job().submit(cache_id="a")
    end(protocol, run.job_id, {0: 0, 1: 1, 2: 0, 3: 0, 4: 1})
    forget(monkeypatch)
    run = job().submit(cache_id="a")
    file = run._file
    assert file is not None
    protocol.queue.pop(run.job_id)  # as if it never was
    file.write(replace(run._entry, job_id=None))
    monkeypatch.setattr(
        ArrayBackend, "find_commands", lambda self, tag, age: [self.query_command(["0"])]
    )
    monkeypatch.setattr(ArrayBackend, "parse_find", lambda self, output, tag: None)
    forget(monkeypatch)
    again = job().submit(cache_id="a")
    assert again.counts == {Status.PENDING: 2, Status.COMPLETED: 3}
    assert submitted() == ["#FAKE array=1,4"]


def test_runs_depend_on_runs(protocol: FakeProtocol) -> None:
    """A run or several may be named, and ids; those that ended well are not waited for."""
    runs = [job("true", None).submit(cache_id=name) for name in "ab"]

    def dependent(**kwargs: Any) -> JobScript:
        return JobScript("true", "d", backend="fake", rootdir="jobs", **kwargs)

    def asked() -> str:
        last = max(Path("jobs/.cjdask").glob("*.fake"), key=lambda p: p.stat().st_mtime_ns)
        return "".join(line for line in last.read_text().splitlines() if "depends" in line)

    dependent(depends=runs[0]).submit(cache_id="c")
    assert asked() == "#FAKE depends=['1']"
    dependent(depends=[*runs, "77"]).submit(cache_id="d")
    assert asked() == "#FAKE depends=['1', '2', '77']"
    protocol.end("1", Status.COMPLETED, exit_code=0)
    runs[0]._monitor.refresh(max_age=0)
    script = dependent(depends=runs)
    default = script.submit()
    assert asked() == "#FAKE depends=['2']"
    protocol.end("2", Status.COMPLETED, exit_code=0)
    wait_all(runs)
    assert dependent(depends=runs).submit().job_id == default.job_id  # the same script
    dependent(depends=runs).submit(cache_id="e")
    assert asked() == ""


@pytest.mark.parametrize(
    ("status", "error"), [(Status.FAILED, JobFailed), (Status.CANCELLED, JobCancelled)]
)
def test_no_job_for_what_can_never_start(
    protocol: FakeProtocol, status: Status, error: type[Exception]
) -> None:
    """Nothing is submitted that depends on a run which ended badly."""
    run = job("true", None).submit()
    protocol.end(run.job_id, status, exit_code=3)
    run.wait(timeout=60)
    count = len(protocol.calls)
    with pytest.raises(error, match=rf"depends on job 1 on fake would never start.*{status.name}"):
        JobScript("true", "d", backend="fake", rootdir="jobs", depends=[run]).submit()
    assert len(protocol.calls) == count
