"""Results that survive the program: ``map(..., cache_id=...)``.

A folder for each id holds the outcomes, by names that tell what was called, and the batches
that are under way. Each batch has a journal, so that its job is found again whenever the
program was killed. Who looks at it holds a lock: two programs with the same id share the work.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from cjdask.executor_batch import Batch, recorded_run
from cjdask.executor_calls import Call, Task, label_of, read_outcome
from cjdask.executor_digest import call_digest, code_digest
from cjdask.executor_far import FarFolder
from cjdask.executor_folder import CallFolder, Place
from cjdask.run import cancel_all

__all__ = ["DEFAULT_CACHE", "MapCache"]

logger = logging.getLogger(__name__)

DEFAULT_CACHE = os.path.join(".cjdask", "maps")
"""Where results are kept that have a cache_id but no cache_folder."""
LONGEST_ID = 150


class MapCache:
    """The results of one ``cache_id``."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        cache_id: str,
        make: Callable[[str, bool], CallFolder] = CallFolder,
    ) -> None:
        """``make(path, durable)`` makes the folder that calls are put into."""
        name = quote(cache_id, safe="") if isinstance(cache_id, str) else ""
        if not name or name in (".", "..") or len(name) > LONGEST_ID:
            raise ValueError(f"cache_id={cache_id!r}: give text of 1 to {LONGEST_ID} characters")
        path = os.path.join(os.path.expanduser(os.fspath(folder)), name)
        self.cache_id = cache_id
        self.folder = make(path, True)
        self._others: dict[Place | None, CallFolder] = {}
        self._seen: Counter[str] = Counter()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other programs from planning at the same time.

        Raises:
            PayloadError: the folder cannot be used.
        """
        self.folder.prepare()
        path = os.path.join(self.folder.path, "lock")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def name(self, fn: Callable[..., Any], args: Any) -> str:
        """Return the name of the next call; the same call comes again under another name."""
        digest = call_digest(fn, args)
        self._seen[digest] += 1
        return f"{digest}-{self._seen[digest]}"

    def check_function(self, fn: Callable[..., Any]) -> None:
        """Warn where the results there are those of another version of a function."""
        path = os.path.join(self.folder.path, "function.json")
        now = {"name": label_of(fn), "code": code_digest(fn), "python": sys.version_info[:2]}
        now = json.loads(json.dumps(now))
        known = None
        with suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            known = json.load(file)
        if known == now:
            return
        if known is not None and known.get("python") == now["python"]:
            logger.warning(
                "the results of cache_id %r are those of another version of %s; force=True "
                "makes all calls again",
                self.cache_id,
                now["name"],
            )
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(now, file)
        os.replace(path + ".new", path)

    def clear(self) -> None:
        """Cancel what runs and forget all results."""
        found = [(name, self._folder_of(name)) for name in self.folder.batches()]
        recorded = [recorded_run(folder, name) for name, folder in found]
        runs = [run for run in recorded if run is not None and not run.status.ended]
        if runs:
            cancel_all(runs)
        for name, folder in found:
            folder.clean(name)
        for folder in {self.folder, *(folder for _, folder in found)}:
            for name in folder.current():
                folder.remove(name)

    def _folder_of(self, batch: str) -> CallFolder:
        """Return the folder as the jobs of a batch see it, which may be of another machine."""
        manifest = self.folder.manifest(batch)
        if manifest is None:
            return self.folder
        place = tuple(manifest["place"]) if manifest.get("place") else None
        if place == self.folder.place:
            return self.folder
        if place not in self._others:
            self._others[place] = (
                CallFolder(self.folder.path, durable=True)
                if place is None
                else FarFolder(self.folder.path, place[0], place[1], durable=True, there=place[2])
            )
        return self._others[place]

    def sort(self, tasks: Sequence[Task]) -> tuple[list[Task], list[Batch]]:
        """Settle the calls whose results are there; return those to run, and batches to wait for.

        A task of a batch under way is waited for if its calls are among those of ``tasks``.
        """
        under_way = self._under_way()
        folders = {self.folder, *(batch.folder for batch, _ in under_way)}
        arrived = {name for folder in folders for name in folder.current()}
        failed = {name.partition(".")[0] for name in arrived if name.endswith(".error")}
        wanted: dict[str, tuple[Task, Call]] = {}
        for task in tasks:
            for call in task.calls:
                if f"{call.name}.ok" in arrived:
                    if self._settle(call):
                        continue
                    failed.add(call.name)
                wanted[call.name] = (task, call)
        batches = []
        for batch, names_of in under_way:
            for index, names in names_of.items():
                mine = [name for name in names if name in wanted and name not in failed]
                if not mine or batch.info(index).status.ended:
                    continue
                task, _ = wanted[mine[0]]
                calls = [wanted.pop(name)[1] for name in mine]
                batch.take(index, Task(task.options, task.fn, calls, batch.folder, task.hook))
            if batch.tasks:
                batches.append(batch)
            elif batch.run.known().status.ended:
                batch.clean()
        for task in tasks:
            task.calls = [call for call in task.calls if call.name in wanted]
        return [task for task in tasks if task.calls], batches

    def _settle(self, call: Call) -> bool:
        """Hand over a result that is there; tell whether it could be read."""
        try:
            with self.folder.fetch(f"{call.name}.ok") as file:
                value, error = read_outcome(file, call.label)
        except OSError:
            return False
        if error is not None:
            logger.warning("a kept result is not used, the call is made again: %s", error)
            self.folder.remove(f"{call.name}.ok")
            return False
        call.settle(value)
        return True

    def _under_way(self) -> list[tuple[Batch, dict[int, list[str]]]]:
        """Return the batches that were submitted, with the names of their calls by task."""
        found = []
        for name in list(self.folder.batches()):
            folder, manifest = self._folder_of(name), self.folder.manifest(name)
            run = recorded_run(folder, name)
            if run is None or manifest is None:
                folder.clean(name)  # it never came to the scheduler
                continue
            names = dict(enumerate(manifest["calls"], 1))
            found.append((run, name, names, folder))
        for run in {run._scheduler: run for run, *_ in found}.values():
            _ = run.status  # one question for all of a scheduler
        return [
            (Batch(name, folder, run, len(names) == 1, adopted=True), names)
            for run, name, names, folder in found
        ]
