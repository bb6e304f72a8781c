"""An executor of `concurrent.futures` whose calls run on a cluster."""

from __future__ import annotations

import copy
import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from cjdask.errors import ClusterjobError, PayloadError
from cjdask.executor_array import ArrayEngine
from cjdask.executor_batch import Batch
from cjdask.executor_cache import DEFAULT_CACHE, MapCache
from cjdask.executor_calls import (
    Call,
    ClusterFuture,
    Ledger,
    Task,
    dump_args,
    dump_function,
    label_of,
)
from cjdask.executor_depends import after, futures_in
from cjdask.executor_far import DEFAULT_THERE, FarFolder
from cjdask.executor_folder import CallFolder
from cjdask.executor_map import Submission, map_calls
from cjdask.executor_options import CallOptions

if TYPE_CHECKING:
    from cjdask.protocols import ConnectionParameters
    from cjdask.protocols.remote import RemoteProtocol

__all__ = ["ClusterExecutor", "map"]

DEFAULT_FOLDER = os.path.join(".cjdask", "calls")
"""Where calls are put, unless the variable CFUT_DIR says otherwise."""


class Engine(Protocol):
    """What runs tasks: one for each way to do it."""

    def enqueue(self, tasks: Sequence[Task], together: bool = False) -> None:
        """Run tasks soon; those that are ``together`` wait for no others."""

    def run_now(self, tasks: Sequence[Task], batches: Iterable[Batch]) -> None:
        """Submit tasks, and wait for batches that have been submitted before."""

    def cancel_waiting(self) -> None:
        """Cancel the calls that do not run yet."""

    def close(self) -> None:
        """Let go of everything as soon as no call is open."""

    def join(self) -> None:
        """Wait for that."""


class ClusterExecutor(Executor):
    """Runs calls of Python functions on a cluster, as `concurrent.futures` does on one machine.

    Parameters
    ----------
    backend : name of the scheduler; without one the scheduler that is installed, and where
        there is none the embedded one (``"local"``), which runs jobs on this machine
    mode : ``"array"``: each call is a task of an array job with resources of its own; calls
        that are submitted together are one submission. ``"pool"``: jobs of ``nodes*ppn``
        processes that take call after call, for many short calls
    nodes, ppn, threads : machines, processes on each, threads of each process. In array mode
        all processes make the call together, as MPI programs do, and the result is that of
        the first
    mem, time, queue, account, gpus : memory and GPUs of each machine, walltime, queue, project
    max_workers : how many calls of one submission, or of a pool, run at a time at most
    maximum_jobs : how many jobs a pool has at most
    folder : where calls and results are put, for nodes to see: ``.cjdask/calls``; on another
        machine ``~/.cjdask/calls`` there
    remote : the machine whose scheduler gets the calls, as for `JobScript`: ``user@host``, a
        `ConnectionParameters`, a connection. Paths and modules are then those of that machine
    ssh : the program by which it is reached
    python : the interpreter that the jobs start, of the version of this one. On another machine
        it needs cloudpickle, and for a pool this package; without a name one is looked for
    env, prologue : environment variables, and shell lines that run before Python, in the job
    additional_setup_lines : lines for the head of the job script, directives among them
    additional_import_paths : where modules are looked for first
    keep_logs : whether logs stay; those of calls that died always do
    max_requeues : how often a call that saves itself before its job ends is continued
    debug : whether to tell on standard error what is submitted
    **options : options of the scheduler (``constraint="haswell"``), ``jobname``, ``depends``

    Raises
    ------
    ResourcesNotSupportedError, UnknownBackendError, ValueError
        An argument is wrong; the message says what is allowed.
    ClusterjobError
        The machine has no Python that could make the calls; the message says what is missing.
    ProtocolError
        The machine cannot be reached.

    Examples
    --------
    >>> with ClusterExecutor(time="10", mem="2GiB") as executor:  # doctest: +SKIP
    ...     print(sum(executor.map(simulate, range(200))))
    """

    def __init__(
        self,
        backend: str | None = None,
        *,
        mode: str = "array",
        nodes: int | None = None,
        ppn: int | None = None,
        threads: int | None = None,
        mem: int | str | None = None,
        time: Any = None,
        queue: str | None = None,
        account: str | None = None,
        gpus: int | None = None,
        max_workers: int | None = None,
        maximum_jobs: int = 4,
        folder: str | os.PathLike[str] | None = None,
        remote: str | ConnectionParameters | RemoteProtocol | None = None,
        ssh: str | None = None,
        python: str | None = None,
        env: Mapping[str, Any] | None = None,
        prologue: str | Iterable[str] = (),
        additional_setup_lines: str | Iterable[str] = (),
        additional_import_paths: Iterable[str | os.PathLike[str]] = (),
        keep_logs: bool = False,
        max_requeues: int = 5,
        debug: bool = False,
        **options: Any,
    ) -> None:
        own = {key: value for key, value in locals().items() if key not in _NOT_OPTIONS}
        self._options = CallOptions.of({**own, **options})
        self._shared = _Shared(folder)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._options.backend}, mode {self._options.mode!r}>"

    @property
    def _max_workers(self) -> int:
        """How many calls may run at a time, for libraries that look for it."""
        options = self._options
        if options.max_workers is None and options.mode == "pool":
            return options.maximum_jobs * options.checked.processes
        return options.max_workers or 1000

    def with_options(self, **changes: Any) -> ClusterExecutor:
        """Return this executor with other options for the calls that are submitted through it.

        Whatever the constructor takes can be changed but for ``folder``. Both are one executor:
        `shutdown` of one is that of the other.
        """
        other = copy.copy(self)
        other._options = self._options.changed(changes)
        return other

    # -- calls -----------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ClusterFuture:
        """Have a function called on the cluster; return the future of its result.

        Futures among the arguments, also in lists, tuples and dictionaries, are waited for and
        replaced by their results. All else is pickled before this method returns; what cannot
        be is the `PayloadError` of the future.

        Raises:
            RuntimeError: the executor was shut down, or the interpreter ends.
        """
        return self._submit(self._options, fn, args, kwargs)

    def submit_ranks(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ClusterFuture:
        """Do as `submit`, with the list of the results of all ``nodes*ppn`` processes.

        Raises:
            ValueError: the mode is ``"pool"``, in which each process makes calls of its own.
        """
        if self._options.mode == "pool":
            raise ValueError('processes make a call together in mode="array" only')
        return self._submit(self._options.for_every_rank(), fn, args, kwargs)

    def _submit(
        self, options: CallOptions, fn: Callable[..., Any], args: Any, kwargs: Any
    ) -> ClusterFuture:
        self._shared.check_open()
        future = ClusterFuture(self._shared.ledger, label_of(fn))

        def send(call: tuple[Sequence[Any], dict[str, Any]]) -> None:
            self._send(options, fn, call[0], call[1], future)

        try:
            waited = futures_in((args, kwargs))
            if waited:
                after(waited, (args, kwargs), send, future)
            else:
                send((args, kwargs))
        except BaseException:
            future.cancel()  # else the executor would wait for it at its end
            raise
        return future

    def _send(
        self, options: CallOptions, fn: Any, args: Any, kwargs: Any, future: ClusterFuture
    ) -> None:
        try:
            task = self._task(options, fn, dump_function(fn), [(args, kwargs, future)])
        except PayloadError as error:
            future.settle(error=error)
            return
        self._enqueue(options, [task])

    def _task(
        self,
        options: CallOptions,
        fn: Any,
        pickled: bytes,
        calls: Iterable[tuple[Sequence[Any], dict[str, Any], ClusterFuture]],
        cache: MapCache | None = None,
    ) -> Task:
        new_name = cache.name if cache else self._shared.new_name
        made = []
        for args, kwargs, future in calls:
            packed = dump_args(fn, args, kwargs)
            made.append(Call(new_name(fn, args), packed, label_of(fn), future))
        hook = callable(getattr(fn, "checkpoint", None))
        may_save = hook and options.requeues > 0 and options.ranks == 1
        folder = cache.folder if cache else self._shared.folder(options)
        task = Task(options, pickled, made, folder, may_save)
        for call in made:
            if call.future is not None:
                call.future._task = task
        return task

    def _enqueue(self, options: CallOptions, tasks: Sequence[Task], together: bool = False) -> None:
        try:
            self._shared.engine(options).enqueue(tasks, together)
        except BaseException as error:
            for task in tasks:
                task.fail(lambda call, error=error: error)  # type: ignore[misc]
            if not isinstance(error, ClusterjobError):  # those are of the calls
                raise

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
        cache_id: str | None = None,
        cache_folder: str | os.PathLike[str] = DEFAULT_CACHE,
        force: bool = False,
    ) -> Iterator[Any]:
        """Call a function for each item; return an iterator over the results, in their order.

        All calls are submitted at once, in one array or as few as the site allows, before this
        method returns.

        Args:
            timeout: seconds after which the iterator raises `TimeoutError`.
            chunksize: how many calls one task makes, one after the other.
            buffersize: how many calls are submitted ahead of the results that are taken; the
                input is read no further, so that it may be endless.
            progress: show how far the calls are, in a terminal or a notebook.
            cache_id: keep the results under this name in ``cache_folder``. If the program is
                killed and run again it gets those that are there, waits for the calls that
                still run, and makes only the others. What failed is made again.
            force: forget what is kept, and make all calls.

        Raises:
            PayloadError, JournalError: what is kept cannot be used.
        """
        cache = None
        if cache_id is not None:
            cache = MapCache(cache_folder, cache_id, partial(self._shared.made, self._options))
        submission = Submission(self, fn, chunksize, cache, force)
        return map_calls(submission, iterables, timeout, buffersize, progress)

    # -- the end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let go of everything when those that are open are over.

        Args:
            wait: whether to wait for that.
            cancel_futures: whether to cancel the calls that do not run yet.
        """
        self._shared.close(wait, cancel_futures)


_NOT_OPTIONS = frozenset({"self", "folder", "options", "__class__"})


class _Shared:
    """What an executor and those that `with_options` returned have in common."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._asked = os.fspath(folder or "")
        here = os.environ.get("CFUT_DIR") or DEFAULT_FOLDER
        self._here = os.path.abspath(os.path.expanduser(here))  # for what comes from others
        self._root = os.path.abspath(os.path.expanduser(self._asked or here))
        self._folders: dict[tuple[str | None, str], CallFolder] = {}
        self.ledger = Ledger()
        self._lock = threading.Lock()
        self._closed = False
        self._engines: dict[str, Engine] = {}
        self._numbers = itertools.count(1)
        weakref.finalize(self, _close_all, self._engines).atexit = False

    def new_name(self, fn: Any, args: Any) -> str:
        """Return the name of a call, unlike that of any other."""
        return f"c{next(self._numbers)}"

    def check_open(self) -> None:
        """Refuse calls at the end."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if not threading.main_thread().is_alive():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def folder(self, options: CallOptions) -> CallFolder:
        """Return the folder of calls with these options."""
        place = options.remote, options.ssh
        with self._lock:
            if place not in self._folders:
                root = self._here if options.remote else self._root
                path = os.path.join(root, f"s{secrets.token_hex(6)}")
                self._folders[place] = self.made(options, path)
            return self._folders[place]

    def made(self, options: CallOptions, path: str, durable: bool = False) -> CallFolder:
        """Return a folder for calls with these options, of which a path here is known."""
        if not options.remote:
            return CallFolder(path, durable)
        parent = self._asked or DEFAULT_THERE
        return FarFolder(path, options.remote, options.ssh, parent, durable)

    def engine(self, options: CallOptions) -> Engine:
        """Return what runs calls with these options."""
        name = options.signature if options.mode == "pool" else f"array {options.remote}"
        folder = self.folder(options)
        with self._lock:
            if name not in self._engines:
                self._engines[name] = _new_engine(options, folder)
            return self._engines[name]

    def close(self, wait: bool, cancel: bool) -> None:
        """End as `ClusterExecutor.shutdown` says."""
        with self._lock:
            self._closed = True
            engines = list(self._engines.values())
        if cancel:
            for engine in engines:
                engine.cancel_waiting()
        self.ledger.when_empty(lambda: _close_all(self._engines))
        if wait and self.ledger.wait():
            for engine in engines:
                engine.join()


def _new_engine(options: CallOptions, folder: CallFolder) -> Engine:
    if options.mode == "array":
        return ArrayEngine()
    from cjdask.executor_pool import PoolEngine  # brings dask, which array mode needs not

    return PoolEngine(options, folder)


def _close_all(engines: Mapping[str, Engine]) -> None:
    for engine in engines.values():
        engine.close()


def map(
    executor: Executor, func: Callable[..., Any], args: Iterable[Any], ordered: bool = True
) -> Iterator[Any]:
    """Call a function for each of ``args`` on an executor, which is shut down at the end.

    The results come in the order of the arguments, or as they are there unless ``ordered``.
    """
    from concurrent.futures import as_completed

    with executor:
        futures: list[Future[Any]] = [executor.submit(func, arg) for arg in args]
        for future in futures if ordered else as_completed(futures):
            yield future.result()
