"""Array mode: each call is one task of an array job, and has its resources for itself.

Two threads serve an executor while calls are open, and end with the last of them::

    submit(), cancel()  -->  sender     collects for a moment, then submits or cancels many
                               |        with one command
                               v
    results, words      -->  collector  takes outcomes as their files arrive, and believes the
                                        monitor about tasks that ended without one

They are no daemons: as with any executor the interpreter ends when the calls have.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from cjdask.errors import ClusterjobError, SubmitError
from cjdask.executor_batch import Batch, submit_batch
from cjdask.executor_calls import Task
from cjdask.executor_collector import Collector
from cjdask.executor_script import array_limit
from cjdask.run import AsyncResult, cancel_all
from cjdask.status import Status

__all__ = ["ArrayEngine"]

logger = logging.getLogger(__name__)

QUIET = 0.1
"""Seconds without another call after which those that were collected are submitted."""
LONGEST = 1.0
"""Seconds for which calls are collected at most."""
LONGEST_OF_CANCELS = 5.0
"""Seconds for which cancels are: to end a whole array is less work for a scheduler than a part."""
CANCEL_AGAIN = 5.0
"""Seconds until a cancel that did not get through is tried again."""
CANCEL_TRIES = 5
ROOM_AFTER = 10.0
"""Seconds until more is submitted to a scheduler that takes no more jobs of one user."""
FULL = re.compile(
    r"submit limit|SubmitJobs?Limit|JobCount|per-(user|group) limit|already in queue|"
    r"would exceed|jobs per user|pending job threshold",
    re.IGNORECASE,
)
"""What schedulers say where a user has as many jobs as may be."""

_T = TypeVar("_T")


class ArrayEngine:
    """Runs tasks as tasks of array jobs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: list[Task] = []
        self._held: list[Task] = []
        self._sending: set[Task] = set()
        self._most = math.inf
        self._now = False
        self._cancels: list[Task] = []
        self._cancels_since = 0.0
        self._batch_of: dict[Task, tuple[Batch, int]] = {}
        self._sender: threading.Thread | None = None
        self._collector = Collector(self._requeue, self._forget)

    # -- what the executor calls -----------------------------------------------------------------

    def enqueue(self, tasks: Sequence[Task], together: bool = False) -> None:
        """Submit tasks soon, with others that come at the same time.

        Tasks that are ``together`` wait for no others.

        Raises:
            RuntimeError: the interpreter ends, and no thread can be had any more.
        """
        for task in tasks:
            task.on_cancel = self._cancel
        with self._changed:
            self._new += tasks
            self._now = self._now or together
            try:
                self._start()
            except BaseException:
                del self._new[len(self._new) - len(tasks) :]
                raise
            self._changed.notify_all()

    def run_now(self, tasks: Sequence[Task], batches: Iterable[Batch]) -> None:
        """Submit tasks before this method returns, and wait for batches that are submitted.

        Raises:
            RuntimeError: the interpreter ends, and no thread can be had any more.
        """
        self._collector.hold()
        try:
            self._adopt(batches)
            for task in tasks:
                task.on_cancel = self._cancel
            with self._changed:
                self._sending.update(tasks)
            self._submit(tasks)
        finally:
            with self._changed:
                self._sending.difference_update(tasks)
            self._collector.let_go()

    def _adopt(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            for index, task in batch.tasks.items():
                task.on_cancel = self._cancel
                with self._changed:
                    self._batch_of[task] = (batch, index)
            self._collector.follow(batch)

    def cancel_waiting(self) -> None:
        """Cancel the calls whose tasks do not run yet."""
        with self._changed:
            sent = dict(self._batch_of)
            waiting = [*self._held, *self._new, *(self._sending - sent.keys())]
        for run in {batch.run for batch, _ in sent.values()}:
            _ = run.status  # asks anew unless the last answer is fresh
        waiting += [
            task
            for task, (batch, index) in sent.items()
            if batch.info(index).status is Status.PENDING
        ]
        for task in waiting:
            for call in task.calls:
                if (future := call.future) is not None:
                    future.cancel()

    def close(self) -> None:
        """Do nothing: the threads end with the last call, and nothing else is held."""

    def join(self) -> None:
        """Do nothing: what is left when no call is open is not worth the wait."""

    # -- the sender ------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._sender is not None and self._sender.is_alive():
            return
        self._collector.hold()
        try:
            self._sender = threading.Thread(target=self._send, name="cjdask-calls-sender")
            self._sender.daemon = False
            self._sender.start()
        except BaseException:
            self._sender = None
            self._collector.let_go()
            raise

    def _send(self) -> None:
        while True:
            with self._changed:
                if not self._new and not self._cancels and not self._held:
                    self._sender = None
                    self._collector.let_go()
                    return
            try:
                self._send_once()
            except Exception:
                logger.exception("calls could not be handed to the scheduler")

    def _send_once(self) -> None:
        self._collect()
        with self._changed:
            cancels: list[Task] = []
            if not self._new or time.monotonic() - self._cancels_since > LONGEST_OF_CANCELS:
                cancels, self._cancels = self._cancels, cancels
            tasks, self._new, self._now = [*self._held, *self._new], [], False
            self._held = []
            self._sending.update(tasks)
        try:
            self._submit([task for task in tasks if task.wanted])
        except BaseException as error:
            _fail(tasks, error)
            raise
        finally:
            with self._changed:
                self._sending.difference_update(tasks)
            self._cancel_all(cancels)

    def _collect(self) -> None:
        """Wait until no more calls come."""
        with self._changed:
            if self._held and self._batch_of:  # the site has room when some of them have ended
                self._changed.wait_for(lambda: self._new or self._cancels, ROOM_AFTER)
            began = time.monotonic()
            while not self._now and time.monotonic() - began < self._longest():
                known = len(self._new) + len(self._cancels)
                self._changed.wait_for(
                    lambda known=known: (  # type: ignore[misc]
                        self._now or len(self._new) + len(self._cancels) > known
                    ),
                    QUIET,
                )
                if len(self._new) + len(self._cancels) == known:
                    return

    def _longest(self) -> float:
        return LONGEST if self._new else LONGEST_OF_CANCELS

    def _submit(self, tasks: Sequence[Task]) -> None:
        groups: dict[object, list[Task]] = {}
        for task in tasks:
            groups.setdefault((task.options.signature, task.folder, task.hook), []).append(task)
        for group in groups.values():
            try:
                most = array_limit(group[0].options)
            except Exception as error:
                _fail(group, error)
                continue
            while group:
                size = int(min(most, self._most))
                if not self._submit_batch(group[:size]):
                    break
                del group[:size]
            with self._changed:
                self._held += group

    def _submit_batch(self, tasks: Sequence[Task]) -> bool:
        """Submit tasks as one batch; tell whether the site had room for it."""
        try:
            batch = submit_batch(tasks)
        except SubmitError as error:
            with self._changed:
                others = bool(self._batch_of)
            if FULL.search(str(error)) and (others or len(tasks) > 1):
                logger.info("calls wait, the scheduler takes no more jobs now: %s", error)
                self._most = self._most if others else len(tasks) // 2
                return False
            _fail(tasks, error)
            return True
        except BaseException as error:
            _fail(tasks, error)
            return True
        with self._changed:
            self._batch_of.update((task, (batch, i)) for i, task in batch.tasks.items())
        self._collector.follow(batch)
        for task in tasks:
            if not task.wanted:
                self._cancel(task)
        return True

    def _requeue(self, task: Task) -> None:
        """Submit a task again, which goes on where it saved itself."""
        with self._changed:
            self._batch_of.pop(task, None)
        task.info = lambda: None
        self.enqueue([task])

    def _forget(self, task: Task) -> None:
        with self._changed:
            self._batch_of.pop(task, None)

    # -- cancelling ------------------------------------------------------------------------------

    def _cancel(self, task: Task) -> None:
        with self._changed:
            if task in self._batch_of:
                if not self._cancels:
                    self._cancels_since = time.monotonic()
                self._cancels.append(task)
                self._start()
            self._changed.notify_all()
        self._collector.wake()

    def _cancel_all(self, tasks: Sequence[Task]) -> None:
        with self._changed:
            found = [self._batch_of.pop(task) for task in tasks if task in self._batch_of]
        whole: list[AsyncResult] = []
        some: dict[AsyncResult, list[int]] = {}
        for batch, index in found:
            if batch.single:
                whole.append(batch.run)
            else:
                some.setdefault(batch.run, []).append(index)
        for attempt in range(CANCEL_TRIES if found else 0):
            try:
                cancel_all([*whole, *some], some)
                return
            except ClusterjobError as error:
                logger.warning("calls could not be cancelled (try %d): %s", attempt + 1, error)
                time.sleep(CANCEL_AGAIN)


def _fail(tasks: Sequence[Task], error: BaseException) -> None:
    for task in tasks:
        task.fail(lambda call: error)
