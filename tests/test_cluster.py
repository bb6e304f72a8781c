"""The cluster, with a fake scheduler that counts commands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import cjdask
import cjdask.backends
from cjdask import ClusterjobBackend, ClusterjobCluster, ResourcesNotSupportedError, SubmitError
from cjdask.scheduler import Scheduler
from tests.cluster_fakes import (
    QUIET,
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


@pytest.mark.parametrize("size", [{"n": 8}, {"jobs": 2}, {"cores": 16}, {"memory": "8GB"}])
def test_scale_means_whole_jobs(fake: Scheduler, size: dict[str, Any]) -> None:
    """8 workers, 2 jobs, 16 cores and 8 GB are the same two jobs of 2 nodes."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(**size)
        assert len(cluster.workers) == 2
        assert len(cluster.plan) == 8
        assert cluster.plan == cluster.requested

    with_cluster(test, nodes=2, ppn=2, threads=2, mem=2000)
    assert fake.commands["submit"] == 2


def test_one_command_cancels_all(fake: Scheduler, tmp_path: Path) -> None:
    """Closing cancels ten jobs with one command and removes the folder of their scripts."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=10)
        (private,) = tmp_path.glob(".dask-worker-*")
        assert private.stat().st_mode & 0o777 == 0o700
        assert len(list(private.glob("dask-worker-*"))) == 10

    with_cluster(test)
    assert changes(fake) == {"submit": 10, "cancel": 1}
    assert not protocol_of(fake).queue
    assert list(tmp_path.glob(".dask-worker-*")) == []


def test_the_script_is_the_one_that_is_submitted(fake: Scheduler) -> None:
    """job_script() shows what the scheduler gets for the next job."""

    async def test(cluster: ClusterjobCluster) -> None:
        shown = cluster.job_script()
        await cluster.scale(jobs=1)
        assert protocol_of(fake).submitted == [shown]
        assert shown != cluster.job_script()

    with_cluster(test, ppn=2, threads=2, mem="1GiB", worker_extra_args=["--resources", "A={x}"])


def test_submitting_is_bounded_and_does_not_block(fake: Scheduler) -> None:
    """Four submit commands run at the same time, and the event loop goes on."""
    protocol_of(fake).delay = 0.02

    async def test(cluster: ClusterjobCluster) -> None:
        scaling = cluster.scale(jobs=20)
        turns = 0
        while not scaling.done():
            await asyncio.sleep(0.001)
            turns += 1
        await scaling
        assert turns > 20

    with_cluster(test)
    assert protocol_of(fake).most_at_once == 4


def test_closing_does_not_submit_what_is_left(fake: Scheduler) -> None:
    """Jobs whose turn has not come when the cluster closes are not submitted."""
    protocol_of(fake).delay = 0.02

    async def test(cluster: ClusterjobCluster) -> None:
        cluster.scale(jobs=100)
        await asyncio.sleep(0.05)

    with_cluster(test)
    assert 0 < fake.commands["submit"] < 30
    assert fake.commands["cancel"] == 1
    assert not protocol_of(fake).queue


def test_a_refusal_reaches_who_scales(fake: Scheduler) -> None:
    """The scheduler's words are raised, the refused job is gone, no more are tried."""
    protocol_of(fake).refuse_after = 2

    async def test(cluster: ClusterjobCluster) -> None:
        with pytest.raises(SubmitError, match="Invalid account"):
            await cluster.scale(jobs=50)
        assert len(cluster.workers) == len(cluster.worker_spec) == 2
        assert cluster.plan == cluster.requested
        protocol_of(fake).refuse_after = None
        await cluster.scale(jobs=3)
        assert len(cluster.workers) == 3

    with_cluster(test)
    assert fake.commands["submit"] <= 2 + 4 + 1
    assert not protocol_of(fake).queue


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_refusal_reaches_who_starts(fake: Scheduler, asynchronous: bool) -> None:
    """A cluster whose first job is refused closes and raises the scheduler's words."""
    protocol_of(fake).refuse_after = 0

    async def start() -> None:
        await ClusterjobCluster("fake", n_workers=1, asynchronous=True, **QUIET)

    def run() -> None:
        if asynchronous:
            asyncio.run(start())
        else:
            ClusterjobCluster("fake", n_workers=1, **QUIET)

    with pytest.raises(SubmitError, match="Invalid account"):
        run()


def test_a_cancel_that_fails_is_tried_again_and_told(fake: Scheduler) -> None:
    """Jobs that could not be cancelled are an error of close, which ends all the same."""
    closing: list[ClusterjobCluster] = []

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=2)
        closing.append(cluster)
        protocol_of(fake).down = True

    with pytest.raises(cjdask.SchedulerError, match="does not answer"):
        with_cluster(test)
    assert closing[0].status.name == "closed"
    assert fake.commands["cancel"] == 2


def test_names_are_never_used_again(fake: Scheduler) -> None:
    """A job that replaces another has a name of its own, in every cluster."""
    names: list[str] = []

    async def test(cluster: ClusterjobCluster) -> None:
        for jobs in (1, 0, 1):
            await cluster.scale(jobs=jobs)
            names.extend(cluster.workers)

    with_cluster(test)
    with_cluster(test)
    assert len(set(names)) == len(names) == 4


@pytest.mark.parametrize("ppn", [1, 2])
def test_bookkeeping_agrees(fake: Scheduler, ppn: int) -> None:
    """Planned, requested and observed workers have the same names."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=2)
        await start_workers(cluster, *cluster.workers)
        assert cluster.plan == cluster.requested == cluster.observed
        assert len(cluster.plan) == 2 * ppn

    with_cluster(test, ppn=ppn)


def test_scaling_down_prefers_what_has_not_started(fake: Scheduler) -> None:
    """A pending job goes before a running one, whole, however young it is."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=4)
        running = list(cluster.worker_spec)[2]
        await start_workers(cluster, running)
        await cluster.scale(jobs=1)
        assert list(cluster.workers) == [running]
        assert fake.commands["cancel"] == 1

    with_cluster(test, ppn=2)


def test_scaling_down_prefers_idle_jobs_and_moves_data(fake: Scheduler, tmp_path: Path) -> None:
    """A job goes that runs nothing, and what its workers hold moves to the others."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=2)
        idle, busy = cluster.worker_spec
        await start_workers(cluster, idle, busy)
        async with Client(cluster, asynchronous=True) as client:
            data = [
                (await client.scatter([rank], workers=f"{idle}-{rank}"))[0] for rank in range(2)
            ]
            gate = tmp_path / "gate"
            task = client.submit(wait_for, gate, workers=f"{busy}-0")
            while not any(w.processing for w in cluster.scheduler.workers.values()):
                await asyncio.sleep(0.01)
            await cluster.scale(2)
            assert list(cluster.workers) == [busy]
            assert cluster.observed == {f"{busy}-0", f"{busy}-1"}
            assert await client.gather(data) == [0, 1]
            gate.touch()
            await task

    with_cluster(test, ppn=2)


def test_a_worker_that_nobody_knows_leaves(fake: Scheduler) -> None:
    """News of an unknown worker does not end the stream of news."""

    async def test(cluster: ClusterjobCluster) -> None:
        cluster._update_worker_status("remove", "tcp://127.0.0.1:1")
        await cluster.scale(jobs=1)
        await start_workers(cluster, *cluster.workers)

    with_cluster(test)


def test_a_cluster_that_is_dropped_leaves_no_jobs(fake: Scheduler) -> None:
    """Jobs of an asynchronous cluster that nobody closed are cancelled when it is forgotten."""

    async def run() -> None:
        cluster = await ClusterjobCluster("fake", n_workers=2, asynchronous=True, **QUIET)
        cluster._finalizer()
        assert not protocol_of(fake).queue
        await cluster.close()

    asyncio.run(run())
    assert changes(fake) == {"submit": 2, "cancel": 1}


class OneByOne(ClusterjobBackend):
    """A site's own backend, which knows one run at a time and starts no processes."""

    name = "site"
    extension = "site"

    def cmd_submit(self, jobscript: Any) -> list[str]:
        return ["sh", "-c", f"grep -c dask_worker {jobscript.filename} >>log; echo 7"]

    def get_job_id(self, response: str) -> str:
        return response.strip()

    def cmd_status(self, run: Any, finished: bool = False) -> list[str]:
        return ["true"]

    def get_status(self, response: str, finished: bool = False) -> None:
        return None

    def cmd_cancel(self, run: Any) -> list[str]:
        return ["sh", "-c", f"echo cancel {run.job_id} >>log"]

    def resource_headers(self, jobscript: Any) -> list[str]:
        return []

    def replace_body_vars(self, body: str) -> str:
        return body


def test_a_backend_of_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's own backend serves jobs of one worker, and refuses larger ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cjdask.backends._registered, "site", OneByOne())
    with ClusterjobCluster("site", jobs=1, threads=2, **QUIET) as cluster:
        assert "dask_worker" in cluster.job_script()
        assert "export CLUSTERJOB_RANK=0" in cluster.job_script()
    assert (tmp_path / "log").read_text() == "1\ncancel 7\n"
    with pytest.raises(ResourcesNotSupportedError, match="cannot start 2 workers"):
        ClusterjobCluster("site", ppn=2, **QUIET)
