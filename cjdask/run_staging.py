"""Fetch the output files of a job."""

from __future__ import annotations

import os

from cjdask.command import Command
from cjdask.errors import ProtocolError, StagingError
from cjdask.journal import Entry
from cjdask.protocols.base import Protocol

__all__ = ["fetch"]

_LOOK = 'for path; do if [ -e "$path" ]; then echo there; else echo missing; fi; done'


def fetch(protocol: Protocol, entry: Entry) -> None:
    """Copy the output files of a job to the folder that it was submitted from.

    Raises:
        StagingError: some are not there; all others have been copied.
        ProtocolError: they could not be copied.
    """
    paths = [os.path.join(entry.folder, name) for name in entry.output_files]
    found = protocol.run(Command.ask("/bin/sh", "-c", _LOOK, "sh", *paths), 60)
    words = found.stdout.split()
    if len(words) != len(paths):
        raise ProtocolError(f"{protocol.host} does not tell what is there: {found.stderr.strip()}")
    there = [path for path, word in zip(paths, words, strict=True) if word == "there"]
    protocol.download(there, f"{entry.local_folder}/")
    missing = [path for path in paths if path not in there]
    if missing:
        raise StagingError(
            f"job {entry.job_id} on {entry.backend} has left no {missing[0]!r}"
            + (f" and {len(missing) - 1} others of its output_files" if missing[1:] else "")
            + "; its log may tell why, run.fetch() looks again"
        )
