"""Another machine by paramiko: the same over one connection, where there is no OpenSSH."""

from __future__ import annotations

import logging
import os
import select
import shlex
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from inspect import signature
from typing import Any

import paramiko

from cjdask.errors import HostKeyError, LinkLostError, LoginError, UnreachableError
from cjdask.protocols.forwarding import PortForward
from cjdask.protocols.link import end_with
from cjdask.protocols.parameters import ConnectionParameters
from cjdask.protocols.remote import BusyError, RemoteProtocol

__all__ = ["ParamikoProtocol"]

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 15.0
"""Seconds for the machine to answer at all, and for each step of the login."""
ALIVE_EVERY, ALIVE_WITHIN = 10.0, 30.0
"""Seconds between two signs of life, and without one until the link counts as lost."""
_LOG = "cjdask.protocols.paramiko.transport"
"""The logger of paramiko itself, which else tells of every error that is ours to raise."""
logging.getLogger(_LOG).setLevel(logging.CRITICAL)
_PIECE = 1 << 18
_TICK = 1.0


class ParamikoProtocol(RemoteProtocol):
    """A machine by the package paramiko: one connection and one login.

    Of the user's ssh configuration it knows ``HostName``, ``User``, ``Port``, ``IdentityFile``,
    ``IdentitiesOnly``, ``ProxyJump``, ``ProxyCommand``, ``HostKeyAlias`` and
    ``UserKnownHostsFile``, and it asks an agent. For all else there is `SshProtocol`. ``via`` is
    a host to jump over, instead of those of the configuration.
    """

    def __init__(
        self,
        params: ConnectionParameters | str,
        *,
        via: ParamikoProtocol | None = None,
        **testing: Any,
    ) -> None:
        self._via = via
        self._client: paramiko.SSHClient | None = None
        self._owner = os.getpid()
        self._jump: ParamikoProtocol | None = None
        self._pulse: _Pulse | None = None
        self._ending: weakref.finalize[Any, Any] | None = None
        self._listeners: dict[PortForward, _Listener] = {}
        super().__init__(params, **testing)

    # -- the connection ------------------------------------------------------------------------

    def _transport(self) -> paramiko.Transport | None:
        transport = None if self._client is None else self._client.get_transport()
        return transport if transport is not None and transport.is_active() else None

    def _is_open(self) -> bool:
        pulse = self._pulse
        alive = self._transport() is not None and pulse is not None and not pulse.silent()
        return alive and self._owner == os.getpid()  # a fork has not the threads of it

    def _open(self) -> None:
        self._drop()
        where = self.params.destination
        client = paramiko.SSHClient()
        client.set_log_channel(_LOG)
        try:
            settings = self._configuration()
            host = settings.get("hostname", self.params.host)
            port = self.params.port or int(settings.get("port", 22))
            files = self._known_hosts(client, settings)
            client.set_missing_host_key_policy(_NewKey(self.params.accept_new_host_key, files[0]))
            plain = settings.get("identitiesonly") == "yes"
            client.connect(
                settings.get("hostkeyalias", host),
                port,
                self.params.user or settings.get("user"),
                self.params.password,
                key_filename=_existing(settings.get("identityfile", [])),
                look_for_keys=not plain,
                allow_agent=not plain,
                timeout=CONNECT_TIMEOUT,
                banner_timeout=CONNECT_TIMEOUT,
                auth_timeout=CONNECT_TIMEOUT,
                channel_timeout=CONNECT_TIMEOUT,
                sock=self._socket(host, port, settings),
                **self._kerberos(client),
            )
        except paramiko.BadHostKeyException as error:
            client.close()
            raise HostKeyError(
                f"{where} has another host key than it had: somebody may sit between, or the "
                "machine was set up anew. Ask its administrators, and only if they confirm the "
                f"new fingerprint {error.key.fingerprint} remove the old key by "
                f"`ssh-keygen -R {host}`"
            ) from None
        except HostKeyError:
            client.close()
            raise
        except (paramiko.SSHException, OSError, EOFError, ImportError) as error:
            client.close()
            refused = isinstance(error, paramiko.AuthenticationException)
            if refused or "No authentication methods" in str(error):
                raise self._not_let_in(client, str(error)) from None
            raise UnreachableError(f"{where} cannot be reached: {error or type(error)}") from error
        self._client, self._owner = client, os.getpid()
        transport = client.get_transport()
        assert transport is not None
        self._pulse = _Pulse(transport, self.host)
        self._ending = end_with(self, _end, client, self._pulse, self._owner)

    def _kerberos(self, client: paramiko.SSHClient) -> dict[str, Any]:
        """Return what paramiko must be told for Kerberos; version 5 does not know it any more."""
        if not self.params.gss_auth or "gss_auth" not in signature(client.connect).parameters:
            return {}
        return {"gss_auth": True, "gss_kex": True, "gss_deleg_creds": True}

    def _not_let_in(self, client: paramiko.SSHClient, said: str) -> LoginError:
        kind = "password" if self.params.password else "key or agent"
        message = f"{self.params.destination} does not let us in: wrong user or {kind} ({said})"
        if self.params.gss_auth and not self._kerberos(client):
            message += (
                f"; paramiko {paramiko.__version__} cannot log in by Kerberos, SshProtocol can"
            )
        return LoginError(message)

    def _configuration(self) -> dict[str, Any]:
        path = self.params.config_path() or os.path.expanduser("~/.ssh/config")
        if self.params.ssh_config is None and not os.path.exists(path):
            return {}
        return dict(paramiko.SSHConfig.from_path(path).lookup(self.params.host))

    def _known_hosts(self, client: paramiko.SSHClient, settings: dict[str, Any]) -> list[str]:
        """Load the keys of the machines that are known; return the user's own files of them."""
        own = shlex.split(settings.get("userknownhostsfile", "~/.ssh/known_hosts"))
        system = settings.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts")
        files = [os.path.expanduser(path) for path in own]
        for path in (*files, *shlex.split(system)):
            if os.path.isfile(path):
                client.load_system_host_keys(path)
        return files

    def _socket(self, host: str, port: int, settings: dict[str, Any]) -> Any:
        """Return a way to the port of the machine: directly, or as the configuration has it."""
        jump = self._via
        if jump is None and settings.get("proxycommand", "none") != "none":
            return paramiko.ProxyCommand(settings["proxycommand"])
        if jump is None and settings.get("proxyjump", "none") != "none":
            for each in settings["proxyjump"].split(","):
                params = ConnectionParameters.of(each, ssh_config=self.params.ssh_config)
                jump = ParamikoProtocol(params, via=jump)
        if jump is not None:
            self._jump = jump
            jump.open()
            transport = jump._transport()
            if transport is None:
                raise EOFError(f"the link to {jump.host} broke")
            return transport.open_channel(
                "direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=30
            )
        made = socket.create_connection((host, port), CONNECT_TIMEOUT)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(ALIVE_WITHIN * 1000))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _drop(self) -> None:
        jump, self._jump = self._jump, None
        self._client = self._pulse = None
        if self._ending is not None:
            self._ending()
        if jump is not None:
            jump.close()

    # -- over the connection -------------------------------------------------------------------

    def _execute(
        self,
        line: str,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        total: float | None,
        stall: float | None,
    ) -> bytes:
        transport = self._transport()
        if transport is None:
            raise LinkLostError(f"the link to {self.host} broke")
        try:
            channel = transport.open_session(timeout=CONNECT_TIMEOUT)
        except (paramiko.SSHException, EOFError, OSError) as error:
            # Of refusals to several threads at a time paramiko gives the reason to one only.
            refused = isinstance(error, paramiko.ChannelException)
            if transport.is_active() and (refused or "Unable to open" in str(error)):
                raise BusyError(str(error)) from None
            self._drop()
            raise LinkLostError(f"the link to {self.host} broke: {error}") from None
        try:
            feeder = _Feeder(channel, source)
            try:
                channel.exec_command(line)
            except (paramiko.SSHException, EOFError, OSError) as error:
                raise LinkLostError(f"the link to {self.host} broke: {error}") from None
            feeder.start()
            stderr = self._listen(channel, feeder, sink, total, stall)
        finally:
            channel.close()
        if feeder.failure is not None:
            raise feeder.failure
        return stderr

    def _listen(
        self,
        channel: paramiko.Channel,
        feeder: _Feeder,
        sink: Callable[[bytes], object],
        total: float | None,
        stall: float | None,
    ) -> bytes:
        """Take all output; return standard error."""
        stderr = bytearray()
        began = moved = time.monotonic()
        descriptor = channel.fileno()
        while True:
            over = channel.eof_received or channel.closed
            idle = True
            while channel.recv_ready():
                sink(channel.recv(_PIECE))
                idle = False
            while channel.recv_stderr_ready():
                stderr += channel.recv_stderr(_PIECE)
                idle = False
            now = time.monotonic()
            moved = now if not idle else max(moved, feeder.moved)
            if idle and (over or feeder.failure is not None):
                return bytes(stderr)
            late = total is not None and now - began > total
            if late or (stall is not None and now - moved > stall):
                raise TimeoutError
            if idle:
                select.select([descriptor], [], [], _TICK)

    # -- ports ---------------------------------------------------------------------------------

    def _start_forward(self, forward: PortForward) -> None:
        if forward not in self._listeners:
            self._listeners[forward] = _Listener(self, forward)

    def _stop_forward(self, forward: PortForward) -> None:
        self._listeners.pop(forward).stop()


def _end(client: paramiko.SSHClient, pulse: _Pulse, owner: int) -> None:
    """Close a connection; a fork of its owner leaves it alone."""
    if owner == os.getpid():
        pulse.stop()
        client.close()


def _existing(paths: list[str]) -> Any:
    return [path for path in map(os.path.expanduser, paths) if os.path.isfile(path)]


class _NewKey(paramiko.MissingHostKeyPolicy):
    """What to do with the key of a machine that was never seen."""

    def __init__(self, accept: bool, known_hosts: str) -> None:
        self._accept = accept
        self._known_hosts = known_hosts

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        if not self._accept:
            raise HostKeyError(
                f"the host key of {hostname} is not known. Compare its fingerprint "
                f"{key.fingerprint} with the one that the site publishes and accept it by "
                f"running `ssh {hostname}` once; or give accept_new_host_key=True for this first "
                "contact"
            )
        os.makedirs(os.path.dirname(self._known_hosts), mode=0o700, exist_ok=True)
        with open(self._known_hosts, "a", encoding="utf-8") as file:
            file.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")


class _Pulse:
    """Asks the machine for a sign of life, as ``ServerAliveInterval`` does.

    Without one the connection is closed, which ends all that waits for it.
    """

    def __init__(self, transport: paramiko.Transport, host: str) -> None:
        self._transport = transport
        self._stopped = threading.Event()
        self._answered = time.monotonic()
        for target in (self._ask, self._guard):
            threading.Thread(target=target, name=f"cjdask-pulse-{host}", daemon=True).start()

    def _guard(self) -> None:
        while not self._stopped.wait(_TICK) and self._transport.is_active():
            if self.silent():
                self._transport.close()

    def _ask(self) -> None:
        while not self._stopped.wait(ALIVE_EVERY) and self._transport.is_active():
            with suppress(paramiko.SSHException, OSError, EOFError):
                self._transport.global_request("keepalive@openssh.com", wait=True)
                if self._transport.is_active():
                    self._answered = time.monotonic()

    def silent(self) -> bool:
        """Tell whether the machine has been silent for too long."""
        return time.monotonic() - self._answered > ALIVE_EVERY + ALIVE_WITHIN

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()


class _Feeder(threading.Thread):
    """Sends the input of a command; ``failure`` is what went wrong with its source."""

    def __init__(self, channel: paramiko.Channel, source: Iterable[bytes]) -> None:
        super().__init__(name="cjdask-input", daemon=True)
        self._channel = channel
        self._source = source
        self.moved = time.monotonic()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            for piece in self._source:
                view = memoryview(piece)
                while view:
                    sent = self._send(view[:_PIECE])
                    if not sent:
                        return  # nobody reads any more
                    view = view[sent:]
                    self.moved = time.monotonic()
        except Exception as error:
            self.failure = error
            return
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def _send(self, data: memoryview) -> int:
        try:
            return self._channel.send(bytes(data))
        except (OSError, EOFError, paramiko.SSHException):
            return 0


class _Listener:
    """Takes connections at a port here and leads each to the one there."""

    def __init__(self, protocol: ParamikoProtocol, forward: PortForward) -> None:
        self._protocol = protocol
        self._forward = forward
        self._open: set[Any] = set()
        try:
            self._socket = socket.create_server((forward.host, forward.port))
        except OSError as error:
            raise UnreachableError(f"port {forward.port} here cannot be used: {error}") from error
        forward.port = self._socket.getsockname()[1]
        name = f"cjdask-port-{forward.port}"
        threading.Thread(target=self._accept, name=name, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections and close those that there are."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for end in list(self._open):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return  # it was stopped
            threading.Thread(target=self._lead, args=(near,), daemon=True).start()

    def _lead(self, near: socket.socket) -> None:
        there = (self._forward.there, self._forward.port_there)
        with near:
            try:
                transport = self._protocol._transport()
                if transport is None:
                    return
                far = transport.open_channel("direct-tcpip", there, near.getpeername(), timeout=15)
            except (paramiko.SSHException, OSError, EOFError) as error:
                logger.info("%s: %s", self._forward, error)
                return
            self._open |= {near, far}
            back = threading.Thread(target=_copy, args=(far, near), daemon=True)
            back.start()
            _copy(near, far)
            back.join()
            far.close()
            self._open -= {near, far}


def _copy(source: Any, target: Any) -> None:
    """Move bytes one way until that ends."""
    with suppress(OSError, EOFError, paramiko.SSHException):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError, EOFError, paramiko.SSHException):
        if isinstance(target, paramiko.Channel):
            target.shutdown_write()
        else:
            target.shutdown(socket.SHUT_WR)
