"""A real HTCondor keeps what every scheduler must."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cjdask.testing import SchedulerConformance

CONTROL = Path(__file__).parent / "htcondor" / "ctl.sh"


@pytest.mark.htcondor
@pytest.mark.usefixtures("htcondor")
@pytest.mark.timeout(300)
class TestHTCondor(SchedulerConformance):
    backend = "htcondor"
    held = {"hold": True}  # noqa: RUF012

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, open_folder: Path) -> Path:
        """Return a folder that the jobs may write to, whoever they belong to."""
        return open_folder

    def stop_scheduler(self) -> float:
        """Stop the schedd, and look on while a running job ends."""
        if os.getuid() != 0 or not Path("/var/lib/cjdask-htcondor/run").is_dir():
            pytest.skip("this HTCondor was not raised by tests/htcondor/up.sh, or not by us")
        subprocess.run([CONTROL, "stop"], check=True, timeout=60)
        return 10.0

    def start_scheduler(self) -> None:
        """Start the schedd again."""
        subprocess.run([CONTROL, "start"], check=True, timeout=60)
