"""A real Slurm keeps what every scheduler must."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cjdask.testing import SchedulerConformance

CONTROLLER = Path(__file__).parent / "slurm" / "ctl.sh"


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
@pytest.mark.timeout(300)
class TestSlurm(SchedulerConformance):
    backend = "slurm"
    held = {"hold": True}  # noqa: RUF012
    resources = {"mem": 100}  # noqa: RUF012

    def stop_scheduler(self) -> float:
        """Stop slurmctld, and look on for half a minute."""
        if not Path("/run/cjdask-slurm").is_dir():
            pytest.skip("this Slurm was not raised by tests/slurm/up.sh")
        subprocess.run([CONTROLLER, "stop"], check=True, timeout=60)
        return 30.0

    def start_scheduler(self) -> None:
        """Start slurmctld again."""
        subprocess.run([CONTROLLER, "start"], check=True, timeout=60)
