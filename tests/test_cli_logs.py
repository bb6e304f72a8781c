"""``cjdask logs``: what runs wrote, and what they are writing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import Popen

import pytest

from cjdask.cli_follow import GrowingFile, look, start_at_tail
from cjdask.cli_recorder import RecordingProtocol
from cjdask.errors import ProtocolError
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol
from cjdask.testing import until
from tests.cli import cjdask, rows, start

LOCAL = ("--backend", "local", "--threads", "1")


def submit(body: str, *options: str) -> str:
    """Submit a job to the embedded scheduler and return its id."""
    done = cjdask("submit", "-", *LOCAL, *options, input=body)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def read_line(process: Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


# -- files that grow -----------------------------------------------------------------------------


@pytest.fixture(params=["local", "elsewhere"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    """Return this machine, as such and as one whose files are read by commands."""
    local = LocalProtocol()
    return local if request.param == "local" else RecordingProtocol(local)


def test_files_are_read_as_they_grow(protocol: Protocol, tmp_path: Path) -> None:
    """A look returns what is new of each file, whatever bytes; a missing file is none."""
    first, second = GrowingFile(str(tmp_path / "a b")), GrowingFile(str(tmp_path / "'c"))
    assert look(protocol, [first, second]) == [b"", b""]
    assert not first.seen
    Path(first.path).write_bytes(b"one\n\xff\0 two")
    Path(second.path).write_bytes(b"")
    assert look(protocol, [first, second]) == [b"one\n\xff\0 two", b""]
    assert first.seen
    assert second.seen
    with open(first.path, "ab") as file:
        file.write(b" three")
    assert look(protocol, [second, first]) == [b"", b" three"]


def test_many_files_are_one_command(tmp_path: Path) -> None:
    """On another machine any number of files is read by one command."""
    protocol = RecordingProtocol(LocalProtocol())
    files = [GrowingFile(str(tmp_path / str(number))) for number in range(50)]
    for file in files:
        Path(file.path).write_text(file.path)
    assert look(protocol, files) == [file.path.encode() for file in files]
    assert len(protocol.heard) == 1


def test_a_file_that_was_begun_anew(protocol: Protocol, tmp_path: Path) -> None:
    """A file that is shorter than before is read from its begin, and that is told."""
    file = GrowingFile(str(tmp_path / "log"))
    Path(file.path).write_text("long text\n")
    look(protocol, [file])
    Path(file.path).write_text("new\n")
    assert look(protocol, [file]) == [b""]
    assert file.restarted
    assert look(protocol, [file]) == [b"new\n"]
    assert not file.restarted


@pytest.mark.parametrize(
    ("lines", "tail"),
    [(0, b""), (1, b"three"), (2, b"two\nthree"), (3, b"one\ntwo\nthree"), (9, None)],
)
def test_the_tail_of_a_file(
    protocol: Protocol, tmp_path: Path, lines: int, tail: bytes | None
) -> None:
    """The last lines are found also where lines are long; more than there are is all."""
    text = b"x" * 5000 + b"\none\ntwo\nthree"
    for end in (b"", b"\n"):
        file = GrowingFile(str(tmp_path / "log"))
        Path(file.path).write_bytes(text + end)
        start_at_tail(protocol, file, lines)
        expected = text + end if tail is None else tail + (end if lines else b"")
        assert look(protocol, [file]) == [expected]


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    """What cannot be read is an error, not an empty log."""
    file = GrowingFile(str(tmp_path))
    with pytest.raises(OSError, match="directory"):
        look(LocalProtocol(), [file])
    with pytest.raises(ProtocolError, match="cannot be read"):
        look(RecordingProtocol(LocalProtocol()), [file])


# -- logs of runs that have ended ------------------------------------------------------------------


def test_both_streams_of_a_job(own_folder: Path) -> None:
    """Standard output goes to standard output, a file of standard error to standard error."""
    job = submit("echo out; echo err >&2; printf end", "--stderr", "errors")
    joined = submit("echo out; echo err >&2")
    assert cjdask("wait").exit_code == 0
    done = cjdask("logs", job)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "out\nend", "err\n")
    assert cjdask("logs", joined).stdout == "out\nerr\n"
    assert cjdask("logs", job, "-n", "1").stdout == "end"
    lines = [(row["stream"], row["text"]) for row in rows(cjdask("logs", job, "--json"))]
    assert lines == [("stdout", "out"), ("stderr", "err"), ("stdout", "end")]


def test_the_tasks_of_an_array(own_folder: Path) -> None:
    """Each task is shown under its name; one that is named alone."""
    job = submit("echo task $CLUSTERJOB_ARRAY_INDEX", "--array", "1-3")
    assert cjdask("wait").exit_code == 0
    assert cjdask("logs", job).stdout == (
        f"==> {job}_1 <==\ntask 1\n\n==> {job}_2 <==\ntask 2\n\n==> {job}_3 <==\ntask 3\n"
    )
    assert cjdask("logs", f"{job}_2").stdout == "task 2\n"
    found = rows(cjdask("logs", f"{job}_1", f"{job}_3", "--json"))
    assert [(row["task"], row["text"]) for row in found] == [(1, "task 1"), (3, "task 3")]


def test_logs_that_are_not_there(own_folder: Path) -> None:
    """A job that waits has no log yet; where one has gone that is an error."""
    first = submit("sleep 60")
    waiting = submit("true", "--depends", first)
    done = cjdask("logs", waiting)
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"cjdask: {waiting} is PENDING" in done.stderr
    assert "has written nothing yet" in done.stderr
    cjdask("cancel", "--all")
    assert cjdask("wait").exit_code == 4
    gone = cjdask("logs", waiting)
    assert gone.exit_code == 1
    assert f"there is no file {Path.cwd() / f'job-{waiting}.out'}" in gone.stderr


# -- logs of runs that go on -----------------------------------------------------------------------


def test_a_job_is_followed_from_the_queue_to_its_end(own_folder: Path) -> None:
    """``logs -f`` waits for a job, prints lines as they come, and ends with how it ended."""
    first = submit("until [ -e go ]; do sleep 0.1; done")
    body = "echo begun; until [ -e on ]; do sleep 0.1; done; echo ended; exit 3"
    job = submit(body, "--depends", first)
    with start("logs", "-f", job) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"cjdask: waiting for {job}, PENDING")
        Path("go").touch()
        assert read_line(process) == "begun\n"
        Path("on").touch()
        assert read_line(process) == "ended\n"
        rest, notes = process.communicate(timeout=60)
    assert rest == ""
    assert process.returncode == 3
    assert notes == f"cjdask: {job} is FAILED (NONZERO_EXIT, exit code 3)\n"


def test_tasks_are_followed_together(own_folder: Path) -> None:
    """All tasks of an array are followed; a heading says whose lines come."""
    job = submit(
        "echo a$CLUSTERJOB_ARRAY_INDEX; sleep 1; echo b$CLUSTERJOB_ARRAY_INDEX", "--array", "1-2"
    )
    done = cjdask("logs", "-f", job)
    assert done.exit_code == 0
    parts = [part.split() for part in done.stdout.split("==> ")[1:]]
    for task in ("1", "2"):
        mine = [word for part in parts if part[0] == f"{job}_{task}" for word in part[2:]]
        assert mine == [f"a{task}", f"b{task}"]
    assert "cjdask: 2 completed" in done.stderr


def test_a_job_that_has_ended_is_printed_at_once(own_folder: Path) -> None:
    """Following a job that is over is showing it, with its exit code; so is one without a log."""
    job = submit("echo over; exit 1")
    assert cjdask("wait", job).exit_code == 3
    done = cjdask("logs", "-f", job)
    assert (done.exit_code, done.stdout) == (3, "over\n")


def test_a_cancelled_job_is_no_error(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Following a job that is cancelled before it begins ends with 4, and says so."""
    monkeypatch.setattr("cjdask.cli_logs.LATE", 0.2)
    job = submit("true", "--depends", submit("sleep 60"))
    cjdask("cancel", "--all")
    done = cjdask("logs", "-f", job)
    assert (done.exit_code, done.stdout) == (4, "")
    assert "there is no file" in done.stderr
    assert f"{job} is CANCELLED" in done.stderr


def test_long_logs_are_read_in_pieces(own_folder: Path) -> None:
    """A log of several megabytes is printed whole, with or without following."""
    job = submit("head -c 3000000 /dev/zero | tr '\\0' x; echo end")
    assert cjdask("wait").exit_code == 0
    for options in ([], ["-f"]):
        text = cjdask("logs", job, *options).stdout
        assert len(text) == 3000004
        assert text.endswith("xend\n")


def test_a_link_that_breaks(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Following goes on when the machine of the logs could not be asked for a while."""
    failures = [ProtocolError("the link broke"), ProtocolError("the link broke")]

    def shaky(protocol: Protocol, files: list[GrowingFile]) -> list[bytes]:
        if failures and any(file.seen for file in files):
            raise failures.pop()
        return look(protocol, files)

    monkeypatch.setattr("cjdask.cli_logs.look", shaky)
    done = cjdask("logs", "-f", submit("echo begun; sleep 1.5; echo ended"))
    assert (done.exit_code, done.stdout) == (0, "begun\nended\n")
    assert failures == []
    assert done.stderr.count("the logs cannot be read, trying on: the link broke") == 1


def test_interrupting_leaves_the_job_alone(own_folder: Path) -> None:
    """Ctrl-C ends the following with 130 and a word, not the job."""
    job = submit("echo begun; sleep 60")
    with start("logs", "-f", job) as process:
        assert read_line(process) == "begun\n"
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=60)
    assert process.returncode == 130
    assert notes.endswith("Interrupted; the runs go on.\n")
    assert "Traceback" not in notes
    assert [row["status"] for row in rows(cjdask("status", "--json"))] == ["RUNNING"]
    cjdask("cancel", job)


def test_a_log_that_is_begun_anew_is_followed(own_folder: Path) -> None:
    """A log that the job writes from its begin again is printed again, and that is told."""
    job = submit("echo 'first attempt'; sleep 1; : >log; echo second; sleep 0.2", "--stdout", "log")
    done = cjdask("logs", "-f", job)
    assert done.stdout.startswith("first attempt\n")
    assert done.stdout.endswith("second\n")
    assert f"the log of {job} was begun anew" in done.stderr


def test_a_reader_that_has_enough(own_folder: Path) -> None:
    """Where the other end of the pipe is closed, following ends without a word."""
    job = submit("while :; do echo line; sleep 0.1; done", "--time", "0:30")
    until(lambda: os.path.exists(f"job-{job}.out"))
    with start("logs", "-f", job) as process:
        read_line(process)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    cjdask("cancel", job)
