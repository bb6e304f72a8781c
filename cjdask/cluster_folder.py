"""The folder of a cluster on the machine of its jobs: scripts, certificates, for our user alone."""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
import time
from collections.abc import Mapping

from cjdask.command import Command
from cjdask.errors import ProtocolError
from cjdask.protocols.base import Protocol

__all__ = ["join_there", "make_folder", "remove_folder"]

WITHIN = 60.0
"""Seconds for the commands of this module."""

_MAKE = r"""
mkdir -p -- "${1%/*}" || exit
[ -d "$1" ] || mkdir -m 700 -- "$1" || exit
[ -z "$2" ] || mkdir -p -- "$2" || exit
new=$1/.new.$$
mkdir -- "$new" && cd -- "$new" && tar -xf - || exit
for file in *; do
    [ ! -e "$file" ] || [ -e "../$file" ] || mv -- "$file" .. || exit
done
cd .. && rm -rf -- "$new"
"""
"""Files that are there stay, since jobs may read them just now."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def join_there(protocol: Protocol, *parts: str) -> str:
    """Join parts of a path there, of which the first is absolute; ``~`` and ``$NAME`` are theirs.

    A variable that is not set there stays as it is.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        output = protocol.run(Command.ask("printenv", name), WITHIN)
        return output.stdout.rstrip("\n") if output.exit_code == 0 else match[0]

    found = [_VARIABLE.sub(value, part) for part in parts]
    found = [protocol.expand(part) if part.startswith("~") else part for part in found]
    return posixpath.normpath(posixpath.join(*found))


def make_folder(
    protocol: Protocol, folder: str, files: Mapping[str, str], logs: str | None = None
) -> None:
    """Make the folder, with the files that are not there yet, and another one for logs.

    Raises:
        ProtocolError: it cannot be made; the message says why.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            entry.mode = 0o600 if name.endswith((".pem", ".json")) else 0o644
            entry.mtime = int(time.time())
            tar.addfile(entry, io.BytesIO(text.encode()))
    argv = ("/bin/sh", "-c", _MAKE, "sh", folder, logs or "")
    made = protocol.run(Command(argv, input=archive.getvalue()), WITHIN)
    if made.exit_code != 0:
        raise ProtocolError(f"cannot make {folder} on {protocol.host}: {made.stderr.strip()}")


def remove_folder(protocol: Protocol, folder: str) -> None:
    """Remove the folder with all that is in it.

    Raises:
        ProtocolError: the machine cannot be asked.
    """
    assert os.path.basename(folder).startswith("."), folder
    protocol.run(Command(("rm", "-rf", "--", folder)), WITHIN)
