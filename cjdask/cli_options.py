"""Options that describe a job: its script, its resources, files of settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cjdask.backends import BatchBackend, backend_names, detect_backend, get_backend
from cjdask.cli_group import Exit, Failure
from cjdask.jobscript import JobScript
from cjdask.jobscript_machine import users_settings
from cjdask.jobscript_settings import attribute_value, read_settings_file, resource_value

__all__ = [
    "Asked",
    "backend_option",
    "elsewhere_option",
    "job_options",
    "pair",
    "pairs",
    "resource",
    "script_argument",
]

_HELP = {
    "jobname": "Name of the job; the script's unless given.",
    "queue": "Queue or partition.",
    "account": "Project to charge.",
    "time": "Walltime: 90 (minutes), 1:30:00, 1-12 (days-hours).",
    "nodes": "Machines.",
    "ppn": "Processes on each.",
    "threads": "Threads of each process.",
    "mem": "Memory per node: 4GiB, or MB of 2**20 bytes.",
    "gpus": "GPUs per node.",
    "stdout": "File for standard output.",
    "stderr": "File for standard error.",
    "array": "Tasks: 10 (0 to 9), 1-10, 0-99%10 (10 at a time).",
}
"""The common resources that are options, each with its help."""

_METAVAR = {"stdout": "FILE", "stderr": "FILE", "time": "TIME", "mem": "MEM", "array": "TASKS"}
_METAVAR |= dict.fromkeys(("nodes", "ppn", "threads", "gpus"), "N")


def pair(text: str, form: str = "KEY=VALUE") -> tuple[str, str]:
    """Split text at its first ``=``; ``form`` is how it must look, for messages.

    Raises:
        ValueError: there is no ``=``, or no key before it.
    """
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise ValueError(f"{text!r} is not {form}")
    return key, value


def resource(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE`` as a file of settings has it.

    Raises:
        ValueError: it is none.

    >>> resource("nodes=2"), resource("time=30"), resource("hold=true"), resource("F=nodes")
    (('nodes', 2), ('time', '30'), ('hold', True), ('F', 'nodes'))
    """
    key, value = pair(text)
    return key, resource_value(repr(text), key, value)


def pairs(read_pair: Callable[[str], tuple[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make a callback that reads all values of an option."""

    def callback(context: click.Context, option: Any, texts: tuple[str, ...]) -> dict[str, Any]:
        try:
            return dict(map(read_pair, texts))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _complete_backend(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in backend_names() if name.startswith(incomplete)]


def _backend_option(help: str) -> Callable[[Any], Any]:
    return click.option("--backend", shell_complete=_complete_backend, metavar="NAME", help=help)


backend_option = _backend_option(
    "The scheduler; that of the settings or the installed one unless given."
)
"""For commands that submit."""

elsewhere_option = _backend_option(
    "The scheduler of job ids that are not recorded; the installed one unless given."
)
"""For commands on runs."""

script_argument = click.argument(
    "script", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options that describe a job, but for its script."""
    decorators = [
        backend_option,
        *(
            click.option(f"--{key}", metavar=_METAVAR.get(key, "TEXT"), help=text)
            for key, text in _HELP.items()
        ),
        click.option("--exclusive", is_flag=True, help="Whole nodes."),
        click.option(
            *("-o", "--option", "options"),
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the scheduler: qos=high, --site-option=x, contiguous=true.",
        ),
        click.option(
            *("--settings", "settings"),
            multiple=True,
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="INI file with [Attributes] and [Resources]; options override it.",
        ),
        click.option(
            *("--set", "variables"),
            multiple=True,
            metavar="NAME=VALUE",
            help="An attribute of the job (workdir, epilogue, ...), or a value for {NAME} in it.",
        ),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@dataclass
class Asked:
    """What options and files of settings ask for."""

    backend: str
    attributes: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Asked:
        """Read the values of the options of `job_options`.

        Raises:
            SettingsError: a value cannot be; the message says of which option or file.
        """
        attributes: dict[str, Any] = {}
        resources: dict[str, Any] = {}
        known, fixed = JobScript._values(), JobScript._fixed()
        files = [read_settings_file(path, known, fixed) for path in given["settings"]]
        for settings in (users_settings(), *files):
            attributes |= settings.attributes
            resources |= settings.resources
        for key in _HELP:
            if given[key] is not None:
                resources[key] = resource_value(f"--{key}", key, given[key])
        if given["exclusive"]:
            resources["exclusive"] = True
        for text in given["options"]:
            key, value = _split("-o", text)
            resources[key] = resource_value(f"-o {text}", key, value)
        for text in given["variables"]:
            key, value = _split("--set", text, "NAME=VALUE")
            attributes[key] = attribute_value(f"--set {text}", key, value, known, fixed)
        backend = given["backend"] or attributes.pop("backend", None) or detect_backend()
        return cls(backend, attributes, resources)

    def script(self, path: str) -> JobScript:
        """Make the job script from a file; ``-`` is standard input."""
        name = "job" if path == "-" else Path(path).stem
        of_all = JobScript._own_class_attributes & self.attributes.keys()
        kind = type("JobScript", (JobScript,), {key: self.attributes[key] for key in of_all})
        script: JobScript = kind(_text(path), str(self.resources.pop("jobname", name)))
        script.backend = self.backend
        script.resources.update(self.resources)
        for key, value in self.attributes.items():
            if key not in of_all:
                setattr(script, key, value)
        _check_directives(script, path)
        return script


def _split(option: str, text: str, form: str = "KEY=VALUE") -> tuple[str, str]:
    try:
        return pair(text, form)
    except ValueError as error:
        raise Failure(f"{option}: {error}", Exit.USAGE) from None


def _text(path: str) -> str:
    """Read a script."""
    what = "standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:  # closed, as by <&- in a shell
        raise Failure(f"{what} is closed: give a script", Exit.USAGE)
    with click.open_file(path, "rb") as file:
        raw: bytes = file.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Failure(f"{what} is no text: give a script", Exit.USAGE) from None
    if not text.strip():
        raise Failure(f"{what} is empty: give a script", Exit.USAGE)
    if "\r\n" in text:
        why = "has line ends of DOS, with which no shell can run it; see dos2unix"
        raise Failure(f"{what} {why}", Exit.USAGE)
    return text


def _check_directives(script: JobScript, path: str) -> None:
    """Refuse a script with directives: behind the lines of the header no scheduler reads them."""
    prefixes: dict[str, str] = {}
    for name in backend_names():
        backend = get_backend(name)
        if isinstance(backend, BatchBackend) and backend.prefix:
            prefixes.setdefault(backend.prefix, name)
    own = getattr(get_backend(script.backend), "prefix", "")
    for number, line in enumerate(script.body.splitlines(), 1):
        match = re.match(r"(#[A-Z$]+)\s+-", line)
        prefix = match[1] if match else ""
        if prefix and prefix == own:
            raise Failure(
                f"{path}, line {number}: {line}\nis a directive of {script.backend}. cjdask writes "
                "these itself; remove the line and give an option instead: a common one "
                "(--nodes, --time, ... see --help) or -o KEY=VALUE",
                Exit.USAGE,
            )
        if prefix in prefixes:
            what = f"is for {prefixes[prefix]}, and means nothing to {script.backend}"
            click.echo(f"Warning: {path}, line {number}: {line}\n{what}", err=True)
