"""Futures among the arguments of a call: it is made when they are there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from cjdask.executor_calls import ClusterFuture

__all__ = ["after", "futures_in"]


def futures_in(value: Any) -> list[Future[Any]]:
    """Return the futures in a value, however deep in lists, tuples, sets and dictionaries.

    >>> first = Future()
    >>> futures_in([1, {"a": (first,)}]) == [first]
    True
    """
    found: dict[int, Future[Any]] = {}
    seen: set[int] = set()
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, Future):
            found[id(each)] = each
        elif type(each) in (list, tuple, set, dict) and id(each) not in seen:
            seen.add(id(each))
            todo += [*each, *each.values()] if type(each) is dict else each
    return list(found.values())


def _filled(value: Any) -> Any:
    """Return a value with results instead of futures; what has none stays the same object."""
    if isinstance(value, Future):
        return value.result()
    if type(value) is dict and futures_in(value):
        return {_filled(key): _filled(each) for key, each in value.items()}
    if type(value) in (list, tuple, set) and futures_in(value):
        return type(value)(_filled(each) for each in value)
    return value


def after(
    waited: Sequence[Future[Any]],
    call: tuple[Sequence[Any], dict[str, Any]],
    send: Callable[[tuple[Sequence[Any], dict[str, Any]]], None],
    future: ClusterFuture,
) -> None:
    """Call ``send`` with the arguments once all futures in them are there.

    If one of them fails, so does ``future``, with the same exception; if one is cancelled,
    with a `CancelledError`.
    """
    lock = threading.Lock()
    left = len(waited)

    def done(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        for each in waited:
            if each.cancelled():
                future.settle(error=CancelledError("a call that this one needs was cancelled"))
                return
            if (error := each.exception()) is not None:
                future.settle(error=error)
                return
        if not future.done():
            try:
                send(_filled(call))
            except Exception as error:
                future.settle(error=error)

    for each in waited:
        each.add_done_callback(done)
