"""What only a real Grid Engine can tell: parallel jobs, guards, odd exit codes, file names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends.base import BatchBackend
from cjdask.jobscript import JobScript
from cjdask.resources import Resources
from cjdask.run import AsyncResult
from cjdask.scheduler import scheduler_for
from cjdask.status import Reason, Status
from cjdask.testing import until

pytestmark = [
    pytest.mark.sge,
    pytest.mark.usefixtures("sge"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., JobScript]:
    """Return a function that makes a job script in a folder of its own."""

    def make(name: str, body: str, **asked: Any) -> JobScript:
        folder = str(tmp_path / name)
        return JobScript(body, name, backend="sge", rootdir=folder, **{"time": "5", **asked})

    return make


def launched(job: Callable[..., JobScript], name: str, **asked: Any) -> tuple[AsyncResult, str]:
    """Run a launcher whose processes show their place; return the run and its header for it."""
    backend = scheduler_for("sge").backend
    assert isinstance(backend, BatchBackend)
    show = 'echo "$CLUSTERJOB_RANK $CLUSTERJOB_LOCAL_RANK $CLUSTERJOB_NODE_RANK $HOSTNAME $MINE"'
    launcher = backend.launcher(Resources.of(asked), f"{show}; exit $CLUSTERJOB_RANK")
    script = job(name, f"export MINE='a b'\n{launcher}\n", **asked)
    run = script.submit()
    assert run.get(120) is Status.FAILED
    environment = next(line for line in str(script).splitlines() if line.startswith("#$ -pe"))
    return run, environment


def test_two_nodes(job: Callable[..., JobScript]) -> None:
    """An environment that gives just a node's cores is found; each process knows its place."""
    run, environment = launched(job, "two", nodes=2, ppn=2)
    assert environment == "#$ -pe two 4"
    lines = sorted(line.split() for line in run.stdout().splitlines())
    assert [line[:3] for line in lines] == [
        ["0", "0", "0"],
        ["1", "1", "0"],
        ["2", "0", "1"],
        ["3", "1", "1"],
    ]
    assert len({line[3] for line in lines}) == 2
    assert all(line[4:] == ["a", "b"] for line in lines)
    assert run.info.exit_code == 3


def test_slots_in_another_shape(job: Callable[..., JobScript]) -> None:
    """Where slots do not come in whole nodes there are still nodes*ppn processes, and a word."""
    run, environment = launched(
        job, "odd", nodes=2, ppn=2, threads=3, parallel_environment="rr", l="h_vmem=INFINITY"
    )
    assert environment == "#$ -pe rr 12"
    ranks = sorted(int(line.split()[0]) for line in run.stdout().splitlines())
    assert ranks == [0, 1, 2, 3]


def test_one_node(job: Callable[..., JobScript]) -> None:
    """Several processes on one node are in an environment that gives one host."""
    run, environment = launched(job, "one", nodes=1, ppn=3)
    assert environment == "#$ -pe smp 3"
    assert len({line.split()[3] for line in run.stdout().splitlines()}) == 1
    assert run.info.exit_code == 2


def test_99_and_100_are_failures(job: Callable[..., JobScript]) -> None:
    """A script that returns 99 is not run again, one that returns 100 is not in error state."""
    runs = [job(f"code{code}", f"echo ran; exit {code}").submit() for code in (99, 100)]
    for run in runs:
        assert run.get(60) is Status.FAILED
        assert run.info.reason is Reason.NONZERO_EXIT
        assert run.stdout() == "ran\n"


def test_an_error_state_says_how_to_clear_it(job: Callable[..., JobScript]) -> None:
    """A job whose log cannot be made is held, says so, and its cancel is known at once."""
    run = job("eqw", "true", stdout="/no/such/folder/x").submit()
    until(lambda: run.info.reason is Reason.HELD, 60)
    assert run.status is Status.PENDING
    assert f"qmod -cj {run.job_id}" in run.info.message
    run.cancel()
    assert run.get(60) is Status.FAILED
    assert run.info.reason is Reason.LAUNCH_FAILURE


def test_a_guard_reads_arrays(job: Callable[..., JobScript]) -> None:
    """A job after an array of which one task failed does not run, and says why."""
    array = job("array", "test $CLUSTERJOB_ARRAY_INDEX != 2", array="1-3").submit()
    after = job("after", "touch ran", depends=array).submit()
    assert after.get(120) is Status.FAILED
    assert after.info.exit_code == 121
    assert f"job {array.job_id} ended well" in after.stderr()
    assert {task: info.exit_code for task, info in array.tasks.items()} == {1: 0, 2: 1, 3: 0}


def test_logs_and_variables(job: Callable[..., JobScript], tmp_path: Path) -> None:
    """Logs are where they are said to be, also with blanks."""
    named = job("named", "echo out; echo err >&2", stdout="a b.out", stderr="e.$JOB_ID").submit()
    tasks = job("tasks", 'echo "$CLUSTERJOB_ARRAY_INDEX $CLUSTERJOB_NAME"', array="1-5:2").submit()
    variables = '"$CLUSTERJOB_WORKDIR ${CLUSTERJOB_ID} $CLUSTERJOB_NODELIST"'
    shown = job("shown", f"pwd; echo {variables}").submit()
    assert [run.get(60) for run in (named, tasks, shown)] == [Status.COMPLETED] * 3
    assert (named.stdout(), named.stderr()) == ("out\n", "err\n")
    assert [tasks.stdout(task=task) for task in (1, 3, 5)] == [
        "1 tasks\n",
        "3 tasks\n",
        "5 tasks\n",
    ]
    folder = str(tmp_path / "shown")
    assert shown.stdout().split() == [folder, folder, shown.job_id, shown.info.nodes[0]]


def test_a_python_script(job: Callable[..., JobScript]) -> None:
    """A script with a ``#!`` line of its own is run by that program."""
    script = job("python", "#!/usr/bin/env python3\nimport sys\nprint(sys.version_info[0])\n")
    run = script.submit()
    assert run.get(60) is Status.COMPLETED
    assert run.stdout() == "3\n"
