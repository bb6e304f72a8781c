"""The cluster on a real Slurm of several nodes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import pytest
from distributed import Client

from cjdask import SubmitError
from cjdask.testing import until
from tests.cluster_slurm import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

SHAPE: dict[str, Any] = {"nodes": 2, "ppn": 2, "threads": 2, "mem": 2000, "time": "00:10:00"}


@pytest.fixture
def start(slurm_cluster: Callable[..., Any]) -> Callable[..., Any]:
    """Start clusters of jobs on two nodes."""
    return partial(slurm_cluster, **SHAPE)


def test_two_jobs_on_two_nodes_each(start: Callable[..., Any], slurm_name: str) -> None:
    """Eight workers of two threads, four a job and two a node, compute; scale(4) leaves a job."""
    with start() as cluster:
        cluster.scale(jobs=2)
        cluster.wait_for_workers(8, timeout=90)
        assert cluster.plan == cluster.requested == cluster.observed
        with Client(cluster) as client:
            workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
            by_job: dict[str, list[dict[str, Any]]] = {}
            for worker in workers:
                by_job.setdefault(worker["name"].rpartition("-")[0], []).append(worker)
            assert set(by_job) == set(cluster.workers)
            for job, mine in by_job.items():
                assert {worker["name"] for worker in mine} == {f"{job}-{i}" for i in range(4)}
                hosts = [worker["host"] for worker in mine]
                assert sorted(hosts.count(host) for host in set(hosts)) == [2, 2]
            assert {worker["nthreads"] for worker in workers} == {2}
            assert {worker["memory_limit"] for worker in workers} == {1000 * 2**20}
            x = da.ones((2000, 2000), chunks=(250, 250)).persist()
            assert (x + x.T).sum().compute() == 8_000_000
            cluster.scale(4)
            (left,) = cluster.workers
            assert cluster.observed == {f"{left}-{i}" for i in range(4)}
            assert x.sum().compute() == 4_000_000
            assert squeue(slurm_name).count("RUNNING") == 1


def test_identity_of_an_asynchronous_client(start: Callable[..., Any]) -> None:
    """An asynchronous cluster works alike; its scheduler tells of all four workers."""

    async def run() -> None:
        async with (
            start(asynchronous=True, n_workers=1) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(4, timeout=90)
            info = await client.scheduler.identity(n_workers=-1)
            assert {worker["name"] for worker in info["workers"].values()} == cluster.plan

    asyncio.run(run())


def test_adapt_up_and_down(start: Callable[..., Any], slurm_name: str) -> None:
    """The cluster grows to two jobs for work, and to nothing after it."""
    with start() as cluster, Client(cluster) as client:
        cluster.adapt(
            minimum_jobs=0, maximum_jobs=2, interval="250ms", target_duration="1s", idle_grace=1
        )
        futures = client.map(lambda _: time.sleep(0.5), range(200), pure=False)
        until(lambda: len(cluster.observed) == 8)
        client.gather(futures)
        del futures
        until(lambda: not cluster.workers and not cluster.observed)
        until(lambda: not squeue(slurm_name))


def test_pending_jobs_go_first(start: Callable[..., Any], slurm_name: str) -> None:
    """A job that waits for nodes is cancelled rather than one that runs."""
    with start(exclusive=True) as cluster:
        cluster.scale(jobs=1)
        cluster.wait_for_workers(4, timeout=90)
        (running,) = cluster.workers
        cluster.scale(jobs=4)
        assert "PENDING" in squeue(slurm_name)
        cluster.scale(jobs=1)
        assert list(cluster.workers) == [running]


def test_slurm_refuses(start: Callable[..., Any]) -> None:
    """What sbatch says about a wrong partition reaches the caller, at the start and later."""
    with pytest.raises(SubmitError, match="invalid partition specified"):
        start(queue="no-such-queue", n_workers=1)
    with start(queue="no-such-queue") as cluster:
        with pytest.raises(SubmitError, match="invalid partition specified"):
            cluster.scale(jobs=3)
        assert not cluster.workers


def test_names_of_dask_jobqueue(start: Callable[..., Any]) -> None:
    """The example that dask-jobqueue documents runs, with its names only."""
    shape = dict.fromkeys(SHAPE)
    with start(
        **shape,
        queue="debug",
        cores=4,
        processes=2,
        memory="2 GB",
        walltime="00:10:00",
        job_extra_directives=["--comment=by-jobqueue"],
        job_script_prologue=["export GREETING=hello"],
        worker_extra_args=["--resources A=1"],
        local_directory="$TMPDIR/x y",
        interface=None,
    ) as cluster:
        script = cluster.job_script()
        assert "#SBATCH --comment=by-jobqueue\n" in script
        cluster.scale(jobs=1)
        with Client(cluster) as client:
            assert client.submit(os.getenv, "GREETING", resources={"A": 1}).result(60) == "hello"
            assert client.submit(os.getcwd).result() == os.getcwd()
            (worker, *_) = client.scheduler_info(n_workers=-1)["workers"].values()
            assert "/x y/" in worker["local_directory"]
