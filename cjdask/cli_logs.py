"""``cjdask logs``."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

import click

from cjdask.cli_follow import CHUNK, GrowingFile, look, start_at_tail
from cjdask.cli_group import Failure, runs_go_on
from cjdask.cli_options import elsewhere_option
from cjdask.cli_runs import (
    Ends,
    Selected,
    exit_code,
    folder_of,
    folder_option,
    json_option,
    runs_argument,
    select,
)
from cjdask.errors import ProtocolError
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol
from cjdask.run_many import ask_all
from cjdask.run_progress import counted
from cjdask.status import Status

__all__ = ["logs"]

PAUSE = 0.5
"""Seconds between two looks at files of this machine."""
PAUSE_ELSEWHERE = 2.0
LATE = 10.0
"""Seconds that a log may come later than the end of its job is known."""


@dataclass(eq=False)
class Source:
    """A log: that of both streams if they go into one file."""

    selected: Selected
    stream: str
    file: GrowingFile
    rest: bytes = b""
    """The begin of a line whose end is not there yet, for JSON."""

    @property
    def protocol(self) -> Protocol:
        """How its machine is reached."""
        return self.selected.run.protocol


@dataclass
class Printer:
    """Writes logs: standard error of a job goes to standard error."""

    as_json: bool
    headings: bool
    _last: Selected | None = None
    _open_line: dict[str, bool] = field(default_factory=dict)

    def write(self, source: Source, data: bytes) -> None:
        """Write what is new in a log."""
        if self.as_json:
            *lines, source.rest = (source.rest + data).split(b"\n")
            for line in lines:
                self._object(source, line)
            return
        err = source.stream == "stderr"
        if self.headings and self._last is not source.selected:
            blank = "" if self._last is None else "\n"
            started = "\n" if self._open_line.get(source.stream) else ""
            click.echo(f"{started}{blank}==> {source.selected.label} <==", err=err)
            self._last = source.selected
        click.echo(data, nl=False, err=err)
        self._open_line[source.stream] = not data.endswith(b"\n")

    def end(self, source: Source) -> None:
        """Write what is left of a log."""
        if source.rest:
            self._object(source, source.rest)
            source.rest = b""

    def _object(self, source: Source, line: bytes) -> None:
        row = {
            "job_id": source.selected.run.job_id,
            "task": source.selected.task,
            "stream": source.stream,
            "text": line.decode("utf-8", "backslashreplace"),
        }
        click.echo(json.dumps(row))


@click.command(short_help="Show what runs wrote, with -f as they write it.")
@runs_argument(required=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until the runs have ended.")
@click.option(
    *("-n", "--tail"),
    type=click.IntRange(min=0),
    metavar="LINES",
    help="Begin with the last lines that are there.",
)
@elsewhere_option
@folder_option
@json_option
def logs(
    runs: Sequence[str],
    follow: bool,
    tail: int | None,
    backend: str | None,
    cache_folder: str | None,
    as_json: bool,
) -> None:
    """Show the logs of runs, of all tasks of an array or of those that are named.

    Standard output of a job goes to standard output, and its standard error, where that has
    a file of its own, to standard error. With --follow the command waits for runs that have not
    begun, and ends when all have ended, with the exit code of 'cjdask wait'.
    """
    selected = [
        task for each in select(runs, folder_of(cache_folder), backend) for task in _tasks(each)
    ]
    sources = [source for each in selected for source in _sources(each)]
    if tail is not None:
        for source in sources:
            start_at_tail(source.protocol, source.file, tail)
    printer = Printer(as_json, headings=len(selected) > 1)
    if follow:
        with runs_go_on():
            failures = _follow(selected, sources, printer)
        if failures:
            raise failures[0]
        if code := exit_code(selected):
            raise SystemExit(code)
        return
    _print_new(sources, printer)
    for source in sources:
        printer.end(source)
    _explain([each for each in selected if not _has_log(each, sources)])


def _tasks(selected: Selected) -> list[Selected]:
    tasks = selected.run.known_tasks()
    if selected.task is not None or not tasks:
        return [selected]
    return [Selected(selected.run, task) for task in tasks]


def _sources(selected: Selected) -> list[Source]:
    paths = {
        stream: selected.run.log_path(stream, selected.task) for stream in ("stdout", "stderr")
    }
    if paths["stderr"] == paths["stdout"]:
        del paths["stderr"]
    return [Source(selected, stream, GrowingFile(path)) for stream, path in paths.items()]


def _has_log(selected: Selected, sources: Sequence[Source]) -> bool:
    return any(source.file.seen for source in sources if source.selected is selected)


def _print_new(sources: Sequence[Source], printer: Printer) -> None:
    """Print what is new in all logs.

    Raises:
        ProtocolError: their machine cannot be asked.
    """
    by_machine: dict[Protocol, list[Source]] = {}
    for source in sources:
        by_machine.setdefault(source.protocol, []).append(source)
    for protocol, there in by_machine.items():
        while there:
            found = look(protocol, [source.file for source in there])
            for source, data in zip(there, found, strict=True):
                if source.file.restarted:
                    _note(f"the log of {source.selected.label} was begun anew")
                if data:
                    printer.write(source, data)
            more = [
                source.file.restarted or len(data) == CHUNK
                for source, data in zip(there, found, strict=True)
            ]
            there = list(compress(there, more))


def _note(text: str) -> None:
    click.echo(f"cjdask: {text}", err=True)


def _explain(silent: Sequence[Selected]) -> None:
    """Say why runs have no log."""
    ask_all({each.run: None for each in silent})
    gone = []
    for each in silent:
        told = f"{each.label} is {each.info.describe()}"
        if each.info.status.ended:
            gone.append(f"{told}; there is no file {each.run.log_path('stdout', each.task)}")
        else:
            _note(f"{told}, and has written nothing yet")
    if gone:
        raise Failure("\n".join(gone))


def _follow(
    selected: Sequence[Selected], sources: Sequence[Source], printer: Printer
) -> Sequence[Exception]:
    """Print logs as they grow until all runs have ended; return the failures of epilogues."""
    ask_all({each.run: None for each in selected})
    for each in selected:
        if each.info.status is Status.PENDING:
            _note(f"waiting for {each.label}, {each.info.describe()}")
    here = all(isinstance(each.run.protocol, LocalProtocol) for each in selected)
    with Ends(selected) as ends:
        _print_until_ended(ends, selected, sources, printer, PAUSE if here else PAUSE_ELSEWHERE)
    for source in sources:
        printer.end(source)
    for each in selected:
        if not _has_log(each, sources):
            _note(f"there is no file {each.run.log_path('stdout', each.task)}")
    if len(selected) == 1:
        _note(f"{selected[0].label} is {selected[0].info.describe()}")
    else:
        _note(counted(Counter(each.info.status for each in selected)))
    return ends.failures


def _print_until_ended(
    ends: Ends,
    selected: Sequence[Selected],
    sources: Sequence[Source],
    printer: Printer,
    pause: float,
) -> None:
    """Print until all have ended and their logs were read to the end, or are not to come."""
    running, last_end = set(selected), time.monotonic()
    left = list(sources)
    lost: ProtocolError | None = None
    while left and (running or time.monotonic() < last_end + LATE):
        over = {source for source in left if source.selected not in running}
        try:
            _print_new(left, printer)
            lost = None
        except ProtocolError as error:  # a link that broke; the jobs go on meanwhile
            if lost is None:
                _note(f"the logs cannot be read, trying on: {error}")
            lost = error
        if lost is None:
            left = [source for source in left if source not in over or not source.file.seen]
        ended = ends.next(pause) if left else None
        while ended is not None:
            running.discard(ended)
            last_end = time.monotonic()
            ended = ends.next(0)
