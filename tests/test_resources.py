"""Resources are checked once, with errors that name value, allowed values and remedy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import ArraySpec, Resources, clock, time_to_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("01:30:00", 5400),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("1-2:30:05", 95405),
        ("1:2:30:05", 95405),
        ("0-10", 36000),
    ],
)
def test_every_form_of_time(text: str, seconds: int) -> None:
    """Each documented form of a walltime has its documented length."""
    assert time_to_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1h", "1:2:3:4:5", "1-", "-", "1-2:3:4:5", "1.5", ":"])
def test_other_text_is_no_time(text: str) -> None:
    """Text of no documented form is refused with the forms."""
    with pytest.raises(ValueError, match="D-H:M:S"):
        time_to_seconds(text)


@given(st.integers(min_value=0, max_value=10**7))
def test_clock_is_read_back(seconds: int) -> None:
    """What clock writes is the same time for time_to_seconds."""
    assert time_to_seconds(clock(seconds)) == seconds


@given(st.sets(st.integers(0, 200), min_size=1), st.none() | st.integers(1, 50))
def test_array_text_is_read_back(indices: set[int], limit: int | None) -> None:
    """The text of an array describes the same tasks."""
    array = ArraySpec(tuple(sorted(indices)), limit)
    assert ArraySpec.parse(str(array)) == array


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("nodes", -1, "nodes=-1: give a whole number of at least 1"),
        ("nodes", 0, "nodes=0"),
        ("nodes", "two", "nodes='two'"),
        ("ppn", True, "ppn=True"),
        ("threads", 1.5, "threads=1.5"),
        ("mem", "lots", "mem='lots' is no amount of memory; give a whole number of MB"),
        ("mem", "4000", "mem='4000'"),
        ("mem", 0, "mem=0"),
        ("mem", 1.5, "mem=1.5"),
        ("time", 30, "time=30 is ambiguous: a number could be minutes or seconds"),
        ("time", "soon", "time='soon'"),
        ("time", "0", "more than 0 seconds"),
        ("jobname", "a\nb", "control character"),
        ("jobname", "a\x1bb", "control character"),
        ("jobname", "", "not empty"),
        ("queue", 5, "queue=5"),
        ("array", "0-", "array='0-'"),
        ("array", 0, "array=0"),
        ("array", "1,1", "array='1,1'"),
        ("array", [1, 2], "give their number"),
        ("depends", "1; rm x", "no job id"),
        ("exclusive", "yes", "True or False"),
        ("gpus", -1, "gpus=-1"),
        ("constraint", "a\nb", "control character"),
        ("a b", 1, "no name of a resource"),
    ],
)
def test_bad_values_are_refused(key: str, value: Any, told: str) -> None:
    """A bad value is refused with its key, the value, and what is allowed."""
    with pytest.raises(ResourcesNotSupportedError) as caught:
        Resources.of({key: value})
    assert told in str(caught.value)


def test_good_values_have_one_unit() -> None:
    """Time is kept in seconds, memory in MB of 2**20 bytes, paths as text."""
    resources = Resources.of(
        {
            "time": timedelta(minutes=90),
            "mem": "4GiB",
            "stdout": Path("logs/a.out"),
            "array": range(0, 10, 5),
            "depends": ["12", 13],
            "queue": None,
            "constraint": "ssd",
            "contiguous": True,
            "requeue": False,
        }
    )
    assert (resources.time, resources.mem, resources.stdout) == (5400, 4096, "logs/a.out")
    assert resources.array == ArraySpec((0, 5))
    assert resources.depends == ("12", "13")
    assert resources.given() == [
        "array",
        "constraint",
        "contiguous",
        "depends",
        "mem",
        "stdout",
        "time",
    ]
