"""The record that a job script leaves of its end, for when the scheduler has forgotten the job."""

from __future__ import annotations

import json
import os.path
import shlex
from collections.abc import Collection
from logging import getLogger
from typing import Any

from cjdask.backends import BatchBackend, ClusterjobBackend
from cjdask.command import Command
from cjdask.protocols.base import Protocol
from cjdask.protocols.remote import RemoteProtocol
from cjdask.resources import Resources
from cjdask.run_script import interpreter
from cjdask.scheduler import COMMAND_TIMEOUT
from cjdask.status import JobInfo, Reason, Status

__all__ = ["RECORDS", "begun_as", "last_line", "read_end", "read_ends", "record_lines"]

logger = getLogger(__name__)

RECORDS = ".cjdask"
"""The folder of the records, in that of the job script."""

_SHELLS = ("bash", "dash", "sh")

_LINES = r"""
# cjdask: leaves a record of how this script ended
cj_id={own_id}
cj_path=$PATH
cj_file={path}{task}
cj_write() {{
    printf '{{"format": 1, "job_id": "%s", "host": "%s", "time": %s%s}}\n' "$cj_id" \
        "$(uname -n)" "$(date +%s)" "$2" >"$cj_file.$1.new" && mv -f "$cj_file.$1.new" "$cj_file.$1"
}}
cj_end() {{
    case $2 in exit | exit\ *) ;; *) [ "$1" != 0 ] || return 0 ;; esac  # a signal ended the shell
    cj_write end ", \"exit_code\": $1"
}} 2>/dev/null
{{ rm -f "$cj_file.end"; cj_write begin; }} 2>/dev/null
trap 'cj_code=$? cj_last=${{BASH_COMMAND-exit}}
    set +eu; PATH=$cj_path; cj_end "$cj_code" "$cj_last"; {then}' EXIT
# cjdask: the script
"""


_BEGUN = 'cat -- "$1".begin "$1".*.begin 2>/dev/null | head -n 1'
"""Shows the record of a job that began, of an array that of a task."""


_ENDS = r"""
for file in "$1".end "$1".*.end; do
    [ ! -e "$file" ] || { printf '%s\t' "$file"; cat -- "$file"; }
done
"""
"""Shows the records of all tasks that have ended, each on a line behind the name of its file."""


def _covers(text: str, backend: ClusterjobBackend, resources: Resources) -> bool:
    """Tell whether the script can leave a record: it is for a shell, and runs once."""
    names = {os.path.basename(word) for word in interpreter(text)}
    several = (resources.nodes or 1) > 1
    return (
        isinstance(backend, BatchBackend)
        and bool(names.intersection(_SHELLS))
        and (backend.one_script or not several)
    )


def record_lines(
    text: str, backend: ClusterjobBackend, resources: Resources, path: str
) -> list[str]:
    """Return shell lines for the begin of a rendered script, none where it cannot have any.

    They leave ``path.begin`` when the job begins and ``path.end`` when it ends, of the task of
    an array ``path.INDEX.begin`` and so on. bash runs the trap also when a signal ends it, with
    the exit code of the command before: then its last command is no ``exit``.
    """
    if not _covers(text, backend, resources):
        return []
    assert isinstance(backend, BatchBackend)
    then = f"(exit $cj_code); {backend.exit_trap}" if backend.exit_trap else ":"
    lines = _LINES.format(
        own_id=backend.own_id,
        path=shlex.quote(path),
        task=".$CLUSTERJOB_ARRAY_INDEX" if resources.array else "",
        then=then,
    )
    return backend.replace_body_vars(lines).strip("\n").split("\n")


def last_line(text: str) -> str:
    """Return what to put behind a script with such lines, so that its end is an ``exit``."""
    return "\n\nexit $?" if any("bash" in word for word in interpreter(text)) else ""


def _read(protocol: Protocol, path: str) -> dict[str, Any] | None:
    try:
        return _parse(protocol.read(path), path)
    except OSError:
        return None


def _parse(text: str | bytes, path: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:
        logger.warning("the record %s is not understood", path)
        return None
    if not isinstance(record, dict) or record.get("format") != 1:
        logger.warning("the record %s is of another version of cjdask", path)
        return None
    return record


def read_end(protocol: Protocol, path: str, job_id: str, task: int | None) -> JobInfo | None:
    """Return what a job recorded of its end, ``None`` where there is no record."""
    return _end(_read(protocol, _end_file(path, task)), job_id, task)


def read_ends(
    protocol: Protocol, path: str, job_id: str, tasks: Collection[int | None]
) -> dict[int | None, JobInfo]:
    """Return what a job recorded of the ends of tasks, where it did.

    Another machine is asked with one command.

    Raises:
        ProtocolError: it cannot be asked.
    """
    if isinstance(protocol, RemoteProtocol):
        command = Command.ask("/bin/sh", "-c", _ENDS, "sh", path)
        output = protocol.run(command, COMMAND_TIMEOUT)
        lines = (line.partition("\t") for line in output.stdout.splitlines())
        texts = {file: text for file, _, text in lines}
        there = {
            task: texts[_end_file(path, task)] for task in tasks if _end_file(path, task) in texts
        }
        ends = {task: _end(_parse(text, path), job_id, task) for task, text in there.items()}
    else:
        ends = {task: read_end(protocol, path, job_id, task) for task in tasks}
    return {task: info for task, info in ends.items() if info is not None}


def _end_file(path: str, task: int | None) -> str:
    return f"{path}.end" if task is None else f"{path}.{task}.end"


def _end(record: dict[str, Any] | None, job_id: str, task: int | None) -> JobInfo | None:
    if record is None or record["job_id"] != job_id:
        return None
    code = int(record["exit_code"])
    return JobInfo(
        job_id,
        Status.FAILED if code else Status.COMPLETED,
        task,
        reason=Reason.NONZERO_EXIT if code else Reason.NONE,
        exit_code=code,
        nodes=(record["host"],),
        end_time=float(record["time"]),
    )


def begun_as(protocol: Protocol, path: str) -> str | None:
    """Return the id that a job recorded as its own when it began, ``None`` if it did not."""
    found = protocol.run(Command.ask("/bin/sh", "-c", _BEGUN, "sh", path), COMMAND_TIMEOUT)
    record = _parse(found.stdout, f"{path}.begin") if found.stdout else None
    return str(record["job_id"]) if record else None
