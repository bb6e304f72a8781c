"""Compare commands over one connection with a connection for each, at the same host."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from cjdask import ConnectionParameters
from cjdask.protocols.paramiko import ParamikoProtocol
from cjdask.protocols.remote import RemoteProtocol
from cjdask.protocols.ssh import SshProtocol


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def one_for_each(host: str, config: str | None) -> Callable[[], object]:
    """Return what runs a command over a connection of its own."""
    options = [] if config is None else ["-F", config]
    argv = ["ssh", *options, "-o", "ControlPath=none", "-o", "BatchMode=yes", host, "true"]
    return lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


@click.command()
@click.argument("host", default="cjlogin")
@click.option("--ssh-config", "config", help="Another file than ~/.ssh/config.")
@click.option("--count", default=100, show_default=True, help="How many operations.")
@click.option("--megabytes", default=200, show_default=True, help="The size of a file to copy.")
def main(host: str, config: str | None, count: int, megabytes: int) -> None:
    """Run commands, copy a file and a folder, by each way in turn."""
    each = one_for_each(host, config)
    params = ConnectionParameters.of(host, ssh_config=config)
    ways: dict[str, RemoteProtocol] = {
        "ssh": SshProtocol(params),
        "paramiko": ParamikoProtocol(params),
    }
    for way in ways.values():
        way.run(["true"])
    times: dict[str, list[float]] = {"a connection for each": [], **{name: [] for name in ways}}
    for _ in range(count):
        times["a connection for each"].append(timed(each))
        for name, way in ways.items():
            times[name].append(timed(lambda way=way: way.run(["true"])))
    peer = statistics.median(times["a connection for each"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"{name:22} {middle * 1000:6.1f} ms a command, {middle / peer:.2f} of the peer")
    with tempfile.TemporaryDirectory() as folder:
        _copy(Path(folder), ways, host, config, megabytes)
    for way in ways.values():
        way.close()


def _copy(
    folder: Path, ways: dict[str, RemoteProtocol], host: str, config: str | None, megabytes: int
) -> None:
    """Compare with scp the copying of a file and of a folder of 2,000 files."""
    (folder / "large").write_bytes(b"x" * (megabytes << 20))
    (folder / "many").mkdir()
    for number in range(2000):
        (folder / "many" / str(number)).write_text(str(number))
    options = [] if config is None else ["-F", config]
    for entry in ("large", "many"):
        remote = f"/tmp/cjdask-benchmark-{entry}"
        scp = ["scp", "-q", "-r", *options, str(folder / entry), f"{host}:{remote}"]
        clean = ["rm", "-rf", remote]
        peer = timed(lambda scp=scp: subprocess.run(scp, check=True))
        ways["ssh"].run(clean)
        print(f"{entry}: scp -r {peer:.2f} s")
        for name, way in ways.items():
            taken = timed(
                lambda way=way, entry=entry, remote=remote: way.upload([folder / entry], remote)
            )
            way.run(clean)
            print(f"{entry}: {name} {taken:.2f} s, {taken / peer:.2f} of scp")


if __name__ == "__main__":
    main()
