"""The runs that a command speaks of: those of a cache folder, by their names."""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any

import click
from click.shell_completion import CompletionItem

from cjdask.backends import BatchBackend, detect_backend, get_backend
from cjdask.cli_group import Exit, Failure
from cjdask.errors import ClusterjobError, JournalError, ScriptError
from cjdask.jobscript import DEFAULT_CACHE_FOLDER, JobScript
from cjdask.jobscript_machine import users_settings
from cjdask.journal import Entry, JournalFile, files_in
from cjdask.run import AsyncResult
from cjdask.scheduler import scheduler_for
from cjdask.status import JobInfo, Status, combine

__all__ = [
    "Ends",
    "Recorded",
    "Selected",
    "exit_code",
    "folder_of",
    "folder_option",
    "json_option",
    "recorded",
    "runs_argument",
    "select",
]

_MADE_UP = re.compile(r"-[0-9a-f]{24}")
"""The end of a cache id that nobody gave."""


def folder_of(option: str | os.PathLike[str] | None) -> str:
    """Return the cache folder: as it was given, that of the settings, or the one of this folder.

    Raises:
        SettingsError: the user's settings are wrong.
    """
    settings = users_settings().attributes.get("cache_folder")
    return os.fspath(option or settings or JobScript.cache_folder or DEFAULT_CACHE_FOLDER)


def _label(cache_id: str | None, jobname: str | None) -> str:
    """Return the cache id if somebody gave it, else the name of the job."""
    return jobname or "" if cache_id is None or _MADE_UP.search(cache_id[-25:]) else cache_id


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run, or an intent to submit one, as a cache folder has it."""

    file: JournalFile
    entry: Entry

    @property
    def status(self) -> Status | None:
        """The status that it ended with, ``None`` if its end is not recorded."""
        infos = self.entry.infos() if self.entry.ended else []
        return combine([info.status for info in infos]) if infos else None

    @cached_property
    def run(self) -> AsyncResult:
        """The run, which must have been submitted."""
        return AsyncResult.load(self.file.path)

    def matches(self, pattern: str) -> bool:
        """Tell whether a name of the run fits a pattern of the shell."""
        names = (self.entry.cache_id, self.entry.name, self.entry.job_id)
        return any(fnmatchcase(name, pattern) for name in names if name is not None)

    def task(self, name: str) -> int | None:
        """Return the index of the task that is called so, ``None`` if none is."""
        job_id, cache_id = self.entry.job_id or "", self.entry.cache_id
        number = re.match("[0-9]*", job_id)
        if not job_id or not number or not name.startswith((number[0], f"{cache_id}_")):
            return None
        backend = get_backend(self.entry.backend)
        for index in self.entry.tasks or ():
            names = [f"{job_id}_{index}", f"{cache_id}_{index}"]
            if isinstance(backend, BatchBackend):
                names.append(backend.task_id(job_id, index))
            if name in names:
                return index
        return None


def recorded(folder: str) -> tuple[list[Recorded], list[JournalError]]:
    """Return what a cache folder has, the oldest first, and why files of it cannot be read."""
    found, wrong = [], []
    prefix = users_settings().attributes.get("cache_prefix", JobScript.cache_prefix)
    for file in files_in(folder, prefix):
        try:
            entry = file.read()
        except JournalError as error:
            wrong.append(error)
        else:
            if entry is not None:
                found.append(Recorded(file, entry))
    return sorted(found, key=lambda each: each.entry.written or 0.0), wrong


@dataclass(frozen=True, eq=False)
class Selected:
    """A run, or a task of an array, that a command speaks of."""

    run: AsyncResult
    task: int | None = None

    @property
    def label(self) -> str:
        """The id of the job or task."""
        return self.run.job_id if self.task is None else f"{self.run.job_id}_{self.task}"

    @property
    def name(self) -> str:
        """The cache id if somebody gave it, else the name of the job."""
        return _label(self.run.cache_id, self.run.jobname)

    @property
    def info(self) -> JobInfo:
        """What is known of it, without asking."""
        return self.run.known(self.task)

    @property
    def counts(self) -> dict[Status, int] | None:
        """How many tasks of an array have which status, for a whole array."""
        statuses = [info.status for info in self.run.known_tasks().values()]
        if self.task is not None or not statuses:
            return None
        return {status: statuses.count(status) for status in Status if status in statuses}


def select(names: Sequence[str], folder: str, backend: str | None = None) -> list[Selected]:
    """Return the runs of these names, in their order; without names, all of a cache folder.

    What looks like the id of a job and is not recorded is asked of the scheduler: ``backend``,
    or the one that is installed.

    Raises:
        Failure: there is no such run, or there are several of one name.
        JournalError: a file that was named cannot be read.
    """
    known, wrong = recorded(folder)
    for error in wrong:
        click.echo(f"Warning: {error}", err=True)
    submitted = [each for each in known if each.entry.job_id is not None]
    if not names:
        return [Selected(each.run) for each in submitted]
    found = {name: _find(name, submitted) for name in names}
    elsewhere = [name for name, selected in found.items() if not selected]
    found |= _unrecorded(elsewhere, folder, backend)
    once = {(each.run, each.task): each for name in names for each in found[name]}
    return list(once.values())


def _find(name: str, known: Sequence[Recorded]) -> list[Selected]:
    if "/" in name or name.endswith(".json"):
        return [Selected(AsyncResult.load(name))]
    if "*" in name or "?" in name:
        matching = [each for each in known if each.matches(name)]
    else:
        matching = [each for each in known if each.entry.cache_id == name]
        matching = matching or _of_job(name, known)
        matching = matching or [each for each in known if each.entry.name == name]
    if matching:
        return [Selected(each.run) for each in matching]
    for each in reversed(known):
        if (task := each.task(name)) is not None:
            return [Selected(each.run, task)]
    return []


def _of_job(name: str, known: Sequence[Recorded]) -> list[Recorded]:
    """Return the newest run with that job id, since schedulers use their ids again."""
    matching = {each.entry.backend: each for each in known if each.entry.job_id == name}
    if len(matching) > 1:
        several = ", ".join(f"{each.entry.cache_id!r} ({b})" for b, each in matching.items())
        raise Failure(f"job {name} is that of several runs; name one of {several}", Exit.USAGE)
    return list(matching.values())


def _unrecorded(
    names: Sequence[str], folder: str, backend: str | None
) -> dict[str, list[Selected]]:
    """Return runs for jobs that are known to the scheduler only, asked for with one command."""
    if not names:
        return {}
    used = backend or detect_backend()
    scheduler = scheduler_for(used)
    ids = [name for name in names if name[0].isdigit()]
    rows = scheduler.query(ids) if ids else []
    if missing := [name for name in ids if not _rows_of(name, rows)]:
        rows += scheduler.ended(missing)
    found = {}
    for name in names:
        listed = _rows_of(name, rows)
        if not listed:
            hint = f", and {used} knows no job of that id" if name in ids else ""
            raise Failure(
                f"there is no run {name!r} in {folder}{hint}; 'cjdask list' shows the runs there, "
                "--cache-folder names another folder",
                Exit.USAGE,
            )
        tasks = sorted({row.task for row in listed if row.task is not None})
        array = {"array": ",".join(map(str, tasks))} if tasks else {}
        found[name] = [Selected(AsyncResult.attach(listed[0].job_id, used, **array))]
    return found


def _rows_of(name: str, rows: Sequence[JobInfo]) -> list[JobInfo]:
    """Pick the records of a job; PBS servers may be left out of its id."""
    return [row for row in rows if row.job_id == name or row.job_id.startswith(f"{name}.")]


class Ends:
    """Tells of runs and tasks as they end, with the epilogues of the runs run.

    ``failures`` are those of epilogues.
    """

    def __init__(self, selected: Sequence[Selected]) -> None:
        self.failures: list[ScriptError] = []
        self._ended: queue.Queue[Selected] = queue.Queue()
        self._drops = [
            each.run.when_ended(partial(self._ended.put, each), each.task) for each in selected
        ]

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *exc: object) -> None:
        for drop in self._drops:
            drop()

    def next(self, timeout: float | None = None) -> Selected | None:
        """Return the next one that has ended, ``None`` if there is none in time."""
        try:
            each = self._ended.get(timeout=timeout)
        except queue.Empty:
            return None
        try:
            if each.run.known().status.ended:
                _ = each.run.status  # runs the epilogue
        except ScriptError as error:
            self.failures.append(error)
        return each


def exit_code(selected: Sequence[Selected]) -> Exit:
    """Return the exit code for runs that have ended."""
    worst = max((each.info.status for each in selected), default=Status.COMPLETED)
    return {Status.FAILED: Exit.FAILED, Status.CANCELLED: Exit.CANCELLED}.get(worst, Exit.WELL)


# -- options that several commands have --------------------------------------------------------


def _complete_run(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    try:
        known = recorded(folder_of(ctx.params.get("cache_folder")))[0]
    except (ClusterjobError, OSError):
        return []
    return [
        CompletionItem(name, help=f"{each.entry.name} on {each.entry.backend}")
        for each in reversed(known)
        for name in (each.entry.job_id, each.entry.cache_id)
        if name is not None and name.startswith(incomplete) and not _MADE_UP.search(name[-25:])
    ]


def runs_argument(required: bool) -> Callable[[Any], Any]:
    """Return the decorator for the argument ``RUN...``; the shell completes it."""
    metavar = "RUN..." if required else "[RUN]..."
    return click.argument(
        "runs", shell_complete=_complete_run, nargs=-1, required=required, metavar=metavar
    )


folder_option = click.option(
    *("--cache-folder", "cache_folder"),
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Where runs are recorded; .cjdask/runs of this folder unless given.",
)

json_option = click.option(
    *("--json", "as_json"), is_flag=True, help="Print one JSON object a line."
)
