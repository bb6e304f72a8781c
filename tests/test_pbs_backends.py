"""What the backends of the PBS family write into job scripts, and how they start and end jobs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends import BatchBackend, detect_backend
from cjdask.backends.lpbs import LpbsBackend
from cjdask.backends.pbs import TorqueBackend
from cjdask.backends.pbspro import PbsProBackend
from cjdask.errors import (
    ResourcesNotSupportedError,
)
from cjdask.resources import Resources

PRO, TORQUE, LPBS = PbsProBackend(), TorqueBackend(), LpbsBackend()
ALL = [PRO, TORQUE, LPBS]


def headers(backend: BatchBackend, **resources: Any) -> list[str]:
    """Return the options without what they all begin with."""
    lines = backend.headers(Resources.of(resources))
    assert all(line.startswith("#PBS ") for line in lines)
    return [line.removeprefix("#PBS ") for line in lines]


# -- headers -------------------------------------------------------------------------------------

DESIGN = {"nodes": 2, "ppn": 2, "threads": 4, "mem": 8000, "time": "01:30:00"}


@pytest.mark.parametrize(
    ("backend", "resources", "lines"),
    [
        (
            PRO,
            DESIGN,
            [
                "-l select=2:ncpus=8:mpiprocs=2:ompthreads=4:mem=8000mb",
                "-l place=scatter",
                "-l walltime=01:30:00",
            ],
        ),
        (TORQUE, DESIGN, ["-l mem=16000mb", "-l nodes=2:ppn=8", "-l walltime=01:30:00"]),
        (
            LPBS,
            {**DESIGN, "nodes": 1},
            ["-l mem=8000mb", "-l nodes=1:ppn=8", "-l walltime=01:30:00"],
        ),
        (
            PRO,
            {"nodes": 2, "ppn": 32, "threads": 1},
            ["-l select=2:ncpus=32:mpiprocs=32:ompthreads=1", "-l place=scatter"],
        ),
        (
            PRO,
            {"nodes": 1, "ppn": 1, "threads": 32},
            ["-l select=1:ncpus=32:mpiprocs=1:ompthreads=32"],
        ),
        (
            PRO,
            {"nodes": 4, "ppn": 2, "threads": 16},
            ["-l select=4:ncpus=32:mpiprocs=2:ompthreads=16", "-l place=scatter"],
        ),
        (TORQUE, {"nodes": 2, "ppn": 32, "threads": 1}, ["-l nodes=2:ppn=32"]),
        (TORQUE, {"nodes": 1, "ppn": 1, "threads": 32}, ["-l nodes=1:ppn=32"]),
        (TORQUE, {"nodes": 4, "ppn": 2, "threads": 16}, ["-l nodes=4:ppn=32"]),
        (
            PRO,
            {"nodes": 2, "gpus": 4, "exclusive": True},
            [
                "-l select=2:ncpus=1:mpiprocs=1:ompthreads=1:ngpus=4",
                "-l place=scatter:exclhost",
            ],
        ),
        (
            TORQUE,
            {"nodes": 2, "gpus": 4, "exclusive": True},
            ["-l nodes=2:ppn=1:gpus=4", "-l naccesspolicy=singlejob"],
        ),
    ],
)
def test_processes_threads_and_memory(
    backend: BatchBackend, resources: dict[str, Any], lines: list[str]
) -> None:
    """Nodes, processes, threads and memory are written as each scheduler counts them."""
    assert headers(backend, **resources) == lines


@pytest.mark.parametrize("backend", ALL, ids=lambda b: b.name)
def test_what_all_write_alike(backend: BatchBackend) -> None:
    """Name, queue, project, files and options come in the alphabetical order of our keys."""
    assert headers(
        backend,
        jobname="a-1.2",
        queue="long",
        account="proj",
        stdout="a.out",
        stderr="a.err",
        F="nodes",
        V=True,
        r=False,
        software="x",
        flag=True,
        **{"-M": "me@x.org"},
    ) == [
        "-M me@x.org",
        "-F nodes",
        "-V",
        "-A proj",
        "-l flag=true",
        "-N a-1.2",
        "-q long",
        "-l software=x",
        "-e a.err",
        "-o a.out",
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain,a=b:c", "plain,a=b:c"),
        ("two words", "'two words'"),
        ("it's", """'it'"'"'s'"""),
        ('say "x"', """'say "x"'"""),
        ("back\\slash", "'back\\slash'"),
        ("$(id) `id` *;#", "'$(id) `id` *;#'"),
    ],
)
def test_values_are_quoted_as_qsub_reads_them(text: str, written: str) -> None:
    """Blanks, quotes and backslashes are quoted; qsub expands nothing."""
    assert headers(PRO, W=text) == [f"-W {written}"]


@pytest.mark.parametrize(
    ("array", "pro", "torque"),
    [
        (10, "-J 0-9", "-t 0-9"),
        ("0-9%2", "-J 0-9%2", "-t 0-9%2"),
        (range(1, 10, 2), "-J 1-9:2", "-t 1,3,5,7,9"),
        ("7,3", "-J 3-7:4", "-t 3,7"),
        ("1,3,7", None, "-t 1,3,7"),
        (1, None, "-t 0"),
    ],
)
def test_arrays(array: Any, pro: str | None, torque: str) -> None:
    """PBS Pro has evenly spaced arrays from two tasks on, TORQUE any; indices are sorted.

    ``-t 5-1`` would end the server of TORQUE.
    """
    assert headers(TORQUE, array=array) == [torque]
    if pro:
        assert headers(PRO, array=array) == [pro]
    else:
        with pytest.raises(ResourcesNotSupportedError, match=r"'array' .* 'pbspro'"):
            headers(PRO, array=array)


def test_dependencies() -> None:
    """A job starts after others ended well; TORQUE has another word for arrays."""
    assert headers(PRO, depends=["1.s", "2[].s"]) == ["-W depend=afterok:1.s:2[].s"]
    assert headers(TORQUE, depends=["1.s", "2[].s", "3.s"]) == [
        "-W depend=afterok:1.s:3.s,afterokarray:2[].s"
    ]
    assert headers(TORQUE, depends="2[].s") == ["-W depend=afterokarray:2[].s"]


@pytest.mark.parametrize(
    ("backend", "resources", "told"),
    [
        (LPBS, {"nodes": 2}, "'nodes' cannot be asked for on 'lpbs': .* nodes=1"),
        (LPBS, {"gpus": 1}, "'gpus' .* leave it out"),
        (LPBS, {"exclusive": True}, "'exclusive' .* leave it out"),
        (LPBS, {"array": 3}, "'array' .* each task as a job"),
        (LPBS, {"depends": "1.s"}, "'depends' .* wait for the jobs"),
        (LPBS, {"j": "eo"}, "'j' .* give j='oe'"),
        (PRO, {"jobname": "a b"}, "'jobname' .* character"),
        (PRO, {"jobname": "a/b"}, "'jobname'"),
        (PRO, {"jobname": "é"}, "'jobname'"),
        (TORQUE, {"stdout": "host:file"}, "'stdout' .* host"),
        (PRO, {"z": True}, "'z' .* id would not be printed"),
        (PRO, {"J": "0-3"}, "'J' .* give array="),
        (TORQUE, {"-t": "0-3"}, "'-t' .* give array="),
        (PRO, {"W": "block=true"}, "'W' .* wait"),
        (PRO, {"jobname": "a", "N": "b"}, "'jobname' .* 'N' says '-N' too"),
        (PRO, {"time": "10", "walltime": "600"}, "'time' says '-l walltime' too"),
        (TORQUE, {"stdout": "a", "stderr": "a", "j": "n"}, "'stderr' .* 'j' says '-j' too"),
    ],
)
def test_what_cannot_be_asked_for(
    backend: BatchBackend, resources: dict[str, Any], told: str
) -> None:
    """What a scheduler cannot do, or would misunderstand, is refused with key and remedy."""
    with pytest.raises(ResourcesNotSupportedError, match=told):
        headers(backend, **resources)


@pytest.mark.parametrize("backend", ALL, ids=lambda b: b.name)
def test_body_variables(backend: BatchBackend) -> None:
    """The core variables become PBS's; the list of nodes is what is in its file."""
    text = "${CLUSTERJOB_ID} $CLUSTERJOB_WORKDIR $CLUSTERJOB_SUBMIT_HOST $CLUSTERJOB_NAME"
    assert backend.replace_body_vars(text) == "${PBS_JOBID} $PBS_O_WORKDIR $PBS_O_HOST $PBS_JOBNAME"
    assert backend.replace_body_vars("x=${CLUSTERJOB_NODELIST}") == 'x=$(cat "$PBS_NODEFILE")'
    index = "PBS_ARRAY_INDEX" if backend is PRO else "PBS_ARRAYID"
    assert backend.replace_body_vars("$CLUSTERJOB_ARRAY_INDEX") == f"${index}"


@pytest.mark.parametrize(
    ("backend", "resources", "job_id", "task", "paths"),
    [
        (PRO, {}, "12.s", None, ("n.o12", "n.e12")),
        (PRO, {}, "12[].s", 3, ("n.o12.3", "n.e12.3")),
        (PRO, {"stdout": "a.out"}, "12.s", None, ("a.out", "n.e12")),
        (PRO, {"stdout": "a.out", "stderr": "a.out"}, "12.s", None, ("a.out", "a.out")),
        (PRO, {"stdout": "a.out", "stderr": "e"}, "12[].s", 3, ("a.out.3", "e.3")),
        (PRO, {"stdout": "^array_index^/a"}, "12[].s", 3, ("3/a", "n.e12.3")),
        (PRO, {"stdout": "logs/", "j": "oe"}, "12[].s", 3, ("logs/n.o12.3", "logs/n.o12.3")),
        (TORQUE, {}, "12.s", None, ("n.o12", "n.e12")),
        (TORQUE, {}, "12[].s", 3, ("n.o12-3", "n.e12-3")),
        (TORQUE, {"stdout": "a.out", "-j": "oe"}, "12[].s", 3, ("a.out-3", "a.out-3")),
        (TORQUE, {"j": "eo"}, "12.s", None, ("n.e12", "n.e12")),
        (LPBS, {"stderr": "e"}, "12.localhost.local", None, ("n.o12", "e")),
    ],
)
def test_log_files(
    backend: BatchBackend,
    resources: dict[str, Any],
    job_id: str,
    task: int | None,
    paths: tuple[str, str],
) -> None:
    """The log files have the names that each scheduler gives them."""
    checked = Resources.of({"jobname": "n", **resources})
    found = [backend.log_path(checked, stream, job_id, task) for stream in ("stdout", "stderr")]
    assert tuple(found) == paths


def test_the_tasks_of_an_array_have_files_of_their_own() -> None:
    """PBS Pro would let all tasks write into one file; TORQUE adds the index itself."""
    assert headers(PRO, array=2, stdout="a") == ["-J 0-1", "-o a.^array_index^"]
    assert headers(PRO, array=2, stdout="a.^array_index^.x") == ["-J 0-1", "-o a.^array_index^.x"]
    assert headers(PRO, array=2, stdout="logs/") == ["-J 0-1", "-o logs/"]
    assert headers(TORQUE, array=2, stdout="a") == ["-t 0-1", "-o a"]


def test_one_file_for_both_streams_is_joined() -> None:
    """Two files of one name would overwrite each other."""
    assert headers(TORQUE, stdout="a", stderr="a") == ["-j oe", "-o a"]


# -- the launcher --------------------------------------------------------------------------------

FAKES = {
    "pbs_tmrsh": '#!/bin/bash\ncd /; exec env -i PATH=/usr/bin:/bin PBS_NODENUM="on $1" "${@:2}"\n',
    "pbsdsh": (
        "#!/bin/bash\n"
        'host=$(sed -n "$(($2 + 1))p" "$PBS_NODEFILE")\n'
        'cd /; env -i PATH=/usr/bin:/bin PBS_NODENUM="on $host" "${@:3}"; exit 0\n'
    ),
}
"""Commands of PBS that start programs in nearly no environment; the second hides exit codes."""


@pytest.mark.parametrize("backend", [PRO, TORQUE], ids=lambda b: b.name)
def test_the_launcher(backend: BatchBackend, tmp_path: Path) -> None:
    """The launcher of a job of two nodes starts all ranks, and fails if one of them does."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nodes").write_text("n2\nn2\nn2\nn2\nn1\nn1\nn1\nn1\n")
    text = backend.launcher(
        Resources.of({"nodes": 2, "ppn": 2, "threads": 2}),
        'echo "$CLUSTERJOB_RANK $CLUSTERJOB_LOCAL_RANK $CLUSTERJOB_NODE_RANK $PBS_NODENUM $SECRET";'
        " [ $CLUSTERJOB_RANK != 3 ]",
    )
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PBS_NODEFILE": str(tmp_path / "nodes"),
        "PBS_NODENUM": "on n2",
        "SECRET": "'it is' \"me\"",
    }
    done = subprocess.run(
        ["/bin/sh", "-c", text], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    ranks = ["0 0 0 on n2", "1 1 0 on n2", "2 0 1 on n1", "3 1 1 on n1"]
    assert sorted(done.stdout.splitlines()) == [f"{rank} {env['SECRET']}" for rank in ranks]


@pytest.mark.parametrize("listed", [True, False])
def test_torque_tells_gpus_by_a_file(tmp_path: Path, listed: bool) -> None:
    """Processes get those of their host in the file; without it they are counted from 0."""
    (tmp_path / "hostname").write_text("#!/bin/sh\necho gpu-2\n")
    (tmp_path / "hostname").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    if listed:
        (tmp_path / "gpus").write_text("gpu-2.site-gpu3\ngpu-2-gpu1\ngpu-20-gpu0\n")
        env["PBS_GPUFILE"] = str(tmp_path / "gpus")
    text = TORQUE.launcher(Resources.of({"ppn": 2, "gpus": 2}), "echo $CUDA_VISIBLE_DEVICES")
    done = subprocess.run(["/bin/sh", "-c", text], env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert sorted(done.stdout.split()) == (["1", "3"] if listed else ["0", "1"])


def test_the_launcher_of_one_machine() -> None:
    """LPBS starts the processes itself, and none on other machines."""
    assert "pbs" not in LPBS.launcher(Resources.of({"ppn": 2}), "hostname")
    with pytest.raises(ResourcesNotSupportedError, match="nodes"):
        LPBS.launcher(Resources.of({"nodes": 2}), "hostname")


# -- cancel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ALL, ids=lambda b: b.name)
def test_each_job_has_a_qdel_of_its_own(backend: BatchBackend, tmp_path: Path) -> None:
    """One command cancels many jobs, but no qdel sees two ids: that can end the server."""
    name = backend.programs[-1] if backend is LPBS else "qdel"
    program = tmp_path / name
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/log\n[ "$1" != 2.s ] || exit 35\n')
    program.chmod(0o755)
    command = backend.cancel_command(["1.s", "2.s", "3[].s"])
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command.argv, env=env, check=False)
    option = "-w 1 " if backend is LPBS else ""
    assert (tmp_path / "log").read_text() == f"{option}1.s\n{option}2.s\n{option}3[].s\n"
    assert done.returncode == (0 if backend is LPBS else 35)
    assert backend.task_id("3[].s", 7) == "3[7].s"


# -- which one is installed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("programs", "name"),
    [
        (PRO.programs, "pbspro"),
        (TORQUE.programs, "pbs"),
        (LPBS.programs, "lpbs"),
    ],
)
def test_detection(programs: tuple[str, ...], name: str) -> None:
    """PBS Pro and TORQUE have commands of the same names; PBS Pro is known by pbs_tmrsh."""
    assert detect_backend({program: f"/bin/{program}" for program in programs}.get) == name
