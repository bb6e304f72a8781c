"""Options and fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh_hosts import LOGIN, PLAIN

pytest_plugins = [
    "cjdask.testing.plugin",
    "tests.cli_fixtures",
    "tests.cluster_embedded",
    "tests.cluster_slurm",
]

REAL = ("htcondor", "oar", "sge", "slurm", "ssh")
"""The marks of tests that need what the scripts in the folders beside this file raise."""


def pytest_configure() -> None:
    """Leave out the user's settings; let SIGINT end what the tests start.

    A shell that has put the tests into the background has it ignored.
    """
    os.environ["CJDASK_SETTINGS"] = os.path.join(os.devnull, "none.ini")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests that need a real scheduler run one after the other, in one process.

    Long ones are left out unless they are asked for.
    """
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("CJDASK_LONG"):
            item.add_marker(
                pytest.mark.skip(reason="takes long: CJDASK_LONG=1 runs it, as CI does")
            )
        if any(item.get_closest_marker(name) for name in REAL):
            item.add_marker(pytest.mark.xdist_group("real"))


def require(name: str, *probe: str) -> None:
    """Skip a test, with the reason, where a scheduler does not answer; fail if it is required.

    The environment variable ``CJDASK_REQUIRE`` has the names of those that must be there.
    """
    if shutil.which(probe[0]) is None:
        reason = f"{name} is not installed here (no {probe[0]})"
    else:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
        reason = f"{name} does not answer: {done.stderr.strip()}"
    if name in os.environ.get("CJDASK_REQUIRE", "").split():
        pytest.fail(f"{reason}, and CJDASK_REQUIRE asks for it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm() -> None:
    """Need a real Slurm."""
    require("slurm", "sinfo", "--noheader")


@pytest.fixture(scope="session")
def oar() -> None:
    """Need a real OAR."""
    require("oar", "oarstat", "--sql", "job_id = 0")


@pytest.fixture(scope="session")
def sge() -> None:
    """Need a real Grid Engine."""
    require("sge", "qconf", "-sss")


@pytest.fixture(scope="session")
def htcondor() -> None:
    """Need a real HTCondor, and tools with which the tests may submit jobs."""
    require("htcondor", "condor_q", "-totals")


@pytest.fixture(scope="session")
def ssh_hosts() -> None:
    """Need the ssh hosts of ``tests/ssh/up.sh``."""
    config = "/var/lib/cjdask-ssh/ssh_config"
    options = ("-F", config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
    require("ssh", "ssh", *options, "cjplain", "true")


@pytest.fixture(
    params=[
        pytest.param(("slurm", LOGIN), marks=pytest.mark.slurm, id="slurm"),
        pytest.param(("local", PLAIN), id="embedded"),
    ]
)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return a backend and the machine that it is on, which only ssh reaches."""
    backend, host = request.param
    request.getfixturevalue("ssh_hosts")
    if backend == "slurm":
        request.getfixturevalue("slurm")
    return backend, host


@pytest.fixture(scope="class")
def open_folder() -> Iterator[Path]:
    """Return a folder that jobs may write to which are run as somebody else.

    It is not the one of ``tmp_path``, which pytest closes to all others.
    """
    folder = Path(tempfile.mkdtemp(prefix="cjdask-test-"))
    folder.chmod(0o777)
    umask = os.umask(0)
    yield folder
    os.umask(umask)
    shutil.rmtree(folder, ignore_errors=True)
