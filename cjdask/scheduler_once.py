"""Submit on another machine once, however often the link breaks.

What submits a job there first makes a file that is not there yet, its claim, and leaves in it
what the scheduler answered. Whoever wants to know what became of a submission makes the same
file: if that can be done, nothing was submitted, and nothing ever will be; else the answer is in
it, or comes soon.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from cjdask.command import Command, Output
from cjdask.errors import ProtocolError, SubmitError
from cjdask.protocols.base import Protocol

__all__ = ["check_claimed", "claiming", "find_receipt"]

_TAKEN, _MISSING = 46, 47
_CLAIM = r"""
claim=$1; shift
command -v -- "$1" >/dev/null 2>&1 || exit 47
mkdir -p -- "${claim%/*}"
(set -C; : >"$claim") || { [ ! -e "$claim" ] || exit 46; exit 1; }
"$@" >"$claim.out" 2>"$claim.err"
code=$?
{
    echo "$code $(wc -c <"$claim.out")"
    cat "$claim.out" "$claim.err"
} >"$claim.new" && mv -f "$claim.new" "$claim"
cat "$claim.out"
cat "$claim.err" >&2
rm -f "$claim.out" "$claim.err"
exit $code
"""
_LOOK = r"""
mkdir -p -- "${1%/*}" && if (set -C; echo nobody >"$1") 2>/dev/null; then echo nobody; exit; fi
[ ! -s "$1" ] || { cat "$1"; exit; }
[ -e "$1" ] || { echo "$1 cannot be made" >&2; exit 1; }
echo "waiting $(($(date +%s) - $(stat -c %Y "$1")))"
"""
_PAUSE = 1.0


def claiming(command: Command, claim: str) -> Command:
    """Return the command that does the same, but not if the file ``claim`` is there."""
    argv = ("/bin/sh", "-c", _CLAIM, "sh", claim, *command.argv)
    return replace(command, argv=argv)


def check_claimed(output: Output, command: Command) -> None:
    """Check that a claiming command could do its work.

    Raises:
        SubmitError: the file was there: somebody has taken this submission for given up.
        ProtocolError: there is no such program.
    """
    if output.exit_code == _TAKEN:
        raise SubmitError("another process has found this submission given up", output)
    if output.exit_code == _MISSING:
        why = f"there is no program {command.argv[0]!r}"
        cause = FileNotFoundError(2, why)
        raise ProtocolError(f"cannot run on {output.host}: {command}: {why}") from cause


def find_receipt(
    protocol: Protocol, claim: str, longest: float, sleep: Callable[[float], object] = time.sleep
) -> Output | None:
    """Return what a claiming command answered, ``None`` where it never did nor will do anything.

    ``longest`` is how many seconds the command may have taken.

    Raises:
        TimeoutError: it was begun, and left no answer; what it did is not known.
        ProtocolError: the machine cannot be asked.
    """
    while True:
        command = Command.ask("/bin/sh", "-c", _LOOK, "sh", claim)
        found = protocol.run(command, 60)
        first, _, rest = found.raw_stdout.partition(b"\n")
        words = first.decode(errors="replace").split()
        if found.exit_code or not words:
            raise ProtocolError(
                f"{protocol.host} does not tell what became of a submission: {found.stderr.strip()}"
            )
        if words == ["nobody"]:
            return None
        if words[0] != "waiting":
            size = int(words[1])
            return Output((claim,), protocol.host, int(words[0]), rest[:size], rest[size:])
        if float(words[1]) > longest:
            raise TimeoutError
        sleep(_PAUSE)
