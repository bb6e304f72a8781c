"""Runs as JSON, as lines for a pipe, and as a table that fits a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cjdask.cli_runs import Selected
from cjdask.errors import ClusterjobError
from cjdask.resources import clock
from cjdask.run_progress import STYLES, counted
from cjdask.status import JobInfo, Status

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["Row", "aligned", "as_json", "dashboard", "described", "fitted", "print_json"]


def print_json(**values: Any) -> None:
    """Print one object on a line of its own, at once, also into a pipe."""
    click.echo(json.dumps(values))


def as_json(selected: Selected) -> dict[str, Any]:
    """Return what is known of a run, or of a task of an array."""
    run, info, counts = selected.run, selected.info, selected.counts
    row: dict[str, Any] = {
        "job_id": run.job_id,
        "task": selected.task,
        "cache_id": run.cache_id,
        "jobname": run.jobname,
        "backend": run.backend,
        "status": info.status.name,
        "reason": str(info.reason),
        "message": info.message,
        "exit_code": info.exit_code if info.status.ended else None,
        "signal": info.signal,
        "native": info.native,
        "nodes": list(info.nodes),
        "submit_time": info.submit_time or run.submitted,
        "start_time": info.start_time,
        "end_time": info.end_time,
        "cache_file": run.cache_file,
    }
    if counts is None:
        row |= {stream: _log_path(selected, stream) for stream in ("stdout", "stderr")}
    else:
        row["tasks"] = {status.name: count for status, count in counts.items()}
    return row


def described(selected: Selected) -> str:
    """Say in one line how a run is: status, reason, exit code, of an array how many tasks."""
    counts = selected.counts
    return selected.info.describe() + (f": {counted(counts)}" if counts else "")


def _log_path(selected: Selected, stream: str) -> str | None:
    try:
        return selected.run.log_path(stream, selected.task)
    except (ClusterjobError, ValueError):
        return None  # it is not known from here


@dataclass(frozen=True)
class Row:
    """A line of the table of runs."""

    job: str
    name: str
    info: JobInfo
    submitted: float | None
    counts: Mapping[Status, int] | None = None
    """How many tasks of an array have which status."""
    unlisted: bool = False
    """Whether it is in the queue no more, though its end is not known."""

    @classmethod
    def of(cls, selected: Selected) -> Row:
        """Make the row of a run from what is known of it."""
        info = selected.info
        return cls(
            selected.label,
            selected.name,
            info,
            info.submit_time or selected.run.submitted,
            selected.counts,
            selected.run.unlisted,
        )

    def seconds(self, now: float) -> int | None:
        """Return how long it ran, has run, or has waited, as far as it is known."""
        waits = self.info.status is Status.PENDING
        begin = self.submitted if waits else self.info.start_time
        end = self.info.end_time if self.info.status.ended else now
        return None if begin is None or end is None else max(0, int(end - begin))

    def cells(self, now: float) -> dict[str, str]:
        """Return the text of each column; ``now`` is in seconds since the epoch."""
        seconds = self.seconds(now)
        return {
            "JOB": self.job,
            "NAME": self.name,
            "STATUS": self.info.status.name,
            "TIME": "" if seconds is None else clock(seconds),
            "NODES": ",".join(self.info.nodes),
            "DETAILS": self._details(),
        }

    def _details(self) -> str:
        parts = [counted(self.counts)] if self.counts else []
        parts += ["left the queue, its end is not known yet"] if self.unlisted else []
        described = self.info.describe()[len(self.info.status.name) + 2 : -1]
        if described and self.info.status is not Status.COMPLETED:
            parts.append(described)
        return "; ".join(" ".join(part.split()) for part in parts)


def aligned(lines: Sequence[Mapping[str, str]]) -> str:
    """Write lines below the names of their columns, whole, as they go into a pipe.

    >>> print(aligned([{"JOB": "17", "STATUS": "RUNNING"}]))
    JOB  STATUS
    17   RUNNING
    """
    table = [list(lines[0]), *(list(line.values()) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


_LEAST_NAME, _LEAST_DETAILS, _MOST_NODES = 8, 12, 18
_GAP = 2


def _widths(lines: Sequence[Mapping[str, str]], width: int) -> dict[str, int]:
    """Choose the columns that have room, and how wide each is.

    >>> line = {"JOB": "17", "NAME": "a" * 30, "STATUS": "RUNNING", "TIME": "00:00:01"}
    >>> line |= {"NODES": "n1", "DETAILS": "reason " * 9}
    >>> _widths([line], 40)
    {'JOB': 3, 'NAME': 16, 'STATUS': 7, 'TIME': 8}
    >>> sum(_widths([line], 100).values()) + 5 * _GAP
    100
    """
    natural = {key: max([len(key), *(len(line[key]) for line in lines)]) for key in lines[0]}
    natural["NODES"] = min(natural["NODES"], _MOST_NODES)
    least = {"NAME": _LEAST_NAME, "DETAILS": _LEAST_DETAILS}
    widths = {key: min(natural[key], least.get(key, natural[key])) for key in natural}
    for key in ("NODES", "DETAILS", "TIME"):
        if sum(widths.values()) + _GAP * (len(widths) - 1) > width:
            del widths[key]
    left = max(0, width - sum(widths.values()) - _GAP * (len(widths) - 1))
    for key, share in (("NAME", 2 / 3 if "DETAILS" in widths else 1), ("DETAILS", 1)):
        if key in widths:
            more = min(int(left * share), natural[key] - widths[key])
            widths[key] += more
            left -= more
    return widths


def fitted(rows: Sequence[Row], now: float, width: int) -> Table:
    """Make the table of runs for a terminal of that width: one line for each."""
    from rich.table import Table
    from rich.text import Text

    lines = [row.cells(now) for row in rows]
    widths = _widths(lines, width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for key, size in widths.items():
        table.add_column(key, width=size, no_wrap=True, overflow="ellipsis")
    for row, line in zip(rows, lines, strict=True):
        style = STYLES[row.info.status]
        table.add_row(*(Text(line[key], style if key == "STATUS" else "") for key in widths))
    return table


_FIRST = (Status.FAILED, Status.CANCELLED, Status.RUNNING, Status.PENDING, Status.COMPLETED)


def dashboard(
    rows: Sequence[Row], now: float, width: int, height: int, foot: RenderableType
) -> RenderableType:
    """Make what fits a terminal of that size: what matters most first, and ``foot`` below."""
    from rich.console import Group
    from rich.text import Text

    ordered = sorted(rows, key=lambda row: _FIRST.index(row.info.status))
    room = max(1, height - 3)  # the heads of the columns, the foot, and the line of the cursor
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    parts: list[RenderableType] = [fitted(shown, now, width)]
    if hidden := Counter(row.info.status for row in ordered[len(shown) :]):
        text = Text(f"... and {hidden.total()} more: {counted(hidden)}", "dim")
        text.truncate(width, overflow="ellipsis")
        parts.append(text)
    return Group(*parts, foot)
