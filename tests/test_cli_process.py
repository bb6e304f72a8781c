"""The command as a process: in a terminal, in pipes, interrupted; what it looks like there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

from cjdask.cli import main
from cjdask.cli_group import Exit
from cjdask.cli_table import Row, dashboard, fitted
from cjdask.jobscript import JobScript
from cjdask.status import JobInfo, Reason, Status
from cjdask.testing import until
from tests.cli import PROGRAM, cjdask, rows, start, terminal

NOW = 1_700_000_000.0


def row(number: int) -> Row:
    """Return the row of one of many runs."""
    status = list(Status)[number % 5]
    reason = Reason.NONZERO_EXIT if status is Status.FAILED else Reason.NONE
    info = JobInfo(
        *(str(number), status),
        reason=reason,
        exit_code=3 if reason else None,
        nodes=() if status is Status.PENDING else ("node1", "node2"),
        start_time=NOW - 75,
        end_time=NOW - 5,
    )
    return Row(str(number), f"a-scan-with-a-long-name-{number}", info, NOW - 3600)


def drawn(renderable: object, width: int) -> list[str]:
    """Return the lines that a terminal of that width shows."""
    console = Console(width=width, file=StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()


# -- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [25, 40, 60, 80, 120, 250])
def test_the_table_fits_any_width(width: int) -> None:
    """Each run is one line, with its id and status whole; wide terminals show all."""
    lines = drawn(fitted([row(number) for number in range(30)], NOW, width), width)
    assert len(lines) == 31
    assert all(len(line) <= width for line in lines)
    for number in range(30):
        assert re.match(rf"{number} .* {list(Status)[number % 5].name}", lines[number + 1])
    assert ("node1,node2" in lines[2]) == (width >= 80)
    assert ("exit code 3" in lines[5]) == (width >= 120)


@pytest.mark.parametrize("height", [5, 14, 24, 60])
@pytest.mark.parametrize("count", [3, 300])
def test_the_dashboard_fits_any_height(count: int, height: int) -> None:
    """It never needs more lines than the terminal has; what failed comes first, all are counted."""
    runs = [row(number) for number in range(count)]
    lines = drawn(dashboard(runs, NOW, 80, height, Text("foot")), 80)
    assert len(lines) < height
    assert lines[-1].strip() == "foot"
    if count == 300:
        assert "FAILED" in lines[1]
        hidden = re.search(r"\.\.\. and (\d+) more: (.*)", lines[-2])
        assert hidden is not None
        assert int(hidden[1]) + len(lines) - 3 == count
        assert sum(map(int, re.findall(r"(\d+) [a-z]+", hidden[2]))) == int(hidden[1])


def test_the_columns() -> None:
    """A row tells how long a run waits, runs or ran, how many tasks ended, and why it failed."""
    failed = row(4)
    assert failed.cells(NOW)["TIME"] == "00:01:10"
    assert failed.cells(NOW)["DETAILS"] == "NONZERO_EXIT, exit code 3"
    assert row(0).cells(NOW)["TIME"] == "01:00:00"
    assert row(1).cells(NOW)["TIME"] == "00:01:15"
    counts = {Status.COMPLETED: 7, Status.FAILED: 1}
    array = Row("7", "x", failed.info, NOW, counts)
    assert array.cells(NOW)["DETAILS"] == "1 failed, 7 completed; NONZERO_EXIT, exit code 3"
    unknown = Row("8", "y", JobInfo("8", Status.RUNNING), None, unlisted=True)
    assert unknown.cells(NOW)["TIME"] == ""
    assert unknown.cells(NOW)["DETAILS"] == "left the queue, its end is not known yet"


# -- in a terminal ---------------------------------------------------------------------------------


def submit(count: int, body: str) -> None:
    """Submit jobs to the embedded scheduler."""
    for number in range(count):
        script = JobScript(body, f"job{number}", backend="local", threads=1, rootdir="jobs")
        script.submit(cache_id=f"job{number}", cache_folder=".cjdask/runs")


@pytest.mark.long
def test_a_watched_table_stays_in_its_place(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal ``status -w`` redraws its table, and never more lines than there are."""
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "9")
    submit(9, "until [ -e go ]; do sleep 0.1; done")
    with terminal(PROGRAM, "status", "-w", width=90, height=8) as window:
        until(lambda: window.read().count("JOB") > 3)
        Path("jobs", "go").touch()
        text = window.wait()
    assert window.process.returncode == 0
    assert "9/9 runs" in text
    assert "more: " in text
    frames = text.split("JOB")[1:]
    assert len(frames) > 2
    assert all(frame.count("\r\n") < 8 for frame in frames)
    assert text.count("\x1b[1A") >= (len(frames) - 2) * 5, (
        "the frames are not drawn over each other"
    )
    assert "\x1b[?25h" in text[-40:], "the cursor stays hidden"


def test_a_watched_table_is_left_by_ctrl_c(own_folder: Path) -> None:
    """Ctrl-C leaves the table with 130, and the terminal and the runs as they are."""
    submit(1, "sleep 60")
    with terminal(PROGRAM, "status", "-w") as window:
        until(lambda: "RUNNING" in window.read())
        os.killpg(window.process.pid, signal.SIGINT)
        text = window.wait()
    assert window.process.returncode == Exit.INTERRUPTED
    assert text.endswith("Interrupted; the runs go on.\r\n")
    assert "\x1b[?25h" in text[-80:]
    assert [row["status"] for row in rows(cjdask("status", "--json"))] == ["RUNNING"]
    cjdask("cancel", "--all")


def test_a_signal_leaves_the_terminal_in_order(own_folder: Path) -> None:
    """SIGTERM ends the command as a signal does, with the cursor shown again."""
    submit(1, "sleep 60")
    with terminal(PROGRAM, "wait") as window:
        until(lambda: "0/1 runs" in window.read())
        window.process.terminate()
        text = window.wait()
    assert window.process.returncode == 128 + signal.SIGTERM
    assert "\x1b[?25h" in text[-40:]
    cjdask("cancel", "--all")


def test_waiting_in_a_terminal(own_folder: Path) -> None:
    """``wait`` prints each end above a line that shows how far they are."""
    submit(2, "sleep 0.5; exit 1")
    with terminal(PROGRAM, "wait", width=100) as window:
        text = window.wait()
    assert window.process.returncode == Exit.FAILED
    assert "job0  FAILED (NONZERO_EXIT, exit code 1)\r\n" in text
    assert "2/2 runs  2 failed" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_snapshot_in_a_terminal(own_folder: Path) -> None:
    """``status`` prints a table and how many there are of each status; submit says what to do."""
    with terminal(PROGRAM, "submit", "--backend", "local", "-", width=100) as window:
        os.write(window._master, b"exit 2\n\x04")
        assert "submitted to local; cjdask logs -f 1" in window.wait()
    cjdask("wait")
    with terminal(PROGRAM, "status", width=100) as window:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", window.wait())
    assert text.splitlines()[0].split() == ["JOB", "NAME", "STATUS", "TIME", "NODES", "DETAILS"]
    assert text.splitlines()[-1] == "1 runs: 1 failed"


# -- pipes, signals, shells ------------------------------------------------------------------------


def test_waiting_is_interrupted(own_folder: Path) -> None:
    """Ctrl-C ends ``wait`` with 130 and a word; nothing is cancelled."""
    submit(1, "sleep 60")
    with start("wait") as process:
        until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) > 1)  # the one that asks
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted; the runs go on.\n"
    assert [row["status"] for row in rows(cjdask("status", "--json"))] == ["RUNNING"]
    cjdask("cancel", "--all")


def test_a_script_that_cannot_come(own_folder: Path) -> None:
    """Where standard input is closed, ``submit -`` says so and submits nothing."""
    line = f"{PROGRAM} submit - --backend local <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USAGE
    assert done.stderr == "Error: standard input is closed: give a script\n"
    assert cjdask("list").stdout == ""


def test_a_pipe_that_is_closed(own_folder: Path) -> None:
    """``cjdask list | head -1`` ends without a traceback."""
    submit(3, "true")
    command = f"{PROGRAM} list --json | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert cjdask("wait").exit_code == 0


def test_ids_go_from_one_command_to_the_next(own_folder: Path) -> None:
    """What ``submit`` prints is what the other commands take."""
    script = f"""
    id=$(echo 'echo hello' | {PROGRAM} submit - --backend local) || exit 9
    {PROGRAM} wait "$id" >/dev/null && {PROGRAM} logs "$id"
    """
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cjdask sta", {"status"}),
        ("cjdask wait sc", {"scan-0", "scan-1"}),
        ("cjdask logs 1", {"1"}),
        ("cjdask render --backend sl", {"slurm"}),
        ("cjdask status --state fa", {"failed"}),
    ],
)
def test_shells_complete(fake: object, words: str, expected: set[str]) -> None:
    """A shell completes commands, runs by what is recorded, backends and statuses."""
    fake.record(2)  # type: ignore[attr-defined]
    env = {
        "_CJDASK_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = CliRunner().invoke(main, env=env, prog_name="cjdask")
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


SHELLS = {
    "bash": (["--norc", "--noprofile"], 'eval "$(_CJDASK_COMPLETE=bash_source cjdask)"'),
    "zsh": (
        ["-f"],
        'autoload -Uz compinit; compinit -u -D; eval "$(_CJDASK_COMPLETE=zsh_source cjdask)"',
    ),
    "fish": (["--no-config"], "_CJDASK_COMPLETE=fish_source cjdask | source"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_in_a_terminal(
    fake: object, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lines of the documentation a tab writes the rest of a command and of a run."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    fake.submit("--cache-id", "geometry")  # type: ignore[attr-defined]
    monkeypatch.setenv("PATH", os.path.dirname(PROGRAM), prepend=os.pathsep)
    options, setup = SHELLS[shell]
    with terminal("setsid", "--ctty", "--wait", shell, *options, "-i", width=120) as window:
        os.write(window._master, f"{setup}; echo rea''dy\r".encode())
        until(lambda: "ready" in window.read(), 60)
        os.write(window._master, b"cjdask sta\t")
        until(lambda: "status" in window.read(), 60)
        os.write(window._master, b"geo\t")
        until(lambda: "geometry" in window.read(), 60)


def test_every_command_is_documented() -> None:
    """Each command has a help text and --json, and stands in the documentation."""
    page = Path(__file__).parents[1] / "docs" / "command_line.md"
    for name, command in main.commands.items():
        assert command.help
        assert command.short_help
        assert f"cjdask {name}" in page.read_text()
        options = {text for parameter in command.params for text in parameter.opts}
        assert "--json" in options
        for option in sorted(options - {"--json"}):
            if option.startswith("--") and name not in ("record",):
                assert option in page.read_text(), f"{option} of {name} is not documented"


def test_exit_codes_are_documented() -> None:
    """The documentation has all exit codes."""
    page = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert told == set(map(int, Exit))


def test_the_command_starts_quickly() -> None:
    """Neither rich nor dask nor paramiko is loaded by a command that needs none of them."""
    code = "import sys; from cjdask.cli import main\ntry: main(['list'])\nexcept SystemExit: pass\n"
    code += "print({'rich', 'dask', 'distributed', 'paramiko'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
