"""``cjdask doctor``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

import click

from cjdask.backends import detect_backend
from cjdask.cli_checks import Check, Examination
from cjdask.cli_group import Failure
from cjdask.cli_options import backend_option, pairs, resource
from cjdask.cli_runs import json_option
from cjdask.cli_table import print_json
from cjdask.jobscript_machine import users_settings
from cjdask.jobscript_settings import Settings

__all__ = ["doctor"]

_SHAPE = ("jobname", "nodes", "ppn", "threads", "array", "depends", "stdout", "stderr", "exclusive")
"""Resources of the user's settings that the trial jobs do without."""
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(short_help="Check what works on this machine; print what to set.")
@backend_option
@click.option(
    *("-r", "--resource", "asked"),
    callback=pairs(resource),
    metavar="KEY=VALUE",
    multiple=True,
    help="What the trial jobs ask for: queue=debug, account=...",
)
@click.option(
    "--workdir",
    default=".",
    metavar="DIR",
    show_default=True,
    type=click.Path(exists=True, file_okay=False),
    help="A folder that nodes can write to; the jobs run in one below it.",
)
@click.option(
    "--patience",
    default=300.0,
    metavar="SECONDS",
    show_default=True,
    type=click.FloatRange(min=0),
    help="How long to wait for the trial jobs.",
)
@json_option
def doctor(
    backend: str | None, asked: Mapping[str, Any], workdir: str, patience: float, as_json: bool
) -> None:
    """Check the scheduler of this machine, with three small trial jobs.

    One starts processes on two nodes, one is an array, one fails on purpose. At the end
    stands what to write into the user's settings. The exit code is 1 if a check failed.
    """
    users = users_settings()
    name = backend or users.attributes.get("backend") or detect_backend()
    resources = {key: value for key, value in users.resources.items() if key not in _SHAPE}
    resources |= asked
    say = (lambda text: None) if as_json else _say
    states = []
    look = Examination(name, resources, workdir, patience, say)
    with closing(look.checks()) as checks:
        for check in checks:
            states.append(check.state)
            _show(check, as_json)
    if failed := states.count("fail"):
        raise Failure(f"{failed} of {len(states)} checks failed")
    attributes = {"backend": name}
    if workdir != ".":
        attributes["rootdir"] = os.path.abspath(workdir)
    _show_settings(users, attributes, resources, as_json)


def _say(text: str) -> None:
    click.echo(f"      {text}", err=True)


def _show(check: Check, as_json: bool) -> None:
    if as_json:
        print_json(**asdict(check))
        return
    first, *more = check.text.splitlines()
    state = click.style(f"{check.state:<4}", fg=_COLOURS[check.state])
    click.echo(f"{state}  {check.about:<10}  {first}")
    for line in [*more, *([f"-> {check.advice}"] if check.advice else [])]:
        click.echo(f"{'':<18}{line}")


def _show_settings(
    users: Settings, attributes: Mapping[str, Any], resources: Mapping[str, Any], as_json: bool
) -> None:
    """Print what to write into the user's settings."""
    if as_json:
        print_json(settings=users.path, attributes=attributes, resources=resources)
        return
    if (
        attributes.items() <= users.attributes.items()
        and resources.items() <= users.resources.items()
    ):
        click.echo(f"\nYour settings in {users.path} do.")
        return
    click.echo(f"\nTo have this for all jobs, write into {users.path}:\n")
    for section, values in (("Attributes", attributes), ("Resources", resources)):
        if values:
            click.echo(f"[{section}]")
            for key, value in values.items():
                click.echo(f"{key} = {value}")
