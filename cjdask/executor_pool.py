"""Pool mode: a few jobs of long-lived processes that take call after call.

One thread serves a pool while calls are open. All that happens is an event in its queue, so
that nothing here needs a lock but the thread's begin and end::

    submit(), cancel()  ----->
    workers, results    ----->  events  -->  thread: batches for free workers, outcomes
    (loop of the cluster)

Calls travel in batches, as large as makes them worth the way but no larger than what is made in
a fraction of a second. A call that takes long ends its batch: the others go to somebody else.
"""

from __future__ import annotations

import logging
import math
import queue
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from cjdask.cluster_calls import CallCluster
from cjdask.errors import ClusterjobError, JobDied, PayloadError
from cjdask.executor_calls import Call, Task, read_outcome
from cjdask.executor_options import CallOptions
from cjdask.executor_pooled import (
    LONGEST_TURN,
    batch_size,
    clean_logs,
    cluster_options,
    job_died,
    packed,
    process_died,
    running,
)
from cjdask.executor_worker import BatchResult

if TYPE_CHECKING:
    from cjdask.executor_batch import Batch
    from cjdask.executor_folder import CallFolder

__all__ = ["PoolEngine"]

logger = logging.getLogger(__name__)

FOR_ONE = 2.0
"""Seconds of work that are worth a worker."""
LOOK = 0.25
"""Seconds between two looks at what brings no event."""
WORD_WITHIN = 30.0
"""Seconds for which the scheduler may be silent about a job whose worker has gone."""

Item = tuple[Task, Call]


@dataclass(eq=False)
class _Sent:
    """A batch that a worker has."""

    address: str
    items: list[Item]
    stopped: bool = False


class PoolEngine:
    """Runs calls in the workers of a Dask cluster."""

    def __init__(self, options: CallOptions, folder: CallFolder) -> None:
        self._options = options
        self._events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        # What follows belongs to the thread; others only look at its size.
        self._waiting: deque[Item] = deque()
        self._alone: set[Call] = set()
        self._slots: dict[str, str | None] = {}
        self._sent: dict[str, _Sent] = {}
        self._batch_of: dict[Call, str] = {}
        self._dying: list[tuple[_Sent, float]] = []
        self._slow: float | None = None
        self._tries = 0
        self._folder = folder
        self._kept: set[str | None] = set()
        self._stored: set[CallFolder] = set()
        folder.prepare()
        try:
            self._cluster: CallCluster | None = CallCluster(
                cluster_options(options, folder), options.maximum_jobs, self._tell, self._wanted
            )
        except BaseException:
            clean_logs(folder, self._kept)
            folder.remove_if_empty()
            raise
        _open.add(self)

    # -- what the executor calls -----------------------------------------------------------------

    def enqueue(self, tasks: Sequence[Task], together: bool = False) -> None:
        """Run tasks as soon as a process is free.

        Raises:
            RuntimeError: the interpreter ends, and no thread can be had any more.
        """
        for task in tasks:
            task.on_cancel = self._cancel
        self._post("new", list(tasks))

    def run_now(self, tasks: Sequence[Task], batches: Iterable[Batch]) -> None:
        """Do as `enqueue`; there are no batches of other programs in pools."""
        self.enqueue(tasks)

    def cancel_waiting(self) -> None:
        """Cancel the calls that no process has yet."""
        done = threading.Event()
        self._post("cancel_waiting", done)
        if threading.current_thread() is not self._thread:
            done.wait()

    def close(self) -> None:
        """End the jobs when no call is open."""
        self._closed = True
        try:
            self._post("closed")
        except RuntimeError:  # no thread any more: the interpreter ends
            self._close_cluster()

    def join(self) -> None:
        """Wait until all calls are over, and the jobs have gone if the pool was closed."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _cancel(self, task: Task) -> None:
        self._post("cancelled", task)

    # -- events, from any thread -----------------------------------------------------------------

    def _tell(self, *event: Any) -> None:
        """Note what the cluster tells; while no call is open it can wait."""
        self._events.put(event)

    def _post(self, *event: Any) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="cjdask-calls-pool")
                self._thread.daemon = False
                try:
                    self._thread.start()
                except BaseException:
                    self._thread = None
                    raise
            self._events.put(event)

    def _wanted(self) -> int:
        """Return how many workers the calls are good for."""
        waiting, sent = len(self._waiting), len(self._sent)
        if waiting and self._slow is not None:
            waiting = math.ceil(waiting * self._slow / FOR_ONE)
        return min(waiting + sent, self._options.max_workers or waiting + sent)

    # -- the thread ------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._lock:
                over = not (self._waiting or self._sent or self._dying) and self._events.empty()
                if over and (not self._closed or self._cluster is None):
                    self._thread = None
                    return
            if over:
                self._close_cluster()
                continue
            try:
                self._turn()
            except Exception as error:
                logger.exception("a pool of calls failed")
                self._fail_all(error)

    def _turn(self) -> None:
        """Handle what has happened, and give work to free workers."""
        busy = self._dying or (self._waiting and self._slots)
        try:
            event = self._events.get(timeout=LOOK if busy else None)
            while True:
                getattr(self, f"_on_{event[0]}")(*event[1:])
                event = self._events.get_nowait()
        except queue.Empty:
            pass  # all that happened has been handled
        self._bury()
        self._dispatch()

    def _on_new(self, tasks: list[Task]) -> None:
        if self._cluster is None:  # a call that waited for others, at the end of the interpreter
            for task in tasks:
                task.fail(lambda call: ClusterjobError("the pool is closed"))
            return
        if not self._waiting and not self._slots:
            self._tries += 1
            self._cluster.retry(self._tries)
        self._waiting.extend((task, call) for task in tasks for call in task.calls)

    def _on_closed(self) -> None:
        """Nothing but the end of the wait for an event."""

    def _on_came(self, address: str) -> None:
        self._slots.setdefault(address, None)

    def _on_gone(self, address: str) -> None:
        self._slots.pop(address, None)

    def _on_cancelled(self, task: Task) -> None:
        sent = {self._batch_of[call] for call in task.calls if call in self._batch_of}
        for name in sent:
            self._stop_unwanted(name)
        if not sent and self._waiting and not self._waiting[0][1].wanted:
            self._waiting = deque(item for item in self._waiting if item[1].wanted)

    def _stop_unwanted(self, name: str) -> None:
        """Stop a batch if nobody waits for any of its calls."""
        batch = self._sent[name]
        if not batch.stopped and not any(call.wanted for _, call in batch.items):
            batch.stopped = True
            assert self._cluster is not None
            self._cluster.stop(name, batch.address)

    def _on_cancel_waiting(self, done: threading.Event) -> None:
        for _, call in list(self._waiting):
            if (future := call.future) is not None:
                future.cancel()
        self._waiting.clear()
        done.set()

    def _on_hopeless(self, error: Exception, tries: int) -> None:
        if tries == self._tries and not self._slots:
            while self._waiting:
                self._waiting.popleft()[1].settle(error=error)

    def _on_done(self, name: str, result: BatchResult | Exception | None) -> None:
        batch = self._sent.pop(name)
        for _, call in batch.items:
            self._batch_of.pop(call, None)
        if self._slots.get(batch.address) == name:
            self._slots[batch.address] = None
        if isinstance(result, BatchResult):
            self._take(batch, result)
        elif result is None:
            self._lost(batch)
        else:
            error = PayloadError(f"the workers of the pool cannot make calls: {result}")
            error.__cause__ = result
            for _, call in batch.items:
                call.settle(error=error)

    def _take(self, batch: _Sent, result: BatchResult) -> None:
        """Hand over outcomes; what was not made goes to another worker."""
        assert self._cluster is not None
        for (task, call), (ok, outcome) in zip(batch.items, result.outcomes, strict=False):
            self._alone.discard(call)
            if ok and task.folder.durable:
                task.folder.store(f"{call.name}.ok", outcome)
                self._stored.add(task.folder)
            call.settle(*read_outcome(BytesIO(outcome), call.label))
        if result.seconds:
            self._slow = max(*result.seconds, 0.7 * (self._slow or 0.0), 1e-6)
        rest = batch.items[len(result.outcomes) :]
        if result.going_on:
            self._send(batch.address, [rest.pop(0)], going_on=True)
        elif result.exit_code is not None and rest:
            call = rest.pop(0)[1]
            if call.wanted:
                self._died(call, process_died(self._cluster, batch.address, call, result))
        self._put_back(rest)

    def _put_back(self, items: Sequence[Item]) -> None:
        """Have calls made that were sent to a worker but not made."""
        for task, _ in items:
            task.info = partial(_same, None)
        self._waiting.extendleft(reversed(items))

    def _lost(self, batch: _Sent) -> None:
        """Handle the loss of a worker with a batch.

        Of several calls it is not known which were made: each is made again, by itself. One by
        itself has ended with its job.
        """
        items = [item for item in batch.items if item[1].wanted]
        if len(items) == 1:
            self._dying.append((_Sent(batch.address, items), time.monotonic()))
            return
        self._alone.update(call for _, call in items)
        self._put_back(items)

    def _bury(self) -> None:
        """End the calls whose job is gone, when the scheduler has said how it ended."""
        if self._cluster is None:
            return
        for entry in list(self._dying):
            batch, since = entry
            late = time.monotonic() - since > WORD_WITHIN
            if self._cluster.job_over(batch.address) or late:
                self._dying.remove(entry)
                for _, call in batch.items:
                    self._died(call, job_died(self._cluster, batch.address, call))

    def _died(self, call: Call, error: JobDied) -> None:
        self._kept.add(error.log_file)
        call.settle(error=error)

    # -- batches ---------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        cluster = self._cluster
        if cluster is None:
            return
        free = [address for address, name in self._slots.items() if name is None]
        for address in free:
            if len(self._sent) >= (self._options.max_workers or math.inf):
                return
            if not cluster.usable(address):
                continue
            items = self._next_items()
            if not items:
                return
            self._send(address, items)

    def _send(self, address: str, items: list[Item], going_on: bool = False) -> None:
        """Send calls to a worker, or have it asked for the one that it still makes."""
        cluster, name = self._cluster, secrets.token_hex(8)
        assert cluster is not None
        info = running(cluster.info(address))
        for task, call in items:
            self._batch_of[call] = name
            task.info = partial(_same, info)
        if address in self._slots:
            self._slots[address] = name
        self._sent[name] = _Sent(address, items)
        if going_on:
            self._slow = max(self._slow or 0.0, LONGEST_TURN)
            cluster.go_on(name, address)
            self._stop_unwanted(name)
        else:
            cluster.send(name, address, packed(self._options, name, items))

    def _next_items(self) -> list[Item]:
        """Take the next calls to be made together: all of one folder, as many as are short."""
        size = batch_size(len(self._waiting), len(self._slots), self._slow)
        items: list[Item] = []
        while self._waiting and len(items) < size:
            task, call = self._waiting[0]
            if not call.wanted:
                self._waiting.popleft()
                continue
            alone = call in self._alone
            if items and (alone or task.folder is not items[0][0].folder):
                break
            items.append(self._waiting.popleft())
            if alone:
                break
        return items

    # -- the end ---------------------------------------------------------------------------------

    def _close_cluster(self) -> None:
        cluster, self._cluster = self._cluster, None
        _open.discard(self)
        if cluster is not None:
            try:
                cluster.close()
            except Exception as error:
                logger.warning("the jobs of a pool could not be ended: %s", error)
            if not self._options.keep_logs:
                clean_logs(self._folder, self._kept)
            self._folder.remove_if_empty()
            for folder in self._stored:
                folder.arrived(fresh=True)  # and what is stored here goes there

    def _fail_all(self, error: Exception) -> None:
        items = [*self._waiting, *(item for sent in self._sent.values() for item in sent.items)]
        items += [item for sent, _ in self._dying for item in sent.items]
        self._waiting.clear()
        self._dying.clear()
        for _, call in items:
            call.settle(error=error)


def _same(info: Any) -> Any:
    return info


_open: weakref.WeakSet[PoolEngine] = weakref.WeakSet()


def _wait_at_exit() -> None:
    """Let the calls of all pools end while threads still work."""
    for engine in list(_open):
        engine.close()
    for engine in list(_open):
        engine.join()


# Like the executors of the standard library, and before they are ended: dask needs them.
threading._register_atexit(_wait_at_exit)  # type: ignore[attr-defined]
