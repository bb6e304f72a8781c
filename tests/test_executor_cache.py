"""Results that survive the program: what makes calls the same, what is run again, kills."""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cjdask import ClusterExecutor, LocalExecutor, PayloadError
from cjdask.executor_digest import call_digest, code_digest
from cjdask.scheduler import scheduler_for
from cjdask.testing import until
from tests.executor_functions import Counts
from tests.executor_help import embedded

DRIVER = Path(__file__).with_name("executor_driver.py")
ALL = os.environ.get("CJDASK_CRASHES") == "all"
"""Whether drivers are killed at many instants, rather than at a few."""


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use an embedded scheduler of its own."""
    with embedded(tmp_path_factory.mktemp("cache")) as path:
        yield path


# -- what makes calls the same ---------------------------------------------------------------------

DIGESTS = """
import json, functools
from dataclasses import dataclass
from cjdask.executor_digest import call_digest, code_digest

@dataclass
class Point:
    x: int
    tags: set

def f(x):
    return x in {"a", "b"}

def closure(value):
    return lambda x: x + value

text = "ab" + str(len("c"))
twice = [text, "".join(["a", "b", "1"])]
loop = []
loop.append(loop)
values = [
    (f, ({"one", "two", "three"},)), (f, (Point(1, {"p", "q"}),)),
    (f, (twice,)), (f, ([text] * 2,)), (f, (f,)), (f, (Point,)),
    (functools.partial(f, 2), ()), (closure(3), (1,)), (closure(4), (1,)),
    (f, (loop,)), (len, (b"x" * 10, 1.5, None)),
]
print(json.dumps([[call_digest(*value) for value in values], code_digest(f)]))
"""


def test_digests_are_the_same_in_every_process() -> None:
    """Sets, texts, classes and functions of ``__main__`` look the same wherever they were made."""
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", DIGESTS],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            ).stdout
        )
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    digests, _ = found[0]
    assert digests[2] == digests[3], "two texts or one twice are the same values"
    assert len(set(digests)) == len(digests) - 1


def test_digests_differ() -> None:
    """Another argument, or another thing that a function holds, is another call."""

    @dataclass
    class Box:
        content: object

    def holds(value: object) -> Callable[[], object]:
        def inner() -> object:
            return value

        return inner

    calls = [
        *((pow, (2, n)) for n in range(3)),
        (pow, (2.0, 1)),
        (abs, (2, 1)),
        *((functools.partial(pow, n), ()) for n in range(2)),
        *((holds(n), ()) for n in (1, "1")),
        *((pow, (Box(n),)) for n in (1, 2)),
        (pow, ({1, 2},)),
        (pow, (frozenset({1, 2}),)),
        (lambda: 1, ()),
        (lambda: 2, ()),
    ]
    assert len({call_digest(fn, args) for fn, args in calls}) == len(calls)
    assert code_digest(holds(1)) == code_digest(holds(2)) != code_digest(lambda: 1)
    assert code_digest(pow) == ""


# -- what is run again -----------------------------------------------------------------------------


def noted(path: Path) -> Counter[str]:
    """Count how often each call was made."""
    return Counter(path.read_text().split()) if path.exists() else Counter()


@pytest.mark.long
def test_results_are_kept_and_failures_are_not(tmp_path: Path) -> None:
    """Only what is new or failed is made again, in whatever order and number it is asked for."""
    log, bad = tmp_path / "log", tmp_path / "bad"

    def work(n: int) -> int:
        with open(log, "a") as file:
            file.write(f"{n}\n")
        if n == 2 and bad.exists():
            raise ValueError(n)
        return n * n

    bad.touch()
    kept = {"cache_id": "some/results", "cache_folder": tmp_path / "kept"}
    commands = scheduler_for("local").commands
    with LocalExecutor() as executor:
        found = executor.map(work, [0, 1, 2, 3], chunksize=2, **kept)
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(ValueError, match="2"):
            next(found)
        bad.unlink()
        until(lambda: noted(log)["3"] == 1)
        assert list(executor.map(work, [3, 2, 1, 0, 4], **kept)) == [9, 4, 1, 0, 16]
        assert noted(log) == {"0": 1, "1": 1, "2": 2, "3": 1, "4": 1}
        submissions = commands["submit"]
        assert list(executor.map(work, [4, 4], **kept)) == [16, 16]
        assert list(executor.map(work, [4, 4], buffersize=1, **kept)) == [16, 16]
        assert commands["submit"] == submissions + 1, "the same call twice is two calls"
        assert list(executor.map(work, [1], force=True, **kept)) == [1]
        assert noted(log)["1"] == 2
        assert list(executor.map(work, [0], **kept)) == [0]
        assert noted(log)["0"] == 2, "force forgets all that was kept"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["some%2Fresults"]


@pytest.mark.long
def test_another_version_of_the_function(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Results of a function that has changed since are used, with a warning."""
    versions: dict[int, Callable[[int], int]] = {}
    for number in (1, 2):
        scope: dict[str, Callable[[int], int]] = {"__name__": "__main__"}
        exec(f"def work(n):\n    return n + {number}", scope)
        versions[number] = scope["work"]
    with LocalExecutor() as executor, caplog.at_level(logging.WARNING):
        for number in (1, 1, 2):
            found = executor.map(versions[number], [1], cache_id="v", cache_folder=tmp_path)
            assert list(found) == [2]
    warnings = [record.message for record in caplog.records if "version" in record.message]
    assert warnings == [
        "the results of cache_id 'v' are those of another version of work; force=True makes all "
        "calls again"
    ]


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    """A bad name is refused; a result that is damaged is made again."""
    with LocalExecutor() as executor:
        for wrong in ("", ".", "x" * 200):
            with pytest.raises(ValueError, match="give text of 1 to 150 characters"):
                executor.map(abs, [1], cache_id=wrong, cache_folder=tmp_path)
        found = executor.map(abs, [iter(())], cache_id="i", cache_folder=tmp_path)
        assert list(executor.map(abs, [-3], cache_id="a", cache_folder=tmp_path)) == [3]
        (result,) = (tmp_path / "a" / "results").iterdir()
        result.write_bytes(result.read_bytes()[:20])
        assert list(executor.map(abs, [-3], cache_id="a", cache_folder=tmp_path)) == [3]
        with pytest.raises((PayloadError, TypeError)):
            next(found)


@pytest.mark.long
def test_a_pool_keeps_results_too(tmp_path: Path) -> None:
    """Results of a pool are those of an array, and the other way round."""
    log = tmp_path / "log"

    def work(n: int) -> int:
        with open(log, "a") as file:
            file.write(f"{n}\n")
        return n

    with ClusterExecutor("local") as executor:
        pool = executor.with_options(mode="pool")
        for each in (pool, executor, pool):
            found = each.map(work, range(3), cache_id="both", cache_folder=tmp_path)
            assert list(found) == [0, 1, 2]
    assert noted(log) == {"0": 1, "1": 1, "2": 1}


# -- kills -----------------------------------------------------------------------------------------


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the driver."""
    argv = [sys.executable, str(DRIVER), "local", str(folder), *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=folder)


def killed_after(seconds: float, folder: Path, *arguments: object) -> None:
    """Kill the driver after a time, unless it has ended."""
    with start(folder, *arguments) as driver:
        try:
            driver.wait(seconds)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(7 if ALL else 2))
@pytest.mark.timeout(300)
def test_killed_at_random(tmp_path: Path, seed: int) -> None:
    """Run until it is not killed, a map has each result, and no call was made twice."""
    calls, kills, longest = (100, 5, 6.0) if ALL else (30, 2, 1.5)
    choose = random.Random(seed)
    for _ in range(kills):
        killed_after(choose.uniform(0.2, longest), tmp_path, calls, 0.02)
    with start(tmp_path, calls, 0.02) as driver:
        assert driver.communicate(timeout=200)[0] == f"{sum(n * n for n in range(calls))}\n"
    assert noted(tmp_path / "log") == {str(n): 1 for n in range(calls)}


@pytest.mark.long
def test_two_at_once(tmp_path: Path) -> None:
    """Two programs that make the same map share the calls."""
    drivers = [start(tmp_path, 8, 0.3) for _ in range(2)]
    for driver in drivers:
        with driver:
            assert driver.communicate(timeout=60)[0] == f"{sum(n * n for n in range(8))}\n"
    assert noted(tmp_path / "log") == {str(n): 1 for n in range(8)}


@pytest.mark.long
def test_a_task_that_died_while_nobody_looked(tmp_path: Path) -> None:
    """What died for a program that was killed is made again by the next."""

    def job_ids() -> list[str]:
        journals = tmp_path.glob("kept/*/b*/run.*.json")
        found = [json.loads(journal.read_text())["job_id"] for journal in journals]
        return [job_id for job_id in found if job_id is not None]

    with start(tmp_path, 3, 1) as driver:
        until(lambda: len(job_ids()) == 1)
        driver.send_signal(signal.SIGKILL)
    scheduler_for("local").cancel(job_ids())
    with start(tmp_path, 3, 1) as driver:
        assert driver.communicate(timeout=60)[0] == "5\n"


@pytest.mark.long
def test_a_call_that_saved_itself_for_a_program_that_was_killed(tmp_path: Path) -> None:
    """It goes on where it was for the next program."""
    kept = {"cache_id": "saves", "cache_folder": tmp_path / "kept"}
    call = Counts(str(tmp_path))
    with LocalExecutor(time="0:15") as executor:
        found = executor.map(call, [100], **kept)
        until(lambda: list(tmp_path.glob("kept/*/results/*.resume")) != [])
        assert next(found) == (100, 3)
        assert list(tmp_path.glob("kept/*/results/*.resume")) == []
        assert list(executor.map(call, [100], **kept)) == [(100, 3)]
