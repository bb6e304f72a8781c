"""Clusters whose Dask scheduler runs apart, on this machine, with the embedded scheduler."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cjdask import ClusterjobCluster, ClusterjobError, ResourcesNotSupportedError, Status
from cjdask.cluster_adaptive import ClusterjobAdaptive
from cjdask.cluster_options import resolve
from cjdask.cluster_python import checked_python
from cjdask.cluster_state import ClusterState
from cjdask.protocols.local import LocalProtocol
from cjdask.testing import until
from tests.test_cluster_embedded import wait_until


@pytest.fixture
def apart(
    embedded: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ClusterjobCluster]:
    """Start clusters whose Dask scheduler does not run in this process."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "own"))

    def start(place: str = "login", **options: Any) -> ClusterjobCluster:
        small = {"mem": 500, "time": "00:05:00", "nanny": False, "name": "one"}
        return ClusterjobCluster("local", scheduler=place, **{**small, **options})

    return start


def folders(path: Path) -> list[str]:
    """List what clusters have left in their folder."""
    return [each.name for each in path.glob(".dask-worker-*")]


@pytest.mark.long
@pytest.mark.parametrize("place", ["login", "job"])
def test_a_cluster_is_left_and_taken_up(
    place: str, apart: Callable[..., ClusterjobCluster], tmp_path: Path
) -> None:
    """Workers and published data outlive the cluster object; from_name has them, close ends all."""
    cluster = apart(place, jobs=1)
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    with Client(cluster) as client:
        client.wait_for_workers(1, timeout=30)
        client.publish_dataset(x=client.submit(sum, [20, 22]))
        pid = client.submit(os.getpid).result()
        assert client.get_dataset("x").result() == 42
    script = cluster.job_script()
    (before,) = cluster.jobs.values()
    cluster.detach()
    assert cluster.status.name == "closed"

    state = tmp_path / "own" / "cjdask" / "clusters" / "one"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "cluster.json").stat().st_mode) == 0o600
    (folder,) = tmp_path.glob(".dask-worker-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = [p for p in folder.iterdir() if "PRIVATE KEY" in p.read_text()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}

    with ClusterjobCluster.from_name("one") as again:
        assert again.job_script() == script
        (job,) = again.jobs.values()
        assert (job.name, job.job_id, job.workers) == (before.name, before.job_id, 1)
        with Client(again) as client:
            assert client.get_dataset("x").result() == 42
            assert client.submit(os.getpid).result() == pid
        again.scale(jobs=2)
        again.wait_for_workers(2, timeout=30)
        again.scale(jobs=1)
        assert len(again.observed) == 1
    assert not folders(tmp_path)
    assert not state.exists()


@pytest.mark.long
def test_a_killed_process_leaves_its_cluster(
    apart: Callable[..., ClusterjobCluster], tmp_path: Path
) -> None:
    """After kill -9 without a word from_name finds the jobs, and replaces one that is lost."""
    text = (
        "import os\nfrom cjdask import ClusterjobCluster\n"
        "cluster = ClusterjobCluster('local', scheduler='login', name='one', mem=500, jobs=1,"
        " time='00:05:00', nanny=False)\ncluster.wait_for_workers(1)\nos.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with ClusterjobCluster.from_name("one") as cluster, Client(cluster) as client:
        assert len(cluster.observed) == 1
        worker = client.submit(os.getpid).result()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: len(cluster.jobs) == 2)
        client.wait_for_workers(1, timeout=40)
        assert client.submit(os.getpid).result() != worker
        first, second = cluster.jobs.values()
        assert first.status is Status.FAILED
        assert second.status is Status.RUNNING
    assert not folders(tmp_path)


@pytest.mark.long
def test_an_orphan_ends(
    apart: Callable[..., ClusterjobCluster], embedded: Callable[[], int], tmp_path: Path
) -> None:
    """Left with nothing to do the Dask scheduler ends, its jobs too; from_name says so."""
    cluster = apart(jobs=1, idle_timeout="1.5s", death_timeout=5)
    cluster.wait_for_workers(1, timeout=30)
    time.sleep(2.5)
    assert len(cluster.observed) == 1, "it ended although the cluster was there"
    cluster.detach()
    wait_until(lambda: embedded() == 0)
    wait_until(lambda: not folders(tmp_path))
    with pytest.raises(ClusterjobError, match="Dask scheduler of the cluster 'one' has ended"):
        ClusterjobCluster.from_name("one")
    with pytest.raises(ClusterjobError, match="there is no cluster named 'one'"):
        ClusterjobCluster.from_name("one")


def test_one_process_has_a_cluster(apart: Callable[..., ClusterjobCluster]) -> None:
    """A name that is in use can neither be made nor taken up again; one that was left, no new."""
    cluster = apart()
    for other in (apart, lambda: ClusterjobCluster.from_name("one")):
        with pytest.raises(ClusterjobError, match=f"in use by process {os.getpid()}"):
            other()
    cluster.detach()
    with pytest.raises(ClusterjobError, match=r"from_name\('one'\)"):
        apart()
    ClusterjobCluster.from_name("one").close()


@pytest.mark.long
def test_it_scales_with_the_load(apart: Callable[..., ClusterjobCluster]) -> None:
    """An adaptive cluster asks a Dask scheduler that is not in its process for the load."""
    with apart() as cluster, Client(cluster) as client:
        cluster.adapt(minimum_jobs=0, maximum_jobs=2, interval="200ms", idle_grace=0)
        assert client.submit(sum, [1, 2]).result(timeout=40) == 3
        wait_until(lambda: not cluster.plan)


@pytest.mark.long
def test_it_adapts_as_before_when_taken_up(apart: Callable[..., ClusterjobCluster]) -> None:
    """from_name goes on with adapt, also of a pool, with its limits; after scale it does not."""
    cluster = apart()
    cluster.adapt(minimum_jobs=1, maximum=2, interval=timedelta(seconds=0.25), idle_grace="1m")
    cluster.add_pool("wide", threads=2).adapt(maximum_jobs=3)
    cluster.wait_for_workers(1, timeout=60)
    cluster.detach()
    with ClusterjobCluster.from_name("one") as again:
        adaptive, wide = (pool.adaptive for pool in again.pools.values())
        assert adaptive is not None
        assert (adaptive.minimum, adaptive.maximum, adaptive.interval) == (1, 2, 0.25)
        assert adaptive.idle_grace == 60
        assert (wide.minimum, wide.maximum) == (0, 3)
        (job,) = again.workers
        again.sync(again.scale_down, [job])
        until(lambda: job not in again.workers and len(again.workers) == 1, 60)
        again.scale(jobs=0)
        assert adaptive.state == "stopped"
        again.detach()
    with ClusterjobCluster.from_name("one") as again:
        first, wide = (pool.adaptive for pool in again.pools.values())
        assert (first, wide.maximum) == (None, 3)


@pytest.mark.long
def test_an_adaptive_of_ones_own_is_not_taken_up(apart: Callable[..., ClusterjobCluster]) -> None:
    """What only this process has, a class or a function, is left out; all else is taken up."""

    class Own(ClusterjobAdaptive):
        """Scale as the parent does."""

    cluster = apart()
    for own in ({"Adaptive": Own}, {"worker_key": str}):
        cluster.adapt(maximum=1, **own)
        cluster.detach()
        cluster = ClusterjobCluster.from_name("one")
        assert cluster.pools["default"].adaptive is None
    cluster.close()


@pytest.mark.long
def test_a_dask_scheduler_that_dies_is_noticed(
    apart: Callable[..., ClusterjobCluster], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After the end of its process the cluster says so, submits no more, and can be closed."""
    cluster = apart(jobs=1)
    cluster.wait_for_workers(1, timeout=30)
    (contact,) = tmp_path.glob(".dask-worker-*/contact.json")
    os.kill(json.loads(contact.read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: "the Dask scheduler has ended" in caplog.text, 40)
    cluster.close()
    assert not folders(tmp_path)


@pytest.mark.parametrize("place", ["login", "job"])
def test_one_that_cannot_start_says_why(
    place: str, apart: Callable[..., ClusterjobCluster], tmp_path: Path
) -> None:
    """A Dask scheduler that ends at its start is an error with what it printed; nothing stays."""
    with pytest.raises(ClusterjobError, match="no-such-interface"):
        apart(place, interface="no-such-interface")
    assert not folders(tmp_path)
    assert not list((tmp_path / "own").rglob("cluster.json"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheduler": "there"}, "'there'.* here, login, job"),
        ({"remote": "ada@login", "scheduler": "here"}, "cannot connect to this machine"),
        ({"scheduler": "login", "idle_timeout": "soon"}, "idle_timeout='soon'"),
    ],
)
def test_wrong_places(options: dict[str, Any], words: str) -> None:
    """Where the Dask scheduler cannot be is refused before anything is done."""
    with pytest.raises(ResourcesNotSupportedError, match=words):
        resolve({"backend": "local", **options})


def test_what_a_dask_scheduler_elsewhere_takes(apart: Callable[..., ClusterjobCluster]) -> None:
    """An option that cannot be passed on is refused by name, and so is a bad name."""
    with pytest.raises(ResourcesNotSupportedError, match=r"'validate'.*host, interface"):
        apart(scheduler_options={"validate": True})
    with pytest.raises(ClusterjobError, match=r"name='\.\./x'"):
        apart(name="../x")
    with pytest.raises(ClusterjobError, match="jobs=3: from_name takes"):
        ClusterjobCluster.from_name("one", jobs=3)


def test_one_in_this_process_cannot_be_left(embedded: Callable[[], int], tmp_path: Path) -> None:
    """Detaching from a Dask scheduler that ends with the process is refused, with the remedy."""
    with (
        ClusterjobCluster("local", mem=500, dashboard_address=":0") as cluster,
        pytest.raises(ClusterjobError, match="scheduler='login'"),
    ):
        cluster.detach()


class Elsewhere(LocalProtocol):
    """Another machine, for what is looked at there."""


def test_the_python_there_must_have_the_same_versions(tmp_path: Path) -> None:
    """A Python without dask, another version, none at all: the error tells each, and the remedy."""
    old = tmp_path / "old"
    found = {"python": "3.6", "path": "x", "cjdask": None, "dask": "1.0", "distributed": "1.0"}
    old.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    old.chmod(0o755)
    with pytest.raises(ClusterjobError) as caught:
        checked_python(Elsewhere(), str(old))
    for words in ("python 3.6 (here", "cjdask is missing", "distributed 1.0", "pip install cjdask"):
        assert words in str(caught.value)
    with pytest.raises(ClusterjobError, match="there is no such program"):
        checked_python(Elsewhere(), "/no/python")
    assert checked_python(Elsewhere(), None) == sys.executable


def test_states_of_another_version_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is damaged or of another format is an error that names it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = ClusterState("one")
    state.create()
    state.save(x=1)
    state.release()
    assert state.open() == {"x": 1}
    state.release()
    file = tmp_path / "cjdask" / "clusters" / "one" / "cluster.json"
    for text in ("{", '{"kind": "cjdask cluster", "format": 99}'):
        file.write_text(text)
        with pytest.raises(ClusterjobError, match=r"cluster\.json cannot be read"):
            ClusterState("one").open()
