"""Run the epilogue of a journalled run exactly once, whichever process learns of the end."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from cjdask.command import Output
from cjdask.errors import ProtocolError
from cjdask.journal import JournalFile
from cjdask.run_script import check_script, interpreter

__all__ = ["run_once"]

_KEEPER = (
    'cj_base=$1; shift; "$@" </dev/null >"$cj_base.out" 2>&1; '
    'echo $? >"$cj_base.new" && mv -f "$cj_base.new" "$cj_base.done"'
)
"""Runs the script and notes its exit code. Its standard input is the lock, which it so holds."""


def run_once(
    file: JournalFile, tag: str, what: str, text: str, folder: str, again: bool = False
) -> None:
    """Run a script unless it was run for that tag before; wait for one that is under way.

    With ``again`` it is run also if it was before. It is a process of its own that goes on, and
    keeps others from starting, if this one is killed. Its failure is told by the first process
    that sees its end.

    Raises:
        ScriptError: it failed; what it printed is in the message.
        ProtocolError, JournalError: it could not be started.
    """
    base = f"{file.path}.epilogue.{tag}"
    with file.lock("once") as lock:
        if os.path.exists(f"{base}.told") and not again:
            return
        if again or not os.path.exists(f"{base}.done"):
            _run(base, text, folder, lock)
        try:
            with open(f"{base}.done", encoding="ascii") as done:
                code = int(done.read())
            with open(f"{base}.out", "rb") as out:
                output = Output((*interpreter(text), f"{base}.sh"), "localhost", code, out.read())
            os.replace(f"{base}.done", f"{base}.told")
        except (OSError, ValueError) as error:
            raise ProtocolError(f"{what} left no exit code: {error}") from error
        if code == 0:
            for ending in ("sh", "out"):
                with suppress(OSError):
                    os.unlink(f"{base}.{ending}")
    check_script(what, output)


def _run(base: str, text: str, folder: str, lock: int) -> None:
    try:
        for name, content in ((f"{base}.sh", text), (f"{base}.out", "")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(name, flags, 0o600), "w", encoding="utf-8", newline="") as file:
                file.write(content)
        argv = ["/bin/sh", "-c", _KEEPER, "sh", base, *interpreter(text), f"{base}.sh"]
        null = subprocess.DEVNULL  # who reads our output is not to wait for the script
        process = subprocess.Popen(
            argv, stdin=lock, stdout=null, stderr=null, cwd=folder, start_new_session=True
        )
    except OSError as error:
        raise ProtocolError(f"the epilogue cannot be run in {folder}: {error}") from error
    process.wait()
