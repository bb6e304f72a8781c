"""Run a prologue or epilogue on this machine."""

from __future__ import annotations

import os
import shlex
import tempfile

from cjdask.command import Command, Output
from cjdask.errors import ScriptError
from cjdask.protocols.local import LocalProtocol

__all__ = ["check_script", "interpreter", "run_script"]


def interpreter(text: str) -> list[str]:
    """Return the program and arguments of the ``#!`` line of a rendered script.

    >>> interpreter("#!/usr/bin/env bash\\ntrue\\n")
    ['/usr/bin/env', 'bash']
    """
    first = text.partition("\n")[0]
    return (shlex.split(first[2:]) if first.startswith("#!") else []) or ["/bin/sh"]


def run_script(what: str, text: str, folder: str) -> None:
    """Run a rendered script in a folder of this machine to its end.

    ``what`` is it in messages: "the prologue of job 'x'".

    Raises:
        ScriptError: it failed; what it printed is in the message.
        ProtocolError: its interpreter could not be started.
    """
    handle, path = tempfile.mkstemp(prefix="cjdask-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        check_script(what, LocalProtocol().run(Command((*interpreter(text), path), cwd=folder)))
    finally:
        os.unlink(path)


def check_script(what: str, output: Output) -> None:
    """Raise a `ScriptError` with the output of a script that failed."""
    if output.exit_code != 0:
        raise ScriptError(f"{what} failed", output)
