"""The cluster, with jobs of the embedded scheduler."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cjdask import ClusterjobCluster, Status, SubmitError
from cjdask.scheduler import scheduler_for
from tests.cluster_fakes import QUIET, whereabouts
from tests.cluster_hundred import a_hundred


def local_cluster(**options: Any) -> ClusterjobCluster:
    """Start a cluster of small jobs on the embedded scheduler."""
    small = {"ppn": 2, "threads": 1, "mem": 500, "time": "00:05:00", "nanny": False}
    return ClusterjobCluster(backend="local", **{**small, **QUIET, **options})


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_work_on_the_embedded_scheduler(embedded: Callable[[], int], tmp_path: Path) -> None:
    """Jobs of two workers compute, a smaller cluster keeps a whole job, none is left."""
    with local_cluster() as cluster:
        cluster.scale(4)
        cluster.wait_for_workers(4, timeout=30)
        assert cluster.plan == cluster.requested == cluster.observed
        with Client(cluster) as client:
            info = client.scheduler_info(n_workers=-1)["workers"].values()
            assert {worker["name"] for worker in info} == cluster.plan
            assert {worker["nthreads"] for worker in info} == {1}
            assert {worker["memory_limit"] for worker in info} == {250 * 2**20}
            futures = client.map(lambda x: x * x, range(20))
            client.gather(futures)
            cluster.scale(2)
            assert len(cluster.observed) == 2
            assert embedded() <= 2
            assert sum(client.gather(futures)) == 2470
    assert list(tmp_path.glob("dask-worker-logs/*.err"))


@pytest.mark.long
def test_a_hundred_pending_jobs(
    embedded: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are one submission, one cancel, one query a cycle, within 256 open files."""
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "1")
    counts = a_hundred(tmp_path, "exec sleep 100", backend="local")
    assert (counts.submitted, counts.cancelled) == (1, 1)


@pytest.mark.long
def test_adapting_on_the_embedded_scheduler(embedded: Callable[[], int]) -> None:
    """An adaptive cluster goes up for work and down to nothing after it."""
    with local_cluster() as cluster, Client(cluster) as client:
        cluster.adapt(
            minimum_jobs=0, maximum_jobs=2, interval="100ms", target_duration="1s", idle_grace=1
        )
        futures = client.map(lambda _: time.sleep(0.3), range(24), pure=False)
        wait_until(lambda: len(cluster.observed) == 4)
        client.gather(futures)
        del futures
        wait_until(lambda: not cluster.workers and not cluster.observed)
    assert scheduler_for("local").commands["submit"] >= 2


@pytest.mark.long
def test_pools_on_the_embedded_scheduler(
    embedded: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks find the wide worker, the narrow ones, and those that have a GPU each."""
    monkeypatch.setenv("CJDASK_EMBEDDED_GPUS", "2")
    with local_cluster(ppn=2, threads=1) as cluster, Client(cluster) as client:
        wide = cluster.add_pool("wide", ppn=1, threads=4)
        gpu = cluster.add_pool("gpu", gpus=2)
        for pool in cluster.pools.values():
            pool.scale(jobs=1)
        cluster.wait_for_workers(5, timeout=60)
        wide.wait_for_workers(1)
        found = {
            name: client.gather(
                [client.submit(whereabouts, resources={name: 1}, pure=False) for _ in range(8)]
            )
            for name in cluster.pools
        }
        for name, pool in cluster.pools.items():
            assert {job for job, *_ in found[name]} == set(pool.planned())
        processes, threads = (
            {name: len({place[index] for place in found[name]}) for name in found}
            for index in (1, 2)
        )
        assert processes == {"default": 2, "wide": 1, "gpu": 2}
        assert threads["wide"] == 4
        devices = {pid: device for _, pid, _, device in found["gpu"]}
        assert sorted(devices.values()) == ["0", "1"]
        wide.scale(0)
        assert embedded() == 2
        assert gpu.jobs.summary() == "1 running"


def test_the_embedded_scheduler_refuses(embedded: Callable[[], int]) -> None:
    """What the embedded scheduler says about a job that it cannot run reaches the caller."""
    with local_cluster(nodes=2) as cluster:
        with pytest.raises(SubmitError, match="nodes"):
            cluster.scale(jobs=1)
        assert not cluster.workers


PROGRAM = """
import asyncio
import cjdask.embedded
from cjdask import ClusterjobCluster

options = dict(backend="local", n_workers=2, mem=500, time="00:05:00", dashboard_address=":0")

def tell(cluster):
    print(*(job.job_id for job in cluster.workers.values()))

def with_exit():
    global cluster
    cluster = ClusterjobCluster(**options)
    tell(cluster)

def with_exception():
    with_exit()
    1 / 0

def with_context():
    with ClusterjobCluster(**options) as cluster:
        tell(cluster)
        1 / 0

async def start():
    global cluster
    cluster = await ClusterjobCluster(asynchronous=True, **options)
    tell(cluster)

def with_coroutine():
    asyncio.run(start())

"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["exit", "exception", "context", "coroutine"])
def test_no_jobs_are_left(embedded: Callable[[], int], how: str) -> None:
    """A program that ends without closing its cluster, in whatever way, leaves no jobs."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}\nwith_{how}()"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    errors = done.stderr.splitlines()
    if how in ("exception", "context"):
        assert errors[-1] == "ZeroDivisionError: division by zero"
    else:
        assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    assert len(ids) == 2
    wait_until(
        lambda: {info.status for info in scheduler_for("local").query(ids)} == {Status.CANCELLED}
    )


@pytest.mark.long
def test_work_outlasts_the_walltime(embedded: Callable[[], int], tmp_path: Path) -> None:
    """A computation that takes longer than a job may run ends, and no task is run twice."""

    def noted(number: int) -> int:
        time.sleep(0.25)
        with (tmp_path / "runs").open("a") as file:
            file.write(f"{number}\n")
        return number

    options: dict[str, Any] = {"ppn": 1, "time": "0:24", "walltime_margin": 14}
    with local_cluster(jobs=1, **options) as cluster, Client(cluster) as client:
        futures = client.map(noted, range(60))
        assert sum(client.gather(futures)) == 1770
        first, *others = cluster.jobs.values()
        assert others
        wait_until(lambda: cluster.jobs[first.name].status.ended)
        assert cluster.jobs[first.name].status is Status.COMPLETED
    runs = (tmp_path / "runs").read_text().split()
    assert sorted(map(int, runs)) == list(range(60))
