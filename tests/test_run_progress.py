"""The line that shows how far many runs are."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cjdask.run_progress import drawn, progress_line
from cjdask.status import Status
from tests.cli import terminal

COUNTS = {Status.PENDING: 180, Status.RUNNING: 12, Status.COMPLETED: 105, Status.FAILED: 3}

PROGRAM = """
import time
from cjdask.run_progress import progress_line
from cjdask.status import Status

left = 1

def counts():
    return {Status.PENDING: left, Status.FAILED: 1 - left}

with progress_line(counts, "calls"):
    with progress_line(counts, "inner calls"):
        print("said meanwhile")
        while left:
            time.sleep(0.6)
            left -= 1
"""


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_line_is_one_line(width: int) -> None:
    """It fits in a terminal of any width, and says first how many have ended."""
    console = Console(width=width, file=StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawn(COUNTS, "runs", 75.0, width))
    (line,) = capture.get().splitlines()
    assert "108/300 runs" in line
    assert len(line) <= width
    assert ("3 failed, 105 completed, 12 running, 180 pending  00:01:15" in line) == (width >= 80)


def test_nothing_is_shown_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a terminal nothing is written, and the counts are not asked for."""

    def counts() -> dict[Status, int]:
        raise AssertionError("nobody should ask")

    with progress_line(counts):
        pass
    assert capfd.readouterr() == ("", "")


def test_rich_is_loaded_only_where_it_shows() -> None:
    """Without a terminal rich is not even loaded."""
    code = f"{PROGRAM}\nimport sys; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["said meanwhile", "False"]


def test_a_terminal_shows_it() -> None:
    """In a terminal it is redrawn in its place, once for nested blocks, with prints above it."""
    with terminal(sys.executable, "-c", PROGRAM) as window:
        text = window.wait()
    assert window.process.returncode == 0
    assert "said meanwhile\r\n" in text
    assert "0/1 calls" in text
    assert "1/1 calls" in text
    assert "inner" not in text
    assert text.count("\r\n") <= 4, "the line scrolls"
    assert text.endswith(("\x1b[?25h", "\r\n")), "the cursor is hidden"


def test_a_dumb_terminal_shows_nothing() -> None:
    """A terminal that cannot move its cursor gets no line."""
    code = PROGRAM.replace("import time", "import os, time; os.environ['TERM'] = 'dumb'")
    with terminal(sys.executable, "-c", code) as window:
        assert window.wait() == "said meanwhile\r\n"


def test_it_can_be_switched_off() -> None:
    """With ``show=False`` a terminal gets no line either."""
    code = PROGRAM.replace('"calls")', '"calls", show=False)').replace('inner calls"', 'x", False')
    with terminal(sys.executable, "-c", code) as window:
        assert window.wait() == "said meanwhile\r\n"


WAITING = """
from cjdask import JobScript, as_completed, wait_all

runs = [JobScript(f"sleep 0.{n}", f"job{n}", backend="local").submit() for n in (1, 2)]
print([str(status.name) for status in wait_all(runs, timeout=60, progress=PROGRESS)])
print(len(list(as_completed(runs, progress=PROGRESS))))
"""


@pytest.mark.parametrize("progress", [True, False])
def test_waiting_for_runs_shows_it(
    progress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``wait_all`` and ``as_completed`` show the line in a terminal, unless it is switched off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    code = WAITING.replace("PROGRESS", str(progress))
    with terminal(sys.executable, "-c", code, width=100) as window:
        text = window.wait()
    assert "['COMPLETED', 'COMPLETED']" in text
    assert ("2/2 runs" in text) == progress
    assert ("2 completed" in text) == progress
