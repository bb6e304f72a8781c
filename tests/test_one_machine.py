"""One file that describes a machine, for job scripts, calls and Dask clusters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask.config
import pytest

from cjdask import ClusterjobCluster, JobScript, ResourcesNotSupportedError
from cjdask.cluster_options import resolve
from cjdask.executor_options import CallOptions

MACHINE = """\
[Attributes]
backend = slurm
cache_folder = runs
prologue = touch prologue
[Resources]
queue = long
time = 02:00:00
ppn = 4
threads = 3
mem = 16GiB
constraint = haswell
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Read a file with the defaults of a machine."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "machine.ini"
    path.write_text(MACHINE)
    JobScript.read_defaults(path)
    yield path
    JobScript.read_defaults()


@pytest.mark.usefixtures("machine")
def test_all_three_shapes_know_the_machine() -> None:
    """What the file says holds for a job script, for a call and for the workers of a cluster."""
    calls, workers = CallOptions.of({}), resolve({})
    job = JobScript("true", "j")
    assert job.backend == calls.backend == workers.backend == "slurm"
    for headers in (str(job), "\n".join(_headers(calls.resources)), _text(workers.resources)):
        for line in (
            "--partition=long",
            "--time=02:00:00",
            "--tasks-per-node=4",
            "--cpus-per-task=3",
            "--mem=16384",
            "--constraint=haswell",
        ):
            assert f"#SBATCH {line}" in headers
    assert (workers.ppn, workers.threads, workers.memory) == (4, 3, 2**34)


def _headers(resources: object) -> list[str]:
    job = JobScript("true", "j")
    job.resources.clear()
    job.resources.update(resources)  # type: ignore[call-overload]
    return str(job).splitlines()


def _text(resources: object) -> str:
    return "\n".join(_headers({"jobname": "j", **resources}))  # type: ignore[dict-item]


@pytest.mark.usefixtures("machine")
def test_what_is_nearer_goes_first() -> None:
    """A keyword goes before dask's configuration, that before the file, in both vocabularies."""
    with dask.config.set({"clusterjob.queue": "dask", "clusterjob.cores": 8}):
        found = resolve({"walltime": "00:30:00"})
        assert found.resources["queue"] == "dask"
        assert (found.ppn, found.threads, found.resources["time"]) == (4, 2, "00:30:00")
        assert resolve({"queue": "own", "backend": "local", "constraint": False}).backend == "local"
    assert resolve({}).resources["queue"] == "long"
    assert CallOptions.of({"queue": "own", "mem": 500}).resources["queue"] == "own"
    assert CallOptions.of({"mem": 500}).changed({"mem": 600}).resources["mem"] == 600
    assert JobScript("true", "j", queue="own").resources["queue"] == "own"


def test_without_a_file_nothing_changes(machine: Path) -> None:
    """When the defaults are taken back the backend is the one that is installed again."""
    JobScript.read_defaults()
    assert JobScript.given() == {}
    assert "queue" not in resolve({"backend": "local"}).resources
    JobScript.backend = "local"
    try:
        assert resolve({}).backend == CallOptions.of({}).backend == "local"
    finally:
        JobScript.read_defaults()


def test_an_array_is_no_default_of_a_cluster(machine: Path) -> None:
    """A resource that only a job script can have is refused with the reason."""
    machine.write_text("[Resources]\narray = 10\n")
    JobScript.read_defaults()
    JobScript.read_defaults(machine)
    with pytest.raises(ResourcesNotSupportedError, match="array=10: use scale"):
        resolve({"backend": "local"})
    with pytest.raises(ResourcesNotSupportedError, match="array=10: an executor makes"):
        CallOptions.of({"backend": "local"})


@pytest.mark.long
def test_workers_are_no_recorded_runs(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache folder, the prologue and the epilogue of job scripts are not those of workers."""
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    machine.write_text(MACHINE.replace("slurm", "local").replace("constraint = haswell\n", ""))
    JobScript.read_defaults()
    JobScript.read_defaults(machine)
    with ClusterjobCluster(ppn=1, threads=1, mem="500MB", dashboard_address=":0") as cluster:
        cluster.scale(1)
        cluster.wait_for_workers(1, timeout=60)
    assert not Path("runs").exists()
    assert not Path("prologue").exists()
