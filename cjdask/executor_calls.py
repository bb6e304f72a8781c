"""The calls of an executor: futures, what is pickled, how outcomes are read."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import load
from typing import IO, TYPE_CHECKING, Any

import cloudpickle

from cjdask.errors import PayloadError, RemoteException
from cjdask.status import JobInfo, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cjdask.executor_folder import CallFolder
    from cjdask.executor_options import CallOptions

__all__ = ["Call", "ClusterFuture", "Ledger", "Task", "dump_args", "dump_function", "read_outcome"]

logger = logging.getLogger(__name__)

NEWEST = -1
"""The newest protocol of pickles; both sides must have the same Python."""
BY_VALUE = b"cloudpickle"
"""In every pickle that needs cloudpickle to be loaded."""


class Ledger:
    """Counts the calls of an executor that are not over, their callbacks included."""

    def __init__(self) -> None:
        self._open = 0
        self._at_end: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._callers: Counter[int] = Counter()

    def open(self) -> None:
        """Count one more."""
        with self._changed:
            self._open += 1

    def close(self) -> None:
        """Count one less."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()
        self._tell()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Know that this thread makes callbacks, as long as the block lasts."""
        me = threading.get_ident()
        with self._changed:
            self._callers[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._callers[me] -= 1
                if not self._callers[me]:
                    del self._callers[me]

    def when_empty(self, function: Callable[[], None]) -> None:
        """Call a function when none is left, perhaps at once."""
        with self._changed:
            self._at_end.append(function)
        self._tell()

    def _tell(self) -> None:
        calls: list[Callable[[], None]] = []
        with self._changed:
            if not self._open:
                calls, self._at_end = self._at_end, []
        for function in calls:
            function()

    def wait(self) -> bool:
        """Wait until none is left; tell whether that is so.

        A callback does not wait: the call that it is made for is not over.
        """
        with self._changed:
            if threading.get_ident() in self._callers:
                return False
            return self._changed.wait_for(lambda: not self._open)


class ClusterFuture(Future[Any]):
    """The result of a call that runs on a cluster, when it is there.

    It is one of `concurrent.futures`. `cancel` ends the job of a call that runs, too, where it
    has one of its own.
    """

    def __init__(self, ledger: Ledger, label: str) -> None:
        super().__init__()
        self._ledger = ledger
        self._label = label
        self._task: Task | None = None
        self._settling = threading.Lock()
        self._settled = False
        ledger.open()

    def __repr__(self) -> str:
        info = self.info
        job = f", job {job_name(info)} is {info.status.name}" if info and not self.done() else ""
        done = "over" if self.done() else "open"
        if self.cancelled():
            done = "cancelled"
        return f"<ClusterFuture of {self._label}: {done}{job}>"

    @property
    def info(self) -> JobInfo | None:
        """What is known of the job that runs the call, ``None`` before it was submitted.

        Of a job that runs many calls it is what was known when this one began.
        """
        return self._task.info() if self._task is not None else None

    def running(self) -> bool:
        """Tell whether the call runs, as far as is known without asking the scheduler."""
        info = self.info
        return not self.done() and info is not None and info.status is Status.RUNNING

    def cancel(self) -> bool:
        """Cancel the call, also one that runs; tell whether it is cancelled.

        The scheduler is told soon after, for many calls at a time. A call that shares a
        process with others (mode ``"pool"``) is stopped too, and its process replaced.
        """
        with self._ledger.calling():
            if not super().cancel():
                return False
        if self._settle():
            if self._task is not None:
                self._task.cancelled()
            self._ledger.close()
        return True

    def _settle(self) -> bool:
        """Tell whether this call of the method is the first, which decides how it ends."""
        with self._settling:
            first, self._settled = not self._settled, True
        if first:
            self._wanted = self.set_running_or_notify_cancel()
        return first

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """Set the result, or the exception, unless the future is over."""
        if not self._settle():
            return
        try:
            with self._ledger.calling():
                if self._wanted and error is not None:
                    self.set_exception(error)
                elif self._wanted:
                    self.set_result(value)
        except BaseException:  # of a callback: it must not end the thread that serves all calls
            logger.exception("a callback of %r failed", self)
        finally:
            self._ledger.close()


@dataclass(eq=False)
class Call:
    """One call: its name among the outcomes, and who waits for it."""

    name: str
    args: bytes
    label: str
    future: ClusterFuture | None

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the outcome."""
        return self.future is not None and not self.future.done()

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """Hand over the outcome and let go of the future."""
        future, self.future = self.future, None
        if future is not None:
            future.settle(value, error)


@dataclass(eq=False)
class Task:
    """What one task of an array, or one turn of a pool's process, is to do."""

    options: CallOptions
    fn: bytes
    calls: list[Call]
    folder: CallFolder
    hook: bool = False
    """Whether the function may save itself before the end of its job."""
    info: Callable[[], JobInfo | None] = lambda: None
    """Tells what is known of the job."""
    on_cancel: Callable[[Task], None] = lambda task: None

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for one of its calls."""
        return any(call.wanted for call in self.calls)

    def cancelled(self) -> None:
        """Note that a future was cancelled; with the last of them the task is of no use."""
        if not self.wanted:
            try:
                self.on_cancel(self)
            except RuntimeError as error:  # the interpreter ends, and no thread can be had
                logger.warning("the job of a cancelled call goes on: %s", error)

    def fail(self, error: Callable[[Call], BaseException]) -> None:
        """End all calls that are open with an exception, one of its own for each."""
        for call in self.calls:
            if call.future is not None:
                call.settle(error=error(call))


def label_of(fn: Any) -> str:
    """Return how messages call a function.

    >>> label_of(functools.partial(int, base=2))
    'int'
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)


def job_name(info: JobInfo) -> str:
    """Return how messages call a job or the task of an array.

    >>> job_name(JobInfo("7", Status.RUNNING, 3))
    '7_3'
    """
    return info.job_id if info.task is None else f"{info.job_id}_{info.task}"


def dump_function(fn: Any) -> bytes:
    """Pickle a function, by value where it can be imported nowhere.

    Raises:
        PayloadError: it cannot be pickled.
    """
    return _dump(fn, f"the function {label_of(fn)}")


def dump_args(fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
    """Pickle the arguments of a call.

    Raises:
        PayloadError: they cannot be pickled.
    """
    return _dump((tuple(args), kwargs), f"the arguments of {label_of(fn)}")


def _dump(value: Any, what: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value, NEWEST))
    except Exception as error:
        raise PayloadError(
            f"{what} cannot be pickled, so that no job can have it: {type(error).__name__}: {error}"
        ) from error


def setup_of(options: CallOptions, task: Task, by_value: bool) -> dict[str, Any]:
    """Return how the calls of a batch are to be made, in plain values."""
    return {
        "python": tuple(sys.version_info[:2]),
        "cloudpickle": cloudpickle.__version__ if by_value else None,
        "cwd": task.folder.cwd,
        "path": task.folder.import_paths(options.import_paths),
        "ranks": options.ranks,
        "every_rank": options.every_rank,
        "requeues": options.requeues if task.hook else 0,
        "seconds": options.checked.time,
    }


def read_outcome(file: IO[bytes], label: str) -> tuple[Any, BaseException | None]:
    """Return the result of a call, or its exception, from what its job left."""
    try:
        facts = load(file)
        kind = facts["kind"]
    except Exception as error:
        return None, _unreadable(label, error)
    if kind == "refused":
        return None, PayloadError(f"{label}: {facts['text']}")
    if kind == "ok":
        try:
            return load(file), None
        except BaseException as error:  # SystemExit, too, must not end the thread of all calls
            return None, _unreadable(label, error)
    remote = RemoteException(f"{label}, on {facts['host']}:\n{facts['text']}")
    if not facts["whole"]:
        return None, remote
    try:
        raised = load(file)
    except BaseException:  # its type cannot be loaded here: the text is what there is
        return None, remote
    if not isinstance(raised, Exception):
        return None, remote
    raised.__cause__ = remote
    return None, raised


def _unreadable(label: str, error: BaseException) -> PayloadError:
    failure = PayloadError(
        f"the result of {label} cannot be loaded here: {type(error).__name__}: {error}"
    )
    failure.__cause__ = error
    return failure
