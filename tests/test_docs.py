"""What the documentation says is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_schedulers_is_up_to_date() -> None:
    """docs/schedulers.md is what docs/make_tables.py draws from the backends as they are."""
    drawn = runpy.run_path(str(DOCS / "make_tables.py"))["page"]()
    assert (DOCS / "schedulers.md").read_text(encoding="utf-8") == drawn


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """A page links to files that are there."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS / link).exists()] == []
