"""Prologue and epilogue: what runs on the submitter's own machine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cjdask import JobScript, ScriptError, Status
from cjdask import backends as backends_module
from cjdask import jobscript as jobscript_module
from cjdask.backends import get_backend, register_backend
from cjdask.scheduler import Scheduler
from tests.fakes import FakeBackend, FakeProtocol


@pytest.fixture(autouse=True)
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProtocol:
    """Put a fake machine behind the fake backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(FakeBackend)
    protocol = FakeProtocol()
    scheduler = Scheduler(get_backend("fake"), protocol)
    monkeypatch.setattr(jobscript_module, "scheduler_for", lambda _: scheduler)
    return protocol


def job(**kwargs: str) -> JobScript:
    """Return a job for the fake scheduler."""
    return JobScript("true", "j", backend="fake", rootdir="jobs", **kwargs)


def test_the_prologue_runs_before_the_submission(protocol: FakeProtocol) -> None:
    """It is rendered as the body is, and runs in the current folder, before anything is written."""
    script = job(prologue="ls -A jobs 2>/dev/null; echo {queue} ${HOME:+home} >told; mkdir jobs")
    script.resources["queue"] = "long"
    assert not protocol.calls
    script.submit()
    assert Path("told").read_text() == "long home\n"
    assert Path("jobs/j.fake").exists()


def test_a_failing_prologue_stops_the_submission(protocol: FakeProtocol) -> None:
    """Its output and exit code are in the error, nothing is written and nothing submitted."""
    script = job(prologue="echo to stdout; echo to stderr >&2; exit 7")
    with pytest.raises(ScriptError) as caught:
        script.submit()
    for words in ("the prologue of job 'j' failed", "to stdout", "to stderr", "exit code 7"):
        assert words in str(caught.value)
    assert caught.value.output.exit_code == 7
    assert protocol.calls == []
    assert not Path("jobs").exists()


def test_a_bad_placeholder_is_told_first(protocol: FakeProtocol) -> None:
    """What cannot be rendered, be it the epilogue, is an error before the prologue runs."""
    for script in (job(prologue="touch ran", epilogue="{nope}"), job(prologue="touch ran")):
        if not script.epilogue:
            script.body = "{nope}"
        with pytest.raises(KeyError, match="nope"):
            script.submit()
    assert not Path("ran").exists()
    assert protocol.calls == []


def test_scripts_have_their_own_interpreter(protocol: FakeProtocol) -> None:
    """The ``#!`` line of a prologue is heeded; without one it is the shell of the job."""
    job(prologue="#!/usr/bin/env python3\nopen('py', 'w').write('{jobname}')\n").submit()
    assert Path("py").read_text() == "j"
    job(prologue="echo $0 >shell", shell="/bin/sh -e").submit()
    assert Path("shell").exists()


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_the_epilogue_runs_once(protocol: FakeProtocol, end: Status) -> None:
    """However the job ends, the first that learns of it runs the epilogue, nobody else does."""
    run = job(epilogue="echo {jobname} >>told").submit()
    assert run.status is Status.PENDING
    assert not Path("told").exists()
    protocol.end(run.job_id, end)
    assert run.get(timeout=60) is end
    assert Path("told").read_text() == "j\n"
    run.wait()
    assert (run.status, run.ready(), run.info.status) == (end, True, end)
    assert Path("told").read_text() == "j\n"


def test_the_epilogue_runs_after_a_cancel(
    protocol: FakeProtocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was cancelled runs its epilogue, in the folder it was submitted from."""
    run = job(epilogue="touch told").submit()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.cancel()
    assert run.get(timeout=60) is Status.CANCELLED
    assert (tmp_path / "told").exists()


def test_a_failing_epilogue_is_told_once(protocol: FakeProtocol) -> None:
    """The error has the output; the status stays right, and `run_epilogue` may try again."""
    run = job(epilogue="echo broken; test -e repaired").submit()
    protocol.end(run.job_id, Status.COMPLETED, exit_code=0)
    with pytest.raises(ScriptError, match=r"job 1, which is COMPLETED, failed(?s:.*)broken"):
        run.get(timeout=60)
    assert run.get() is Status.COMPLETED
    assert run.successful()
    with pytest.raises(ScriptError):
        run.run_epilogue()
    Path("repaired").touch()
    run.run_epilogue()


def test_no_epilogue_before_the_end(protocol: FakeProtocol) -> None:
    """`run_epilogue` of a job that has not ended is refused."""
    run = job(epilogue="touch told").submit()
    with pytest.raises(ValueError, match="has not ended"):
        run.run_epilogue()
    assert not Path("told").exists()


def test_many_threads_run_one_epilogue(protocol: FakeProtocol) -> None:
    """Of several that wait, one runs the epilogue, and all return after it."""
    run = job(epilogue="sleep 0.2; echo once >>told").submit()
    seen: list[str] = []

    def wait() -> None:
        run.get(timeout=60)
        seen.append(Path("told").read_text())

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    protocol.end(run.job_id, Status.COMPLETED)
    for thread in threads:
        thread.join(20)
    assert seen == ["once\n"] * 5
