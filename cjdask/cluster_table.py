"""The table of a cluster's jobs, as values, text and HTML."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cjdask.cluster_options import DEFAULT
from cjdask.resources import clock
from cjdask.status import Reason, Status

__all__ = ["JobRow", "JobTable"]

_COLUMNS = ("name", "id", "status", "queued", "nodes", "workers", "exit", "log")

# Styles are with the cells, since notebooks on the web drop style sheets.
_CELL = 'style="text-align:left;white-space:nowrap;padding:1px 1em 1px 0"'
_COLOURS = {
    Status.PENDING: "#d9a400",
    Status.RUNNING: "#2a7fd4",
    Status.COMPLETED: "#3a9d3a",
    Status.CANCELLED: "#9a5fb5",
    Status.FAILED: "#d43a3a",
}


@dataclass(frozen=True)
class JobRow:
    """What is known of one job of a cluster.

    ``submitted`` is in seconds since 1970. ``workers`` of ``workers_planned`` have arrived and
    not left. ``queue_time`` is the seconds from the submission to the start, or until now for a
    job that waits; ``None`` where the scheduler did not tell. ``stdout`` and ``stderr`` are
    files on the scheduler's machine.
    """

    name: str
    job_id: str
    status: Status
    reason: Reason = Reason.NONE
    message: str = ""
    queue_time: float | None = None
    nodes: tuple[str, ...] = ()
    workers: int = 0
    workers_planned: int = 0
    exit_code: int | None = None
    signal: int | None = None
    stdout: str | None = None
    stderr: str | None = None
    submitted: float = 0.0
    pool: str = DEFAULT

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, one cell for each column."""
        ended = f"signal {self.signal}" if self.signal else self.exit_code
        return (
            self.name,
            self.job_id,
            self.status.name + (f" ({self.reason})" if self.reason else ""),
            "" if self.queue_time is None else clock(int(self.queue_time)),
            ",".join(self.nodes),
            f"{self.workers}/{self.workers_planned}",
            "" if ended is None else str(ended),
            self._log(),
        )

    def _log(self) -> str:
        """Return the log file, below the present folder without the name of this."""
        return (self.stderr or self.stdout or "").removeprefix(os.path.join(os.getcwd(), ""))


class JobTable(Mapping[str, JobRow]):
    """The jobs of a cluster by name, the oldest first, as they were when it was made.

    >>> print(JobTable([JobRow("w-0", "17", Status.RUNNING, workers=2, workers_planned=4)]))
    name  id  status   queued  nodes  workers  exit  log
    w-0   17  RUNNING                 2/4
    """

    def __init__(self, rows: Iterable[JobRow] = ()) -> None:
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> JobRow:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def summary(self) -> str:
        """Count the jobs by their status.

        >>> JobTable([JobRow("a", "1", Status.PENDING), JobRow("b", "2", Status.FAILED)]).summary()
        '1 pending, 1 failed'
        """
        counts = Counter(row.status for row in self._rows.values())
        return ", ".join(f"{counts[status]} {status.name.lower()}" for status in sorted(counts))

    def _lines(self) -> list[tuple[str, ...]]:
        """Return head and rows; there is a column for the pool where there are several."""
        rows = self._rows.values()
        if all(row.pool == DEFAULT for row in rows):
            return [_COLUMNS, *(row.cells() for row in rows)]
        return [("pool", *_COLUMNS), *((row.pool, *row.cells()) for row in rows)]

    def __repr__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        names, *lines = self._lines()
        status, log = names.index("status"), names.index("log")
        head = "".join(f"<th {_CELL}>{name}</th>" for name in names)
        body = []
        for row, line in zip(self._rows.values(), lines, strict=True):
            cells = [html.escape(cell) for cell in line]
            cells[status] = f'<span style="color:{_COLOURS[row.status]}">●</span> {cells[status]}'
            titles = {status: row.message, log: row.stderr or row.stdout or ""}
            shown = (
                f'<td {_CELL} title="{html.escape(titles[at])}">{cell}</td>'
                if titles.get(at)
                else f"<td {_CELL}>{cell}</td>"
                for at, cell in enumerate(cells)
            )
            body.append(f"<tr>{''.join(shown)}</tr>")
        return (
            '<div class="cjdask-jobs" style="overflow:auto;max-height:30em">'
            f'<table style="table-layout:auto;margin:0"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
