"""The same pipeline for doit: `doit` does what `make -j` does with the Makefile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from steps import NEEDS

DOIT_CONFIG = {"default_tasks": ["wait"], "verbosity": 2}


def task_submit() -> Iterator[dict[str, Any]]:
    """Submit the steps."""
    for step, needs in NEEDS.items():
        yield {
            "name": step,
            "actions": [f"{sys.executable} steps.py submit {step}"],
            "file_dep": ["steps.py", "pi.py", *(f"build/{need}.run" for need in needs)],
            "targets": [f"build/{step}.run"],
        }


def task_wait() -> Iterator[dict[str, Any]]:
    """Wait for them, when all are submitted."""
    for step in NEEDS:
        yield {
            "name": step,
            "actions": [f"{sys.executable} steps.py wait {step}"],
            "task_dep": ["submit"],
            "file_dep": [f"build/{step}.run"],
            "targets": [f"build/{step}.done"],
        }
