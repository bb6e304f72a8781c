"""What the jobs compute: pi, from how many random points of a square are in a circle."""

from __future__ import annotations

import random
import sys
from pathlib import Path

POINTS = 100_000


def sample(seed: str) -> None:
    """Print how many points were in the circle."""
    chance = random.Random(seed)
    print(sum(chance.random() ** 2 + chance.random() ** 2 < 1 for _ in range(POINTS)))


def mean(*files: str) -> None:
    """Print what follows from all samples."""
    hits = [int(Path(file).read_text()) for file in files]
    print(f"pi is about {4 * sum(hits) / (POINTS * len(hits)):.3f}, by {len(hits)} samples")


if __name__ == "__main__":
    {"sample": sample, "mean": mean}[sys.argv[1]](*sys.argv[2:])
