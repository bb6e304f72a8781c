"""The command ``cjdask``."""

from __future__ import annotations

import click

import cjdask
from cjdask.cli_cancel import cancel
from cjdask.cli_doctor import doctor
from cjdask.cli_group import Commands
from cjdask.cli_logs import logs
from cjdask.cli_record import record
from cjdask.cli_schedulers import schedulers
from cjdask.cli_status import list_, status
from cjdask.cli_submit import render, submit
from cjdask.cli_wait import wait

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cjdask.__version__, prog_name="cjdask")
def main() -> None:
    """Describe a batch job once and run it on any HPC scheduler.

    RUN is the id of a job, the cache id of its run, or a file that has the run; a task of
    an array is RUN_INDEX. Runs are looked for in the cache folder.
    """


for command in (cancel, doctor, list_, logs, record, render, schedulers, status, submit, wait):
    main.add_command(command)
