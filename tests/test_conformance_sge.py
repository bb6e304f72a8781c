"""A real Grid Engine keeps what every scheduler must."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cjdask.testing import SchedulerConformance

CONTROL = Path(__file__).parent / "sge" / "ctl.sh"


@pytest.mark.sge
@pytest.mark.usefixtures("sge")
@pytest.mark.timeout(300)
class TestSge(SchedulerConformance):
    backend = "sge"
    held = {"h": True}  # noqa: RUF012

    def stop_scheduler(self) -> float:
        """Stop the master, and look on while a running job ends."""
        if os.getuid() != 0 or not Path("/run/cjdask-sge").is_dir():
            pytest.skip("this Grid Engine was not raised by tests/sge/up.sh, or not by us")
        subprocess.run([CONTROL, "stop"], check=True, timeout=60)
        return 10.0

    def start_scheduler(self) -> None:
        """Start the master again."""
        subprocess.run([CONTROL, "start"], check=True, timeout=60)
