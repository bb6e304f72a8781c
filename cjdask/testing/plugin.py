"""A plugin for pytest that adds ``--update-transcripts``.

Name it in a ``conftest.py`` (``pytest_plugins = ["cjdask.testing.plugin"]``) or on the command
line: ``pytest -p cjdask.testing.plugin --update-transcripts``.
"""

from __future__ import annotations

import pytest

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--update-transcripts",
        action="store_true",
        help="rewrite what the parsers make of the transcripts",
    )
