"""The Slurm backend on a real Slurm: all jobs are submitted first, then looked at."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends.slurm import SlurmBackend
from cjdask.command import Command
from cjdask.errors import SubmitError
from cjdask.protocols.local import LocalProtocol
from cjdask.resources import Resources
from cjdask.status import JobInfo, Reason, Status
from cjdask.testing import until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

BACKEND = SlurmBackend()
PROTOCOL = LocalProtocol()
PATIENCE = 150.0  # the walltime of a minute is enforced after 61 to 90 s
ODD = ["a b", 'say "hi"', "it's", "#1 of #2", "$(x) `y` $HOME", r"back\slash", "é|c,d;%"]
MANY = 100
SMALL = {"mem": 50, "time": "5"}

BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({}, "true"),
    "exit 3": ({}, "exit 3"),
    "exit 128": ({}, "exit 128"),
    "exit 137": ({}, "exit 137"),
    "killed": ({}, "kill -9 $$"),
    "no log": ({"stdout": "missing/x.out"}, "true"),
    "too long": ({"time": "1"}, "sleep 300"),
    "running": ({}, "trap '' TERM; sleep 300; sleep 300"),
    "pending": ({"hold": True}, "true"),
    "array": ({"array": "0-4"}, "sleep 1; [ $SLURM_ARRAY_TASK_ID != 3 ]"),
}
ENDING = ("good", "exit 3", "exit 128", "exit 137", "killed", "no log", "after good", "after bad")
ENDING += ("launch", "single")


@dataclass
class Lab:
    """Jobs of this test on the real Slurm, by a name each."""

    folder: Path
    ids: dict[str, str] = field(default_factory=dict)
    listed: dict[tuple[str, int | None], JobInfo] = field(default_factory=dict)

    def run(self, command: Command) -> Any:
        return PROTOCOL.run(
            Command(command.argv, command.input, command.env, command.drop, str(self.folder))
        )

    def submit(self, name: str, resources: dict[str, Any], body: str) -> str:
        asked = Resources.of({"jobname": name, **SMALL, **resources})
        script = f"{len(self.ids)}.slr"
        text = "\n".join(["#!/bin/bash", *BACKEND.headers(asked), body, ""])
        (self.folder / script).write_text(text, encoding="utf-8")
        job_id = BACKEND.parse_submit(self.run(BACKEND.submit_command(asked, script)))
        self.ids[name] = job_id
        return job_id

    def query(self, *ids: str) -> dict[tuple[str, int | None], JobInfo]:
        found = BACKEND.parse_query(self.run(BACKEND.query_command(ids)), ids)
        return {(info.job_id, info.task): info for info in found}

    def ended(self, *ids: str) -> dict[tuple[str, int | None], JobInfo]:
        found = BACKEND.parse_ended(self.run(BACKEND.ended_command(ids)), ids)
        return {(info.job_id, info.task): info for info in found}

    def cancel(self, *ids: str) -> None:
        BACKEND.parse_cancel(self.run(BACKEND.cancel_command(ids)), ids)

    def end(self, name: str, task: int | None = None) -> tuple[JobInfo, JobInfo]:
        """Wait for the end of a job; return what squeue and what sacct say of it."""
        key = self.ids[name], task
        until(lambda: self.watch() or key in self.listed, PATIENCE)
        record = until(
            lambda: (r := self.ended(key[0]).get(key)) and r.status.ended and r, PATIENCE
        )
        return self.listed[key], record

    def watch(self) -> None:
        """Keep what squeue says of jobs that ended; it soon forgets them."""
        for key, info in self.query(*self.ids.values()).items():
            if info.status.ended:
                self.listed[key] = info


@pytest.fixture(scope="module")
def lab(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Submit all jobs; cancel what is left of them at the end."""
    lab = Lab(tmp_path_factory.mktemp("slurm"))
    try:
        for name, (resources, body) in BODIES.items():
            lab.submit(name, resources, body)
        lab.submit("after good", {"depends": lab.ids["good"]}, "true")
        lab.submit("after bad", {"depends": lab.ids["exit 3"]}, "touch ran")
        os.environ["CJDASK_TEST_VARIABLE"] = "a b"
        os.environ["SLURM_NTASKS"] = os.environ["SLURM_NPROCS"] = "7"
        shape = {"nodes": 2, "ppn": 2, "threads": 1, "stdout": "launch.out"}
        names = ("CLUSTERJOB_RANK", "CLUSTERJOB_LOCAL_RANK", "CLUSTERJOB_NODE_RANK", "SLURM_JOB_ID")
        shows = " ".join(f'"${name}"' for name in (*names, "CJDASK_TEST_VARIABLE"))
        show = f"printf '%s,%s,%s,%s,%s,%s\\n' {shows} \"$(hostname)\""
        launch = BACKEND.launcher(Resources.of(shape), f"{show}; exit $((CLUSTERJOB_RANK == 1))")
        lab.submit("launch", shape, f"{launch} || echo code $?\n")
        single = BACKEND.launcher(Resources(), f"{show}; exit 5")
        lab.submit("single", {"stdout": "single.out"}, single)
        tell = "printf '%s\\n' \"$SLURM_JOB_NAME\""
        for i, odd in enumerate(ODD):
            lab.submit(f"odd {i}", {"jobname": odd, "stdout": f"{odd}-%j.out"}, tell)
        for i in range(MANY):
            lab.submit(f"many {i}", {"hold": True}, "true")
        until(lambda: lab.watch() or status(lab, "running") is Status.RUNNING, PATIENCE)
        for name in lab.ids:
            if name in ENDING or name.startswith("odd"):
                until(
                    lambda name=name: lab.watch() or (lab.ids[name], None) in lab.listed, PATIENCE
                )
        yield lab
    finally:
        for name in ("CJDASK_TEST_VARIABLE", "SLURM_NTASKS", "SLURM_NPROCS"):
            os.environ.pop(name, None)
        if lab.ids:
            lab.cancel(*lab.ids.values())


def status(lab: Lab, name: str) -> Status | None:
    """Return the status of a job that squeue lists."""
    info = lab.query(lab.ids[name]).get((lab.ids[name], None))
    return info.status if info else None


def test_open_jobs(lab: Lab) -> None:
    """A running job has nodes and a start, a held one a reason."""
    found = lab.query(lab.ids["running"], lab.ids["pending"])
    running, held = found[lab.ids["running"], None], found[lab.ids["pending"], None]
    assert running.status is Status.RUNNING
    assert running.nodes
    assert running.start_time is not None
    assert abs(running.start_time - time.time()) < PATIENCE
    assert running.end_time is None
    assert (held.status, held.reason, held.message) == (
        Status.PENDING,
        Reason.HELD,
        "JobHeldUser",
    )


def test_many_jobs_in_one_question(lab: Lab) -> None:
    """One squeue lists a hundred jobs, one scancel cancels them."""
    ids = [lab.ids[f"many {i}"] for i in range(MANY)]
    assert {info.status for info in lab.query(*ids).values()} == {Status.PENDING}
    assert len(lab.query(*ids)) == MANY
    lab.cancel(*ids)
    until(lambda: {i.status for i in lab.query(*ids).values()} <= {Status.CANCELLED}, PATIENCE)
    until(lambda: len(lab.ended(*ids)) == MANY, PATIENCE)
    assert {info.status for info in lab.ended(*ids).values()} == {Status.CANCELLED}


@pytest.mark.parametrize("name", ["running", "pending"])
def test_cancelled(lab: Lab, name: str) -> None:
    """A cancelled job is CANCELLED for squeue and sacct, if its script ignores TERM too."""
    lab.cancel(lab.ids[name])
    listed, record = lab.end(name)
    assert listed.status is record.status is Status.CANCELLED
    assert record.message == f"by user id {os.getuid()}"
    assert (record.start_time is None) is (name == "pending")
    lab.cancel(lab.ids[name])


@pytest.mark.parametrize(
    ("name", "reason", "exit_code", "signal", "told_by_sacct"),
    [
        ("exit 3", Reason.NONZERO_EXIT, 3, None, 3),
        ("exit 128", Reason.NONZERO_EXIT, 128, None, 128),
        ("exit 137", Reason.NONZERO_EXIT, 137, None, 9),
        ("killed", Reason.SIGNALED, None, 9, None),
        ("no log", Reason.LAUNCH_FAILURE, None, None, None),
    ],
)
def test_bad_ends(
    lab: Lab,
    name: str,
    reason: Reason,
    exit_code: int | None,
    signal: int | None,
    told_by_sacct: int | None,
) -> None:
    """A bad end is FAILED with its reason; sacct before 25.11 prints exit codes modulo 128."""
    listed, record = lab.end(name)
    assert (record.status, record.reason, record.signal) == (Status.FAILED, reason, signal)
    assert record.exit_code in (exit_code, told_by_sacct)
    assert (listed.status, listed.reason) == (Status.FAILED, reason)
    assert (listed.exit_code, listed.signal) == (exit_code, signal)


def test_good_end(lab: Lab) -> None:
    """A good end has exit code 0, nodes and times."""
    _, record = lab.end("good")
    assert (record.status, record.exit_code) == (Status.COMPLETED, 0)
    assert record.nodes
    times = (record.submit_time, record.start_time, record.end_time)
    assert None not in times
    assert list(times) == sorted(t for t in times if t is not None)


def test_array(lab: Lab) -> None:
    """Each task of an array has its own end."""
    until(
        lambda: lab.watch() or {(lab.ids["array"], i) for i in range(5)} <= set(lab.listed),
        PATIENCE,
    )
    ends = {task: lab.end("array", task)[1] for task in range(5)}
    assert {task for task, info in ends.items() if info.status is Status.FAILED} == {3}
    assert {info.status for task, info in ends.items() if task != 3} == {Status.COMPLETED}
    path = BACKEND.log_path(Resources.of(SMALL), "stdout", lab.ids["array"], 2)
    assert (lab.folder / path).exists()


def test_dependencies(lab: Lab) -> None:
    """A job after a good one runs; one after a bad one is cancelled and does not hang."""
    assert lab.end("after good")[1].status is Status.COMPLETED
    listed, record = lab.end("after bad")
    assert record.status is Status.CANCELLED
    assert listed.reason is Reason.DEPENDENCY
    assert not (lab.folder / "ran").exists()


def test_launcher(lab: Lab) -> None:
    """Four processes on two nodes have ranks and the user's variables; one may fail alone."""
    assert lab.end("launch")[1].status is Status.COMPLETED
    text = (lab.folder / "launch.out").read_text()
    rows = [line.split(",") for line in text.splitlines() if line.count(",") == 5]
    assert sorted(row[:3] for row in rows) == [
        ["0", "0", "0"],
        ["1", "1", "0"],
        ["2", "0", "1"],
        ["3", "1", "1"],
    ]
    assert {(row[3], row[4]) for row in rows} == {(lab.ids["launch"], "a b")}
    hosts = {row[2]: row[5] for row in rows}
    assert len(set(hosts.values())) == 2
    assert socket.gethostname() not in hosts.values()
    assert "code 1" in text


def test_launcher_of_one_process(lab: Lab) -> None:
    """One process has rank 0, and its exit code is the job's."""
    assert lab.end("single")[1].exit_code == 5
    row = (lab.folder / "single.out").read_text().strip().split(",")
    assert row[:5] == ["0", "0", "0", lab.ids["single"], "a b"]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_odd_names(lab: Lab, number: int) -> None:
    """Names with blanks, quotes and signs reach Slurm as they are, in jobs and in files."""
    name, odd = f"odd {number}", ODD[number]
    assert lab.end(name)[1].status is Status.COMPLETED
    resources = Resources.of({"stdout": f"{odd}-%j.out"})
    path = lab.folder / BACKEND.log_path(resources, "stdout", lab.ids[name], None)
    assert path.read_text(encoding="utf-8") == f"{odd}\n"


def test_patterns_in_log_names(lab: Lab) -> None:
    """The names of logs are as Slurm fills them in, but for those unknown from here."""
    patterns = ["%x.%j", "%5j_%A", "%%j%", r"b\%j", "%n%t%s.%J", "%u", "%q"]
    known = {"u": getpass.getuser()}
    paths = []
    for i, pattern in enumerate(patterns):
        resources = {"jobname": f"pattern {i}", "stdout": f"p{pattern}"}
        job_id = lab.submit(f"pattern {i}", resources, "true")
        path = BACKEND.log_path(Resources.of(resources), "stdout", job_id, None)
        paths.append(lab.folder / path.replace("%u", known["u"]))
    for i in range(len(patterns)):
        lab.end(f"pattern {i}")
    assert [path for path in paths if not path.exists()] == []


def test_unknown_ids(lab: Lab) -> None:
    """Ids that Slurm does not know are left out, alone or among others, and cancel silently."""
    known = lab.submit("known", {"hold": True}, "true")
    assert lab.query("999999") == lab.ended("999999") == {}
    assert lab.query("999998", "999999") == {}
    assert list(lab.query("999999", known)) == [(known, None)]
    lab.cancel("999999")
    lab.cancel("999998", "999999", known)
    until(lambda: lab.query(known)[known, None].status is Status.CANCELLED, PATIENCE)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"queue": "nosuch"}, "invalid partition"),
        ({"mem": "99TB"}, "Requested node configuration is not available"),
        ({"--nosuch": 1}, "unrecognized option"),
    ],
)
def test_refusals(lab: Lab, resources: dict[str, Any], words: str) -> None:
    """A refused job is an error with Slurm's words."""
    with pytest.raises(SubmitError, match=words):
        lab.submit("refused", resources, "true")


def test_too_long(lab: Lab) -> None:
    """A job over its walltime is FAILED with reason TIMEOUT, for squeue and sacct."""
    for info in lab.end("too long"):
        assert (info.status, info.reason) == (Status.FAILED, Reason.TIMEOUT)
        assert (info.exit_code, info.signal) == (None, None)
