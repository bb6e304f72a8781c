"""Jobs with a walltime that is shorter than the work, on a real Slurm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from cjdask import ClusterjobCluster, Status
from tests.cluster_slurm import sacct

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

WALLTIME = "00:01:00"
TASKS = 140
SECONDS = 2.0
"""What a task takes; with four workers all take 70 s, which is more than a job has."""


def noted(number: int, folder: Path) -> int:
    """Take a while and note in a file that this was done."""
    time.sleep(SECONDS)
    with (folder / str(number)).open("a") as file:
        file.write("x")
    return number


@pytest.mark.timeout(800)
def test_work_outlasts_the_jobs(
    slurm_cluster: Callable[..., ClusterjobCluster], tmp_path: Path
) -> None:
    """A computation that is longer than the walltime runs to the end, and no task twice."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with slurm_cluster(jobs=2, time=WALLTIME) as cluster, Client(cluster) as client:
        first = list(cluster.jobs.values())
        futures = client.map(noted, range(TASKS), folder=runs)
        assert sum(client.gather(futures)) == TASKS * (TASKS - 1) // 2
        assert Counter(file.read_text() for file in runs.iterdir()) == {"x": TASKS}
        assert len(cluster.jobs) > 2
        statuses = {cluster.jobs[job.name].status for job in first}
        assert statuses == {Status.COMPLETED}
        assert not any(row.status > Status.COMPLETED for row in cluster.jobs.values())
        assert cluster.pools["default"].keeper.may_submit()
    assert sacct(*(job.job_id for job in first)) == ["COMPLETED", "COMPLETED"]
