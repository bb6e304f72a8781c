"""``cjdask status`` and ``cjdask list``."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from cjdask.cli_group import Exit, Failure, runs_go_on
from cjdask.cli_options import elsewhere_option
from cjdask.cli_runs import (
    Ends,
    Recorded,
    Selected,
    folder_of,
    folder_option,
    json_option,
    recorded,
    runs_argument,
    select,
)
from cjdask.cli_table import Row, aligned, dashboard, described, fitted, print_json
from cjdask.cli_table import as_json as run_as_json
from cjdask.run_many import ask_all
from cjdask.run_progress import counted, drawn, redrawn
from cjdask.status import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["list_", "status"]

_INTERVAL = 1.0
"""Seconds between two looks at what is known; the scheduler is asked at its own pace."""


def state_option(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command with ``--state``."""
    names = [status.name.lower() for status in Status]
    option = click.option(
        *("--state", "states"),
        multiple=True,
        type=click.Choice(names, case_sensitive=False),
        help="Only runs of this status; several times for several.",
    )
    return option(command)


def _terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _say_if_none(runs: Sequence[object], folder: str) -> None:
    if not runs:
        where = "--cache-folder names another folder"
        click.echo(f"there are no runs in {folder}; {where}", err=True)


# -- status ------------------------------------------------------------------------------------


@click.command(short_help="Show the status of runs, with -w until they end.")
@runs_argument(required=False)
@click.option("-w", "--watch", is_flag=True, help="Go on until all have ended.")
@state_option
@elsewhere_option
@folder_option
@json_option
def status(
    runs: Sequence[str],
    watch: bool,
    states: Sequence[str],
    backend: str | None,
    cache_folder: str | None,
    as_json: bool,
) -> None:
    """Ask for the status of runs, all of the cache folder unless some are named.

    Any number costs one command of the scheduler. With --watch a table is kept up to date in
    a terminal; into a pipe goes a line for each change. Epilogues that are due are run.
    """
    if watch and states:
        raise click.UsageError("--state picks from one answer; leave it out, or --watch")
    folder = folder_of(cache_folder)
    selected = select(runs, folder, backend)
    _say_if_none(selected, folder)
    if watch and selected:
        with runs_go_on():
            failures = _watch(selected, as_json)
        if failures:
            raise failures[0]
        return
    try:
        unanswered = ask_all(each.run for each in selected)
    finally:
        _print([each for each in selected if _wanted(each.info.status, states)], as_json)
    if unanswered:
        raise Failure("\n".join(map(str, unanswered)), Exit.NO_ANSWER)


def _wanted(status: Status | None, states: Sequence[str]) -> bool:
    return not states or (status is not None and status.name.lower() in states)


def _print(selected: Sequence[Selected], as_json: bool) -> None:
    if as_json:
        for each in selected:
            print_json(**run_as_json(each))
        return
    rows, now = [Row.of(each) for each in selected], time.time()
    if not rows:
        return
    if not _terminal():
        click.echo(aligned([row.cells(now) for row in rows]))
        return
    from rich.console import Console

    console = Console()
    console.print(fitted(rows, now, console.width))
    counts = Counter(row.info.status for row in rows)
    click.echo(f"{len(rows)} runs: {counted(counts)}")


def _watch(selected: Sequence[Selected], as_json: bool) -> Sequence[Exception]:
    """Follow runs until all have ended; return the failures of epilogues."""
    if as_json or not _terminal():
        return _watch_changes(selected, as_json)
    begun = time.monotonic()

    def draw(width: int, height: int) -> RenderableType:
        rows = [Row.of(each) for each in selected]
        counts = Counter(row.info.status for row in rows)
        foot = drawn(counts, "runs", time.monotonic() - begun, width)
        return dashboard(rows, time.time(), width, height, foot)

    with Ends(selected) as ends, redrawn(draw, _INTERVAL):
        for _ in selected:
            ends.next()
    return ends.failures


def _watch_changes(selected: Sequence[Selected], as_json: bool) -> Sequence[Exception]:
    """Write a line for each run, and another one whenever its status changes."""
    told: dict[int, Status] = {}

    def tell() -> None:
        for number, each in enumerate(selected):
            info = each.info
            if told.get(number) is info.status:
                continue
            told[number] = info.status
            if as_json:
                print_json(time=time.time(), **run_as_json(each))
            else:
                stamp = time.strftime("%H:%M:%S")
                click.echo(f"{stamp}  {each.label}  {each.name}  {described(each)}")

    left = len(selected)
    with Ends(selected) as ends:
        tell()
        while left:
            left -= ends.next(_INTERVAL) is not None
            tell()
    return ends.failures


# -- list --------------------------------------------------------------------------------------


@click.command("list", short_help="List the recorded runs, without asking anybody.")
@state_option
@folder_option
@json_option
def list_(states: Sequence[str], cache_folder: str | None, as_json: bool) -> None:
    """List the runs of the cache folder, the oldest first, as it has them.

    No scheduler is asked: a run whose end is not recorded yet is OPEN. INTENT is one whose
    submission was not finished; submitting it again by its cache id finds out what became
    of it.
    """
    folder = folder_of(cache_folder)
    known, wrong = recorded(folder)
    shown = [each for each in known if _wanted(each.status, states)]
    if as_json:
        for each in shown:
            print_json(**_as_json(each))
    elif shown:
        click.echo(aligned([_cells(each) for each in shown]))
    if not wrong:
        _say_if_none(known, folder)
    else:
        raise Failure("\n".join(map(str, wrong)))


def _cells(each: Recorded) -> dict[str, str]:
    entry, status = each.entry, each.status
    return {
        "JOB": entry.job_id or "-",
        "BACKEND": entry.backend,
        "STATUS": status.name if status is not None else "OPEN" if entry.job_id else "INTENT",
        "SUBMITTED": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.written)),
        "NAME": entry.name or "",
        "CACHE ID": entry.cache_id or "",
    }


def _as_json(each: Recorded) -> dict[str, object]:
    entry, status = each.entry, each.status
    return {
        "job_id": entry.job_id,
        "cache_id": entry.cache_id,
        "jobname": entry.name,
        "backend": entry.backend,
        "status": None if status is None else status.name,
        "submit_time": entry.written,
        "cache_file": each.file.path,
    }
