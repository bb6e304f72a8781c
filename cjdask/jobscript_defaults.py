"""The defaults of all jobs: class attributes of `JobScript` that a session or a file may set."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["OF_A_MACHINE", "Defaults", "folder_of"]

OF_A_MACHINE = frozenset({"backend", "remote", "ssh"})
"""The attributes that name a machine and its scheduler."""


def folder_of(path: str | os.PathLike[str]) -> str:
    """Return a folder's path without a slash at its end; the root stays the root."""
    text = os.fspath(path)
    return text.rstrip("/") or ("/" if text else ".")


class Defaults(type):
    """Checks class attributes that are the defaults of all jobs, and knows which were set."""

    backend: str
    resources: dict[str, Any]
    _pristine: dict[str, Any]
    """Those that the class was made with."""
    _set: frozenset[str] = frozenset()
    """The names of those that were set since."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        made = {key: value for key, value in namespace.items() if not key.startswith("_")}
        cls._pristine = made | (
            {"resources": dict(made["resources"])} if "resources" in made else {}
        )

    def __setattr__(cls, name: str, value: Any) -> None:
        if not name.startswith("_"):
            cls._set = cls._set | {name}
        super().__setattr__(name, folder_of(value) if name in ("rootdir", "workdir") else value)

    def reset(cls) -> None:
        """Put all attributes back to what they were when the class was made."""
        for name in [name for name in vars(cls) if not name.startswith("_")]:
            if name not in cls._pristine:
                delattr(cls, name)
        for name, value in cls._pristine.items():
            if name != "resources" and vars(cls)[name] is not value:
                setattr(cls, name, value)
        if "resources" in cls._pristine:
            cls.resources = dict(cls._pristine["resources"])
        cls._set = frozenset()

    def given(cls) -> dict[str, Any]:
        """Return what all jobs ask for: resources, and those of `OF_A_MACHINE` that were set.

        It describes a machine for whatever submits jobs there.
        """
        return {**cls.resources, **{key: getattr(cls, key) for key in OF_A_MACHINE & cls._set}}
