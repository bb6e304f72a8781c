"""Drivers that are killed at any instant and started again: one job each, none lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cjdask.backends.local import PROGRAM
from cjdask.testing import until
from tests.crash_driver import STARTED, jobname

ROOT = Path(__file__).parents[1]
COUNT = 20
FULL = os.environ.get("CJDASK_CRASHES") == "all"
"""Whether drivers die at every step and at many instants, which takes minutes, or at some."""


def drive(backend: str, folder: Path, count: int, *step: str) -> subprocess.Popen[bytes]:
    """Start a driver."""
    argv = [sys.executable, "-m", "tests.crash_driver", backend, str(folder), str(count), *step]
    with (folder / "stderr").open("ab") as stderr:
        return subprocess.Popen(argv, cwd=ROOT, stderr=stderr)


def shown(*argv: str) -> str:
    """Return what a command prints."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def local_jobs(folder: Path) -> int:
    """Count the jobs that the embedded scheduler ever had of a folder."""
    lines = shown(sys.executable, str(PROGRAM), "query", "--all").splitlines()
    return [json.loads(line)["jobname"] for line in lines].count(jobname(folder))


def slurm_jobs(folder: Path) -> int:
    """Count the jobs of a folder in Slurm's accounting."""
    which = ("--starttime=now-1hours", f"--name={jobname(folder)}")
    return len(shown("sacct", "-X", "-n", "-P", "--format=JobID", *which).splitlines())


def sge_jobs(folder: Path) -> int:
    """Count the jobs of a folder in the records of Grid Engine, which come up to 15 s late."""
    lines = shown("qacct", "-j", jobname(folder)).splitlines()
    return sum(line.startswith("jobnumber") for line in lines)


SCHEDULERS: dict[str, Callable[[Path], int]] = {
    "local": local_jobs,
    "slurm": slurm_jobs,
    "sge": sge_jobs,
}
ON = [
    "local",
    pytest.param("slurm", marks=pytest.mark.slurm),
    pytest.param("sge", marks=pytest.mark.sge),
]
INSTANTS = {"local": 50, "slurm": 200, "sge": 50} if FULL else {"local": 4, "slurm": 4, "sge": 3}
ON_SOME = ON if FULL else ON[:2]
MOST_IN_A_ROUND = 10
FIRST_STEP = 1 if FULL else 5


@pytest.fixture(autouse=True)
def scheduler(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Need the scheduler of the test; the embedded one is the test's own."""
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "4")
    params = getattr(request.node, "callspec", None)
    backend = params.params["backend"] if params else "local"
    if backend != "local":
        request.getfixturevalue(backend)


def check(backend: str, folder: Path, count: int) -> None:
    """Check that there was one job each, and that every job and every epilogue ran once."""
    for kind in ("result", "epilogue"):
        for i in range(count):
            assert (folder / f"{kind}.{i}").read_text() == f"{i}\n", (kind, i)
    for i in range(count):
        assert set((folder / f"prologue.{i}").read_text().split()) == {str(i)}
    deadline = time.monotonic() + (20 if backend == "slurm" else 60)
    while (jobs := SCHEDULERS[backend](folder)) < count and time.monotonic() < deadline:
        time.sleep(0.5)
    assert jobs == count


def leftovers(folder: Path) -> set[str]:
    """Return the tags of runs of which files are left in the folder of the jobs."""
    return {path.name.split(".")[0] for path in (folder / ".cjdask").glob("cjdask-*")}


def submitted(folder: Path) -> int:
    """Return how many runs of a folder have the id of their job in the journal."""
    files = (folder / "cache").glob("*.json")
    return sum(json.loads(file.read_text())["job_id"] is not None for file in files)


def killed_after(folder: Path, backend: str, seconds: float) -> int:
    """Start a driver, and kill it some time after it has begun unless it ended before.

    Return its exit code.
    """
    (folder / STARTED).unlink(missing_ok=True)
    driver = drive(backend, folder, COUNT)
    try:
        until((folder / STARTED).exists, 100, 0.01)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(seconds)
    finally:
        driver.kill()
    return driver.wait()


@pytest.mark.long
@pytest.mark.timeout(2400 if FULL else 200)
@pytest.mark.parametrize("backend", ON)
def test_killed_at_random(tmp_path: Path, backend: str) -> None:
    """Drivers of 20 jobs killed at random instants leave 20 jobs, results and epilogues.

    How long they live is fitted to the machine: longer while they die before they get anywhere.
    """
    chance = random.Random(backend)
    kills = rounds = 0
    span, at = 1.0, []
    while kills < INSTANTS[backend]:
        folder = tmp_path / f"round-{rounds}"
        folder.mkdir()
        rounds += 1
        code = None
        last = min(kills + MOST_IN_A_ROUND, INSTANTS[backend])
        while code != 0:
            before = submitted(folder)
            code = killed_after(folder, backend, chance.uniform(0, span) if kills < last else 100)
            assert code in (0, -signal.SIGKILL), (folder / "stderr").read_text()
            if code != 0:
                kills += 1
                at.append(submitted(folder))
                span *= 1.3 if at[-1] == before < COUNT else 0.9
        check(backend, folder, COUNT)
        assert leftovers(folder) == set()
    print(f"{backend}: {kills} kills, {rounds} times {COUNT} jobs, so many submitted: {at}")
    if FULL:
        assert any(0 < count < COUNT for count in at), "no driver died between two submissions"


def killed_at_steps(backend: str, base: Path, stride: int, *before: str) -> set[str]:
    """Kill drivers of one job at each step, and start another one; return the steps.

    With ``before`` an earlier one was killed at that step, so that they have to find its job.
    """
    places, folders = [], []
    for step in range(FIRST_STEP, 300, stride):
        folder = base / str(step)
        folder.mkdir()
        for first in before:
            assert drive(backend, folder, 1, first).wait(100) == -signal.SIGKILL
        code = drive(backend, folder, 1, str(step)).wait(100)
        assert code in (0, -signal.SIGKILL), (folder / "stderr").read_text()
        folders.append(folder)
        if code == 0:
            break
        places.append((folder / "steps").read_text().splitlines()[-1])
        assert drive(backend, folder, 1).wait(100) == 0, (folder / "stderr").read_text()
    for folder in folders:
        check(backend, folder, 1)
        assert leftovers(folder) == set()
    assert step > 20, "the steps are no longer those of the code"
    print(f"{backend}: killed at {len(places)} steps: {', '.join(places)}")
    return set(places)


@pytest.mark.long
@pytest.mark.timeout(1500 if FULL else 200)
@pytest.mark.parametrize("backend", ON)
def test_killed_at_each_step(tmp_path: Path, backend: str) -> None:
    """A driver killed before and after each step, and started again, leaves one job."""
    stride = 1 if FULL else 11 if backend == "local" else 31
    places = killed_at_steps(backend, tmp_path, stride)
    if FULL:
        for name in ("run_script", "JournalFile._replace", "Scheduler.submit", "run_once"):
            assert {f"before {name}", f"after {name}"} <= places


@pytest.mark.long
@pytest.mark.timeout(1500 if FULL else 200)
@pytest.mark.parametrize("backend", ON_SOME)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_recovers(tmp_path: Path, backend: str, moment: str) -> None:
    """A driver that looks for the job of one that was killed may be killed as well."""
    stride = 1 if FULL else 13 if backend == "local" else 29
    places = killed_at_steps(backend, tmp_path, stride, f"{moment} Scheduler.submit")
    if FULL:
        names = ["begun_as", "JournalFile._replace", "run_once"]
        names += ["Scheduler.find", "Scheduler.submit"] if moment == "before" else []
        for name in names:
            assert {f"before {name}", f"after {name}"} <= places


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("backend", ON_SOME)
def test_two_drivers_at_once(tmp_path: Path, backend: str) -> None:
    """Two drivers with the same ids at the same time have one job each."""
    drivers = [drive(backend, tmp_path, COUNT) for _ in range(2)]
    assert [driver.wait(100) for driver in drivers] == [0, 0], (tmp_path / "stderr").read_text()
    check(backend, tmp_path, COUNT)
    assert {(tmp_path / f"prologue.{i}").read_text() for i in range(COUNT)} == {
        f"{i}\n" for i in range(COUNT)
    }
