"""What a job asks of a scheduler, checked once and in one unit each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cached_property
from typing import Any

from cjdask.errors import ResourcesNotSupportedError

__all__ = [
    "COMMON_KEYS",
    "ArraySpec",
    "Resources",
    "clock",
    "parse_mem",
    "parse_time",
    "time_to_seconds",
]

_TIME_FORMS = "M, M:S, H:M:S, D-H, D-H:M, D-H:M:S or D:H:M:S"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "pi": 2**50}


def time_to_seconds(text: str) -> int:
    """Convert a walltime as schedulers write it to seconds.

    Accepts ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S`` and ``D:H:M:S``.

    Raises:
        ValueError: the text has none of these forms.

    >>> time_to_seconds("30"), time_to_seconds("01:30:00"), time_to_seconds("1-12")
    (1800, 5400, 129600)
    """
    days, dash, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(re.fullmatch(r"[0-9]+", part) for part in [*parts, *([days] if dash else [])]):
        raise ValueError(f"{text!r} is not a time; write it as {_TIME_FORMS}")
    numbers = [int(part) for part in parts]
    if dash and len(numbers) <= 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if not dash and len(numbers) <= 4:
        numbers = [*numbers, 0] if len(numbers) == 1 else numbers
        days_, hours, minutes, seconds = [0] * (4 - len(numbers)) + numbers
        return ((days_ * 24 + hours) * 60 + minutes) * 60 + seconds
    raise ValueError(f"{text!r} is not a time; write it as {_TIME_FORMS}")


def clock(seconds: int) -> str:
    """Write seconds as ``HH:MM:SS``, which every scheduler but LSF reads the same way.

    >>> clock(5400), clock(129600)
    ('01:30:00', '36:00:00')
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


def parse_time(value: Any) -> int:
    """Check a walltime and convert it to seconds.

    Raises:
        ResourcesNotSupportedError: a bare number (minutes? seconds?), an unknown form,
            or nothing at all of time.
    """
    if isinstance(value, timedelta):
        seconds = math.ceil(value.total_seconds())
    elif isinstance(value, str):
        try:
            seconds = time_to_seconds(value)
        except ValueError as error:
            raise ResourcesNotSupportedError(f"time={value!r}: {error}") from None
    else:
        raise ResourcesNotSupportedError(
            f"time={value!r} is ambiguous: a number could be minutes or seconds; give text "
            f"({_TIME_FORMS}; '{value}' is {value} minutes) or a datetime.timedelta"
        )
    if seconds <= 0:
        raise ResourcesNotSupportedError(f"time={value!r}: a walltime is more than 0 seconds")
    return seconds


def parse_mem(value: Any, key: str = "mem") -> int:
    """Check an amount of memory and convert it to MB of 2**20 bytes, rounded up.

    Accepts a whole number of MB, or text with a unit as dask reads it (``"4GiB"`` is
    2**32 bytes, ``"4GB"`` 4 * 10**9).

    Raises:
        ResourcesNotSupportedError: anything else.

    >>> parse_mem(8000), parse_mem("4GiB"), parse_mem("8GB")
    (8000, 4096, 7630)
    """
    allowed = 'a whole number of MB of 2**20 bytes (8000), or text with a unit ("8GB", "7.5GiB")'
    if isinstance(value, int) and not isinstance(value, bool):
        megabytes = value
    elif isinstance(value, str) and (
        match := re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgtp]i?)(?:b)?\s*", value.lower())
    ):
        megabytes = math.ceil(float(match[1]) * _UNITS[match[2]] / 2**20)
    else:
        raise ResourcesNotSupportedError(f"{key}={value!r} is no amount of memory; give {allowed}")
    if megabytes < 1:
        raise ResourcesNotSupportedError(f"{key}={value!r} is less than 1 MB; give {allowed}")
    return megabytes


@dataclass(frozen=True)
class ArraySpec:
    """The tasks of an array job: their indices and how many may run at a time.

    >>> ArraySpec.parse(3).indices, ArraySpec.parse("0-20:10,99%2").indices
    ((0, 1, 2), (0, 10, 20, 99))
    >>> str(ArraySpec.parse("1,2,3,7%2"))
    '1-3,7%2'
    """

    indices: tuple[int, ...]
    limit: int | None = None

    @classmethod
    def parse(cls, value: Any) -> ArraySpec:
        """Read ``n`` (tasks 0 to n-1), a ``range``, or text like ``"0-99%10"``.

        Raises:
            ResourcesNotSupportedError: anything else, an empty array, an index twice.
        """
        if isinstance(value, ArraySpec):
            return value
        limit = None
        if isinstance(value, bool):
            indices: list[int] = []
        elif isinstance(value, int):
            indices = list(range(value))
        elif isinstance(value, range):
            indices = list(value)
        elif isinstance(value, str):
            body, percent, tail = value.replace(" ", "").partition("%")
            if percent and not re.fullmatch(r"[1-9][0-9]*", tail):
                raise cls._error(value)
            limit = int(tail) if percent else None
            indices = [i for part in body.split(",") for i in cls._part(part, value)]
        else:
            raise cls._error(value)
        if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
            raise cls._error(value)
        return cls(tuple(sorted(indices)), limit)

    @classmethod
    def _part(cls, part: str, value: str) -> Iterable[int]:
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+)(?::([1-9][0-9]*))?)?", part)
        if not match:
            raise cls._error(value)
        first, last, step = match.groups()
        return range(int(first), int(last or first) + 1, int(step or 1))

    @staticmethod
    def _error(value: Any) -> ResourcesNotSupportedError:
        return ResourcesNotSupportedError(
            f"array={value!r} is no array of tasks; give their number, a range, or text like "
            '"0-99", "1,3,7-9", "0-20:5", with "%10" behind it for 10 at a time'
        )

    def ranges(self) -> str:
        """Write the indices as ``1-3,7``, without the limit."""
        runs: list[list[int]] = []
        for index in self.indices:
            if runs and index == runs[-1][1] + 1:
                runs[-1][1] = index
            else:
                runs.append([index, index])
        return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)

    def __str__(self) -> str:
        return self.ranges() + (f"%{self.limit}" if self.limit else "")

    def __len__(self) -> int:
        return len(self.indices)


def _count(key: str, minimum: int = 1) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ResourcesNotSupportedError(
                f"{key}={value!r}: give a whole number of at least {minimum}"
            )
        return value

    return check


def check_text(key: str, value: Any) -> str:
    """Check that a value is text without line breaks or other control characters.

    Raises:
        ResourcesNotSupportedError: it is not; a line break would end the header line and
            start another one, or a command.
    """
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
        raise ResourcesNotSupportedError(
            f"{key}={text!r} has a control character (such as a line break); "
            "give plain text on one line"
        )
    return text


def _name(key: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ResourcesNotSupportedError(f"{key}={value!r}: give text that is not empty")
        return check_text(key, value)

    return check


def _path(key: str) -> Callable[[Any], str]:
    name = _name(key)
    return lambda value: name(value.__fspath__() if hasattr(value, "__fspath__") else value)


def _depends(value: Any) -> tuple[str, ...]:
    """Take one or several runs or ids."""
    single = isinstance(value, str | int) or hasattr(value, "job_id")
    ids = []
    for item in [value] if single else list(value):
        job_id = str(getattr(item, "job_id", item))
        if not re.fullmatch(r"[\w.\[\]@-]+", job_id):
            raise ResourcesNotSupportedError(
                f"depends={item!r} is no job id; give runs (what submit returned) or their ids"
            )
        ids.append(job_id)
    return tuple(ids)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ResourcesNotSupportedError(f"exclusive={value!r}: give True or False")
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "jobname": _name("jobname"),
    "queue": _name("queue"),
    "account": _name("account"),
    "time": parse_time,
    "nodes": _count("nodes"),
    "ppn": _count("ppn"),
    "threads": _count("threads"),
    "mem": parse_mem,
    "gpus": _count("gpus", minimum=0),
    "stdout": _path("stdout"),
    "stderr": _path("stderr"),
    "array": ArraySpec.parse,
    "depends": _depends,
    "exclusive": _flag,
}

COMMON_KEYS: tuple[str, ...] = tuple(_CHECKS)
"""The keys that mean the same on every scheduler; all others are native ones."""


@dataclass(frozen=True)
class Resources:
    """Resources of one job, checked: the common keys, and the native ones as they came.

    ``time`` is in seconds, ``mem`` in MB of 2**20 bytes per node, ``gpus`` per node. ``None``
    means that nothing is asked for.

    >>> r = Resources.of({"nodes": 2, "ppn": 2, "threads": 4, "time": "90", "contiguous": True})
    >>> r.time, r.cores_per_node, r.processes, r.native
    (5400, 8, 4, {'contiguous': True})
    """

    jobname: str | None = None
    queue: str | None = None
    account: str | None = None
    time: int | None = None
    nodes: int | None = None
    ppn: int | None = None
    threads: int | None = None
    mem: int | None = None
    gpus: int | None = None
    stdout: str | None = None
    stderr: str | None = None
    array: ArraySpec | None = None
    depends: tuple[str, ...] = ()
    exclusive: bool = False
    native: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> Resources:
        """Check a mapping of resources; a value of ``None`` counts as not given.

        Raises:
            ResourcesNotSupportedError: names the key, its value, what is allowed.
        """
        common: dict[str, Any] = {}
        native: dict[str, str | int | float | bool] = {}
        for key, value in mapping.items():
            if value is None:
                continue
            if key in _CHECKS:
                common[key] = _CHECKS[key](value)
            elif not re.fullmatch(r"-{0,2}[A-Za-z+][\w.+:-]*", key):
                raise ResourcesNotSupportedError(
                    f"{key!r} is no name of a resource; the common ones are "
                    f"{', '.join(COMMON_KEYS)}, any other is an option of the scheduler"
                )
            elif isinstance(value, bool | int | float):
                native[key] = value
            else:
                native[key] = check_text(key, value)
        return cls(**common, native=native)

    @cached_property
    def cores_per_node(self) -> int:
        """Cores on each node: processes times threads."""
        return (self.ppn or 1) * (self.threads or 1)

    @cached_property
    def processes(self) -> int:
        """Processes of the job on all its nodes."""
        return (self.nodes or 1) * (self.ppn or 1)

    def plain(self) -> dict[str, Any]:
        """Return what `of` reads the same resources from, in values that JSON knows.

        >>> Resources.of({"time": "90", "array": 3, "depends": "7"}).plain()
        {'array': '0-2', 'depends': ['7'], 'time': '01:30:00'}
        """
        values = {
            key: self.native[key] if key in self.native else getattr(self, key)
            for key in self.given()
        }
        if self.time:
            values["time"] = clock(self.time)
        if self.array:
            values["array"] = str(self.array)
        if self.depends:
            values["depends"] = list(self.depends)
        return values

    def given(self) -> list[str]:
        """List the keys that ask for something, common and native, in alphabetical order."""
        common = [f.name for f in fields(self) if f.name != "native" and getattr(self, f.name)]
        native = [key for key, value in self.native.items() if value is not False]
        return sorted([*common, *native])
