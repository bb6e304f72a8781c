"""Job scripts on a real Slurm: what a body prints, and what a refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cjdask import JobScript, Status, SubmitError

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def job(folder: Path, body: str, **kwargs: Any) -> JobScript:
    """Return a small job for Slurm."""
    asked = {"time": "5", "mem": 100, **kwargs}
    return JobScript(body, "jobs", backend="slurm", rootdir=str(folder), **asked)


def test_shell_text_runs_as_it_was_written(tmp_path: Path) -> None:
    """Braces of the shell and of awk do on a node what they do anywhere."""
    body = r"""
f=data.x; a=(one two)
echo ${f%.x} ${a[0]}
echo "left right" | awk '{print $1}'
f() { :; }; f && echo called
echo {1..3} {a,b} {}
echo {queue} {{queue}} "${CLUSTERJOB_NAME}" ${#a[@]}
"""
    run = job(tmp_path, body, queue="debug").submit()
    assert run.get(timeout=60) is Status.COMPLETED
    assert run.stdout().splitlines() == [
        "data one",
        "left",
        "called",
        "1 2 3 a b {}",
        "debug {queue} jobs 2",
    ]


def test_auxiliary_scripts_lie_beside_the_job(tmp_path: Path) -> None:
    """A job calls its auxiliary script, which was rendered with the job's resources."""
    script = JobScript(
        "./aux.sh",
        "aux",
        {"aux.sh": "echo {threads} threads in $CLUSTERJOB_ID"},
        backend="slurm",
        rootdir=str(tmp_path),
        threads=2,
        time="5",
    )
    run = script.submit()
    assert run.get(timeout=60) is Status.COMPLETED
    assert run.stdout().split() == ["2", "threads", "in", run.job_id]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"queue": "nosuch"}, "invalid partition specified: nosuch"),
        ({"time": "1-00:00:00"}, "Requested time limit is invalid"),
        ({"account": "nosuch"}, "Invalid account"),
        ({"nodes": 99}, "More processors requested than permitted"),
        ({"mem": "990GiB"}, "Memory specification can not be satisfied"),
    ],
)
def test_a_refusal_has_slurm_s_own_words(tmp_path: Path, asked: dict[str, Any], told: str) -> None:
    """What sbatch says, the command and its exit code are in the error."""
    with pytest.raises(SubmitError) as caught:
        job(tmp_path, "true", **asked).submit()
    assert told in str(caught.value)
    assert "sbatch --parsable" in str(caught.value)
    assert caught.value.output is not None
    assert caught.value.output.exit_code == 1


def test_blocking_returns_the_final_status(tmp_path: Path) -> None:
    """``submit(block=True)`` waits, and returns how the job ended."""
    assert job(tmp_path, "exit 1").submit(block=True) is Status.FAILED
