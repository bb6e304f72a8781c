"""Read files of a machine as they grow, many with one look."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from cjdask.command import Command
from cjdask.errors import ProtocolError
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol

__all__ = ["CHUNK", "GrowingFile", "look", "start_at_tail"]

CHUNK = 2**20
"""Bytes that are read of one file in one look."""
_BYTES_PER_LINE = 200

_LOOK = r"""
while [ $# -gt 0 ]; do
    if [ -e "$1" ]; then
        size=$(wc -c <"$1") || exit 1
        echo $size $(tail -c +$(($2 + 1)) "$1" | head -c "$3" | base64 | tr -d '\n')
    else echo
    fi
    shift 3
done
"""


@dataclass(eq=False)
class GrowingFile:
    """A file and how far it has been read."""

    path: str
    offset: int = 0
    seen: bool = False
    """Whether the file has been there."""
    restarted: bool = False
    """Whether the last look found it shorter than before, and began it anew."""

    def take(self, size: int | None, data: bytes) -> bytes:
        """Note what a look found, and return what is new."""
        self.restarted = size is not None and size < self.offset
        if size is None:
            return b""
        self.seen = True
        if self.restarted:
            self.offset = 0
            return b""
        self.offset += len(data)
        return data


def look(protocol: Protocol, files: Sequence[GrowingFile]) -> list[bytes]:
    """Return what is new in each of some files of a machine, at most `CHUNK` bytes of each.

    Raises:
        ProtocolError: the machine cannot be asked.
        OSError: a file is there and cannot be read.
    """
    asked = [(file.path, file.offset, CHUNK) for file in files]
    found = _ask(protocol, asked)
    return [file.take(*answer) for file, answer in zip(files, found, strict=True)]


_Answer = tuple[int | None, bytes]
"""The size of a file, ``None`` if it is not there, and bytes from the offset on."""


def _ask(protocol: Protocol, asked: Sequence[tuple[str, int, int]]) -> list[_Answer]:
    """Read pieces of files: path, offset and number of bytes of each."""
    return _here(asked) if isinstance(protocol, LocalProtocol) else _there(protocol, asked)


def _here(asked: Sequence[tuple[str, int, int]]) -> list[_Answer]:
    answers: list[_Answer] = []
    for path, offset, count in asked:
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(min(offset, size))
                answers.append((size, file.read(count)))
        except FileNotFoundError:
            answers.append((None, b""))
    return answers


def _there(protocol: Protocol, asked: Sequence[tuple[str, int, int]]) -> list[_Answer]:
    words = [str(word) for each in asked for word in each]
    output = protocol.run(Command.ask("/bin/sh", "-c", _LOOK, "sh", *words))
    lines = output.stdout.splitlines()
    if output.exit_code != 0 or len(lines) != len(asked):
        raise ProtocolError(f"logs on {protocol.host} cannot be read: {output.stderr.strip()}")
    answers: list[_Answer] = []
    for line in lines:
        size, _, data = line.partition(" ")
        answers.append((int(size), base64.b64decode(data)) if size else (None, b""))
    return answers


def start_at_tail(protocol: Protocol, file: GrowingFile, lines: int) -> None:
    """Have the next look begin with the last ``lines`` lines that are there now.

    Raises:
        ProtocolError, OSError: as for `look`.
    """
    size, _ = _ask(protocol, [(file.path, 0, 0)])[0]
    if size is None:
        return
    span = _BYTES_PER_LINE * (lines + 1)
    while True:
        start = max(0, size - span)
        _, data = _ask(protocol, [(file.path, start, size - start)])[0]
        begin = len(data) - data.endswith(b"\n") if lines else len(data)
        for _ in range(lines):
            begin = data.rfind(b"\n", 0, max(begin, 0))
        if begin >= 0 or start == 0:
            file.offset = start + begin + (1 if lines else 0)
            return
        span *= 4
