"""Hosts that are not there, do not let us in or are not who they were; what is kept secret."""

from __future__ import annotations

import logging
import pickle
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cjdask import ConnectionParameters, connect
from cjdask.errors import HostKeyError, LoginError, ProtocolError, UnreachableError
from cjdask.protocols import address, paramiko, protocol_for, ssh
from cjdask.protocols.remote import RemoteProtocol
from tests.ssh_hosts import (
    CONFIG,
    LOGIN,
    PLACE,
    PLAIN,
    USER,
    WAYS,
    both_ways,
    changed_config,
    host_name,
    logins,
    needs_ssh,
    password,
    reach,
)

pytestmark = needs_ssh
WRONG = "hunter2's secret"


def by_password(folder: Path) -> Path:
    """Return a configuration without a key."""
    return changed_config(folder, lambda text: re.sub("IdentityFile .*", "", text))


def error_of(protocol: RemoteProtocol, kind: type[Exception]) -> str:
    """Return what a protocol says that cannot connect."""
    with protocol, pytest.raises(kind) as caught:
        protocol.run(["true"])
    assert type(caught.value) is kind
    return str(caught.value)


@both_ways
def test_password(way: str, tmp_path: Path) -> None:
    """One logs in by a password, once for any number of commands."""
    before = logins(PLAIN)
    with reach(way, config=by_password(tmp_path), password=password()) as protocol:
        for _ in range(3):
            assert protocol.run(["id", "-un"]).stdout == f"{USER}\n"
    assert logins(PLAIN) == before + 1


def test_questions_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh asks by a program of the user's, once, if it may ask."""
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\ncat {PLACE}/password\n")
    ask.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(ask))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    params = ConnectionParameters(PLAIN, ssh_config=str(by_password(tmp_path)))
    with ssh.SshProtocol(params, "ssh -o BatchMode=no") as protocol:
        for _ in range(3):
            assert protocol.run(["id", "-un"]).stdout == f"{USER}\n"
    assert (tmp_path / "asked").read_text() == "asked\n"
    with ssh.SshProtocol(params) as protocol, pytest.raises(LoginError):
        protocol.open()


@both_ways
def test_wrong_password_or_user(way: str, tmp_path: Path) -> None:
    """A wrong password, a wrong user and a missing key are a LoginError that says what to do."""
    config = by_password(tmp_path)
    said = error_of(reach(way, config=config, password=WRONG), LoginError)
    assert "wrong user or password" in said
    assert error_of(reach(way, user="nobody-here"), LoginError).startswith("nobody-here@cjplain")
    assert "key" in error_of(reach(way, config=config), LoginError)


@both_ways
def test_nobody_there(way: str, tmp_path: Path) -> None:
    """A port that is closed and a name that is none are an UnreachableError at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    assert "refused" in error_of(reach(way, "127.0.0.1", port=port), UnreachableError)
    assert "nowhere.invalid" in error_of(reach(way, "nowhere.invalid"), UnreachableError)
    assert time.monotonic() - began < 10


@both_ways
def test_a_host_that_never_answers(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes the connection and never says a word is given up in time."""
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 1)
    monkeypatch.setattr(paramiko, "CONNECT_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        error_of(reach(way, "127.0.0.1", port=server.getsockname()[1]), UnreachableError)
        assert time.monotonic() - began < 10


@both_ways
def test_unknown_host_key(way: str, tmp_path: Path) -> None:
    """An unknown host key is refused, with what to do; it is taken, and kept, if that is wanted."""
    known = tmp_path / "known_hosts"
    config = changed_config(
        tmp_path, lambda text: re.sub("UserKnownHostsFile .*", f"UserKnownHostsFile {known}", text)
    )
    said = error_of(reach(way, config=config), HostKeyError)
    assert "accept_new_host_key=True" in said
    assert "fingerprint" in said
    assert not known.exists()
    with reach(way, config=config, accept_new_host_key=True) as protocol:
        assert protocol.run(["hostname"]).stdout == "cjplain\n"
    with reach(way, config=config) as protocol:
        assert protocol.run(["hostname"]).stdout == "cjplain\n"


@both_ways
@pytest.mark.parametrize("setting", ["", "StrictHostKeyChecking no\n"])
def test_changed_host_key(way: str, setting: str, tmp_path: Path) -> None:
    """A host key that has changed is refused, whatever the user's settings are."""
    known = tmp_path / "known_hosts"
    other = (PLACE / LOGIN / "key.pub").read_text().split()[1]
    known.write_text(f"{PLAIN},{host_name(PLAIN)} ssh-ed25519 {other}\n")
    config = changed_config(
        tmp_path,
        lambda text: (
            re.sub("UserKnownHostsFile .*", f"UserKnownHostsFile {known}", text) + f"  {setting}"
        ),
    )
    for accept in (False, True):
        protocol = reach(way, config=config, accept_new_host_key=accept)
        assert "another host key" in error_of(protocol, HostKeyError)


@both_ways
@pytest.mark.parametrize("jumps", [PLAIN, f"{LOGIN},{PLAIN}"])
def test_settings_of_the_user(way: str, jumps: str, tmp_path: Path) -> None:
    """Names, users and jump hosts are as the user's configuration has them."""
    config = changed_config(
        tmp_path,
        lambda text: (
            f"Host behind\n  HostName {host_name(PLAIN)}\n  HostKeyAlias {PLAIN}\n"
            f"  ProxyJump {jumps}\n{text}"
        ),
    )
    log = Path(f"/var/log/cjdask-ssh/{PLAIN}.log")
    before, begin = logins(PLAIN), log.stat().st_size
    with reach(way, "behind", config=config) as protocol:
        output = protocol.run(["sh", "-c", "hostname; echo $SSH_CLIENT"]).stdout
    assert output.startswith(f"cjplain\n{host_name(PLAIN)} ")
    assert logins(PLAIN) == before + 2
    if LOGIN in jumps:
        assert f" from {host_name(LOGIN)} " in log.read_bytes()[begin:].decode()


@both_ways
def test_one_login_for_all(way: str, tmp_path: Path) -> None:
    """A hundred operations of all kinds take one login."""
    before = logins(PLAIN)
    folder = f"/tmp/cjdask-{way}-{tmp_path.name}"
    (tmp_path / "f").write_text("x")
    with reach(way) as protocol:
        for number in range(20):
            protocol.run(["true"])
            protocol.create(f"{folder}/{number}", "x")
            protocol.read(f"{folder}/{number}")
            protocol.upload([tmp_path / "f"], folder)
            protocol.download([f"{folder}/f"], tmp_path / "back")
        protocol.run(["rm", "-rf", folder])
    assert logins(PLAIN) == before + 1


@both_ways
def test_no_secret_is_told(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A password is in no text, error, log, process or pickle, and in no file that is left."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger(paramiko._LOG).setLevel(logging.DEBUG)
    config = by_password(tmp_path)
    protocol = reach(way, config=config, password=WRONG)
    commands: list[str] = []
    watching = threading.Event()
    watch = threading.Thread(target=_collect, args=(commands, watching))
    watch.start()
    said = error_of(protocol, LoginError)
    watching.set()
    watch.join()
    told = [said, repr(protocol), str(protocol), repr(protocol.params), address(protocol)]
    told += [caplog.text, *commands, pickle.dumps(protocol).decode("latin-1")]
    told += [pickle.dumps(protocol.params).decode("latin-1")]
    for text in told:
        assert "hunter2" not in text
    assert pickle.loads(pickle.dumps(protocol)).params == protocol.params.without_secret()
    assert not list(Path("/tmp").glob("cjdask-ssh-*/askpass"))


def _collect(commands: list[str], done: threading.Event) -> None:
    """Note what all processes show of themselves."""
    while not done.is_set():
        for place in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    text = (place / name).read_text(errors="replace")
                except OSError:
                    continue
                if "ssh" in text and text not in commands:
                    commands.append(text)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_connect(way: Any) -> None:
    """`connect` connects at once, and is one protocol for a process as long as it is used."""
    with connect(f"{USER}@{PLAIN}", way, ssh_config=str(CONFIG)) as protocol:
        assert "connected" in repr(protocol)
        text = address(protocol)
        assert protocol_for(protocol) is protocol_for(text) is protocol
    with pytest.raises(UnreachableError):
        connect("127.0.0.1:9", way)
    with pytest.raises(ValueError, match="'ssh' and 'paramiko'"):
        connect("host", "telnet")  # type: ignore[arg-type]


@both_ways
def test_a_login_shell_that_talks(way: str, tmp_path: Path) -> None:
    """What start-up files print reaches no output, and what they set reaches the commands."""
    home = Path("/home") / USER
    profile = home / ".bash_profile"
    if profile.exists():
        pytest.skip(f"there is a {profile}")
    profile.write_text("echo welcome; echo you >&2\nexport CJ_SEEN='a b'\n. ~/.bashrc\n")
    try:
        with reach(way) as protocol:
            output = protocol.run(["sh", "-c", "echo $CJ_SEEN"])
            assert (output.raw_stdout, output.raw_stderr) == (b"a b\n", b"")
    finally:
        profile.unlink()


@both_ways
def test_closed(way: str) -> None:
    """What is closed is closed, also its ports, and connects anew when it is used."""
    with reach(way) as protocol:
        forward = protocol.forward(22)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((forward.host, forward.port), 5)
    assert "not connected" in repr(protocol)
    assert protocol.run(["echo", "x"]).stdout == "x\n"
    protocol.close()
    protocol.close()


def test_parameters() -> None:
    """A machine is named as in ssh; what is no name is refused."""
    params = ConnectionParameters.of("ada@login.edu:2222")
    assert (params.user, params.host, params.port) == ("ada", "login.edu", 2222)
    assert ConnectionParameters.of("ssh://login/").host == "login"
    assert ConnectionParameters.of("[::1]:22").destination == "[::1]:22"
    for wrong in ("", "a b", "-oProxyCommand=x", "ada@", "host:port", "a@-b"):
        with pytest.raises(ValueError, match=r"host|user|machine"):
            ConnectionParameters.of(wrong)
    with pytest.raises(ValueError, match="line break"):
        ConnectionParameters("host", password="a\nb")
    with pytest.raises(ValueError, match="nonsense"):
        protocol_for("host?nonsense=1")


def test_a_program_that_is_not_there() -> None:
    """Where there is no ssh the error says so."""
    protocol = ssh.SshProtocol(ConnectionParameters("host"), "no-ssh-here")
    with pytest.raises(ProtocolError, match="no-ssh-here"):
        protocol.run(["true"])
