"""The jobs of a cluster: seen, replaced when they end unasked, given up on after failures."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

import cjdask.cluster_keeper
import cjdask.cluster_patience
from cjdask import ClusterjobCluster, ClusterjobError, JobCancelled, JobFailed, Reason, Status
from cjdask.cluster_patience import Patience
from cjdask.scheduler import Scheduler
from tests.cluster_fakes import (
    changes,
    protocol_of,
    register_fake,
    start_workers,
    until,
    with_cluster,
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler as the backend ``fake``; pauses are short."""
    monkeypatch.setattr(cjdask.cluster_patience, "MAX_PAUSE", 0.02)
    return register_fake(monkeypatch, tmp_path)


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED, Status.COMPLETED])
@pytest.mark.parametrize("connected", [True, False])
def test_a_job_that_ends_is_replaced(fake: Scheduler, status: Status, connected: bool) -> None:
    """Whatever its end, and whether its workers had come: another job takes its place."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=3)
        first, lost, third = cluster.workers
        workers = await start_workers(cluster, lost) if connected else []
        job_id = cluster.workers[lost].job_id
        for worker in workers:
            await worker.close(executor_wait=False)
        protocol_of(fake).end(job_id, status, 0 if status is Status.COMPLETED else 1)
        await until(lambda: lost not in cluster.workers and len(cluster.workers) == 3)
        assert {first, third} < set(cluster.workers)
        assert cluster.jobs[lost].status is status
        assert cluster.plan == cluster.requested
        await cluster.scale(jobs=0)

    with_cluster(test, ppn=2)
    assert changes(fake) == {"submit": 4, "cancel": 1}
    assert not protocol_of(fake).queue


def test_a_walltime_is_no_failure(fake: Scheduler) -> None:
    """Jobs that reach a walltime nobody has told are replaced, however many in a row."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        for number in range(1, 6):
            (name,) = cluster.workers
            (worker,) = await start_workers(cluster, name)
            await worker.close(executor_wait=False)
            protocol_of(fake).end(str(number), Status.FAILED, reason=Reason.TIMEOUT)
            await until(lambda name=name: cluster.workers and name not in cluster.workers)
            assert cluster.jobs[name].reason is Reason.TIMEOUT
        assert cluster.pools["default"].keeper.patience.failures == 0

    with_cluster(test)


def test_an_adaptive_minimum_is_kept(fake: Scheduler) -> None:
    """A job that is cancelled from outside is replaced as far as the minimum asks for it."""

    async def test(cluster: ClusterjobCluster) -> None:
        cluster.adapt(minimum_jobs=2, maximum_jobs=4, interval="20ms")
        await until(lambda: len(cluster.workers) == 2)
        lost = next(iter(cluster.workers))
        protocol_of(fake).end(cluster.workers[lost].job_id, Status.CANCELLED)
        await until(lambda: lost not in cluster.workers and len(cluster.workers) == 2)

    with_cluster(test)
    assert fake.commands["submit"] == 3


async def fail_all(fake: Scheduler, status: Status = Status.FAILED) -> None:
    """Let every job fail as soon as it is there."""
    while True:
        for job_id in list(protocol_of(fake).queue):
            Path(f"{job_id}.stderr").write_text("one\nno such module\n")
            protocol_of(fake).end(job_id, status, None if status is Status.CANCELLED else 3)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("adapt", [True, False])
def test_failures_in_a_row_are_the_end(
    fake: Scheduler, adapt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three failing rounds no job is submitted, and who waits for workers learns why.

    Nor are jobs replaced while the logs of lost ones are read.
    """
    read = cjdask.cluster_keeper._Entry.log

    def read_slowly(entry: Any, tail: int | None = None) -> str:
        time.sleep(0.1)
        return read(entry, tail)

    monkeypatch.setattr(cjdask.cluster_keeper._Entry, "log", read_slowly)

    async def test(cluster: ClusterjobCluster) -> None:
        failing = asyncio.ensure_future(fail_all(fake))
        if adapt:
            cluster.adapt(minimum_jobs=2, interval="10ms")
        else:
            await cluster.scale(jobs=2)
        with pytest.raises(JobFailed, match=r"(?s)exit code 3.*no such module") as caught:
            await cluster.wait_for_workers(1, timeout="20s")
        assert caught.value.info is not None
        assert caught.value.info.exit_code == 3
        assert str(caught.value).count("no such module") == 1
        submitted = fake.commands["submit"]
        assert 3 <= submitted <= 6
        await asyncio.sleep(0.2)
        assert fake.commands["submit"] == submitted
        assert not cluster.workers
        logs = await cluster.get_logs(scheduler=False, workers=False)
        assert "no more jobs are submitted" in logs["Cluster"]
        dead = [text for name, text in logs.items() if name.startswith("Job ")]
        assert len(dead) == submitted
        assert all("no such module" in text for text in dead)
        failing.cancel()
        await cluster.scale(jobs=1)
        assert fake.commands["submit"] == submitted + 1
        await start_workers(cluster, *cluster.workers)
        await cluster.wait_for_workers(1)

    with_cluster(test)


def test_a_client_that_waits_learns_why(fake: Scheduler) -> None:
    """Client.wait_for_workers raises too when all jobs are cancelled again and again."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        failing = asyncio.ensure_future(fail_all(fake, Status.CANCELLED))
        async with Client(cluster, asynchronous=True) as client:
            with pytest.raises(JobCancelled, match="3 failures in a row"):
                await client.wait_for_workers(1, timeout=20)
        failing.cancel()

    with_cluster(test)


def test_one_question_for_all_jobs(fake: Scheduler) -> None:
    """Twenty jobs are followed with one query a cycle, and none when the cluster is closed."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=20)
        before = fake.commands["query"]
        await until(lambda: fake.commands["query"] > before + 1)
        asked = [call for call in protocol_of(fake).calls if call[0] == "fake-query"]
        assert len(asked[-1]) == 21

    with_cluster(test)
    asked = fake.commands["query"]
    time.sleep(0.3)
    assert fake.commands["query"] == asked


def test_the_table_of_jobs(fake: Scheduler) -> None:
    """Jobs are listed with id, status, reason, workers, exit code and logs, as text and HTML."""

    async def test(cluster: ClusterjobCluster) -> None:
        assert len(cluster.jobs) == 0
        await cluster.scale(jobs=2)
        running, dead = cluster.workers
        await start_workers(cluster, running)
        protocol_of(fake).set("1", Status.RUNNING)
        protocol_of(fake).end("2", Status.FAILED, 7)
        await until(lambda: len(cluster.jobs) == 3)
        await until(lambda: cluster.jobs[running].status is Status.RUNNING)
        row = cluster.jobs[dead]
        assert (row.job_id, row.status, row.exit_code) == ("2", Status.FAILED, 7)
        assert row.stderr == str(Path("2.stderr").absolute())
        assert (cluster.jobs[running].workers, cluster.jobs[running].workers_planned) == (2, 2)
        assert cluster.jobs[list(cluster.jobs)[2]].queue_time is not None
        text = str(cluster.jobs).splitlines()
        assert [line.split()[2] for line in text] == ["status", "RUNNING", "FAILED", "PENDING"]
        assert "jobs=(1 pending, 1 running, 1 failed)" in repr(cluster)
        rows = re.findall("<tr>.*?</tr>", cluster.jobs._repr_html_())
        cells = [re.sub("<[^>]*>", " ", row.replace(" title=", "> <")).split() for row in rows]
        assert cells[0][:4] == ["name", "id", "status", "queued"]
        assert cells[2][:4] == [dead, "2", "●", "FAILED"]
        assert cluster.jobs._repr_html_() in cluster._repr_html_()

    with_cluster(test, ppn=2)


def test_a_scheduler_that_is_away_is_waited_for(fake: Scheduler) -> None:
    """That a replacement could not be submitted for want of an answer is no failure."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (lost,) = cluster.workers
        submit = fake.submit
        tries: list[int] = []

        def away(*args: object, **options: object) -> str:
            tries.append(1)
            if len(tries) > 5:
                return submit(*args, **options)  # type: ignore[arg-type]
            raise cjdask.SchedulerUnavailableError("no contact")

        fake.submit = away  # type: ignore[method-assign]
        protocol_of(fake).end("1", Status.CANCELLED)
        await until(lambda: cluster.workers and lost not in cluster.workers)
        assert len(tries) == 6

    with_cluster(test)


def test_a_job_that_only_the_scheduler_lost_stays(fake: Scheduler) -> None:
    """A job that is listed no more is kept as long as its workers are there."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (name,) = cluster.workers
        (worker,) = await start_workers(cluster, name)
        run = cluster.workers[name].placed.run
        run._job.infos[None] = cjdask.JobInfo("1", Status.FAILED, reason=Reason.LOST)
        await until(lambda: cluster.jobs[name].status is Status.FAILED)
        await asyncio.sleep(0.1)
        assert list(cluster.workers) == [name]
        await worker.close(executor_wait=False)
        await until(lambda: cluster.workers and name not in cluster.workers)

    with_cluster(test)


def test_workers_of_a_lost_node_are_struck_off(
    fake: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers whose job has ended are not counted any more, though their connection hangs."""
    monkeypatch.setattr(cjdask.cluster_keeper, "GHOSTS", 0.1)

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (name,) = cluster.workers
        await start_workers(cluster, name)
        protocol_of(fake).end("1", Status.FAILED)
        await until(lambda: not cluster.observed)

    with_cluster(test)


def test_a_worker_that_stays_ends_the_count(
    fake: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures before a job whose workers stay do not count, and replacing goes on."""
    monkeypatch.setattr(cjdask.cluster_keeper, "STABLE", 0.1)

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=2)
        good, _ = cluster.workers
        for _ in range(3):
            await until(lambda: len(protocol_of(fake).queue) == 2)
            protocol_of(fake).end(list(protocol_of(fake).queue)[1], Status.FAILED, 1)
        await until(
            lambda: not cluster.pools["default"].keeper.may_submit() and len(cluster.workers) == 1
        )
        await start_workers(cluster, good)
        await until(lambda: len(cluster.workers) == 2)

    with_cluster(test)


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause doubles with each failure; failures of one round count once."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(cjdask.cluster_patience.time, "monotonic", lambda: clock.now)
    patience = Patience(3)
    assert patience.not_before < clock.now
    for began, failures, pause in ((90, 1, 1), (95, 1, 1), (100, 2, 2), (99, 2, 2)):
        patience.count(JobFailed("no"), began)
        assert (patience.failures, patience.not_before) == (failures, 100 + pause)
    assert patience.error() is None
    clock.now = 110.0
    patience.count(JobFailed("really no"), 105)
    assert patience.exhausted
    assert "3 failures in a row" in str(patience.error())
    assert "really no" in str(patience.error())


def test_waiting_jobs_are_cancelled_first(fake: Scheduler) -> None:
    """When a cluster closes no waiting job gets the nodes of those that end by themselves."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=3)
        first, second, _ = cluster.workers
        await start_workers(cluster, first)
        workers = await start_workers(cluster, second)
        await workers[0].close(executor_wait=False)
        await until(lambda: len(cluster.observed) == 3)
        await cluster.close()

    with_cluster(test, ppn=2)
    cancels = [call[1:] for call in protocol_of(fake).calls if call[0] == "fake-cancel"]
    assert [set(ids) for ids in cancels] == [{"2", "3"}, {"1"}]


def test_a_dask_scheduler_that_ends_is_the_end(fake: Scheduler) -> None:
    """After Client.shutdown() no job is replaced, and the cluster closes at once."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=2)
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            await client.shutdown()
        await until(lambda: cluster.leaving)
        protocol_of(fake).end("1", Status.COMPLETED, 0)
        await asyncio.sleep(0.2)
        with pytest.raises(ClusterjobError, match="the cluster is closed"):
            await cluster.wait_for_workers(1)
        began = time.monotonic()
        await cluster.close()
        assert time.monotonic() - began < 5

    with_cluster(test)
    assert changes(fake) == {"submit": 2, "cancel": 1}
    assert not protocol_of(fake).queue
