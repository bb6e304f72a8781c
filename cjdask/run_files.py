"""The files of runs in the folders of their jobs: what they are for, and when they go.

In the folder ``.cjdask`` of a job's folder are, named by the run's tag, the script that was
submitted where the run is recorded, and the records of the begin and the end that the script
leaves. They go when the end is known and noted elsewhere; what nobody asks for any more goes
with time.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Collection, Iterable
from logging import getLogger

from cjdask.command import Command
from cjdask.errors import ClusterjobError, JournalError
from cjdask.journal import Entry, JournalFile, task_key
from cjdask.protocols.base import Protocol
from cjdask.run_record import RECORDS, read_ends
from cjdask.scheduler import COMMAND_TIMEOUT, Scheduler
from cjdask.status import JobInfo, Status

__all__ = ["Evidence", "RunFiles", "files_of", "flush_all"]

logger = getLogger(__name__)

LOOSE_DAYS = 30
"""Days after which the files of a run go that is not recorded anywhere."""
KEPT_DAYS = 365
"""Days after which those of a recorded run go, if nobody has asked for its end in that time."""
PAUSE = 1.0
"""Seconds between two commands that remove files while many runs end."""

MOST = 500
"""Runs that one command removes the files of at most."""

_REMOVE = r"""for base do printf '%s\0' "$base".*; done | xargs -0 rm -f --"""
_MARK = 'for base do [ ! -d "${{base%/*}}" ] || : >"$base.{}"; done'
_SWEEP = r"""
cd -- "$1" 2>/dev/null || exit 0
find . -maxdepth 1 -type f \( -name 'cjdask-*' -o -name '.cjdask-*' \) -printf '%T@ %f\n' |
awk -v now="$(date +%s)" -v loose="$2" -v kept="$3" '
    { tag = $2; sub(/^\./, "", tag); sub(/\..*/, "", tag); files[tag] = files[tag] $2 "\n" }
    $1 > newest[tag] { newest[tag] = $1 }
    $2 ~ /\.forgotten$/ { forgotten[tag] = 1 }
    $2 !~ /^\.|\.(begin|end|new|forgotten|claim)$/ { recorded[tag] = 1 }
    END { for (tag in files) {
        days = recorded[tag] && !forgotten[tag] ? kept : loose
        if (now - newest[tag] > days * 86400) printf "%s", files[tag]
    } }' | xargs -r rm -f --
"""


class Evidence:
    """What is on disk of the end of a job, for when its scheduler knows nothing of it.

    It is the record that the job left, or the end in the journal: whoever noted it there may
    have removed the record. The journal also tells who cancelled it. ``file`` is that of the
    journal, if there is one.
    """

    def __init__(self, protocol: Protocol, record: str, job_id: str, tag: str) -> None:
        self.file: JournalFile | None = None
        self._protocol = protocol
        self._record = record
        self._job_id = job_id
        self._tag = tag
        self._noted: Entry | None = None

    def __call__(self, tasks: Collection[int | None]) -> dict[int | None, JobInfo]:
        """Return what is known of the ends of tasks, of a job that is no array of ``None``.

        Raises:
            ProtocolError: another machine cannot be asked for the records.
        """
        found = {}
        if self._record:
            found = read_ends(self._protocol, self._record, self._job_id, tasks)
        well = sum(info.status is Status.COMPLETED for info in found.values())
        if self.file is None or well == len(tasks):
            return found
        try:
            entry = self.file.read()
        except JournalError as error:
            logger.warning(
                "the end of job %s may be in a file that is none: %s", self._job_id, error
            )
            return found
        self._noted = entry if entry is not None and entry.tag == self._tag else None
        infos = self._noted.infos() if self._noted is not None else []
        return {info.task: info for info in infos if info.task in tasks} | found

    def cancelled(self, task: int | None) -> float | None:
        """Tell how many seconds ago a task was cancelled, as it was noted at the last call."""
        times = self._noted.cancelled if self._noted is not None else {}
        time_of = times.get(task_key(task))
        return None if time_of is None else max(0.0, time.time() - time_of)


class RunFiles:
    """The files of runs on one machine; one command serves any number of runs."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._lock = threading.Lock()
        self._over: list[str] = []
        self._removed_at = float("-inf")
        self._swept: set[str] = set()

    def over(self, *records: str) -> None:
        """Remove the files of a run whose end is noted elsewhere: now, or with those of others.

        ``records`` are their paths without what is behind the tag, empty if there are none.
        """
        if not any(records):
            return
        with self._lock:
            self._over += filter(None, records)
            if time.monotonic() - self._removed_at < PAUSE:
                return
            self._removed_at = time.monotonic()
        self.flush()

    def stale(self, *records: str) -> None:
        """Remove what may be left of a run, since who saw its end may have been killed just then.

        This is done when something else is removed too, or at the end of the process if there is
        a connection to the machine.
        """
        with self._lock:
            self._over += filter(None, records)

    def flush(self) -> None:
        """Remove what is to go."""
        with self._lock:
            records, self._over = self._over, []
        self._each(_REMOVE, records)

    def forget(self, records: Iterable[str]) -> None:
        """Let the files of runs go with time that are recorded no more and may not have ended."""
        self._each(_MARK.format("forgotten"), list(filter(None, records)))

    def keep(self, records: Iterable[str]) -> None:
        """Keep the files of runs that are in no journal but may be asked for."""
        self._each(_MARK.format("kept"), list(filter(None, records)))

    def sweep(self, folder: str) -> None:
        """Remove, once in this process, what nobody has asked for in a long time."""
        self.flush()
        with self._lock:
            if folder in self._swept:
                return
            self._swept.add(folder)
        self._run(_SWEEP, os.path.join(folder, RECORDS), str(LOOSE_DAYS), str(KEPT_DAYS))

    def _each(self, script: str, records: list[str]) -> None:
        for start in range(0, len(records), MOST):
            self._run(script, *records[start : start + MOST])

    def _run(self, script: str, *arguments: str) -> None:
        command = Command.ask("/bin/sh", "-c", script, "sh", *arguments)
        try:
            output = self._protocol.run(command, timeout=COMMAND_TIMEOUT)
        except ClusterjobError as error:
            logger.info("files of runs stay on %s: %s", self._protocol.host, error)
        else:
            if output.exit_code:
                logger.info("files of runs stay on %s: %s", output.host, output.stderr.strip())


_files: dict[Scheduler, RunFiles] = {}
_files_lock = threading.Lock()


def files_of(scheduler: Scheduler) -> RunFiles:
    """Return what keeps the files of the runs of a scheduler."""
    with _files_lock:
        if scheduler not in _files:
            _files[scheduler] = RunFiles(scheduler.protocol)
        return _files[scheduler]


@atexit.register
def flush_all() -> None:
    """Remove now what is to go, on all machines to which there is a connection."""
    for scheduler, files in list(_files.items()):
        if scheduler.protocol.connected:
            files.flush()
