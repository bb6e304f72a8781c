"""The jobs of a Dask cluster, and how they get to the scheduler and back."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from cjdask.cluster_folder import make_folder, remove_folder
from cjdask.cluster_import import Job
from cjdask.cluster_script import Recipe, WorkerScript
from cjdask.errors import ClusterjobError
from cjdask.jobscript import JobScript
from cjdask.run import AsyncResult, cancel_all

if TYPE_CHECKING:
    from cjdask.cluster_place import Server

__all__ = ["AT_ONCE", "ClusterJob", "Dispatcher", "Placed", "batches"]

AT_ONCE = 4
"""How many submit commands run at the same time."""
_T = TypeVar("_T")

SUBMITTED_WITHIN = 10.0
"""Seconds for which the end of a cluster waits for submit commands that run."""


@dataclass(frozen=True)
class Placed:
    """Where a job of a cluster is in the scheduler: a run of its own, or a task of an array."""

    run: AsyncResult
    task: int | None = None

    @property
    def job_id(self) -> str:
        """The id of the job, with that of the task behind it."""
        return self.run.job_id if self.task is None else f"{self.run.job_id}_{self.task}"

    def left_queue(self) -> bool:
        """Tell whether it is in the queue no more."""
        return self.run.left_queue(self.task)


class Dispatcher:
    """Hands the jobs of one cluster to their scheduler, from threads, and takes them back.

    ``placed`` are the jobs that have been submitted and not been cancelled, by name. An entry
    is made in the thread that submits, so that no job is forgotten whatever happens to
    whoever waits for it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.placed: dict[str, Placed] = {}
        self.protocol = recipe.options.machine.protocol
        self._folder = recipe.folder
        self._made: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="cjdask-submit")
        self._owner = os.getpid()
        self._preparing = threading.Lock()
        self._changed = threading.Condition()
        self._submitting = 0
        self.server: Server | None = None
        """The Dask scheduler that ends with the jobs, if it runs apart."""
        self.ended = False

    async def submit(self, names: Sequence[str], script: JobScript, recipe: Recipe) -> list[Placed]:
        """Submit a job, or an array whose tasks, from 1, are several, without blocking the loop.

        Raises:
            SubmitError, SchedulerUnavailableError, ProtocolError: see `JobScript.submit`.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._submit, names, script, recipe)

    def _submit(self, names: Sequence[str], script: JobScript, recipe: Recipe) -> list[Placed]:
        with self._changed:
            if self.ended:
                raise ClusterjobError("the cluster is closed")
            self._submitting += 1
        try:
            self.prepare(recipe)
            if self.server is None:
                run = script.submit()
            else:
                journal = self.server.state.runs
                run = script.submit(cache_id=names[0], cache_folder=journal, retry=False)
            return list(self.note(names, run).values())
        finally:
            with self._changed:
                self._submitting -= 1
                self._changed.notify_all()

    def note(self, names: Sequence[str], run: AsyncResult) -> dict[str, Placed]:
        """Note that these jobs are a run, or the tasks of one from 1 on."""
        tasks = range(1, len(names) + 1) if len(names) > 1 else (None,)
        placed = {name: Placed(run, task) for name, task in zip(names, tasks, strict=True)}
        self.placed.update(placed)
        return placed

    def prepare(self, recipe: Recipe) -> None:
        """Make the folders for scripts (private), with what jobs read there, and for logs."""
        with self._preparing:
            wanted = {**recipe.files, "": recipe.log_directory or ""}
            if not wanted.items() <= self._made.items():
                logs = recipe.log_directory
                make_folder(self.protocol, self._folder, recipe.files, logs)
                self._made.update(wanted)

    async def call(self, function: Callable[[], _T]) -> _T:
        """Call a function that may speak to the scheduler in a thread.

        Where no thread can be had any more, as while the interpreter ends, it is called at once.
        """
        try:
            call = asyncio.get_running_loop().run_in_executor(self._pool, function)
        except RuntimeError:
            return function()
        return await call

    async def cancel(self, names: Collection[str]) -> None:
        """Cancel jobs with one command, also while the interpreter ends.

        Raises:
            SchedulerError, ProtocolError: the request did not get through; they stay `placed`.
        """
        await self.call(lambda: self._cancel(names))

    async def wait_gone(self, jobs: Sequence[Placed], seconds: float) -> None:
        """Wait until all jobs have left the queue of their scheduler, or the time is up.

        The event loop goes on, also while the interpreter ends: it has to tell their workers.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if await self.call(lambda: all(job.left_queue() for job in jobs)):
                return
            await asyncio.sleep(0.1)

    def _cancel(self, names: Collection[str]) -> None:
        found = {name: self.placed[name] for name in names if name in self.placed}
        tasks: dict[AsyncResult, list[int]] = {}
        for each in found.values():
            if each.task is not None:
                tasks.setdefault(each.run, []).append(each.task)
        if found:
            cancel_all({each.run: None for each in found.values()}, tasks)
        for name in found:
            self.placed.pop(name, None)

    def leave(self) -> None:
        """Do nothing more with the jobs, which stay."""
        self.ended = True
        self._pool.shutdown(wait=False)
        if self.server is not None:
            self.server.state.release()

    def end(self) -> None:
        """Cancel all that is left and remove the folder of the scripts.

        It runs when the cluster is closed, when nobody refers to it any more, when the
        interpreter ends or a signal ends it; not in a process that was forked off. Submit
        commands that run are waited for, so that their jobs are cancelled too.

        Raises:
            SchedulerError, ProtocolError: the request did not get through; jobs are left.
        """
        if os.getpid() != self._owner:
            return
        with self._changed:
            self.ended = True
            self._changed.wait_for(lambda: not self._submitting, SUBMITTED_WITHIN)
        self._pool.shutdown(wait=False)
        try:
            self._cancel(list(self.placed))
            if self.server is not None:
                self.server.end()
        finally:
            if self._made or self.server is not None:
                remove_folder(self.protocol, self._folder)


def batches(names: Sequence[str], most: float = math.inf) -> list[list[str]]:
    """Split names of jobs into parts whose numbers follow each other, ``most`` in each.

    >>> batches(["w-1", "w-2", "w-3", "w-5", "v-6"], 2)
    [['w-1', 'w-2'], ['w-3'], ['w-5'], ['v-6']]
    """
    found: list[list[str]] = []
    for name in names:
        stem, _, number = name.rpartition("-")
        follows = found and found[-1][-1] == f"{stem}-{int(number) - 1}"
        if follows and len(found[-1]) < most:
            found[-1].append(name)
        else:
            found.append([name])
    return found


class ClusterJob(Job):
    """One batch job and the Dask workers in it."""

    config_name = "clusterjob"

    def __init__(
        self,
        scheduler: str | Sequence[str] | None = None,
        name: str | None = None,
        *,
        recipe: Recipe,
        dispatcher: Dispatcher,
    ) -> None:
        # What the parent sets up is for another kind of script; only the grandparent's is used.
        ProcessInterface.__init__(self)
        self.name = name
        self.scheduler = [scheduler] if isinstance(scheduler, str) else list(scheduler or ())
        self.placed: Placed | None = None
        self.job_id: str | None = None
        self.job_name = recipe.options.job_name
        self.worker_processes = recipe.options.workers
        self.worker_cores = recipe.options.cores
        self.worker_memory = recipe.options.memory
        self._recipe = recipe
        self._dispatcher = dispatcher

    @property
    def job_header(self) -> str:  # type: ignore[override]
        """The directives at the top of the job script."""
        return "\n".join(self._script().headers())

    def job_script(self) -> str:
        """Return the text of the job script, as it stands in its file."""
        return f"{self._script()}\n"

    def _script(self, tasks: int = 1) -> WorkerScript:
        return self._recipe.script(self.scheduler, self.name or "", tasks)

    async def start(self) -> None:
        """Submit the job; its workers come when the scheduler starts it."""
        await self.start_together([self])

    @staticmethod
    async def start_together(jobs: Sequence[ClusterJob]) -> None:
        """Submit jobs of one kind whose numbers follow each other, several as one array."""
        first = jobs[0]
        names = [job.name or "" for job in jobs]
        placed = await first._dispatcher.submit(names, first._script(len(jobs)), first._recipe)
        for job, place in zip(jobs, placed, strict=True):
            job.placed = place
            job.job_id = place.job_id
            job.status = Status.running

    def set_closed(self) -> None:
        """Note that the job is over."""
        self.status = Status.closed
        self._event_finished.set()

    async def close(self) -> None:
        """Cancel the job; the cluster does it for many at a time."""
        if self.name is not None:
            await self._dispatcher.cancel([self.name])
        self.set_closed()

    def __repr__(self) -> str:
        return f"<ClusterJob {self.name}: job {self.job_id}, {self.status.name}>"
