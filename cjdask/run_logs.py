"""Find and read the logs of jobs."""

from __future__ import annotations

from cjdask.backends import BatchBackend, ClusterjobBackend
from cjdask.monitor import TrackedJob
from cjdask.protocols.base import Protocol
from cjdask.resources import ArraySpec, Resources

__all__ = ["log_path", "read_log"]

_BYTES_PER_LINE = 400


def log_path(
    backend: ClusterjobBackend, job: TrackedJob, resources: Resources, stream: str, task: int | None
) -> str:
    """Return where a job, or a task of it, writes, relative to the folder of the job.

    Raises:
        ValueError: the job is an array and no task is named, or the other way round; or the
            backend does not know the file.
    """
    if task not in job.keys:
        array = ArraySpec(job.tasks) if job.tasks else None
        raise ValueError(
            f"task={task!r}: job {job.job_id} "
            + (f"is an array, name one of its tasks {array}" if array else "is no array")
        )
    if isinstance(backend, BatchBackend):
        # A task may be of an earlier submission.
        return backend.log_path(resources, stream, job.infos[task].job_id, task)
    named: str | None = getattr(resources, stream)
    if named is None:
        raise ValueError(f"backend {backend.name!r} needs {stream}=... to know the file")
    return named


def read_log(protocol: Protocol, path: str, tail: int | None = None) -> str:
    """Return the text of a log, or its last ``tail`` lines; then no more is read than needed.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if tail is None:
        return protocol.read(path).decode("utf-8", "backslashreplace")
    size = (tail + 1) * _BYTES_PER_LINE
    while True:
        raw = protocol.read(path, tail=size)
        lines = raw.decode("utf-8", "backslashreplace").splitlines(keepends=True)
        if len(lines) > tail or len(raw) < size:
            return "".join(lines[-tail:] if tail else [])
        size *= 4
