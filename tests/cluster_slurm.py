"""Clusters on a real Slurm: fixtures, and what the tests look at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cjdask.testing import until

if TYPE_CHECKING:
    from cjdask import ClusterjobCluster

SMALL: dict[str, Any] = {"ppn": 2, "mem": 600, "time": "00:10:00"}


def squeue(name: str) -> list[str]:
    """List the states of the jobs of that name, each task of an array."""
    argv = ["squeue", "--noheader", "--me", "--array", f"--name={name}", "--format=%T"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def sacct(*ids: str) -> list[str]:
    """List the final states of jobs in the accounting."""
    argv = ["sacct", "-X", "--noheader", "--parsable2", "--format=State", f"--jobs={','.join(ids)}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def scontrol(job_id: str) -> list[str]:
    """List what Slurm knows of a job: words such as ``Account=project``."""
    argv = ["scontrol", "show", "job", "--oneliner", job_id]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def slurm_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the jobs of a test a name of their own, and see that none is left."""
    name = f"cjdask-{os.getpid()}-{request.node.name[:30].replace('[', '-').rstrip(']')}"
    yield name
    try:
        until(lambda: not squeue(name), 40)
    finally:
        subprocess.run(["scancel", "--me", f"--name={name}"], check=False)


@pytest.fixture
def slurm_cluster(
    slurm_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., ClusterjobCluster]:
    """Start clusters of small jobs in a folder that all nodes see."""
    from cjdask import ClusterjobCluster

    monkeypatch.chdir(tmp_path)

    def start(**options: Any) -> ClusterjobCluster:
        options = {**SMALL, "job_name": slurm_name, "dashboard_address": ":0", **options}
        return ClusterjobCluster(backend="slurm", **options)

    return start
