"""What is said to the shell of another machine: the one place where words are quoted.

sshd gives a command line to the user's login shell, which may be any: bash, csh, fish. What is
sent is of a form that all of them read in the same way, and runs in ``/bin/sh`` there. All that
comes back is framed by a token, which tells it from what the user's start-up files print, and
tells whether the command came to its end.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from cjdask.command import Command

__all__ = ["Ending", "Unframer", "command_script", "read_ending", "shell_line"]

LONGEST_LINE = 120_000
"""Linux takes no single argument of more than 128 KiB."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _@%+=:,./-")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_FRAME = r"""
printf '\n%s\n' {token}
printf '\n%s\n' {token} >&2
exec 3>&1 4>&2
[ -z "${{BASH_VERSION-}}" ] || set +o posix
cj_end() {{ printf '\n%s %s\n' {token} "$*" >&4; exit 0; }}
{prepare}
set -- {words}
command -v -- "$1" >/dev/null 2>&1 || cj_end missing
{{ (exec {limit}"$@" >&3 2>&4 3>&- 4>&-); echo "=$?"; }} 2>&1 | {{
    cj_said=$(cat)
    printf '\n%s %s\n' {token} "$cj_said" >&4
}}
"""
"""The inner shell says a word of its own, which it never does else, about a child that a signal
ended: so exit code 137 is told from signal 9."""

_SILENT_SIGNALS = (2, 13, 15)
"""Those of which a shell says nothing."""


def shell_line(script: str) -> str:
    """Return the line that makes any login shell run a script in ``/bin/sh``.

    >>> print(shell_line("echo 'a b'"))
    exec /bin/sh -c 'eval "$(printf %b "echo \\0047a b\\0047")"'

    Raises:
        ValueError: it has a NUL character, or is longer than any system takes.
    """
    data = script.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("a command has a NUL character, which no argument can have")
    escaped = "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in data)
    if len(escaped) > LONGEST_LINE:
        raise ValueError(f"a command is too long ({len(data)} bytes); give it by its input")
    return f"""exec /bin/sh -c 'eval "$(printf %b "{escaped}")"'"""


def command_script(
    command: Command, token: str, timeout: float | None, login: Mapping[str, str]
) -> str:
    """Return the script that runs a command, framed by a token.

    ``login`` is what a login shell has in its environment beyond that of sshd.
    """
    lines = [f"export {name}={shlex.quote(value)}" for name, value in login.items()]
    for start in command.drop:
        # Also "names" in values of several lines are found, which does no harm.
        found = f"""for cj in $(env | sed -n 's/^\\({start}[A-Za-z0-9_]*\\)=.*/\\1/p')"""
        lines.append(f'{found}; do unset "$cj"; done')
    for name, value in command.env.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        lines.append(f"export {name}={shlex.quote(value)}")
    if command.cwd is not None:
        cwd = shlex.quote(command.cwd)
        lines.append(f"{{ mkdir -p -- {cwd} && CDPATH= cd -- {cwd}; }} >/dev/null || cj_end folder")
    if command.stdin_path is not None:
        path = shlex.quote(command.stdin_path)
        lines.append(f'[ -r {path} ] || {{ printf "%s\\n" {path} >&2; cj_end input; }}')
        lines.append(f"exec <{path}")
    limit = ""
    if timeout is not None:
        # GNU and busybox both have it; it ends all that the command has started.
        limit = f"${{cj_limit:+timeout -k 5 {max(1, round(timeout + 0.5))}}} "
        lines.append("cj_limit=$(command -v timeout)")
    return _FRAME.format(
        token=token, prepare="\n".join(lines), words=shlex.join(command.argv), limit=limit
    )


@dataclass(frozen=True)
class Ending:
    """How a framed command ended, and what it wrote to standard error.

    ``exit_code`` is ``None`` where it was not started; ``problem`` is why: ``missing``,
    ``folder`` or ``input``.
    """

    exit_code: int | None
    problem: str
    stderr: bytes


def read_ending(stderr: bytes, token: str) -> Ending | None:
    """Read the end of a framed command from all of its standard error.

    ``None`` says that there is none: the link broke before.
    """
    mark = f"\n{token}".encode()
    _, begun, rest = stderr.partition(mark + b"\n")
    said, ended, last = rest.rpartition(mark + b" ")
    if not begun or not ended:
        return None
    word, is_code, code = last.decode("utf-8", "replace").rpartition("=")
    if not is_code:
        return Ending(None, code.strip(), said)
    number = int(code)
    signal = number - 256 if number > 256 else number - 128
    if number > 256 or (number > 128 and (word.strip() or signal in _SILENT_SIGNALS)):
        return Ending(-signal, "", said)
    return Ending(number, "", said)


class Unframer:
    """Passes on what comes behind the first token of standard output, in pieces of any size."""

    def __init__(self, token: str) -> None:
        self._mark = f"\n{token}\n".encode()
        self._before: bytes | None = b""

    def __call__(self, data: bytes) -> bytes:
        """Return the part of the next piece that is the command's own."""
        if self._before is None:
            return data
        self._before += data
        _, found, rest = self._before.partition(self._mark)
        self._before = None if found else self._before[-64_000:]
        return rest
