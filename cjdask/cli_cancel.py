"""``cjdask cancel``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cjdask.cli_options import elsewhere_option
from cjdask.cli_runs import (
    Selected,
    folder_of,
    folder_option,
    json_option,
    runs_argument,
    select,
)
from cjdask.cli_table import as_json as run_as_json
from cjdask.cli_table import print_json
from cjdask.run import AsyncResult, cancel_all

__all__ = ["cancel"]


@click.command(short_help="Cancel runs, or tasks of arrays.")
@runs_argument(required=False)
@click.option("--all", "everything", is_flag=True, help="All runs of the cache folder.")
@elsewhere_option
@folder_option
@json_option
def cancel(
    runs: Sequence[str],
    everything: bool,
    backend: str | None,
    cache_folder: str | None,
    as_json: bool,
) -> None:
    """Ask the scheduler to end runs, with one command for any number of them.

    What has ended stays as it is. The command returns when the scheduler has taken the
    request, which may be before the jobs are gone; 'cjdask wait' waits for that.
    """
    if bool(runs) == everything:
        raise click.UsageError("name the runs to cancel, or give --all for all of the cache folder")
    selected = select(runs, folder_of(cache_folder), backend)
    going = [each for each in selected if not each.info.status.ended]
    whole = {each.run: None for each in going if each.task is None}
    tasks: dict[AsyncResult, list[int]] = {}
    for each in going:
        if each.task is not None and each.run not in whole:
            tasks.setdefault(each.run, []).append(each.task)
    cancel_all([*whole, *tasks], tasks)
    for each in selected:
        _tell(each, each in going, as_json)


def _tell(selected: Selected, asked: bool, as_json: bool) -> None:
    if as_json:
        print_json(**run_as_json(selected), cancel_requested=asked)
    elif asked:
        click.echo(f"{selected.label}  {selected.name}  to be cancelled")
    else:
        what = selected.info.status.name
        click.echo(f"{selected.label}  {selected.name}  had ended: {what}")
