"""Pool mode on the embedded scheduler: batches, deaths, size, the end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pytest

from cjdask import ClusterExecutor, ClusterFuture, JobDied, Reason, Status, SubmitError
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.executor_functions import wait_for
from tests.executor_help import embedded, open_jobs


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use an embedded scheduler of its own."""
    with embedded(tmp_path_factory.mktemp("pool")) as path:
        yield path


def new_pool(**options: Any) -> ClusterExecutor:
    """Return a pool of two processes in one job, unless told otherwise."""
    return ClusterExecutor("local", mode="pool", **{"ppn": 2, "maximum_jobs": 1, **options})


@pytest.fixture(scope="module")
def pool() -> Iterator[ClusterExecutor]:
    """Return a pool that tests share."""
    with new_pool(env={"COLOUR": "red"}, prologue="export SIZE=large") as made:
        yield made


@pytest.mark.long
def test_many_short_calls(pool: ClusterExecutor) -> None:
    """Thousands of calls are made in a few processes that live on."""
    pids = set(pool.map(lambda _: os.getpid(), range(1000)))
    assert len(pids) <= 2
    assert list(pool.map(abs, range(2000))) == list(range(2000))
    futures = [pool.submit(pow, n, 2) for n in range(200)]
    assert sum(future.result() for future in futures) == sum(n * n for n in range(200))


@pytest.mark.long
def test_the_lines_of_the_job(pool: ClusterExecutor) -> None:
    """Variables and lines of the shell reach the processes; so does where this one is."""
    look = lambda: (os.environ["COLOUR"], os.environ["SIZE"], os.getcwd())  # noqa: E731
    assert pool.submit(look).result() == ("red", "large", os.getcwd())


def test_a_long_call_delays_no_others(pool: ClusterExecutor, tmp_path: Path) -> None:
    """Calls that come with one that takes long are made by another process meanwhile."""
    list(pool.map(abs, range(200)))  # so that large batches are sent
    first = pool.submit(wait_for, tmp_path / "go")
    for call in as_completed([pool.submit(time.sleep, 0) for _ in range(300)], 60):
        assert call.result() is None
    assert not first.done()
    (tmp_path / "go").touch()
    assert first.result(60) is None


@pytest.mark.long
def test_a_callback_that_submits_more(pool: ClusterExecutor) -> None:
    """A callback that submits 100 more does not keep anybody waiting."""
    more: list[ClusterFuture] = []

    def submit_more(_: object) -> None:
        more.extend(pool.submit(pow, n, 2) for n in range(100))

    pool.submit(int).add_done_callback(submit_more)
    until(lambda: len(more) == 100)
    found = sum(each.result() for each in as_completed(more, 60))
    assert found == sum(n * n for n in range(100))


@pytest.mark.long
def test_a_large_argument(pool: ClusterExecutor) -> None:
    """An argument of 200 MB, and a result of a size to notice, travel."""
    data = os.urandom(1 << 20) * 200
    assert pool.submit(len, data).result() == 200 << 20
    assert pool.submit(bytes, 20 << 20).result() == bytes(20 << 20)


@pytest.mark.long
def test_deaths_of_processes(pool: ClusterExecutor) -> None:
    """A call that ends its process ends with an error that says how, and no other call."""

    def dies(n: int) -> int:
        if n == 3:
            sys.stderr.write("these are my last words\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        if n == 5:
            os._exit(0)
        return n

    list(pool.map(abs, range(100)))
    calls = [pool.submit(dies, n) for n in range(40)]
    errors = {n: error for n, call in enumerate(calls) if (error := call.exception(30))}
    assert sorted(errors) == [3, 5]
    assert [call.result() for n, call in enumerate(calls) if n not in errors] == [
        n for n in range(40) if n not in errors
    ]
    for n, reason, code in ((3, Reason.SIGNALED, 139), (5, Reason.NONE, 0)):
        error = errors[n]
        assert isinstance(error, JobDied)
        assert (error.status, error.reason, error.exit_code) == (Status.FAILED, reason, code)
    assert isinstance(errors[3], JobDied)
    assert errors[3].log == "these are my last words"
    assert errors[3].log_file is not None
    assert "these are my last words" in Path(errors[3].log_file).read_text()


def test_cancelling(pool: ClusterExecutor) -> None:
    """A call that runs is stopped, others in the queue are not made, the process is replaced."""
    calls = [pool.submit(time.sleep, 60) for _ in range(20)]
    until(lambda: sum(call.running() for call in calls) == 2)
    assert all(call.cancel() for call in calls)
    assert pool.submit(pow, 2, 3).result(60) == 8


@pytest.mark.long
def test_deaths_of_jobs() -> None:
    """A call whose job ends has an error with the word of the scheduler; others go on elsewhere."""
    with new_pool(ppn=1, maximum_jobs=2) as pool:
        calls = [pool.submit(time.sleep, 5) for _ in range(2)]
        until(lambda: all(call.running() for call in calls))
        first = calls[0].info
        assert first is not None
        short = [pool.submit(pow, n, 2) for n in range(5)]
        name = first.job_id if first.task is None else f"{first.job_id}_{first.task}"
        scheduler_for("local").cancel([name])
        error = calls[0].exception(20)
        assert isinstance(error, JobDied)
        assert error.status is Status.CANCELLED
        assert [call.result(60) for call in short] == [n * n for n in range(5)]
        assert calls[1].result() is None


def test_a_pool_that_cannot_be() -> None:
    """Where the jobs of a pool are refused its calls fail with the scheduler's words."""
    with new_pool(threads=1000) as pool:
        calls = [pool.submit(pow, 2, n) for n in range(3)]
        for call in calls:
            assert isinstance(call.exception(30), SubmitError)


@pytest.mark.long
def test_a_pool_that_fails() -> None:
    """Where jobs fail before they can make a call, the calls fail with the end of the log."""
    with new_pool(prologue="echo no licence >&2; exit 1") as pool:
        error = pool.submit(pow, 2, 3).exception(60)
    assert error is not None
    assert "no licence" in str(error)


@pytest.mark.long
def test_nothing_is_left(tmp_path: Path) -> None:
    """When a pool is closed its jobs are gone and so are its files."""
    others = open_jobs()
    with new_pool(folder=tmp_path / "calls") as pool:
        pool.submit(print, "hello").result()
        assert open_jobs() == others + 1
    assert open_jobs() == others
    assert list((tmp_path / "calls").iterdir()) == []
    with new_pool(folder=tmp_path / "calls", keep_logs=True) as pool:
        pool.submit(print, "hello").result()
    logs = list((tmp_path / "calls").rglob("*.log"))
    assert [path.read_text() for path in logs if path.stat().st_size] == ["hello\n"]
