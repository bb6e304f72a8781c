"""The Python of another machine: of a Dask scheduler and workers, or of calls."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from cjdask.command import Command
from cjdask.errors import ClusterjobError
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol

__all__ = ["SAME", "checked_python"]

SAME = ("cjdask", "dask", "distributed")
"""Packages whose version must be the same on both sides, which exchange pickled objects."""
WITHIN = 120.0
"""Seconds for a Python to tell its versions; the first import over a network may take long."""

_PROBE = """\
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": "%d.%d" % sys.version_info[:2], "path": sys.executable}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def checked_python(
    protocol: Protocol,
    named: str | None,
    packages: Sequence[str] = SAME,
    what: str = "run the Dask scheduler and workers",
) -> str:
    """Return the command of a Python there that has the versions of this one.

    ``packages`` are those that must be there as they are here, ``what`` it is to do.

    Without a name it is the one with the path of this one, else what is called python3 or
    python there.

    Raises:
        ClusterjobError: there is none; the message says what is missing and what to do.
        ProtocolError: the machine cannot be asked.
    """
    if isinstance(protocol, LocalProtocol) and named in (None, sys.executable):
        return sys.executable
    wanted = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    wanted |= {name: version(name) for name in packages}
    refused = []
    for candidate in [named] if named is not None else [sys.executable, "python3", "python"]:
        found = _versions(protocol, candidate, packages)
        if isinstance(found, str):
            refused.append(f"{candidate}: {found}")
        elif wrong := _differences(wanted, found):
            refused.append(f"{candidate}: {wrong}")
        else:
            return candidate if named is not None else shlex.quote(found["path"] or candidate)
    install = " ".join(f"{name}=={wanted[name]}" for name in packages)
    raise ClusterjobError(
        f"no Python on {protocol.host} can {what} of this session:\n  "
        + "\n  ".join(refused)
        + f"\nName one by python=..., or make an environment with Python {wanted['python']} there "
        f"and install the same versions: python -m pip install {install}"
    )


def _versions(
    protocol: Protocol, python: str, packages: Sequence[str]
) -> Mapping[str, str | None] | str:
    """Return the versions that a Python has, or why it does not tell them."""
    words = shlex.split(python)
    if words[0].startswith("~"):
        words[0] = protocol.expand(words[0])
    if protocol.which(words[0]) is None:
        return "there is no such program"
    output = protocol.run(Command.ask(*words, "-c", _PROBE, *packages), WITHIN)
    try:
        found: Mapping[str, str | None] = json.loads(output.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = (output.stderr or output.stdout).strip().splitlines()[-1:]
        return f"it does not work (exit code {output.exit_code}): {' '.join(said)}"
    return found


def _differences(wanted: Mapping[str, str], found: Mapping[str, str | None]) -> str:
    return ", ".join(
        f"{name} {found[name] or 'is missing'} (here {here})"
        for name, here in wanted.items()
        if found[name] != here
    )
