"""What is said to the shell of another machine, tried with the shells that there are here."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjdask.command import Command
from cjdask.protocols.shell import Unframer, command_script, read_ending, shell_line

SHELLS = [name for name in ("sh", "bash", "dash", "tcsh", "zsh", "fish") if shutil.which(name)]
TOKEN = "0123456789abcdef"


def run(line: str, shell: str, data: bytes = b"") -> tuple[bytes, bytes]:
    """Run a line as sshd would, with a login shell; return both outputs."""
    done = subprocess.run([shell, "-c", line], input=data, capture_output=True, timeout=20)
    return done.stdout, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell(shell: str) -> None:
    """A command runs in the same way whatever the login shell is, also one that is no sh."""
    words = ("printf", "%s|", "a!b", "$HOME `x` \\ '\"", "two\nlines\n", "*", "~", "ü")
    line = shell_line(command_script(Command(words, env={"X": "!\n"}), TOKEN, 5, {"Y": "'"}))
    stdout, stderr = run(line, shell)
    assert Unframer(TOKEN)(stdout) == "|".join((*words[2:], "")).encode()
    ending = read_ending(stderr, TOKEN)
    assert ending is not None
    assert (ending.exit_code, ending.stderr) == (0, b"")


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
def test_any_words(words: list[str]) -> None:
    """Words of any characters arrive as they are."""
    line = shell_line(command_script(Command(("printf", "%s\n", *words)), TOKEN, None, {}))
    stdout, _ = run(line, "bash")
    assert Unframer(TOKEN)(stdout) == "".join(f"{w}\n" for w in words or [""]).encode()


def test_what_cannot_be_said() -> None:
    """A NUL character and a command longer than any are refused."""
    with pytest.raises(ValueError, match="NUL"):
        shell_line("a\0b")
    with pytest.raises(ValueError, match="too long"):
        shell_line("x" * 200_000)
    with pytest.raises(ValueError, match="A B"):
        command_script(Command(("x",), env={"A B": "1"}), TOKEN, None, {})


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_frame(size: int) -> None:
    """What comes before the frame is dropped, in pieces of any size; what is behind is kept."""
    unframe = Unframer(TOKEN)
    data = f"welcome\n{TOKEN}x\n\n{TOKEN}\nhere\n{TOKEN}\n".encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert b"".join(map(unframe, pieces)) == f"here\n{TOKEN}\n".encode()


@pytest.mark.parametrize(
    ("last", "code"),
    [("=0", 0), ("=137", 137), ("Killed\n=137", -9), ("=141", -13), ("=265", -9), ("=255", 255)],
)
def test_endings(last: str, code: int) -> None:
    """An exit code is told from a signal by what the shell has said."""
    ending = read_ending(f"rc noise\n{TOKEN}\noops\n{TOKEN} {last}\n".encode(), TOKEN)
    assert ending is not None
    assert (ending.exit_code, ending.stderr) == (code, b"oops")


def test_no_ending() -> None:
    """Output without an end is that of a link that broke, whatever it looks like."""
    for cut in (b"", b"noise", f"\n{TOKEN}\nerror".encode(), b"=0\n"):
        assert read_ending(cut, TOKEN) is None
