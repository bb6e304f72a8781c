"""The states of a job and the record of what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

__all__ = ["JobInfo", "Reason", "Status", "combine", "str_status"]


class Status(IntEnum):
    """Where a job is in its life; everything from ``COMPLETED`` up is an end.

    >>> Status.RUNNING < Status.COMPLETED
    True
    >>> Status.FAILED.ended
    True
    """

    PENDING = -2
    RUNNING = -1
    COMPLETED = 0
    CANCELLED = 1
    FAILED = 2

    @property
    def ended(self) -> bool:
        """Tell whether no further change can come."""
        return self >= Status.COMPLETED


str_status: dict[int, str] = {int(status): status.name for status in Status}
"""The name of each status by its number, as clusterjob documents it."""


class Reason(str, Enum):
    """Why a job is in its status, in one vocabulary for all schedulers."""

    NONE = ""
    # pending or held up
    HELD = "HELD"
    SUSPENDED = "SUSPENDED"
    DEPENDENCY = "DEPENDENCY"
    REQUEUED = "REQUEUED"
    # ended badly
    NONZERO_EXIT = "NONZERO_EXIT"
    SIGNALED = "SIGNALED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    LAUNCH_FAILURE = "LAUNCH_FAILURE"
    LOST = "LOST"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class JobInfo:
    """What one question to a scheduler told about one job or one task of an array.

    Times are seconds since the epoch. ``exit_code`` is what the job script returned and
    ``signal`` the signal that ended it; both are ``None`` as long as they are not known.
    """

    job_id: str
    status: Status
    task: int | None = None
    """The index of the task in its array; ``None`` for a job that is no array."""
    native: str = ""
    """The scheduler's own word for the state."""
    reason: Reason = Reason.NONE
    message: str = ""
    """The scheduler's own explanation, where it gives one."""
    exit_code: int | None = None
    signal: int | None = None
    nodes: tuple[str, ...] = ()
    submit_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None

    def describe(self) -> str:
        """Say in one line what is known: status, reason, exit code, signal.

        >>> JobInfo("7", Status.FAILED, reason=Reason.NONZERO_EXIT, exit_code=3).describe()
        'FAILED (NONZERO_EXIT, exit code 3)'
        """
        details = [str(self.reason)] if self.reason else []
        if self.exit_code is not None and self.status.ended:
            details.append(f"exit code {self.exit_code}")
        if self.signal:
            details.append(f"signal {self.signal}")
        if self.message:
            details.append(self.message)
        return self.status.name + (f" ({', '.join(details)})" if details else "")


def combine(statuses: list[Status]) -> Status:
    """Tell the status of an array from those of all its tasks.

    It is over when all tasks are; then one failed task makes it ``FAILED``, else one
    cancelled task makes it ``CANCELLED``.

    >>> combine([Status.COMPLETED, Status.PENDING]).name
    'RUNNING'
    >>> combine([Status.COMPLETED, Status.FAILED, Status.CANCELLED]).name
    'FAILED'
    """
    if all(status.ended for status in statuses):
        return max(statuses)
    if all(status is Status.PENDING for status in statuses):
        return Status.PENDING
    return Status.RUNNING
