"""What the embedded scheduler keeps true when processes are killed and files are damaged."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask.embedded import ROLE, TOKEN, Store, is_alive, job_processes, own_identity, send
from cjdask.testing import until
from tests.embedded_host import ENDED, EmbeddedHost, runs

TREE = """
trap '' TERM
setsid bash -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 0.2; done' &
( setsid setsid bash -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 0.2; done' & )
env -i setsid /bin/bash -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 0.2; done' &
echo $$ >> pids
while :; do sleep 0.2; done
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[EmbeddedHost]:
    """Give a host of two slots, and end what is left on it."""
    made = EmbeddedHost(tmp_path)
    yield made
    made.close()


def start_tree(host: EmbeddedHost, *options: str) -> tuple[str, list[int]]:
    """Start a job of four processes that ignore TERM, three of them in sessions of their own."""
    number = host.submit(TREE, *options)
    until(lambda: host.text("pids").count("\n") == 4)
    return number, [int(word) for word in host.text("pids").split()]


@pytest.mark.long
def test_many_submitters_at_once_lose_nothing(host: EmbeddedHost) -> None:
    """64 processes that submit at once get 64 ids, and all jobs run once."""
    host.run("config", "--slots=4")
    words = host.command("submit", host.script("echo $CJ_JOB_ID >> ran"))
    started = [
        subprocess.Popen(words, env=host.env, cwd=host.work, stdout=subprocess.PIPE, text=True)
        for _ in range(64)
    ]
    ids = {json.loads(process.communicate()[0])["id"] for process in started}
    assert ids == {str(number) for number in range(1, 65)}
    assert {line["state"] for line in host.wait(*ids)} == {"COMPLETED"}
    assert sorted(host.text("ran").split()) == sorted(ids)
    host.wait_quiet()


@pytest.mark.long
def test_killed_submitters_leave_whole_jobs_or_none(host: EmbeddedHost) -> None:
    """Whatever the instant of a kill -9, a job that is known is complete and runs."""
    words = host.command("submit", host.script("echo $CJ_JOB_ID >> ran"))
    told = set()
    for step in range(24):
        process = subprocess.Popen(
            words, env=host.env, cwd=host.work, stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.02 + 0.003 * step)
        process.kill()
        output = process.communicate()[0]
        told |= {json.loads(line)["id"] for line in output.splitlines()}
    known = {line["id"] for line in host.query("--all")}
    assert told <= known
    if known:
        assert {line["state"] for line in host.wait(*known)} == {"COMPLETED"}
    assert sorted(host.text("ran").split()) == sorted(known)
    host.wait_quiet()
    host.wait(host.submit("true"))  # a new manager tidies up
    host.wait_quiet()
    assert os.listdir(host.state / "incoming") == []


def test_killed_supervisor_makes_the_job_lost(host: EmbeddedHost) -> None:
    """A job without its supervisor is FAILED with reason LOST, and nothing of it is left."""
    number, pids = start_tree(host, "--exclusive")
    os.kill(host.supervisor(number), signal.SIGKILL)
    assert host.end(number) == ("FAILED", "LOST")
    assert "supervisor" in host.job(number)["message"]
    until(lambda: not any(runs(pid) for pid in pids))
    assert host.end(host.submit("true", "--exclusive")) == ("COMPLETED", "")


def test_first_query_after_a_loss_tells_it(host: EmbeddedHost) -> None:
    """Without any manager the very next query says LOST, and has the rest killed."""
    number, pids = start_tree(host)
    os.kill(host.manager() or 0, signal.SIGKILL)
    os.kill(host.supervisor(number), signal.SIGKILL)
    line = host.job(number)
    assert (line["state"], line["reason"]) == ("FAILED", "LOST")
    until(lambda: not any(runs(pid) for pid in pids))
    host.wait_quiet()
    assert host.end(number) == ("FAILED", "LOST")


@pytest.mark.parametrize("part", [1, 2])
def test_reused_pid_and_restarted_host_fool_nobody(host: EmbeddedHost, part: int) -> None:
    """A living process with the pid of the supervisor, but another start or boot, is not it."""
    number = host.submit("sleep 60")
    host.wait_running(number)
    os.kill(host.manager() or 0, signal.SIGKILL)
    os.kill(host.supervisor(number), signal.SIGKILL)
    path = host.state / "active" / number / "task.json"
    record = json.loads(path.read_text())
    fields = own_identity().split(":")
    fields[part] = "12345678"
    record["supervisor"] = ":".join(fields)
    path.write_text(json.dumps(record))
    assert host.end(number) == ("FAILED", "LOST")
    assert not is_alive(record["supervisor"])
    assert not send(record["supervisor"], signal.SIGTERM)


def test_killed_manager_harms_no_job(host: EmbeddedHost) -> None:
    """Running jobs go on and record their ends; pending ones start without any command."""
    first = host.submit("until [ -e go ]; do sleep 0.05; done", "--exclusive")
    second = host.submit("echo ran > second")
    supervisor = (host.wait_running(first), host.supervisor(first))[1]
    os.kill(host.manager() or 0, signal.SIGKILL)
    assert runs(supervisor)
    (host.work / "go").touch()
    assert host.wait_file("second") == "ran"
    assert [host.end(first), host.end(second)] == [("COMPLETED", "")] * 2


@pytest.mark.long
def test_killed_managers_start_each_job_once(host: EmbeddedHost) -> None:
    """Managers killed at random instants neither lose a job nor start one twice."""
    number = host.submit("echo $CJ_JOB_ID >> ran", "--array=0-29%3")
    chance = random.Random(7)
    for _ in range(12):
        time.sleep(chance.uniform(0, 0.15))
        name = host.state / "manager.json"
        identity = json.loads(name.read_text())["identity"] if name.exists() else ""
        send(identity, signal.SIGKILL)
        host.query(number)
    assert {line["state"] for line in host.wait(number)} == {"COMPLETED"}
    ran = [int(line.partition("_")[2]) for line in host.text("ran").split()]
    assert sorted(ran) == list(range(30))


def test_job_killed_from_outside_is_signaled(host: EmbeddedHost) -> None:
    """kill -9 of the job script is told as signal 9."""
    number = host.submit("echo $$ > pid; exec sleep 60")
    os.kill(int(host.wait_file("pid")), signal.SIGKILL)
    assert host.end(number) == ("FAILED", "SIGNALED")
    assert (host.job(number)["signal"], host.job(number)["exit_code"]) == (9, None)


def test_supervisor_told_to_stop_ends_its_job(host: EmbeddedHost) -> None:
    """TERM to a supervisor, as at a shutdown, ends the job with the cause."""
    number, pids = start_tree(host)
    os.kill(host.supervisor(number), signal.SIGTERM)
    assert host.end(number) == ("FAILED", "LOST")
    assert "signal 15" in host.job(number)["message"]
    assert not any(runs(pid) for pid in pids)


def test_walltime_ends_the_whole_tree(host: EmbeddedHost) -> None:
    """At its walltime a job ends with all processes, also such that ignore TERM and left."""
    number, pids = start_tree(host, "--time=1")
    assert host.end(number) == ("FAILED", "TIMEOUT")
    line = host.job(number)
    assert 1.0 <= line["end_time"] - line["start_time"] < 4
    assert line["signal"] == 9
    assert not any(runs(pid) for pid in pids)


def test_cancel_ends_what_ignores_term_or_is_stopped(host: EmbeddedHost) -> None:
    """Cancel kills after the grace, also a stopped process, and leaves the rest of the host."""
    number, pids = start_tree(host)
    other = host.submit("until [ -e go ]; do sleep 0.05; done")
    host.wait_running(other)
    os.kill(pids[0], signal.SIGSTOP)
    host.run("cancel", number)
    assert host.end(number) == ("CANCELLED", "")
    assert not any(runs(pid) for pid in pids)
    (host.work / "go").touch()
    assert host.end(other) == ("COMPLETED", "")


@pytest.mark.long
def test_cancel_at_the_instant_of_the_start_leaves_nothing(host: EmbeddedHost) -> None:
    """A job cancelled while it is being started is CANCELLED and no process of it remains."""
    body = "sleep 60"
    for step in range(10):
        number = host.submit(body)
        time.sleep(0.01 * step)
        host.run("cancel", number)
        assert host.end(number) == ("CANCELLED", "")
    host.wait_quiet()


@pytest.mark.parametrize(
    ("marks", "member"),
    [({TOKEN: "t"}, True), ({ROLE: "/s"}, False), ({ROLE: "/s", TOKEN: "t"}, True), ({}, True)],
)
def test_daemons_of_other_jobs_belong_to_no_job(marks: dict[str, str], member: bool) -> None:
    """Below a supervisor all belongs to its job, save the manager and other supervisors.

    What a supervisor has forked and is no job yet carries both marks, and does belong to it.
    """
    with subprocess.Popen(["sleep", "60"], env={**os.environ, **marks}) as child:
        try:
            found = job_processes("t", "/s", root=os.getpid(), marked=False)
            assert (child.pid in {int(text.split(":")[0]) for text in found}) == member
        finally:
            child.kill()


@pytest.mark.long
def test_cancel_at_the_instant_of_the_end_keeps_the_truth(host: EmbeddedHost) -> None:
    """An end that was reported once never changes, whatever a cancel does."""
    for step in range(5):
        number = host.submit("sleep 0.1")
        time.sleep(0.05 * step)
        cancel = subprocess.Popen(
            host.command("cancel", number), env=host.env, stdout=subprocess.DEVNULL
        )
        seen = {host.job(number)["state"] for _ in range(3)} & set(ENDED)
        cancel.wait()
        (line,) = host.wait(number)
        assert seen <= {line["state"]}
        assert (line["exit_code"] == 0) == (line["state"] == "COMPLETED")


def test_damaged_record_harms_only_its_job(host: EmbeddedHost) -> None:
    """A truncated record is reported as LOST with the file, its job ends, others go on."""
    body = "echo $$ > pid$CJ_JOB_ID; until [ -e go ]; do sleep 0.05; done"
    damaged, other = host.submit(body), host.submit(body)
    pid = int(host.wait_file("pid1"))
    host.wait_running(other)
    path = host.state / "active" / damaged / "task.json"
    path.write_bytes(path.read_bytes()[:20])
    line = host.job(damaged)
    assert (line["state"], line["reason"]) == ("FAILED", "LOST")
    assert str(path) in line["message"]
    until(lambda: not runs(pid))
    (host.work / "go").touch()
    assert host.end(other) == ("COMPLETED", "")
    assert host.end(damaged) == ("FAILED", "LOST")


@pytest.mark.parametrize("content", [b'{"jobname": "x', b"[1, 2]", b"", None])
def test_damaged_request_harms_only_its_job(host: EmbeddedHost, content: bytes | None) -> None:
    """A request that cannot be read any more is LOST; those behind it are started."""
    blocker = host.submit("until [ -e go ]; do sleep 0.05; done", "--exclusive")
    damaged, other = host.submit("true"), host.submit("true")
    path = host.state / "active" / damaged / "job.json"
    if content is None:
        path.unlink()
    else:  # nothing at all stands for a value of the wrong type
        path.write_bytes(content or path.read_bytes().replace(b'"ppn": 1', b'"ppn": "x"'))
    assert (host.job(damaged)["state"], host.job(damaged)["reason"]) == ("FAILED", "LOST")
    (host.work / "go").touch()
    host.wait(blocker)
    assert host.end(other) == ("COMPLETED", "")
    host.wait_quiet()
    assert host.end(damaged) == ("FAILED", "LOST")


def test_damaged_counter_gives_no_id_twice(host: EmbeddedHost) -> None:
    """When the counter is lost, ids go on behind the known ones."""
    host.wait(host.submit("true"), host.submit("true"))
    (host.state / "counter.json").write_text("{")
    assert host.submit("true") == "3"


def test_submission_that_cannot_be_written_leaves_nothing(host: EmbeddedHost) -> None:
    """Where files cannot grow, as on a full disk, the error is told and no half job remains."""
    words = host.command("submit", host.script("true"))
    command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *words]
    done = subprocess.run(command, env=host.env, cwd=host.work, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert "File too large" in done.stderr
    assert host.query("--all") == []
    assert os.listdir(host.state / "incoming") == []


def test_end_that_cannot_be_written_is_written_later(host: EmbeddedHost) -> None:
    """While the disk is full a job stays RUNNING; its end is recorded once there is room."""
    number = host.submit("until [ -e go ]; do sleep 0.05; done; echo over > over; exit 4")
    host.wait_running(number)
    supervisor = host.supervisor(number)
    _, hard = resource.prlimit(supervisor, resource.RLIMIT_FSIZE)
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (0, hard))
    (host.work / "go").touch()
    host.wait_file("over")
    time.sleep(0.3)
    assert host.job(number)["state"] == "RUNNING"
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (hard, hard))
    assert host.end(number) == ("FAILED", "NONZERO_EXIT")
    assert host.job(number)["exit_code"] == 4


@pytest.mark.long
def test_removed_state_directory_ends_its_processes(host: EmbeddedHost) -> None:
    """When the state directory is removed, managers, supervisors and jobs go."""
    _, pids = start_tree(host)
    shutil.rmtree(host.state)
    host.wait_quiet()
    assert not any(runs(pid) for pid in pids)


def test_busy_state_directory_is_told(host: EmbeddedHost) -> None:
    """A command does not wait for ever for a lock that another process holds."""
    store = Store(str(host.state))
    with open(host.state / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="busy"), store.lock(0.05):
            pass
    with store.lock(0.05):
        assert store.read("config.json") == {"slots": 2}
