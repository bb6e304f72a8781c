"""The recorded runs of a cache folder: find them, list them, forget them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from difflib import get_close_matches

from cjdask.errors import JournalError, UnknownBackendError
from cjdask.journal import Entry, JournalFile, clear_folder, files_in, journal_file
from cjdask.run import AsyncResult
from cjdask.run_files import files_of
from cjdask.scheduler import Scheduler, scheduler_for

__all__ = ["cached_run", "cached_runs", "clear_cache", "forget"]

logger = logging.getLogger(__name__)


def cached_run(folder: str | os.PathLike[str], prefix: str, cache_id: str) -> AsyncResult:
    """Return the recorded run with that id.

    Raises:
        FileNotFoundError: there is none; the message has similar ids.
        JournalError: its file cannot be read, or has no run that was submitted.
    """
    file = journal_file(folder, prefix, cache_id)
    try:
        return AsyncResult.load(file.path)
    except FileNotFoundError:
        known = [run.cache_id or "" for run in cached_runs(folder, prefix)]
        close = get_close_matches(cache_id, known, 5, cutoff=0.4)
        raise FileNotFoundError(
            f"there is no run with cache_id={cache_id!r} in {os.fspath(folder)}"
            + (f"; similar ones are {', '.join(map(repr, close))}" if close else "")
        ) from None


def cached_runs(folder: str | os.PathLike[str], prefix: str) -> list[AsyncResult]:
    """Return all recorded runs, those submitted first before others; no scheduler is asked.

    A file that cannot be read is logged; a run whose submission was not seen to its end is left
    out.

    Raises:
        JournalError: the folder cannot be read.
    """
    runs = []
    for file in files_in(folder, prefix):
        try:
            entry = file.read()
            if entry is not None and entry.job_id is not None:
                runs.append(AsyncResult(scheduler_for(entry.backend, *entry.place), entry, file))
        except (JournalError, UnknownBackendError) as error:
            logger.warning("a run is left out: %s", error)
    return sorted(runs, key=lambda run: run.submitted or 0.0)


def clear_cache(folder: str | os.PathLike[str], prefix: str) -> None:
    """Forget all recorded runs; other files stay.

    Raises:
        JournalError: a file cannot be removed.
    """
    _forgotten(clear_folder(folder, prefix))


def forget(file: JournalFile) -> None:
    """Remove a run from the journal, also one that cannot be read. The caller holds the lock.

    Raises:
        JournalError: it cannot be removed, or is somebody else's.
    """
    try:
        entry = file.read()
    except JournalError as error:
        logger.info("forgetting what cannot be read: %s", error)
        entry = None
    file.discard()
    _forgotten([entry] if entry is not None else [])


def _forgotten(entries: Iterable[Entry]) -> None:
    """Remove the files of runs that have ended; those of others go with time."""
    living: dict[Scheduler, list[str]] = {}
    for entry in entries:
        try:
            scheduler = scheduler_for(entry.backend, *entry.place)
        except UnknownBackendError as error:
            logger.info("the files of a run stay in %s: %s", entry.folder, error)
            continue
        if entry.ended:
            files_of(scheduler).over(*entry.records)
        else:
            living.setdefault(scheduler, []).extend(entry.records)
    for scheduler, records in living.items():
        files_of(scheduler).forget(records)
