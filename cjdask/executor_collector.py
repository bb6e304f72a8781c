"""Collects what came of calls: outcomes as they arrive, ends that left none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cjdask.errors import PayloadError
from cjdask.executor_batch import Batch, exited
from cjdask.executor_calls import Call, Task, read_outcome
from cjdask.executor_folder import CallFolder
from cjdask.status import JobInfo, Reason, Status

__all__ = ["Collector"]

logger = logging.getLogger(__name__)

SHORTEST, LONGEST = 0.02, 0.5
"""Seconds between two looks for outcomes, while they arrive and when none has for long."""
GRACE = 3.0
"""Seconds for which the outcome of a task that ended badly may be late."""
GRACE_WELL = 6.0
"""The same of a task that ended well, which has left one."""
WORD_WITHIN = 60.0
"""Seconds for which the scheduler may not answer, once a task says that it has left."""
LONGEST_EXIT = 600.0
"""Seconds for which it may say that such a task goes on."""
AT_EXIT = 5.0
"""Seconds for which an interpreter that ends waits for the jobs of calls that are over."""
FAILURES = 20
"""How often in a row a look may fail until the calls do."""


@dataclass(eq=False)
class _Expected:
    """A call whose outcome is to come; of one with several processes, those that have."""

    batch: Batch
    index: int
    call: Call
    parts: dict[int, Any] = field(default_factory=dict)


class Collector:
    """Hands over outcomes, from a thread that lives as long as there are batches.

    Nothing is called under its lock.
    """

    def __init__(self, requeue: Callable[[Task], None], forget: Callable[[Task], None]) -> None:
        self._requeue = requeue
        self._forget = forget
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._holders = 0
        self._woken = False
        self._batches: list[Batch] = []
        self._used: set[CallFolder] = set()
        self._expected: dict[tuple[CallFolder, str], _Expected] = {}
        self._abandoned: set[tuple[CallFolder, str]] = set()
        self._unattended = False
        self._failures = 0
        self._fresh = False
        self._ending: float | None = None

    # -- what the engine calls -------------------------------------------------------------------

    def hold(self) -> None:
        """Have a thread that waits for batches, until `let_go`."""
        with self._changed:
            self._start()
            self._holders += 1

    def let_go(self) -> None:
        """End the thread with the last batch."""
        with self._changed:
            self._holders -= 1
            self._wake()

    def follow(self, batch: Batch) -> None:
        """Wait for the outcomes of a batch."""
        with self._changed:
            for index, task in batch.tasks.items():
                for call in task.calls:
                    if call.wanted:
                        self._expected[batch.folder, call.name] = _Expected(batch, index, call)
            self._batches.append(batch)
            self._used.add(batch.folder)
            self._start()
            self._wake()
        try:
            batch.drop = batch.run.when_ended(self.wake)
        except RuntimeError:  # the interpreter ends, and no thread can be had any more
            self._unattended = True

    def wake(self) -> None:
        """Look soon."""
        with self._changed:
            self._wake()

    # -- the thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="cjdask-calls-collector")
            self._thread.daemon = False
            self._thread.start()

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify_all()

    def _loop(self) -> None:
        pause = SHORTEST
        while True:
            with self._changed:
                if (not self._batches and not self._holders) or self._gives_up():
                    self._thread = None
                    for batch in self._batches:
                        batch.clean(ended=False)
                    for folder in self._used:
                        folder.remove_if_empty()
                    self._used.clear()
                    return
                self._changed.wait_for(lambda: self._woken, pause)
                self._woken = False
            found = self._look()
            pause = SHORTEST if found else min(pause * 1.3, LONGEST)

    def _gives_up(self) -> bool:
        """Tell whether all calls are over, and the interpreter waits only for their jobs."""
        if self._holders or self._expected or threading.main_thread().is_alive():
            self._ending = None
            return False
        self._ending = self._ending or time.monotonic()
        return time.monotonic() - self._ending > AT_EXIT

    def _look(self) -> bool:
        """Look for outcomes and ends once; tell whether there were any."""
        try:
            if self._unattended:
                self._ask()
            found = self._take_arrived()
            self._take_ends()
            self._finish()
            self._failures = 0
            return found
        except Exception as error:
            logger.exception("outcomes of calls cannot be collected")
            self._failures += 1
            if self._failures >= FAILURES:
                self._give_up(error)
            return False

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            batches, self._batches = self._batches, []
            self._expected.clear()
        for batch in batches:
            for index in batch.open:
                batch.tasks[index].fail(lambda call: error)

    def _ask(self) -> None:
        """Ask the scheduler from this thread, since the monitor can have none."""
        for batch in self._batches:
            _ = batch.run.status

    # -- outcomes --------------------------------------------------------------------------------

    def _take_arrived(self) -> bool:
        with self._changed:
            folders = {batch.folder for batch in self._batches}
        fresh, self._fresh = self._fresh, False
        found = False
        for folder in folders:
            for filename in folder.arrived(fresh):
                name = folder, filename.partition(".")[0]
                if name in self._expected or filename.endswith(".exit"):
                    found = self._take(folder, filename) or found
                elif name in self._abandoned:
                    folder.drop(filename)
        return found

    def _take(self, folder: CallFolder, filename: str) -> bool:
        """Take what one file among the results tells; tell whether it was news."""
        name, *middle, ending = filename.split(".")
        if ending == "exit":
            return self._take_exit(folder, name, middle, filename)
        with self._changed:
            expected = self._expected.get((folder, name))
        if expected is None or not expected.call.wanted:
            return False
        if ending in ("error", "resume") and middle[-1] != expected.batch.name:
            return False
        if ending == "resume":
            new = expected.index not in expected.batch.saved
            expected.batch.saved.add(expected.index)
            return new
        rank = int(middle[0]) if middle and middle[0].isdigit() else 0
        if rank in expected.parts:
            return False
        self._take_outcome(folder, filename, expected, rank)
        return True

    def _take_exit(self, folder: CallFolder, name: str, middle: list[str], filename: str) -> bool:
        batch = next((b for b in self._batches if b.name == name), None)
        if batch is None or int(middle[0]) in batch.exits:
            return False
        try:
            with folder.fetch(filename) as file:
                batch.exits[int(middle[0])] = (int(file.read()), time.time())
        except (OSError, ValueError):
            return False
        batch.run.hurry()  # the scheduler knows why
        return True

    def _take_outcome(
        self, folder: CallFolder, filename: str, expected: _Expected, rank: int
    ) -> None:
        call, options = expected.call, expected.batch.tasks[expected.index].options
        try:
            with folder.fetch(filename) as file:
                value, error = read_outcome(file, call.label)
        except OSError as problem:
            value, error = None, PayloadError(f"the result of {call.label} is gone: {problem}")
        except Exception as problem:
            value, error = None, problem
        folder.drop(filename)
        expected.parts[rank] = value
        if error is None and len(expected.parts) < options.ranks:
            return
        if error is None and options.ranks > 1:
            values = [expected.parts[each] for each in range(options.ranks)]
            value = values if options.every_rank else values[0]
        self._settle(expected, value, error)
        if error is not None and options.ranks > 1:
            task = expected.batch.tasks[expected.index]
            task.on_cancel(task)  # the other processes may wait for this one for ever

    def _settle(
        self, expected: _Expected, value: Any = None, error: BaseException | None = None
    ) -> None:
        batch, call = expected.batch, expected.call
        with self._changed:
            self._expected.pop((batch.folder, call.name), None)
        call.settle(value, error)
        del value
        task = batch.tasks[expected.index]
        if not task.wanted:
            batch.open.discard(expected.index)
            if not batch.open:
                batch.run.hurry()  # so that it is soon cleaned up

    # -- ends without an outcome -----------------------------------------------------------------

    def _take_ends(self) -> None:
        now = time.monotonic()
        for batch in list(self._batches):
            dead: dict[int, JobInfo] = {}
            for index in list(batch.open):
                if not batch.tasks[index].wanted:
                    self._leave(batch, index, abandon=True)
                    continue
                info: JobInfo | None = batch.info(index)
                assert info is not None
                if info.status.ended:
                    info = self._ended(batch, index, info, now)
                elif index in batch.exits:
                    info = self._exited(batch, index, info)
                else:
                    if info.reason is Reason.HELD:
                        batch.tell_held(info)
                    info = None
                if info is not None:
                    dead[index] = info
            if dead and not batch.adopted:
                batch.read_logs(dead)
            for index, each in dead.items():
                self._died(batch, index, each)

    def _ended(self, batch: Batch, index: int, info: JobInfo, now: float) -> JobInfo | None:
        """Handle a task whose job has ended; tell how if its call has died."""
        if index not in batch.ended:
            batch.ended[index] = now
            self._fresh = True
            self.wake()
            return None
        grace = GRACE_WELL if info.status is Status.COMPLETED else GRACE
        goes_on = index in batch.saved and _may_go_on(info)
        if index in batch.exits or goes_on:
            grace = 0.0
        since = batch.ended[index] + grace
        if now < since:
            return None
        if not batch.folder.looked_since(since):
            self._fresh = True
            return None
        if goes_on:
            self._leave(batch, index)
            self._requeue(batch.tasks[index])
            return None
        return info

    def _exited(self, batch: Batch, index: int, info: JobInfo) -> JobInfo | None:
        """Handle a task that says that it has left, where the scheduler does not say so yet.

        Tell what is known of its end if the call has died.
        """
        seen = batch.exits[index][1]
        again = info.start_time is not None and info.start_time > seen
        if not batch.silent and (again or info.status is Status.PENDING):
            del batch.exits[index]  # the scheduler runs it again
            batch.folder.remove(f"{batch.name}.{index}.exit")
            return None
        patience = WORD_WITHIN if batch.silent else LONGEST_EXIT
        late = time.time() - seen > patience
        # Where the link to its machine is down, nothing is known of it.
        linked = batch.folder.looked_since(time.monotonic() - WORD_WITHIN)
        return exited(batch, index) if late and linked else None

    def _died(self, batch: Batch, index: int, info: JobInfo) -> None:
        if batch.adopted:  # what went wrong for another program is tried again by this one
            self._leave(batch, index)
            self._requeue(batch.tasks[index])
            return
        for expected in self._expected_of(batch, index):
            error = batch.death(index, info, expected.call.label)
            self._settle(expected, error=error)
            self._abandoned.add((batch.folder, expected.call.name))  # it may have saved itself
        batch.open.discard(index)

    def _leave(self, batch: Batch, index: int, abandon: bool = False) -> None:
        """Wait no more for a task; what an abandoned one may still leave is removed."""
        with self._changed:
            for expected in self._expected_of(batch, index):
                name = batch.folder, expected.call.name
                self._expected.pop(name, None)
                if abandon:
                    self._abandoned.add(name)
        batch.open.discard(index)

    def _expected_of(self, batch: Batch, index: int) -> list[_Expected]:
        found = [self._expected.get((batch.folder, call.name)) for call in batch.tasks[index].calls]
        return [each for each in found if each is not None and each.batch is batch]

    def _finish(self) -> None:
        """Clean up after batches whose job is over."""
        for batch in list(self._batches):
            if not batch.open and batch.run.known().status.ended:
                self._take_arrived()  # for the last of those that were abandoned
                with self._changed:
                    self._batches.remove(batch)
                for task in batch.tasks.values():
                    self._forget(task)
                    for call in task.calls:
                        self._abandoned.discard((batch.folder, call.name))
                batch.clean()


def _may_go_on(info: JobInfo) -> bool:
    """Tell whether a call that saved itself is to go on: not where somebody cancelled its job."""
    return info.status is not Status.CANCELLED or info.reason is Reason.PREEMPTED
