"""The long-lived process of a pool that makes calls, as its parent on the node sees it.

The parent is a Dask worker. It makes no call itself: one that ends its process, or holds the
interpreter for long, would take the worker with it. What the two say to each other is in
`cjdask.executor_runner.serve`.
"""

from __future__ import annotations

import atexit
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import dumps, loads

__all__ = ["BatchResult", "go_on", "run_batch", "runner_program", "stop_call"]

_START = (
    "import sys; sys.path[:] = [{folder!r}] + [path for path in sys.path if path]; "
    "import executor_runner; del sys.path[0]; executor_runner.{entry}()"
)
"""Imports the runner by itself: as a script it would be compiled each time."""

HERE = os.path.dirname(os.path.abspath(__file__))
LOOK = 0.5
"""Seconds between two looks whether the process is there, where its pipe says nothing."""
LOG_BYTES = 4000
"""How much of what a process wrote is told when it ends."""
PATIENCE = 5.0
"""Seconds from TERM to KILL."""


def runner_program(
    python: str | Sequence[str], entry: str, *arguments: str, folder: str = HERE
) -> list[str]:
    """Return the program that starts the runner, which is in a folder, as a list of arguments."""
    words = [python] if isinstance(python, str) else list(python)
    return [*words, "-c", _START.format(folder=folder, entry=entry), *arguments]


@dataclass
class BatchResult:
    """What came of a batch of calls, which may not all have been made."""

    outcomes: list[tuple[bool, bytes]] = field(default_factory=list)
    """Of the first calls, whether each ended well and its outcome."""
    seconds: list[float] = field(default_factory=list)
    """How long each of these took."""
    going_on: bool = False
    """Whether the next call takes long, and is to be asked for by `go_on`."""
    exit_code: int | None = None
    """That of the process, where the next call ended it; below 0 it is that signal."""
    out_of_memory: bool = False
    """Whether the system ended it since memory was out."""
    log: str = ""
    """The end of what it wrote."""


class Process:
    """One process that makes calls; ``log`` is the file for what they print."""

    def __init__(self, log: str) -> None:
        self.log = log
        own, theirs = os.pipe(), os.pipe()
        try:
            with open(log, "ab") as output:
                self._process = subprocess.Popen(
                    runner_program(sys.executable, "serve", str(own[0]), str(theirs[1])),
                    pass_fds=(own[0], theirs[1]),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
        finally:
            os.close(own[0])
            os.close(theirs[1])
        self._source, self._target = theirs[0], own[1]
        self._kills = _memory_kills()

    def tell(self, message: object) -> None:
        """Send a message; that the process has ended shows when it is to answer."""
        data = dumps(message, -1)
        view = memoryview(len(data).to_bytes(8, "little") + data)
        with suppress(BrokenPipeError):
            while view:
                view = view[os.write(self._target, view) :]

    def answer(self, result: BatchResult, until: float) -> bool:
        """Take the answer to a call; tell whether the next can be made.

        It cannot where the process has ended, or still makes this one at the time ``until``.
        """
        try:
            head = self._read(17, until)
            outcome = head and self._read(int.from_bytes(head[1:9], "little"), math.inf)
        except TimeoutError:
            result.going_on = True
            return False
        if head and outcome:
            result.outcomes.append((bool(head[0]), outcome))
            result.seconds.append(int.from_bytes(head[9:], "little") / 1e6)
            return True
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # the call has closed the pipe
            self.kill()
            self._process.wait()
        result.exit_code = self._process.returncode
        result.log = self._tail()
        result.out_of_memory = _memory_kills() > self._kills
        return False

    def _tail(self) -> str:
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            return file.read().decode("utf-8", "backslashreplace")
        return ""

    def _read(self, size: int, until: float) -> bytes | None:
        """Read so many bytes, ``None`` where the process has ended before.

        That its pipe is open says nothing: the processes that a call started may hold it.
        """
        parts = []
        while size:
            left = until - time.monotonic()
            ready = select.select([self._source], [], [], max(0.0, min(LOOK, left)))[0]
            if not ready and left <= 0:
                raise TimeoutError
            if not ready and self._process.poll() is None:
                continue
            if not ready and not select.select([self._source], [], [], 0)[0]:
                return None
            part = os.read(self._source, min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        """End the process, at once if it is idle."""
        with suppress(OSError):
            os.close(self._target)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with suppress(OSError):
            os.close(self._source)

    def kill(self) -> None:
        """End the process whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()


_lock = threading.Lock()
_process: Process | None = None
_batch: str | None = None
_stopped: set[str] = set()


def run_batch(name: str, blob: bytes, log: str) -> BatchResult:
    """Make the calls of a batch in the process of this worker, which prints to a file.

    It ends before all are made when the time of the batch is used, so that somebody else makes
    the others. The last one has all the time that it takes.
    """
    result = BatchResult()
    batch = loads(blob)
    process = _take(name, log)
    if process is not None:
        process.tell(batch["setup"])
        until = time.monotonic() + batch["seconds"]
        last = len(batch["calls"]) - 1
        for number, (call, fn, args) in enumerate(batch["calls"]):
            process.tell((call, batch["functions"][fn], args))
            if not process.answer(result, until if number < last else math.inf):
                break
            if time.monotonic() > until:
                break
        _release(process, name, result)
    return result


def go_on(name: str) -> BatchResult:
    """Wait for the call that `run_batch` has left going on; the batch has a new name."""
    result = BatchResult()
    process = _take(name, "")
    if process is not None:
        process.answer(result, math.inf)
        _release(process, name, result)
    return result


def _take(name: str, log: str) -> Process | None:
    """Return the process for a batch, ``None`` if the batch was stopped before it began."""
    global _process, _batch
    with _lock:
        if name in _stopped:
            _stopped.discard(name)
            if not log and _process is not None:
                _process.kill()  # the call of this batch goes on in it
            else:
                return None
        if _process is None:
            _process = Process(log)
            atexit.register(_process.end)
        _batch = name
        return _process


def _release(process: Process, name: str, result: BatchResult) -> None:
    global _process, _batch
    with _lock:
        _batch = None
        _stopped.discard(name)
        if result.exit_code is not None:
            atexit.unregister(process.end)
            process.end()
            _process = None


def stop_call(name: str) -> None:
    """Stop a batch whose calls nobody waits for."""
    with _lock:
        if _batch == name and _process is not None:
            _process.kill()
        else:
            _stopped.add(name)


def _memory_kills() -> int:
    """Count the processes of this control group that the system has ended for want of memory."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                kind, file = ("memory", "oom_control") if kinds else ("", "events")
                path = Path("/sys/fs/cgroup", kind, group.lstrip("/"), f"memory.{file}")
                return int(path.read_text().rpartition("oom_kill ")[2].split()[0])
    return 0
