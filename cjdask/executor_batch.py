"""A batch of calls: one submission, whose tasks are calls."""

from __future__ import annotations

import logging
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cjdask.errors import JobDied
from cjdask.executor_calls import BY_VALUE, Task, job_name, setup_of
from cjdask.executor_folder import CallFolder, PackedTask
from cjdask.executor_script import CallScript, batch_script
from cjdask.journal import journal_file
from cjdask.resources import Resources
from cjdask.run import AsyncResult
from cjdask.status import JobInfo, Reason, Status

__all__ = ["Batch", "submit_batch"]

logger = logging.getLogger(__name__)

TAIL = 20
"""How many lines of a log an error shows."""


@dataclass(eq=False)
class Batch:
    """One submission. Its tasks have indices from 1."""

    name: str
    folder: CallFolder
    run: AsyncResult
    single: bool
    """Whether it is a job for itself, no array."""
    adopted: bool = False
    """Whether another program submitted it."""
    tasks: dict[int, Task] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    """The tasks that somebody waits for."""
    ended: dict[int, float] = field(default_factory=dict)
    """When it was first seen that a task had ended, by the clock of `time.monotonic`."""
    exits: dict[int, tuple[int, float]] = field(default_factory=dict)
    """With which exit code a task has left without an outcome, and when that was seen."""
    saved: set[int] = field(default_factory=set)
    """The tasks that have saved themselves, and are to go on in another job."""
    died: set[int] = field(default_factory=set)
    held: bool = False
    """Whether it was told that a job is held, which waits until somebody releases it."""
    drop: Callable[[], None] = lambda: None
    """Ends the wait for the end of the run."""
    _logs: dict[int, str] = field(default_factory=dict)

    def take(self, index: int, task: Task) -> None:
        """Have a task wait for one of the submission's."""
        self.tasks[index] = task
        self.open.add(index)
        task.info = partial(self.info, index)

    def info(self, index: int) -> JobInfo:
        """Return what is known of a task, without asking."""
        return self.run.known(None if self.single else index)

    def tell_held(self, info: JobInfo) -> None:
        """Tell once that a job waits for somebody, not for a machine."""
        if not self.held:
            self.held = True
            why = f": {info.message}" if info.message else ""
            logger.warning(
                "calls wait: job %s on %s is held%s", job_name(info), self.run.backend, why
            )

    def death(self, index: int, info: JobInfo, label: str) -> JobDied:
        """Return the error of a call whose task has ended without an outcome."""
        self.died.add(index)
        if info.exit_code is None and index in self.exits:
            info = replace(info, exit_code=self.exits[index][0])
        if info.exit_code is not None and info.signal is None and info.exit_code > 128:
            info = replace(info, signal=_signal(info.exit_code - 128))
        log = self.log(index)
        paths = self.log_paths(index)
        where = f"; its log is {paths[0]}" if paths else ""
        at = f" at {self.run.protocol.host}" if self.run.remote else ""
        message = (
            f"{label} has no result: job {job_name(info)} on {self.run.backend}{at} is "
            f"{info.describe()}{where}"
        )
        return JobDied(message, info, log, paths[0] if paths else None)

    def read_logs(self, indices: Iterable[int]) -> None:
        """Read the logs of tasks, all at a time, for `death` to tell."""
        paths = {index: self.log_paths(index) for index in indices}
        several = [path for each in paths.values() for path in each]
        texts = dict(zip(several, self.folder.tails(several, TAIL), strict=True))
        for index, each in paths.items():
            self._logs[index] = next((texts[path] for path in each if texts[path].strip()), "")

    def log(self, index: int) -> str:
        """Return the end of what a task wrote: standard error, or output where that is empty."""
        if index not in self._logs:
            self.read_logs([index])
        return self._logs[index]

    def log_paths(self, index: int) -> list[str]:
        """Return the paths of a task's logs, that of standard error first."""
        task = None if self.single else index
        found: list[str] = []
        for stream in ("stderr", "stdout"):
            try:
                path = self.run.log_path(stream, task)
            except ValueError:  # a site's backend that does not tell
                continue
            if path not in found:
                found.append(path)
        return found

    @property
    def silent(self) -> bool:
        """Whether the scheduler does not answer at the moment."""
        return self.run._monitor.last_error is not None

    def clean(self, ended: bool = True) -> None:
        """Remove what the batch has on disk, but for logs that somebody may want to see.

        Where its job has not ended it may still write logs.
        """
        self.drop()
        kept = [
            index
            for index, task in self.tasks.items()
            if not ended or task.options.keep_logs or index in self.died
        ]
        self.folder.clean(self.name, [path for i in kept for path in self.log_paths(i)], ended)


def exited(batch: Batch, index: int) -> JobInfo:
    """Return what is known of a task by its own word alone, where the scheduler has none."""
    code, _ = batch.exits[index]
    message = "the scheduler has not said how it ended"
    return replace(
        batch.info(index),
        status=Status.FAILED,
        reason=Reason.NONZERO_EXIT,
        exit_code=code,
        message=message,
    )


def _signal(number: int) -> int | None:
    return number if number in signal.valid_signals() else None


def submit_batch(tasks: Sequence[Task]) -> Batch:
    """Submit tasks that have the same options and folder, as one array.

    Raises:
        PayloadError: the calls cannot be written.
        SubmitError, SchedulerUnavailableError, ProtocolError: see `JobScript.submit`.
    """
    first = tasks[0]
    folder = first.folder
    name = f"b{secrets.token_hex(6)}"
    by_value = any(
        BY_VALUE in blob for task in tasks for blob in (task.fn, *(c.args for c in task.calls))
    )
    packed = [(task.fn, [(c.name, c.args) for c in task.calls if c.wanted]) for task in tasks]
    folder.put(name, setup_of(first.options, first, by_value), packed)
    script = batch_script(first.options, folder, name, len(tasks), first.hook)
    try:
        run = _submit_durable(script, folder, name, packed) if folder.durable else script.submit()
    except BaseException:
        if not folder.durable:
            folder.clean(name)
        raise
    count = sum(len(calls) for _, calls in packed)
    said = f"{count} {'calls are' if count > 1 else 'call is'} job {run.job_id} on {run.backend}"
    logger.info(said)
    if first.options.debug:
        print(said, file=sys.stderr)
    batch = Batch(name, folder, run, single=len(tasks) == 1)
    for index, task in enumerate(tasks, 1):
        batch.take(index, task)
        if not first.hook:  # one that saves itself may be submitted again
            task.fn = b""
            for call in task.calls:
                call.args = b""
    return batch


def _submit_durable(
    script: CallScript, folder: CallFolder, name: str, packed: Sequence[PackedTask]
) -> AsyncResult:
    """Submit with a journal, by which another program finds the job."""
    script_of = {
        "body": script.body,
        "backend": script.backend,
        "resources": Resources.of(script.resources).plain(),
        "directives": list(script._directives),
    }
    place = folder.place
    calls = [[each for each, _ in task_calls] for _, task_calls in packed]
    folder.put_manifest(name, {"script": script_of, "calls": calls, "place": place})
    return script.submit(cache_id=name, cache_folder=folder.batch(name), retry=False)


def recorded_run(folder: CallFolder, name: str) -> AsyncResult | None:
    """Return the run of a batch in a durable folder, ``None`` if it was never submitted.

    Where a program was killed while it submitted, the scheduler is asked what came of that.

    Raises:
        JournalError, SchedulerError, ProtocolError: it cannot be found out.
    """
    file = journal_file(folder.batch(name), CallScript.cache_prefix, name)
    entry, manifest = file.read(), folder.manifest(name)
    if entry is None or manifest is None:
        return None
    if entry.job_id is not None:
        return AsyncResult.load(file.path)
    made = manifest["script"]
    resources = dict(made["resources"])
    remote, ssh = (None, "ssh") if folder.place is None else folder.place[:2]
    script = CallScript(
        made["body"],
        resources.pop("jobname"),
        backend=made["backend"],
        remote=remote,
        ssh=ssh,
        rootdir=folder.batch_there(name),
    )
    script.resources.update(resources)
    script._directives = made["directives"]
    return script.submit(cache_id=name, cache_folder=folder.batch(name), retry=False)
