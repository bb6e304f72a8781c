"""The part of a cluster whose Dask scheduler runs apart: left running, taken up again, regained."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from cjdask.cluster_drain import END_TIME
from cjdask.cluster_folder import remove_folder
from cjdask.cluster_job import ClusterJob
from cjdask.cluster_options import DEFAULT, ClusterOptions, resolve
from cjdask.cluster_place import JOB, PlacedScheduler, Server
from cjdask.cluster_python import checked_python
from cjdask.cluster_reporting import ReportingCluster
from cjdask.cluster_scaling import job_of
from cjdask.cluster_script import Recipe
from cjdask.cluster_signals import release
from cjdask.cluster_state import ClusterState, read_security
from cjdask.errors import ClusterjobError, JournalError
from cjdask.jobscript import JobScript
from cjdask.jobscript_once import find_job
from cjdask.journal import Entry, JournalFile, files_in
from cjdask.protocols import address
from cjdask.resources import Resources
from cjdask.run import AsyncResult, cancel_all
from cjdask.scheduler import Scheduler

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ApartCluster", "Left"]

logger = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds between two tries to hear of the workers again."""
PATIENCE = 20.0
"""Seconds without a link after which a cluster that closes gives up what it has to say."""


@dataclass(frozen=True)
class Left:
    """What is left of a cluster that nobody has."""

    state: ClusterState
    saved: Mapping[str, Any]

    @property
    def pools(self) -> Mapping[str, Any]:
        """The pools by name."""
        found: Mapping[str, Any] = self.saved["pools"]
        return found


class ApartCluster(ReportingCluster):
    """The part of a cluster that knows of a Dask scheduler which does not run in this process.

    One that runs here has no ``_server``.
    """

    _server: Server | None = None
    _state: ClusterState | None = None
    _left: Left | None
    """What this cluster was left with, as long as it is not taken up."""
    _keywords: dict[str, Any]
    _finalizer: Any
    scheduler: Any

    if TYPE_CHECKING:

        def addresses(self) -> list[str]:
            """Return the addresses under which workers may find the Dask scheduler."""

    # -- beginning -----------------------------------------------------------------------------

    def _read_options(self) -> ClusterOptions:
        """Return the options; of one that runs apart, with a Python that was looked at."""
        options = resolve(self._keywords)
        if options.place == "here":
            return options
        python = checked_python(options.machine.protocol, options.python)
        self._keywords["python"] = python
        return replace(options, python=python)

    def _set_apart(self, name: str, recipe: Recipe, security: Security | None) -> dict[str, Any]:
        """Prepare a Dask scheduler that runs apart; return its description for Dask.

        Raises:
            ClusterjobError: there is a cluster of this name.
        """
        state = self._left.state if self._left is not None else ClusterState(name)
        server = Server(recipe, state, read_security(security))
        if self._left is None:
            state.create()
            self._dispatcher.server = server
        self._state, self._server = state, server
        options = {"server": self._server, "taken_up": self._left is not None}
        return {"cls": PlacedScheduler, "options": options}

    def save(self) -> None:
        """Keep on this machine what is needed to take this cluster up again.

        Raises:
            ClusterjobError: it cannot be kept.
        """
        if self._state is None or self._server is None or self._left is not None:
            return
        remote = self._keywords.get("remote")
        keywords = {key: value for key, value in self._keywords.items() if value is not None}
        if remote is not None and not isinstance(remote, str):
            keywords["remote"] = address(remote)
        pools = {
            pool.name: {
                "keywords": {k: v for k, v in pool.keywords.items() if v is not None},
                "prefix": pool.prefix,
                "target": pool.keeper.target,
                "adapting": pool.adapting,
            }
            for pool in self.pools.values()
        }
        self._state.save(
            keywords=keywords,
            pools=pools,
            folder=self._server.recipe.folder,
            security=self._server.security,
        )

    # -- leaving and taking up -----------------------------------------------------------------

    def detach(self) -> Any:
        """Leave the cluster running and let go of it, so that this process can end.

        `from_name` takes it up again, in whichever process of this machine. Nobody replaces
        jobs or scales meanwhile. Without anybody connected and anything to do it ends by itself
        after ``idle_timeout``.

        Raises:
            ClusterjobError: its Dask scheduler runs in this process.
        """
        if self._server is None:
            raise ClusterjobError(
                "the Dask scheduler of this cluster runs in this process and ends with it; make "
                "the cluster with scheduler='login' or scheduler='job' to detach from it"
            )
        if self.status == Status.closed:
            raise ClusterjobError("the cluster is closed")
        try:
            return self.sync(self._detach)
        finally:
            if not self.asynchronous:
                self._loop_runner.stop()

    async def _detach(self) -> None:
        self.save()
        self._leaving.set()
        for pool in self.pools.values():
            pool.stop()
        self._finalizer.detach()
        release(self._finalizer)
        placed = self.scheduler
        placed.hurry(PATIENCE)
        for job in self.workers.values():
            job.set_closed()
        await Cluster._close(self)
        await placed.close()
        self._dispatcher.leave()
        silence: ExitStack = vars(self)["_SpecCluster__exit_stack"]
        silence.close()

    @classmethod
    def from_name(cls, name: str, **options: Any) -> Self:  # type: ignore[override]
        """Take up a cluster again that was detached, or whose process has ended somehow.

        ``options`` are ``asynchronous``, ``loop``, ``silence_logs`` and ``shutdown_on_close``;
        all others are as they were.

        Raises:
            ClusterjobError: there is none of this name, another process has it, or its Dask
                scheduler has ended; then its jobs are cancelled and it is forgotten.
            ProtocolError: its machine cannot be reached now.
        """
        known = {"asynchronous", "loop", "silence_logs", "shutdown_on_close"}
        if unknown := options.keys() - known:
            raise ClusterjobError(
                f"{min(unknown)}={options[min(unknown)]!r}: from_name takes "
                f"{', '.join(sorted(known))}; all else is as it was"
            )
        state = ClusterState(name)
        saved = state.open()
        try:
            _check_alive(state, saved)
            security = Security(**saved["security"]) if saved["security"] else False
            options |= {**saved["keywords"], "name": name, "security": security}
            return cls(_left=Left(state, saved), **options)
        except BaseException:
            state.release()
            raise

    async def _start(self) -> None:
        try:
            await super()._start()
        except RuntimeError as error:  # Dask's wrapping of what went wrong
            if isinstance(error.__cause__, ClusterjobError):
                raise error.__cause__ from None
            raise
        if self._server is None:
            return
        if self._left is not None:
            await self._take_up(self._left)
        self.save()

    async def _take_up(self, left: Left) -> None:
        """Know the jobs of a cluster that was left running, and their workers."""
        assert self._server is not None
        machine = self._server.recipe.options.machine
        runs = await self._dispatcher.call(lambda: _runs(left.state, machine))
        for first, run in runs:
            if first == JOB:
                self._server.run = run
                continue
            names = _names(first, run)
            pool = self.pool_of(names[0])
            if pool is None:
                continue
            for job_name, placed in self._dispatcher.note(names, run).items():
                pool.skip(job_name)
                if run._entry.ended:
                    del self._dispatcher.placed[job_name]
                    continue
                job = ClusterJob(self.addresses(), job_name, **pool.spec["options"])
                job.placed, job.job_id, job.status = placed, placed.job_id, Status.running
                self._created.add(job)
                self.workers[job_name], self.worker_spec[job_name] = job, pool.spec
                pool.keeper.follow(job_name, placed, run.submitted)
        for pool in self.pools.values():
            saved = left.pools[pool.name]
            pool.take_up(saved["target"], saved.get("adapting"))
        self._adaptive = self.pools[DEFAULT].adaptive
        self._dispatcher.server = self._server
        self._left = None
        self._meet(self.scheduler_info["workers"].values())

    def _meet(self, workers: Any) -> None:
        """Know workers that came while nobody looked."""
        for worker in list(workers):
            job = job_of(worker["name"])
            if (pool := self.pool_of(job)) is not None:
                ends = worker.get(END_TIME)
                pool.keeper.worker_came(job, None if ends is None else ends - time.time())

    # -- hearing of the workers ----------------------------------------------------------------

    @property
    def dashboard_link(self) -> str:
        """The address of the dashboard for a browser on this machine."""
        if self._server is None:
            link: str = super().dashboard_link
            return link
        return "" if self.scheduler is None else str(self.scheduler.dashboard_link)

    async def _watch_worker_status(self, comm: Any) -> None:
        """Hear of workers, also after the connection broke."""
        while True:
            await super()._watch_worker_status(comm)
            if self._server is None or self.leaving:
                return
            comm = await self._hear_again()
            if comm is None:
                return
            self._watch_worker_status_comm = comm

    async def _hear_again(self) -> Any:
        """Return a new connection that tells of workers, ``None`` if there will be none."""
        logger.info("the connection to the Dask scheduler broke; making it anew")
        assert self._server is not None
        while not self.leaving:
            if await self._dispatcher.call(self._server.ended):
                self._lose()
                return None
            trying = asyncio.ensure_future(self._subscribe())
            leaving = asyncio.ensure_future(self._leaving.wait())
            await asyncio.wait({trying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not trying.done():
                trying.cancel()
                return None
            try:
                return trying.result()
            except OSError as error:
                logger.debug("no connection yet: %s", error)
            await asyncio.sleep(AGAIN)
        return None

    async def _subscribe(self) -> Any:
        """Ask to be told of workers, and catch up with what happened meanwhile."""
        rpc: Any = self.scheduler_comm
        comm = await rpc.live_comm()
        comm.name = "Cluster worker status"
        await comm.write({"op": "subscribe_worker_status"})
        info = await comm.read()
        now, before = info["workers"], dict(self.scheduler_info["workers"])
        for gone in before.keys() - now.keys():
            self._update_worker_status("remove", gone)
        new = {where: worker for where, worker in now.items() if where not in before}
        self.scheduler_info["workers"].update(new)
        self._meet(new.values())
        return comm

    def _lose(self) -> None:
        """Do nothing more for a Dask scheduler that has ended."""
        self.scheduler.relay.over = True
        self.shutdown_scheduler = False  # there is nothing to tell to end
        self.scheduler_info["workers"].clear()
        message = "the Dask scheduler has ended: close this cluster, and make another"
        logger.error(message)
        self.note(message)
        for pool in self.pools.values():
            pool.stop()


def _check_alive(state: ClusterState, saved: Mapping[str, Any]) -> None:
    """Look for the Dask scheduler of a cluster; forget the cluster if it has ended."""
    options = resolve(saved["keywords"])
    recipe = Recipe(options, saved["folder"], "/")
    server = Server(recipe, state, {})
    runs = _runs(state, options.machine)
    server.run = dict(runs).get(JOB)
    if server.find() and not server.ended():
        return
    cancel_all([run for _, run in runs if not run.ready()])
    remove_folder(options.machine.protocol, recipe.folder)
    state.discard()
    raise ClusterjobError(
        f"the Dask scheduler of the cluster {state.name!r} has ended, because it was idle for "
        "idle_timeout or its job or machine ended; jobs that were left have been cancelled"
    )


def _runs(state: ClusterState, machine: Scheduler) -> list[tuple[str, AsyncResult]]:
    """Return the runs of a cluster by the names of their first jobs, in order.

    One whose submission was cut short is looked for.
    """
    found = []
    for file in files_in(state.runs, JobScript.cache_prefix):
        entry = file.read()
        if entry is not None and entry.job_id is None:
            entry = _completed(file, entry, machine)
        if entry is not None:
            found.append((entry.cache_id or "", AsyncResult(machine, entry, file)))
    return sorted(found, key=lambda each: each[1].submitted or 0.0)


def _completed(file: JournalFile, entry: Entry, machine: Scheduler) -> Entry | None:
    with file.lock():
        try:
            job_id = find_job(machine, entry)
        except JournalError as error:
            logger.warning("%s", error)
            return None
        if job_id is None:
            file.discard()
            return None
        entry = replace(entry, job_id=job_id, unsure_since=None)
        file.write(entry)
        return entry


def _names(first: str, run: AsyncResult) -> list[str]:
    """Return the names of the jobs that a run is."""
    array = Resources.of(run._entry.resources).array
    stem, _, number = first.rpartition("-")
    count = len(array.indices) if array is not None else 1
    return [f"{stem}-{int(number) + each}" for each in range(count)]
