"""Draw docs/schedulers.md from the backends: ``python docs/make_tables.py``."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cjdask.backends import BatchBackend, get_backend
from cjdask.backends.base import CORE_VARIABLES
from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import COMMON_KEYS, Resources

PAGE = Path(__file__).with_name("schedulers.md")

ORDER = ["slurm", "pbspro", "pbs", "lpbs", "lsf", "sge", "oar", "htcondor", "local"]

EXAMPLE: dict[str, Any] = {
    "nodes": 2,
    "ppn": 2,
    "threads": 4,
    "mem": 8000,
    "time": "01:30:00",
}

VALUES: dict[str, Any] = {
    "jobname": "relax",
    "queue": "long",
    "account": "p7",
    "gpus": 1,
    "stdout": "run.out",
    "stderr": "run.err",
    "array": "1-3",
    "depends": "12",
    "exclusive": True,
    **EXAMPLE,
}

NATIVE: dict[str, dict[str, Any]] = {"sge": {"parallel_environment": "mpi"}}
"""What a scheduler needs that only a site can tell, made up."""

PAGES = {"pbs": "torque"}
"""Pages that are not named as their backend."""

HEAD = """\
# What each scheduler is asked for

Drawn from the code by `docs/make_tables.py`. [resources.md](resources.md) tells what the keys
mean, the page of each scheduler what it needs and where its limits are.

## Two nodes, two processes on each, four threads each

`nodes=2, ppn=2, threads=4, mem=8000, time="01:30:00"`:
"""

KEYS = """
## Every key by itself

What a job gets for one key beside what every job has, without the beginning of the line, which is
in the first row. The number behind a `no` is that of the reason below.
"""

VARIABLES = """
## Variables

What stands in the job for the variables that a body may use, with braces or without:
"""


def backends() -> dict[str, BatchBackend]:
    """Return the backends of this package, those that `ORDER` has not at the end."""
    entries = entry_points(group="cjdask.backends")
    names = {entry.name for entry in entries if entry.value.startswith("cjdask.")}
    ordered = [*ORDER, *sorted(names - set(ORDER))]
    found = {name: get_backend(name) for name in ordered}
    return {name: backend for name, backend in found.items() if isinstance(backend, BatchBackend)}


def lines(backend: BatchBackend, asked: dict[str, Any]) -> list[str]:
    """Return all lines that a job has for its resources: headers, and files beside the script."""
    resources = Resources.of({**NATIVE.get(backend.name, {}), **asked})
    files = backend.submission_files(resources, "job.sh")
    beside = [line for text in files.values() for line in text.splitlines()]
    return backend.headers(resources) + beside


def example(name: str, backend: BatchBackend) -> list[str]:
    """Show the example for one scheduler."""
    asked = dict(EXAMPLE)
    said = [f"`{key}={value!r}`" for key, value in NATIVE.get(name, {}).items()]
    while True:
        try:
            text = lines(backend, asked)
            break
        except ResourcesNotSupportedError as error:
            key = next(key for key in asked if str(error).lstrip("'").startswith(key))
            del asked[key]
            said.append(f"without `{key}`")
    page = f"{PAGES.get(name, name)}.md"
    note = f" ({', '.join(said)})" if said else ""
    return ["", f"[{name}]({page}){note}:", "", *(f"    {line}" for line in text)]


def cell(text: list[str]) -> str:
    """Write lines of code into a table."""
    return "<br>".join(f"`{line}`" for line in text).replace("|", "\\|")


def row(cells: list[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"


def keys(known: dict[str, BatchBackend]) -> list[str]:
    """Show each key for all schedulers, and why some refuse one."""
    prefixes = [
        f"`{b.prefix}`" if b.headers(Resources(jobname="j")) else "" for b in known.values()
    ]
    table = [row(["", *known]), row(["---"] * (len(known) + 1)), row(["", *prefixes])]
    reasons: list[str] = []
    for key in COMMON_KEYS:
        cells = [f"`{key}={VALUES[key]!r}`"]
        for name, backend in known.items():
            always = lines(backend, {})
            try:
                own = [line for line in lines(backend, {key: VALUES[key]}) if line not in always]
                cells.append(cell([line.removeprefix(f"{backend.prefix} ") for line in own]))
            except ResourcesNotSupportedError as error:
                reasons.append(f"{len(reasons) + 1}. {name}, `{key}` is not supported: {error}")
                cells.append(f"no ({len(reasons)})")
        table.append(row(cells))
    return [*table, "", *reasons]


def variables(known: dict[str, BatchBackend]) -> list[str]:
    """Show what stands for each variable."""
    table = [row(["", *(f"`{name}`" for name in CORE_VARIABLES)])]
    table.append(row(["---"] * (len(CORE_VARIABLES) + 1)))
    for name, backend in known.items():
        natives = [backend.job_vars[variable] for variable in CORE_VARIABLES]
        texts = [native if native.startswith("$(") else f"${native}" for native in natives]
        table.append(row([name, *(cell([text]) for text in texts)]))
    return table


def page() -> str:
    """Return the text of the page."""
    known = backends()
    parts = [HEAD.rstrip()]
    for name, backend in known.items():
        parts += example(name, backend)
    parts += [KEYS, *keys(known), VARIABLES, *variables(known)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
