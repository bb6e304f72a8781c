"""Run the command ``cjdask``: in this process, as a process of its own, in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from cjdask.cli import main

PROGRAM = str(Path(sys.executable).parent / "cjdask")


def cjdask(*args: str, input: str | None = None) -> Result:
    """Run a command in this process, where standard output is no terminal."""
    return CliRunner().invoke(main, args, input=input, catch_exceptions=False)


def rows(result: Result) -> list[dict[str, Any]]:
    """Return the JSON objects that a command printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def start(*args: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own, with pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([PROGRAM, *args], text=True, **{**pipes, **kwargs})


class Terminal:
    """A process in a terminal of its own, and all that it has written there."""

    def __init__(self, *argv: str, width: int = 80, height: int = 24) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            env.pop(name, None)
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(argv, env=env, start_new_session=True, **streams)  # type: ignore[call-overload]
        os.close(slave)
        os.set_blocking(self._master, False)
        self.text = ""

    def read(self) -> str:
        """Return all that was written so far."""
        with suppress(OSError):  # nothing now, or nobody holds the terminal any more
            while data := os.read(self._master, 65536):
                self.text += data.decode("utf-8", "replace")
        return self.text

    def wait(self, seconds: float = 60.0) -> str:
        """Wait for the end of the process, and return all that it wrote."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.read()
            self.read()
            time.sleep(0.02)
        return self.read()

    def close(self) -> None:
        """End the process if it is still there."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(*argv: str, width: int = 80, height: int = 24) -> Iterator[Terminal]:
    """Run a program in a terminal of that size."""
    opened = Terminal(*argv, width=width, height=height)
    try:
        yield opened
    finally:
        opened.close()
