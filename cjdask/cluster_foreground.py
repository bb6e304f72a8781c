"""A Dask cluster that runs in the foreground of a terminal, or of a script, until it is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from distributed.core import Status as ServerStatus
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cjdask.cluster import ClusterjobCluster
from cjdask.cluster_table import JobRow
from cjdask.errors import ClusterjobError
from cjdask.run_progress import STYLES, counted

__all__ = ["connecting", "keep_up", "picture"]

INTERVAL = 0.5
"""Seconds between two looks at the jobs."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def keep_up(
    options: Mapping[str, Any],
    jobs: int,
    adapt: tuple[int, int | None] | None,
    connect_file: str | None,
) -> None:
    """Start a cluster and show it until a key or a signal ends it, or its Dask scheduler does.

    Raises:
        SubmitError, ResourcesNotSupportedError: as `ClusterjobCluster` and its ``scale``.
    """
    console, over = Console(), asyncio.Event()
    _catch_signals(over)
    async with ClusterjobCluster(asynchronous=True, **options) as cluster:
        _catch_signals(over)  # again: the cluster has handlers of its own, which only cancel
        path = Path(connect_file or f"{cluster.pools['default'].prefix}.yaml").absolute()
        with connecting(cluster, path):
            click.echo(f"address    {cluster.scheduler_address}")
            click.echo(f"dashboard  {cluster.dashboard_link}")
            click.echo(f"connect    DASK_CONFIG={path} python SCRIPT, with Client() in it")
            if adapt is None:
                await cluster.scale(jobs=jobs)
            else:
                cluster.adapt(minimum_jobs=adapt[0], maximum_jobs=adapt[1])
            show = _Screen if console.is_terminal else _Lines
            await show(cluster, console).run(over)
        jobs = len(cluster.worker_spec)
        click.echo("ending 1 job ..." if jobs == 1 else f"ending {jobs} jobs ...")
    click.echo("the cluster is closed")


def _catch_signals(over: asyncio.Event) -> None:
    """Set an event when a signal asks for the end, unless the signal is ignored.

    They stay caught, so that a second one does not disturb the end.
    """
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, over.set)


@contextmanager
def connecting(cluster: ClusterjobCluster, path: Path) -> Iterator[None]:
    """Have a file, for you only, with which ``Client()`` finds the cluster and may connect."""
    config: dict[str, Any] = {"scheduler-address": cluster.scheduler_address}
    security = cluster.security
    tls = security.get_tls_config_for_role("client") if security is not None else {}
    if tls.get("ca_file"):
        given = {
            key: value if "\n" in value else os.path.abspath(value)
            for key, value in tls.items()
            if value is not None and key != "ciphers"
        }
        ca_file = given.pop("ca_file")
        encrypted = {"ca-file": ca_file, "client": given}
        config["distributed"] = {"comm": {"require-encryption": True, "tls": encrypted}}
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        yaml.safe_dump(config, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


class _View(ABC):
    """What shows a cluster until it is over."""

    def __init__(self, cluster: ClusterjobCluster, console: Console) -> None:
        self.cluster = cluster
        self.console = console

    async def run(self, over: asyncio.Event) -> None:
        """Look at the cluster from time to time until the event is set."""
        scheduler: Any = self.cluster.scheduler
        while not over.is_set() and scheduler.status is ServerStatus.running:
            self.look()
            try:
                await asyncio.wait_for(over.wait(), INTERVAL)
            except asyncio.TimeoutError:
                continue

    @abstractmethod
    def look(self) -> None:
        """Show how the cluster is now."""


class _Lines(_View):
    """Prints a line for each job that changes, for a file or a pipe."""

    def __init__(self, cluster: ClusterjobCluster, console: Console) -> None:
        super().__init__(cluster, console)
        self._shown: dict[str, tuple[str, ...]] = {}

    def look(self) -> None:
        for name, row in self.cluster.jobs.items():
            pool, _, job_id, status, _, nodes, workers, ended, log = (row.pool, *row.cells())
            cells = (name, pool, job_id, status, nodes, workers, ended, log if ended else "")
            if self._shown.get(name) != cells:
                self._shown[name] = cells
                click.echo(time.strftime("%H:%M:%S ") + "  ".join(filter(None, cells)))


class _Screen(_View):
    """Draws the cluster in a terminal and listens to keys."""

    async def run(self, over: asyncio.Event) -> None:
        self._over = over
        self._scaling: asyncio.Future[Any] | None = None
        self._said = ""
        self._live = Live(console=self.console, auto_refresh=False)
        with self._live, _keys(self._key) as listens:
            self._hint = "+ one job more   - one job less   q end" if listens else "Ctrl-C ends it"
            await super().run(over)
            self._said, self._hint = "", ""
            self.look()

    def look(self) -> None:
        jobs = list(self.cluster.jobs.values())
        foot = [self._state(), *filter(None, (self._said, self._hint))]
        width, height = self.console.size
        self._live.update(picture(jobs, foot, width, height), refresh=True)

    def _state(self) -> str:
        pool = self.cluster.pools["default"]
        workers, planned = len(self.cluster.scheduler_info["workers"]), len(self.cluster.plan)
        aim = "adapts to the load" if pool.keeper.target is None else f"{pool.keeper.target} wanted"
        return f"workers: {workers} of {planned}   jobs: {aim}"

    def _key(self, key: str) -> None:
        if key in ("q", "\x04"):
            self._over.set()
        elif key in "+-" and (self._scaling is None or self._scaling.done()):
            self._said = ""
            self._scaling = asyncio.ensure_future(self._scale(1 if key == "+" else -1))

    async def _scale(self, by: int) -> None:
        jobs = max(0, len(self.cluster.pools["default"].planned()) + by)
        try:
            await self.cluster.scale(jobs=jobs)
        except ClusterjobError as error:
            self._said = str(error)


@contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[bool]:
    """Call a function with each key that is pressed; the value tells whether there are keys."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield False
        return
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def pressed() -> None:
        for key in os.read(stdin, 64).decode(errors="ignore"):
            press(key)

    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed)
    try:
        yield True
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def picture(jobs: Sequence[JobRow], foot: Sequence[str], width: int, height: int) -> RenderableType:
    """Draw jobs for a terminal of that size: living ones before those that have ended."""
    room = max(1, height - len(foot) - 4)  # two empty lines, names of columns, the cursor
    ordered = [row for row in jobs if not row.status.ended]
    ordered += [row for row in reversed(jobs) if row.status.ended]
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    parts: list[RenderableType] = [Text(), _table(shown, width)]
    if hidden := Counter(row.status for row in ordered[len(shown) :]):
        parts.append(Text(f"... and {hidden.total()} more: {counted(hidden)}", "dim"))
    lines = (Text(line, no_wrap=True, overflow="ellipsis") for line in foot)
    return Group(*parts, Text(), *lines)


_GAP = 2
_DISPENSABLE = ("nodes", "queued", "exit", "pool")
_LEAST_NAME = 8


def _table(rows: Sequence[JobRow], width: int) -> Table:
    """Make the table, without the columns for which there is no room."""
    columns = {"pool": [row.pool for row in rows]}
    names = ("name", "id", "status", "queued", "nodes", "workers", "exit")
    cells = [row.cells() for row in rows]
    columns |= {name: [cell[index] for cell in cells] for index, name in enumerate(names)}
    if len(set(columns["pool"])) <= 1:
        del columns["pool"]
    widths = {name: max(map(len, [name, *texts])) for name, texts in columns.items()}

    def left_for_name() -> int:
        others = sum(size + _GAP for name, size in widths.items() if name != "name")
        return width - others

    for name in _DISPENSABLE:
        if left_for_name() < min(widths["name"], 2 * _LEAST_NAME) and name in widths:
            del widths[name]
    most = max(_LEAST_NAME, left_for_name())
    # The end of a name is what differs.
    columns["name"] = [t if len(t) <= most else "…" + t[1 - most :] for t in columns["name"]]
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for name in widths:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for index, row in enumerate(rows):
        styles = {"status": STYLES[row.status]}
        table.add_row(*(Text(columns[name][index], styles.get(name, "")) for name in widths))
    return table
