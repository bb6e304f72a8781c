"""Checks that a backend keeps to the transcripts that were recorded on its scheduler.

A site checks a backend of its own by a subclass, in a file of its own::

    from pathlib import Path
    from cjdask.testing import TranscriptChecks

    class TestOurBackend(TranscriptChecks):
        backend = "ours"
        folder = Path(__file__).parent / "transcripts"

``cjdask record`` writes such a folder; the form of the files is told by
`cjdask.testing.dialogues`. Each step is run in both directions: the backend must build the
recorded command, and its parser must read the recorded answer as noted. With
`cjdask.testing.plugin`, ``pytest --update-transcripts`` writes anew what the parsers make of
them; look at the difference before you commit it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from cjdask.backends import BatchBackend, get_backend
from cjdask.errors import SchedulerError
from cjdask.testing.dialogues import anonymous, fitted, missing, read, write

__all__ = ["TranscriptChecks"]

MUTATED = "xyzzy ?? mutated"
"""A line that no scheduler prints."""


class TranscriptChecks:
    """One backend, and one folder with its transcripts."""

    backend: ClassVar[str]
    """The name of the backend."""
    folder: ClassVar[Path]
    """The folder with the files ``*.txt``."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the checks of one transcript with each of them."""
        if "transcript" in metafunc.fixturenames:
            metafunc.parametrize("transcript", self.files(), ids=lambda path: path.stem)

    @classmethod
    def files(cls) -> list[Path]:
        """Return the transcripts."""
        return sorted(cls.folder.glob("*.txt"))

    @classmethod
    def known(cls) -> BatchBackend:
        """Return the backend as it is registered."""
        backend = get_backend(cls.backend)
        assert isinstance(backend, BatchBackend), "transcripts need a BatchBackend"
        return backend

    def test_commands(self, transcript: Path) -> None:
        """The backend builds the recorded commands."""
        backend = fitted(self.known(), transcript)
        for step in read(transcript)[1]:
            asked = self.known() if step.verb == "probe" else backend
            assert anonymous(step.build(asked)) == step.command

    def test_answers(self, transcript: Path, request: pytest.FixtureRequest) -> None:
        """The parser makes of the recorded answers what is noted."""
        backend = fitted(self.known(), transcript)
        head, steps = read(transcript)
        if request.config.getoption("--update-transcripts", default=False):
            steps = [replace(step, expected=step.made(backend)) for step in steps]
            write(transcript, head, steps)
        for step in steps:
            assert step.made(backend) == step.expected, step.command

    def test_every_line_is_accounted_for(self, transcript: Path) -> None:
        """A line of an answer that no rule knows is an error, never skipped and never a status."""
        backend = fitted(self.known(), transcript)
        for step in read(transcript)[1]:
            if step.verb == "submit" and step.stdout:  # a site may print what it likes beside it
                with pytest.raises(SchedulerError):
                    replace(step, stdout=[MUTATED]).parse(backend)
            for number in range(len(step.stdout) if step.verb in ("query", "ended") else 0):
                if step.stdout[number].strip():
                    lines = list(step.stdout)
                    lines[number] = MUTATED
                    with pytest.raises(SchedulerError):
                        replace(step, stdout=lines).parse(backend)

    def test_head(self, transcript: Path) -> None:
        """A transcript says which scheduler it is from, what it shows, how it is fitted."""
        names = [line.partition(": ")[0] for line in read(transcript)[0]]
        assert names[:2] == ["# scheduler", "# what"]
        assert names[2:] in ([], ["# fitted"], ["# probed"])

    def test_nothing_is_missing(self) -> None:
        """There are transcripts of submit, query and cancel, and of each final status."""
        assert not missing([step for path in self.files() for step in read(path)[1]])
