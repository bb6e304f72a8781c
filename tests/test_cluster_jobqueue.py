"""The settings that dask-jobqueue 0.9 documents for SLURMCluster, read as it reads them."""

from __future__ import annotations

import re
import shlex
import warnings
from typing import Any

import dask.config
import pytest
from dask.utils import parse_bytes
from dask_jobqueue.slurm import SLURMJob

from cjdask.cluster_options import resolve
from cjdask.cluster_script import Recipe
from cjdask.resources import time_to_seconds

ADDRESS = "tcp://10.0.0.1:8786"

EXAMPLES: dict[str, dict[str, Any]] = {
    "class": {"queue": "regular", "account": "myaccount", "cores": 24, "memory": "500 GB"},
    "deployment": {
        "cores": 8,
        "processes": 4,
        "memory": "16GB",
        "account": "woodshole",
        "walltime": "01:00:00",
        "queue": "normal",
    },
    "low priority": {
        "cores": 24,
        "processes": 6,
        "memory": "16GB",
        "account": "co_laika",
        "queue": "savio2_bigmem",
        "job_script_prologue": [
            'export LANG="en_US.utf8"',
            'export LANGUAGE="en_US.utf8"',
            'export LC_ALL="en_US.utf8"',
        ],
        "job_extra_directives": ['--qos="savio_lowprio"'],
    },
    "arguments of workers": {
        "memory": "8g",
        "processes": 1,
        "cores": 2,
        "worker_extra_args": ["--resources ssdGB=200,GPU=2"],
    },
    "skipped directives": {
        "cores": 4,
        "memory": "16gb",
        "job_directives_skip": ["--mem", "another-string"],
    },
    "virtual environment": {
        "cores": 1,
        "memory": "2GB",
        "log_directory": "logs",
        "python": "python3",
        "job_script_prologue": ["cd /some/path", "source venv/bin/activate"],
        "job_script_epilogue": ["rm -r cache"],
    },
    "lifetime": {
        "walltime": "01:00:00",
        "cores": 4,
        "memory": "16gb",
        "worker_extra_args": ["--lifetime", "55m", "--lifetime-stagger", "4m"],
    },
    "all others": {
        "cores": 4,
        "memory": "4GiB",
        "job_cpu": 8,
        "job_mem": "6GB",
        "shebang": "#!/usr/bin/env zsh",
        "nanny": False,
        "local_directory": "$TMPDIR",
        "death_timeout": 120,
        "interface": "ib0",
        "protocol": "tcp://",
        "worker_command": "distributed.cli.dask_worker",
    },
}
"""Keywords, by where they come from: examples, tips, and what is left of the parameters."""

CONFIGURED: dict[str, dict[str, Any]] = {
    "cheyenne": {
        "name": "dask-worker",
        "cores": 1,
        "memory": "25 GB",
        "processes": 1,
        "interface": "ib0",
        "account": "PXYZ123",
        "walltime": "00:30:00",
        "job-extra": {"-C geyser": None},
    },
    "cori": {
        "cores": 64,
        "memory": "115GB",
        "processes": 4,
        "queue": "debug",
        "walltime": "00:10:00",
        "job-extra": ["-C haswell", "-L project, SCRATCH, cscratch1"],
    },
    "comet": {
        "name": "dask-worker",
        "cores": 24,
        "memory": "120GB",
        "processes": 1,
        "interface": "ib0",
        "death-timeout": 60,
        "local-directory": "/scratch/$USER/$SLURM_JOB_ID",
        "queue": "compute",
        "walltime": "00:30:00",
        "job-mem": "120GB",
    },
    "deprecated": {
        "project": "XYZW-1234",
        "cores": 36,
        "memory": "100GB",
        "processes": 9,
        "extra": ["--lifetime", "55m"],
        "env-extra": ["export A=1"],
        "header-skip": ["--mem"],
    },
}
"""Sections of configuration files of supercomputers, and the names that are deprecated."""

RENAMED = {"-J": "job-name", "-p": "partition", "-A": "account", "-t": "time", "-n": "tasks"}
RENAMED |= {"-N": "nodes", "-e": "error", "-o": "output", "--tasks-per-node": "tasks"}


def theirs(settings: dict[str, Any]) -> str:
    """Return the script that dask-jobqueue makes."""
    keywords = {key.replace("-", "_"): value for key, value in settings.items()}
    keywords["job_name"] = keywords.pop("name", "dask-worker")
    keywords.pop("job_script_epilogue", None)  # documented, but not in 0.9.0
    keywords.setdefault("walltime", "00:30:00")  # as its configuration has it
    return str(SLURMJob(scheduler=ADDRESS, name="J-0", **keywords).job_script())


def ours(settings: dict[str, Any]) -> str:
    """Return the script that this package makes."""
    return str(Recipe.plan(resolve(settings), "J", None).script([ADDRESS], "J"))


def directives(script: str) -> dict[str, str]:
    """Return the directives of a script by one name for each."""
    found = {}
    for line in re.findall("^#SBATCH (.*)$", script, flags=re.MULTILINE):
        key, _, value = re.sub("^(-[A-Za-z]) ", r"\1=", line).partition("=")
        found[RENAMED.get(key, key.removeprefix("--"))] = value
    return found


def worker(script: str) -> dict[str, str]:
    """Return the options of the command that starts the workers."""
    (line,) = [line for line in script.splitlines() if "dask_worker" in line]
    while "dask_worker" in (words := shlex.split(line))[-1] and len(words) > 1:
        line = words[-1]  # the command is an argument of the launcher
    return dict(re.findall(r"(--[a-z-]+)[ =]?((?:[^\s-]\S*)?)", line.replace('"', "")))


def megabytes(text: str) -> float:
    """Return what Slurm reads as memory, in MB of 2**20 bytes."""
    number, unit = re.fullmatch("([0-9]+)([KMG]?)B?", text).groups()  # type: ignore[union-attr]
    return parse_bytes(f"{number}{unit or 'M'}iB") / 2**20


def compare(settings: dict[str, Any], mine: str) -> None:
    """Compare the two scripts for the same settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        other = theirs(settings)
    asked, expected = directives(mine), directives(other)
    for key in ("partition", "account", "qos", "-C", "-L", "job-name"):
        assert asked.get(key) == expected.get(key), key
    if "walltime" in settings:
        assert time_to_seconds(asked["time"]) == time_to_seconds(expected["time"])
    cpus = [int(a["tasks"]) * int(a["cpus-per-task"]) for a in (asked, expected)]
    assert cpus[0] == cpus[1]
    assert ("mem" in asked) == ("mem" in expected)
    if "mem" in asked:
        more = megabytes(expected["mem"]) - megabytes(asked["mem"])
        # Theirs are whole GB, or GB that Slurm reads as GiB.
        assert 0 <= more < max(1024, 0.075 * megabytes(asked["mem"]))
    mine_options, other_options = worker(mine), worker(other)
    memory = [parse_bytes(each.pop("--memory-limit")) for each in (mine_options, other_options)]
    assert memory[0] == pytest.approx(memory[1], rel=0.01)
    assert int(asked["tasks"]) == int(other_options.pop("--nworkers", 1))
    assert mine_options.pop("--resources").endswith(other_options.pop("--resources", ""))
    for each in (mine_options, other_options):
        for key in ("--name", "--nworkers", "--preload"):
            each.pop(key, None)
    assert mine_options == other_options
    assert mine.splitlines()[0] == settings.get("shebang", "#!/bin/bash")
    rest = [line for line in other.splitlines()[1:] if line and "dask_worker" not in line]
    rest += settings.get("job_script_epilogue", [])
    assert {line for line in rest if not line.startswith("#SBATCH")} <= set(mine.splitlines())


@pytest.mark.parametrize("name", EXAMPLES)
def test_keywords(name: str) -> None:
    """The same is asked of Slurm, and the same workers start, as with dask-jobqueue."""
    compare(EXAMPLES[name], ours({"backend": "slurm", **EXAMPLES[name]}))


@pytest.mark.filterwarnings("ignore:.*has been renamed:FutureWarning")
@pytest.mark.parametrize("name", CONFIGURED)
def test_configuration(name: str) -> None:
    """A section of a file for dask-jobqueue means the same as section ``clusterjob``."""
    with dask.config.set({"clusterjob": {**dask.config.get("clusterjob"), **CONFIGURED[name]}}):
        compare(CONFIGURED[name], ours({"backend": "slurm"}))
