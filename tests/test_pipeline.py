"""The example of a pipeline: submitted by some processes, waited for by others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cjdask.backends.local import PROGRAM

EXAMPLE = Path(__file__).parent.parent / "examples" / "pipeline"
ANSWER = "pi is about 3.141, by 8 samples\n"

Tool = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["make", "doit"])
def tool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Return what starts make or doit in a copy of the example, on an embedded scheduler."""
    name: str = request.param
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    return in_copy(name, tmp_path / "pipeline", monkeypatch, "local")


def in_copy(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> Tool:
    """Copy the example and return what starts a tool there."""
    if shutil.which("make") is None and name == "make":
        pytest.skip("make is not installed here")
    shutil.copytree(EXAMPLE, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BACKEND", backend)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    argv = {
        "make": ["make", "-j", f"PYTHON={sys.executable}"],
        "doit": [sys.executable, "-W", "default", "-m", "doit", "-n", "2", "-P", "thread"],
    }[name]

    def start() -> subprocess.Popen[str]:
        with open("tool.log", "a") as log:
            return subprocess.Popen(
                argv, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )

    return start


def jobs() -> list[str]:
    """Return the ids of all jobs and tasks that the embedded scheduler ever had."""
    argv = [sys.executable, str(PROGRAM), "query", "--all"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sorted(json.loads(line)["id"] for line in text.splitlines())


ALL = sorted([*(f"1_{i}" for i in range(1, 9)), "2"])


@pytest.mark.long
def test_each_step_once(tool: Tool) -> None:
    """The steps run in their order, and starting the tool again submits nothing."""
    for _ in range(2):
        assert tool().wait(60) == 0, Path("tool.log").read_text()
    assert Path("build/pi.txt").read_text() == ANSWER
    assert jobs() == ALL


@pytest.mark.long
def test_killed_at_some_time(tool: Tool) -> None:
    """A tool that is killed with all its processes, again and again, goes on where it was."""
    code, pause = None, 0.2
    while code != 0:
        process = tool()
        try:
            code = process.wait(pause)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert code in (None, 0), Path("tool.log").read_text()
        pause += 0.15
    assert pause > 0.5
    assert Path("build/pi.txt").read_text() == ANSWER
    assert jobs() == ALL


@pytest.mark.long
def test_a_failed_task_alone_is_repeated(tool: Tool) -> None:
    """When a task fails the tool says which, and its next start repeats that task only."""
    Path("build/hits.3").mkdir(parents=True)
    assert tool().wait(60) != 0
    log = Path("tool.log").read_text()
    assert "sample, job 1, task 3: FAILED (NONZERO_EXIT, exit code 1)" in log
    Path("build/hits.3").rmdir()
    deadline = time.monotonic() + 30
    while tool().wait(60) != 0:
        assert time.monotonic() < deadline, Path("tool.log").read_text()
    assert Path("build/pi.txt").read_text() == ANSWER
    repeated = [job_id for job_id in jobs() if "_" in job_id and not job_id.startswith("1_")]
    assert [job_id.partition("_")[2] for job_id in repeated] == ["3"]


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real Slurm make submits an array and a job that depends on it, and waits for both."""
    make = in_copy("make", tmp_path / "pipeline", monkeypatch, "slurm")
    assert make().wait(100) == 0, Path("tool.log").read_text()
    assert Path("build/pi.txt").read_text() == ANSWER
