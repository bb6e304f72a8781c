"""What the calls of an executor ask for, checked."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache, cached_property
from shutil import which
from typing import Any

from cjdask.backends import BatchBackend, detect_backend
from cjdask.cluster_python import SAME, checked_python
from cjdask.errors import ResourcesNotSupportedError
from cjdask.jobscript_defaults import OF_A_MACHINE
from cjdask.jobscript_machine import machine_defaults
from cjdask.protocols import address, protocol_for
from cjdask.resources import Resources
from cjdask.scheduler import Scheduler, scheduler_for

__all__ = ["MODES", "CallOptions"]

MODES = ("array", "pool")


@dataclass(frozen=True)
class CallOptions:
    """How calls are run. Calls with the same options are submitted together."""

    backend: str
    mode: str = "array"
    resources: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    prologue: tuple[str, ...] = ()
    setup_lines: tuple[str, ...] = ()
    import_paths: tuple[str, ...] = ()
    keep_logs: bool = False
    max_workers: int | None = None
    maximum_jobs: int = 4
    requeues: int = 5
    debug: bool = False
    every_rank: bool = False
    remote: str = ""
    """The machine whose scheduler gets the calls; see `cjdask.protocols.protocol_for`."""
    ssh: str = "ssh"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CallOptions:
        """Take the options by the names that `ClusterExecutor` documents.

        What they leave open comes from the defaults of all jobs.

        Raises:
            ResourcesNotSupportedError, ValueError, UnknownBackendError: one is wrong; the
                message says what is allowed.
        """
        own = {f.name: f.name for f in fields(cls)} | _NAMES
        asked = {own[key]: value for key, value in values.items() if key in own}
        others = {k: v for k, v in values.items() if k not in own and v is not None}
        defaults = machine_defaults(asked.get("backend"))
        for key in OF_A_MACHINE & defaults.keys():
            default = defaults.pop(key)
            asked[key] = default if asked.get(key) is None else asked[key]
        machine = _machine(asked)
        there = protocol_for(*machine).which if machine else which
        asked["backend"] = asked.get("backend") or detect_backend(there)
        convert = {**_CONVERT, "import_paths": _texts} if machine else _CONVERT
        given = {
            key: convert[key](value) if key in convert else value
            for key, value in asked.items()
            if value is not None
        }
        made = cls(**{**given, "resources": _resources({**defaults, **others})})
        made.check()
        return made

    def changed(self, changes: Mapping[str, Any]) -> CallOptions:
        """Return options that differ in some, which are checked as `of` does."""
        back = {value: key for key, value in _NAMES.items()}
        known = {back.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        return self.of({**known.pop("resources"), **known, **changes})

    def check(self) -> None:
        """Check what has not been; render the headers, so that what is refused is known now."""
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}: give one of {', '.join(map(repr, MODES))}")
        for name, least in (("max_workers", 1), ("maximum_jobs", 1), ("max_requeues", 0)):
            value = getattr(self, _NAMES.get(name, name))
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or value < least
            ):
                raise ValueError(f"{name} must be greater than {least - 1}, not {value!r}")
        _ = self.command
        backend = self.machine.renderer
        if isinstance(backend, BatchBackend):
            try:
                backend.headers(self.checked)
            except ResourcesNotSupportedError as error:
                raise ResourcesNotSupportedError(f"{error}{self._meant()}") from None
        elif self.ranks > 1:
            raise ResourcesNotSupportedError(
                f"backend {self.backend!r} cannot start the {self.ranks} processes of a call; "
                "give nodes=1 and ppn=1"
            )

    def _meant(self) -> str:
        """Return a hint at options of executors that the names of native ones resemble."""
        known = {f.name for f in fields(self)} - set(_NAMES.values()) | _NAMES.keys()
        near = {key: get_close_matches(key, known, 1, 0.8) for key in self.checked.native}
        return "".join(f"; is {key!r} to be {found[0]}?" for key, found in near.items() if found)

    @property
    def machine(self) -> Scheduler:
        """The scheduler that gets the calls."""
        return scheduler_for(self.backend, *((self.remote, self.ssh) if self.remote else ()))

    @cached_property
    def command(self) -> list[str]:
        """The command of the Python that makes the calls; of another machine one looked at.

        Raises:
            ClusterjobError: it is not there or has other versions; the message says what to do.
            ProtocolError: the machine cannot be asked.
        """
        if not self.remote:
            return [self.python or sys.executable]
        return list(_python_there(self.remote, self.ssh, self.python, self.mode))

    @cached_property
    def checked(self) -> Resources:
        """The resources of one call."""
        return Resources.of(self.resources)

    @property
    def ranks(self) -> int:
        """How many processes make a call together; in a pool each makes calls of its own."""
        return 1 if self.mode == "pool" else self.checked.processes

    @cached_property
    def signature(self) -> str:
        """The same text for the same options."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {"resources": sorted(self.resources.items()), "env": sorted(self.env.items())}
        return repr(plain)

    def in_array(self) -> CallOptions:
        """Return the same options in array mode."""
        return replace(self, mode="array")

    def for_every_rank(self) -> CallOptions:
        """Return options with which each process of a call gives its own result."""
        return replace(self, every_rank=True)


_NAMES = {
    "additional_setup_lines": "setup_lines",
    "additional_import_paths": "import_paths",
    "max_requeues": "requeues",
}
"""The options whose names differ from those of the fields."""


def _machine(asked: dict[str, Any]) -> tuple[str, str] | tuple[()]:
    """Return the arguments that name the machine of calls, and note its address as an option."""
    remote, ssh = asked.get("remote"), asked.get("ssh") or "ssh"
    if not remote:
        asked["remote"] = ""
        return ()
    if not isinstance(remote, str):
        protocol = protocol_for(remote, ssh)
        remote, ssh = address(protocol), getattr(protocol, "ssh", ssh)
        asked.update(remote=remote, ssh=ssh)
    return remote, ssh


@cache
def _python_there(remote: str, ssh: str, named: str | None, mode: str) -> tuple[str, ...]:
    """Return the words of the command of a Python on another machine, which is asked once."""
    protocol = protocol_for(remote, ssh)
    packages = ("cloudpickle",) if mode == "array" else (*SAME, "cloudpickle")
    first, *words = shlex.split(checked_python(protocol, named, packages, "make the calls"))
    return (protocol.expand(first) if first.startswith("~") else first, *words)


def _resources(values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("array") is not None:
        raise ResourcesNotSupportedError(
            f"array={values['array']!r}: an executor makes the arrays itself, of the calls"
        )
    asked = {key: value for key, value in values.items() if value is not None}
    asked.setdefault("jobname", "calls")
    Resources.of(asked)
    return asked


def _lines(value: str | Iterable[str]) -> tuple[str, ...]:
    """Take text, or a list of lines.

    >>> _lines("module load a"), _lines(["a", "b\\nc"])
    (('module load a',), ('a', 'b', 'c'))
    """
    lines = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{value!r} are no lines of a script: give text, or a list of lines")
    return tuple(part for line in lines for part in line.splitlines())


def _paths(value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Take one path or several, and make them absolute."""
    return tuple(os.path.abspath(os.path.expanduser(path)) for path in _texts(value))


def _texts(value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Take one path of another machine, or several."""
    several = [value] if isinstance(value, str | os.PathLike) else list(value)
    return tuple(os.fspath(path) for path in several)


def _env(value: Mapping[str, Any]) -> dict[str, str]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"env: {name!r} is no name of an environment variable")
    return {name: str(text) for name, text in value.items()}


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "env": _env,
    "import_paths": _paths,
    "prologue": _lines,
    "setup_lines": _lines,
}
