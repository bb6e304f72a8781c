"""Clusters on a Slurm that is behind ssh, or whose Dask scheduler is in a job of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from cjdask import ClusterjobCluster, JobFailed
from tests.cluster_slurm import squeue
from tests.ssh_hosts import CONFIG, LOGIN, PLAIN, control, needs_ssh

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm"), pytest.mark.timeout(600)]

EXAMPLE = Path(__file__).parent.parent / "examples" / "flights.py"
REMOTE = f"hpc@cjlogin?ssh_config={CONFIG}"

_FIRST = """
import os, sys, urllib.request
from distributed import Client, wait
from cjdask import ClusterjobCluster

def slow(x):
    import time
    time.sleep(0.5)
    return x * x

cluster = ClusterjobCluster(
    backend="slurm", nodes=2, ppn=2, mem=600, time="00:10:00", jobs=1,
    remote=sys.argv[1], job_name=sys.argv[2], name=sys.argv[2], python=sys.executable,
)
client = Client(cluster)
client.wait_for_workers(4, timeout=90)
with urllib.request.urlopen(cluster.dashboard_link, timeout=30) as page:
    assert page.status == 200
data = client.map(slow, range(8))
wait(data)
client.publish_dataset(data=data)
work = client.map(slow, range(100, 180))
seen = set(cluster.scheduler_info["workers"])
print("working", flush=True)
results = client.gather(work)
assert results == [x * x for x in range(100, 180)]
assert {future.status for future in work + data} == {"finished"}
assert set(cluster.scheduler_info["workers"]) == seen and len(seen) == 4
cluster.scale(jobs=2)
client.wait_for_workers(8, timeout=90)
cluster.scale(jobs=1)
print("workers", len(cluster.observed), flush=True)
if sys.argv[3] == "left":
    cluster.detach()
os.kill(os.getpid(), 9)
"""

_SECOND = """
import sys
from distributed import Client
from cjdask import ClusterjobCluster

with ClusterjobCluster.from_name(sys.argv[1]) as cluster, Client(cluster) as client:
    print("workers", len(cluster.observed), [row.workers for row in cluster.jobs.values()])
    print("data", sum(client.gather(client.get_dataset("data"))))
"""

_ALONE = """
import socket, sys
from distributed import Client
from cjdask import ClusterjobCluster

with ClusterjobCluster(
    backend="local", mem=300, time="00:10:00", jobs=1,
    remote=sys.argv[1], name=sys.argv[2], python=sys.executable,
) as cluster, Client(cluster) as client:
    client.wait_for_workers(1, timeout=90)
    print(*client.run(socket.gethostname).values(), client.submit(sum, [20, 22]).result())
"""


def on_a_laptop(*argv: str, folder: Path, working: Callable[[], object] = int) -> tuple[int, str]:
    """Run Python in the network of a client that reaches nothing but ssh ports.

    ``working`` is called when it says that it is. Return its exit code and what it printed.
    """
    environment = {"XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "100"}
    command = ["ip", "netns", "exec", "cjssh-cjclient", sys.executable, "-W", "error", *argv]
    with subprocess.Popen(
        ["timeout", "500", *command],
        env={**os.environ, **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "working\n":
                working()
    return process.returncode, "".join(lines)


def break_link() -> None:
    """Kill the sshd of the login node, with all its connections, and start it again."""
    control("stop", LOGIN)
    time.sleep(3)
    control("start", LOGIN)


class TestBehindSsh:
    pytestmark = needs_ssh

    def test_the_example_runs(self, tmp_path: Path) -> None:
        """From a laptop the flights are computed on two nodes with four workers."""
        words = ["--nodes", "2", "--ppn", "2", "--mem", "600", "--time", "00:10:00"]
        place = ["--remote", REMOTE, "--python", sys.executable, "--backend", "slurm"]
        code, said = on_a_laptop(str(EXAMPLE), *place, *words, folder=tmp_path)
        assert code == 0, said
        assert "336,776 flights in 7 partitions" in said

    @pytest.mark.parametrize("how", ["left", "killed"])
    def test_a_cluster_is_left_and_taken_up(
        self, how: str, tmp_path: Path, slurm_name: str
    ) -> None:
        """Workers, tasks and data outlive a dead sshd, kill -9 of the client; close ends all."""
        broken = break_link if how == "killed" else int
        argv = ("-c", _FIRST, REMOTE, slurm_name, how)
        code, said = on_a_laptop(*argv, folder=tmp_path, working=broken)
        assert code in (-9, 137), said
        assert "workers 4" in said
        code, said = on_a_laptop("-c", _SECOND, slurm_name, folder=tmp_path)
        assert code == 0, said
        assert said.splitlines() == ["workers 4 [4]", "data 140"]
        assert not list((tmp_path / "state").rglob("cluster.json"))

    @pytest.mark.parametrize("scheme", ["", "paramiko://"])
    def test_a_host_without_a_scheduler(self, scheme: str, tmp_path: Path, slurm_name: str) -> None:
        """On a host without a scheduler the embedded one runs the workers, by either protocol."""
        remote = f"{scheme}hpc@{PLAIN}?ssh_config={CONFIG}"
        code, said = on_a_laptop("-c", _ALONE, remote, slurm_name, folder=tmp_path)
        assert (code, said.splitlines()[-1:]) == (0, [f"{PLAIN} 42"]), said


def test_the_dask_scheduler_in_a_job(
    slurm_cluster: Callable[..., ClusterjobCluster],
    slurm_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a job of its own it serves workers of other jobs, is left, taken up, and ends."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    cluster = slurm_cluster(scheduler="job", name="one", jobs=1)
    assert squeue(f"{slurm_name}-dask") == ["RUNNING"]
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=90)
        assert client.submit(sum, [20, 22]).result() == 42
    cluster.detach()
    with ClusterjobCluster.from_name("one") as again, Client(again) as client:
        assert len(again.observed) == 2
        assert client.submit(sum, [1, 2]).result() == 3
    deadline = time.monotonic() + 20
    while squeue(f"{slurm_name}-dask") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not squeue(f"{slurm_name}-dask")
    assert not list(tmp_path.glob(f".{slurm_name}*"))


def test_its_job_fails(
    slurm_cluster: Callable[..., ClusterjobCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of the Dask scheduler that fails is an error with its log."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(JobFailed, match="Dask scheduler was to run, ended FAILED") as caught:
        slurm_cluster(scheduler="job", job_script_prologue=["echo no licence >&2", "exit 3"])
    assert "no licence" in str(caught.value)
