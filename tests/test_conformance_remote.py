"""Schedulers on other machines keep what every scheduler must."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask.backends import BatchBackend
from cjdask.testing import SchedulerConformance
from tests.ssh_hosts import LOGIN, PLAIN, SSH, control

FULL = os.environ.get("CJDASK_FAR") == "all"


class Far(SchedulerConformance):
    ssh = SSH

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls) -> Iterator[Path]:
        """Return a folder that all users may write to."""
        folder = Path(tempfile.mkdtemp(prefix="cjdask-test-"))
        umask = os.umask(0)
        folder.chmod(0o777)
        yield folder
        os.umask(umask)
        shutil.rmtree(folder, ignore_errors=True)

    def stop_scheduler(self) -> float:
        """Kill sshd."""
        assert self.remote
        control("stop", self.remote)
        return 5.0

    def start_scheduler(self) -> None:
        """Start sshd again."""
        assert self.remote
        control("start", self.remote)


@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts")
@pytest.mark.timeout(200)
class TestEmbeddedThere(Far):
    backend = "local"
    remote = PLAIN
    walltime = "0:03"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def slots(cls) -> Iterator[None]:
        """Give the host slots for all jobs of the tests."""
        scheduler = cls.scheduler()
        assert isinstance(scheduler.backend, BatchBackend)
        program = scheduler.backend.query_command([]).argv[:-1]
        scheduler.protocol.run([*program, "config", "--slots=32"])
        yield
        scheduler.protocol.run([*program, "config", "--slots=auto"])


@pytest.mark.slurm
@pytest.mark.ssh
@pytest.mark.usefixtures("slurm", "ssh_hosts")
@pytest.mark.timeout(300)
@pytest.mark.skipif(not FULL, reason="CJDASK_FAR=all checks Slurm behind ssh as Slurm itself is")
class TestSlurmThere(Far):
    backend = "slurm"
    remote = LOGIN
    held = {"hold": True}  # noqa: RUF012
    resources = {"mem": 100}  # noqa: RUF012
