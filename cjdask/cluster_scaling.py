"""Sizes of a Dask cluster, in whole jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_bytes

from cjdask.cluster_options import ClusterOptions

__all__ = ["Bounds", "job_of", "limits"]


def job_of(worker: Any) -> str:
    """Return the name of the job that a worker belongs to.

    >>> job_of("dask-worker-1f3a9c-7-0")
    'dask-worker-1f3a9c-7'
    """
    return str(worker).rpartition("-")[0]


@dataclass(frozen=True)
class Bounds:
    """A size in jobs, workers, cores (threads) and memory; ``None`` is not given."""

    jobs: float | None = None
    workers: float | None = None
    cores: float | None = None
    memory: str | float | None = None

    def in_jobs(self, options: ClusterOptions) -> list[float]:
        """Return each of the sizes in jobs, with fractions.

        Raises:
            ValueError: a size is negative, or in memory where that of a job is not known.
        """
        found = []
        for name, size, of_job in (
            ("jobs", self.jobs, 1),
            ("n", self.workers, options.workers),
            ("cores", self.cores, options.cores),
            ("memory", self.memory, options.memory),
        ):
            if size is None:
                continue
            if of_job is None:
                raise ValueError("to scale by memory=... the cluster must be given mem or memory")
            number = parse_bytes(size) if name == "memory" else float(size)
            if number < 0:
                raise ValueError(f"{name}={size!r}: a size cannot be negative")
            found.append(number / of_job)
        return found

    def least(self, options: ClusterOptions) -> int:
        """Return the number of jobs that satisfies each of the sizes."""
        return math.ceil(max(self.in_jobs(options), default=0))


def limits(options: ClusterOptions, low: Bounds, high: Bounds) -> tuple[int, int | None]:
    """Return the smallest and the largest number of jobs; ``None`` is no limit.

    Raises:
        ValueError: the largest is less than one job, though not 0, or less than the smallest.
    """
    most = min(high.in_jobs(options), default=math.inf)
    least = max(low.in_jobs(options), default=0.0)
    if least > most:
        raise ValueError(f"the minimum of {least:g} jobs is more than the maximum of {most:g}")
    if math.isinf(most):
        return math.ceil(least), None
    if 0 < most < 1:
        raise ValueError(
            f"the maximum is less than one job, which holds {options.workers} workers "
            f"of {options.threads} threads"
        )
    return min(math.ceil(least), math.floor(most)), math.floor(most)
