"""The commands on many recorded runs, on a scheduler that counts the commands it gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cjdask import AsyncResult, Status
from cjdask.monitor import LOST_AFTER, SETTLE, _monitors
from tests.cli import cjdask, rows
from tests.cli_fixtures import FakeSite


def names(output: str) -> list[str]:
    """Return the second column of a table."""
    return [line.split()[1] for line in output.splitlines()[1:]]


# -- many at a time ------------------------------------------------------------------------------


def test_any_number_of_runs_costs_one_command(fake: FakeSite) -> None:
    """The status of 60 runs is asked for with one command; to cancel them takes one more."""
    ids = fake.record(60)
    for job_id in ids[:20]:
        fake.end(job_id, "COMPLETED", 0)
    fake.protocol.calls.clear()
    done = cjdask("status")
    assert len(done.stdout.splitlines()) == 61
    assert [fake.count(verb) for verb in ("query", "ended", "cancel")] == [1, 1, 0]
    assert len(rows(cjdask("status", "--state", "completed", "--json"))) == 20
    assert fake.count("query") == 2
    fake.protocol.calls.clear()
    asked = cjdask("cancel", "--all")
    assert asked.stdout.count("to be cancelled") == 40
    assert asked.stdout.count("had ended: COMPLETED") == 20
    assert [argv[0] for argv in fake.protocol.calls] == ["fake-cancel"]
    assert len(fake.protocol.calls[0]) == 41


def test_ended_runs_need_no_scheduler(fake: FakeSite) -> None:
    """A run whose end is recorded is not asked for again, whether the scheduler answers or not."""
    fake.record(2)
    fake.end("1", "COMPLETED", 0)
    fake.end("2", "FAILED", 3)
    cjdask("status")
    fake.protocol.calls.clear()
    fake.protocol.down = True
    done = cjdask("status")
    assert done.exit_code == 0
    assert "NONZERO_EXIT" in done.stdout or "exit code 3" in done.stdout
    assert cjdask("wait").exit_code == 3
    assert fake.protocol.calls == []


# -- names of runs -------------------------------------------------------------------------------


def test_runs_are_named_in_many_ways(fake: FakeSite, tmp_path: Path) -> None:
    """A run is its job's id, cache id or name, a pattern, or a file; each once, in order."""
    fake.record(12)
    fake.submit("--jobname", "other")
    fake.submit("--jobname", "other")
    dumped = str(tmp_path / "one.json")
    AsyncResult.load(".cjdask/runs/clusterjob.scan-3.json").dump(dumped)
    assert names(cjdask("status", "scan-7", "2", "scan-7").stdout) == ["scan-7", "scan-1"]
    assert names(cjdask("status", "scan-1*").stdout) == ["scan-1", "scan-10", "scan-11"]
    assert names(cjdask("status", "oth?r").stdout) == ["other", "other"]
    assert names(cjdask("status", "other").stdout) == ["other", "other"]
    assert names(cjdask("status", dumped).stdout) == ["scan-3"]
    assert names(cjdask("status", ".cjdask/runs/clusterjob.scan-4.json").stdout) == ["scan-4"]


def test_unknown_names_are_errors_of_usage(fake: FakeSite) -> None:
    """A name that is no run says where it was looked for; nothing is done to the others."""
    fake.record(2)
    fake.protocol.calls.clear()
    for name in ("scan-9", "x/y.json", "99"):
        done = cjdask("cancel", "scan-0", name, *fake.options)
        assert done.exit_code in (1, 2)
        assert name in done.stderr
    assert "fake knows no job of that id" in done.stderr
    assert fake.count("cancel") == 0


def test_tasks_of_arrays_are_named(fake: FakeSite) -> None:
    """A task is RUN_INDEX; all its tasks of one array are cancelled with one command."""
    fake.submit("--array", "1-20", "--cache-id", "sweep")
    (row,) = rows(cjdask("status", "sweep_7", "--json"))
    assert (row["job_id"], row["task"], row["status"]) == ("1", 7, "PENDING")
    (row,) = rows(cjdask("status", "sweep", "--json"))
    assert row["tasks"] == {"PENDING": 20}
    done = cjdask("cancel", "1_3", "sweep_4", "1_3")
    assert done.stdout == "1_3  sweep  to be cancelled\n1_4  sweep  to be cancelled\n"
    assert fake.protocol.calls[-1] == ("fake-cancel", "1_4", "1_3")  # the last to start first
    cjdask("cancel", "sweep", "1_3")
    assert fake.protocol.calls[-1] == ("fake-cancel", "1")
    assert cjdask("status", "sweep_21").exit_code == 2


def test_jobs_that_are_not_recorded(fake: FakeSite) -> None:
    """Jobs that others submitted are known by their ids, all asked for with one command."""
    fake.record(3)
    fake.submit("--array", "1-2", "--cache-id", "four")
    here = ("--cache-folder", "elsewhere", *fake.options)
    fake.protocol.calls.clear()
    found = rows(cjdask("status", "1", "2", "4", "--json", *here))
    assert [row["job_id"] for row in found] == ["1", "2", "4"]
    assert found[0]["cache_id"] is None
    assert found[2]["tasks"] == {"PENDING": 2}
    assert fake.count("query") == 2, "one to find them, one to ask for them"
    cjdask("cancel", "1", "4", *here)
    assert fake.protocol.calls[-1] == ("fake-cancel", "1", "4")


def test_one_id_on_two_schedulers(fake: FakeSite) -> None:
    """A job id that two schedulers use must be told apart by the cache id."""
    fake.submit("--cache-id", "a")
    assert cjdask("submit", "job.sh", "--backend", "local", "--cache-id", "b").stdout == "1\n"
    done = cjdask("cancel", "1")
    assert done.exit_code == 2
    assert "name one of 'a' (fake), 'b' (local)" in done.stderr
    assert cjdask("wait", "b").exit_code == 0


# -- status, list --------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer(fake: FakeSite) -> None:
    """What is known is shown, and the exit code is 6."""
    fake.record(1)
    fake.protocol.down = True
    done = cjdask("status")
    assert done.exit_code == 6
    assert "scan-0  PENDING" in done.stdout
    assert "fake does not answer" in done.stderr


def later(cache_id: str, seconds: float) -> None:
    """Have the next command be one of a new process, some time later."""
    _monitors.clear()
    path = Path(f".cjdask/runs/clusterjob.{cache_id}.json")
    data = json.loads(path.read_text())
    for times in (data["unlisted"], data["cancelled"]):
        times.update({task: since - seconds for task, since in times.items()})
    path.write_text(json.dumps(data))


def status_of(cache_id: str) -> tuple[str, str]:
    """Return status and reason as a look at a run tells them."""
    (row,) = rows(cjdask("status", cache_id, "--json"))
    return row["status"], row["reason"]


def test_looks_now_and_then_find_a_lost_run(fake: FakeSite) -> None:
    """A run that no list has is lost at a look that is long after the first one, not before."""
    fake.record(1)
    listed = dict(fake.protocol.queue)
    fake.protocol.queue.clear()
    for queue in ({}, listed, {}, {}):
        fake.protocol.queue = queue
        assert status_of("scan-0") == ("PENDING", "")
        assert ("left the queue" in cjdask("status").stdout) is (queue != listed)
        later("scan-0", LOST_AFTER - 10)
    later("scan-0", 10)
    assert status_of("scan-0") == ("FAILED", "LOST")
    assert "FAILED" in cjdask("list").stdout


def test_looks_now_and_then_find_lost_tasks(fake: FakeSite) -> None:
    """Of an array those tasks are lost that no list has, the others are not."""
    fake.submit("--array", "1-3", "--cache-id", "sweep")
    del fake.protocol.queue["1"][1]
    assert status_of("sweep") == ("PENDING", "")
    later("sweep", LOST_AFTER)
    (row,) = rows(cjdask("status", "sweep", "--json"))
    assert row["tasks"] == {"PENDING": 2, "FAILED": 1}


def test_a_cancel_is_known_to_other_processes(fake: FakeSite) -> None:
    """Where no list has a run after ``cancel``, another process tells that it is CANCELLED."""
    fake.record(1)
    fake.submit("--array", "1-2", "--cache-id", "sweep")
    cjdask("cancel", "scan-0", "sweep_1")
    fake.protocol.history.clear()
    assert status_of("scan-0") == ("PENDING", "")
    assert status_of("sweep") == ("PENDING", "")
    for cache_id in ("scan-0", "sweep"):
        later(cache_id, SETTLE)
    assert status_of("scan-0") == ("CANCELLED", "")
    (row,) = rows(cjdask("status", "sweep_1", "--json"))
    assert row["status"] == "CANCELLED"
    assert status_of("sweep") == ("PENDING", "")


def test_looks_that_cannot_be_noted(fake: FakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Where the cache folder cannot be written a look is a look all the same."""
    fake.record(1)
    fake.protocol.queue.clear()
    Path(".cjdask/runs/clusterjob.scan-0.json.lock").unlink()
    Path(".cjdask/runs/clusterjob.scan-0.json.lock").mkdir()
    assert status_of("scan-0") == ("PENDING", "")
    assert "clusterjob.scan-0.json cannot be written" in caplog.text


def test_list_asks_nobody(fake: FakeSite) -> None:
    """``list`` shows what is recorded: the end, or that it is not known yet."""
    fake.record(2)
    fake.end("1", "CANCELLED")
    cjdask("status")
    fake.protocol.calls.clear()
    lines = cjdask("list").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["1", "fake", "CANCELLED"],
        ["2", "fake", "OPEN"],
    ]
    assert [row["status"] for row in rows(cjdask("list", "--json"))] == ["CANCELLED", None]
    assert len(rows(cjdask("list", "--json", "--state", "cancelled"))) == 1
    assert fake.protocol.calls == []


def test_files_that_cannot_be_read(fake: FakeSite) -> None:
    """A damaged file is told; the runs beside it are shown all the same."""
    fake.record(2)
    Path(".cjdask/runs/clusterjob.scan-0.json").write_text("{")
    listed = cjdask("list")
    assert listed.exit_code == 1
    assert "scan-1" in listed.stdout
    assert "clusterjob.scan-0.json is damaged or cut short" in listed.stderr
    status = cjdask("status")
    assert status.exit_code == 0
    assert "Warning: the journal file" in status.stderr
    assert names(status.stdout) == ["scan-1"]


def test_no_runs(own_folder: Path) -> None:
    """Without any runs there is nothing to show, and no error."""
    for command in ("status", "list"):
        done = cjdask(command)
        assert (done.exit_code, done.stdout) == (0, "")
        assert "there are no runs in .cjdask/runs;" in done.stderr
    assert cjdask("wait").exit_code == 0


def test_changes_go_into_a_pipe_line_by_line(fake: FakeSite) -> None:
    """``status -w`` writes a line for each run, and one when its status changes."""
    fake.record(2)
    fake.end("1", "COMPLETED", 0)
    fake.end("2", "FAILED", 3)
    done = cjdask("status", "-w", "--json")
    for name, end in (("scan-0", "COMPLETED"), ("scan-1", "FAILED")):
        told = [row["status"] for row in rows(done) if row["cache_id"] == name]
        assert told in (["PENDING", end], [end])  # the answer may be there before the first line
    assert cjdask("status", "-w").stdout.count("scan-1  FAILED (exit code 3)") == 1
    assert cjdask("status", "-w", "--state", "failed").exit_code == 2


# -- wait ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (["COMPLETED", "COMPLETED"], 0),
        (["COMPLETED", "CANCELLED"], 4),
        (["CANCELLED", "FAILED"], 3),
    ],
)
def test_the_exit_code_of_wait(fake: FakeSite, ends: list[str], code: int) -> None:
    """It is 0, 3 for a FAILED run, else 4 for a CANCELLED one; each end is told."""
    for job_id, status in zip(fake.record(2), ends, strict=True):
        fake.end(job_id, status, {"COMPLETED": 0, "FAILED": 1}.get(status))
    done = cjdask("wait")
    assert done.exit_code == code
    assert [line.split()[:3] for line in sorted(done.stdout.splitlines())] == [
        ["1", "scan-0", ends[0]],
        ["2", "scan-1", ends[1]],
    ]


def test_a_wait_that_takes_too_long(fake: FakeSite) -> None:
    """``--timeout`` ends it with 5; what has ended by then was told."""
    fake.record(3)
    fake.end("1", "COMPLETED", 0)
    done = cjdask("wait", "--timeout", "0.3")
    assert done.exit_code == 5
    assert "2 of 3 runs have not ended after 0.3 s" in done.stderr
    assert "scan-0  COMPLETED" in done.stdout


def test_tasks_can_be_waited_for(fake: FakeSite) -> None:
    """A task of an array is waited for without the others."""
    fake.submit("--array", "1-2", "--cache-id", "sweep")
    first, second = fake.protocol.queue.pop("1")
    fake.protocol.queue["1"] = [second]
    fake.protocol.history["1"] = [replace(first, status=Status.COMPLETED, exit_code=0)]
    done = cjdask("wait", "sweep_1", "--timeout", "20")
    assert (done.exit_code, done.stdout) == (0, "1_1  sweep  COMPLETED (exit code 0)\n")
    assert cjdask("wait", "sweep", "--timeout", "0.2").exit_code == 5


def test_epilogues_are_run_by_whoever_sees_the_end(fake: FakeSite) -> None:
    """Each command that learns of an end runs the epilogue; its failure is exit code 1."""
    fake.submit("--set", "epilogue=echo over >>told", "--cache-id", "good")
    fake.submit("--set", "epilogue=echo why; exit 7", "--cache-id", "bad")
    fake.end("1", "COMPLETED", 0)
    fake.end("2", "COMPLETED", 0)
    done = cjdask("wait")
    assert done.exit_code == 1
    assert "epilogue of job 2" in done.stderr
    assert "| why" in done.stderr
    assert "bad  COMPLETED" in done.stdout
    assert cjdask("status").exit_code == 0
    assert Path("told").read_text() == "over\n"


def test_cancel_needs_to_be_told_what(fake: FakeSite) -> None:
    """Nothing is cancelled by mistake: either names or --all."""
    fake.record(1)
    for args in ([], ["--all", "scan-0"]):
        done = cjdask("cancel", *args)
        assert done.exit_code == 2
        assert "--all" in done.stderr
    assert fake.count("cancel") == 0
    (row,) = rows(cjdask("cancel", "scan-0", "--json"))
    assert (row["job_id"], row["cancel_requested"]) == ("1", True)
    assert cjdask("wait").exit_code == 4


def test_cache_folders_of_settings(fake: FakeSite) -> None:
    """The cache folder of the user's settings is that of all commands."""
    Path("user.ini").write_text(
        "[Attributes]\ncache_folder = mine\ncache_prefix = p\nbackend = fake\n"
    )
    assert cjdask("submit", "job.sh", "--cache-id", "a").stdout == "1\n"
    assert json.loads(Path("mine/p.a.json").read_text())["job_id"] == "1"
    assert names(cjdask("list").stdout) == ["fake"]
    assert names(cjdask("status").stdout) == ["a"]
