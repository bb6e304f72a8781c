"""The command line on a real Slurm, as a person on a login node uses it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask.cli_group import Exit
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.testing import until
from tests.cli import cjdask, rows, start
from tests.ssh_hosts import LOGIN, SSH

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

SLURM = ("--backend", "slurm", "--time", "5", "--mem", "50")


@pytest.fixture(autouse=True)
def no_job_stays(own_folder: Path) -> Iterator[None]:
    """Cancel what a test has left."""
    yield
    cjdask("cancel", "--all")


def submit(body: str, *options: str) -> str:
    """Submit a job and return its id."""
    done = cjdask("submit", "-", *SLURM, *options, input=body)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def counting() -> dict[str, int]:
    """Return how many commands of each kind were run so far."""
    scheduler: Scheduler = scheduler_for("slurm")
    return dict(scheduler.commands)


def more(before: dict[str, int], verb: str) -> int:
    """Return how many commands of a kind were run since."""
    return counting().get(verb, 0) - before.get(verb, 0)


def test_a_job_from_its_script_to_its_end() -> None:
    """A script on two nodes is submitted, followed while it runs, and its end is told."""
    Path("job.sh").write_text("srun hostname\necho begun\nsleep 3\necho {word}\nexit 5\n")
    options = ("--nodes", "2", "--ppn", "1", "--set", "word=ended", "--stderr", "errors")
    done = cjdask("submit", "job.sh", *SLURM, *options)
    job = done.stdout.strip()
    with start("logs", "-f", job) as process:
        assert process.stdout is not None
        hosts = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        assert len(hosts) == 2
        assert process.stdout.readline() == "begun\n"
        (row,) = rows(cjdask("status", job, "--json"))
        assert (row["status"], set(row["nodes"])) == ("RUNNING", hosts)
        rest, notes = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("ended\n", Exit.FAILED)
    assert f"cjdask: {job} is FAILED (NONZERO_EXIT, exit code 5)" in notes
    assert cjdask("wait", job).exit_code == Exit.FAILED
    assert cjdask("logs", job, "-n", "1").stdout == "ended\n"


def test_many_jobs_at_once() -> None:
    """A dozen jobs are asked for with one squeue and cancelled with one scancel."""
    first = submit("sleep 300", "--cache-id", "first")
    for number in range(11):
        submit("true", "--depends", first, "--cache-id", f"case-{number}")
    before = counting()
    done = cjdask("status")
    assert len(done.stdout.splitlines()) == 13
    assert more(before, "query") == 1
    pending = rows(cjdask("status", "case-*", "--state", "pending", "--json"))
    assert len(pending) == 11
    assert pending[0]["jobname"] == "job"
    assert cjdask("cancel", "case-*").exit_code == 0
    assert cjdask("cancel", "first").exit_code == 0
    assert more(before, "cancel") == 2
    assert cjdask("wait").exit_code == Exit.CANCELLED
    assert {row["status"] for row in rows(cjdask("list", "--json"))} == {"CANCELLED"}


def test_tasks_of_an_array() -> None:
    """Tasks are cancelled, waited for and read by their own names."""
    body = 'echo task $CLUSTERJOB_ARRAY_INDEX; [ "$CLUSTERJOB_ARRAY_INDEX" != 3 ] || sleep 300'
    job = submit(body, "--array", "1-3", "--cache-id", "sweep")
    assert cjdask("wait", f"{job}_1", "sweep_2").exit_code == 0
    assert cjdask("logs", "sweep_2").stdout == "task 2\n"
    assert cjdask("cancel", "sweep_3").exit_code == 0
    assert cjdask("wait", "sweep").exit_code == Exit.CANCELLED
    (row,) = rows(cjdask("status", "sweep", "--json"))
    assert row["tasks"] == {"COMPLETED": 2, "CANCELLED": 1}


def test_jobs_that_somebody_else_submitted() -> None:
    """Jobs and arrays of a plain sbatch are shown, followed and cancelled by their ids."""
    ids = []
    for more_options in ([], ["--array=1-2"]):
        command = [
            "sbatch",
            "--parsable",
            "--mem=50",
            *more_options,
            "--wrap",
            "echo hi; sleep 300",
        ]
        ids.append(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        )
    single, array = ids
    options = ("--backend", "slurm")
    try:
        until(lambda: "RUNNING" in cjdask("status", single, *options).stdout, 60, 0.5)
        assert until(lambda: cjdask("logs", single, *options).stdout, 20, 0.2) == "hi\n"
        (row,) = rows(cjdask("status", array, "--json", *options))
        assert sum(row["tasks"].values()) == 2
    finally:
        assert cjdask("cancel", single, array, *options).exit_code == 0
    assert cjdask("wait", single, array, *options).exit_code == Exit.CANCELLED
    unknown = cjdask("status", "99999999", *options)
    assert unknown.exit_code == Exit.USAGE
    assert "slurm knows no job of that id" in unknown.stderr


def test_what_slurm_refuses() -> None:
    """A refusal has the words of sbatch, and leaves no run."""
    done = cjdask("submit", "-", *SLURM, "--queue", "nosuch", input="true\n")
    assert done.exit_code == Exit.ERROR
    assert "invalid partition specified: nosuch" in done.stderr
    assert cjdask("list").stdout == ""


def test_a_watched_run_tells_its_changes() -> None:
    """Into a pipe ``status -w`` writes each change once, until the end."""
    job = submit("sleep 2", "-o", "begin=now+2")
    begun = time.monotonic()
    with start("status", "-w", job, "--json") as process:
        out, _ = process.communicate(timeout=80)
    told = [line.split('"status": "')[1].split('"')[0] for line in out.splitlines()]
    assert told == [word for word in ("PENDING", "RUNNING", "COMPLETED") if word in told]
    assert told[-1] == "COMPLETED"
    assert time.monotonic() - begun < 75


@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts")
def test_a_cluster_that_is_reached_by_ssh(open_folder: Path) -> None:
    """From a machine without a scheduler a job is submitted, followed and cancelled by ssh."""
    Path("user.ini").write_text(
        f"[Attributes]\nbackend = slurm\nremote = {LOGIN}\nssh = {SSH}\nrootdir = {open_folder}\n"
    )
    done = cjdask(
        *("submit", "-", "--time", "5", "--mem", "50", "--array", "1-2", "--cache-id", "far"),
        input="echo begun $CLUSTERJOB_ARRAY_INDEX\nsleep 2\nexit 3\n",
    )
    assert done.exit_code == 0, done.output
    followed = cjdask("logs", "-f", "far_2")
    assert (followed.exit_code, followed.stdout) == (Exit.FAILED, "begun 2\n")
    assert cjdask("wait").exit_code == Exit.FAILED
    assert cjdask("logs", "far_1", "-n", "1").stdout == "begun 1\n"
    long = cjdask("submit", "-", "--time", "5", "--mem", "50", input="sleep 300\n").stdout.strip()
    assert cjdask("cancel", long).exit_code == 0
    assert cjdask("wait", long).exit_code == Exit.CANCELLED
