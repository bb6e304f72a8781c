"""``cjdask schedulers`` and ``cjdask doctor``: what a machine has, and whether it works."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from cjdask.backends import survey
from cjdask.cli_checks import Check, Examination
from tests.as_user import USER
from tests.cli import PROGRAM, cjdask, rows, start
from tests.cli_fixtures import FakeSite

TOOLS = (
    *("base64", "basename", "bash", "cat", "cut", "date", "dirname", "env", "find", "grep", "head"),
    *(
        "hostname",
        "ls",
        "mkdir",
        "mktemp",
        "mv",
        "rm",
        "sed",
        "setsid",
        "sh",
        "sleep",
        "sort",
        "tail",
    ),
    *("touch", "tr", "uname", "wc"),
)


@pytest.fixture
def bare_machine(own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a machine with the usual tools and no scheduler; return the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        if path := shutil.which(tool):
            (programs / tool).symlink_to(path)
    monkeypatch.setenv("PATH", str(programs))
    return programs


def states(text: str) -> dict[str, str]:
    """Return the state of each check that was printed."""
    found = re.findall(r"^(ok|warn|fail) +(\w+(?: code)?) ", text, re.MULTILINE)
    return {about: state for state, about in found}


WELL = {
    **dict.fromkeys(("scheduler", "answer", "job", "folder", "launcher", "python", "array"), "ok"),
    **dict.fromkeys(("exit code", "accounting", "tag"), "ok"),
}
"""What is found where all is well."""

# -- what there is --------------------------------------------------------------------------------


def test_schedulers_tells_what_was_found_and_why(bare_machine: Path) -> None:
    """Each scheduler is listed with the commands that are there or missing, and the one used."""
    for name in ("sbatch", "squeue", "scancel", "qsub", "qstat"):
        (bare_machine / name).touch(mode=0o755)
    done = cjdask("schedulers")
    assert done.exit_code == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}
    assert lines["slurm"] == f"yes yes sbatch, squeue, scancel in {bare_machine}"
    assert lines["sge"] == "no not on PATH: qacct, qconf"
    assert lines["local"] == "yes needs nothing; is used where no other is found"
    found = {row["name"]: row for row in rows(cjdask("schedulers", "--json"))}
    assert [name for name, row in found.items() if row["used"]] == ["slurm"]
    assert found["sge"]["commands"]["qsub"] == str(bare_machine / "qsub")
    assert found["sge"]["commands"]["qacct"] is None


def test_two_schedulers_on_one_machine() -> None:
    """Where two are there, one is used, and the other one's line says why it is not."""
    programs = ("sbatch", "squeue", "scancel", "qsub", "qstat", "qacct", "qconf")
    found = {each.name: each for each in survey({name: f"/bin/{name}" for name in programs}.get)}
    assert found["sge"].used
    assert found["slurm"].found
    assert not found["slurm"].used
    assert found["slurm"].why.endswith("; but sge has more of its commands here")


# -- a machine without a scheduler ----------------------------------------------------------------


def test_a_machine_with_no_scheduler(bare_machine: Path) -> None:
    """The embedded scheduler is checked, all is well, and nothing is left behind."""
    done = cjdask("doctor")
    assert done.exit_code == 0, done.output
    assert states(done.stdout) == WELL
    assert "no scheduler is found but the embedded one" in done.stdout
    assert "2 processes on " in done.stdout
    told = done.stdout.partition(f"write into {Path.cwd() / 'user.ini'}:\n\n")[2]
    assert told == "[Attributes]\nbackend = local\n"
    assert os.listdir() == []
    Path("user.ini").write_text(told)
    again = rows(cjdask("doctor", "--json"))
    assert {row["about"] for row in again[:-1]} == set(WELL)
    assert again[-1] == {
        "settings": str(Path.cwd() / "user.ini"),
        "attributes": {"backend": "local"},
        "resources": {},
    }


def test_commands_that_are_missing(bare_machine: Path) -> None:
    """A scheduler whose commands are not there is a failure that names them; no job is sent."""
    done = cjdask("doctor", "--backend", "slurm")
    assert done.exit_code == 1
    assert states(done.stdout) == {"scheduler": "fail"}
    assert "not on PATH: sbatch, squeue, scancel" in done.stdout
    assert "1 of 1 checks failed" in done.stderr
    assert "write into" not in done.stdout


# -- a scheduler in memory ------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer(fake: FakeSite) -> None:
    """It is told with the scheduler's words, and no job is sent."""
    fake.protocol.down = True
    done = cjdask("doctor", *fake.options)
    assert done.exit_code == 1
    assert states(done.stdout)["answer"] == "fail"
    assert "no contact" in done.stdout
    assert fake.count("submit") == 0


def test_jobs_that_do_not_start(fake: FakeSite) -> None:
    """When the patience is over the jobs are cancelled with one command, and it is told why."""
    done = cjdask("doctor", *fake.options, "--patience", "0.2", "-r", "queue=slow")
    assert done.exit_code == 1
    assert states(done.stdout) == {
        **{"scheduler": "ok", "answer": "ok", "tag": "warn"},
        **{"nodes": "fail", "array": "fail", "fails": "fail"},
    }
    assert done.stdout.count("is PENDING after 0.2 s") == 3
    assert "give it more --patience" in done.stdout
    assert fake.protocol.queue == {}
    assert fake.count("cancel") == 1
    assert os.listdir() == ["job.sh"]


def test_a_job_that_fails(fake: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial job that fails is told with its end and log; so is a wrong exit code."""
    monkeypatch.setattr("cjdask.cli_checks.SETTLING", 0.1)
    submit = fake.protocol.run

    def run(command: object, timeout: float | None = None) -> object:
        output = submit(command, timeout)  # type: ignore[arg-type]
        for job_id in list(fake.protocol.queue):
            fake.end(job_id, "FAILED", 1)
        return output

    monkeypatch.setattr(fake.protocol, "run", run)
    done = cjdask("doctor", *fake.options)
    assert done.exit_code == 1
    found = states(done.stdout)
    assert (found["job"], found["exit code"], found["array"]) == ("fail", "fail", "fail")
    assert "on no node is FAILED (exit code 1)" in done.stdout
    assert f"it left no log in {Path.cwd()}" in done.stdout
    assert "if nodes have no such folder, name one" in done.stdout


# -- what processes of a job tell -----------------------------------------------------------------


@pytest.fixture
def look() -> Examination:
    """Return an examination whose trial job was on two nodes."""
    return Examination("local", {}, "/scratch/x", 1.0, print)


def answers(look: Examination, **changes: list[str]) -> dict[int, list[str]]:
    """Return what the processes of the trial job write where all is well, with changes."""
    token = look._token
    well = {
        rank: [f"n{rank // 2 + 1}", str(rank // 2), token, "Python 3.12.1"] for rank in range(4)
    }
    return {**well, **{int(rank[1:]): lines for rank, lines in changes.items() if lines}}


def test_folders_that_are_not_shared(look: Examination) -> None:
    """A folder that one node cannot read, or whose files do not come back, is told."""
    assert look._check_folder(answers(look)).text == "/scratch/x is shared with n1, n2"
    blind = look._check_folder(answers(look, r3=["n2", "1", "cat: no such file", "Python 3.12.1"]))
    assert (blind.state, blind.text) == ("fail", "what is written here cannot be read on n2")
    assert "name a folder that all nodes share by --workdir" in blind.advice
    assert (
        look._check_folder({}).text == "nothing that the job wrote in /scratch/x can be seen here"
    )


def test_processes_that_are_missing(look: Examination) -> None:
    """Ranks that did not run are a failure; processes on fewer machines a warning."""
    found = answers(look)
    assert look._check_launcher(found, 4).state == "ok"
    assert look._check_launcher({0: found[0], 1: found[1]}, 4) == Check(
        "fail",
        "launcher",
        "of 4 processes 2 ran, of ranks [0, 1]",
        "see the scheduler's page in the documentation",
    )
    one = {rank: ["n1", *lines[1:]] for rank, lines in found.items()}
    assert look._check_launcher(one, 4).state == "warn"
    assert "one machine for 2 nodes" in look._check_launcher(one, 4).text


def test_a_python_that_nodes_do_not_have(look: Examination) -> None:
    """A node where the Python of the login node does not start is named, with what it said."""
    assert look._check_python(answers(look)).state == "ok"
    missing = ["n2", "1", look._token, "python: No such file or directory"]
    found = look._check_python(answers(look, r2=missing, r3=missing))
    assert found.state == "warn"
    assert found.text.splitlines()[1:] == ["n2: python: No such file or directory"]


@pytest.mark.long
def test_interrupting_cancels_the_trial_jobs(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the check with 130; its jobs are gone, and its files."""
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "2")
    busy = cjdask("submit", "-", "--backend", "local", "--threads", "2", input="sleep 60")
    with start("doctor", "--backend", "local") as process:
        assert process.stderr is not None
        assert "waiting for the trial jobs 2, 3, 4" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
    assert process.returncode == 130
    assert [name for name in os.listdir() if name.startswith("cjdask-doctor")] == []
    told = rows(cjdask("status", "2", "3", "4", "--backend", "local", "--json"))
    assert {row["status"] for row in told} == {"CANCELLED"}
    cjdask("cancel", busy.stdout.strip())


# -- real ones ------------------------------------------------------------------------------------


@pytest.fixture
def shared(open_folder: Path) -> Path:
    """Return a folder of the user of the tests that the nodes have as well."""
    folder = open_folder / "doctor"
    folder.mkdir(mode=0o777)
    return folder


def doctor(backend: str, folder: Path, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """Check a real scheduler, as another user where it takes no jobs of root."""
    command = [PROGRAM, "doctor", "--backend", backend, "--workdir", str(folder)]
    env = {**os.environ, "CJDASK_SETTINGS": str(folder / "none.ini")}
    if user is not None and os.getuid() == 0:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *command]
        env |= {"HOME": f"/home/{user}", "USER": user, "LOGNAME": user}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_a_real_slurm(shared: Path) -> None:
    """All is well: two nodes, arrays, accounting, tags."""
    done = doctor("slurm", shared)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(done.stdout) == WELL
    assert re.search(r"4 processes on (\w+), (\w+), ranks 0 to 3", done.stdout)


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_a_real_slurm_that_refuses(shared: Path) -> None:
    """What Slurm says to a queue that is not there is told, with what to do."""
    command = [PROGRAM, "doctor", "--backend", "slurm", "--workdir", str(shared)]
    done = subprocess.run(
        [*command, "-r", "queue=nosuch"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "invalid partition specified: nosuch" in done.stdout
    assert "say by -r KEY=VALUE what the site wants" in done.stdout


@pytest.mark.sge
@pytest.mark.usefixtures("sge")
def test_a_real_grid_engine(shared: Path) -> None:
    """All is well: a parallel environment over two hosts is found by itself."""
    done = doctor("sge", shared)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(done.stdout) == WELL


@pytest.mark.htcondor
@pytest.mark.usefixtures("htcondor")
def test_a_real_htcondor(shared: Path) -> None:
    """All is well but for one thing: nodes of a job may be one machine, and it is told."""
    done = doctor("htcondor", shared, USER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(done.stdout) in (WELL, {**WELL, "launcher": "warn"})


@pytest.mark.oar
@pytest.mark.usefixtures("oar")
def test_a_real_oar(shared: Path) -> None:
    """All is well on two nodes."""
    done = doctor("oar", shared, USER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(done.stdout) == WELL
