"""The transcripts of each backend of this package, replayed.

Those of a backend are in the folder ``transcripts/NAME``; `cjdask.testing.dialogues` tells
their form. ``pytest --update-transcripts`` writes anew what the parsers make of them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from cjdask.backends import BatchBackend, get_backend
from cjdask.testing import TranscriptChecks
from cjdask.testing.dialogues import read

FOLDER = Path(__file__).parent / "transcripts"
BACKENDS = [
    entry.name
    for entry in entry_points(group="cjdask.backends")
    if entry.value.startswith("cjdask.") and isinstance(get_backend(entry.name), BatchBackend)
]

for _name in BACKENDS:
    globals()[f"Test_{_name}"] = type(
        f"Test_{_name}", (TranscriptChecks,), {"backend": _name, "folder": FOLDER / _name}
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_jobs_are_found_by_their_tags(name: str) -> None:
    """Every command that looks for a tag is in a transcript, with an answer and with none."""
    steps = [s for path in sorted((FOLDER / name).glob("find*.txt")) for s in read(path)[1]]
    answers = [step.expected[0].startswith('-> "') for step in steps]
    assert {True, False} <= set(answers)
    backend = get_backend(name)
    assert isinstance(backend, BatchBackend)
    count = len(backend.find_commands("cjdask-x", 0.0))
    assert {step.value.partition(",")[2] for step in steps} == set(map(str, range(count)))


def test_every_transcript_has_a_backend() -> None:
    """No folder of transcripts is left over from a backend that is gone."""
    assert {path.parent.name for path in FOLDER.glob("*/*.txt")} <= set(BACKENDS)
