"""Checks that a site runs on its own scheduler and on a backend of its own, with pytest.

- `SchedulerConformance`: the life of a job on a real scheduler, in every way that it can go.
- `TranscriptChecks`: a backend and the folder of transcripts that were recorded for it.
- `until`: wait for a condition.

They are loaded when they are first used: `cjdask.testing.dialogues`, which reads and writes
transcripts, needs no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cjdask.testing.conformance import SchedulerConformance as SchedulerConformance
    from cjdask.testing.conformance import until as until
    from cjdask.testing.transcripts import TranscriptChecks as TranscriptChecks

_MODULE_OF = {
    "SchedulerConformance": "cjdask.testing.conformance",
    "TranscriptChecks": "cjdask.testing.transcripts",
    "until": "cjdask.testing.conformance",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cjdask.testing' has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(_MODULE_OF[name])  # so that a failure shows the difference
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
