"""The command ``dask clusterjob``, in a terminal and elsewhere, on the embedded scheduler."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from cjdask.cluster_cli import clusterjob
from cjdask.cluster_foreground import picture
from cjdask.cluster_table import JobRow
from cjdask.status import Status
from cjdask.testing import until

DASK = (sys.executable, "-m", "dask", "clusterjob", "--backend", "local")
SMALL = ("--set", "mem=500", "--set", "nanny=false", "--set", "time=00:05:00")
SMALL = (*SMALL, "--set", "dashboard-address=:0")


class Terminal:
    """A command in a terminal of 24 lines of 100 characters."""

    def __init__(self, *argv: str) -> None:
        self.keyboard, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            argv, stdin=inside, stdout=inside, stderr=inside, env={**env, "TERM": "xterm"}
        )
        os.close(inside)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.keyboard, 65536)
            except OSError:  # the other end is closed
                return
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))

    def last(self) -> str:
        """Return what was drawn last."""
        return self.text.rpartition("workers  exit")[2]

    def press(self, key: str) -> None:
        os.write(self.keyboard, key.encode())

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        os.close(self.keyboard)
        return code


def client(path: str) -> str:
    """Return what a program prints that connects by a file and computes."""
    program = (
        "from distributed import Client\nwith Client() as c: print(c.submit(pow, 2, 5).result())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DASK_CONFIG": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.long
def test_keys_scale_and_end_a_cluster(embedded: Callable[[], int], tmp_path: Path) -> None:
    """A terminal shows address, jobs and keys; who has the file may connect; q leaves nothing."""
    terminal = Terminal(*DASK, *SMALL)
    try:
        until(lambda: "workers: 1 of 1   jobs: 1 wanted" in terminal.last(), 60)
        assert re.search(r"address +tls://127.0.0.1:\d+", terminal.text)
        (path,) = re.findall(r"DASK_CONFIG=(\S+)", terminal.text)
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert client(path) == "32\n"
        terminal.press("+")
        until(lambda: "workers: 2 of 2   jobs: 2 wanted" in terminal.last(), 60)
        assert terminal.last().count("RUNNING") == 2
        terminal.press("-")
        until(lambda: "workers: 1 of 1   jobs: 1 wanted" in terminal.last(), 60)
        until(lambda: embedded() == 1, 30)  # the worker leaves before its job ends
        assert "q end" in terminal.last()
    finally:
        terminal.press("q")
        assert terminal.end() == 0
    assert "ending 1 job ...\r\nthe cluster is closed\r\n" in terminal.text
    assert embedded() == 0
    assert [each.name for each in tmp_path.iterdir() if "dask-worker-" in each.name] == [
        "dask-worker-logs"
    ]


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is read; it is killed if it has not ended."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        with process:
            yield process
    finally:
        process.kill()


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_cluster(
    embedded: Callable[[], int], tmp_path: Path, how: signal.Signals
) -> None:
    """Without a terminal there is a line for each change of a job, and a signal ends it well."""
    path = tmp_path / "connect.yaml"
    with running(*DASK, *SMALL, "--adapt", "1:2", "--connect-file", str(path)) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        said = [next(lines) for _ in range(3)]
        assert [line.split()[0] for line in said] == ["address", "dashboard", "connect"]
        assert next(line for line in lines if "RUNNING" in line and "1/1" in line)
        process.send_signal(how)
        rest = list(lines)
        assert process.wait(60) == 0
    assert rest[-2:] == ["ending 1 job ...\n", "the cluster is closed\n"]
    assert embedded() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--jobs", "1", "--adapt", "0:1"], 2, "exclude each other"),
        (["--adapt", "many"], 2, "give two numbers of jobs"),
        (["--set", "queue"], 2, "give KEY=VALUE"),
        (["--set", "queue=[a"], 2, "no YAML"),
        (["--set", "thread=1"], 1, "did you mean 'threads'"),
        (["--adapt", "3:1"], 1, "more than the maximum"),
        (["--set", "nodes=2"], 1, "nodes"),
    ],
)
def test_what_is_wrong_is_said(
    embedded: Callable[[], int], tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    """Wrong arguments, wrong options and a refused job are one line, not a traceback."""
    done = CliRunner().invoke(clusterjob, ["--backend", "local", *SMALL, *arguments])
    assert done.exit_code == code
    assert said in done.output
    assert embedded() == 0
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.long
def test_it_ends_with_its_dask_scheduler(embedded: Callable[[], int], tmp_path: Path) -> None:
    """Client.shutdown() from elsewhere ends the command and its jobs."""
    path = tmp_path / "connect.yaml"
    with running(*DASK, *SMALL, "--connect-file", str(path)) as process:
        until(path.exists, 60)
        program = "from distributed import Client\nClient().shutdown()"
        env = {**os.environ, "DASK_CONFIG": str(path)}
        subprocess.run([sys.executable, "-c", program], env=env, timeout=60, check=True)
        assert process.wait(60) == 0
    assert embedded() == 0


def test_the_dask_command_knows_it() -> None:
    """It is listed among the commands of dask, and loading it loads no dask."""
    argv = [sys.executable, "-m", "dask", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert "clusterjob  Start a Dask cluster of batch jobs" in done.stdout
    code = (
        "import sys, cjdask.cluster_cli; print({'dask', 'distributed', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(("width", "height"), [(60, 20), (100, 24), (200, 50)])
def test_the_picture_fits(width: int, height: int) -> None:
    """Living jobs come first, and what has no room is counted."""
    rows = [
        JobRow(
            f"dask-worker-1f3a9c-{number}",
            str(1000 + number),
            Status.COMPLETED if number < 30 else Status.RUNNING,
            nodes=("node-1", "node-2"),
            queue_time=3.0,
            pool="gpu" if number % 2 else "default",
        )
        for number in range(60)
    ]
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(picture(rows, ["a long line at the foot " * 20, "keys"], width, height))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "RUNNING" in text
    (hidden,) = re.findall(r"\.\.\. and (\d+) more", text)
    assert sum("1f3a9c-" in line for line in lines) == 60 - int(hidden)
    assert re.search(r"1f3a9c-30 +1030 +RUNNING", text)
    assert lines[-1].rstrip() == "keys"
