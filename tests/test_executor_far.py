"""The folder of calls on another machine, over a link that breaks when told to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cjdask import executor_far
from cjdask.command import Command, Output
from cjdask.errors import LinkLostError, PayloadError, ProtocolError
from cjdask.executor_far import FarFolder
from cjdask.protocols.local import LocalProtocol


class Elsewhere(LocalProtocol):
    """Another machine, whose home is a folder of this one."""

    host = "elsewhere"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.commands = 0
        self.down = False
        self.cut_answer = False

    def run(self, command: Command, timeout: float | None = None) -> Output:  # type: ignore[override]
        if self.down:
            raise ProtocolError("no link")
        self.commands += 1
        output = super().run(command, timeout)
        if self.cut_answer:
            self.cut_answer = False
            raise LinkLostError("the link broke")
        return output

    def expand(self, path: str) -> str:
        return path.replace("~", str(self.home), 1)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """Be on another machine than the jobs, and look for outcomes whenever asked."""
    machine = Elsewhere(tmp_path / "home")
    monkeypatch.setattr(executor_far, "protocol_for", lambda remote, ssh: machine)
    monkeypatch.setattr(executor_far, "SOONEST", 0.0)
    monkeypatch.setattr(executor_far, "LATEST", 0.0)
    return machine


@pytest.fixture
def make(machine: Elsewhere, tmp_path: Path) -> Callable[..., FarFolder]:
    """Return what makes the folder of a program, with one batch of calls in it."""

    def make(durable: bool = False) -> FarFolder:
        folder = FarFolder(tmp_path / "here" / "s1", "elsewhere", "ssh", durable=durable)
        folder.put("b1", {"ranks": 1}, [(b"fn", [("c1", b"args")])])
        return folder

    return make


def leave(folder: FarFolder, name: str, content: bytes = b"x") -> None:
    """Have a job leave an outcome."""
    Path(folder.results_there, name).write_bytes(content)


def content_of(folder: FarFolder, name: str) -> bytes:
    """Return an outcome that has come."""
    with folder.fetch(name) as file:
        return file.read()


def test_calls_go_there(machine: Elsewhere, make: Callable[..., FarFolder]) -> None:
    """Calls and the runner are there, for the user alone; here is nothing of them."""
    folder = make()
    there = machine.home / ".cjdask" / "calls" / "s1"
    assert folder.there == str(there)
    assert b"args" in (there / "b1" / "calls").read_bytes()
    assert there.stat().st_mode & 0o777 == 0o700
    assert (Path(folder.runner) / "executor_runner.py").exists()
    assert os.listdir(folder.batch("b1")) == []
    assert folder.import_paths(["~/models"]) == [f"{machine.home}/models"]


def test_one_command_for_any_number(machine: Elsewhere, make: Callable[..., FarFolder]) -> None:
    """Outcomes come with one command, and go there with the next; what is saved stays there."""
    folder = make()
    names = {f"c{i}.ok" for i in range(300)} | {"c7.b1.error", "b1.9.exit"}
    for name in names:
        leave(folder, name, name.encode())
    leave(folder, "c301.resume", b"large")
    leave(folder, ".c302.ok.77", b"a part")
    before = machine.commands
    assert set(folder.arrived()) == {*names, "c301.resume"}
    assert machine.commands == before + 1
    for name in names:
        assert content_of(folder, name) == name.encode()
        folder.drop(name)
    assert folder.arrived() == ["c301.resume"]
    assert machine.commands == before + 2
    assert set(os.listdir(folder.results_there)) == {"c301.resume", ".c302.ok.77"}


def test_large_and_many(
    machine: Elsewhere, make: Callable[..., FarFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much for one command comes with several; a large outcome by itself."""
    monkeypatch.setattr(executor_far, "BIG", 1000)
    monkeypatch.setattr(executor_far, "MOST", 1500)
    folder = make()
    contents = {"c1.ok": b"1" * 900, "c2.ok": b"2" * 900, "c3.ok": b"3" * 5000}
    for name, content in contents.items():
        leave(folder, name, content)
    moment = time.monotonic()
    seen = set(folder.arrived())
    assert "c3.ok" in seen
    assert len(seen) == 2
    assert not folder.looked_since(moment)
    assert set(folder.current()) == contents.keys()
    assert folder.looked_since(moment)
    assert {name: content_of(folder, name) for name in contents} == contents


def test_a_link_that_is_down(
    machine: Elsewhere, make: Callable[..., FarFolder], caplog: pytest.LogCaptureFixture
) -> None:
    """While the link is down nothing is known, and nobody is told that anything is; then all is."""
    folder = make()
    leave(folder, "c1.ok")
    moment = time.monotonic()
    machine.down = True
    assert folder.arrived() == folder.arrived(fresh=True) == []
    assert not folder.looked_since(moment)
    with pytest.raises(ProtocolError, match="no link"):
        folder.current()
    assert folder.tails(["/a", "/b"], 5) == ["", ""]
    folder.clean("b0")
    machine.down = False
    assert folder.arrived() == ["c1.ok"]
    assert folder.looked_since(moment)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(" ")[0] for text in said] == ["outcomes", "outcomes"]


def test_an_answer_that_is_lost_comes_again(
    machine: Elsewhere, make: Callable[..., FarFolder]
) -> None:
    """An outcome stays there until it is known to have come here."""
    folder = make()
    leave(folder, "c1.ok")
    machine.cut_answer = True
    assert folder.arrived() == []
    assert folder.arrived() == ["c1.ok"]
    assert os.listdir(folder.results_there) == ["c1.ok"]
    machine.cut_answer = True
    folder.arrived()
    assert folder.arrived() == ["c1.ok"]
    assert os.listdir(folder.results_there) == []


def test_cleaning_up(machine: Elsewhere, make: Callable[..., FarFolder]) -> None:
    """A batch goes, but for logs to keep and what calls have saved; then the folder does."""
    folder = make()
    batch = Path(folder.batch_there("b1"))
    (batch / ".cjdask").mkdir()
    for path in ("job.sh", "log-1", "log-10", ".cjdask/README"):
        (batch / path).write_text("a\nb\nc\n")
    leave(folder, "c1.b1.error")
    leave(folder, "b1.3.exit")
    leave(folder, "c2.ok")
    leave(folder, "c3.b1.resume")
    assert folder.tails([str(batch / "log-1"), str(batch / "none")], 2) == ["b\nc\n", ""]
    folder.clean("b1", [str(batch / "log-1")])
    assert [path.name for path in batch.rglob("*")] == ["log-1"]
    assert sorted(os.listdir(folder.results_there)) == ["c2.ok", "c3.b1.resume"]
    assert not os.path.exists(folder.batch("b1"))
    folder.clean("b1")
    folder.remove("c2.ok")
    folder.remove("c3.b1.resume")
    folder.remove_if_empty()
    assert not os.path.exists(folder.there)
    assert not os.path.exists(folder.path)


def test_it_lasts(machine: Elsewhere, make: Callable[..., FarFolder], tmp_path: Path) -> None:
    """A folder of kept results has one place there for good, and stays while a batch is in it."""
    folder = make(durable=True)
    leave(folder, "c1.ok")
    assert folder.current() == ["c1.ok"]
    folder.remove_if_empty()
    again = FarFolder(folder.path, "elsewhere", "ssh", durable=True)
    assert again.place == folder.place
    assert again.current() == again.current() == ["c1.ok"]
    assert os.listdir(folder.results_there) == []
    other = FarFolder(tmp_path / "here" / "s2", "elsewhere", "ssh", durable=True)
    other.prepare()
    assert other.there != folder.there
    folder.clean("b1")
    folder.remove_if_empty()
    assert not os.path.exists(folder.there)
    assert os.listdir(folder.results) == ["c1.ok"]


def test_an_old_result_does_not_take_a_new_one_with_it(
    machine: Elsewhere, make: Callable[..., FarFolder]
) -> None:
    """What is to go there has gone before calls are put there again."""
    folder = make(durable=True)
    leave(folder, "c1.ok", b"old")
    folder.current()
    folder.remove("c1.ok")
    folder.put("b2", {"ranks": 1}, [(b"fn", [("c1", b"args")])])
    leave(folder, "c1.ok", b"new")
    assert folder.current() == ["c1.ok"]
    assert content_of(folder, "c1.ok") == b"new"


def test_a_folder_that_cannot_be_used(machine: Elsewhere, make: Callable[..., FarFolder]) -> None:
    """A file in its place there is an error that names it and tells what to do."""
    machine.home.mkdir()
    (machine.home / ".cjdask").write_text("")
    with pytest.raises(PayloadError, match=r"(?s)\.cjdask/calls/s1 on elsewhere .*folder="):
        make()
