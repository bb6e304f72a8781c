"""The two vocabularies of a cluster, its configuration, and its job scripts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask.config
import pytest

from cjdask.backends import backend_names
from cjdask.cluster_address import addresses_of
from cjdask.cluster_options import ALLOWED, ClusterOptions, resolve
from cjdask.cluster_scaling import Bounds, limits
from cjdask.cluster_script import Recipe, quote
from cjdask.errors import (
    ProtocolError,
    ResourcesNotSupportedError,
    SettingsError,
    UnknownBackendError,
)
from cjdask.executor_options import CallOptions
from cjdask.jobscript import JobScript


def options(**keywords: Any) -> ClusterOptions:
    """Resolve keywords for the embedded scheduler."""
    return resolve({"backend": "local", **keywords})


def script(addresses: tuple[str, ...] = ("tcp://10.0.0.1:8786",), **keywords: Any) -> str:
    """Return the script of the job ``J``."""
    return str(Recipe.plan(options(**keywords), "J", None).script(addresses, "J"))


@pytest.mark.parametrize(
    ("keywords", "shape"),
    [
        ({}, (1, 1, 1)),
        ({"nodes": 2, "ppn": 2, "threads": 2}, (2, 2, 2)),
        ({"cores": 24}, (1, 6, 4)),
        ({"cores": 8, "processes": 2}, (1, 2, 4)),
        ({"cores": 9, "processes": 2}, (1, 2, 4)),
        ({"cores": 8, "processes": 4, "nodes": 2}, (2, 2, 2)),
        ({"cores": 8, "ppn": 2}, (1, 2, 4)),
        ({"cores": 8, "threads": 4}, (1, 2, 4)),
        ({"cores": 8, "ppn": 2, "threads": 2, "nodes": 2}, (2, 2, 2)),
        ({"processes": 3, "threads": 2}, (1, 3, 2)),
        ({"cores": 1}, (1, 1, 1)),
    ],
)
def test_both_vocabularies_give_one_shape(
    keywords: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    """Cores and processes are those of a job, ppn and threads those of a node and a worker."""
    found = options(**keywords)
    assert (found.nodes, found.ppn, found.threads) == shape


@pytest.mark.parametrize(
    ("keywords", "shown"),
    [
        ({"cores": 8, "ppn": 2, "threads": 2}, ["cores=8", "ppn=2", "threads=2"]),
        ({"cores": 8, "threads": 3}, ["cores=8", "threads=3"]),
        ({"cores": 2, "processes": 4}, ["cores=2", "processes=4"]),
        ({"processes": 3, "ppn": 2}, ["processes=3", "ppn=2"]),
        ({"processes": 3, "nodes": 2}, ["processes=3", "nodes=2"]),
        ({"memory": "4GB", "mem": 8000}, ["memory='4GB'", "mem=8000"]),
        ({"walltime": "01:00:00", "time": "02:00:00"}, ["'01:00:00'", "'02:00:00'"]),
        ({"project": "a", "account": "b"}, ["project='a'", "account='b'"]),
        ({"job_name": "a", "jobname": "b"}, ["job_name='a'", "jobname='b'"]),
        ({"host": "a", "scheduler_options": {"host": "b"}}, ["host='a'", "'b'"]),
        ({"job_cpu": 3, "ppn": 2}, ["job_cpu=3", "ppn=2"]),
    ],
)
def test_a_contradiction_shows_both_values(keywords: dict[str, Any], shown: list[str]) -> None:
    """Two values for one thing are an error that shows both."""
    with pytest.raises(ResourcesNotSupportedError) as caught:
        options(**keywords)
    for text in shown:
        assert text in str(caught.value)


def test_equal_values_do_not_contradict() -> None:
    """Both names of a thing may be given if they agree."""
    found = options(
        nodes=2, memory="4000MiB", mem=2000, walltime="01:00:00", time=timedelta(hours=1)
    )
    assert found.resources["mem"] == 2000
    assert found.resources["time"] == "01:00:00"


def test_memory_is_shared() -> None:
    """The memory of dask-jobqueue is per job, that of this package per node."""
    assert options(memory="4GB", cores=2, processes=2).resources["mem"] == 3815
    found = options(nodes=2, ppn=2, mem=2000)
    assert found.memory == 2 * 2000 * 2**20
    assert found.worker_memory == 1000 * 2**20


def test_what_to_ask_for_may_differ_from_what_is_used() -> None:
    """job_cpu and job_mem go to the scheduler, cores and memory to the workers."""
    found = options(cores=4, processes=2, memory="4GiB", job_cpu=8, job_mem="6GiB")
    assert (found.threads, found.resources["threads"]) == (2, 4)
    assert (found.memory, found.resources["mem"]) == (2**32, 6144)


def test_walltime_of_lsf_is_hours_and_minutes() -> None:
    """dask-jobqueue hands 12:00 to LSF, which reads 12 hours."""
    if "lsf" not in backend_names():
        pytest.skip("no such backend")
    assert resolve({"backend": "lsf", "walltime": "12:00"}).resources["time"] == "12:00:00"


@pytest.mark.parametrize("key", ["wall_time", "thread", "acount", "worker_extra_arg"])
def test_a_misspelt_keyword_is_no_option_of_the_scheduler(key: str) -> None:
    """What is nearly a keyword is refused, with the keyword that was meant."""
    with pytest.raises(ResourcesNotSupportedError, match=r"did you mean '(wa|t|a|w)") as caught:
        options(**{key: 1})
    assert all(known in str(caught.value) for known in ALLOWED)


def test_an_unknown_keyword_lists_the_allowed_ones() -> None:
    """What neither the cluster nor the scheduler knows is refused."""
    with pytest.raises(ResourcesNotSupportedError, match="unknown keyword 'constraint'") as caught:
        options(constraint="haswell")
    assert "simulate_nodes" in str(caught.value)
    assert all(known in str(caught.value) for known in ALLOWED)


def test_options_of_the_scheduler_are_passed_on() -> None:
    """What the scheduler knows goes into the script."""
    assert "--simulate-nodes" in script(nodes=2, simulate_nodes=True)


def test_a_wrong_backend_lists_the_right_ones() -> None:
    """An unknown scheduler is an error that names those that there are."""
    with pytest.raises(UnknownBackendError, match=r"slrm.*local"):
        options(backend="slrm")


@pytest.mark.parametrize(
    ("old", "new"),
    [("extra", "worker_extra_args"), ("env_extra", "prologue"), ("header_skip", "directives_skip")],
)
def test_deprecated_names_warn(old: str, new: str) -> None:
    """The names that dask-jobqueue documents as deprecated work, with a warning."""
    with pytest.warns(FutureWarning, match=f"{old} has been renamed"):
        found = options(**{old: ["x"]})
    assert getattr(found, new) == ("x",)


def test_configuration_is_enough() -> None:
    """All options can come from the configuration, in either vocabulary."""
    with dask.config.set(
        {"clusterjob": {"backend": "local", "cores": 8, "processes": 2, "memory": "4GiB"}}
    ):
        found = resolve({})
    assert (found.ppn, found.threads, found.memory) == (2, 4, 2**32)


def test_keywords_go_before_the_configuration() -> None:
    """A keyword does not contradict the configuration, it replaces it."""
    with dask.config.set(
        {"clusterjob.mem": 1000, "clusterjob.ppn": 4, "clusterjob.walltime": "02:00:00"}
    ):
        found = options(memory="4GiB", processes=2, time="01:00:00")
        assert (found.resources["mem"], found.ppn) == (4096, 2)
        assert found.resources["time"] == "01:00:00"
        assert options(cores=8).threads == 2


@pytest.mark.parametrize(
    "size", [Bounds(workers=8), Bounds(jobs=2), Bounds(cores=16), Bounds(memory="8GB")]
)
def test_sizes_mean_whole_jobs(size: Bounds) -> None:
    """Workers, jobs, cores and memory are four ways to say the same size."""
    found = options(nodes=2, ppn=2, threads=2, mem=2000, simulate_nodes=True)
    assert size.least(found) == 2


def test_limits_are_whole_jobs() -> None:
    """A minimum is rounded up, a maximum down; one below a job is an error."""
    found = options(ppn=2, threads=2)
    assert limits(found, Bounds(workers=1), Bounds(workers=5)) == (1, 2)
    assert limits(found, Bounds(workers=0), Bounds(workers=0)) == (0, 0)
    assert limits(found, Bounds(workers=3), Bounds(workers=3)) == (1, 1)
    assert limits(found, Bounds(), Bounds(cores=13, jobs=9)) == (0, 3)
    assert limits(found, Bounds(jobs=1), Bounds(workers=float("inf"))) == (1, None)
    with pytest.raises(ValueError, match="less than one job, which holds 2 workers"):
        limits(found, Bounds(), Bounds(workers=1))
    with pytest.raises(ValueError, match="more than the maximum"):
        limits(found, Bounds(jobs=3), Bounds(jobs=2))
    with pytest.raises(ValueError, match="must be given mem"):
        Bounds(memory="1GB").least(found)


# -- the script ----------------------------------------------------------------------------------


def test_the_worker_command() -> None:
    """Each process starts one worker, which gets its share and a name with its rank."""
    text = script(ppn=2, threads=3, mem=1000, python="/opt/py/bin/python", death_timeout="5m")
    assert (
        "/opt/py/bin/python -m distributed.cli.dask_worker tcp://10.0.0.1:8786 "
        '--name "J-$CLUSTERJOB_RANK" --nthreads 3 --memory-limit 500MiB --nworkers 1 --nanny '
        "--death-timeout 5m" in text
    )


def test_the_parts_of_the_script_are_in_order() -> None:
    """Directives, prologue, launcher and epilogue follow each other; skipped lines are gone."""
    text = script(
        shebang="#!/usr/bin/env bash",
        job_script_prologue=["module load {python}", "echo ${HOME} {{x}}"],
        job_script_epilogue=["rm -r $SCRATCH"],
        job_extra_directives=["--extra=time"],
        job_directives_skip=["--time"],
        time="01:00:00",
        log_directory="/logs",
        job_name="my job",
    )
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert not any(line.startswith("#CJ --time") for line in lines)
    directives = [line for line in lines if line.startswith("#CJ")]
    assert directives == lines[1 : 1 + len(directives)]
    assert directives[-1] == "#CJ --extra=time"
    assert "#CJ --stdout=/logs/J.out" in directives
    assert "#CJ --jobname='my job'" in directives
    rest = lines[1 + len(directives) :]
    assert rest[0].startswith("export CLUSTERJOB_DASK_ENDS=$(($(date +%s) + 3600)) ")
    assert rest[1:3] == ["module load {python}", "echo ${HOME} {{x}}"]
    assert "dask_worker" in rest[-2]
    assert rest[-1] == "rm -r $SCRATCH"


@pytest.mark.parametrize(
    ("word", "printed"),
    [
        ("/scratch/$TEST_USER/a b", "/scratch/me/a b"),
        ("${TEST_USER}`id`\"'\\", "me`id`\"'\\"),
        ("it's $(id) $5", "it's $(id) $5"),
        ("$TEST_USER $(id) $5 $", "me $(id) $5 $"),
        ("~/x", "/home/me/x"),
        ("", ""),
    ],
)
def test_quoting_expands_variables_only(word: str, printed: str) -> None:
    """Variables such as $TMPDIR are expanded on the node; all else is plain text."""
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quote(word)}"],
        env={**os.environ, "TEST_USER": "me", "HOME": "/home/me"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == printed


def test_extra_arguments_may_hold_an_option_and_its_value() -> None:
    """dask-jobqueue joins arguments by blanks, so that two words in one text are two."""
    text = script(worker_extra_args=["--lifetime 55m", "--preload", "a b.py"])
    assert "--lifetime 55m --preload" in text
    assert "a b.py" in text


@pytest.mark.parametrize(
    "given", [["--resources", "A=1"], ["--resources A=1"], ["--resources=A=1"]]
)
def test_workers_have_the_resource_of_their_pool(given: list[str]) -> None:
    """It is one for each thread, beside the resources that the user gives them."""
    assert script(threads=3, worker_extra_args=given).count("--resources default=3,A=1") == 1
    assert "--resources" not in script(worker_command="my.worker")


def test_the_class_of_the_workers() -> None:
    """Another class is named to the program; that of dask-cuda has a program of its own."""
    assert "dask_worker tcp" in script(worker_class="my.Worker")
    assert "--worker-class my.Worker" in script(worker_class="my.Worker")
    text = script(worker_class="dask_cuda.CUDAWorker", ppn=2, threads=3)
    assert '-m dask_cuda.cli tcp://10.0.0.1:8786 --name "J-$CLUSTERJOB_RANK" --nthreads 3' in text
    assert "--nworkers" not in text
    assert "--nanny" not in text
    assert "--worker-class" not in text


def test_dask_cuda_has_a_worker_for_each_gpu() -> None:
    """A process with two GPUs would start two workers, so that it is refused."""
    slurm = {"backend": "slurm", "worker_class": "dask_cuda.CUDAWorker", "gpus": 2}
    with pytest.raises(ResourcesNotSupportedError, match="give ppn=2"):
        resolve(slurm)
    assert resolve({**slurm, "ppn": 2}).worker_command == "dask_cuda.cli"
    with pytest.raises(ResourcesNotSupportedError, match=r"worker_command='x'.*contradict"):
        resolve({**slurm, "ppn": 2, "worker_command": "x"})
    with pytest.raises(ResourcesNotSupportedError, match="as text"):
        options(worker_class=int)


def test_a_job_finds_the_address_that_works() -> None:
    """Of several addresses a job takes the first that answers, and says if none does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        recipe = Recipe.plan(options(python="echo"), "J", None)
        found = recipe.script(
            [f"tcp://no.such.host.invalid:{port}", f"tcp://127.0.0.1:{port}"], "J"
        )
        lines = [line for line in str(found).splitlines() if not line.startswith("#")]
        probe = "\n".join([*lines[:-1], "echo $CLUSTERJOB_DASK_HOST"])
        done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "127.0.0.1"
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "interface=" in done.stderr
    assert f"tcp://$CLUSTERJOB_DASK_HOST:{port}" in str(found)


def test_addresses_leave_out_loopback() -> None:
    """Nodes are offered the addresses of this machine that others can see, then its name."""
    found = addresses_of("tcp://127.0.0.1:99")
    assert found
    assert not any("127." in address for address in found)
    assert all(address.startswith("tcp://") and address.endswith(":99") for address in found)


def test_importing_leaves_no_trace(tmp_path: Path) -> None:
    """Importing the cluster changes no signal handler, writes no file, works in a thread."""
    code = (
        "import signal, threading\n"
        "before = [signal.getsignal(n) for n in signal.valid_signals() if n < 32]\n"
        "def load():\n    import cjdask; cjdask.ClusterjobCluster\n"
        "thread = threading.Thread(target=load); thread.start(); thread.join()\n"
        "load()\n"
        "assert before == [signal.getsignal(n) for n in signal.valid_signals() if n < 32]\n"
    )
    env = {**os.environ, "HOME": str(tmp_path)}
    env.pop("DASK_CONFIG", None)
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "margin", "ahead"),
    [
        ({}, 0, 0),
        ({"time": "2"}, 30, 30),
        ({"walltime": "10:00:00"}, 300, 300),
        ({"time": "10:00:00", "walltime_margin": "20m"}, 1200, 1200),
        ({"time": "01:00:00", "walltime_margin": 2400}, 2400, 600),
        ({"time": "01:00:00", "walltime_margin": 0}, 0, 0),
    ],
)
def test_margin_before_the_walltime(options: dict[str, Any], margin: float, ahead: float) -> None:
    """Workers leave 5 minutes before the end, or a quarter of the walltime, or as it is told."""
    resolved = resolve({"backend": "slurm", **options})
    assert (resolved.walltime_margin, resolved.successor_ahead) == (margin, ahead)


@pytest.mark.parametrize("value", ["1h", "soon", -1, "02:00"])
def test_margins_that_are_refused(value: Any) -> None:
    """A margin that is no time, or not less than the walltime, is refused."""
    with pytest.raises(ResourcesNotSupportedError, match=f"walltime_margin={value!r}"):
        resolve({"backend": "slurm", "time": "01:00:00", "walltime_margin": value})


@pytest.fixture
def users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a file of settings of the user, which is not there yet."""
    path = tmp_path / "settings.ini"
    monkeypatch.setenv("CJDASK_SETTINGS", str(path))
    return path


def test_the_users_settings_describe_a_machine(
    users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of clusters and calls; before them go defaults of the program, dask's, keywords."""
    users_file.write_text(
        "[Attributes]\nbackend = slurm\nshell = /bin/sh\n"
        "[Resources]\nqueue = a\naccount = b\nmem = 1000\ntime = 10\n--gres = x\n"
    )
    monkeypatch.setitem(JobScript.resources, "account", "c")
    asked = {"account": "c", "--gres": "x", "time": "10"}
    with dask.config.set({"clusterjob.queue": "d"}):
        found = resolve({"mem": 2000})
    assert found.backend == "slurm"
    expected = {**asked, "queue": "d", "mem": 2000, "time": found.resources["time"]}
    assert found.resources.items() >= expected.items()
    assert found.walltime == 600
    calls = CallOptions.of({"mem": 2000})
    assert (calls.backend, calls.resources) == (
        "slurm",
        {**asked, "queue": "a", "mem": 2000, "jobname": "calls"},
    )
    local = resolve({"backend": "local"}).resources
    assert (local["account"], local.get("queue")) == ("c", None)
    assert CallOptions.of({"backend": "local"}).resources == {"account": "c", "jobname": "calls"}
    monkeypatch.setattr(JobScript, "_set", JobScript._set | {"backend"})
    monkeypatch.setattr(JobScript, "backend", "sge")
    assert CallOptions.of({}).backend == "sge"
    assert resolve({"backend": "local"}).resources.get("account") is None
    users_file.write_text("[Resources]\nppn = two\n")
    with pytest.raises(SettingsError, match=r"settings\.ini, line 2: ppn"):
        resolve({})


def test_a_machine_elsewhere_in_the_users_settings(users_file: Path) -> None:
    """Jobs and calls go there, unless they ask for this machine."""
    users_file.write_text(
        "[Attributes]\nbackend = slurm\nremote = ada@login\nssh = false\n[Resources]\nqueue = a\n"
    )
    found = resolve({})
    assert (found.remote, found.ssh, found.place) == ("ada@login", "false", "login")
    assert found.resources["queue"] == "a"
    here = resolve({"remote": "", "backend": "local"})
    assert (here.remote, here.place) == ("", "here")
    calls = CallOptions.of({"remote": "", "backend": "local"})
    assert (calls.remote, calls.backend, calls.resources) == ("", "local", {"jobname": "calls"})
    with pytest.raises(ProtocolError, match="login"):
        CallOptions.of({})
