"""What every protocol must do: on this machine, and on a real host by OpenSSH and by paramiko."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cjdask.command import Command
from cjdask.errors import ProtocolError
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol
from cjdask.testing import until
from tests.ssh_hosts import PLACE, PLAIN, host_name, reach

NAMES = [
    "a b",
    'it\'s "so"',
    "two\nlines\n",
    "$(touch injected)`touch injected`",
    "a;touch injected;&|<>",
    "-rf",
    "{a,b}*?[x]",
    "~",
    "!history!",
    "grün 数据 ☃",
    "back\\slash\ttab",
    b"not \xff utf-8".decode("utf-8", "surrogateescape"),
]
LARGE = int(os.environ.get("CJDASK_LARGE", 12 << 20))
"""Bytes of a large file; 1 GB where somebody wants to see it."""
MUCH = int(os.environ.get("CJDASK_MUCH", 3 << 20))
"""Bytes of a large output."""


@pytest.fixture(
    scope="module",
    params=[
        "local",
        pytest.param("ssh", marks=pytest.mark.ssh),
        pytest.param("paramiko", marks=pytest.mark.ssh),
    ],
)
def protocol(request: pytest.FixtureRequest) -> Iterator[Protocol]:
    """Return each protocol, connected."""
    if request.param == "local":
        yield LocalProtocol()
        return
    request.getfixturevalue("ssh_hosts")
    with reach(request.param) as way:
        yield way


@pytest.fixture
def there(open_folder: Path) -> Iterator[Path]:
    """Return an empty folder on the machine, which this one sees too."""
    folder = open_folder / "there"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return an empty folder on this machine."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def tree(folder: Path, count: int = 50, seed: int = 1) -> Path:
    """Make a folder with files of any content, in folders."""
    chance = random.Random(seed)
    for number in range(count):
        inner = folder / f"d {number % 7}" / "x"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"file {number}").write_bytes(chance.randbytes(number * 3))
    (folder / "empty folder").mkdir()
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    return folder


def content(folder: Path) -> dict[str, tuple[bytes, int] | None]:
    """Return all that is in a folder."""
    return {
        str(path.relative_to(folder)): (
            None if path.is_dir() else (_content(path), path.stat().st_mode & 0o777)
        )
        for path in folder.rglob("*")
    }


def _content(path: Path) -> bytes:
    """Return the bytes of a file, of a large one a checksum."""
    if path.stat().st_size < 1 << 20:
        return path.read_bytes()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


class TestCommands:
    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_words_arrive_as_they_are(self, protocol: Protocol, name: str) -> None:
        """A word of any characters is one argument, and nothing else."""
        output = protocol.run(["printf", "%s|", name, "", name])
        assert output.raw_stdout == os.fsencode(f"{name}||{name}|")
        assert (output.exit_code, output.raw_stderr, output.host) == (0, b"", protocol.host)

    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_variables_and_folders(self, protocol: Protocol, there: Path, name: str) -> None:
        """A variable and the folder to run in may be of any characters."""
        inner = str(there / name)
        command = Command(("sh", "-c", 'printf %s: "$X"; pwd'), env={"X": name}, cwd=inner)
        assert protocol.run(command).raw_stdout == os.fsencode(f"{name}:{inner}\n")
        assert os.listdir(there) == [name]

    def test_bytes(self, protocol: Protocol) -> None:
        """Input and both outputs are bytes, whatever they are; text is made of them."""
        data = bytes(range(256)) * 50
        output = protocol.run(Command(("sh", "-c", "tee /dev/stderr"), input=data))
        assert output.raw_stdout == output.raw_stderr == data
        assert "\\xff" in output.stdout
        assert protocol.run(Command(("cat",), input="ä")).stdout == "ä"
        assert protocol.run(["cat"]).stdout == ""

    def test_much_output(self, protocol: Protocol) -> None:
        """Output of any length comes whole; input that nobody reads does no harm."""
        output = protocol.run(["head", "-c", str(MUCH), "/dev/zero"])
        assert len(output.raw_stdout) == MUCH
        assert not output.raw_stdout.strip(b"\0")
        assert protocol.run(Command(("true",), input=b"x" * 1_000_000)).exit_code == 0
        echo = protocol.run(Command(("cat",), input=b"y" * 2_000_000))
        assert echo.raw_stdout == b"y" * 2_000_000

    @pytest.mark.parametrize("code", [1, 3, 124, 126, 127, 137, 139, 255])
    def test_exit_codes(self, protocol: Protocol, code: int) -> None:
        """The exit code is that of the command, also one that looks like a signal."""
        assert protocol.run(["sh", "-c", f"echo e >&2; exit {code}"]).exit_code == code

    @pytest.mark.parametrize("signal", [1, 2, 9, 11, 13, 15])
    def test_signals(self, protocol: Protocol, signal: int) -> None:
        """A command that a signal ended has that as its negative exit code."""
        assert protocol.run(["sh", "-c", f"kill -{signal} $$"], timeout=20).exit_code == -signal

    def test_what_cannot_be_run(self, protocol: Protocol, there: Path) -> None:
        """A program or folder that is not there is an error that names it and the machine."""
        (there / "file").touch()
        for command, words in (
            (Command(("no-such program",)), "no-such program"),
            (Command(("true",), cwd="/proc/nosuch"), "/proc/nosuch"),
            (Command(("cat",), cwd=str(there), stdin_path="nothing here"), "nothing here"),
        ):
            with pytest.raises(ProtocolError, match=words) as caught:
                protocol.run(command)
            assert protocol.host in str(caught.value)
            assert isinstance(caught.value.__cause__, OSError)  # nothing was run
        with pytest.raises(TypeError, match="list of arguments"):
            protocol.run("ls -l")
        with pytest.raises(TypeError, match="list of arguments"):
            protocol.run([])

    def test_input_from_a_file(self, protocol: Protocol, there: Path) -> None:
        """A file there can be the input of a command."""
        (there / "in 1").write_bytes(b"\xff\n")
        command = Command(("cat",), cwd=str(there), stdin_path="in 1")
        assert protocol.run(command).raw_stdout == b"\xff\n"

    def test_variables_are_dropped(
        self, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Variables that begin with a word that is to be dropped do not reach the command."""
        monkeypatch.setenv("LOGNAMES", "x")
        output = protocol.run(Command(("env",), drop=("LOGNA",), env={"LC_ALL": "C"}))
        assert "LOGNAME" not in output.stdout
        assert "LC_ALL=C\n" in output.stdout
        assert "HOME=" in output.stdout

    def test_time_limit(self, protocol: Protocol, there: Path) -> None:
        """A command that takes too long is ended there, and is an error that says so."""
        script = "echo $$ >pid.new; mv pid.new pid; exec sleep 60"
        began = time.monotonic()
        with pytest.raises(ProtocolError, match="no answer after 1 s"):
            protocol.run(Command(("sh", "-c", script), cwd=str(there)), timeout=1)
        assert time.monotonic() - began < 10
        pid = (there / "pid").read_text().strip()
        until(lambda: not Path(f"/proc/{pid}").exists())

    def test_many_at_once(self, protocol: Protocol) -> None:
        """Many threads may use it at the same time, more than the machine takes at once."""
        with ThreadPoolExecutor(30) as pool:
            outputs = list(pool.map(lambda i: protocol.run(["echo", str(i)]).stdout, range(60)))
        assert outputs == [f"{i}\n" for i in range(60)]

    def test_which(self, protocol: Protocol) -> None:
        """A program's path is told, and None where there is none."""
        assert protocol.which("sh") in ("/bin/sh", "/usr/bin/sh")
        assert protocol.which("no-such") is None
        assert protocol.which("a;b $(c)") is None


class TestFiles:
    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_names(self, protocol: Protocol, there: Path, here: Path, name: str) -> None:
        """A file may have any name, and a folder too, on the way there and back."""
        protocol.create(str(there / "made" / name), "ä\r\n")
        assert protocol.read(str(there / "made" / name)) == "ä\r\n".encode()
        (here / name).mkdir()
        (here / name / name).write_bytes(b"x")
        protocol.upload([here / name], f"{there}/up/")
        protocol.download([f"{there}/up/{name}"], here / "back")
        assert content(here / "back") == content(here / name)
        assert sorted(os.listdir(there)) == ["made", "up"]
        assert os.listdir(there / "up") == [name]

    def test_create(self, protocol: Protocol, there: Path) -> None:
        """A file is written with its folders, replaced in one step, and executable if wanted."""
        path = there / "a" / "b" / "file"
        protocol.create(str(path), "one")
        assert path.stat().st_mode & 0o111 == 0
        protocol.create(str(path), b"\0\xff", executable=True)
        assert path.read_bytes() == b"\0\xff"
        assert path.stat().st_mode & 0o100
        protocol.create(str(path), "")
        assert path.read_bytes() == b""
        assert os.listdir(path.parent) == ["file"]

    def test_read(self, protocol: Protocol, there: Path) -> None:
        """A file is read whole or its last bytes; one that is not there is FileNotFoundError."""
        (there / "f").write_bytes(b"0123456789\xff")
        assert protocol.read(str(there / "f")) == b"0123456789\xff"
        assert protocol.read(str(there / "f"), tail=3) == b"89\xff"
        assert protocol.read(str(there / "f"), tail=99) == b"0123456789\xff"
        with pytest.raises(FileNotFoundError, match="no such"):
            protocol.read(str(there / "no such"))
        with pytest.raises(ProtocolError, match="there"):
            protocol.read(str(there))

    def test_expand(self, protocol: Protocol) -> None:
        """A path is completed as on that machine."""
        home = protocol.run(["sh", "-c", 'printf %s "$HOME"']).stdout
        assert protocol.expand("~") == home
        assert protocol.expand("~/x y/~") == f"{home}/x y/~"
        assert protocol.expand("~root/x") == "/root/x"
        assert protocol.expand("/a/$b") == "/a/$b"
        assert protocol.expand("rel").startswith("/")

    def test_a_folder(self, protocol: Protocol, there: Path, here: Path) -> None:
        """A folder comes whole, there and back, with modes and empty folders."""
        tree(here / "tree")
        protocol.upload([here / "tree"], str(there / "copy"))
        assert content(there / "copy") == content(here / "tree")
        protocol.download([str(there / "copy")], here / "back")
        assert content(here / "back") == content(here / "tree")
        assert sorted(os.listdir(there)) == ["copy"]
        assert sorted(os.listdir(here)) == ["back", "tree"]

    @pytest.mark.timeout(300 if LARGE < 1 << 30 else 1200)
    def test_a_large_folder_and_a_large_file(
        self, protocol: Protocol, there: Path, here: Path
    ) -> None:
        """A folder of 2,000 files and a large one, and an empty file, arrive as they are."""
        chance = random.Random(2)
        folder = here / "many"
        folder.mkdir()
        for number in range(2000):
            (folder / f"{number}").write_bytes(chance.randbytes(number % 300))
        piece = chance.randbytes((1 << 20) - 4)
        with (folder / "large").open("wb") as file:
            for number in range(LARGE >> 20):
                file.write(number.to_bytes(4, "big") + piece)
        expected = content(folder)
        assert (folder / "0").stat().st_size == 0
        seen: list[tuple[str, int, int]] = []
        protocol.upload([folder], str(there), lambda *progress: seen.append(progress))
        assert seen[-1][1:] == (seen[-1][2],) * 2
        shutil.rmtree(folder)  # the disk need not have room for three of them
        protocol.download([str(there / "many")], str(here / "back"))
        assert content(here / "back") == expected
        shutil.rmtree(here / "back")

    def test_where_it_goes(self, protocol: Protocol, there: Path, here: Path) -> None:
        """Entries go into a folder; one entry alone may get another name; folders are merged."""
        for name in ("a", "b"):
            (here / name).write_text(name)
        (here / "d").mkdir()
        (here / "d" / "x").write_text("new")
        protocol.upload([here / "a"], str(there / "a2"))
        protocol.upload([here / "a", str(here / "b")], str(there / "both" / "deep"))
        protocol.upload([here / "b"], f"{there}/slash/")
        (there / "d").mkdir(mode=0o777)
        (there / "d").chmod(0o777)
        (there / "d" / "x").write_text("old")
        (there / "d" / "y").write_text("stays")
        protocol.upload([here / "d"], str(there))
        protocol.upload([], str(there / "nothing"))
        files = {str(p.relative_to(there)): p.read_text() for p in there.rglob("*") if p.is_file()}
        expected = {"a2": "a", "both/deep/a": "a", "both/deep/b": "b", "slash/b": "b"}
        assert files == {**expected, "d/x": "new", "d/y": "stays"}

    def test_links_are_followed(self, protocol: Protocol, there: Path, here: Path) -> None:
        """What a link leads to is copied; one that leads nowhere or in a circle is refused."""
        (here / "d").mkdir()
        (here / "file").write_text("x")
        (here / "d" / "link").symlink_to(here / "file")
        protocol.upload([here / "d"], str(there))
        assert not (there / "d" / "link").is_symlink()
        assert (there / "d" / "link").read_text() == "x"
        (here / "d" / "circle").symlink_to(here / "d")
        with pytest.raises(ProtocolError, match="circle"):
            protocol.upload([here / "d"], str(there))
        (here / "d" / "circle").unlink()
        (here / "d" / "dangling").symlink_to("nowhere")
        with pytest.raises(OSError, match="dangling"):
            protocol.upload([here / "d"], str(there))
        os.mkfifo(here / "pipe")
        with pytest.raises(ProtocolError, match="neither a file nor a folder"):
            protocol.upload([here / "pipe"], str(there))

    def test_what_cannot_be_copied(self, protocol: Protocol, there: Path, here: Path) -> None:
        """What is not there or has no place to go to is an error that names it."""
        (here / "f").write_text("x")
        (here / "d").mkdir()
        with pytest.raises(FileNotFoundError, match="not here"):
            protocol.upload([here / "f", here / "not here"], str(there))
        assert os.listdir(there) == []
        with pytest.raises(FileNotFoundError, match="not there"):
            protocol.download([str(there), str(there / "not there")], here / "back")
        with pytest.raises(ProtocolError, match="/proc/nothing"):
            protocol.upload([here / "f"], "/proc/nothing/f")
        with pytest.raises(ProtocolError, match="/proc/nothing"):
            protocol.download([str(there)], "/proc/nothing/f")
        (here / "d" / "f").write_text("y")
        with pytest.raises(ValueError, match="both become"):
            protocol.upload([here / "f", here / "d" / "f"], str(there))
        (there / "d").write_text("a file")
        with pytest.raises(ProtocolError, match="cannot take its place"):
            protocol.upload([here / "d"], str(there / "d"))
        assert (there / "d").read_text() == "a file"
        assert os.listdir(there) == ["d"]

    def test_the_same_file(self, protocol: Protocol, there: Path) -> None:
        """A file that is copied onto itself stays."""
        (there / "f").write_text("x")
        if protocol.host == "localhost":
            protocol.upload([there / "f"], str(there))
        assert (there / "f").read_text() == "x"


class TestPorts:
    def test_a_port(self, protocol: Protocol) -> None:
        """A port that the machine reaches is reached here, by many, in both directions."""
        host = "localhost" if protocol.host == "localhost" else _gateway()
        with socket.create_server(("0.0.0.0", 0)) as server:
            threading.Thread(target=_echo, args=(server,), daemon=True).start()
            forward = protocol.forward(server.getsockname()[1], host)
            with ThreadPoolExecutor(5) as pool:
                data = [bytes([i]) * 300_000 for i in range(5)]
                assert list(pool.map(lambda d: _ask(forward, d), data)) == data
            forward.close()
            if protocol.host != "localhost":
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((forward.host, forward.port), 2)

    def test_a_port_of_choice(self, protocol: Protocol) -> None:
        """The port here may be chosen; one that is taken is an error that names it."""
        if protocol.host == "localhost":
            with pytest.raises(ValueError, match="local_port=5"):
                protocol.forward(22, local_port=5)
            return
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ProtocolError, match=str(port)):
                protocol.forward(22, local_port=port)
        forward = protocol.forward(22, local_port=port)
        with socket.create_connection((forward.host, port), 5) as connection:
            assert connection.recv(4) == b"SSH-"
        assert forward.port == port
        forward.close()


def test_pickle(protocol: Protocol) -> None:
    """A protocol that was pickled works, over a connection of its own."""
    again = pickle.loads(pickle.dumps(protocol))
    with again:
        assert again.run(["echo", "x"]).stdout == "x\n"


def _gateway() -> str:
    return host_name(PLAIN).rpartition(".")[0] + ".1"


def _echo(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_return, args=(connection,), daemon=True).start()


def _return(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def _ask(forward: Any, data: bytes) -> bytes:
    with socket.create_connection((forward.host, forward.port), 10) as connection:
        sender = threading.Thread(target=_send, args=(connection, data))
        sender.start()
        answer = b""
        while part := connection.recv(65536):
            answer += part
        sender.join()
    return answer


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.ssh
@pytest.mark.usefixtures("ssh_hosts")
@pytest.mark.parametrize("way", ["paramiko", "ssh"])
class TestThere:
    def test_no_space_and_no_right(self, way: str, tmp_path: Path) -> None:
        """A full disk and a folder that is closed are errors that say so; nothing is left."""
        (tmp_path / "big").write_bytes(b"x" * 3_000_000)
        full = PLACE / "full"
        with reach(way) as protocol:
            for attempt in (
                lambda: protocol.upload([tmp_path / "big"], str(full)),
                lambda: protocol.upload([tmp_path], str(full / "folder")),
                lambda: protocol.create(str(full / "big"), b"x" * 3_000_000),
            ):
                with pytest.raises(ProtocolError, match="No space left on device"):
                    attempt()
                assert os.listdir(full) == []
            with pytest.raises(ProtocolError, match=r"(?s)/root/x.*Permission denied"):
                protocol.create("/root/x/y", "z")
            with pytest.raises(ProtocolError, match="Permission denied"):
                protocol.upload([tmp_path / "big"], "/root/x")
            with pytest.raises(ProtocolError, match="Permission denied"):
                protocol.read(str(PLACE / "password"))
