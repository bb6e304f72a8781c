"""What the tests of executors share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cjdask.backends import BatchBackend
from cjdask.protocols.local import LocalProtocol
from cjdask.scheduler import scheduler_for
from cjdask.testing import until

__all__ = ["embedded", "open_jobs"]


def open_jobs() -> int:
    """Count the jobs of the embedded scheduler that have not ended."""
    backend = scheduler_for("local").backend
    assert isinstance(backend, BatchBackend)
    output = LocalProtocol().run(backend.query_command(()))
    return sum(not info.status.ended for info in backend.parse_query(output, ()))


@contextmanager
def embedded(folder: Path, slots: int = 8) -> Iterator[Path]:
    """Be in a folder, with an embedded scheduler of its own; no job may be left at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CJDASK_EMBEDDED_DIR", str(folder / "state"))
        patch.setenv("CJDASK_EMBEDDED_SLOTS", str(slots))
        patch.setenv("CJDASK_EMBEDDED_KILL_GRACE", "0.5")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1])]))
        patch.delenv("CFUT_DIR", raising=False)
        yield folder
        until(lambda: open_jobs() == 0, 20)
