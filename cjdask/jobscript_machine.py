"""What describes the machine that jobs go to, whatever submits them."""

from __future__ import annotations

import os
from typing import Any

from cjdask.jobscript import JobScript
from cjdask.jobscript_defaults import OF_A_MACHINE
from cjdask.jobscript_settings import Settings, read_settings_file, user_settings_path

__all__ = ["machine_defaults", "users_settings"]


def users_settings() -> Settings:
    """Read the user's own file of settings; without a file nothing is set.

    Raises:
        SettingsError: it is wrong.
    """
    path = user_settings_path()
    if not os.path.exists(path):
        return Settings(path)
    return read_settings_file(path, JobScript._values(), JobScript._fixed())


def machine_defaults(backend: str | None = None) -> dict[str, Any]:
    """Return the resources that all jobs ask for, and ``backend``, ``remote``, ``ssh`` if set.

    They come from the user's file of settings; what the program has set for all job scripts
    goes before. Where either names another ``backend`` than is asked for it is left out, since
    its options are those of another scheduler.

    Raises:
        SettingsError: the user's file is wrong.
    """
    users, given = users_settings(), JobScript.given()
    named = {key: users.attributes[key] for key in OF_A_MACHINE if key in users.attributes}
    backend = backend or given.get("backend")
    found: dict[str, Any] = {}
    for source in ({**users.resources, **named}, given):
        if backend in (None, source.get("backend", backend)):
            found |= source
    return found
