"""A real OAR keeps what every scheduler must."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask.backends.oar import OarBackend
from cjdask.jobscript import JobScript
from cjdask.resources import Resources
from cjdask.status import Status
from cjdask.testing import SchedulerConformance
from tests.as_user import USER, as_user

LAB = Path(__file__).parent / "oar"


@pytest.mark.oar
@pytest.mark.usefixtures("oar", "user")
@pytest.mark.timeout(300)
class TestOar(SchedulerConformance):
    backend = "oar"
    held = {"hold": True}  # noqa: RUF012
    walltime = "0:05"
    array_limit = None
    patience = 240.0  # a node tells the server of an end again after up to two minutes

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls) -> Iterator[Path]:
        """Return a folder of the user that jobs run as."""
        folder = Path(tempfile.mkdtemp(prefix="cjdask-oar-", dir="/tmp"))
        if os.getuid() == 0:
            shutil.chown(folder, USER, USER)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    @pytest.fixture(scope="class")
    @classmethod
    def user(cls) -> Iterator[None]:
        """Be a normal user to OAR."""
        with as_user("oar"):
            yield

    def stop_scheduler(self) -> float:
        """Stop the server and its database, and look on while a running job ends."""
        if os.getuid() != 0 or not Path("/run/cjdask-oar").is_dir():
            pytest.skip("this OAR was not raised by tests/oar/up.sh, or cannot be stopped")
        subprocess.run([LAB / "down.sh", "--keep"], check=True, timeout=120)
        return 10.0

    def start_scheduler(self) -> None:
        """Start them again."""
        subprocess.run([LAB / "up.sh"], check=True, timeout=120)

    def test_two_nodes(self, folder: Path) -> None:
        """The launcher starts processes on both nodes, each with its ranks and the environment."""
        resources = {"nodes": 2, "ppn": 2, "time": "5"}
        shown = (
            'echo "$CLUSTERJOB_NODE_RANK $(hostname) $PWD $MINE" >"shown.$CLUSTERJOB_RANK"; exit 3'
        )
        text = OarBackend().launcher(Resources.of(resources), shown)
        body = f"export MINE='a\nb'\n{text}\n"
        folder = folder / "two"
        job = JobScript(body, "twonodes", backend="oar", rootdir=str(folder), **resources)
        run = job.submit()
        assert run.get(self.patience) is Status.FAILED
        assert run.info.exit_code == 3, run.stderr()
        for rank in range(4):  # a file each: lines of several processes may mix in one
            node = rank // 2
            text = (folder / f"shown.{rank}").read_text()
            assert text == f"{node} oarn{1 + node} {folder} a\nb\n"
