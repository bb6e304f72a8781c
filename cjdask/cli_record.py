"""``cjdask record``: record the answers of a scheduler for the tests of a backend."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from cjdask.backends import BatchBackend, detect_backend, get_backend
from cjdask.cli_options import pair, pairs, resource
from cjdask.cli_recorder import Recorder, RecordingError, Scene
from cjdask.cli_runs import json_option
from cjdask.cli_table import print_json
from cjdask.errors import ClusterjobError
from cjdask.protocols.local import LocalProtocol
from cjdask.testing.dialogues import Step, anonymous, fitted, missing, read, write

__all__ = ["record"]


def _hidden(folder: str) -> dict[str, str]:
    """Return what must not be in a transcript, and what takes its place."""
    host = socket.gethostname()
    names = {
        getpass.getuser(): "user",
        host.partition(".")[0]: "host",
        host: "host",
        socket.getfqdn(): "host",
        os.getcwd(): "/home/user",
        os.path.expanduser("~"): "/home/user",
        folder: "/home/user/work",
    }
    return {text: name for text, name in names.items() if len(text) > 1 and text != "localhost"}


def _ready(name: str) -> BatchBackend:
    """Return the backend if it can be recorded here."""
    backend = get_backend(name)
    if not isinstance(backend, BatchBackend):
        raise click.UsageError(f"backend {name!r} asks about one run at a time; it has no records")
    absent = [program for program in backend.programs if LocalProtocol().which(program) is None]
    if absent:
        raise click.UsageError(
            f"backend {name!r} needs {', '.join(absent)}, not found on PATH; record on a machine "
            "from which jobs are submitted"
        )
    return backend


def _save(scenes: dict[str, Scene], output: Path, scheduler: str) -> list[Path]:
    """Write a file for each scene."""
    output.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes.items():
        head = [f"# scheduler: {scheduler}", f"# what: {', '.join(scene.shows)}"]
        if "probe" in scenes and name != "probe":
            head.append("# probed: probe.txt")
        write(output / f"{name}.txt", head, scene.steps)
    return [output / f"{name}.txt" for name in scenes]


def _faults(known: BatchBackend, paths: list[Path]) -> list[str]:
    """Say what the checks of the transcripts would find, and what is missing."""
    faults = []
    everything: list[Step] = []
    for path in paths:
        backend, steps = fitted(known, path), read(path)[1]
        everything += steps
        for step in steps:
            built = anonymous(step.build(known if step.verb == "probe" else backend))
            if built != step.command:
                faults.append(f"{path.name} has {step.command}, but the backend builds {built}")
            if step.made(backend) != step.expected:
                faults.append(f"{path.name}: the answer to {step.command} reads otherwise")
            if step.verb in ("query", "ended") or "!! ParseError" in step.expected[0]:
                faults += [f"{path.name}: {e[3:]}" for e in step.expected if e.startswith("!!")]
    return faults + [f"there is no transcript of {what}" for what in missing(everything)]


def _perform(backend: BatchBackend, how: dict[str, Any]) -> tuple[dict[str, Scene], str]:
    """Run the jobs; return the scenes, and what stopped the recording, if anything did."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="cjdask-record-", dir=how["workdir"]))
    words = {**_hidden(folder), **how["hide"]}
    recorder = Recorder(how["name"], folder, how["asked"], words, _say, how["patience"])
    try:
        recorder.play(how["held"], how["refused"])
    except (ClusterjobError, RecordingError) as error:
        return recorder.scenes, str(error)
    finally:
        recorder.clean_up()
        shutil.rmtree(folder, ignore_errors=True)
    return recorder.scenes, ""


@click.command(short_help="Record a scheduler's answers for the tests of a backend.")
@click.option("--backend", "name", metavar="NAME", help="The backend; else the installed one.")
@click.option(
    *("--output", "output"),
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the transcripts go; transcripts/NAME unless given.",
)
@click.option(
    "-r",
    "--resource",
    "asked",
    callback=pairs(resource),
    metavar="KEY=VALUE",
    multiple=True,
    help="What every job asks for: queue=debug, account=...",
)
@click.option(
    "--held",
    callback=pairs(resource),
    metavar="KEY=VALUE",
    multiple=True,
    help="An option that keeps a job from starting; else it waits for another job.",
)
@click.option(
    "--refused",
    callback=pairs(resource),
    metavar="KEY=VALUE",
    multiple=True,
    help="A resource that the scheduler refuses: queue=nosuch.",
)
@click.option("--scheduler", metavar="TEXT", help="Name and version, for the files' heads.")
@click.option(
    "--hide",
    callback=pairs(partial(pair, form="TEXT=NAME")),
    metavar="TEXT=NAME",
    multiple=True,
    help="Write NAME for TEXT, beside paths, user and host.",
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
    help="How long to wait for a job to start, and to end.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of an earlier recording.")
@json_option
def record(
    output: Path | None, scheduler: str | None, overwrite: bool, as_json: bool, **how: Any
) -> None:
    """Run a backend on its real scheduler and write down every command and answer.

    Five jobs and an array are submitted, asked for and cancelled, through the same code that
    runs all jobs. cjdask.testing.TranscriptChecks replays the transcripts. Paths, user and
    host are replaced by plain names; look through the files before you publish them.

    The exit code is 0 if the recording is complete and the backend understood everything.
    """
    try:
        how["name"] = how["name"] or detect_backend()
        output = output or Path("transcripts", how["name"])
        backend = _ready(how["name"])
        if not overwrite and any(output.glob("*.txt")):
            message = f"{output} has transcripts; give another --output, or --overwrite"
            raise click.UsageError(message)
        scenes, stopped = _perform(backend, how)
        paths = _save(scenes, output, scheduler or how["name"])
        faults = [stopped] if stopped else _faults(backend, paths)
    except ClusterjobError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        for path in paths:
            print_json(transcript=str(path), what=list(scenes[path.stem].shows))
    _say(f"{len(paths)} transcripts are in {output}")
    if faults:
        raise click.ClickException("the recording is not complete:\n" + "\n".join(faults))


def _say(text: str) -> None:
    click.echo(text, err=True)
