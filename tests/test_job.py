"""Jobs as pybatch describes them: its documented use case, states and ends, over all protocols."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cjdask as pybatch
from cjdask.backends import get_backend
from cjdask.errors import ResourcesNotSupportedError, UnknownBackendError
from cjdask.job import BatchJob, reload_job
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol
from cjdask.testing import until
from tests.ssh_hosts import LOGIN, PLAIN, reach

FAR = [pytest.mark.slurm, pytest.mark.ssh]
PLACES = [
    pytest.param(("nobatch", "local"), id="nobatch-local"),
    pytest.param(("nobatch", "ssh"), id="nobatch-ssh", marks=pytest.mark.ssh),
    pytest.param(("nobatch", "paramiko"), id="nobatch-paramiko", marks=pytest.mark.ssh),
    pytest.param(("slurm", ""), id="slurm", marks=pytest.mark.slurm),
    pytest.param(("slurm", "ssh"), id="slurm-ssh", marks=FAR),
    pytest.param(("slurm", "paramiko"), id="slurm-paramiko", marks=FAR),
]
pytestmark = pytest.mark.timeout(150)
FULL = os.environ.get("CJDASK_FAR") == "all"


class Place:
    """A plugin and a protocol, and a folder on the machine that they lead to."""

    def __init__(self, plugin: str, protocol: Protocol | None, folder: Path) -> None:
        self.plugin = plugin
        self.protocol = protocol
        self.folder = folder
        self._count = 0

    def job(self, *command: str, **params: Any) -> Any:
        """Return a job with a work directory of its own."""
        self._count += 1
        params.setdefault("work_directory", str(self.folder / f"job {self._count}"))
        if self.plugin == "slurm":
            params.setdefault("mem_per_node", "50M")
        launch = pybatch.LaunchParameters(list(command), **params)
        return pybatch.create_job(self.plugin, launch, self.protocol)


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Return each plugin with each protocol."""
    plugin, way = request.param
    protocol: Protocol | None = LocalProtocol() if way == "local" else None
    if plugin == "slurm":
        request.getfixturevalue("slurm")
    if way in ("ssh", "paramiko"):
        request.getfixturevalue("ssh_hosts")
        protocol = reach(way, LOGIN if plugin == "slurm" else PLAIN)
    folder = Path(tempfile.mkdtemp(prefix="cjdask-test-"))
    folder.chmod(0o777)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CJDASK_EMBEDDED_DIR", str(folder / "state"))
        patch.setenv("CJDASK_EMBEDDED_SLOTS", "4")
        yield Place(plugin, protocol, folder)
    if protocol is not None:
        protocol.run(["rm", "-rf", str(folder)])
        protocol.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_documented_use_case(place: Place, tmp_path: Path) -> None:
    """What pybatch's manual shows runs with no other change than the import."""
    job_params = pybatch.LaunchParameters(
        ["touch", "result.txt"],
        str(place.folder / "job_test"),
        name="myjob",
        nodes=1,
        ntasks=1,
        wall_time="10",
        wckey="P120K:SALOME",
    )
    myjob = pybatch.create_job(place.plugin, job_params, place.protocol)
    assert myjob.state() == "CREATED"
    assert myjob.exit_code() is None
    myjob.submit()
    assert myjob.state() in ("QUEUED", "RUNNING", "FINISHED")
    myjob.wait()
    assert myjob.state() == "FINISHED"
    assert myjob.exit_code() == 0
    myjob.get(["result.txt"], str(tmp_path))
    assert (tmp_path / "result.txt").exists()
    new_job = pickle.loads(pickle.dumps(myjob))
    assert (new_job.state(), new_job.exit_code()) == ("FINISHED", 0)
    assert (place.folder / "job_test" / "logs" / "output.log").read_text() == ""
    assert myjob.stderr() == ""
    assert "touch result.txt" in myjob.batch_file()


def test_input_and_logs(place: Place, tmp_path: Path) -> None:
    """Input files are there, arguments arrive as they are, and both logs are read apart."""
    (tmp_path / "say.sh").write_text('echo "$1|$2"; echo oops >&2; mkdir d; echo x >d/file')
    nasty = "a'b $(id) `id` ; & {name} | < > \\"
    job = place.job("bash", "say.sh", nasty, "", input_files=[tmp_path / "say.sh"])
    job.submit()
    job.wait()
    assert (job.stdout(), job.stderr()) == (f"{nasty}|\n", "oops\n")
    job.get(["d", "logs/output.log"], tmp_path / "both")
    assert (tmp_path / "both" / "d" / "file").read_text() == "x\n"
    job.get(["."], tmp_path / "all")
    names = {"batch.cmd", "d", "logs", "say.sh"}
    assert names <= set(os.listdir(tmp_path / "all"))
    with pytest.raises(FileNotFoundError, match="not there"):
        job.get(["not there"], tmp_path)


def test_failure(place: Place) -> None:
    """A command that fails makes the job FAILED, with its exit code."""
    job = place.job("bash", "-c", "echo before; exit 42")
    job.submit()
    job.wait()
    assert (job.state(), job.exit_code(), job.stdout()) == ("FAILED", 42, "before\n")


@pytest.mark.long
def test_cancel_and_reconnect(place: Place) -> None:
    """A running job is taken up by another process from a pickle, and cancelled there."""
    job = place.job("bash", "-c", "echo here; sleep 100; touch wakeup.txt")
    job.submit()
    until(lambda: job.state() == "RUNNING" and job.stdout() == "here\n", 60)
    assert job.exit_code() is None
    code = (
        "import pickle, sys; job = pickle.load(sys.stdin.buffer); print(job.state());"
        "job.cancel(); job.wait(); print(job.state())"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, input=pickle.dumps(job), capture_output=True, timeout=100)
    assert done.stdout.decode().split() == ["RUNNING", "FAILED"], done.stderr.decode()
    job.wait()
    assert job.state() == "FAILED"
    assert not list(place.folder.glob("*/wakeup.txt"))


@pytest.mark.long
def test_array(place: Place, tmp_path: Path) -> None:
    """The index is the last argument of each task; one that fails makes the array FAILED."""
    script = "echo task $0; echo $0 >result_$0.txt; [ $0 != 2 ] || exit 42"
    job = place.job("bash", "-c", script, total_jobs=4, max_simul_jobs=2)
    job.submit()
    assert job.exit_code() is None
    job.wait()
    assert (job.state(), job.exit_code()) == ("FAILED", 42)
    job.get([f"result_{i}.txt" for i in range(4)], tmp_path)
    assert [(tmp_path / f"result_{i}.txt").read_text() for i in range(4)] == [
        f"{i}\n" for i in range(4)
    ]
    assert job.stdout() == "".join(f"task {i}\n" for i in range(4))


@pytest.mark.long
def test_nodefile(place: Place) -> None:
    """The node file has a line for each task, and is named in the environment."""
    job = place.job("bash", "-c", 'cat "$LIBBATCH_NODEFILE"', ntasks=2, create_nodefile=True)
    job.submit()
    job.wait()
    assert job.state() == "FINISHED", job.stderr()
    lines = job.stdout().split()
    assert len(lines) == 2
    (file,) = place.folder.glob("*/batch_nodefile.txt")
    assert file.read_text().split() == lines


@pytest.mark.timeout(300)
def test_walltime(place: Place) -> None:
    """A job that takes too long is ended and FAILED."""
    limit = "0:02"
    if place.plugin == "slurm":
        assert "--time=02:00:00" in place.job("x", wall_time="0-2").batch_file()
        if not FULL:
            pytest.skip("Slurm ends jobs by the minute; CJDASK_FAR=all waits for that")
        limit = "1"
    job = place.job("sh", "-c", "sleep 200; touch late", wall_time=limit)
    job.submit()
    job.wait()
    assert job.state() == "FAILED"
    assert not list(place.folder.glob("*/late"))


def test_states(place: Place) -> None:
    """A job that may not begin yet is QUEUED; one that is suspended is PAUSED, and goes on."""
    if place.plugin != "slurm":
        jobs = [place.job("sleep", "100", exclusive=True) for _ in range(2)]
        try:
            for job in jobs:
                job.submit()
            until(lambda: jobs[0].state() == "RUNNING")
            assert jobs[1].state() == "QUEUED"
        finally:
            for job in jobs:
                job.cancel()
        return
    job = place.job("sh", "-c", "until [ -e go ]; do sleep 0.2; done", extra_as_list=["--hold"])
    job.submit()
    try:
        assert job.state() == "QUEUED"
        for verb, state in (("release", "RUNNING"), ("suspend", "PAUSED"), ("resume", "RUNNING")):
            subprocess.run(["scontrol", verb, job.jobid], check=True)
            until(lambda state=state: job.state() == state, 60)
        job.protocol.create(f"{job.job_params.work_directory}/go", "")
        job.wait()
        assert (job.state(), job.exit_code()) == ("FINISHED", 0)
    finally:
        job.cancel()


def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin 'local' runs jobs here, without a protocol, also in a folder named from here."""
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    job = pybatch.create_job("local", pybatch.LaunchParameters(["sh", "-c", "echo $PWD"], "work"))
    job.submit()
    monkeypatch.chdir("/")
    job.wait()
    assert (job.state(), job.stdout()) == ("FINISHED", f"{tmp_path}/work\n")


def test_dump() -> None:
    """A job is dumped as text that has no password, and made of it again."""
    protocol = pybatch.ConnectionParameters("login", "ada", password="hunter2")
    from cjdask.protocols.ssh import SshProtocol

    params = pybatch.LaunchParameters(["x"], "work", input_files=[Path("a")])
    job = BatchJob(params, SshProtocol(protocol), "sge")
    text = job.dump()
    assert "hunter2" not in text
    again = reload_job(text)
    assert (again.backend, again.job_params.input_files) == ("sge", ["a"])
    assert isinstance(again.protocol, SshProtocol)
    assert again.protocol.params.destination == "ada@login"
    for wrong in ("{}", "[]", '{"format": 2}', "nonsense"):
        with pytest.raises(ValueError, match=r"format|job|Expecting"):
            reload_job(wrong)


def script_of(backend: str = "slurm", **params: Any) -> str:
    """Return the script of a job."""
    launch = pybatch.LaunchParameters(["run", "it"], "work", **params)
    return BatchJob(launch, None, backend).batch_file()


@pytest.mark.parametrize(
    ("params", "lines"),
    [
        ({"nodes": 2, "ntasks": 8}, ["--nodes=2", "--tasks-per-node=4"]),
        ({"ntasks": 8}, ["--ntasks=8"]),
        ({"nodes": 3, "ntasks": 8}, ["--nodes=3", "--ntasks=8"]),
        ({"mem_per_node": "32G"}, ["--mem=32768"]),
        ({"mem_per_node": "500"}, ["--mem=500"]),
        ({"mem_per_cpu": "1500K"}, ["--mem-per-cpu=2M"]),
        ({"queue": "long"}, ["--partition=long"]),
        ({"partition": "gpu", "queue": "high"}, ["--partition=gpu", "--qos=high"]),
        ({"exclusive": True, "wckey": "a:b"}, ["--exclusive", "--wckey=a:b"]),
        ({"extra_as_list": ["--hold", "-C", "fast"]}, ["--hold", "-C fast"]),
        ({"extra_as_string": "#SBATCH --comment='a b' --hold"}, ['--comment="a b"', "--hold"]),
        ({"total_jobs": 5, "max_simul_jobs": 2}, ["--array=0-4%2", "--output=logs/output-%a.log"]),
    ],
)
def test_what_slurm_is_asked(params: dict[str, Any], lines: list[str]) -> None:
    """Each parameter becomes the option of Slurm that means it."""
    text = script_of(**params).splitlines()
    assert {f"#SBATCH {line}" for line in lines} <= set(text)


def test_what_other_schedulers_are_asked() -> None:
    """The same parameters mean the same elsewhere, or are refused."""
    pbs = script_of("pbspro", nodes=2, ntasks=8, mem_per_cpu="1G", queue="long", wall_time="5")
    assert "select=2:" in pbs
    assert "mpiprocs=4" in pbs
    assert "mem=4096mb" in pbs
    local = script_of("local", ntasks=2, queue="long", wckey="x", partition="y")
    assert "long" not in local
    assert script_of("local", extra_as_string="module load x").count("module load x\n") == 1
    for backend, params in (
        ("pbspro", {"wckey": "x"}),
        ("pbspro", {"queue": "a", "partition": "b"}),
        ("pbspro", {"nodes": 3, "ntasks": 8}),
        ("local", {"nodes": 2}),
        ("slurm", {"mem_per_node": "lots"}),
        ("slurm", {"mem_per_node": "1G", "mem_per_cpu": "1G"}),
        ("slurm", {"total_jobs": 0}),
        ("slurm", {"ntasks": 1.5}),
        ("slurm", {"is_posix": False}),
        ("slurm", {"extra_as_list": ["hold"]}),
        ("slurm", {"wall_time": "soon"}),
    ):
        with pytest.raises(ResourcesNotSupportedError):
            script_of(backend, **params)
    with pytest.raises(ResourcesNotSupportedError, match="command='ls'"):
        BatchJob(pybatch.LaunchParameters("ls", "work")).batch_file()  # type: ignore[arg-type]


def test_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are made by a plugin of any package, by a backend's name, and by no other name."""
    params = pybatch.LaunchParameters(["x"], "work")
    (tmp_path / "site_jobs.py").write_text(
        "class Plugin:\n    def create_job(self, params, protocol):\n"
        "        return ('site', params.command, protocol)\n"
    )
    info = tmp_path / "site_jobs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: site-jobs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[cjdask.jobs]\nsite = site_jobs:Plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert pybatch.create_job("site", params) == ("site", ["x"], None)  # type: ignore[comparison-overlap]
    job = pybatch.create_job("lsf", params)
    assert isinstance(job, BatchJob)
    assert (job.backend, job.state()) == ("lsf", "CREATED")
    with pytest.raises(UnknownBackendError, match="did you mean 'nobatch'"):
        pybatch.create_job("nobach", params)
    with pytest.raises(ValueError, match="'nobatch' runs at host"):
        pybatch.create_job("local", params, pybatch.protocols.protocol_for("host"))
    assert get_backend("lsf").name == "lsf"
