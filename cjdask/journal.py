"""The journal: what is on disk about runs, so that none is lost or submitted twice.

A run has one file of JSON, for its user alone, that is replaced in one step. What changes it
holds the lock of a second file beside it, and so does the command that submits: a lock that is
free means that nothing is under way, also if a process was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cjdask.errors import JournalError
from cjdask.resources import Resources
from cjdask.status import JobInfo, Reason, Status

__all__ = [
    "FORMAT",
    "Entry",
    "JournalFile",
    "clear_folder",
    "entries",
    "files_in",
    "journal_file",
    "recorded_run",
    "task_key",
]

logger = logging.getLogger(__name__)

FORMAT = 1
"""The version of the files' format; one that a release cannot read has another number."""
_KIND = "cjdask run"
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Entry:
    """What is known about one run. Without a ``job_id`` it is an intent to submit."""

    tag: str
    """What the job can be told by, unlike that of any other run."""
    backend: str
    resources: dict[str, Any]
    folder: str
    """The folder of the job, on its machine."""
    record: str
    """The path there of the files of the run, without their endings; empty if it has none."""
    local_folder: str
    """The folder of this machine that the epilogue runs in."""
    written: float
    """When the intent was written, in seconds since the epoch; 0 for a job from elsewhere."""
    cache_id: str | None = None
    content: str = ""
    """A digest of all that was submitted."""
    epilogue: str = ""
    max_sleep_interval: float = 60.0
    remote: str | None = None
    """The machine of the job, see `cjdask.protocols.address`; ``None`` for this one."""
    ssh: str = "ssh"
    output_files: list[str] = field(default_factory=list)
    """What is to be fetched into the local folder when the job has ended."""
    fetched: bool = False
    job_id: str | None = None
    unsure_since: float | None = None
    """When a submission went wrong in a way that leaves open whether there is a job."""
    unlisted: dict[str, float] = field(default_factory=dict)
    """Since when the scheduler has not listed the job, in seconds since the epoch, under ``""``;
    of an array for each such task under its index."""
    cancelled: dict[str, float] = field(default_factory=dict)
    """When the job or a task was cancelled, likewise."""
    home: str | None = None
    """The path of the journal's own file, in a dump of it."""
    replaced: list[str] = field(default_factory=list)
    """The ``record`` of runs that this one took the place of."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """The final records of tasks that ended well before the others were submitted again."""
    ended: list[dict[str, Any]] = field(default_factory=list)
    """The final records of the job or all its tasks, empty as long as the end is not known."""

    @property
    def name(self) -> str | None:
        """The name of the job as the user gave it; where there is no other field it has the tag."""
        name = self.resources.get("jobname")
        return None if name is None else str(name).removesuffix(f".{self.tag}")

    @property
    def records(self) -> tuple[str, ...]:
        """The paths of all files that go when the end is known."""
        return self.record, *self.replaced

    @property
    def tasks(self) -> tuple[int, ...] | None:
        """The indices of all tasks of an array, also of those that ran before; else ``None``."""
        array = Resources.of(self.resources).array
        if array is None:
            return None
        before = {info.task for info in self.infos() if info.task is not None}
        return tuple(sorted(before.union(array.indices)))

    @property
    def place(self) -> tuple[str, ...]:
        """The machine, as `cjdask.scheduler.scheduler_for` takes it."""
        return () if self.remote is None else (self.remote, self.ssh)

    def infos(self) -> list[JobInfo]:
        """Return the final records of the job or its tasks, as far as they are known."""
        return [
            JobInfo(
                **{
                    **row,
                    "status": Status[row["status"]],
                    "reason": Reason(row["reason"]),
                    "nodes": tuple(row["nodes"]),
                }
            )
            for row in self.ended or self.earlier
        ]

    def good(self) -> list[JobInfo]:
        """Return the final records of tasks of an array that ended well."""
        infos = self.infos()
        return [i for i in infos if i.task is not None and i.status is Status.COMPLETED]

    def unlisted_ages(self) -> dict[int | None, float]:
        """Tell for how many seconds tasks have not been listed, of those that were not."""
        now = time.time()
        return {_task(key): max(0.0, now - since) for key, since in self.unlisted.items()}

    def with_end(self, infos: Iterable[JobInfo]) -> Entry:
        """Return the entry with the final records."""
        return replace(self, ended=_rows(infos))

    def after(self, infos: Iterable[JobInfo]) -> Entry:
        """Return the entry of a run of which some tasks ended well before it was submitted."""
        return replace(self, earlier=_rows(infos))


def task_key(task: int | None) -> str:
    """Return what the times of a task have as their key, of a job that is no array ``""``."""
    return "" if task is None else str(task)


def _task(key: str) -> int | None:
    return int(key) if key else None


def _rows(infos: Iterable[JobInfo]) -> list[dict[str, Any]]:
    return [
        {**asdict(info), "status": info.status.name, "reason": str(info.reason)} for info in infos
    ]


class JournalFile:
    """The file of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.path.expanduser(os.fspath(path)))

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[int]:
        """Hold a lock of this run between processes; yields the open file that has it.

        Raises:
            JournalError: the folder cannot be used.
        """
        while True:
            descriptor = self._open_lock(name)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    logger.info("waiting for another process to let go of %s", self.path)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self._is_current(descriptor, name):
                    # It is let go by closing only: a command that was given it may go on.
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            return os.open(f"{self.path}.{name}", flags, 0o600)
        except OSError as error:
            raise self._unusable("cannot be written", error) from error

    def _is_current(self, descriptor: int, name: str) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(f"{self.path}.{name}"))
        return False

    def read(self) -> Entry | None:
        """Return what the file says, ``None`` if there is no file.

        Raises:
            JournalError: it is damaged, of another version, or somebody else's.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("cannot be read", error) from error
        with open(descriptor, "rb") as file:
            owner = os.fstat(descriptor).st_uid
            if owner != os.geteuid():
                raise JournalError(
                    f"the journal file {self.path} belongs to another user (uid {owner}) and is "
                    "not believed; use a cache_folder of your own"
                )
            text = file.read()
        try:
            return self._parse(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise JournalError(
                f"the journal file {self.path} is damaged or cut short ({error}); look whether "
                "its job is there, then remove the file or submit with force=True"
            ) from error

    def _parse(self, data: dict[str, Any]) -> Entry:
        if data.pop("kind") != _KIND:
            raise ValueError("it is no file of a run")
        version = data.pop("format")
        if version != FORMAT:
            raise JournalError(
                f"the journal file {self.path} has format {version!r}, this version of cjdask "
                f"reads format {FORMAT}; use the version that wrote it, or another cache_folder"
            )
        entry = Entry(**data)
        texts = (entry.tag, entry.backend, entry.folder, entry.record, entry.local_folder)
        if not all(isinstance(text, str) for text in texts) or not isinstance(
            entry.job_id, str | None
        ):
            raise TypeError("a value is no text")
        entry.infos()
        entry.unlisted_ages()
        return entry

    def write(self, entry: Entry) -> None:
        """Replace the file in one step; when this returns it is on the disk.

        Raises:
            JournalError: it could not be written, and is as it was.
        """
        data = {"kind": _KIND, "format": FORMAT}
        data |= {f.name: getattr(entry, f.name) for f in fields(entry)}
        self._replace(self.path, json.dumps(data, indent=1) + "\n")

    def _replace(self, path: str, text: str) -> None:
        folder, name = os.path.split(path)
        temporary = None
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            temporary = None
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unusable("cannot be written", error) from error
        finally:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)

    def update(self, tag: str, **values: Any) -> Entry | None:
        """Change the entry of that tag; ``None`` where the file has it no more, or is gone.

        Raises:
            JournalError: it could not be changed.
        """
        try:
            if not os.path.lexists(self.path):
                return None
            with self.lock():
                entry = self.read()
                if entry is None or entry.tag != tag:
                    return None
                entry = replace(entry, **values)
                self.write(entry)
                return entry
        except JournalError:
            if os.path.lexists(self.path):
                raise
            return None  # its folder was removed meanwhile

    def discard(self) -> None:
        """Remove the run from the journal. The caller holds the lock.

        Raises:
            JournalError: it cannot be removed, or is somebody else's.
        """
        try:
            own = Path(self.path)
            if os.path.lexists(own) and own.lstat().st_uid != os.geteuid():
                raise JournalError(f"{own} belongs to another user and is not removed")
            own.unlink(missing_ok=True)
            self.discard_epilogues()
        except OSError as error:
            raise self._unusable("cannot be removed", error) from error

    def discard_epilogues(self, but: str = "\0") -> None:
        """Remove what is noted of epilogues, ``but`` of the run with that tag."""
        own = Path(self.path)
        for path in own.parent.glob(f"{_escaped(own.name)}.epilogue.*"):
            if but not in path.name:
                path.unlink(missing_ok=True)

    def _unusable(self, what: str, error: OSError) -> JournalError:
        return JournalError(
            f"the journal file {self.path} {what}: {error.strerror or error}; make room or give "
            "yourself the right to, or use another cache_folder"
        )


def journal_file(folder: str | os.PathLike[str], prefix: str, cache_id: str) -> JournalFile:
    """Return the file of a run in a cache folder.

    Raises:
        ValueError: the prefix or the id cannot be the name of a file.
    """
    if not cache_id or not prefix or "/" in prefix:
        raise ValueError(f"cache_prefix={prefix!r}, cache_id={cache_id!r}: give text, no '/'")
    name = quote(cache_id, safe="")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:100]}~{hashlib.sha256(cache_id.encode()).hexdigest()[:32]}"
    return JournalFile(Path(folder).expanduser() / f"{prefix}.{name}.json")


def recorded_run(path: str | os.PathLike[str]) -> tuple[JournalFile, Entry]:
    """Return the run that is in a file, or in the journal that the file was dumped from.

    Raises:
        FileNotFoundError: there is no such file.
        JournalError: it cannot be read, or has no run that was submitted.
    """
    file = JournalFile(path)
    entry = file.read()
    if entry is None:
        raise FileNotFoundError(f"there is no run in {file.path}: no such file")
    if entry.home is not None:
        home = JournalFile(entry.home)
        own = home.read()
        if own is not None and own.tag == entry.tag:
            file, entry = home, own
        elif own is not None:  # forgotten for another run, and so is its epilogue
            entry = replace(entry, epilogue="")
    if entry.job_id is None:
        raise JournalError(
            f"{file.path} has an intent to submit, no run; submit the job script again "
            f"with cache_id={entry.cache_id!r}, which finds the job if there is one"
        )
    return file, entry


def files_in(folder: str | os.PathLike[str], prefix: str) -> list[JournalFile]:
    """Return the files of a cache folder with that prefix, none if there is no such folder.

    Raises:
        JournalError: the folder cannot be read.
    """
    place = Path(folder).expanduser()
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JournalError(
            f"the cache folder {place} cannot be read: {error.strerror}; give yourself the right "
            "to, or use another cache_folder"
        ) from error
    return [
        JournalFile(place / name)
        for name in names
        if name.startswith(f"{prefix}.") and name.endswith(".json")
    ]


def entries(folder: str | os.PathLike[str], prefix: str) -> Iterator[Entry]:
    """Yield the runs of a cache folder with that prefix, without those that cannot be read.

    Raises:
        JournalError: the folder cannot be read.
    """
    for file in files_in(folder, prefix):
        with suppress(JournalError):
            entry = file.read()
            if entry is not None:
                yield entry


def clear_folder(folder: str | os.PathLike[str], prefix: str) -> list[Entry]:
    """Remove the runs of a cache folder with that prefix, no other file; return what was read.

    Raises:
        JournalError: the folder cannot be read, or a file cannot be removed.
    """
    found = []
    for file in files_in(folder, prefix):
        with file.lock():
            with suppress(JournalError):
                found.append(file.read())
            file.discard()
            for name in ("lock", "once", "fetch"):
                Path(f"{file.path}.{name}").unlink(missing_ok=True)
    return [entry for entry in found if entry is not None]


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
