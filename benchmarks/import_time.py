"""Time ``import cjdask`` against ``import distributed``, in pairs of fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import click


def seconds(code: str) -> float:
    """Return how long a fresh interpreter takes for some code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


@click.command()
@click.option("--pairs", default=10, show_default=True, help="How many pairs are timed.")
def main(pairs: int) -> None:
    """Print the median time of each import and the median of their ratios."""
    rows = []
    for _ in range(pairs + 1):  # the first pair warms the file cache and is dropped
        empty, ours, theirs = (
            seconds("pass"),
            seconds("import cjdask"),
            seconds("import distributed"),
        )
        rows.append((max(ours - empty, 0.0), theirs - empty))
    rows = rows[1:]
    ours, theirs = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(a / b for a, b in rows)
    print(f"import cjdask       {ours * 1000:8.1f} ms (above an empty interpreter)")
    print(f"import distributed  {theirs * 1000:8.1f} ms")
    print(f"ratio               {ratio:8.3f}")


if __name__ == "__main__":
    main()
