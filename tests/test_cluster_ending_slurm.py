"""How the jobs of a cluster end on a real Slurm, when it is told to and when its client dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import Client, wait

from cjdask import ClusterjobCluster
from cjdask.testing import until
from tests.cluster_slurm import sacct, squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

WITHIN = 10.0
"""Seconds in which the queue is to be empty."""
DEATH_TIMEOUT = 30.0

PROGRAM = """
import time
from cjdask import ClusterjobCluster
from distributed import Client

cluster = ClusterjobCluster(
    backend="slurm", job_name={name!r}, queue="gpu", exclusive=True, ppn=2, mem=500, time="5",
    jobs=2, death_timeout={death_timeout}, dashboard_address=":0",
)
cluster.wait_for_workers(2, timeout=80)
{busy}
print(*(row.job_id for row in cluster.jobs.values()), flush=True)
{end}
"""
BUSY = """
client = Client(cluster)
futures = client.map(time.sleep, [60, 60], pure=False)
time.sleep(1)
"""

Start = Callable[..., tuple[subprocess.Popen[str], list[str]]]


@pytest.fixture
def program(slurm_name: str, tmp_path: Path) -> Iterator[Start]:
    """Start a program whose cluster has a running and a pending job; return it and their ids."""
    started: list[subprocess.Popen[str]] = []

    def start(end: str, busy: str = "") -> tuple[subprocess.Popen[str], list[str]]:
        text = PROGRAM.format(name=slurm_name, death_timeout=DEATH_TIMEOUT, busy=busy, end=end)
        argv = [sys.executable, "-c", text]
        process = subprocess.Popen(argv, stdout=-1, stderr=-1, text=True, cwd=tmp_path)
        started.append(process)
        assert process.stdout is not None
        ids = process.stdout.readline().split()
        assert len(ids) == 2, process.communicate()[1]
        return process, ids

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_empties_the_queue(program: Start, slurm_name: str, number: int) -> None:
    """Soon after the signal no job is in the queue, though its workers were busy."""
    process, _ = program("time.sleep(600)", BUSY)
    assert sorted(squeue(slurm_name)) == ["PENDING", "RUNNING"]
    process.send_signal(number)
    until(lambda: not squeue(slurm_name), WITHIN)
    assert process.wait(timeout=20) == -number


@pytest.mark.parametrize("end", ["pass", "1 / 0"])
def test_the_end_of_the_program_empties_the_queue(
    program: Start, slurm_name: str, end: str
) -> None:
    """A program that ends without closing its cluster, or fails, leaves no jobs."""
    process, _ = program(end)
    until(lambda: not squeue(slurm_name), WITHIN)
    assert process.wait(timeout=20) == (0 if end == "pass" else 1)


def test_jobs_end_by_themselves_after_sigkill(program: Start, slurm_name: str) -> None:
    """The running job ends within death_timeout, busy or not; the pending one when it starts."""
    process, ids = program("time.sleep(600)", BUSY)
    assert sorted(squeue(slurm_name)) == ["PENDING", "RUNNING"]
    process.kill()
    began = time.monotonic()
    until(lambda: len(squeue(slurm_name)) < 2, DEATH_TIMEOUT)
    freed = time.monotonic()
    until(lambda: not squeue(slurm_name), DEATH_TIMEOUT)
    assert time.monotonic() - began < DEATH_TIMEOUT
    assert time.monotonic() - freed < WITHIN
    until(lambda: len(sacct(*ids)) == 2 and {*sacct(*ids)} <= {"COMPLETED", "FAILED"}, 60)


def computed(number: int, log: Path) -> bytes:
    """Note the run and return some data."""
    with log.open("a") as file:
        file.write(f"{number}\n")
    return bytes(100_000)


def test_nothing_is_computed_twice_for_a_smaller_cluster(
    slurm_cluster: Callable[..., ClusterjobCluster], slurm_name: str, tmp_path: Path
) -> None:
    """Data on the jobs that go moves to those that stay; the former end as COMPLETED."""
    log = tmp_path / "runs"
    with slurm_cluster(ppn=1, jobs=4) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(4, timeout=90)
        data = client.map(computed, range(80), log=log)
        wait(data)
        assert len({place for places in client.who_has(data).values() for place in places}) == 4
        cluster.scale(jobs=2)
        assert len(cluster.observed) == 2
        assert {len(each) for each in client.gather(data)} == {100_000}
        assert len(log.read_text().split()) == 80
        gone = [row.job_id for row in cluster.jobs.values() if row.name not in cluster.workers]
        assert len(gone) == 2
        until(lambda: sacct(*gone) == ["COMPLETED"] * 2, 30)
