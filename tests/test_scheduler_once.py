"""Submissions that leave their answer: a claim, a receipt, and a fence."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cjdask.backends.local import LocalBackend
from cjdask.command import Command, Output
from cjdask.errors import ProtocolError, SchedulerUnavailableError, SubmitError
from cjdask.protocols.base import as_command
from cjdask.protocols.local import LocalProtocol
from cjdask.scheduler_embedded import EmbeddedScheduler
from cjdask.scheduler_once import check_claimed, claiming, find_receipt

HERE = LocalProtocol()


def submit(claim: Path, script: str) -> int:
    """Run a script as a submission; return its exit code."""
    command = Command(("/bin/sh", "-c", script))
    output = HERE.run(claiming(command, str(claim)))
    check_claimed(output, command)
    return output.exit_code


def test_a_receipt(tmp_path: Path) -> None:
    """What a submission answered is found afterwards, as it was; it is carried out once."""
    claim = tmp_path / "a folder" / "x.claim"
    script = f"echo ran >>'{tmp_path}/ran'; printf 'job 7\\n\\nx'; echo err >&2; exit 3"
    assert submit(claim, script) == 3
    for _ in range(2):
        found = find_receipt(HERE, str(claim), 0)
        assert found is not None
        assert (found.exit_code, found.raw_stdout, found.raw_stderr) == (3, b"job 7\n\nx", b"err\n")
    with pytest.raises(SubmitError, match="given up"):
        submit(claim, script)
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert [path.name for path in claim.parent.iterdir()] == ["x.claim"]


def test_a_fence(tmp_path: Path) -> None:
    """A submission that somebody has looked for, and not found, is never carried out."""
    claim = tmp_path / "folder" / "x.claim"
    assert find_receipt(HERE, str(claim), 0) is None
    assert find_receipt(HERE, str(claim), 0) is None
    with pytest.raises(SubmitError, match="given up"):
        submit(claim, f"touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


def test_one_that_is_under_way(tmp_path: Path) -> None:
    """A submission that runs is waited for; one that died has an answer that is not known."""
    claim = tmp_path / "x.claim"
    thread = threading.Thread(target=submit, args=(claim, "sleep 0.5; echo 8"))
    thread.start()
    while not claim.exists():
        time.sleep(0.01)
    found = find_receipt(HERE, str(claim), 10, sleep=lambda _: time.sleep(0.1))
    thread.join()
    assert found is not None
    assert found.stdout == "8\n"
    (tmp_path / "y.claim").touch()
    time.sleep(1.1)
    with pytest.raises(TimeoutError):
        find_receipt(HERE, str(tmp_path / "y.claim"), 0)


def test_many_at_once(tmp_path: Path) -> None:
    """Of a submission and those who look for it at the same time one has its way."""
    for number in range(20):
        claim = tmp_path / f"{number}.claim"
        refused: list[bool] = []

        def try_it(claim: Path = claim, refused: list[bool] = refused) -> None:
            try:
                submit(claim, "echo 1")
            except SubmitError:
                refused.append(True)

        thread = threading.Thread(target=try_it)
        thread.start()
        found = find_receipt(HERE, str(claim), 10, sleep=lambda _: time.sleep(0.01))
        thread.join()
        assert (found is None) == bool(refused)


def test_what_cannot_be_done(tmp_path: Path) -> None:
    """A program that is not there, and a folder that cannot be made, are errors."""
    command = Command(("no-such-program",))
    with pytest.raises(ProtocolError, match="no-such-program"):
        check_claimed(HERE.run(claiming(command, str(tmp_path / "c"))), command)
    assert not (tmp_path / "c").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ProtocolError, match="what became"):
        find_receipt(HERE, str(tmp_path / "file" / "c"), 0)


class Elsewhere(LocalProtocol):
    """This machine as another one, with a home folder of its own."""

    host = "elsewhere"
    home = ""
    path = "/usr/bin:/bin"

    def run(self, command: Command | Sequence[str], timeout: float | None = None) -> Output:
        command = as_command(command)
        env = {"PATH": self.path, "HOME": self.home}
        return super().run(replace(command, env={**command.env, **env}), timeout)

    def expand(self, path: str) -> str:
        return path.replace("~", self.home)


def test_the_embedded_scheduler_is_copied(tmp_path: Path) -> None:
    """The file of the embedded scheduler is copied once, and a Python for it is found."""
    there = Elsewhere()
    there.home = str(tmp_path)
    for _ in range(2):
        scheduler = EmbeddedScheduler(LocalBackend(), there)
        assert scheduler.query(["1"]) == []
    (file,) = (tmp_path / ".local" / "share" / "cjdask").iterdir()
    assert file.name in " ".join(scheduler.backend.query_command(["1"]).argv)  # type: ignore[attr-defined]
    assert (tmp_path / ".local" / "state" / "cjdask").is_dir()
    there.path = str(tmp_path)
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # as one that is too old
    (tmp_path / "python3").chmod(0o755)
    with pytest.raises(SchedulerUnavailableError, match=r"elsewhere has no Python of version 3\.8"):
        _ = EmbeddedScheduler(LocalBackend(), there).backend
