"""Arrays of jobs on a real Slurm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cjdask import Status
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.cluster_hundred import a_hundred
from tests.cluster_slurm import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def test_a_hundred_jobs_with_few_commands(slurm_name: str, tmp_path: Path) -> None:
    """100 pending jobs: one submission, one cancel, one query a cycle, within 256 open files."""
    counts = a_hundred(tmp_path, backend="slurm", job_name=slurm_name, **{"--hold": True})
    assert (counts.submitted, counts.cancelled) == (1, 1)
    assert not squeue(slurm_name)


def test_tasks_of_an_array_are_jobs(slurm_cluster: Callable[..., Any], slurm_name: str) -> None:
    """Each task of an array has its names and its log, and one that is lost is replaced."""
    scheduler = scheduler_for("slurm")
    before = scheduler.commands["submit"]
    with slurm_cluster(jobs=3) as cluster, Client(cluster) as client:
        assert scheduler.commands["submit"] == before + 1
        cluster.wait_for_workers(6, timeout=90)
        assert cluster.observed == cluster.plan
        rows = list(cluster.jobs.values())
        assert len({row.job_id.partition("_")[0] for row in rows}) == 1
        for row in rows:
            assert f"{row.name}-0" in Path(row.stderr).read_text()
        found = client.run(lambda: os.environ["SLURM_ARRAY_TASK_ID"])
        assert sorted(found.values()) == ["1", "1", "2", "2", "3", "3"]
        second = rows[1]
        subprocess.run(["scancel", second.job_id], check=True)
        until(lambda: second.name not in cluster.workers and len(cluster.workers) == 3, 40)
        assert cluster.jobs[second.name].status is Status.CANCELLED
        cluster.wait_for_workers(6, timeout=60)
        kept = set(cluster.workers)
        cancels = scheduler.commands["cancel"]
        cluster.scale(jobs=2)
        assert set(cluster.workers) < kept
        assert scheduler.commands["cancel"] == cancels
        until(lambda: len(squeue(slurm_name)) == 2, 20)
