"""What becomes of the jobs of a cluster on a real Slurm."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cjdask import JobFailed, Status
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.cluster_slurm import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def slow_double(x: int) -> int:
    """Take a while."""
    time.sleep(0.2)
    return 2 * x


def pids_of(job: str) -> list[int]:
    """Return the processes whose command names the workers of a job."""
    argv = ["pgrep", "-f", "--", f"--name {job}-[0-9]"]
    found = subprocess.run(argv, capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_lost_jobs_are_replaced_and_nothing_is_lost(slurm_cluster: Callable[..., Any]) -> None:
    """scancel of a job and kill -9 of another's workers: both come back, the result is right."""
    with slurm_cluster(jobs=3) as cluster, Client(cluster) as client:
        client.wait_for_workers(6, timeout=90)
        cancelled, killed, kept = cluster.workers
        futures = client.map(slow_double, range(150), retries=5)
        time.sleep(2)
        subprocess.run(["scancel", cluster.jobs[cancelled].job_id], check=True)
        for pid in pids_of(killed):
            os.kill(pid, 9)
        lost = {cancelled, killed}
        until(lambda: len(cluster.workers) == 3 and not lost & set(cluster.workers), 40)
        assert kept in cluster.workers
        cluster.wait_for_workers(6, timeout=60)
        assert client.submit(sum, futures).result(timeout=90) == 150 * 149
        assert cluster.jobs[cancelled].status is Status.CANCELLED
        assert cluster.jobs[killed].status.ended
        assert cluster.plan == cluster.requested == cluster.observed


def test_a_script_that_fails_at_start(slurm_cluster: Callable[..., Any], slurm_name: str) -> None:
    """wait_for_workers raises with exit code and end of the log, and the queue is empty."""
    prologue = ["echo no licence left >&2", "exit 5"]
    with slurm_cluster(jobs=2, job_script_prologue=prologue) as cluster:
        with pytest.raises(JobFailed, match=r"(?s)exit code 5.*no licence left"):
            cluster.wait_for_workers(1, timeout=100)
        assert not squeue(slurm_name)
        assert [row.exit_code for row in cluster.jobs.values()] == [5] * len(cluster.jobs)
        assert scheduler_for("slurm").commands["submit"] >= 3


def test_only_who_has_the_certificate(slurm_cluster: Callable[..., Any], tmp_path: Path) -> None:
    """Workers come by TLS, a plain client is refused, no certificate is left in a file."""
    with slurm_cluster(jobs=1) as cluster:
        cluster.wait_for_workers(2, timeout=60)
        assert all(address.startswith("tls://") for address in cluster.scheduler_info["workers"])
        with pytest.raises(OSError, match=r"reset|closed|Timed out"):
            Client(cluster.scheduler_address.replace("tls:", "tcp:"), timeout=2)
        files = list(tmp_path.rglob("*.pem"))
        assert len(files) == 3
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        with Client(cluster) as client:
            assert client.submit(slow_double, 4).result() == 8
    assert not list(tmp_path.rglob("*.pem"))
