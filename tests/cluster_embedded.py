"""Clusters on the embedded scheduler: a fixture."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cjdask.embedded


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Use an embedded scheduler of its own; the value counts its jobs that have not ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "8")

    def count() -> int:
        argv = [sys.executable, cjdask.embedded.__file__, "query"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        return len(done.stdout.splitlines())

    yield count
    deadline = time.monotonic() + 10
    while count() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert count() == 0, "jobs are left"
