"""``cjdask render`` and ``cjdask submit``."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from cjdask.backends import BatchBackend
from cjdask.cli_group import Exit, Failure
from cjdask.cli_options import Asked, job_options, script_argument
from cjdask.cli_runs import Selected, folder_of, folder_option, json_option, recorded
from cjdask.cli_table import as_json as run_as_json
from cjdask.cli_table import print_json
from cjdask.errors import ProtocolError, SchedulerError
from cjdask.jobscript import JobScript
from cjdask.journal import JournalFile, journal_file
from cjdask.resources import Resources
from cjdask.run_record import RECORDS

__all__ = ["render", "submit"]


def _script(
    given: dict[str, Any], path: str, depends: Sequence[str], cache_folder: str | None
) -> tuple[JobScript, str]:
    """Make the job script that the options describe; return it with its cache folder."""
    script = Asked.of(given).script(path)
    folder = folder_of(cache_folder or script.cache_folder)
    if depends:
        script.resources["depends"] = _job_ids(depends, folder, script.backend)
    if script._filename is None:
        # Not beside the user's script, which may have the same name.
        script.filename = os.path.join(RECORDS, script.filename)
    return script, folder


def _job_ids(names: Sequence[str], folder: str, backend: str) -> list[str]:
    """Return the ids of the jobs of these runs; what is no run of the folder is an id itself."""
    known = {
        name: each.entry
        for each in recorded(folder)[0]
        for name in (each.entry.job_id, each.entry.cache_id)
        if name is not None and each.entry.job_id is not None
    }
    ids = []
    for name in names:
        entry = known.get(name)
        if entry is not None and entry.backend != backend:
            raise Failure(
                f"--depends {name}: that run is a job of {entry.backend}, which {backend} does "
                "not know",
                Exit.USAGE,
            )
        ids.append(str(entry.job_id) if entry is not None else name)
    return ids


depends_option = click.option(
    *("--depends", "depends"),
    multiple=True,
    metavar="RUN",
    help="Start after this run ended well.",
)


@click.command(short_help="Print the job script.")
@script_argument
@job_options
@depends_option
@folder_option
@json_option
def render(
    script: str, depends: Sequence[str], cache_folder: str | None, as_json: bool, **given: Any
) -> None:
    """Print SCRIPT as it would be submitted: with the headers of the scheduler.

    Nothing is submitted, and the scheduler need not be there. SCRIPT is a file, or - for
    standard input. Where submitting needs more files, each is printed under its name.
    """
    job, _ = _script(given, script, depends, cache_folder)
    name = os.path.basename(job.filename)
    renderer = job._scheduler().renderer
    with _placeholders():
        files = {name: f"{job}\n"}
    if isinstance(renderer, BatchBackend):
        files |= renderer.submission_files(Resources.of(job.resources), name)
    if as_json:
        print_json(backend=job.backend, script=name, files=files)
        return
    for path, text in files.items():
        click.echo((f"==> {path} <==\n" if len(files) > 1 else "") + text, nl=False)


@contextmanager
def _placeholders() -> Iterator[None]:
    """Say how a placeholder of a script gets its value."""
    try:
        yield
    except KeyError as error:
        raise Failure(f"{error.args[0]}, --set NAME=VALUE to give a value", Exit.USAGE) from None


@click.command(short_help="Submit a job script.")
@script_argument
@job_options
@depends_option
@folder_option
@click.option(
    "--cache-id",
    metavar="ID",
    help="Submit once under this name: if a run of it is recorded that has not FAILED or been "
    "CANCELLED, its job is the answer.",
)
@click.option("--force", is_flag=True, help="With --cache-id: submit also if there is a run.")
@click.option("--no-retry", is_flag=True, help="With --cache-id: take also a run that FAILED.")
@json_option
def submit(
    script: str,
    depends: Sequence[str],
    cache_folder: str | None,
    cache_id: str | None,
    force: bool,
    no_retry: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Submit SCRIPT, a file or - for standard input, and print the id of the job.

    The run is recorded in the cache folder, where the other commands find it.
    """
    if cache_id is None and (force or no_retry):
        raise click.UsageError("--force and --no-retry need a --cache-id")
    job, folder = _script(given, script, depends, cache_folder)
    name = cache_id or f"{job._stem()}-{secrets.token_hex(12)}"
    try:
        file = journal_file(folder, job.cache_prefix, name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    before = None if force else file.read()
    with _placeholders(), _unfinished(file, name):
        run = job.submit(cache_id=name, force=force, retry=not no_retry, cache_folder=folder)
    entry = file.read()
    assert entry is not None
    there_already = before is not None and before.tag == entry.tag and before.job_id is not None
    if as_json:
        print_json(**run_as_json(Selected(run)), submitted=not there_already)
        return
    click.echo(run.job_id)
    if there_already:
        what = f"{run.backend} has the job already: it is {run.known().status.name}"
        click.echo(f"{what}; --force submits again", err=True)
    elif sys.stderr.isatty():
        click.echo(f"submitted to {run.backend}; cjdask logs -f {run.job_id}", err=True)


@contextmanager
def _unfinished(file: JournalFile, name: str) -> Iterator[None]:
    """Say, where a submission was not finished, how to find out whether there is a job."""
    try:
        yield
    except (KeyboardInterrupt, SchedulerError, ProtocolError) as error:
        if isinstance(error, KeyboardInterrupt):
            told, code = "Interrupted.", Exit.INTERRUPTED
        else:
            told, code = str(error), Failure.of(error).code
        entry = file.read()
        if entry is None:
            told += "\nNothing was submitted."
        elif entry.job_id is None:
            told += (
                f"\nWhether there is a job is not known: the same command with --cache-id {name} "
                "finds out, and submits it if there is none."
            )
        else:
            told += f"\nJob {entry.job_id} was submitted."
        raise Failure(told, code) from error
