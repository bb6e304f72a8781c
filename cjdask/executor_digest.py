"""Tell calls apart by what they are, the same in every process."""

from __future__ import annotations

import hashlib
import io
import types
from functools import partial
from typing import Any

import cloudpickle

__all__ = ["call_digest", "code_digest"]

LENGTH = 32
"""Hexadecimal digits of a digest."""


def call_digest(fn: Any, args: Any) -> str:
    """Return what tells a call from others: the function by its name, what it holds, the arguments.

    The code of a function is no part of it, unless it is a lambda. Equal values have the same
    digest whatever process made them: sets in any order, texts that are one object or two.
    """
    return _digest((fn, args), frozenset())


def _digest(value: Any, within: frozenset[int]) -> str:
    for fast in (True, False):
        target = io.BytesIO()
        pickler = _Pickler(target, within)
        pickler.fast = fast  # without a memory of objects, so that only values count
        try:
            pickler.dump(value)
        except (ValueError, RecursionError):
            if not fast:
                raise
            continue  # it holds itself, which only a memory can tell
        break
    return hashlib.sha256(target.getvalue()).hexdigest()[:LENGTH]


class _Pickler(cloudpickle.Pickler):
    """Replaces what is pickled otherwise in another process."""

    def __init__(self, target: io.BytesIO, within: frozenset[int]) -> None:
        super().__init__(target, 5)
        self._within = within

    def persistent_id(self, value: Any) -> Any:
        if type(value) in (set, frozenset):
            return type(value).__name__, sorted(_digest(each, self._within) for each in value)
        if isinstance(value, type):
            return "class", value.__module__, value.__qualname__
        if isinstance(value, types.FunctionType):
            return "function", *_function(value, self._within)
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        return None


def _function(fn: types.FunctionType, within: frozenset[int]) -> tuple[str, ...]:
    name = (fn.__module__ or "", fn.__qualname__)
    if id(fn) in within:
        return name
    cells = [_content(cell) for cell in fn.__closure__ or ()]
    held = _digest((fn.__defaults__, fn.__kwdefaults__, cells), within | {id(fn)})
    code = _code(fn.__code__) if fn.__name__ == "<lambda>" else ""
    return (*name, held, code)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has none yet
        return "empty"


def code_digest(fn: Any) -> str:
    """Return what tells versions of a function's own code apart, ``""`` where it has none."""
    while isinstance(fn, partial):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    if not isinstance(fn, types.FunctionType):
        fn = getattr(type(fn), "__call__")  # noqa: B004, B009 - that of a callable object
    code = getattr(fn, "__code__", None)
    return _code(code) if isinstance(code, types.CodeType) else ""


def _code(code: types.CodeType) -> str:
    seen = hashlib.sha256(code.co_code)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            text = _code(const)
        elif isinstance(const, frozenset):
            text = repr(sorted(map(repr, const)))
        else:
            text = repr(const)
        seen.update(text.encode("utf-8", "surrogatepass"))
    seen.update(repr((code.co_names, code.co_varnames)).encode())
    return seen.hexdigest()[:LENGTH]
