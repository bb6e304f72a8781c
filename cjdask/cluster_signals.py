"""Cancels the jobs of open clusters when the process is told to end.

Python runs its exit functions after an exception and SIGINT, but not after SIGTERM and SIGHUP.
Handlers for these are in place while a cluster is open, and only where there is a main thread
to set them and nobody ignores the signal (as ``nohup`` does).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["guard", "release"]

logger = logging.getLogger(__name__)

WITHIN = 20.0
"""Seconds that cancelling may take before the process ends nevertheless."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_ends: list[Callable[[], object]] = []
_previous: dict[int, Any] = {}


def guard(end: Callable[[], object]) -> None:
    """Have ``end`` called when a signal tells the process to end.

    It does nothing outside the main thread, where no handler can be set.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _ends.append(end)
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if number not in _previous and handler not in (None, signal.SIG_IGN):
            _previous[number] = handler
            signal.signal(number, _handle)


def release(end: Callable[[], object]) -> None:
    """Forget ``end``; with the last one the handlers that were there before come back."""
    if end in _ends:
        _ends.remove(end)
    if not _ends and threading.current_thread() is threading.main_thread():
        for number in list(_previous):
            _restore(number)


def _restore(number: int) -> Any:
    previous = _previous.pop(number)
    if signal.getsignal(number) is _handle:  # else somebody else has set another since
        signal.signal(number, previous)
    return previous


def _handle(number: int, frame: Any) -> None:
    """End what is guarded, then do what would have been done without us."""
    # In a thread, since this one may hold a lock that the cancelling needs.
    thread = threading.Thread(target=_end_all, name="cjdask-signal", daemon=True)
    thread.start()
    thread.join(WITHIN)
    previous = _restore(number) if number in _previous else signal.SIG_DFL
    if callable(previous):
        previous(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _end_all() -> None:
    for end in list(_ends):
        try:
            end()
        except Exception:
            logger.exception("jobs could not be cancelled")
