"""The options of Grid Engine's qsub, and how they are written into a job script."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import ArraySpec, Resources, clock

__all__ = ["COMMON", "native"]

_NOT_FOR_JOBS = {
    "t": "give array=...",
    "terse": "it is always given",
    "sync": "it would block the submission; wait for the run",
    "verify": "it would print the job instead of submitting it",
    "help": "it would print a help text instead of submitting the job",
    "now": "it is an option of interactive jobs",
    "b": "a job script is no binary",
}
"""Options of qsub that are refused however they are written, and what to do instead."""

_YES_OR_NO = ("R", "j", "r", "shell")
"""Options of qsub that take ``y`` or ``n``."""

_SITE_RESOURCE = (
    "Grid Engine knows it only as a resource that a site has made; "
    "ask for that by its name (qconf -sc lists them), l={example!r} for instance"
)


def native(key: str, value: str | float | bool) -> str:
    """Write an option of qsub that has no common key.

    Raises:
        ResourcesNotSupportedError: an option that a job must not have.
    """
    option = key.lstrip("-")
    if option in _NOT_FOR_JOBS:
        raise ResourcesNotSupportedError(
            f"{key}={value!r} cannot be asked for on Grid Engine: {_NOT_FOR_JOBS[option]}"
        )
    if value is True:
        return f"-{option} y" if option in _YES_OR_NO else f"-{option}"
    return f"-{option} {value}"


def _jobname(name: str, _: Resources) -> list[str]:
    keyword = name.lower() in ("all", "none", "template")
    if keyword or not re.fullmatch(r"[A-Za-z_.+][A-Za-z0-9_.+=~-]*", name):
        raise ResourcesNotSupportedError(
            f"jobname={name!r}: for Grid Engine give ASCII letters, digits and _ . + - = ~, not "
            "a digit at the beginning, and not its words all, none, template"
        )
    return [f"-N {name}"]


def _path(option: str, path: str) -> list[str]:
    if re.search(r'[,:"]', path):
        raise ResourcesNotSupportedError(
            f"{path!r}: Grid Engine takes a comma, a colon or a quotation mark in the name of a "
            "log file for the end of a name; give one without"
        )
    return [f"{option} {_quoted(path)}"]


def _quoted(text: str) -> str:
    return f'"{text}"' if re.search(r"[\s'#]", text) else text


def _array(array: ArraySpec, _: Resources) -> list[str]:
    first, last = array.indices[0], array.indices[-1]
    step = array.indices[1] - first if len(array) > 1 else 1
    if array.indices != tuple(range(first, last + 1, step)):
        raise ResourcesNotSupportedError(
            f"array={str(array)!r}: Grid Engine (backend 'sge') has only ranges with one step, "
            'such as "1-100" or "10-90:10"; submit several arrays'
        )
    if first == 0:
        raise ResourcesNotSupportedError(
            f"array={str(array)!r}: Grid Engine (backend 'sge') numbers tasks from 1; say "
            f"array='1-{len(array)}' or range(1, {len(array) + 1}) for {len(array)} tasks"
        )
    text = f"-t {first}-{last}" + (f":{step}" if step > 1 else "")
    return [text, *([f"-tc {array.limit}"] if array.limit else [])]


def _depends(ids: Sequence[str], _: Resources) -> list[str]:
    for job_id in ids:
        if not job_id.isdigit():
            raise ResourcesNotSupportedError(
                f"depends={job_id!r}: the id of a job in Grid Engine is a number, and it can "
                "wait for whole jobs only, not for a task"
            )
    return [f"-hold_jid {','.join(ids)}"]


def _refused(key: str, example: str) -> Callable[[Any, Resources], list[str]]:
    def refuse(value: Any, _: Resources) -> list[str]:
        raise ResourcesNotSupportedError(
            f"{key}={value!r}: {_SITE_RESOURCE.format(example=example)}"
        )

    return refuse


COMMON: dict[str, Callable[[Any, Resources], list[str]]] = {
    "account": lambda value, _: [f"-P {_quoted(value)}"],
    "array": _array,
    "depends": _depends,
    "exclusive": _refused("exclusive", "exclusive=true"),
    "gpus": _refused("gpus", "gpu=1"),
    "jobname": _jobname,
    "mem": lambda value, asked: [f"-l h_vmem={math.ceil(value / asked.cores_per_node)}M"],
    "queue": lambda value, _: [f"-q {_quoted(value)}"],
    "stderr": lambda value, _: _path("-e", value),
    "stdout": lambda value, _: _path("-o", value),
    "time": lambda value, _: [f"-l h_rt={clock(value)}"],
}
"""The lines for each common key but those for the shape of a job."""
