"""A line that shows how far many runs or calls are, where a person can see it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cjdask.resources import clock
from cjdask.status import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["STYLES", "counted", "drawn", "progress_line", "redrawn"]

STYLES = {
    Status.PENDING: "yellow",
    Status.RUNNING: "cyan",
    Status.COMPLETED: "green",
    Status.CANCELLED: "magenta",
    Status.FAILED: "bold red",
}
"""The colours of the statuses in a terminal."""

_INTERVAL = 0.5
_SMALLEST_BAR = 10

_one_at_a_time = threading.Lock()


def counted(counts: Mapping[Status, int]) -> str:
    """Say how many there are of each status.

    >>> counted({Status.RUNNING: 2, Status.FAILED: 1, Status.PENDING: 0})
    '1 failed, 2 running'
    """
    return ", ".join(
        f"{counts[status]} {status.name.lower()}"
        for status in sorted(counts, reverse=True)
        if counts[status]
    )


@contextmanager
def progress_line(
    counts: Callable[[], Mapping[Status, int]], what: str = "runs", show: bool = True
) -> Iterator[None]:
    """Show how many of ``what`` have which status, as long as the block lasts.

    It is shown where standard output is a terminal or a notebook, and nowhere else; inside
    of a block that is shown another one is not. ``counts`` is called twice a second from
    another thread: it must be quick and ask nobody.
    """
    place = _place() if show else None
    with ExitStack() as stack:
        if place is not None and _one_at_a_time.acquire(blocking=False):
            stack.callback(_one_at_a_time.release)
            stack.enter_context(place(_line(counts, what)))
        yield


def _place() -> Callable[[Any], Any] | None:
    """Return what shows a line here: a terminal, a notebook, or nothing."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if get_ipython is not None and hasattr(get_ipython(), "kernel"):
        return _in_notebook
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return _in_terminal
    return None


def _line(counts: Callable[[], Mapping[Status, int]], what: str) -> Any:
    """Make the line, which looks anew at each time that it is drawn."""
    from rich.console import Console, ConsoleOptions
    from rich.jupyter import JupyterMixin

    begun = time.monotonic()

    class Line(JupyterMixin):
        def __rich_console__(
            self, console: Console, options: ConsoleOptions
        ) -> Iterator[RenderableType]:
            yield drawn(counts(), what, time.monotonic() - begun, options.max_width)

    return Line()


def drawn(counts: Mapping[Status, int], what: str, seconds: float, width: int) -> RenderableType:
    """Draw the line: a bar if there is room for it, and figures."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total = sum(counts.values())
    ended = sum(count for status, count in counts.items() if status.ended)
    details = Text(", ").join(
        Text(f"{counts[status]} {status.name.lower()}", STYLES[status])
        for status in sorted(counts, reverse=True)
        if counts[status]
    )
    texts = [Text(f"{ended}/{total} {what}", "bold"), details, Text(clock(int(seconds)))]
    room = width - sum(text.cell_len + 2 for text in texts)
    grid = Table.grid(padding=(0, 2, 0, 0))
    if room >= _SMALLEST_BAR:
        bar = ProgressBar(max(total, 1), ended, width=min(room, 40))
        grid.add_row(bar, *texts)
    else:
        line = Text("  ").join(texts)
        line.truncate(width, overflow="ellipsis")
        return line
    return grid


@contextmanager
def redrawn(draw: Callable[[int, int], RenderableType], interval: float) -> Iterator[None]:
    """Draw in a terminal, over and over in the same place, as long as the block lasts.

    ``draw`` is called with width and height of the terminal, every ``interval`` seconds from
    another thread.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    live = Live(
        get_renderable=lambda: draw(*console.size),
        console=console,
        refresh_per_second=1 / interval,
    )
    try:  # not 'with', which leaves the cursor hidden if a signal comes while it starts
        live.start(refresh=True)
        yield
    finally:
        live.stop()


@contextmanager
def _in_terminal(line: RenderableType) -> Iterator[None]:
    with redrawn(lambda width, height: line, _INTERVAL):
        yield


@contextmanager
def _in_notebook(line: Any) -> Iterator[None]:
    """Show it below the cell, without widgets, which may not be installed."""
    shown = import_module("IPython.display").display(line, display_id=True)
    over = threading.Event()

    def update() -> None:
        while not over.wait(_INTERVAL):
            shown.update(line)

    thread = threading.Thread(target=update, name="cjdask-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        shown.update(line)
