"""Adaptive scaling, with a fake scheduler that counts commands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cjdask import ClusterjobCluster
from cjdask.scheduler import Scheduler
from tests.cluster_fakes import (
    changes,
    protocol_of,
    register_fake,
    start_workers,
    wait_for,
    with_cluster,
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler as the backend ``fake``."""
    return register_fake(monkeypatch, tmp_path)


def test_scale_ends_adapt(fake: Scheduler) -> None:
    """A cluster that is told its size does not adapt any more."""

    async def test(cluster: ClusterjobCluster) -> None:
        adaptive = cluster.adapt(minimum_jobs=1, maximum_jobs=4, interval="10ms")
        while len(cluster.workers) != 1:
            await asyncio.sleep(0.01)
        await cluster.scale(jobs=3)
        assert adaptive.state == "stopped"
        await asyncio.sleep(0.1)
        assert len(cluster.workers) == 3

    with_cluster(test)


def test_limits_of_adapt(fake: Scheduler) -> None:
    """Limits in workers, cores, memory and jobs become whole jobs."""

    async def test(cluster: ClusterjobCluster) -> None:
        def adapt(**limits: Any) -> tuple[float, float]:
            adaptive = cluster.adapt(interval=0, **limits)
            return adaptive.minimum, adaptive.maximum

        assert adapt(minimum=1, maximum=7) == (2, 6)
        assert adapt(minimum_cores=5, maximum_memory="4GB") == (4, 6)
        assert adapt(minimum_jobs=1, maximum_jobs=2) == (2, 4)
        assert adapt() == (0, float("inf"))

    with_cluster(test, ppn=2, threads=2, mem=1000)


def test_a_pending_job_is_left_in_peace(fake: Scheduler) -> None:
    """While a job is pending nothing is submitted or cancelled for one task that waits."""

    async def test(cluster: ClusterjobCluster) -> None:
        adaptive = cluster.adapt(maximum_jobs=4, interval=0, wait_count=1, idle_grace=0)
        async with Client(cluster, asynchronous=True) as client:
            task = client.submit(sum, [1, 2])
            while not (cluster.scheduler.unrunnable or cluster.scheduler.queued):
                await asyncio.sleep(0.01)
            for _ in range(10):
                await adaptive.adapt()
            assert changes(fake) == {"submit": 1}
            (job,) = cluster.workers
            await start_workers(cluster, job)
            assert await task == 3
            del task
            while cluster.scheduler.tasks:
                await asyncio.sleep(0.01)
            await adaptive.adapt()
            assert changes(fake) == {"submit": 1, "cancel": 1}
            assert not cluster.plan

    with_cluster(test, ppn=4)


def test_the_sibling_of_a_busy_worker_stays(fake: Scheduler, tmp_path: Path) -> None:
    """An adaptive cluster keeps a job as long as one of its workers runs a task."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=3)
        jobs = list(cluster.worker_spec)
        await start_workers(cluster, *jobs)
        adaptive = cluster.adapt(interval=0, wait_count=2, idle_grace=0)
        gates = [tmp_path / "gate0", tmp_path / "gate1"]
        async with Client(cluster, asynchronous=True) as client:
            tasks = [
                client.submit(wait_for, gate, workers=f"{job}-1")
                for gate, job in zip(gates, jobs, strict=False)
            ]
            while sum(len(w.processing) for w in cluster.scheduler.workers.values()) < 2:
                await asyncio.sleep(0.01)
            await adaptive.adapt()
            assert len(cluster.workers) == 3, "not at the first suggestion"
            for _ in range(5):
                await adaptive.adapt()
            assert set(cluster.workers) == set(jobs[:2])
            for gate in gates:
                gate.touch()
            await client.gather(tasks)
            for _ in range(5):
                await adaptive.adapt()
            tasks.clear()
            while cluster.workers:
                await adaptive.adapt()
        assert fake.commands["submit"] == 3

    with_cluster(test, ppn=2)


def test_an_adaptive_cluster_backs_off(fake: Scheduler) -> None:
    """A refused job is not tried again at once."""
    protocol_of(fake).refuse_after = 0

    async def test(cluster: ClusterjobCluster) -> None:
        adaptive = cluster.adapt(minimum_jobs=1, interval=0)
        for _ in range(10):
            await adaptive.adapt()
        assert fake.commands["submit"] == 1
        assert not cluster.workers

    with_cluster(test)


def test_idle_jobs_have_a_time_of_grace(fake: Scheduler, tmp_path: Path) -> None:
    """A job goes when it was idle for the whole time; work in between starts it anew."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        await start_workers(cluster, *cluster.workers)
        adaptive = cluster.adapt(interval=0, wait_count=1, idle_grace="400ms")
        began = time.monotonic()
        async with Client(cluster, asynchronous=True) as client:
            gate = tmp_path / "gate"
            while time.monotonic() < began + 0.3:
                await adaptive.adapt()
            task = client.submit(wait_for, gate)
            while not any(w.processing for w in cluster.scheduler.workers.values()):
                await asyncio.sleep(0.01)
            await adaptive.adapt()
            gate.touch()
            await task
            del task
        ended = time.monotonic()
        while cluster.workers:
            await adaptive.adapt()
            await asyncio.sleep(0.01)
        assert time.monotonic() - ended >= 0.35

    with_cluster(test)


def test_pending_jobs_have_it_too(fake: Scheduler) -> None:
    """Work that comes and goes does not make pending jobs come and go."""

    async def test(cluster: ClusterjobCluster) -> None:
        adaptive = cluster.adapt(interval=0, wait_count=1, idle_grace=60)
        async with Client(cluster, asynchronous=True) as client:
            for number in range(3):
                task = client.submit(sum, [1, number])
                while not (cluster.scheduler.unrunnable or cluster.scheduler.queued):
                    await asyncio.sleep(0.01)
                await adaptive.adapt()
                task.release()
                while cluster.scheduler.tasks:
                    await asyncio.sleep(0.01)
                await adaptive.adapt()
        assert changes(fake) == {"submit": 1}

    with_cluster(test)
