"""The embedded scheduler keeps what every scheduler must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cjdask.testing import SchedulerConformance


class TestLocal(SchedulerConformance):
    backend = "local"
    walltime = "0:02"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def state(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """Give the tests a scheduler of their own, with slots for all their jobs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path_factory.mktemp("state")))
            patch.setenv("CJDASK_EMBEDDED_SLOTS", "32")
            yield
