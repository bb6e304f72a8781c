"""Workers that leave in time: before the end of their job, and when nobody is there any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed import Client, Scheduler, Worker
from distributed.core import Status

from cjdask import cluster_drain
from cjdask.cluster_drain import ENDS, MARGIN, SECONDS_LEFT

HOURS = 7200.0
Start = Callable[..., Awaitable[Worker]]


def noted(file: Path, seconds: float, *values: Any) -> Any:
    """Take a while, note that it was done, return the values."""
    time.sleep(seconds)
    with file.open("a") as log:
        log.write("x")
    return values


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Name the file that has a letter for each run of a task."""
    return tmp_path / "runs"


@asynccontextmanager
async def cluster(patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Client, Start]]:
    """Start a Dask scheduler, a client, and the means to start workers of jobs that end."""
    async with Scheduler(port=0, dashboard_address=":0", host="127.0.0.1") as scheduler:

        async def start(name: str, left: float = HOURS, margin: float = 3.0, **more: Any) -> Worker:
            patch.setenv(ENDS, str(time.time() + left))
            patch.setenv(MARGIN, str(margin))
            options = {"nthreads": 1, "preload": ["cjdask.cluster_drain"], **more}
            return await Worker(scheduler.address, name=name, **options)

        async with Client(scheduler.address, asynchronous=True) as client:
            try:
                yield client, start
            finally:
                for worker in list(Worker._instances):
                    await worker.close(executor_wait=False)


def run(test: Callable[[Client, Start], Awaitable[None]]) -> None:
    """Run a test with a client and the means to start workers."""

    async def with_cluster() -> None:
        with pytest.MonkeyPatch.context() as patch:
            async with cluster(patch) as (client, start):
                await test(client, start)

    asyncio.run(with_cluster())


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def test_no_task_is_lost_and_none_runs_twice(runs: Path) -> None:
    """What runs ends, what has not begun goes to others, results move, then the worker leaves."""

    async def test(client: Client, start: Start) -> None:
        began = time.time()
        first = await start("job-1-0", left=17.0, margin=12.0)
        slow = client.submit(noted, runs, 1.0, "slow", key="slow")
        await until(lambda: first.state.executing)
        queued = [client.submit(noted, runs, 0.0, i, key=f"t-{i}") for i in range(8)]
        held = client.submit(noted, runs, 0.0, slow, key="after")
        await until(lambda: first.state.ready)
        await start("job-2-0")
        await until(lambda: first.status is Status.closed)
        assert 1.0 < time.time() - began < 13.0
        assert await client.gather(queued) == [(i,) for i in range(8)]
        assert await slow == ("slow",)
        assert await held == (("slow",),)
        assert runs.read_text() == "x" * 10

    run(test)


def test_a_worker_waits_for_who_takes_its_data(runs: Path) -> None:
    """While no other worker is there data stays, and tasks wait; both go to who comes."""

    async def test(client: Client, start: Start) -> None:
        only = await start("job-1-0", left=6.3, margin=6.0)
        data = client.submit(noted, runs, 0.0, 42, key="data")
        await data
        await until(lambda: only.status is Status.closing_gracefully)
        more = client.submit(noted, runs, 0.0, data, key="more")
        await asyncio.sleep(0.7)
        assert only.status is Status.closing_gracefully
        await start("job-2-0")
        assert await more == ((42,),)
        await until(lambda: only.status is Status.closed, 4)
        assert await data == (42,)
        assert runs.read_text() == "xx"

    run(test)


@pytest.mark.long
def test_a_task_that_outlasts_the_margin_runs_again(runs: Path) -> None:
    """The worker leaves before the job is ended, its data is moved, the task is run elsewhere."""

    async def test(client: Client, start: Start) -> None:
        ends = time.time() + 3.2
        first = await start("job-1-0", left=3.2, margin=2.4)
        data = client.submit(noted, runs, 0.0, 42, key="data")
        await data
        slow = client.submit(noted, runs, 4.0, "slow", key="slow")
        await until(lambda: first.state.executing)
        await start("job-2-0")
        await until(lambda: first.status is Status.closed)
        assert time.time() < ends
        assert await data == (42,)
        assert await slow == ("slow",)

    run(test)


def held(file: Path) -> None:
    """Run until there is a file, for a minute at most."""
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_busy_worker_does_not_outlast_its_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the Dask scheduler has vanished a worker ends, though its task takes long."""
    monkeypatch.delenv(ENDS, raising=False)
    over = tmp_path / "over"

    async def test() -> None:
        options = {"nthreads": 1, "preload": ["cjdask.cluster_drain"]}
        async with (
            Scheduler(port=0, dashboard_address=":0", host="127.0.0.1") as scheduler,
            Worker(scheduler.address, **options) as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            task = client.submit(held, over)
            await until(lambda: worker.state.executing)
            try:
                scheduler.stream_comms[worker.address].abort()
                await until(lambda: worker.status is Status.closed, 20)
            finally:
                over.touch()
            await task.cancel()

    asyncio.run(test())


def test_what_a_worker_tells(runs: Path) -> None:
    """The Dask scheduler is told how long a worker will be there; until then it works."""

    async def test(client: Client, start: Start) -> None:
        worker = await start("job-1-0")
        info = (await client.scheduler.identity(n_workers=-1))["workers"][worker.address]
        assert HOURS - 10 < info[SECONDS_LEFT] <= HOURS
        assert await client.submit(noted, runs, 0.0, 1) == (1,)
        await worker.close()
        assert not cluster_drain._tasks

    run(test)


def test_preloads_that_are_configured(runs: Path, tmp_path: Path) -> None:
    """The preload modules of dask's configuration are loaded too."""
    (tmp_path / "mine.py").write_text(
        "def dask_setup(worker):\n    worker.mine = 'up'\n"
        "def dask_teardown(worker):\n    worker.mine = 'down'\n"
    )

    async def test(client: Client, start: Start) -> None:
        with dask.config.set({"distributed.worker.preload": [str(tmp_path / "mine.py")]}):
            worker = await start("job-1-0")
        assert worker.mine == "up"
        await worker.close()
        assert worker.mine == "down"

    run(test)
