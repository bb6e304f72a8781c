"""Python calls on another machine: on a real Slurm behind ssh, and where there is no scheduler."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cjdask import ClusterExecutor, JobDied
from cjdask.backends import BatchBackend, backend_names, get_backend
from cjdask.errors import ClusterjobError, ProtocolError
from cjdask.executor_folder import CallFolder
from cjdask.protocols import protocol_for, ssh
from cjdask.protocols.parameters import ConnectionParameters
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.ssh_hosts import CONFIG, CUT, PLAIN, SSH, mended_after, reach

HERE = Path(__file__).parent
pytestmark = [pytest.mark.ssh, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of this machine, which that one does not know."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(place: tuple[str, str], open_folder: Path) -> Callable[..., ClusterExecutor]:
    """Return what makes an executor there; calls are put into a folder that the tests see."""
    return functools.partial(executor, place, open_folder)


def executor(place: tuple[str | None, str], folder: Path, **options: Any) -> ClusterExecutor:
    """Return an executor on a machine."""
    backend, host = place
    own: dict[str, Any] = {"mem": 100} if backend == "slurm" else {}
    own |= {"time": "5", "jobname": "far", "folder": folder / "calls", "python": sys.executable}
    return ClusterExecutor(backend, remote=host, ssh=SSH, **{**own, **options})


def left_in(folder: Path) -> list[str]:
    """Return what is in the folder of the calls, once it does not change."""
    calls = folder / "calls"
    return sorted(str(each.relative_to(calls)) for each in calls.rglob("*") if each.is_file())


def test_calls(
    place: tuple[str, str], calls: Callable[..., ClusterExecutor], open_folder: Path, here: Path
) -> None:
    """Results, exceptions, deaths with their logs and cancels are as on this machine."""

    def work(n: int) -> tuple[int, str, str]:
        if n == 3:
            raise KeyError("three")
        return n * n, os.uname().nodename, os.getcwd()

    def die() -> None:
        os.write(2, b"these are my last words\n")
        os._exit(3)

    with calls(ppn=1) as ex:
        futures = [ex.submit(work, n) for n in range(5)]
        deaths = [ex.submit(die) for _ in range(3)]
        long = ex.submit(time.sleep, 300)
        assert [futures[n].result()[0] for n in (0, 1, 2, 4)] == [0, 1, 4, 16]
        _, node, cwd = futures[0].result()
        assert node != os.uname().nodename
        assert cwd == protocol_for(place[1], SSH).expand("~")
        with pytest.raises(KeyError, match="three") as caught:
            futures[3].result()
        assert node[0] in str(caught.value.__cause__)
        for death in deaths:
            with pytest.raises(JobDied) as died:
                death.result()
            assert (died.value.exit_code, died.value.log) == (3, "these are my last words\n")
            assert f" at {place[1]} " in str(died.value)
            assert died.value.log_file
            assert Path(died.value.log_file).read_text() == "these are my last words\n"
        until(long.running, 60)
        assert long.cancel()
        several = ex.with_options(ppn=2).submit_ranks(os.getenv, "CLUSTERJOB_RANK")
        assert several.result() == ["0", "1"]
    until(lambda: len(left_in(open_folder)) in (3, 6), 60)  # their logs, where they are two
    until(lambda: not list((here / ".cjdask" / "calls").iterdir()))


def test_commands(
    place: tuple[str, str], calls: Callable[..., ClusterExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 calls are one upload and one submission; then there are some questions, none for each."""
    scheduler = scheduler_for(place[0], place[1], SSH)
    protocol: Any = scheduler.protocol
    execute, commands = protocol._execute, []
    before = scheduler.commands.copy()
    with calls() as ex:
        list(ex.map(abs, range(2)))  # what is asked once is known now

        def counted(line: str, *args: Any) -> bytes:
            commands.append(line)
            return bytes(execute(line, *args))

        monkeypatch.setattr(protocol, "_execute", counted)
        began = time.monotonic()
        assert list(ex.map(lambda n: n * n, range(200))) == [n * n for n in range(200)]
        seconds = time.monotonic() - began
        print(f"{len(commands)} commands in {seconds:.0f} s")
        assert len(commands) < 20 + 3 * seconds / 2
    assert scheduler.commands["submit"] == before["submit"] + 2


def test_large(place: tuple[str, str], calls: Callable[..., ClusterExecutor]) -> None:
    """Large arguments and results travel."""
    data = os.urandom(6 << 20)
    with calls(mem=300) as ex:
        assert ex.submit(lambda value: value[::-1], data).result() == data[::-1]


@pytest.mark.parametrize("how", [("cut", "mend"), ("stop", "start")], ids=["cut", "killed"])
def test_the_link_breaks(
    place: tuple[str, str],
    calls: Callable[..., ClusterExecutor],
    how: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls that end while the link is down have their results afterwards; none is wrong."""
    if CUT < 30:
        monkeypatch.setattr(ssh, "ALIVE_EVERY", 1)
        monkeypatch.setattr(ssh, "ALIVE_TRIES", 2)
        monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 3)
    protocol_for(place[1], SSH).close()

    def work(n: int, seconds: float) -> int:
        time.sleep(seconds)
        if n % 3 == 2:
            os._exit(n)
        return n

    with calls() as ex:
        futures = [ex.submit(work, n, CUT / 2 + n % 2) for n in range(10)]
        until(lambda: all(future.info for future in futures), 60)
        with mended_after(CUT, *how, place[1]):
            time.sleep(CUT)
        ends: list[Any] = []
        for future in futures:
            error = future.exception(timeout=150)
            ends.append(error.exit_code if isinstance(error, JobDied) else future.result())
    assert ends == list(range(10))
    assert [isinstance(future.exception(), JobDied) for future in futures].count(True) == 3


def test_a_driver_that_is_killed(place: tuple[str, str], open_folder: Path) -> None:
    """Run until it is not killed, a map has each result, and no call was made twice."""
    mine = open_folder / f"kept-{place[0]}"
    mine.mkdir()
    mine.chmod(0o777)
    options = {"remote": place[1], "ssh": SSH, "folder": f"{open_folder}/calls"}
    options |= {"python": sys.executable, "additional_import_paths": str(HERE.parent)}
    options |= {"mem": 100} if place[0] == "slurm" else {}
    words = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    argv = [sys.executable, str(HERE / "executor_driver.py"), place[0], str(mine), "20", "0.5"]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    for seconds in (2.5, 5.0, 8.0):
        with subprocess.Popen([*argv, *words], env=env) as driver:
            try:
                driver.wait(seconds)
            except subprocess.TimeoutExpired:
                driver.kill()
    done = subprocess.run(
        [*argv, *words], env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=200
    )
    assert done.stdout == f"{sum(n * n for n in range(20))}\n"
    made = Counter((mine / "log").read_text().split())
    assert made == {str(n): 1 for n in range(20)}
    assert len(list((mine / "kept" / "a%20map" / "results").iterdir())) == 20
    until(lambda: not left_in(open_folder), 60)


def test_other_versions(
    place: tuple[str, str], calls: Callable[..., ClusterExecutor], open_folder: Path
) -> None:
    """A Python there of another version, or without cloudpickle, is refused with the remedy."""
    old = open_folder / "old"
    found = {"python": "3.6", "path": "x", "cloudpickle": None}
    old.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    old.chmod(0o755)
    before = scheduler_for(place[0], place[1], SSH).commands["submit"]
    with pytest.raises(ClusterjobError) as caught:
        calls(python=str(old))
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for words in (
        f"python 3.6 (here {here})",
        "cloudpickle is missing (here",
        "python=",
        "install",
    ):
        assert words in str(caught.value)
    with pytest.raises(ClusterjobError, match="there is no such program"):
        calls(python="/no/python")
    with calls(python=None) as ex:
        assert ex.submit(abs, -1).result() == 1
    assert scheduler_for(place[0], place[1], SSH).commands["submit"] == before + 1


def test_a_machine_that_is_not_there() -> None:
    """A machine that cannot be reached is an error at once."""
    with pytest.raises(ProtocolError, match="cannot be reached"):
        ClusterExecutor("slurm", remote="127.0.0.1:9")


def test_which_scheduler(
    place: tuple[str, str], open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a backend it is the scheduler that is found there, or the embedded one."""
    programs = {
        name: set(backend.programs)
        for name in backend_names()
        if isinstance(backend := get_backend(name), BatchBackend)
    }
    others = set().union(*programs.values()) - programs[place[0]]  # files are of this machine
    protocol: Any = protocol_for(place[1], SSH)
    which = protocol.which
    monkeypatch.setattr(protocol, "which", lambda name: None if name in others else which(name))
    with executor((None, place[1]), open_folder) as ex:
        assert f"on {place[0]}," in repr(ex)


def test_ways_to_name_a_machine(ssh_hosts: None, open_folder: Path) -> None:
    """The machine may be a text, parameters, or a connection, of paramiko too."""
    options = {"folder": open_folder / "calls", "python": sys.executable}
    with reach("paramiko", PLAIN) as connection:
        for remote in (
            f"{PLAIN}?ssh_config={CONFIG}",
            ConnectionParameters(PLAIN, ssh_config=str(CONFIG)),
            connection,
        ):
            with ClusterExecutor("local", remote=remote, **options) as ex:  # type: ignore[arg-type]
                assert list(ex.map(abs, range(-2, 1))) == [2, 1, 0]
    until(lambda: not left_in(open_folder), 60)


def test_machines_together(ssh_hosts: None) -> None:
    """One executor has calls on another machine and on this one."""
    options = {"ssh": SSH, "python": sys.executable}
    with ClusterExecutor("local", remote=PLAIN, **options) as ex:  # type: ignore[arg-type]
        there = ex.submit(lambda: os.uname().nodename)
        local = ex.with_options(remote=None)
        assert isinstance(local._shared.folder(local._options), CallFolder)
        here = local.submit(lambda: os.uname().nodename)
        assert (there.result(), here.result()) == (PLAIN, os.uname().nodename)


def test_a_call_that_saves_itself(ssh_hosts: None, open_folder: Path) -> None:
    """A call that saves itself before the walltime goes on in another job there."""

    class Saves:
        runs = 0

        def __call__(self) -> int:
            self.runs += 1
            time.sleep(60 if self.runs < 3 else 0)
            return self.runs

        def checkpoint(self) -> None:
            """All is in this object."""

    with executor(("local", PLAIN), open_folder, time="0:15", max_requeues=6) as ex:
        assert ex.submit(Saves()).result() == 3
    until(lambda: not left_in(open_folder), 60)


def test_pool(
    place: tuple[str, str],
    calls: Callable[..., ClusterExecutor],
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pool there makes many calls, replaces a process, stops a call, keeps results here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(open_folder / "state"))
    mem = 900 if place[0] == "slurm" else 2000
    with calls(mode="pool", ppn=2, maximum_jobs=1, mem=mem) as ex:
        assert list(ex.map(lambda n: n * n, range(300))) == [n * n for n in range(300)]
        with pytest.raises(JobDied) as died:
            ex.submit(os._exit, 3).result()
        assert died.value.exit_code == 3
        long = ex.submit(time.sleep, 300)
        until(long.running, 60)
        assert long.cancel()
        assert list(ex.map(abs, range(-5, 0), cache_id="pool", cache_folder="kept")) == [
            *range(5, 0, -1)
        ]
    assert len(list(Path("kept/pool/results").iterdir())) == 5
    assert all("pool-logs" in path for path in left_in(open_folder) if path.startswith("s"))
