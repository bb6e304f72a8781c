"""The cluster on real schedulers that start its workers by this package's launcher."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da
import pytest
from distributed import Client

from cjdask import ClusterjobCluster
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.as_user import as_user

QUEUED = {
    "sge": "qstat -u '*' | awk -v id=$1 '$1 == id'",
    "htcondor": "condor_q $1 -af ClusterId",
    "oar": "oarstat | awk -v id=$1 '$1 == id'",
}
"""Shell text that prints something while a job is in the queue."""
OPTIONS: dict[str, dict[str, Any]] = {
    "sge": {},
    "htcondor": {"request_cpus": 4},  # all of a machine, else both nodes may be on one
    "oar": {},
}


def queued(backend: str, job_id: str) -> bool:
    """Ask the scheduler's own program whether it lists the job as not ended."""
    argv = ["sh", "-c", QUEUED[backend], "sh", job_id]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    return bool(done.stdout.strip())


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in QUEUED])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Need a real scheduler, and be a user whose jobs it takes."""
    request.getfixturevalue(request.param)
    with ExitStack() as stack:
        if request.param != "sge":
            stack.enter_context(as_user(request.param))
        yield request.param


@pytest.fixture
def start(
    backend: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ClusterjobCluster]:
    """Start clusters of jobs on two nodes in a folder that all nodes see."""
    folder = open_folder / backend
    folder.mkdir()
    monkeypatch.chdir(folder)
    shape: dict[str, Any] = {"nodes": 2, "ppn": 2, "threads": 1, "time": "10"}
    if backend != "sge":
        shape["security"] = False  # the jobs are another user's, who cannot read certificates
    options = {**shape, "dashboard_address": ":0", **OPTIONS[backend]}
    return lambda **more: ClusterjobCluster(backend=backend, **{**options, **more})


@pytest.mark.timeout(240)
def test_a_job_on_two_nodes(start: Callable[..., ClusterjobCluster], backend: str) -> None:
    """A job has two workers on each of two nodes, which compute; none is left in the queue."""

    def node() -> str:
        if (ad := os.environ.get("_CONDOR_MACHINE_AD")) is None:
            return socket.gethostname()
        (line,) = (line for line in Path(ad).read_text().splitlines() if "Machine = " in line[:10])
        return line

    with start() as cluster:
        cluster.scale(jobs=1)
        cluster.wait_for_workers(4, timeout=120)
        ((name, job),) = cluster.workers.items()
        assert cluster.plan == cluster.requested == cluster.observed
        assert cluster.plan == {f"{name}-{rank}" for rank in range(4)}
        assert queued(backend, job.job_id)
        with Client(cluster) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            assert {worker["nthreads"] for worker in workers.values()} == {1}
            found = client.run(node)
            nodes = {worker["name"]: found[address] for address, worker in workers.items()}
            first, second, third, fourth = (nodes[f"{name}-{rank}"] for rank in range(4))
            assert first == second != third == fourth
            x = da.ones((1000, 1000), chunks=(250, 250)).persist()
            assert (x + x.T).sum().compute() == 2_000_000
            del x
        cluster.scale(0)
        assert not cluster.plan
        assert not cluster.observed
        until(lambda: not queued(backend, job.job_id), 30)
        cluster.scale(jobs=1)
        (job,) = cluster.workers.values()
    until(lambda: not queued(backend, job.job_id), 30)


@pytest.mark.timeout(240)
def test_an_array_of_jobs(start: Callable[..., ClusterjobCluster], backend: str) -> None:
    """Two jobs are one submission, have names and logs of their own, and end one by one."""
    more = {"request_cpus": 1} if backend == "htcondor" else {}
    scheduler = scheduler_for(backend)
    with start(nodes=1, ppn=1, **more) as cluster:
        before = scheduler.commands["submit"]
        cluster.scale(jobs=2)
        assert scheduler.commands["submit"] == before + 1
        cluster.wait_for_workers(2, timeout=120)
        assert cluster.plan == cluster.observed == {f"{job}-0" for job in cluster.workers}
        rows = list(cluster.jobs.values())
        assert [row.job_id.partition("_")[2] for row in rows] == ["1", "2"]
        for row in rows:
            assert row.stderr is not None
            until(lambda row=row: f"{row.name}-0" in Path(row.stderr).read_text(), 30)
        cluster.scale(jobs=1)
        (left,) = cluster.workers
        assert cluster.observed == {f"{left}-0"}
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result(30) == 3
        (ended,) = (row for row in rows if row.name != left)
        until(lambda: cluster.jobs[ended.name].status.ended, 60)
        assert not cluster.jobs[left].status.ended
    array = rows[0].job_id.partition("_")[0]
    until(lambda: not queued(backend, array), 30)
