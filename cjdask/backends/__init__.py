"""The backends, found by name.

A backend is registered through the entry point group ``cjdask.backends`` of any installed
package, or in the running process by `register_backend`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points

from cjdask.backends.base import BatchBackend, ClusterjobBackend
from cjdask.errors import UnknownBackendError

__all__ = [
    "BatchBackend",
    "ClusterjobBackend",
    "Survey",
    "backend_names",
    "detect_backend",
    "get_backend",
    "register_backend",
    "survey",
]

FALLBACK = "local"
"""The backend where no scheduler is installed."""

_registered: dict[str, ClusterjobBackend] = {}


def register_backend(
    backend: ClusterjobBackend | type[ClusterjobBackend], name: str | None = None
) -> None:
    """Make a backend (an instance, or a class without arguments) known under its name.

    Raises:
        TypeError: it is no `ClusterjobBackend`.
        AttributeError: it has no ``name`` or no ``extension``.
    """
    if isinstance(backend, type) and issubclass(backend, ClusterjobBackend):
        backend = backend()
    if not isinstance(backend, ClusterjobBackend):
        raise TypeError(f"{backend!r} is no backend: it must inherit from ClusterjobBackend")
    for attribute in ("name", "extension"):
        if not isinstance(getattr(backend, attribute, None), str):
            raise AttributeError(f"the backend {backend!r} must have {attribute!r}, some text")
    _registered[name or backend.name] = backend


@cache
def _load(name: str) -> ClusterjobBackend | None:
    for entry in entry_points(group="cjdask.backends", name=name):
        loaded = entry.load()
        backend = loaded() if isinstance(loaded, type) else loaded
        if not isinstance(backend, ClusterjobBackend):
            raise TypeError(f"entry point {entry.value!r} of cjdask.backends is no backend")
        return backend
    return None


def backend_names() -> list[str]:
    """Return the names of all known backends, sorted."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group="cjdask.backends"))})


def get_backend(name: str) -> ClusterjobBackend:
    """Return the backend of that name.

    Raises:
        UnknownBackendError: there is none; the message lists those that there are.
    """
    backend = _registered.get(name) or _load(name)
    if backend is None:
        names = backend_names()
        close = get_close_matches(str(name), names, 1)
        raise UnknownBackendError(
            f"unknown backend {name!r}{f', did you mean {close[0]!r}?' if close else '.'} "
            f"Known are {', '.join(names)}; a site's own one is added by register_backend"
        )
    return backend


@dataclass(frozen=True)
class Survey:
    """What a look for a scheduler on this machine found, and why."""

    name: str
    paths: Mapping[str, str | None]
    """The path of each command that tells that it is installed, ``None`` for those missing."""
    found: bool
    used: bool
    """Whether it is what `detect_backend` says."""
    why: str


def survey(which: Callable[[str], str | None] = shutil.which) -> list[Survey]:
    """Look for all known schedulers on this machine, by their commands.

    ``which`` returns the path of a command.
    """
    looked = {
        name: {program: which(program) for program in backend.programs}
        for name in backend_names()
        if isinstance(backend := get_backend(name), BatchBackend)
    }
    there = {name: paths for name, paths in looked.items() if paths and all(paths.values())}
    # Where two schedulers share a command's name, the one that names more commands wins.
    used = max(there, key=lambda name: (len(there[name]), name), default=FALLBACK)
    found = []
    for name in backend_names():
        paths = looked.get(name, {})
        missing = [program for program, path in paths.items() if path is None]
        if missing:
            why = f"not on PATH: {', '.join(missing)}"
        elif paths:
            folders = dict.fromkeys(os.path.dirname(path or "") for path in paths.values())
            why = f"{', '.join(paths)} in {', '.join(folders)}"
            why += "" if name == used else f"; but {used} has more of its commands here"
        elif name == FALLBACK:
            why = "needs nothing; is used where no other is found"
        else:
            why = "has no commands by which it could be found; ask for it by name"
        is_there = name in there or name == FALLBACK
        found.append(Survey(name, paths, is_there, name == used, why))
    return found


def detect_backend(which: Callable[[str], str | None] = shutil.which) -> str:
    """Return the name of the scheduler that is installed here, ``"local"`` if there is none."""
    return next(each.name for each in survey(which) if each.used)
