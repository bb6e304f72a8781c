"""The record that a job script leaves of its end, and what is made of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cjdask.backends import ClusterjobBackend, get_backend
from cjdask.backends.sge import SgeBackend
from cjdask.monitor import SETTLE, Monitor
from cjdask.protocols.local import LocalProtocol
from cjdask.resources import Resources
from cjdask.run_record import begun_as, last_line, read_end, record_lines
from cjdask.status import JobInfo, Reason, Status
from tests.fakes import FakeBackend, FakeClock, fake_scheduler

PROTOCOL = LocalProtocol()


def script(
    folder: Path, body: str, shell: str = "/bin/bash", backend: ClusterjobBackend | None = None
) -> Path:
    """Write a script that leaves its record in ``folder``."""
    text = f"#!{shell}\n{body}"
    lines = record_lines(text, backend or FakeBackend(), Resources(), str(folder / "tag"))
    path = folder / "script"
    path.write_text("\n".join([f"#!{shell}", *lines, body]) + last_line(text) + "\n")
    path.chmod(0o755)
    return path


def start(path: Path) -> subprocess.Popen[bytes]:
    """Start a script as its scheduler would."""
    return subprocess.Popen([path], env={**os.environ, "FAKE_ID": "7", "JOB_ID": "7"})


def recorded(folder: Path) -> int | None:
    """Return the exit code in the record."""
    info = read_end(PROTOCOL, str(folder / "tag"), "7", None)
    return None if info is None else info.exit_code


ENDS = [
    ("true", 0),
    ("false", 1),
    ("exit 3", 3),
    ("f() { exit 4; }; false || f; echo no", 4),
    ("set -eu; false; true", 1),
    ("set -u; echo $nothing", None),
    ("cd /; (exit 5)", 5),
    ("echo a \\", 0),
    ("true # no more", 0),
    ("PATH=/nowhere; exit 6", 6),
    ("trap 'echo own' EXIT; exit 7", None),
    ("exec true", None),
]


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh", "/usr/bin/env bash"])
@pytest.mark.parametrize(("body", "code"), ENDS)
def test_the_exit_code_is_recorded(tmp_path: Path, shell: str, body: str, code: int | None) -> None:
    """However a script ends by itself, its record has its exit code, or there is none."""
    returned = start(script(tmp_path, body, shell)).wait(60)
    if code is not None:
        assert returned == code
        assert recorded(tmp_path) == code
    else:
        assert recorded(tmp_path) in (None, returned)
    assert begun_as(PROTOCOL, str(tmp_path / "tag")) == "7"
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGUSR1])
def test_no_record_of_a_signal(tmp_path: Path, shell: str, number: signal.Signals) -> None:
    """A script that a signal ends has no record, and no exit code of 0 in particular."""
    process = start(script(tmp_path, "true; sleep 20 & wait $!", shell))
    while not (tmp_path / "tag.begin").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == -number
    assert recorded(tmp_path) is None


def test_the_script_is_otherwise_undisturbed(tmp_path: Path) -> None:
    """Arguments, variables, options and output of the script are what they would be."""
    body = "echo $# $- ${x-unset}; env | grep -c ^cj_; exit 2"
    plain = tmp_path / "plain"
    plain.write_text(f"#!/bin/bash\n{body}\n")
    plain.chmod(0o755)
    outputs = [
        subprocess.run([path], capture_output=True, env={"PATH": os.environ["PATH"]})
        for path in (plain, script(tmp_path, body))
    ]
    assert len({(o.returncode, o.stdout, o.stderr) for o in outputs}) == 1


@pytest.mark.parametrize(("code", "told"), [(0, 0), (3, 3), (99, 1), (100, 1)])
def test_grid_engine_s_own_trap_is_kept(tmp_path: Path, code: int, told: int) -> None:
    """The codes that Grid Engine takes as orders are still turned into 1."""
    path = script(tmp_path, f"exit {code}", backend=SgeBackend())
    assert start(path).wait(60) == told
    assert recorded(tmp_path) == code


def test_tasks_have_a_record_each(tmp_path: Path) -> None:
    """The record of a task is told by its index, and has the id of the whole array."""
    resources = Resources.of({"array": "2,5"})
    backend = get_backend("slurm")
    lines = record_lines("#!/bin/bash\n", backend, resources, str(tmp_path / "tag"))
    path = tmp_path / "script"
    path.write_text("\n".join(["#!/bin/bash", *lines, "exit $SLURM_ARRAY_TASK_ID"]))
    for task in (2, 5):
        env = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["bash", path], env={**os.environ, **env}, check=False)
    infos = [read_end(PROTOCOL, str(tmp_path / "tag"), "10", task) for task in (2, 5)]
    assert [info and info.exit_code for info in infos] == [2, 5]
    assert begun_as(PROTOCOL, str(tmp_path / "tag")) == "10"


@pytest.mark.parametrize("text", ["#!/usr/bin/env python3\n", "#!/bin/tcsh\n"])
def test_no_record_of_other_languages(text: str) -> None:
    """A script that is for no POSIX shell stays as it is."""
    assert record_lines(text, FakeBackend(), Resources(), "x") == []
    assert last_line(text) == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "job_id": "8", "exit_code": 0}']
)
def test_a_bad_record_is_none(tmp_path: Path, text: str) -> None:
    """A record that is damaged, of another version or of another job is not believed."""
    (tmp_path / "tag.end").write_text(text)
    assert recorded(tmp_path) is None


RECORD = JobInfo("1", Status.FAILED, reason=Reason.NONZERO_EXIT, exit_code=3, nodes=("n1",))


def test_the_record_speaks_where_the_scheduler_is_silent() -> None:
    """A job that no list has any more is what it recorded, at once."""
    scheduler, protocol = fake_scheduler()
    monitor = Monitor(scheduler, clock=FakeClock())
    records: list[JobInfo] = []
    job = monitor.track(
        "1", record=lambda tasks: dict.fromkeys(tasks, records[0]) if records else {}
    )
    protocol.set("1", Status.RUNNING)
    monitor.refresh(max_age=0)
    protocol.queue.clear()
    monitor.refresh(max_age=0)
    assert job.status is Status.RUNNING
    records.append(RECORD)
    monitor.refresh(max_age=0)
    info = job.infos[None]
    assert (info.status, info.exit_code, info.reason) == (Status.FAILED, 3, Reason.NONZERO_EXIT)


def test_the_scheduler_s_word_comes_first() -> None:
    """A record is not looked at while the scheduler lists the job or has its exit code."""
    scheduler, protocol = fake_scheduler()
    monitor = Monitor(scheduler, clock=FakeClock())
    job = monitor.track("1", record=lambda tasks: {None: RECORD})
    protocol.set("1", Status.RUNNING)
    monitor.refresh(max_age=0)
    assert job.status is Status.RUNNING
    protocol.end("1", Status.COMPLETED, exit_code=0)
    monitor.refresh(max_age=0)
    assert job.status is Status.COMPLETED


@pytest.mark.parametrize(("code", "status"), [(0, Status.COMPLETED), (143, Status.CANCELLED)])
def test_a_cancelled_job_that_left_a_record(code: int, status: Status) -> None:
    """After our cancel a record of success is a job that was faster, any other is CANCELLED."""
    scheduler, protocol = fake_scheduler()
    clock = FakeClock()
    monitor = Monitor(scheduler, clock=clock)
    ended = JobInfo("1", Status.FAILED if code else Status.COMPLETED, exit_code=code)
    job = monitor.track("1", record=lambda tasks: {None: ended})
    monitor.cancel([job])
    protocol.queue.clear()
    clock.now += SETTLE
    monitor.refresh(max_age=0)
    assert (job.status, job.infos[None].exit_code) == (status, code)


SUBMIT = """
import sys
from cjdask import JobScript
for code in (0, 3):
    run = JobScript(f"exit {code}", "j", backend="slurm").submit(cache_id=str(code))
    print(run.job_id)
"""
SEE = """
import shutil
from cjdask import JobScript
assert shutil.which("sacct") is None
for code in (0, 3):
    run = JobScript.cached_run(str(code))
    print(run.get(timeout=60).name, run.exit_code, run._scheduler.commands["ended"])
"""


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_slurm_without_accounting_that_forgot_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without sacct, a job that slurmctld has purged still has its exit code."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for name in os.listdir(folder):
            if name != "sacct" and not os.path.lexists(programs / name):
                (programs / name).symlink_to(f"{folder}/{name}")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)

    def python(code: str) -> list[str]:
        argv = [sys.executable, "-c", code]
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.split()

    ids = ",".join(python(SUBMIT))
    deadline = time.monotonic() + 100
    squeue = ["squeue", "--noheader", "--states=all", f"--jobs={ids}"]
    while subprocess.run(squeue, capture_output=True, check=False).stdout.strip():
        assert time.monotonic() < deadline, "MinJobAge of this Slurm is too long for this test"
        time.sleep(1)
    assert python(SEE) == ["COMPLETED", "0", "0", "FAILED", "3", "0"]
    # and the next process finds the ends in the journal, the records are gone
    assert python(SEE) == ["COMPLETED", "0", "0", "FAILED", "3", "0"]
    assert [path.name for path in Path(".cjdask").iterdir() if path.is_file()] == ["README"]
