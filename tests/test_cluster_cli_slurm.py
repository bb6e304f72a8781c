"""The command ``dask clusterjob`` on a real Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cjdask.testing import until
from tests.cluster_slurm import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def test_a_cluster_in_the_foreground(
    slurm_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs start, a client elsewhere computes on two nodes, and a hangup ends them all in 10 s."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "connect.yaml"
    settings = {"job-name": slurm_name, "ppn": "2", "mem": "600", "time": "00:05:00"}
    settings |= {"exclusive": "true", "dashboard-address": ":0"}
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    argv = [sys.executable, "-m", "dask", "clusterjob", "--backend", "slurm", "--jobs", "2"]
    with subprocess.Popen(
        [*argv, *options, "--connect-file", str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: squeue(slurm_name) == ["RUNNING"] * 2, 60)
            program = (
                "import socket\nfrom distributed import Client\nwith Client() as client:\n"
                "    client.wait_for_workers(4, timeout=60)\n"
                "    print(len(set(client.run(socket.gethostname).values())))"
            )
            env = {**os.environ, "DASK_CONFIG": str(path)}
            done = subprocess.run(
                [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
            )
            assert done.stdout == "2\n"
        finally:
            process.send_signal(signal.SIGHUP)
        began = time.monotonic()
        until(lambda: not squeue(slurm_name), 20)
        took = time.monotonic() - began
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read().splitlines()[-1] == "the cluster is closed"
    assert took < 12  # 10 s, and time to ask
    assert not path.exists()
