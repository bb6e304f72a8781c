"""Jobs that reach their walltime have successors in time; on a fake scheduler."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from distributed import Client
from distributed.core import Status as WorkerStatus

import cjdask.cluster_keeper
from cjdask import ClusterjobCluster, Status
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

TIME = {"time": "00:10:00"}
"""A walltime whose margin is 150 s; successors are submitted 300 s before the end."""
SOON = 300.2
"""Seconds to the end of a job that is to have a successor in a moment."""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler as the backend ``fake``."""
    monkeypatch.setattr(cjdask.cluster_keeper, "TOGETHER", 0.1)
    return register_fake(monkeypatch, tmp_path)


@pytest.mark.parametrize("adapt", [True, False])
def test_successors_are_submitted_ahead(
    fake: Scheduler, monkeypatch: pytest.MonkeyPatch, adapt: bool
) -> None:
    """Two jobs near their end get successors, with one command; they themselves are let be.

    Adapting may find them one by one.
    """
    monkeypatch.setattr(type(fake.backend), "max_array_size", 100)

    async def test(cluster: ClusterjobCluster) -> None:
        if adapt:
            cluster.adapt(minimum_jobs=2, interval="50ms")
        else:
            await cluster.scale(jobs=2)
        await until(lambda: len(cluster.workers) == 2)
        old = list(cluster.workers)
        workers = await start_workers(cluster, *old, left=SOON)
        await until(lambda: len(cluster.workers) == 4)
        new = [name for name in cluster.workers if name not in old]
        assert list(cluster.worker_spec) == new
        assert {row.status for row in cluster.jobs.values()} == {Status.PENDING}
        assert cluster.plan == cluster.requested
        for worker in workers:
            await worker.close()
        protocol_of(fake).end("1", Status.COMPLETED, 0)
        await until(lambda: list(cluster.workers) == new)
        assert not cluster.expiring
        await asyncio.sleep(0.2)
        assert len(cluster.jobs) == 4
        assert fake.commands["submit"] <= (3 if adapt else 2)

    with_cluster(test, **TIME)
    assert fake.commands["cancel"] == 1


def test_a_job_with_no_time_left_has_its_successor_at_once(fake: Scheduler) -> None:
    """Also a worker that comes when its job is nearly over leads to a successor."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        await start_workers(cluster, *cluster.workers, left=5.0)
        await until(lambda: len(cluster.workers) == 2)
        await cluster.scale(jobs=0)
        assert not cluster.workers
        assert not cluster.observed

    with_cluster(test, **TIME)
    assert not protocol_of(fake).living()


def test_without_a_minimum_the_load_decides(fake: Scheduler, tmp_path: Path) -> None:
    """A job near its end serves until it takes no more tasks; then waiting tasks get another."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (first,) = cluster.workers
        (worker,) = await start_workers(cluster, first, left=SOON)
        adaptive = cluster.adapt(maximum_jobs=4, interval=0)
        await until(lambda: cluster.expiring)
        async with Client(cluster, asynchronous=True) as client:
            gate = tmp_path / "gate"
            task = client.submit(wait_for, gate)
            await until(lambda: worker.state.executing)
            for _ in range(3):
                await adaptive.adapt()
            assert changes(fake) == {"submit": 1}, "it is good for the task"
            cluster.expiring[first] = time.monotonic()
            worker.status = WorkerStatus.closing_gracefully
            await until(lambda: not cluster.scheduler.running)
            for _ in range(3):
                await adaptive.adapt()
            assert changes(fake) == {"submit": 1}, "the task ends by itself"
            more = client.submit(sum, [1, 2])
            await until(lambda: cluster.scheduler.unrunnable or cluster.scheduler.queued)
            await adaptive.adapt()
            assert changes(fake) == {"submit": 2}
            gate.touch()
            await task
            await start_workers(cluster, *cluster.worker_spec)
            assert await more == 3

    with_cluster(test, **TIME)


def test_data_of_a_job_that_ends_needs_another(fake: Scheduler) -> None:
    """An adaptive cluster without tasks gets a job to keep what somebody holds on to."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (first,) = cluster.workers
        (worker,) = await start_workers(cluster, first, left=SOON)
        adaptive = cluster.adapt(maximum_jobs=4, interval=0)
        async with Client(cluster, asynchronous=True) as client:
            data = await client.scatter([1, 2])
            await until(lambda: cluster.expiring)
            cluster.expiring[first] = time.monotonic()
            worker.status = WorkerStatus.closing_gracefully
            await until(lambda: not cluster.scheduler.running)
            await adaptive.adapt()
            assert changes(fake) == {"submit": 2}
            assert await client.gather(data) == [1, 2]

    with_cluster(test, **TIME)


def test_the_maximum_counts_jobs_near_their_end(fake: Scheduler) -> None:
    """There are never more jobs that take tasks than the maximum, whatever the minimum."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (first,) = cluster.workers
        await start_workers(cluster, first, left=SOON)
        adaptive = cluster.adapt(minimum_jobs=1, maximum_jobs=1, interval=0)
        await until(lambda: cluster.expiring)
        await adaptive.adapt()
        assert changes(fake) == {"submit": 1}
        cluster.expiring[first] = time.monotonic()
        await adaptive.adapt()
        assert changes(fake) == {"submit": 2}

    with_cluster(test, **TIME)
