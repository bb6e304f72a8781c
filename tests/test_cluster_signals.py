"""The end of a process that is told to end by a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cjdask import ClusterjobCluster, Status, cluster_signals
from cjdask.cluster_signals import guard, release
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.testing import until
from tests.cluster_fakes import QUIET, protocol_of, register_fake


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler as the backend ``fake``."""
    return register_fake(monkeypatch, tmp_path)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Set handlers of our own, which note what they are called with."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in cluster_signals.SIGNALS}
    for number in cluster_signals.SIGNALS:
        signal.signal(number, lambda number, _: heard.append(number))
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[Any]:
    """Return the handlers of the signals that end a process."""
    return [signal.getsignal(number) for number in cluster_signals.SIGNALS]


def test_handlers_are_there_while_a_cluster_is_open(fake: Scheduler, heard: list[int]) -> None:
    """They come with the first cluster; with the last one the ones before are back."""
    before = handlers()
    with ClusterjobCluster("fake", **QUIET):
        with ClusterjobCluster("fake", **QUIET):
            assert handlers() == [cluster_signals._handle] * 2
        assert handlers() == [cluster_signals._handle] * 2
    assert handlers() == before
    protocol_of(fake).refuse_after = 0
    with pytest.raises(Exception, match="Invalid account"):
        ClusterjobCluster("fake", jobs=1, **QUIET)
    assert handlers() == before


@pytest.mark.parametrize("number", cluster_signals.SIGNALS)
def test_jobs_go_before_the_handler_that_was_there_is_called(
    fake: Scheduler, heard: list[int], number: int
) -> None:
    """A program with a handler of its own goes on, without jobs, and none are submitted again."""
    with ClusterjobCluster("fake", jobs=2, **QUIET) as cluster:
        signal.raise_signal(number)
        assert heard == [number]
        assert not protocol_of(fake).queue
        time.sleep(0.3)
        assert fake.commands["submit"] == 2
        assert cluster.leaving
    assert fake.commands["cancel"] == 1


def test_an_ignored_signal_stays_ignored(fake: Scheduler, heard: list[int]) -> None:
    """Under nohup a cluster outlives its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ClusterjobCluster("fake", jobs=1, **QUIET):
        signal.raise_signal(signal.SIGHUP)
        assert protocol_of(fake).queue


def test_a_thread_sets_no_handler(heard: list[int]) -> None:
    """Where a cluster is made in another thread the handlers stay, and nothing fails."""
    before = handlers()

    def end() -> None:
        """End nothing."""

    def run() -> None:
        guard(end)
        release(end)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers() == before


def test_a_handler_set_later_is_kept(heard: list[int]) -> None:
    """Who replaces the handler while a cluster is open keeps it when the cluster closes."""

    def end() -> None:
        """End nothing."""

    guard(end)
    mine = signal.signal(signal.SIGTERM, signal.default_int_handler)
    assert mine is cluster_signals._handle
    release(end)
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_importing_changes_no_handler() -> None:
    """After the import of the cluster all signals are handled as before."""
    program = (
        "import signal\n"
        "before = [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "from cjdask import ClusterjobCluster\n"
        "assert before == [signal.getsignal(n) for n in signal.valid_signals()]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


WAITING = """
import time
from cjdask import ClusterjobCluster
cluster = ClusterjobCluster(backend="local", jobs=2, mem=500, time="5", dashboard_address=":0")
print(*(row.job_id for row in cluster.jobs.values()), flush=True)
{more}
while True:
    time.sleep(1)
"""


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], list[str]]]]:
    """Start a program with a cluster of two jobs; return it and their ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "8")
    started: list[subprocess.Popen[str]] = []

    def start(more: str = "") -> tuple[subprocess.Popen[str], list[str]]:
        text = WAITING.format(more=more)
        process = subprocess.Popen([sys.executable, "-c", text], stdout=-1, stderr=-1, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().split()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def statuses(ids: list[str]) -> set[Status]:
    """Ask for the states of jobs."""
    return {info.status for info in scheduler_for("local").query(ids)}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_jobs(program: Callable[..., Any], tmp_path: Path, number: int) -> None:
    """The process ends by the signal, its jobs are cancelled and its files removed."""
    process, ids = program()
    assert len(ids) == 2
    process.send_signal(number)
    assert process.wait(timeout=80) == -number
    until(lambda: all(status.ended for status in statuses(ids)), 10)
    assert statuses(ids) == {Status.CANCELLED}
    assert not list(tmp_path.glob(".dask-worker-*"))


@pytest.mark.long
def test_jobs_end_by_themselves_after_sigkill(
    program: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a process is killed its workers end; a job that starts later finds nobody, and ends."""
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "1")
    process, ids = program("cluster.wait_for_workers(1, timeout=30)\nprint('there', flush=True)")
    assert process.stdout.readline() == "there\n"
    assert statuses(ids) == {Status.RUNNING, Status.PENDING}
    process.kill()
    until(lambda: all(status.ended for status in statuses(ids)), 60)
    ends = {info.status: info for info in scheduler_for("local").query(ids)}
    late = ends[Status.FAILED]
    assert late.start_time is not None
    assert late.end_time is not None
    assert late.end_time - late.start_time < 10
