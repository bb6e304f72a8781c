"""A cluster on a fake scheduler, with workers in this process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Worker, get_worker

import cjdask.backends
import cjdask.cluster
import cjdask.cluster_ending
import cjdask.scheduler
from cjdask import ClusterjobCluster
from cjdask.cluster_drain import SECONDS_LEFT
from cjdask.command import Command, Output
from cjdask.scheduler import Scheduler
from tests.fakes import FakeBackend, FakeProtocol

QUIET: dict[str, Any] = {"dashboard_address": ":0"}


class SlowProtocol(FakeProtocol):
    """Takes its time to submit, and refuses scripts on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse_after: int | None = None
        self.refuse_named: str | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.submitted: list[str] = []
        self.delay = 0.0
        self._count = threading.Lock()

    def run(self, command: Command, timeout: float | None = None) -> Output:
        if command.argv[0] != "fake-submit":
            return super().run(command, timeout)
        with self._count:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        with self._count:
            self.at_once -= 1
            late = self.refuse_after is not None and len(self.submitted) >= self.refuse_after
            if late or (self.refuse_named and self.refuse_named in command.argv[1]):
                return Output.of(stderr="Invalid account", exit_code=1, argv=command.argv)
            assert command.cwd is not None
            self.submitted.append(Path(command.cwd, command.argv[1]).read_text())
            return super().run(command, timeout)


def register_fake(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Scheduler:
    """Work in an empty folder, with a fake scheduler as the backend ``fake``."""
    monkeypatch.chdir(folder)
    # Its jobs do not end with their workers, which are in this process.
    monkeypatch.setattr(cjdask.cluster_ending, "LET_GO", 0.2)
    monkeypatch.setattr(cjdask.cluster_ending, "LET_GO_CLOSING", 0.2)
    monkeypatch.setattr(cjdask.cluster, "GONE_WITHIN", 0.2)
    backend = FakeBackend()
    scheduler = Scheduler(backend, SlowProtocol())
    monkeypatch.setitem(cjdask.backends._registered, "fake", backend)
    monkeypatch.setitem(cjdask.scheduler._schedulers, (backend, cjdask.scheduler._here), scheduler)
    return scheduler


def changes(scheduler: Scheduler) -> dict[str, int]:
    """Count the commands that changed something."""
    return {verb: n for verb, n in scheduler.commands.items() if verb in ("submit", "cancel")}


def protocol_of(scheduler: Scheduler) -> SlowProtocol:
    """Return the protocol of the fake scheduler."""
    assert isinstance(scheduler.protocol, SlowProtocol)
    return scheduler.protocol


def with_cluster(
    test: Callable[[ClusterjobCluster], Awaitable[None]], **options: Any
) -> ClusterjobCluster:
    """Run a test with an asynchronous cluster on the fake scheduler; return the closed cluster.

    Everybody may connect, since the workers are of this process.
    """

    async def run() -> ClusterjobCluster:
        options.setdefault("host", "127.0.0.1")
        options.setdefault("security", False)
        async with ClusterjobCluster("fake", asynchronous=True, **QUIET, **options) as cluster:
            try:
                await test(cluster)
            finally:
                for worker in list(Worker._instances):
                    await worker.close(executor_wait=False)
        return cluster

    return asyncio.run(run())


async def start_workers(
    cluster: ClusterjobCluster, *jobs: str, nthreads: int = 1, left: float | None = None
) -> list[Worker]:
    """Start in this process the workers that these jobs, which end in ``left`` s, would start."""
    tells = {} if left is None else {SECONDS_LEFT: lambda _: left}
    workers = [
        await Worker(
            cluster.scheduler_address,
            name=job + rank,
            nthreads=nthreads,
            resources={pool.name: nthreads},
            startup_information=tells,
            dashboard=False,
        )
        for job in jobs
        if (pool := cluster.pool_of(job)) is not None
        for rank in pool.spec["group"]
    ]
    names = {worker.name for worker in workers}
    while not names <= cluster.observed:
        await asyncio.sleep(0.01)
    return workers


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def whereabouts() -> tuple[str, int, int, str]:
    """Return job, process, thread and GPUs of a task that takes a while."""
    time.sleep(0.3)
    job = str(get_worker().name).rpartition("-")[0]
    return job, os.getpid(), threading.get_ident(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def wait_for(path: Path) -> None:
    """Do nothing until there is a file, as a task that takes long."""
    while not path.exists():
        time.sleep(0.01)
