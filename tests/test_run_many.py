"""Waiting for many runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cjdask import JobScript, ScriptError, Status, as_completed, wait_all
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
    return JobScript("true", "j", backend="fake", **kwargs)


def test_runs_come_in_the_order_of_their_ends(protocol: FakeProtocol) -> None:
    """Each run is yielded once, when it has ended, also one that had ended before."""
    runs = [job().submit() for _ in range(3)]
    protocol.end("2", Status.FAILED)
    assert runs[1].get(timeout=60) is Status.FAILED
    ended = as_completed(runs, timeout=20)
    assert next(ended) is runs[1]
    protocol.end("3", Status.COMPLETED)
    assert next(ended) is runs[2]
    protocol.end("1", Status.COMPLETED)
    assert list(ended) == [runs[0]]
    assert list(as_completed([])) == []


def test_waiting_for_all(protocol: FakeProtocol) -> None:
    """The statuses come in the order of the runs, and many runs cost one query a cycle."""
    runs = [job(epilogue=f"echo >>told.{i}").submit() for i in range(50)]
    for run in runs:
        protocol.end(run.job_id, Status.FAILED if run.job_id == "7" else Status.COMPLETED)
    protocol.calls.clear()
    statuses = wait_all(runs, timeout=20)
    assert [i for i, status in enumerate(statuses, 1) if status is not Status.COMPLETED] == [7]
    assert [call[0] for call in protocol.calls] == ["fake-query", "fake-ended"]
    assert {Path(f"told.{i}").read_text() for i in range(50)} == {"\n"}
    assert wait_all([]) == []


def test_not_all_end_in_time(protocol: FakeProtocol) -> None:
    """Runs that have not ended in time are an error that counts them."""
    runs = [job().submit() for _ in range(3)]
    protocol.end("2", Status.COMPLETED)
    with pytest.raises(TimeoutError, match=r"2 of 3 runs have not ended after 0\.2 s"):
        wait_all(runs, timeout=0.2)
    assert not runs[0]._monitor._waited


def test_a_failing_epilogue_does_not_hide_the_others(protocol: FakeProtocol) -> None:
    """Its error is raised when all runs have ended and all epilogues were run."""
    runs = [job(epilogue=f"touch told.{i}; exit {i}").submit() for i in range(3)]
    for run in runs:
        protocol.end(run.job_id, Status.COMPLETED)
    with pytest.raises(ScriptError):
        wait_all(runs, timeout=20)
    assert len(list(Path().glob("told.*"))) == 3
    assert wait_all(runs) == [Status.COMPLETED] * 3
