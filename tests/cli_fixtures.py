"""Fixtures for the tests of the command line: a folder of its own, a scheduler in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cjdask import backends as backends_module
from cjdask import scheduler as scheduler_module
from cjdask.backends import get_backend, register_backend
from cjdask.command import Command, Output
from cjdask.errors import ProtocolError
from cjdask.jobscript import JobScript
from cjdask.scheduler import Scheduler
from cjdask.status import Status
from tests.cli import cjdask
from tests.fakes import FakeBackend, FakeProtocol

__all__ = ["FakeSite", "fake", "own_folder"]


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with an embedded scheduler and settings of one's own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CJDASK_SETTINGS", "user.ini")
    return folder


class _Protocol(FakeProtocol):
    """A fake machine whose link may break while it submits."""

    broken = False

    def run(self, command: Command, timeout: float | None = None) -> Output:
        if self.broken and command.argv[0] == "fake-submit":
            raise ProtocolError("no answer after 120 s on fake: fake-submit")
        return super().run(command, timeout)


class FakeSite:
    """A site with a scheduler in memory, and a script ``job.sh``."""

    options = ("--backend", "fake")

    def __init__(self) -> None:
        self.protocol = _Protocol()
        Path("job.sh").write_text("true\n")

    def submit(self, *options: str) -> str:
        """Submit the script and return the id of its job."""
        done = cjdask("submit", "job.sh", *self.options, *options)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def record(self, count: int) -> list[str]:
        """Submit many jobs with cache ids ``scan-0``, ...; return the ids of the jobs."""
        script = JobScript("true", "scan", backend="fake")
        folder = ".cjdask/runs"
        return [
            script.submit(cache_id=f"scan-{number}", cache_folder=folder).job_id
            for number in range(count)
        ]

    def end(self, job_id: str, status: str, exit_code: int | None = None) -> None:
        """Have a job end."""
        self.protocol.end(job_id, Status[status], exit_code)

    def count(self, verb: str) -> int:
        """Return how many commands of a kind were run."""
        return sum(argv[0] == f"fake-{verb}" for argv in self.protocol.calls)


@pytest.fixture
def fake(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSite:
    """Return a site with a scheduler in memory."""
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(FakeBackend)
    site = FakeSite()
    backend = get_backend("fake")
    key = (backend, scheduler_module._here)
    monkeypatch.setitem(scheduler_module._schedulers, key, Scheduler(backend, site.protocol))
    return site
