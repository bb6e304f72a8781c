"""The hosts that ``tests/ssh/up.sh`` raises, and ways to them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cjdask.protocols.parameters import ConnectionParameters
from cjdask.protocols.paramiko import ParamikoProtocol
from cjdask.protocols.remote import RemoteProtocol
from cjdask.protocols.ssh import SshProtocol

PLACE = Path("/var/lib/cjdask-ssh")
CONFIG = PLACE / "ssh_config"
USER = "hpc"
LOGIN, PLAIN = "cjlogin", "cjplain"
CONTROL = Path(__file__).parent / "ssh" / "ctl.sh"
WAYS: dict[str, type[RemoteProtocol]] = {"ssh": SshProtocol, "paramiko": ParamikoProtocol}
SSH = f"ssh -F {CONFIG}"
"""The program with which the hosts are known by their names."""
CUT = float(os.environ.get("CJDASK_CUT", 8))
"""Seconds for which a host is not there; 30 where somebody wants to see that."""

both_ways = pytest.mark.parametrize("way", sorted(WAYS))
needs_ssh = [pytest.mark.ssh, pytest.mark.usefixtures("ssh_hosts")]


def reach(way: str, host: str = PLAIN, config: Path = CONFIG, **more: Any) -> RemoteProtocol:
    """Return a protocol to a host."""
    return WAYS[way](ConnectionParameters(host, ssh_config=str(config), **more))


def password() -> str:
    """Return the password of the user there."""
    return (PLACE / "password").read_text()


def host_name(host: str) -> str:
    """Return the address of a host."""
    found = re.search(rf"Host {host}\n  HostName (\S+)", CONFIG.read_text())
    assert found
    return found[1]


def changed_config(folder: Path, change: Callable[[str], str]) -> Path:
    """Write the configuration in another form; return the path."""
    path = folder / "ssh_config"
    path.write_text(change(CONFIG.read_text()))
    return path


def logins(host: str) -> int:
    """Return how often somebody has logged in at a host."""
    log = Path(f"/var/log/cjdask-ssh/{host}.log").read_text(errors="replace")
    return len(re.findall(r"^Accepted \S+ for ", log, re.MULTILINE))


def control(what: str, host: str) -> None:
    """Break or mend a host: stop, start, cut or mend."""
    subprocess.run([CONTROL, what, host], check=True, timeout=60)


@contextlib.contextmanager
def mended_after(seconds: float, broken: str, mended: str, host: str) -> Iterator[None]:
    """Break a host and mend it after some time, whatever the block does meanwhile."""
    control(broken, host)
    timer = threading.Timer(seconds, control, (mended, host))
    timer.start()
    try:
        yield
    finally:
        timer.join()
