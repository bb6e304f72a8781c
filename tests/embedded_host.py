"""Drive the embedded scheduler as its users do: as a program, on a state directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cjdask.testing import until

PROGRAM = Path(__file__).parents[1] / "cjdask" / "embedded.py"
ENDED = ("COMPLETED", "CANCELLED", "FAILED")


def runs(pid: int) -> bool:
    """Tell whether a process is alive and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


class EmbeddedHost:
    """A state directory, a work directory, and the commands on them."""

    def __init__(self, base: Path, slots: int = 2, python: str = sys.executable) -> None:
        self.state = base / "state"
        self.work = base / "work"
        self.work.mkdir()
        self.python = python
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("CJ")}
        self.env.update(CJDASK_EMBEDDED_DIR=str(self.state), CJDASK_EMBEDDED_KILL_GRACE="0.5")
        self.run("config", f"--slots={slots}")

    def command(self, *words: str) -> list[str]:
        """Return the command line of a command of the program."""
        return [self.python, str(PROGRAM), *words]

    def run(
        self, *words: str, code: int = 0, env: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Run a command, check its exit code, and return the lines that it printed."""
        done = subprocess.run(
            self.command(*words),
            env={**self.env, **(env or {})},
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refuse(self, *words: str, code: int = 1) -> str:
        """Run a command that is refused, and return the message."""
        done = subprocess.run(
            self.command(*words), env=self.env, cwd=self.work, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.startswith("cjdask-embedded: error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def script(self, body: str, name: str = "job.sh") -> str:
        """Write a job script and return its path."""
        path = self.work / name
        path.write_text("#!/bin/bash\n" + body + "\n")
        return str(path)

    def submit(self, body: str, *options: str, **more: Any) -> str:
        """Submit a script with this body and return its id."""
        return str(self.run("submit", *options, self.script(body), **more)[0]["id"])

    def query(self, *ids: str) -> list[dict[str, Any]]:
        """Return the lines of a query."""
        return self.run("query", *ids)

    def job(self, text: str) -> dict[str, Any]:
        """Return the one line of a query of one job or task."""
        (line,) = self.query(text)
        return line

    def wait(self, *ids: str, seconds: float = 30.0) -> list[dict[str, Any]]:
        """Wait for the end of jobs and return their lines."""

        def ended() -> list[dict[str, Any]]:
            lines = self.query(*ids)
            return lines if all(line["state"] in ENDED for line in lines) else []

        return until(ended, seconds, 0.05)

    def end(self, text: str) -> tuple[str, str]:
        """Wait for the end of one job or task, and return its state and reason."""
        (line,) = self.wait(text)
        return line["state"], line["reason"]

    def wait_running(self, text: str) -> dict[str, Any]:
        """Wait until a job runs, and return its line."""
        return until(lambda: (line := self.job(text))["state"] == "RUNNING" and line)

    def text(self, name: str) -> str:
        """Return what jobs wrote to a file so far."""
        path = self.work / name
        return path.read_text() if path.exists() else ""

    def wait_file(self, name: str) -> str:
        """Wait until a job wrote a whole line to a file, and return that line."""
        return until(lambda: self.text(name).endswith("\n") and self.text(name).strip())

    def supervisor(self, text: str) -> int:
        """Return the pid of the supervisor of a running job."""
        number, _, index = text.partition("_")
        name = f"task-{index}.json" if index else "task.json"
        record = json.loads((self.state / "active" / number / name).read_text())
        return int(record["supervisor"].partition(":")[0])

    def manager(self) -> int | None:
        """Return the pid of the manager, None where none runs."""
        return self.run("info")[0]["manager_pid"]

    def processes(self) -> set[int]:
        """Return all processes that belong to this state directory: daemons and jobs."""
        marks = [
            f"\0{name}={self.state}\0".encode()
            for name in ("CJDASK_EMBEDDED_DIR", "CJ_EMBEDDED_ROLE")
        ]
        found = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environ = b"\0" + path.read_bytes()
            except OSError:
                continue
            if any(mark in environ for mark in marks) and runs(int(path.parts[2])):
                found.add(int(path.parts[2]))
        return found

    def wait_quiet(self) -> None:
        """Wait until no process of this state directory is left."""
        until(lambda: not self.processes())

    def close(self) -> None:
        """End everything that a test has left."""
        active = self.state / "active"
        if active.exists() and os.listdir(active):
            self.run("cancel", *os.listdir(active))
        deadline = time.monotonic() + 5
        while active.exists() and os.listdir(active) and time.monotonic() < deadline:
            time.sleep(0.02)
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
