"""Epilogues: once, by whichever process sees the end first, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

EPILOGUE = "echo begun >>told; while [ ! -e finish ]; do sleep 0.05; done; echo over >>told"
SUBMIT = f"""
import os, sys
from cjdask import JobScript
how, epilogue = sys.argv[1:]
body = "while [ ! -e go ]; do sleep 0.05; done"
job = JobScript(body, "j", backend="local", rootdir="jobs", epilogue=epilogue or {EPILOGUE!r})
if how == "cached":
    job.submit(cache_id="a").dump("run.json")
else:
    job.submit().dump("run.json")
os._exit(9)  # nothing is tidied up
"""
SEE = """
import sys
from cjdask import AsyncResult, ScriptError
run = AsyncResult.load("run.json")
if "cancel" in sys.argv:
    run.cancel()
try:
    print(run.get(timeout=60).name)
except ScriptError as error:
    print("told:", "code 4" in str(error), run.status.name)
"""

Python = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Python:
    """Return what starts a process with an embedded scheduler of the test."""
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    Path("jobs").mkdir()

    def start(*argv: str) -> subprocess.Popen[str]:
        command = (sys.executable, "-W", "error", "-c", *argv)
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE)

    return start


def answer(process: subprocess.Popen[str]) -> str:
    """Return what a process printed until its end."""
    return process.communicate(timeout=90)[0].strip()


def submit(python: Python, how: str, epilogue: str = "") -> None:
    """Submit a job by a process that ends without tidying up."""
    process = python(SUBMIT, how, epilogue)
    process.communicate(timeout=60)
    assert process.returncode == 9


def await_text(text: str, name: str = "told") -> None:
    """Wait until a file has this text."""
    deadline = time.monotonic() + 30
    while not Path(name).exists() or Path(name).read_text() != text:
        assert time.monotonic() < deadline, Path(name).read_text()
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("how", ["cached", "dumped"])
def test_the_submitting_process_is_gone(python: Python, how: str) -> None:
    """Two other processes see the end at the same time; one runs the epilogue, both wait for it."""
    submit(python, how)
    others = [python(SEE), python(SEE)]
    Path("jobs/go").touch()
    await_text("begun\n")
    time.sleep(0.3)
    assert [process.poll() for process in others] == [None, None]
    Path("finish").touch()
    assert [answer(process) for process in others] == ["COMPLETED"] * 2
    assert answer(python(SEE)) == "COMPLETED"
    assert Path("told").read_text() == "begun\nover\n"


@pytest.mark.long
@pytest.mark.parametrize("how", ["cached", "dumped"])
def test_after_a_cancel(python: Python, how: str) -> None:
    """The epilogue of a cancelled run is run once too, also where several processes cancel."""
    submit(python, how)
    Path("finish").touch()
    others = [python(SEE, "cancel"), python(SEE), python(SEE, "cancel")]
    assert [answer(process) for process in others] == ["CANCELLED"] * 3
    assert answer(python(SEE)) == "CANCELLED"
    assert Path("told").read_text() == "begun\nover\n"


def test_its_process_is_killed(python: Python) -> None:
    """An epilogue goes on when the process that started it is killed, and is not started again."""
    submit(python, "cached")
    first = python(SEE)
    Path("jobs/go").touch()
    await_text("begun\n")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    second = python(SEE)
    time.sleep(0.3)
    assert second.poll() is None
    Path("finish").touch()
    assert answer(second) == "COMPLETED"
    assert Path("told").read_text() == "begun\nover\n"


def test_a_failure_is_told_once(python: Python) -> None:
    """One process is told that the epilogue failed, with its output; the status stays right."""
    submit(python, "cached", "echo >>told; exit 4")
    Path("jobs/go").touch()
    others = [python(SEE), python(SEE)]
    assert sorted(map(answer, others)) == ["COMPLETED", "told: True COMPLETED"]
    assert answer(python(SEE)) == "COMPLETED"
    assert Path("told").read_text() == "\n"
