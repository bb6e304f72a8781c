"""The options of OAR's oarsub, and how they are written into a job script.

Facts are from the source of OAR 2.5.9 (``OAR/Sub.pm``, ``scan_script``) and oarsub(1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import Resources

__all__ = ["OPTIONS", "headers"]

_OPTIONS = """
a=anterior d=directory e=export-job-key-to-file E=stderr i=import-job-key-from-file
k=use-job-key l=resource n=name O=stdout p=property q=queue s=stagein t=type
"""
SHORT = dict(pair.split("=") for pair in _OPTIONS.split())
_LONG = "array array-param-file checkpoint hold notify project signal stagein-md5sum"
OPTIONS = frozenset([*SHORT.values(), *_LONG.split()])
"""The options that oarsub reads from a script; any other on a line of its own is an error."""

COMMON = {
    "account": "--project",
    "jobname": "-n",
    "queue": "-q",
    "stderr": "-E",
    "stdout": "-O",
}
"""The options that take a common key as it is."""

_SHAPE = ("exclusive", "nodes", "ppn", "threads", "time")
_INSTEAD = {
    "depends": "OAR starts a job after another one however that ended; if that will do, say "
    "a='ID' (oarsub -a), else submit the second job at the end of the first one's script",
    "gpus": "how GPUs are named is up to the site; say l='/nodes=1/gpu=2' (oarsub -l), which "
    "then stands instead of nodes, ppn and threads",
    "mem": "memory comes with the cores; say p='memnode >= 8000' (oarsub -p), with whatever "
    "property of nodes the site has for it, or register OarBackend(memory='memnode')",
}


def headers(resources: Resources, prefix: str, memory: str | None) -> list[str]:
    """Write the header lines. Their values are not quoted: oarsub takes the rest of the line.

    ``memory`` is the property that has a node's memory in MB, if there is one.

    Raises:
        ResourcesNotSupportedError: what OAR cannot be asked for, or two keys that say the same.
    """
    lines = []
    said: dict[str, str] = {}
    for key, option, value in _options(resources, memory):
        name = SHORT.get(option.lstrip("-"), option.lstrip("-"))
        if name in said:
            raise ResourcesNotSupportedError(
                f"{said[name]!r} and {key!r} both mean oarsub's --{name} (backend 'oar'); "
                "give one of them"
            )
        said[name] = key
        lines.append(f"{prefix} {option}" + ("" if value is True else f" {value}"))
    return lines


def _options(resources: Resources, memory: str | None) -> Iterator[tuple[str, str, Any]]:
    given = resources.given()
    own = next((key for key in given if key in ("l", "-l", "resource", "--resource")), None)
    filters = [key for key in given if key in ("p", "-p", "property", "--property")]
    shape = own or next((key for key in given if key in _SHAPE), None)
    for key in given:
        if key == shape:
            yield key, "-l", _resource_list(resources, own)
        elif key in COMMON:
            yield key, COMMON[key], _name(key, getattr(resources, key))
        elif key == "array":
            yield key, "--array", _array(resources)
        elif key == "mem" and memory:
            also = [f"({resources.native[name]})" for name in filters]
            yield key, "-p", " AND ".join([f"{memory} >= {resources.mem}", *also])
        elif key in _INSTEAD:
            raise ResourcesNotSupportedError(f"{key!r}: OAR (backend 'oar'): {_INSTEAD[key]}")
        elif key in resources.native and not (key in filters and resources.mem):
            yield key, _native(key), resources.native[key]


def _resource_list(resources: Resources, own: str | None) -> str:
    """Write what ``-l`` asks for; several ``-l`` would be alternatives, of which one is taken."""
    if own:
        text = str(resources.native[own])
        if resources.exclusive or resources.nodes or resources.ppn or resources.threads:
            raise ResourcesNotSupportedError(
                f"{own!r} stands instead of nodes, ppn, threads and exclusive (backend 'oar'); "
                "give either"
            )
    else:
        text = f"/nodes={resources.nodes or 1}"
        text += "" if resources.exclusive else f"/core={resources.cores_per_node}"
    if resources.time is None:
        return text
    if "walltime" in text:
        raise ResourcesNotSupportedError(
            f"{own!r} and 'time' both have a walltime (backend 'oar'); give one of them"
        )
    minutes, seconds = divmod(resources.time, 60)
    return f"{text},walltime={minutes // 60}:{minutes % 60}:{seconds}"


def _array(resources: Resources) -> int:
    array = resources.array
    assert array is not None
    count = len(array)
    if array.limit or array.indices != tuple(range(1, count + 1)):
        raise ResourcesNotSupportedError(
            f"array={str(array)!r}: OAR (backend 'oar') numbers tasks from 1 without a gap and "
            f"cannot limit how many run at a time; say array='1-{count}' or range(1, {count + 1}) "
            f"for {count} tasks"
        )
    return count


def _name(key: str, value: str) -> str:
    # OAR 2.5.9 writes these into SQL as they are, and names into the default names of files.
    bad = "'\\" if key in ("stdout", "stderr") else "'\\/"
    if any(letter in bad for letter in value) or value != value.strip():
        raise ResourcesNotSupportedError(
            f"{key}={value!r}: OAR (backend 'oar') cannot have any of {' '.join(bad)} in it, nor "
            "blanks at its ends; leave them out"
        )
    return value


def _native(key: str) -> str:
    option = key if key.startswith("-") else f"-{key}" if len(key) == 1 else f"--{key}"
    option = option.replace("_", "-")
    name = option.lstrip("-")
    if SHORT.get(name, name) not in OPTIONS:
        raise ResourcesNotSupportedError(
            f"{key!r} is no option that oarsub reads from a script (backend 'oar'); there are "
            f"{', '.join(sorted(OPTIONS))}"
        )
    return option
