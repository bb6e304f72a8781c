"""The shell text that starts processes does so in a real bash, on nodes that are simulated."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from cjdask.backends.launching import launch, local_processes, over_hosts
from cjdask.resources import Resources

REMOTE = """#!/bin/bash
# Start a program on "another host" as a resource manager does: nearly no environment, in /.
host=$1 file=$3
stat -c %a "$file" >>"$LOG"
cd / && exec env -i PATH=/usr/bin:/bin HOSTNAME="$host" TASK="task of $host" LOG="$LOG" "${@:2}"
"""

LYING_REMOTE = REMOTE.replace("exec ", "") + "exit 0\n"
"""One that always ends with 0, as pbsdsh does."""

SHOW = (
    'echo "$CLUSTERJOB_RANK $CLUSTERJOB_LOCAL_RANK $CLUSTERJOB_NODE_RANK'
    ' ${HOSTNAME:-?} ${TASK:-?} $PWD"'
)


class Cluster:
    """A work folder, a list of hosts and a command ``remote`` that reaches them."""

    def __init__(self, folder: Path, remote: str = REMOTE) -> None:
        self.work = folder / "work"
        self.home = folder / "home"
        self.log = folder / "log"
        for made in (self.work, self.home):
            made.mkdir()
        self.remote = folder / "remote"
        self.remote.write_text(remote)
        self.remote.chmod(0o755)
        self.hosts = folder / "hosts"
        self.hosts.write_text("n1\nn1\nn2\nn2\n")
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "HOSTFILE": str(self.hosts),
            "LOG": str(self.log),
            "HOSTNAME": "n1",
            "TASK": "task of n1",
        }

    def text(self, nodes: int, ppn: int, command: str, returns_code: bool = True) -> str:
        return over_hosts(
            nodes,
            ppn,
            command,
            hosts='cat "$HOSTFILE"',
            start=f"{self.remote} {{host}} {{program}}",
            own=["TASK"],
            returns_code=returns_code,
        )

    def run(self, text: str, shell: str = "/bin/sh") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shell, "-c", text],
            capture_output=True,
            text=True,
            cwd=self.work,
            env=self.env,
            timeout=60,
            check=False,
        )

    def left_behind(self) -> list[Path]:
        return [*self.work.iterdir(), *self.home.iterdir()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Return a cluster whose hosts are reached with an honest starter."""
    return Cluster(tmp_path)


def rows(text: str) -> list[str]:
    """Return the lines in the order of the ranks."""
    return sorted(text.splitlines(), key=lambda line: int(line.split()[0]))


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_processes_on_one_node_have_their_ranks(cluster: Cluster, shell: str) -> None:
    """Processes of one node are ranks 0 to n-1, in the folder of the job script."""
    done = cluster.run(local_processes(3, SHOW), shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout) == [f"{i} {i} 0 n1 task of n1 {cluster.work}" for i in range(3)]


@pytest.mark.parametrize(
    ("gpus", "ppn", "visible", "shares"),
    [
        (2, 2, "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        (4, 2, "4,5,6,7", ["4,5", "6,7"]),
        (3, 2, "0,1,2", ["0", "1,2"]),
        (2, 3, "0,1", ["0", "1", "0"]),
        (2, 1, "2,3", ["2,3"]),
        (2, 2, None, ["0", "1"]),
        (0, 2, "0,1", ["0,1", "0,1"]),
        (0, 2, None, ["none", "none"]),
    ],
)
def test_processes_share_out_the_gpus_of_their_node(
    cluster: Cluster, gpus: int, ppn: int, visible: str | None, shares: list[str]
) -> None:
    """Each has its own, in the order of the ranks; without any nothing is changed."""
    show = 'echo "$CLUSTERJOB_LOCAL_RANK ${CUDA_VISIBLE_DEVICES:-none}"'
    if visible is not None:
        cluster.env["CUDA_VISIBLE_DEVICES"] = visible
    done = cluster.run(local_processes(ppn, show, gpus=gpus))
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout) == [f"{rank} {share}" for rank, share in enumerate(shares)]


@pytest.mark.parametrize("known", [True, False])
def test_other_nodes_have_gpus_of_their_own(tmp_path: Path, known: bool) -> None:
    """On another host those count that its starter, or a command there, tells, not the first's."""
    told = "CUDA_VISIBLE_DEVICES=GPU-c,GPU-d " if known else ""
    cluster = Cluster(tmp_path, REMOTE.replace("HOSTNAME=", f"{told}HOSTNAME="))
    cluster.env["CUDA_VISIBLE_DEVICES"] = "GPU-a,GPU-b"
    text = over_hosts(
        *(2, 2, 'echo "$CLUSTERJOB_RANK $CUDA_VISIBLE_DEVICES"'),
        hosts='cat "$HOSTFILE"',
        start=f"{cluster.remote} {{host}} {{program}}",
        gpus=2,
        devices="echo 6,7",
    )
    done = cluster.run(text)
    assert (done.returncode, done.stderr) == (0, "")
    there = ["GPU-c", "GPU-d"] if known else ["6", "7"]
    assert rows(done.stdout) == ["0 GPU-a", "1 GPU-b", *(f"{2 + i} {there[i]}" for i in (0, 1))]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_processes_on_several_nodes_have_their_ranks(cluster: Cluster, shell: str) -> None:
    """Ranks go on from node to node; folder and variables of the host are right on each."""
    done = cluster.run(cluster.text(2, 2, SHOW), shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout) == [
        f"0 0 0 n1 task of n1 {cluster.work}",
        f"1 1 0 n1 task of n1 {cluster.work}",
        f"2 0 1 n2 task of n2 {cluster.work}",
        f"3 1 1 n2 task of n2 {cluster.work}",
    ]


def test_the_environment_arrives_unchanged(cluster: Cluster) -> None:
    """All values, also with line breaks, quotes and raw bytes, and exported functions arrive."""
    cluster.env |= {"LINES2": "a\n'b' \"$(id)\" `id` \\", "i": "mine", "EMPTY": ""}
    setup = r"""export BYTES=$'\377\001'; greet() { printf 'hello "%s"\n' "$1"; }; export -f greet
    readonly FIXED=1; export FIXED SHELLOPTS; umask 027
    """
    command = 'env -0 | sort -z | tr "\\0\\n" "\\n|" >"env.$CLUSTERJOB_RANK"; greet $FIXED; umask'
    done = cluster.run(setup + cluster.text(2, 1, command), "/bin/bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["0027", "0027", 'hello "1"', 'hello "1"']
    seen = [
        {
            line
            for line in (cluster.work / f"env.{rank}").read_bytes().split(b"\n")
            if not line.startswith(
                (b"CLUSTERJOB_", b"HOSTNAME=", b"TASK=", b"SHELLOPTS", b"SHLVL=", b"_=")
            )
        }
        for rank in (0, 1)
    ]
    assert seen[0] == seen[1]
    assert b"BYTES=\xff\x01" in seen[1]
    assert b"i=mine" in seen[1]
    assert not [line for line in seen[1] if b"_cj_" in line and b"BASH_FUNC" not in line]


def test_the_environment_is_private_and_removed(cluster: Cluster) -> None:
    """The file with the environment is 0600 and gone at the end, also after a signal."""
    cluster.run(cluster.text(2, 1, "true"))
    assert cluster.log.read_text() == "600\n"
    assert cluster.left_behind() == []
    done = cluster.run("exec " + cluster.text(2, 1, 'kill -TERM "$(ps -o ppid= $PPID)"; sleep 0.2'))
    assert done.returncode == -signal.SIGTERM
    assert cluster.left_behind() == []


@pytest.mark.parametrize(("returns_code", "remote"), [(True, REMOTE), (False, LYING_REMOTE)])
@pytest.mark.parametrize("rank", range(4))
def test_a_failing_process_is_told_and_ends_no_other(
    tmp_path: Path, rank: int, returns_code: bool, remote: str
) -> None:
    """The exit code of the worst process is the launcher's; the others run to their end."""
    cluster = Cluster(tmp_path, remote)
    command = f"if [ $CLUSTERJOB_RANK = {rank} ]; then exit 7; fi; sleep 0.1; echo $CLUSTERJOB_RANK"
    done = cluster.run(cluster.text(2, 2, command, returns_code) + "\nexit $?")
    assert done.returncode == 7
    assert sorted(done.stdout.split()) == [str(i) for i in range(4) if i != rank]
    assert cluster.left_behind() == []
    alone = cluster.run(local_processes(4, command))
    assert (alone.returncode, sorted(alone.stdout.split())) == (7, sorted(done.stdout.split()))


def test_a_signal_is_told(cluster: Cluster) -> None:
    """A process that a signal ends counts as 128 and the signal's number."""
    assert cluster.run(local_processes(2, "kill -9 $$")).returncode == 137


def test_a_host_that_cannot_be_reached_is_a_failure(cluster: Cluster) -> None:
    """Where the starter fails the launcher does, and the other nodes' processes end well."""
    text = cluster.text(2, 1, "echo $CLUSTERJOB_RANK").replace(str(cluster.remote), "no-such")
    done = cluster.run(text)
    assert (done.returncode, done.stdout) == (127, "0\n")
    assert "no-such" in done.stderr


def test_a_job_without_hosts_is_an_error(cluster: Cluster) -> None:
    """An empty list of hosts is an error that says so."""
    cluster.hosts.write_text("\n")
    done = cluster.run(cluster.text(2, 1, "echo no"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "names no nodes" in done.stderr


def test_nodes_may_share_a_host(cluster: Cluster) -> None:
    """Where the scheduler packs nodes on one host no process is lost."""
    cluster.hosts.write_text("n1\nn1\n")
    done = cluster.run(cluster.text(3, 1, "echo $CLUSTERJOB_RANK $CLUSTERJOB_NODE_RANK"))
    assert rows(done.stdout) == ["0 0", "1 1", "2 2"]


def test_a_folder_with_blanks_is_no_trouble(tmp_path: Path) -> None:
    """In a folder whose name needs quoting the file goes to the home folder."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    cluster = Cluster(tmp_path)
    text = f"cd '{tmp_path}/it'\\''s a folder' && {cluster.text(2, 1, 'pwd')}"
    done = cluster.run(text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(folder)] * 2
    assert [*folder.iterdir(), *cluster.left_behind()] == []


def test_the_index_is_the_first_line_of_a_host(cluster: Cluster) -> None:
    """A starter that counts lines of the host list gets the right one."""
    text = over_hosts(2, 1, "true", hosts='cat "$HOSTFILE"', start="echo index {index} host {host}")
    assert cluster.run(text).stdout == "index 2 host n2\n"


def test_one_node_needs_no_starter() -> None:
    """A job of one node starts its processes directly."""
    resources = Resources.of({"ppn": 4})
    assert launch(resources, "x", hosts="h", start="s") == local_processes(4, "x")
    assert "pbs_tmrsh" in launch(
        Resources.of({"nodes": 2}), "x", hosts="h", start="pbs_tmrsh {host} {program}"
    )


def test_mode_of_the_code_files(tmp_path: Path) -> None:
    """The files that bring exit codes back are private too."""
    cluster = Cluster(tmp_path, LYING_REMOTE)
    kept = tmp_path / "kept"
    kept.mkdir()
    text = cluster.text(2, 1, "true", returns_code=False).replace("rm -f", f"cp -p -t {kept}")
    assert cluster.run(text).returncode == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in kept.iterdir()}
    assert (len(list(kept.iterdir())), modes) == (3, {0o600})
