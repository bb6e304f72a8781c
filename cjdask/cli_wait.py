"""``cjdask wait``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import click

from cjdask.cli_group import Exit, Failure, runs_go_on
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
from cjdask.cli_table import as_json as run_as_json
from cjdask.cli_table import described, print_json
from cjdask.run_progress import progress_line
from cjdask.status import Status

__all__ = ["wait"]


@click.command(short_help="Wait for runs; the exit code tells how they ended.")
@runs_argument(required=False)
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this."
)
@elsewhere_option
@folder_option
@json_option
def wait(
    runs: Sequence[str],
    timeout: float | None,
    backend: str | None,
    cache_folder: str | None,
    as_json: bool,
) -> None:
    """Wait until runs have ended, all of the cache folder unless some are named.

    A line is printed for each when it ends. The exit code is 0 if all are COMPLETED, 3 if one
    is FAILED, else 4 if one is CANCELLED, and 5 if the time was up before.
    """
    selected = select(runs, folder_of(cache_folder), backend)
    with runs_go_on():
        failures = _wait(selected, timeout, as_json)
    if failures:
        raise failures[0]
    if code := exit_code(selected):
        raise SystemExit(code)


def _wait(
    selected: Sequence[Selected], timeout: float | None, as_json: bool
) -> Sequence[Exception]:
    """Wait, and tell of each end; return the failures of epilogues."""
    deadline = None if timeout is None else time.monotonic() + timeout
    left = len(selected)

    def counts() -> Counter[Status]:
        return Counter(each.info.status for each in selected)

    with Ends(selected) as ends, progress_line(counts, show=left > 0 and not as_json):
        while left:
            pause = None if deadline is None else max(0.0, deadline - time.monotonic())
            each = ends.next(pause)
            if each is None:
                why = f"{left} of {len(selected)} runs have not ended after {timeout:g} s"
                raise Failure(why, Exit.NOT_OVER)
            left -= 1
            if as_json:
                print_json(**run_as_json(each))
            else:
                # not click.echo, which would write across the progress line
                print(f"{each.label}  {each.name}  {described(each)}", flush=True)
        return ends.failures
