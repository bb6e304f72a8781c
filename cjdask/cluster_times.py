"""Times among the options of a cluster."""

from __future__ import annotations

from typing import Any

from dask.utils import parse_timedelta

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import clock

__all__ = ["duration", "margin"]

MARGIN = 300.0
"""Seconds before the walltime from which on workers take no more tasks, of a long job."""


def duration(key: str, value: Any) -> float:
    """Return seconds, given as such or as text of dask: ``"90s"``, ``"10m"``.

    Raises:
        ResourcesNotSupportedError: it is neither, or negative.
    """
    try:
        seconds = float(parse_timedelta(value))
    except (ValueError, KeyError, TypeError):
        seconds = -1.0
    if seconds < 0:
        raise ResourcesNotSupportedError(f"{key}={value!r}: give seconds, or text such as '10m'")
    return seconds


def margin(value: Any, walltime: int | None) -> float:
    """Return for how many seconds before the walltime workers take no more tasks.

    Raises:
        ResourcesNotSupportedError: the value is no such time, or not less than the walltime.
    """
    if walltime is None:
        return 0.0  # the end is not known
    if value is None:
        return min(MARGIN, walltime / 4)
    seconds = duration("walltime_margin", value)
    if seconds >= walltime:
        raise ResourcesNotSupportedError(
            f"walltime_margin={value!r} is not less than the walltime ({clock(walltime)})"
        )
    return seconds
