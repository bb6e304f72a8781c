"""How a machine is reached, by name.

A machine is named as ``host``, ``user@host`` or ``user@host:port``, and reached by OpenSSH;
behind ``paramiko://`` it is reached by paramiko. `address` gives such a text for a protocol,
by which another process makes it again.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, urlencode

from cjdask.protocols.parameters import ConnectionParameters

if TYPE_CHECKING:
    from cjdask.protocols.remote import RemoteProtocol

__all__ = ["ConnectionParameters", "address", "connect", "protocol_for"]

_PARAMIKO = "paramiko://"


def connect(
    destination: str | ConnectionParameters,
    protocol: Literal["ssh", "paramiko"] = "ssh",
    **parameters: Any,
) -> RemoteProtocol:
    """Connect to another machine, named as ``host``, ``user@host`` or ``user@host:port``.

    ``parameters`` are further ones of `ConnectionParameters`. The answer is a connection that
    lasts until it is closed, and is made anew where the link breaks.

    Raises:
        UnreachableError: it does not answer, or does not let us in; the message says why.
        ValueError: there is no such protocol, or the destination is none.
    """
    if isinstance(destination, str):
        destination = ConnectionParameters.of(destination, **parameters)
    elif parameters:
        raise ValueError(f"{', '.join(parameters)}: set them in the ConnectionParameters")
    way = _make(protocol, destination)
    way.open()
    return way


def _make(protocol: str, params: ConnectionParameters, ssh: str = "ssh") -> RemoteProtocol:
    if protocol == "ssh":
        from cjdask.protocols.ssh import SshProtocol

        return SshProtocol(params, ssh)
    if protocol == "paramiko":
        from cjdask.protocols.paramiko import ParamikoProtocol

        return ParamikoProtocol(params)
    raise ValueError(f"protocol={protocol!r}: there are 'ssh' and 'paramiko'")


def address(protocol: RemoteProtocol) -> str:
    """Return a text by which `protocol_for` finds or makes the same, without the password.

    >>> from cjdask.protocols.ssh import SshProtocol
    >>> address(SshProtocol(ConnectionParameters("login", "ada", "secret", gss_auth=True)))
    'ada@login?gss_auth=1'
    """
    from cjdask.protocols.ssh import SshProtocol

    params = protocol.params
    scheme = "" if isinstance(protocol, SshProtocol) else _PARAMIKO
    more: dict[str, Any] = {"ssh_config": params.config_path() or ""}
    more |= {"gss_auth": params.gss_auth, "accept_new_host_key": params.accept_new_host_key}
    query = urlencode({name: int(v) if v is True else v for name, v in more.items() if v})
    return scheme + params.destination + (f"?{query}" if query else "")


_known: dict[tuple[str, str], RemoteProtocol] = {}
_of_parameters: dict[tuple[ConnectionParameters, str], RemoteProtocol] = {}
_lock = threading.Lock()


def protocol_for(
    remote: str | ConnectionParameters | RemoteProtocol, ssh: str = "ssh"
) -> RemoteProtocol:
    """Return the one protocol of this process for an address; it connects when it is used.

    A protocol that is given is returned, and is from now on the one for its address; so is
    that of parameters, which is OpenSSH's.

    Raises:
        ValueError: the address is none.
    """
    with _lock:
        if isinstance(remote, ConnectionParameters):
            key = remote, ssh
            if key not in _of_parameters:
                _of_parameters[key] = _make("ssh", remote, ssh)
            remote = _of_parameters[key]
        if not isinstance(remote, str):
            _known[address(remote), getattr(remote, "ssh", ssh)] = remote
            return remote
        if (remote, ssh) not in _known:
            _known[remote, ssh] = _from_address(remote, ssh)
        return _known[remote, ssh]


def _from_address(remote: str, ssh: str) -> RemoteProtocol:
    destination, _, query = remote.removeprefix(_PARAMIKO).partition("?")
    given = dict(parse_qsl(query, strict_parsing=bool(query)))
    more: dict[str, Any] = {name: True for name in given if name != "ssh_config"}
    if unknown := more.keys() - {"gss_auth", "accept_new_host_key"}:
        raise ValueError(f"{remote!r}: there is no setting {min(unknown)!r} of a connection")
    if "ssh_config" in given:
        more["ssh_config"] = given["ssh_config"]
    kind = "paramiko" if remote.startswith(_PARAMIKO) else "ssh"
    return _make(kind, ConnectionParameters.of(destination, **more), ssh)
