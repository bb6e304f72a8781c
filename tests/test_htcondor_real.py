"""What only a real HTCondor can tell: procs as nodes, limits, holds, the environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends.base import BatchBackend
from cjdask.backends.htcondor import HTCondorBackend
from cjdask.errors import SubmitError
from cjdask.jobscript import JobScript
from cjdask.resources import Resources
from cjdask.scheduler import scheduler_for
from cjdask.status import Reason, Status
from cjdask.testing import until

pytestmark = [
    pytest.mark.htcondor,
    pytest.mark.usefixtures("htcondor"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def job(open_folder: Path) -> Callable[..., JobScript]:
    """Return a function that makes a job script in a folder of its own."""

    def make(name: str, body: str, **asked: Any) -> JobScript:
        folder = str(open_folder / name)
        return JobScript(body, name, backend="htcondor", rootdir=folder, **{"time": "5", **asked})

    return make


def test_two_nodes(job: Callable[..., JobScript], open_folder: Path) -> None:
    """Each node runs the script and knows which it is; the job fails if one of them does."""
    asked = {"nodes": 2, "ppn": 2}
    show = 'echo "$CLUSTERJOB_RANK $CLUSTERJOB_LOCAL_RANK $CLUSTERJOB_NODE_RANK $MINE"'
    launcher = HTCondorBackend().launcher(Resources.of(asked), f"{show}; exit $CLUSTERJOB_RANK")
    run = job("nodes", f"export MINE='a b'\n{launcher}\n", stdout="out", **asked).submit()
    assert run.get(60) is Status.FAILED
    assert run.info.exit_code in (1, 3)
    lines = [*run.stdout().splitlines()]
    lines += (open_folder / "nodes" / "out.1").read_text().splitlines()
    assert sorted(lines) == ["0 0 0 a b", "1 1 0 a b", "2 0 1 a b", "3 1 1 a b"]


def test_a_limited_array(job: Callable[..., JobScript]) -> None:
    """Tasks that HTCondor has not made yet are PENDING; a list of indices is possible."""
    run = job("limited", 'sleep 2; echo "$CLUSTERJOB_ARRAY_INDEX"', array="7,1,20-30:5%2").submit()
    until(lambda: run.status is Status.RUNNING, 30)
    assert {info.status for info in run.tasks.values()} <= {Status.PENDING, Status.RUNNING}
    assert run.get(90) is Status.COMPLETED
    assert [run.stdout(task=task).strip() for task in run.tasks] == [str(i) for i in run.tasks]


def test_one_task_is_cancelled(job: Callable[..., JobScript]) -> None:
    """A task is cancelled by its index, whatever its proc is."""
    run = job("tasks", "sleep 60", array="3,9").submit()
    backend = scheduler_for("htcondor").backend
    assert isinstance(backend, BatchBackend)
    scheduler_for("htcondor").cancel([backend.task_id(run.job_id, 9)])
    until(lambda: run.tasks[9].status is Status.CANCELLED, 30)
    assert run.status is not Status.CANCELLED
    run.cancel()
    assert run.get(60) is Status.CANCELLED


def test_a_hold_says_why(job: Callable[..., JobScript]) -> None:
    """A job whose log cannot be made is held, with HTCondor's reason and what to do."""
    run = job("held", "true", stdout="/no/such/folder/x").submit()
    until(lambda: run.info.reason is Reason.HELD, 60)
    assert run.status is Status.PENDING
    assert "No such file or directory" in run.info.message
    assert f"condor_rm {run.job_id}" in run.info.message
    run.cancel()
    assert run.get(60) is Status.CANCELLED


def test_the_walltime(job: Callable[..., JobScript]) -> None:
    """A job over its walltime is FAILED with reason TIMEOUT, also if it returns 0 then."""
    run = job("wall", "trap 'exit 0' TERM; while :; do sleep 0.2; done", time="0:3").submit()
    assert run.get(60) is Status.FAILED
    assert run.info.reason is Reason.TIMEOUT


def test_the_environment(
    job: Callable[..., JobScript], monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    """The submitter's variables reach the job, and the core variables are right."""
    monkeypatch.setenv("CJDASK_TEST", 'it\'s "b"; $HOME')
    core = "$CLUSTERJOB_ID ${CLUSTERJOB_WORKDIR} $CLUSTERJOB_NODELIST $CLUSTERJOB_SUBMIT_HOST"
    run = job("env x", f'echo "$CJDASK_TEST|$CLUSTERJOB_NAME|{core}"').submit()
    assert run.get(60) is Status.COMPLETED
    variable, name, rest = run.stdout().strip().split("|")
    assert variable == 'it\'s "b"; $HOME'
    assert name == "env x"
    job_id, rest = rest.split(" ", 1)
    folder, nodes, host = rest.rsplit(" ", 2)
    assert (job_id, folder) == (run.job_id, str(open_folder / "env x"))
    assert (nodes,) == run.info.nodes
    assert host


def test_a_misspelt_command_is_told(
    job: Callable[..., JobScript], caplog: pytest.LogCaptureFixture
) -> None:
    """An option that HTCondor does not know is warned of; one that it refuses is an error."""
    run = job("typo", "true", reqest_cpus=4).submit()
    assert "reqest_cpus" in caplog.text
    assert run.get(60) is Status.COMPLETED
    with pytest.raises(SubmitError, match="bogus"):
        job("universe", "true", universe="bogus").submit()
