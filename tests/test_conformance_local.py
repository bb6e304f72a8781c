"""The embedded scheduler keeps what every scheduler must."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cjdask import AsyncResult, JobScript
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

    @pytest.mark.long
    def test_100_jobs_in_one_query(
        self, job: Callable[..., JobScript], runs: dict[str, AsyncResult]
    ) -> None:
        super().test_100_jobs_in_one_query(job, runs)
