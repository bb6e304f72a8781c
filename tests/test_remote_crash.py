"""Drivers of jobs behind ssh that are killed at any instant: one job each, none lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask.testing import until
from tests.crash_driver import jobname
from tests.ssh_hosts import LOGIN, PLAIN, reach
from tests.test_journal_crash import COUNT, FULL, drive

pytestmark = [pytest.mark.ssh, pytest.mark.usefixtures("ssh_hosts")]
KILLS = int(os.environ.get("CJDASK_KILLS", 200 if FULL else 4))
MOST_IN_A_ROUND = 10


def slurm_jobs(folder: Path) -> int:
    """Count the jobs of a folder in Slurm's accounting, whoever's they are."""
    which = ("--allusers", "--starttime=now-1hours", f"--name={jobname(folder)}")
    argv = ["sacct", "-X", "-n", "-P", "--format=JobID", *which]
    return len(subprocess.run(argv, capture_output=True, text=True).stdout.splitlines())


def embedded_jobs(folder: Path) -> int:
    """Count the jobs that the embedded scheduler of the host ever had of a folder."""
    script = (
        "for file in ~/.local/share/cjdask/embedded-*.py; do :; done; python3 $file query --all"
    )
    with reach("ssh", PLAIN) as protocol:
        answer = protocol.run(["sh", "-c", script])
    assert answer.exit_code == 0
    return answer.stdout.count(f'"{jobname(folder)}"')


def check(folder: Path, count: int, jobs: int) -> None:
    """Check that there was one job each, and that every job and every epilogue ran once."""
    for kind in ("result", "epilogue"):
        for i in range(count):
            assert (folder / f"{kind}.{i}").read_text() == f"{i}\n", (kind, i)
    assert jobs == count


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that connections end with their processes, and leave nothing.

    A process that is killed before it has begun to connect may leave an empty folder.
    """
    with tempfile.TemporaryDirectory(prefix="cjdask-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield
        until(lambda: not list(Path(folder).glob("cjdask-ssh-*/*")))


@pytest.mark.timeout(1500 if FULL else 200)
def test_killed_at_each_step(open_folder: Path) -> None:
    """A driver killed before and after each step, and started again, has its job run once."""
    for step in range(1, 400, 1 if FULL else 23):
        folder = open_folder / str(step)
        folder.mkdir(mode=0o777)
        code = drive(f"local@{PLAIN}", folder, 1, str(step)).wait(100)
        assert code in (0, -signal.SIGKILL), (folder / "stderr").read_text()
        assert drive(f"local@{PLAIN}", folder, 1).wait(100) == 0, (folder / "stderr").read_text()
        check(folder, 1, embedded_jobs(folder))
        if code == 0:
            break
    assert step > 40, "the steps are no longer those of the code"


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
@pytest.mark.timeout(3000 if FULL else 200)
def test_killed_at_random_on_slurm(open_folder: Path) -> None:
    """On a Slurm behind ssh drivers of 20 jobs killed at random have 20 jobs and all results."""
    chance = random.Random(3)
    kills = rounds = 0
    while kills < KILLS:
        folder = open_folder / f"round-{rounds}"
        folder.mkdir(mode=0o777)
        rounds += 1
        code, last = None, min(kills + MOST_IN_A_ROUND, KILLS)
        while code != 0:
            driver = drive(f"slurm@{LOGIN}", folder, COUNT)
            try:
                driver.wait(chance.uniform(0.2, 6.0) if kills < last else 100)
            except subprocess.TimeoutExpired:
                driver.send_signal(signal.SIGKILL)
                kills += 1
            code = driver.wait()
            assert code in (0, -signal.SIGKILL), (folder / "stderr").read_text()
        until(lambda folder=folder: slurm_jobs(folder) >= COUNT)
        check(folder, COUNT, slurm_jobs(folder))
    print(f"{kills} kills, {rounds} times {COUNT} jobs")
