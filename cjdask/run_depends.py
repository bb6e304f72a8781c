"""What a job has to wait for, of the runs that it depends on."""

from __future__ import annotations

from typing import Any

from cjdask.errors import JobCancelled, JobFailed
from cjdask.run import AsyncResult
from cjdask.status import Status

__all__ = ["open_dependencies"]


def open_dependencies(value: Any) -> list[Any]:
    """Return those of one or several runs or ids that have not ended well yet.

    A scheduler may have forgotten a job that ended, and then waits for it for ever, or refuses.

    Raises:
        JobFailed, JobCancelled: a run ended so; a job that depends on it would never start.
    """
    single = isinstance(value, str | int) or hasattr(value, "job_id")
    left = []
    for item in [value] if single else list(value or ()):
        if isinstance(item, AsyncResult) and item.ready():
            if item.successful():
                continue
            error = JobFailed if item.status is Status.FAILED else JobCancelled
            raise error(
                f"a job that depends on job {item.job_id} on {item.backend} would never start: "
                f"that is {item.info.describe()}. Submit it again, or leave it out of depends",
                item.info,
            )
        left.append(item)
    return left
