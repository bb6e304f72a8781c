"""Feed a local process and read what it says, in any amount, without ever being stuck."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterable

__all__ = ["pump"]

_PIECE = 1 << 18


def pump(
    process: subprocess.Popen[bytes],
    source: Iterable[bytes],
    sink: Callable[[bytes], object],
    total: float | None,
    stall: float | None,
) -> bytes:
    """Move all bytes between a process and its streams; return its standard error.

    ``source`` becomes its input, piece by piece as it takes it; ``sink`` gets its output. The
    process is not waited for.

    Raises:
        TimeoutError: it took longer than ``total`` seconds, or no byte was moved for ``stall``.
    """
    assert process.stdin
    assert process.stdout
    assert process.stderr
    pieces = iter(source)
    waiting = memoryview(b"")
    stderr = bytearray()
    began = moved = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for stream, events in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
            (process.stderr, selectors.EVENT_READ),
        ):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, events)
        while selector.get_map():
            now = time.monotonic()
            ends = [began + total] if total is not None else []
            ends += [moved + stall] if stall is not None else []
            pause = min(ends) - now if ends else None
            if pause is not None and pause <= 0:
                raise TimeoutError
            for key, _ in selector.select(pause):
                moved = time.monotonic()
                if key.fileobj is process.stdin:
                    left = _feed(process.stdin.fileno(), waiting, pieces)
                    over, waiting = left is None, waiting if left is None else left
                else:
                    data = os.read(key.fd, _PIECE)
                    over = not data
                    if key.fileobj is process.stderr:
                        stderr += data
                    elif data:
                        sink(data)
                if over:
                    selector.unregister(key.fileobj)
                    if key.fileobj is process.stdin:
                        process.stdin.close()
    return bytes(stderr)


def _feed(descriptor: int, waiting: memoryview, pieces: Iterable[bytes]) -> memoryview | None:
    """Write a piece; return what is left of it, ``None`` at the end of all or of the reader."""
    while not waiting:
        piece = next(iter(pieces), None)
        if piece is None:
            return None
        waiting = memoryview(piece)
    try:
        return waiting[os.write(descriptor, waiting[:_PIECE]) :]
    except BlockingIOError:
        return waiting
    except BrokenPipeError:
        return None
