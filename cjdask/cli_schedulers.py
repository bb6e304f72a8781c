"""``cjdask schedulers``."""

from __future__ import annotations

import click

from cjdask.backends import survey
from cjdask.cli_runs import json_option
from cjdask.cli_table import aligned, print_json

__all__ = ["schedulers"]


@click.command(short_help="Show which schedulers there are here, and which is used.")
@json_option
def schedulers(as_json: bool) -> None:
    """Show all known schedulers: which of their commands are on PATH, and which one is used.

    A scheduler is there if all its commands are. Where several share command names the one
    that knows more of the commands wins; where there is none, the embedded one is used.
    'cjdask doctor' tells whether it works.
    """
    found = survey()
    if as_json:
        for each in found:
            print_json(
                name=each.name,
                found=each.found,
                used=each.used,
                why=each.why,
                commands=each.paths,
            )
        return
    rows = [
        {
            "NAME": each.name,
            "USED": "yes" if each.used else "",
            "FOUND": "yes" if each.found else "no",
            "WHY": each.why,
        }
        for each in found
    ]
    click.echo(aligned(rows))
