"""Pools: different kinds of jobs in one cluster, on a fake scheduler that counts commands."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed import Client, get_worker

import cjdask.cluster_patience
from cjdask import ClusterjobCluster, JobFailed, ResourcesNotSupportedError, Status, SubmitError
from cjdask.cluster_options import resolve_pool
from cjdask.scheduler import Scheduler
from tests.cluster_fakes import (
    changes,
    protocol_of,
    register_fake,
    start_workers,
    until,
    wait_for,
    with_cluster,
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler as the backend ``fake``; pauses are short."""
    monkeypatch.setattr(cjdask.cluster_patience, "MAX_PAUSE", 0.02)
    return register_fake(monkeypatch, tmp_path)


def jobs_by_pool(cluster: ClusterjobCluster) -> dict[str, int]:
    """Count the jobs of each pool that have been submitted and are planned."""
    return {
        name: sum(pool.owns(job) for job in cluster.workers) for name, pool in cluster.pools.items()
    }


def which() -> str:
    """Return the name of the job whose worker runs this task."""
    return str(get_worker().name).rpartition("-")[0]


# -- options -------------------------------------------------------------------------------------


def test_what_a_pool_leaves_open_is_as_for_the_cluster() -> None:
    """Options of the cluster, in either vocabulary, then the configuration fill what is open."""
    cluster = {"backend": "local", "cores": 8, "processes": 8, "walltime": "01:00:00", "mem": 800}
    with dask.config.set({"clusterjob.queue": "q", "clusterjob.time": "02:00:00"}):
        found = resolve_pool("fat", {"ppn": 1, "threads": 8, "memory": "1600MiB"}, cluster)
        same = resolve_pool("same", {}, cluster)
    assert (found.nodes, found.ppn, found.threads) == (1, 1, 8)
    assert (same.nodes, same.ppn, same.threads) == (1, 8, 1)
    assert found.resources["time"] == same.resources["time"] == "01:00:00"
    assert (found.resources["mem"], same.resources["mem"]) == (1600, 800)
    assert found.resources["queue"] == same.resources["queue"] == "q"
    assert found.job_name == "dask-worker-fat"
    assert resolve_pool("fat", {"job_name": "mine"}, cluster).job_name == "mine"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("7", {}, "begins with a letter"),
        ("a b", {}, "begins with a letter"),
        ("x", {"jobs": 2}, r"call its scale\(jobs="),
        ("x", {"backend": "slurm"}, "all pools share it"),
        ("x", {"security": False}, "all pools share it"),
        ("x", {"thread": 1}, "did you mean 'threads'"),
        ("x", {"ppn": 2, "threads": 2, "cores": 8}, "contradict"),
    ],
)
def test_what_a_pool_cannot_have(name: str, options: dict[str, Any], said: str) -> None:
    """Wrong names, options of the whole cluster and contradictions are refused, with a reason."""
    with pytest.raises(ResourcesNotSupportedError, match=said):
        resolve_pool(name, options, {"backend": "local"})


def test_names_of_pools_differ(fake: Scheduler) -> None:
    """A second pool of a name is refused, with the names that there are."""

    async def test(cluster: ClusterjobCluster) -> None:
        pool = cluster.add_pool("fat")
        assert cluster.pools["fat"] is pool
        for name in ("fat", "default"):
            with pytest.raises(ValueError, match="has the pools default, fat"):
                cluster.add_pool(name)

    with_cluster(test)
    assert not changes(fake)


# -- sizes ---------------------------------------------------------------------------------------


def test_pools_are_scaled_apart(fake: Scheduler) -> None:
    """Each pool has jobs of its own shape and number; closing cancels all with one command."""

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat", ppn=1, threads=8)
        await asyncio.gather(cluster.scale(8), fat.scale(cores=17))
        assert jobs_by_pool(cluster) == {"default": 2, "fat": 3}
        assert cluster.plan == cluster.requested
        assert len(cluster.plan) == 2 * 4 + 3
        shown = [re.findall(r"--resources (\S*)", text) for text in protocol_of(fake).submitted]
        assert sorted(shown) == [["default=1"]] * 2 + [["fat=8"]] * 3
        await fat.scale(jobs=1)
        assert jobs_by_pool(cluster) == {"default": 2, "fat": 1}
        assert "fat" in fat.job_script()
        assert "fat" not in cluster.job_script()

    with_cluster(test, ppn=4, threads=1)
    assert changes(fake) == {"submit": 5, "cancel": 2}
    assert not protocol_of(fake).queue


def test_jobs_of_several_pools_are_arrays_of_their_own(
    fake: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that start together are one array for each pool."""
    monkeypatch.setattr(type(fake.backend), "max_array_size", 100)

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat", threads=8)
        await asyncio.gather(cluster.scale(jobs=20), fat.scale(jobs=20))
        assert jobs_by_pool(cluster) == {"default": 20, "fat": 20}

    with_cluster(test)
    assert changes(fake) == {"submit": 2, "cancel": 1}


def test_a_refusal_is_that_of_its_pool(fake: Scheduler) -> None:
    """Who scales another pool at the same time gets its jobs and no error."""
    protocol_of(fake).refuse_named = "fat"

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat")
        good, bad = await asyncio.gather(
            cluster.scale(jobs=2), fat.scale(jobs=2), return_exceptions=True
        )
        assert good is None
        assert isinstance(bad, SubmitError)
        assert jobs_by_pool(cluster) == {"default": 2, "fat": 0}

    with_cluster(test)


def test_a_lost_job_is_replaced_in_its_pool(fake: Scheduler) -> None:
    """When pools lose a job each, each gets one of its own again."""

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat")
        await asyncio.gather(cluster.scale(jobs=1), fat.scale(jobs=2))
        lost = [*cluster.pools["default"].planned(), fat.planned()[0]]
        for job in lost:
            protocol_of(fake).end(cluster.workers[job].job_id, Status.CANCELLED)
        await until(
            lambda: (
                not set(lost) & set(cluster.workers)
                and jobs_by_pool(cluster) == {"default": 1, "fat": 2}
            )
        )

    with_cluster(test)
    assert changes(fake) == {"submit": 5, "cancel": 1}


def test_failures_of_one_pool_are_not_those_of_another(fake: Scheduler) -> None:
    """A pool whose jobs fail gives up; the other goes on, and who waits for either learns so."""

    async def test(cluster: ClusterjobCluster) -> None:
        bad = cluster.add_pool("bad", max_failures=2)

        async def fail() -> None:
            while True:
                for job in bad.planned():
                    if job in cluster.workers:
                        protocol_of(fake).end(cluster.workers[job].job_id, Status.FAILED, 3)
                await asyncio.sleep(0.01)

        await cluster.scale(jobs=1)
        failing = asyncio.ensure_future(fail())
        await bad.scale(jobs=1)
        with pytest.raises(JobFailed, match="after 2 failures in a row"):
            await bad.wait_for_workers(1, timeout="20s")
        waiting = asyncio.ensure_future(cluster.wait_for_workers(2, timeout=20))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "workers of the other pool may still come"
        await start_workers(cluster, *cluster.pools["default"].planned())
        with pytest.raises(JobFailed, match="after 2 failures in a row"):
            await waiting
        await cluster.pools["default"].wait_for_workers(1)
        assert jobs_by_pool(cluster) == {"default": 1, "bad": 0}
        failing.cancel()
        assert cluster.pools["default"].keeper.may_submit()

    with_cluster(test)


# -- tasks ---------------------------------------------------------------------------------------


def test_tasks_ask_for_a_pool(fake: Scheduler) -> None:
    """A task that asks for a pool's name runs on a worker of this pool."""

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat", ppn=1, threads=2)
        await asyncio.gather(cluster.scale(jobs=1), fat.scale(jobs=1))
        await start_workers(cluster, *cluster.workers, nthreads=2)
        await fat.wait_for_workers(1)
        (mine,) = fat.planned()
        async with Client(cluster, asynchronous=True) as client:
            found = await client.gather(
                [client.submit(which, resources={"fat": 1}, pure=False) for _ in range(10)]
            )
            assert set(found) == {mine}
            assert await client.submit(which, resources={"default": 1}) != mine

    with_cluster(test, ppn=2, threads=1)


def test_pools_adapt_apart(fake: Scheduler, tmp_path: Path) -> None:
    """The tasks that ask for a pool, and no others, make it grow; without them it goes."""

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat", threads=2)
        plain = cluster.adapt(maximum_jobs=3, interval=0, wait_count=1, idle_grace=0)
        adaptive = fat.adapt(maximum_jobs=4, interval=0, wait_count=1, idle_grace=0)
        gate = tmp_path / "gate"
        async with Client(cluster, asynchronous=True) as client:
            tasks = client.map(lambda n: wait_for(gate), range(6), resources={"fat": 1}, pure=False)
            await until(lambda: len(cluster.scheduler.unrunnable) == 6)
            cluster.scheduler.task_prefixes["lambda"].duration_average = 100
            for each in (plain, adaptive):
                await each.adapt()
            assert jobs_by_pool(cluster) == {"default": 0, "fat": 3}
            await start_workers(cluster, *fat.planned(), nthreads=2)
            plain_task = client.submit(wait_for, gate, resources={"default": 1})
            await until(lambda: len(cluster.scheduler.unrunnable) == 1)
            for each in (plain, adaptive):
                await each.adapt()
            assert jobs_by_pool(cluster) == {"default": 1, "fat": 3}
            gate.touch()
            await client.gather(tasks)
            tasks.clear()
            await until(lambda: len(cluster.scheduler.tasks) == 1)
            await until_adapted(adaptive, lambda: not fat.planned())
            assert jobs_by_pool(cluster) == {"default": 1, "fat": 0}
            await start_workers(cluster, *cluster.workers)
            await plain_task
            await cluster.scale(jobs=1)
            assert (plain.state, adaptive.state) == ("inactive", "inactive")

    with_cluster(test)


def test_tasks_that_take_several_threads_or_other_resources(fake: Scheduler) -> None:
    """A pool grows for tasks that ask for a whole worker, and for resources the user gave it."""

    async def test(cluster: ClusterjobCluster) -> None:
        extra = ["--resources", "GPU=1"]
        fat = cluster.add_pool("fat", threads=4, worker_extra_args=extra)
        plain = cluster.adapt(interval=0)
        adaptive = fat.adapt(interval=0)
        async with Client(cluster, asynchronous=True) as client:
            wide = client.map(slow_once, range(3), resources={"fat": 4})
            await until(lambda: len(cluster.scheduler.unrunnable) == 3)
            cluster.scheduler.task_prefixes["slow_once"].duration_average = 100
            assert await adaptive.safe_target() == 3
            special = client.map(slow_once, range(10, 14), resources={"GPU": 1})
            await until(lambda: len(cluster.scheduler.unrunnable) == 7)
            assert await adaptive.safe_target() == 3 + 4
            assert await plain.safe_target() == 0
            del wide, special

    with_cluster(test)


def slow_once(number: int) -> int:
    """Stand for a task that takes long."""
    return number


async def until_adapted(adaptive: Any, condition: Any) -> None:
    """Adapt until something is true."""
    for _ in range(100):
        if condition():
            return
        await adaptive.adapt()
    raise AssertionError("adapted in vain")


def test_scale_of_one_pool_ends_its_adapting_only(fake: Scheduler) -> None:
    """The other pool goes on to adapt, until the cluster is closed."""

    async def test(cluster: ClusterjobCluster) -> None:
        fat = cluster.add_pool("fat")
        plain = cluster.adapt(minimum_jobs=1, interval="10ms")
        other = fat.adapt(minimum_jobs=2, interval="10ms")
        await until(lambda: jobs_by_pool(cluster) == {"default": 1, "fat": 2})
        await cluster.scale(jobs=2)
        assert (plain.state, other.state) == ("stopped", "running")
        await cluster.close()
        assert other.state == "stopped"

    with_cluster(test)


def test_the_table_names_the_pools(fake: Scheduler) -> None:
    """Text and HTML have a column for the pool once there is another than the first."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        assert str(cluster.jobs).startswith("name")
        fat = cluster.add_pool("fat", threads=2)
        await fat.scale(jobs=1)
        lines = str(cluster.jobs).splitlines()
        assert [line.split()[0] for line in lines] == ["pool", "default", "fat"]
        assert ">fat</td>" in cluster._repr_html_()
        assert list(fat.jobs) == fat.planned()
        assert repr(fat) == "<Pool 'fat': nodes=1, ppn=1, threads=2, jobs=(1 pending)>"

    with_cluster(test)
