"""Odd cases of executors: seeds, large arguments, functions and classes from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest

from cjdask import ClusterExecutor, JoblibBackend, LocalExecutor
from tests.executor_help import embedded


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use an embedded scheduler of its own."""
    with embedded(tmp_path_factory.mktemp("odd")) as path:
        yield path


SEEDED = """
import random, sys
from cjdask import ClusterExecutor, JoblibBackend, LocalExecutor

random.seed(0)
offset = int(sys.argv[1])
with LocalExecutor() as executor:
    print(list(executor.map(lambda n: n + offset, range(5))))
assert random.random() == random.Random(0).random(), "the generator of the program was used"
"""


@pytest.mark.long
def test_the_same_seed_in_two_programs(tmp_path: Path) -> None:
    """Programs in one folder with the same seed do not get in each other's way."""
    script = tmp_path / "seeded.py"
    script.write_text(SEEDED)
    argv = [sys.executable, str(script)]
    drivers = [
        subprocess.Popen([*argv, str(offset)], stdout=subprocess.PIPE, text=True)
        for offset in (0, 100)
    ]
    found = [driver.communicate(timeout=60)[0] for driver in drivers]
    assert found == ["[0, 1, 2, 3, 4]\n", "[100, 101, 102, 103, 104]\n"]


NOTEBOOK = """
import __main__
from cjdask import ClusterExecutor

CELLS = [
    "class Point:\\n"
    "    def __init__(self, x):\\n        self.x = x\\n"
    "    def __eq__(self, other):\\n"
    "        return isinstance(other, Point) and self.x == other.x\\n",
    "SCALE = 3\\n"
    "def scaled(point):\\n    return Point(point.x * SCALE)\\n",
]
for number, cell in enumerate(CELLS):
    exec(compile(cell, f"<cell {number}>", "exec"), __main__.__dict__)

def closure(offset):
    def inner(point):
        return Point(point.x + offset)
    return inner

for mode in ("array", "pool"):
    with ClusterExecutor("local", mode=mode) as executor:
        found = [executor.submit(each, Point(1)) for each in (
            scaled, closure(5), lambda point: Point(point.x - 1), Point(2).__eq__,
        )]
        assert [future.result() for future in found] == [Point(3), Point(6), Point(0), False]
        assert executor.submit(Point, 7).result() == Point(7)
print("all came back")
"""


@pytest.mark.long
def test_functions_and_classes_of_a_notebook(tmp_path: Path) -> None:
    """What a cell or a script defines travels by value, and comes back as the same class."""
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("all came back\n", "")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["array", "pool"])
def test_joblib(mode: str) -> None:
    """Joblib makes its calls on an executor, raises what they raise, and cancels the others."""
    with ClusterExecutor("local", mode=mode, max_workers=4) as executor:
        with joblib.parallel_config(backend=JoblibBackend(executor)):
            parallel = joblib.Parallel(batch_size=3)
            assert parallel(joblib.delayed(pow)(n, 2) for n in range(9)) == [
                n * n for n in range(9)
            ]
            with pytest.raises(ZeroDivisionError):
                parallel(joblib.delayed(divmod)(1, n) for n in range(3))
        assert executor.submit(pow, 2, 3).result() == 8


@pytest.mark.long
def test_a_large_argument() -> None:
    """An argument of 200 MB travels, once for all calls of a task, and so does such a result."""
    data = os.urandom(1 << 20) * 200
    with LocalExecutor() as executor:
        future = executor.submit(lambda given: (len(given), given[-5:]), data)
        assert future.result() == (200 << 20, data[-5:])
        assert len(executor.submit(bytes, 50 << 20).result()) == 50 << 20
