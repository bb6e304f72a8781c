"""Adaptive clusters on a real Slurm."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from distributed import Client

from cjdask import ClusterjobCluster
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.cluster_slurm import sacct, squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

SECONDS = 15
"""How long a job is pending, and how long a task runs."""


@pytest.fixture
def full_partition(slurm_name: str) -> Iterator[Callable[[], None]]:
    """Fill the partition ``gpu``, which is one node; the value frees it."""
    options = [
        "--partition=gpu",
        "--exclusive",
        f"--job-name={slurm_name}-full",
        "--output=/dev/null",
    ]
    argv = ["sbatch", "--parsable", *options, "--wrap=sleep 300"]
    job_id = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def free() -> None:
        subprocess.run(["scancel", job_id], check=True)

    try:
        until(lambda: squeue(f"{slurm_name}-full") == ["RUNNING"])
        yield free
    finally:
        free()


def slow(seconds: float) -> str:
    """Take a while."""
    time.sleep(seconds)
    return "done"


@pytest.mark.timeout(240)
def test_one_task_for_a_full_partition(
    slurm_cluster: Callable[..., ClusterjobCluster],
    slurm_name: str,
    full_partition: Callable[[], None],
) -> None:
    """One submission and no cancel while the job is pending; after the task the job goes."""
    commands = scheduler_for("slurm").commands
    with (
        slurm_cluster(ppn=4, mem=1200, queue="gpu") as cluster,
        Client(cluster) as client,
    ):
        before = commands.copy()
        cluster.adapt(minimum=0, maximum=8, interval="250ms", idle_grace=2)
        task = client.submit(slow, 1)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            assert commands["submit"] <= before["submit"] + 1
            assert commands["cancel"] == before["cancel"]
            time.sleep(0.1)
        assert squeue(slurm_name) == ["PENDING"]
        full_partition()
        assert task.result(timeout=90) == "done"
        del task
        until(lambda: not cluster.workers and not cluster.observed, 60)
        (job,) = cluster.jobs.values()
        until(lambda: not squeue(slurm_name), 20)
        assert (commands["submit"], commands["cancel"]) == (
            before["submit"] + 1,
            before["cancel"],
        )
        until(lambda: sacct(job.job_id) == ["COMPLETED"], 20)


@pytest.mark.timeout(240)
def test_an_idle_sibling_costs_no_task(
    slurm_cluster: Callable[..., ClusterjobCluster], slurm_name: str
) -> None:
    """A long task on one of two workers of a job runs to its end, once."""
    commands = scheduler_for("slurm").commands
    with slurm_cluster() as cluster, Client(cluster) as client:
        before = commands.copy()
        cluster.adapt(interval="250ms", idle_grace=1)
        assert client.submit(slow, SECONDS, retries=0).result(timeout=120) == "done"
        assert (commands["submit"], commands["cancel"]) == (
            before["submit"] + 1,
            before["cancel"],
        )
        (job,) = cluster.jobs.values()
    until(lambda: sacct(job.job_id) == ["COMPLETED"], 20)
