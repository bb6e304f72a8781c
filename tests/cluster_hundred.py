"""A program that scales a cluster to a hundred jobs which stay pending, with few open files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjdask.scheduler import scheduler_for

_PROGRAM = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from cjdask import ClusterjobCluster, JobScript
from cjdask.scheduler import scheduler_for

options = json.loads(sys.argv[1])
backend, body = options["backend"], sys.argv[2]
first = JobScript(body, "first", backend=backend).submit() if body else None
counts = scheduler_for(backend).commands
with ClusterjobCluster(dashboard_address=":0", time="00:05:00", **options) as cluster:
    before, began = counts.copy(), time.monotonic()
    cluster.scale(jobs=100)
    submitted = counts["submit"] - before["submit"]
    time.sleep(5)
    states = [row.status.name for row in cluster.jobs.values()]
    asked, seconds = counts["query"] - before["query"], time.monotonic() - began
    cluster.scale(jobs=0)
    print(json.dumps([submitted, counts["cancel"], asked, seconds, states]))
if first:
    first.cancel()
"""


@dataclass
class Counts:
    """How many commands it took, and what became of the jobs."""

    submitted: int
    cancelled: int
    asked: int
    seconds: float
    states: list[str]


def a_hundred(folder: Path, before: str = "", **options: Any) -> Counts:
    """Run the program in a folder; check that there was at most one query a cycle.

    ``before`` is the script of a job that keeps the others waiting.
    """
    argv = [sys.executable, "-c", _PROGRAM, json.dumps(options), before]
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = Counts(*json.loads(done.stdout))
    cycle = scheduler_for(options["backend"]).poll_interval
    assert 1 <= counts.asked <= counts.seconds / cycle + 1
    assert counts.states == ["PENDING"] * 100
    return counts
