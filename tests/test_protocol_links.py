"""A link that breaks: what is repeated, what is not, what goes on where it was."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cjdask.command import Command
from cjdask.errors import LinkLostError, LoginError, ProtocolError, UnreachableError
from cjdask.protocols import link, paramiko, ssh
from cjdask.protocols.forwarding import PortForward
from cjdask.protocols.remote import RemoteProtocol
from cjdask.testing import until
from tests.fakes import FakeClock
from tests.ssh_hosts import PLAIN, both_ways, control, mended_after, reach

ROOT = Path(__file__).parents[1]
CUT = float(os.environ.get("CJDASK_CUT", 8))
"""Seconds for which a host is cut off; 30 where somebody wants to see it with usual settings."""


class Flaky(RemoteProtocol):
    """A machine of which is set whether it answers."""

    up = True
    opens = 0
    open_now = False
    error: UnreachableError = UnreachableError("no route")

    def _open(self) -> None:
        self.opens += 1
        if not self.up:
            raise self.error
        self.open_now = True

    def _is_open(self) -> bool:
        return self.open_now

    def _drop(self) -> None:
        self.open_now = False

    def _execute(
        self,
        line: str,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        total: float | None,
        stall: float | None,
    ) -> bytes:
        raise LinkLostError("broken")

    def _start_forward(self, forward: PortForward) -> None:
        raise ProtocolError("taken")

    def _stop_forward(self, forward: PortForward) -> None:
        pass


@pytest.fixture
def flaky() -> tuple[Flaky, FakeClock]:
    """Return a machine and the clock that its pauses move."""
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    return Flaky("host", clock=clock, sleep=sleep), clock


def test_first_contact(flaky: tuple[Flaky, FakeClock]) -> None:
    """A machine that was never reached is tried once a call, and not sooner than after a pause."""
    host, clock = flaky
    host.up = False
    for _ in range(5):
        with pytest.raises(UnreachableError, match="no route"):
            host.open()
    assert (host.opens, clock.now) == (1, 1000.0)
    clock.now += 1
    with pytest.raises(UnreachableError):
        host.open()
    assert host.opens == 2
    host.up = True
    clock.now += 2
    host.open()
    host.open()
    assert host.opens == 3


def test_a_lost_link(flaky: tuple[Flaky, FakeClock]) -> None:
    """A link that was lost is tried with growing pauses for a minute; then calls fail at once."""
    host, clock = flaky
    host.open()
    host.open_now, host.up = False, False
    with pytest.raises(UnreachableError):
        host.open()
    assert 40 < clock.now - 1000 <= 60
    assert 6 <= host.opens <= 12
    before = host.opens, clock.now
    with pytest.raises(UnreachableError):
        host.open()
    assert (host.opens, clock.now) == before
    clock.now += 10
    host.up = True
    host.open()
    host.open_now = False
    host.open()
    assert host.opens == before[0] + 2


def test_a_refusal_is_not_repeated(flaky: tuple[Flaky, FakeClock]) -> None:
    """Who is not let in any more tries once, and after longer and longer pauses."""
    host, clock = flaky
    host.open()
    host.open_now, host.up, host.error = False, False, LoginError("wrong key")
    opens = []
    for _ in range(600):
        with pytest.raises(LoginError):
            host.open()
        opens.append(host.opens)
        clock.now += 1
    assert opens[0] == 2
    assert opens[-1] < 20


def test_what_may_be_repeated(flaky: tuple[Flaky, FakeClock]) -> None:
    """What only looks is done again after a break as long as there is hope; no other command is."""
    host, clock = flaky
    host._login_environment, host._home = {}, "/"
    with pytest.raises(LinkLostError):
        host.run(["true"])
    tries = []

    def execute(*_: Any) -> bytes:
        tries.append(1)
        clock.now += 25
        raise LinkLostError("broken")

    host._execute = execute  # type: ignore[method-assign]
    for call in (lambda: host.read("/x"), lambda: host.run(Command.ask("squeue"))):
        tries.clear()
        with pytest.raises(LinkLostError):
            call()
        assert len(tries) == 3


def test_a_port_that_is_taken_meanwhile(
    flaky: tuple[Flaky, FakeClock], caplog: pytest.LogCaptureFixture
) -> None:
    """A port that cannot be had after a break is told once, and breaks nothing else."""
    host, _ = flaky
    host._forwards.append(PortForward(lambda _: None, "there", 1, 2))
    host.open()
    host._drop()
    host.open()
    assert host._is_open()
    assert caplog.text.count("taken") == 1
    assert host._forwards[0].broken


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the link looked at often, so that a short cut is a cut."""
    if CUT < 30:
        monkeypatch.setattr(ssh, "ALIVE_EVERY", 1)
        monkeypatch.setattr(ssh, "ALIVE_TRIES", 2)
        monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 3)
        monkeypatch.setattr(paramiko, "ALIVE_EVERY", 1.0)
        monkeypatch.setattr(paramiko, "ALIVE_WITHIN", 3.0)
        monkeypatch.setattr(paramiko, "CONNECT_TIMEOUT", 3.0)


@pytest.fixture
def whole() -> Iterator[None]:
    """Leave the host as it was."""
    yield
    control("mend", PLAIN)
    control("start", PLAIN)


@both_ways
@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts", "quick", "whole")
class TestRealLinks:
    def test_cut_off(self, way: str) -> None:
        """A command is lost with its link in bounded time; what follows waits for the new one."""
        with reach(way) as protocol:
            protocol.run(["true"])
            with mended_after(CUT, "cut", "mend", PLAIN):
                began = time.monotonic()
                with pytest.raises(LinkLostError):
                    protocol.run(["sleep", "1"])
                assert time.monotonic() - began < CUT + 60
                assert protocol.read("/etc/hostname")
            assert protocol.run(["hostname"]).stdout == "cjplain\n"

    def test_sshd_is_killed(self, way: str) -> None:
        """A command that runs while sshd is killed is lost at once; the next connects anew."""
        with reach(way) as protocol:
            protocol.run(["true"])
            timer = threading.Timer(1, control, ("stop", PLAIN))
            timer.start()
            with pytest.raises(LinkLostError, match="sleep 30"):
                protocol.run(["sleep", "30"])
            timer.join()
            threading.Timer(2, control, ("start", PLAIN)).start()
            assert protocol.run(["hostname"]).stdout == "cjplain\n"

    def test_sshd_stands_still(self, way: str) -> None:
        """A sshd that takes no notice any more is left in bounded time, whatever was asked."""
        with reach(way) as protocol:
            pid = int(protocol.run(["sh", "-c", SSHD_ABOVE]).stdout)
            with ThreadPoolExecutor(2) as pool:
                sleeping = pool.submit(protocol.run, ["sleep", "100"])
                time.sleep(1)
                os.kill(pid, signal.SIGSTOP)
                try:
                    for lost in (pool.submit(protocol.run, ["true"]), sleeping):
                        with pytest.raises(LinkLostError):
                            lost.result(100)
                finally:
                    os.kill(pid, signal.SIGKILL)
            assert protocol.run(["hostname"]).stdout == "cjplain\n"

    def test_a_copy_goes_on(self, way: str, open_folder: Path) -> None:
        """A copy whose link breaks in its midst goes on there, both ways, and is what it was."""
        source = open_folder / "source"
        data = random.Random(5).randbytes(24 << 20)
        source.write_bytes(data)
        for direction in ("upload", "download"):
            target = open_folder / f"{direction}-{way}"
            done: list[int] = []
            broken = threading.Event()

            def progress(
                name: str, count: int, total: int, done: list[int] = done, broken: Any = broken
            ) -> None:
                done.append(count)
                if count > total // 2 and not broken.is_set():
                    broken.set()
                    control("stop", PLAIN)
                    control("start", PLAIN)

            with reach(way) as protocol:
                getattr(protocol, direction)([str(source)], str(target), progress)
            assert target.read_bytes() == data
            assert broken.is_set()
            again = [b for a, b in pairwise(done) if b < a]
            assert len(again) <= 1
            assert all(count > 1 << 20 for count in again)  # it did not begin anew
            assert not list(open_folder.glob(".*"))

    def test_a_copy_goes_on_in_another_process(self, way: str, open_folder: Path) -> None:
        """A copy that was stopped is gone on with by whoever asks for it again."""

        class Stop(Exception):
            pass

        source, target = open_folder / "one", open_folder / f"two-{way}"
        source.write_bytes(random.Random(6).randbytes(16 << 20))

        def stop(name: str, count: int, total: int) -> None:
            if count > total // 2:
                raise Stop

        with reach(way) as protocol:
            with pytest.raises(Stop):
                protocol.upload([source], str(target), stop)
            again = pickle.loads(pickle.dumps(protocol))
        assert not target.exists()
        seen: list[int] = []
        until(
            lambda: any(p.stat().st_size > 4 << 20 for p in open_folder.glob(f".{target.name}.*"))
        )
        with again:
            again.upload([source], str(target), lambda n, c, t: seen.append(c))
        assert seen[0] > 4 << 20
        assert target.read_bytes() == source.read_bytes()

    def test_a_damaged_part_is_not_believed(self, way: str, open_folder: Path) -> None:
        """What is left of a copy and is not its begin is found out, and copied anew."""
        source = open_folder / "right"
        source.write_bytes(random.Random(7).randbytes(6 << 20))

        def stop(name: str, count: int, total: int) -> None:
            assert count < 3 << 20, "stopped"

        with reach(way) as protocol:
            for call in (protocol.upload, protocol.download):
                target = open_folder / f"{call.__name__}-{way}"
                with pytest.raises(AssertionError, match="stopped"):
                    call([str(source)], str(target), stop)
                until(lambda target=target: list(open_folder.glob(f".{target.name}.*")))
                (part,) = open_folder.glob(f".{target.name}.*")
                part.write_bytes(b"\0" * 1_000_000)
                part.chmod(0o666)
                call([str(source)], str(target))
                assert target.read_bytes() == source.read_bytes()

    def test_a_port_comes_back(self, way: str) -> None:
        """A forwarded port is there again after sshd was killed, without any call."""
        with reach(way) as protocol:
            forward = protocol.forward(22)
            assert _banner(forward)
            control("stop", PLAIN)
            until(lambda: not _banner(forward))
            control("start", PLAIN)
            until(lambda: _banner(forward), 30)


SSHD_ABOVE = """
pid=$$
until [ "$(cat /proc/$pid/comm)" = sshd ]; do pid=$(cut -d " " -f 4 /proc/$pid/stat); done
echo $pid
"""
"""Prints the process of the connection; the names of those between have no blank."""

FORKING = """
import os, sys
from tests.ssh_hosts import reach
with reach(sys.argv[1]) as protocol:
    protocol.run(["true"])
    child = os.fork()
    if child == 0:
        print("child", protocol.run(["hostname"]).stdout, end="", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("parent", protocol.run(["hostname"]).stdout, end="")
"""


@both_ways
@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts")
def test_a_fork(way: str) -> None:
    """A process that was forked off uses it too, and does not break it for the other."""
    argv = [sys.executable, "-W", "ignore", "-c", FORKING, way]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout == "child cjplain\nparent cjplain\n", done.stderr


ENDING = """
import atexit, sys, time
atexit.register(lambda: (time.sleep(1.5), print(protocol.run(["hostname"]).stdout)))
from tests.ssh_hosts import reach
kept = reach(sys.argv[1])
kept.run(["true"])
kept.forward(22)
protocol = reach(sys.argv[1])
protocol.run(["true"])
kept.circle = kept
"""


@both_ways
@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts")
def test_the_process_ends(way: str, open_folder: Path) -> None:
    """A process ends without a word, and nothing is left, also if it connects while it ends."""
    argv = [sys.executable, "-c", ENDING, way]
    env = {**os.environ, "TMPDIR": str(open_folder)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cjplain\n\n", "")
    until(lambda: not os.listdir(open_folder))


@both_ways
@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts")
def test_a_forgotten_connection(way: str) -> None:
    """A connection whose protocol nobody has any more is closed."""
    protocol: Any = reach(way)
    protocol.run(["true"])
    if isinstance(protocol, ssh.SshProtocol):
        assert protocol._master
        running = [protocol._master]
    else:
        running = [protocol._transport()]
    del protocol
    gc.collect()
    (process,) = running
    until(lambda: process.poll() is not None if way == "ssh" else not process.is_active())


def _banner(forward: Any) -> bytes:
    try:
        with socket.create_connection((forward.host, forward.port), 3) as connection:
            connection.settimeout(3)
            return connection.recv(4)
    except OSError:
        return b""


def test_constants() -> None:
    """A lost link is found within the time for which calls wait for a new one."""
    assert ssh.ALIVE_EVERY * (ssh.ALIVE_TRIES + 1) <= link.PATIENCE
    assert paramiko.ALIVE_EVERY + paramiko.ALIVE_WITHIN <= link.PATIENCE
