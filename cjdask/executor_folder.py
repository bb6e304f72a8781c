"""The place where the calls of an executor are put for its jobs, and their outcomes fetched.

It is the one seam between the two sides: here a folder that this machine and the nodes see
(`cjdask.executor_far` has one for jobs of another machine)::

    FOLDER/                 mode 0700, as are the others
        BATCH/              one submission
            calls           how the calls were made, where each task finds its own, the calls
            manifest.json   what another program needs to know to wait for it
            ...             the job script, its logs, the records of its journal
        results/
            NAME.ok         the outcome of a call that returned
            NAME.BATCH.error    of one that raised, or could not be made
            NAME.RANK.ok ...    the same of the other processes of a call that has several
            NAME.BATCH.resume   a call that saved itself, and is to go on in another job
            BATCH.INDEX.exit    the exit code of a task that left without an outcome

All files are written in one step. What is in ``calls`` and in an outcome is told in
`cjdask.executor_runner`.
"""

from __future__ import annotations

import json
import os
import site
import stat
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import dumps
from typing import IO, Any

from cjdask.errors import PayloadError
from cjdask.protocols.local import LocalProtocol
from cjdask.run_logs import read_log

__all__ = ["CallFolder", "PackedTask", "Place"]

Place = tuple[str, str, str]
"""Where jobs see a folder: a machine, the program that reaches it, and the path there."""

PackedTask = tuple[bytes, Sequence[tuple[str, bytes]]]
"""What a task runs: a pickled function, and for each call its name and pickled arguments."""

FRESH = 0.5
"""Seconds between two looks at the results that no cache of a network file system answers."""


class CallFolder:
    """A folder with the calls of some batches and what came of them."""

    place: Place | None = None
    """Where jobs see it, ``None`` for jobs of this machine."""

    def __init__(self, path: str | os.PathLike[str], durable: bool = False) -> None:
        self.path = os.path.abspath(path)
        self.results = os.path.join(self.path, "results")
        self.durable = durable
        """Whether outcomes stay when they have been fetched, and survive a crash."""
        self._looked = 0.0

    def __repr__(self) -> str:
        return f"<CallFolder {self.path}>"

    # -- as the jobs see it ----------------------------------------------------------------------

    @property
    def there(self) -> str:
        """Its path for the jobs."""
        return self.path

    @property
    def results_there(self) -> str:
        """The path of the results for the jobs."""
        return os.path.join(self.there, "results")

    def batch_there(self, batch: str) -> str:
        """Return the path of the folder of a batch for the jobs."""
        return os.path.join(self.there, batch)

    @property
    def runner(self) -> str:
        """The folder that the jobs find `cjdask.executor_runner` in."""
        return os.path.dirname(os.path.abspath(__file__))

    @property
    def cwd(self) -> str:
        """The folder that calls are made in."""
        return os.getcwd()

    def import_paths(self, given: Sequence[str]) -> list[str]:
        """Return where jobs look for modules first: as given, then as this process does."""
        return [*given, *_own_paths()]

    # -- putting and fetching --------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folder where it is not there.

        Raises:
            PayloadError: it cannot be made, or others may write into it, who could so run
                code as this user.
        """
        try:
            for path in (self.path, self.results):
                os.makedirs(path, mode=0o700, exist_ok=True)
                found = os.lstat(path)
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                    raise PayloadError(
                        f"{path} is not a folder of yours, so what is in it cannot be trusted; "
                        "give the executor another folder=..."
                    )
                os.chmod(path, 0o700)
        except OSError as error:
            raise PayloadError(
                f"the folder {self.path} for calls cannot be used ({error.strerror}); give the "
                "executor another folder=..., one that the nodes see too"
            ) from error

    def batch(self, batch: str) -> str:
        """Return the path of the folder of a batch."""
        return os.path.join(self.path, batch)

    def put(self, batch: str, setup: dict[str, Any], tasks: Sequence[PackedTask]) -> None:
        """Write the calls of a batch, for its tasks from the first to the last.

        Raises:
            PayloadError: they cannot be written.
        """
        self.prepare()
        own = {**setup, "batch": batch, "results": self.results_there, "durable": self.durable}
        head = dumps(own, 4)
        blobs: list[bytes] = []
        end = len(head) + 8 * len(tasks)
        known: dict[bytes, int] = {}

        def add(blob: bytes) -> int:
            nonlocal end
            blobs.append(blob)
            end += len(blob)
            return end - len(blob)

        index = []
        for fn, calls in tasks:
            if fn not in known:
                known[fn] = add(fn)
            places = [(name, add(args)) for name, args in calls]
            index.append(add(dumps((known[fn], places), 4)))
        table = b"".join(place.to_bytes(8, "little") for place in index)
        target = os.path.join(self.batch(batch), "calls")
        try:
            os.makedirs(self.batch(batch), mode=0o700, exist_ok=True)
            with open(os.open(target + ".new", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.writelines([head, table, *blobs])
            os.rename(target + ".new", target)
        except OSError as error:
            raise PayloadError(f"the calls cannot be written to {target}: {error}") from error

    def put_manifest(self, batch: str, manifest: dict[str, Any]) -> None:
        """Write down what a batch is, for another program.

        Raises:
            PayloadError: it cannot be written.
        """
        target = os.path.join(self.batch(batch), "manifest.json")
        try:
            with open(target + ".new", "w", encoding="utf-8") as file:
                json.dump(manifest, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(target + ".new", target)
        except OSError as error:
            raise PayloadError(f"{target} cannot be written: {error}") from error

    def manifest(self, batch: str) -> dict[str, Any] | None:
        """Return what was written down about a batch, ``None`` if nothing was."""
        with suppress(OSError), open(os.path.join(self.batch(batch), "manifest.json")) as file:
            found: dict[str, Any] = json.load(file)
            return found
        return None

    def arrived(self, fresh: bool = False) -> list[str]:
        """Return the names of the files among the results, without those being written.

        With ``fresh`` no cache of a network file system may answer, as none does every now
        and then: a folder that this machine has just changed is asked for anew.
        """
        if fresh or time.monotonic() - self._looked > FRESH:
            probe = os.path.join(self.results, f".look.{os.getpid()}")
            with suppress(OSError):
                os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
                os.unlink(probe)
            self._looked = time.monotonic()
        return self._listed()

    def _listed(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self.results) if not name.startswith(".")]
        return []

    def current(self) -> list[str]:
        """Return what had arrived when this was called, all of it.

        Raises:
            ProtocolError: that cannot be found out now.
        """
        return self.arrived(fresh=True)

    def looked_since(self, moment: float) -> bool:
        """Tell whether `arrived` has told all that was there at a time of `time.monotonic`."""
        return True

    def store(self, name: str, outcome: bytes) -> None:
        """Keep an outcome that came another way, and that the job has written as well."""

    def tails(self, paths: Sequence[str], lines: int) -> list[str]:
        """Return the last lines of logs, empty for one that is not there or cannot be read."""
        return [_tail(path, lines) for path in paths]

    def fetch(self, name: str) -> IO[bytes]:
        """Open an outcome that has arrived."""
        return open(os.path.join(self.results, name), "rb")

    def drop(self, name: str) -> None:
        """Remove a file among the results, unless they are to stay."""
        if not self.durable:
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file among the results."""
        with suppress(OSError):
            os.unlink(os.path.join(self.results, name))

    def batches(self) -> Iterator[str]:
        """Yield the names of the batches that are there."""
        with suppress(FileNotFoundError):
            for entry in sorted(Path(self.path).iterdir()):
                if entry.is_dir() and entry.name != "results":
                    yield entry.name

    def clean(self, batch: str, keep: Collection[str] = (), folders: bool = True) -> None:
        """Remove a batch but for the files to keep (paths); its folders, too, if they are empty.

        What its calls have saved stays: they may go on in another batch.
        """
        kept = {os.path.realpath(path) for path in keep}
        for folder, _, files in os.walk(self.batch(batch), topdown=False):
            for name in files:
                path = os.path.join(folder, name)
                if os.path.realpath(path) not in kept:
                    with suppress(OSError):
                        os.unlink(path)
            if folders:
                with suppress(OSError):  # not empty: a file in it is kept
                    os.rmdir(folder)
        for name in self._listed():
            of_batch = name.startswith(f"{batch}.") or f".{batch}." in name
            if of_batch and not name.endswith(".resume"):
                self.remove(name)

    def remove_if_empty(self) -> None:
        """Remove the folder, unless something is kept in it, or another program's jobs need it."""
        if self.durable and next(self.batches(), None) is not None:
            return
        for path in (self.results, self.path):
            with suppress(OSError):
                os.rmdir(path)


def _tail(path: str, lines: int) -> str:
    with suppress(OSError):
        return read_log(LocalProtocol(), path, lines)
    return ""


def _own_paths() -> list[str]:
    """Return where modules are looked for here beside what the installation brings."""
    given = [sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()]
    if site.ENABLE_USER_SITE and site.USER_SITE:
        given.append(site.USER_SITE)
    own = []
    for entry in sys.path:
        path = os.path.abspath(entry)
        if not any(path == each or path.startswith(each + os.sep) for each in given):
            own.append(path)
    return own
