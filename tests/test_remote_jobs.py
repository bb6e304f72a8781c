"""Job scripts on another machine: on a real Slurm behind ssh, and where there is no scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cjdask import AsyncResult, JobScript, StagingError, Status, cancel_all, wait_all
from cjdask.backends.local import LocalBackend
from cjdask.errors import ProtocolError, SubmitError
from cjdask.protocols import paramiko, ssh
from cjdask.run_record import read_ends
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.testing import until
from tests.ssh_hosts import CONFIG, CUT, PLAIN, SSH, control, logins, mended_after

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]
BREAKS = [("cut", "mend"), ("stop", "start")]


@pytest.fixture(params=["ssh", "paramiko"])
def link(request: pytest.FixtureRequest, place: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """Return a backend, the address of its machine for a new connection, and that machine."""
    backend, host = place
    remote = host if request.param == "ssh" else f"paramiko://{host}?ssh_config={CONFIG}"
    scheduler = scheduler_for(backend, remote, SSH)
    give_slots(scheduler, "32")  # all jobs are to run at a time
    scheduler.protocol.close()
    yield backend, remote, host
    give_slots(scheduler, "auto")
    scheduler.protocol.close()


def give_slots(scheduler: Scheduler, count: str) -> None:
    """Say how many slots a machine without a scheduler has."""
    if isinstance(scheduler.backend, LocalBackend):
        program = scheduler.backend.query_command([]).argv[:-1]
        assert scheduler.protocol.run([*program, "config", f"--slots={count}"]).exit_code == 0


@pytest.fixture
def short_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a short cut found out as soon as a long one is with the usual settings."""
    if CUT < 30:
        monkeypatch.setattr(ssh, "ALIVE_EVERY", 1)
        monkeypatch.setattr(ssh, "ALIVE_TRIES", 2)
        monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 3)
        monkeypatch.setattr(paramiko, "ALIVE_EVERY", 1.0)
        monkeypatch.setattr(paramiko, "ALIVE_WITHIN", 3.0)
        monkeypatch.setattr(paramiko, "CONNECT_TIMEOUT", 3.0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of this machine, with the hosts known by their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(JobScript, "ssh", SSH)
    return tmp_path


def job(place: tuple[str, str], folder: Path, body: str = "hostname", **kwargs: Any) -> JobScript:
    """Return a job for a machine."""
    backend, host = place
    resources = {"mem": 50} if backend == "slurm" else {}
    values = {"jobname": "far", "time": "5", **resources, **kwargs}
    return JobScript(body, backend=backend, remote=host, rootdir=str(folder), **values)


def shown(*argv: str) -> list[str]:
    """Return the lines that a command prints."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def test_files_come_and_go(place: tuple[str, str], open_folder: Path, here: Path) -> None:
    """Inputs go there, the job runs there, its outputs come here, and then the epilogue runs."""
    (here / "in.txt").write_text("input")
    (here / "data").mkdir()
    (here / "data" / "x").write_text("x")
    script = job(
        place,
        open_folder,
        "cat in.txt data/x >out.txt; mkdir results; pwd -P >results/where; uname -n >>out.txt",
        workdir="work 1",
        input_files=["in.txt", here / "data"],
        output_files=["out.txt", "results"],
        prologue="echo before >>log",
        epilogue="cat out.txt results/where >>log; uname -n >>log",
    )
    run = script.submit(cache_folder="cache")
    assert run.remote == place[1]
    assert run.get(timeout=120) is Status.COMPLETED
    where, node = open_folder / "work 1", run.info.nodes[0]
    lines = ["before", f"inputx{node}", str(where), os.uname().nodename]
    assert (here / "log").read_text().split() == " ".join(lines).split()
    assert [path for path in where.glob("far.*") if path.suffix != ".out"]
    assert run.log_path("stdout").startswith(f"{where}/")
    assert os.listdir(where / ".cjdask") == ["README"]
    assert sorted(os.listdir(here)) == ["cache", "data", "in.txt", "log", "out.txt", "results"]
    (here / "out.txt").unlink()
    assert run.status is Status.COMPLETED
    assert not (here / "out.txt").exists()
    run.fetch()
    assert (here / "out.txt").exists()


def test_another_process_takes_it_up(place: tuple[str, str], open_folder: Path, here: Path) -> None:
    """A recorded run is taken up by another process, which connects and does what is due."""
    script = job(place, open_folder, "sleep 3; echo x >out; exit 3", output_files=["out"])
    run = script.submit(cache_id="one", cache_folder="cache")
    assert script.submit(cache_id="one", cache_folder="cache").job_id == run.job_id
    code = (
        "import sys; from cjdask import AsyncResult\n"
        "run = AsyncResult.load(sys.argv[1])\n"
        "print(run.job_id, run.remote, run.get(120).name, run.info.exit_code)"
    )
    argv = [sys.executable, "-c", code, str(run.cache_file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [run.job_id, place[1], "FAILED", "3"]
    assert (here / "out").read_text() == "x\n"
    (here / "out").unlink()
    assert run.get(timeout=60) is Status.FAILED
    assert not (here / "out").exists()  # it was fetched once, by the other


def test_missing_outputs(place: tuple[str, str], open_folder: Path, here: Path) -> None:
    """Outputs that a good job has not left are told once; of a bad job they are not missed."""
    good = job(place, open_folder, "echo x >a", output_files=["a", "b"], epilogue="touch after")
    bad = job(place, open_folder, "exit 2", output_files=["a", "c"], workdir="bad")
    runs = [good.submit(), bad.submit()]
    with pytest.raises(StagingError, match=r"has left no .*/b'"):
        wait_all(runs, timeout=120)
    assert [run.status for run in runs] == [Status.COMPLETED, Status.FAILED]
    assert (here / "a").exists()
    assert (here / "after").exists()
    with pytest.raises(FileNotFoundError, match="not here"):
        job(place, open_folder, input_files=["not here"]).submit()


def test_many(place: tuple[str, str], open_folder: Path) -> None:
    """Many jobs, arrays and cancels share a login and one question; each keeps its end."""
    scheduler = scheduler_for(place[0], place[1], SSH)
    scheduler.protocol.close()
    before, questions = logins(place[1]), scheduler.commands["query"]
    runs = [
        job(place, open_folder, f"echo {i}; exit {i % 2}", workdir=str(i)).submit()
        for i in range(6)
    ]
    body = "echo task $CLUSTERJOB_ARRAY_INDEX; [ $CLUSTERJOB_ARRAY_INDEX != 1 ]"
    array = job(place, open_folder, body, array="0-2", workdir="array").submit()
    sleepers = [job(place, open_folder, "sleep 300", workdir="s").submit() for _ in range(2)]
    cancel_all(sleepers)
    statuses = wait_all([*runs, array, *sleepers], timeout=150)
    ends = [Status.COMPLETED, Status.FAILED]
    assert statuses == [*ends * 3, Status.FAILED, Status.CANCELLED, Status.CANCELLED]
    assert [run.stdout() for run in runs] == [f"{i}\n" for i in range(6)]
    assert [array.tasks[i].exit_code for i in range(3)] == [0, 1, 0]
    assert array.stdout(task=2, tail=1) == "task 2\n"
    assert logins(place[1]) == before + 1
    assert scheduler.commands["query"] - questions < 80


def test_what_is_refused(place: tuple[str, str], open_folder: Path) -> None:
    """A scheduler that refuses says so; a machine that is none too; nothing is left behind."""
    wrong = {"queue": "nowhere"} if place[0] == "slurm" else {"depends": "99999999"}
    with pytest.raises(SubmitError, match=r"(?s)nowhere|99999999"):
        job(place, open_folder, **wrong).submit(cache_folder="cache", cache_id="x")
    assert not [name for name in os.listdir("cache") if name.endswith(".json")]
    with pytest.raises(ProtocolError, match="cannot be reached"):
        job((place[0], "127.0.0.1:9"), open_folder).submit(cache_folder="cache")


@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("how", BREAKS, ids=["cut", "killed"])
def test_the_link_breaks_in_a_submission(
    link: tuple[str, str, str],
    open_folder: Path,
    how: tuple[str, str],
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    short_signs_of_life: None,
) -> None:
    """Where the link breaks before, while or after the scheduler gets a job, there is one job."""
    backend, remote, host = link
    protocol: Any = scheduler_for(backend, remote, SSH).protocol
    execute, breaks = protocol._execute, []
    mending = threading.Timer(CUT if how[0] == "cut" else 0.0, control, (how[1], host))

    def break_link() -> None:
        control(how[0], host)
        mending.start()

    def break_when_claimed() -> None:
        until(lambda: list((open_folder / ".cjdask").glob("*.claim*")))
        break_link()

    def breaking(line: str, *args: Any) -> bytes:
        submits = "claim.out" in line  # no other command names that file
        if not submits or breaks:
            return bytes(execute(line, *args))
        breaks.append(line)
        if when == "before":
            break_link()
            return bytes(execute(line, *args))
        if when == "during":
            breaker = threading.Thread(target=break_when_claimed)
            breaker.start()
            try:
                return bytes(execute(line, *args))
            finally:
                breaker.join()
        execute(line, *args)
        break_link()
        return b""

    monkeypatch.setattr(protocol, "_execute", breaking)
    script = job((backend, remote), open_folder, "echo x >>ran", jobname=open_folder.name)
    try:
        run = script.submit(cache_folder="cache", cache_id="x")
        assert run.get(timeout=150) is Status.COMPLETED
    finally:
        if mending.ident is not None:
            mending.join()
    assert len(breaks) == 1
    assert (open_folder / "ran").read_text() == "x\n"
    if backend == "slurm":
        ask = ("sacct", "-aXnP", "-o", "JobID", "--name", open_folder.name)
        until(lambda: shown(*ask), 60)
        assert len(shown(*ask)) == 1


@pytest.mark.parametrize("how", BREAKS, ids=["cut", "killed"])
def test_the_link_breaks_while_jobs_run(
    link: tuple[str, str, str],
    open_folder: Path,
    how: tuple[str, str],
    short_signs_of_life: None,
) -> None:
    """Ten jobs run on while the link is cut or sshd is dead; no status is wrong, all ends come."""
    backend, remote, host = link
    place = backend, remote
    seconds = CUT / 2 + 3
    runs = [
        job(place, open_folder, f"sleep {seconds}; exit {i % 3}", workdir=str(i)).submit(
            cache_folder="cache", cache_id=str(i)
        )
        for i in range(10)
    ]
    seen = set()
    with mended_after(CUT, *how, host):
        end = time.monotonic() + CUT
        while time.monotonic() < end:
            seen |= {(i, run.known().status) for i, run in enumerate(runs)}
            runs[0].hurry()
            time.sleep(0.2)
    statuses = wait_all(runs, timeout=150)
    expected = [Status.FAILED if i % 3 else Status.COMPLETED for i in range(10)]
    assert statuses == expected
    assert [run.exit_code for run in runs] == [i % 3 for i in range(10)]
    assert {(i, s) for i, s in seen if s.ended} <= set(enumerate(expected))


def test_by_paramiko(open_folder: Path, ssh_hosts: None) -> None:
    """A machine behind paramiko:// runs jobs too; the run is loaded by its address."""
    address = f"paramiko://{PLAIN}?ssh_config={CONFIG}"
    run = job(("local", address), open_folder).submit(cache_folder="cache")
    assert run.cache_file
    again = AsyncResult.load(run.cache_file)
    assert again.get(timeout=60) is Status.COMPLETED
    assert again.stdout() == f"{PLAIN}\n"
    assert again.remote == address.replace("/", "%2F").replace("paramiko:%2F%2F", "paramiko://")


def test_records_of_many_tasks(
    ssh_hosts: None, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tasks of an array recorded of their ends is read with one command."""
    for task in range(50):
        record = {"format": 1, "job_id": "7", "host": "n1", "time": 5, "exit_code": task % 2}
        (open_folder / f"tag.{task}.end").write_text(json.dumps(record) + "\n")
    (open_folder / "tag.50.begin").write_text("{}\n")
    protocol: Any = scheduler_for("local", PLAIN, SSH).protocol
    assert read_ends(protocol, f"{open_folder}/none", "7", [None]) == {}
    execute, commands = protocol._execute, []

    def counted(line: str, *args: Any) -> bytes:
        commands.append(line)
        return bytes(execute(line, *args))

    monkeypatch.setattr(protocol, "_execute", counted)
    found = read_ends(protocol, f"{open_folder}/tag", "7", range(60))
    assert len(commands) == 1
    assert {task: info.exit_code for task, info in found.items()} == {t: t % 2 for t in range(50)}
    assert read_ends(protocol, f"{open_folder}/tag", "8", range(60)) == {}


def test_attach(place: tuple[str, str], open_folder: Path) -> None:
    """A job there is attached to by its id."""
    run = job(place, open_folder, "echo attached").submit()
    other = AsyncResult.attach(
        run.job_id, place[0], open_folder, remote=place[1], ssh=SSH, jobname="far"
    )
    assert other.get(timeout=120) is Status.COMPLETED
    assert other.stdout() == "attached\n"


def test_settings(tmp_path: Path) -> None:
    """The machine and the files can stand in a file of settings."""
    (tmp_path / "far.ini").write_text(
        "[Attributes]\nremote = ada@login\nssh = ssh -4\ninput_files =\n    a b\n    c\n"
    )
    script = JobScript("true", "x")
    script.read_settings(tmp_path / "far.ini")
    assert (script.remote, script.ssh, script.input_files) == ("ada@login", "ssh -4", ("a b", "c"))
