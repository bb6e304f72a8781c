"""Executors on real schedulers."""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cjdask.executor_collector import GRACE_WELL
from cjdask.executor_script import NOTICED_WITHIN
from tests.as_user import USER

HERE = Path(__file__).parent
SCHEDULERS = ("slurm", "sge", "htcondor", "oar")
ALL = os.environ.get("CJDASK_CRASHES") == "all"
"""Whether drivers are killed at many instants, rather than at a few."""
Start = Callable[..., subprocess.Popen[str]]
pytestmark = pytest.mark.timeout(300)


def marked(name: str, *more: Any) -> Any:
    """Return a parameter for a scheduler, which must be there."""
    return pytest.param(name, *more, marks=getattr(pytest.mark, name))


@pytest.fixture
def start(request: pytest.FixtureRequest, open_folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Return what starts a script of this folder on a scheduler, in a folder of its own.

    What is left of them is ended; jobs that they leave end soon, with their walltime.
    """
    started: list[subprocess.Popen[str]] = []

    def start(backend: str, script: str, *arguments: str, folder: str = "") -> Any:
        argv = [sys.executable, str(HERE / script), backend, *arguments]
        path = open_folder / (folder or f"{tmp_path.name}-{backend}")
        path.mkdir(exist_ok=True)
        env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        if backend == "local":
            env |= {"CJDASK_EMBEDDED_DIR": str(path / "state"), "CJDASK_EMBEDDED_SLOTS": "20"}
        else:
            request.getfixturevalue(backend)
        if backend in ("htcondor", "oar") and os.getuid() == 0:
            argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--", *argv]
            env |= {"HOME": pwd.getpwnam(USER).pw_dir, "USER": USER, "LOGNAME": USER}
            shutil.chown(path, USER, USER)
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            argv, env=env, cwd=path, stdout=pipe, stderr=pipe, text=True, umask=0o022
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            if process.poll() is None:
                process.terminate()
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    """Return what a script prints, when it has ended well."""
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("backend", [marked(name) for name in SCHEDULERS])
def test_array_mode(backend: str, start: Start) -> None:
    """Calls together are one submission; one that runs is cancelled; two processes make a call."""
    found = json.loads(told(start(backend, "executor_real.py", "array", "basic", 'time="5"')))
    assert found["results"] == [0, 1, 4, 9, 16, "ValueError", 36]
    assert found["cancelled"]
    assert found["ranks"] == ["0", "1"]
    assert found["commands"]["submit"] == 3
    assert found["commands"]["query"] <= found["seconds"] / 2 + 3


@pytest.mark.parametrize("backend", [marked("slurm"), marked("htcondor")])
def test_pool_mode(backend: str, start: Start) -> None:
    """A pool makes calls, and stops one that runs."""
    asked = ('time="5"', "ppn=2", "mem=600")
    found = json.loads(told(start(backend, "executor_real.py", "pool", "basic", *asked)))
    assert found["results"] == [0, 1, 4, 9, 16, "ValueError", 36]
    assert found["cancelled"]


DEATHS = {
    "good": ("NoneType",),
    "exit": ("JobDied", "FAILED", "NONZERO_EXIT", 3),
    "segv": ("JobDied", "FAILED", ("NONZERO_EXIT", "SIGNALED"), 139),
    "killed": ("JobDied", "FAILED", ("NONZERO_EXIT", "SIGNALED"), 137),
    "SystemExit": ("RemoteException",),
    "KeyboardInterrupt": ("RemoteException",),
    "unpicklable": ("PayloadError",),
    "argument": ("PayloadError",),
    "cancelled": ("JobDied", "CANCELLED", "", None),
    "walltime": ("JobDied", "FAILED", "TIMEOUT", None),
}
"""How calls end, whatever the mode."""
LEFT_WELL = {"array": "COMPLETED", "pool": "FAILED"}
"""In a pool it is a process that has left, not a job."""
ASKED = {"array": ("mem=200",), "pool": ("mem=900", "ppn=3", "maximum_jobs=3")}
SEEN_WITHIN = 2 * NOTICED_WITHIN + GRACE_WELL
"""Two cycles of the monitor, while nothing changes, and the grace."""


def expected_deaths(backend: str, mode: str) -> dict[str, Any]:
    """Return how each way to die must look."""
    expected: dict[str, Any] = {**DEATHS}
    expected["exit well"] = ("JobDied", LEFT_WELL[mode], "", 0)
    if backend == "slurm":
        expected["memory"] = ("JobDied", "FAILED", "OUT_OF_MEMORY", (137, None))
    else:  # nobody but the system sets a limit there
        expected["MemoryError"] = ("MemoryError",)
    if mode == "array":
        expected["saves"] = ("NoneType",)
    return expected


LONG = pytest.mark.skipif(
    not ALL, reason="it takes minutes: CJDASK_CRASHES=all; the tests of each mode have the same"
)


@pytest.mark.parametrize(
    "backend", [pytest.param("local", marks=LONG), marked("slurm"), marked("htcondor")]
)
def test_deaths(backend: str, start: Start) -> None:
    """Each way to die ends its call, with the right error and soon, and no other call."""
    drivers = {
        mode: start(
            backend,
            "executor_real.py",
            *(mode, ",".join(expected_deaths(backend, mode)), 'time="5"', *ASKED[mode]),
            folder=f"deaths-{backend}-{mode}",
        )
        for mode in ("array", "pool")
    }
    for mode, driver in drivers.items():
        found = json.loads(told(driver))
        for way, (kind, *rest) in expected_deaths(backend, mode).items():
            known = found[way]
            shown = (backend, mode, way, known)
            assert known["type"] == kind, shown
            for key, wanted in zip(("status", "reason", "code"), rest, strict=False):
                assert known[key] in (wanted if isinstance(wanted, tuple) else (wanted,)), shown
            if kind == "JobDied":
                assert known["log"], shown
            most = SEEN_WITHIN + (90 if way == "walltime" else 0)
            assert known.get("seconds", 0) < most, shown
        if mode == "array":
            assert found["saves"]["result"] == 2


@pytest.mark.slurm
@pytest.mark.parametrize("seed", range(7 if ALL else 1))
def test_a_driver_that_is_killed(start: Start, open_folder: Path, slurm: None, seed: int) -> None:
    """Run until it is not killed, a map has each result, and no call was made twice."""
    calls, kills, longest = (100, 5, 12.0) if ALL else (40, 2, 3.0)
    folder = open_folder / f"killed{seed}"
    arguments = (str(folder), str(calls), "0.1", "mem=100")
    choose = random.Random(seed)
    for _ in range(kills):
        driver = start("slurm", "executor_driver.py", *arguments, folder=folder.name)
        try:
            driver.wait(choose.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            driver.kill()
    last = start("slurm", "executor_driver.py", *arguments, folder=folder.name)
    assert told(last) == f"{sum(n * n for n in range(calls))}\n"
    made = Counter((folder / "log").read_text().split())
    assert made == {str(n): 1 for n in range(calls)}


@pytest.mark.slurm
def test_calls_on_two_nodes(start: Start, slurm: None, tmp_path: Path) -> None:
    """A call of several nodes has its processes on all of them."""
    script = tmp_path / "nodes.py"
    script.write_text(
        "import json, os\n"
        "from cjdask import SlurmExecutor\n"
        "look = lambda: (os.environ['CLUSTERJOB_RANK'], os.uname().nodename)\n"
        "with SlurmExecutor(nodes=2, ppn=2, mem=100, time='5') as executor:\n"
        "    print(json.dumps(executor.submit_ranks(look).result()))\n"
    )
    ranks = json.loads(told(start("slurm", str(script))))
    assert [rank for rank, _ in ranks] == ["0", "1", "2", "3"]
    assert len({node for _, node in ranks}) == 2


FROM_CLUSTERFUTURES = """
import concurrent.futures
import subprocess
import sys
import cjdask as cfut

Executor = {"slurm": cfut.SlurmExecutor, "htcondor": cfut.CondorExecutor}[sys.argv[1]]

def square(n):
    return n * n

def hostinfo():
    return subprocess.check_output("hostname; uname -a", shell=True)

with Executor() as executor:
    for result in executor.map(square, [5, 7, 11]):
        print(result)

with Executor(True, keep_logs=True) as executor:
    futures = [executor.submit(square, n) for n in range(5)]
    print(sorted(future.result() for future in concurrent.futures.as_completed(futures)))

with Executor(False) as executor:
    futures = [executor.submit(hostinfo) for n in range(3)]
    print({future.result().split()[1] for future in concurrent.futures.as_completed(futures)})

exc = Executor(False)
print(list(cfut.map(exc, square, [5, 7, 11])))
"""


@pytest.mark.parametrize("backend", [marked("slurm"), marked("htcondor")])
def test_the_examples_of_clusterfutures(backend: str, start: Start, open_folder: Path) -> None:
    """What clusterfutures shows in its documentation runs with another import."""
    script = open_folder / "example.py"
    script.write_text(FROM_CLUSTERFUTURES)
    script.chmod(0o644)
    driver = start(backend, str(script))
    assert told(driver).splitlines() == [
        *("25", "49", "121", "[0, 1, 4, 9, 16]", "{b'Linux'}", "[25, 49, 121]")
    ]
