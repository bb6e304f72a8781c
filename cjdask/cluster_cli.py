"""The command ``dask clusterjob``.

Every ``dask`` command loads this module, so that it loads nothing of a cluster itself.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import click

import cjdask

__all__ = ["clusterjob"]


def _adapt(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    """Read two numbers of jobs, ``(least, most)``; no second one is no limit."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d*)", text)
    if match is None:
        raise click.BadParameter(f"{text!r}: give two numbers of jobs, such as 0:10, or 0:")
    return int(match[1]), int(match[2]) if match[2] else None


def _settings(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    """Read options of the form KEY=VALUE, the value being YAML, a time as it stands."""
    import yaml

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r}: give KEY=VALUE, such as queue=long")
        key = key.replace("-", "_")
        try:
            # YAML reads 01:30:00 as a number.
            found[key] = value if key in ("time", "walltime") else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise click.BadParameter(f"{text!r}: the value is no YAML: {error}") from None
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--backend", metavar="NAME", help="Scheduler; without it that of this machine.")
@click.option(
    "--jobs", type=click.IntRange(min=0), metavar="N", help="Jobs to start, one if not given."
)
@click.option(
    "--adapt", callback=_adapt, metavar="MIN:MAX", help="Adapt to the load, by jobs, instead."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_settings,
    metavar="KEY=VALUE",
    help="An option of the cluster, such as mem=4GiB; goes before the configuration. May be "
    "given several times.",
)
@click.option(
    "--connect-file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where to write what clients need to connect; it is removed at the end.",
)
@click.version_option(cjdask.__version__, prog_name="cjdask")
def clusterjob(
    backend: str | None,
    jobs: int | None,
    adapt: tuple[int, int | None] | None,
    settings: dict[str, Any],
    connect_file: str | None,
) -> None:
    """Start a Dask cluster of batch jobs, as configured, and keep it until it is ended.

    It runs in the foreground and shows its address and its jobs. In a terminal + and - scale
    by one job, and q ends the cluster; so do Ctrl-C, SIGTERM and SIGHUP. Clients connect with

        DASK_CONFIG=FILE python SCRIPT

    where the script has Client() without an address; FILE is shown.
    """
    if adapt is not None and jobs is not None:
        raise click.UsageError("--jobs and --adapt exclude each other; give one of them")
    from cjdask.cluster_foreground import keep_up

    if backend is not None:
        settings = {**settings, "backend": backend}
    try:
        asyncio.run(keep_up(settings, 1 if jobs is None else jobs, adapt, connect_file))
    except (cjdask.ClusterjobError, ValueError, TypeError) as error:
        raise click.ClickException(str(error)) from error
