"""Who to be on which machine, as a user states it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["ConnectionParameters"]

_DESTINATION = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@/\s]+)@)?"
    r"(?P<host>[^@/\s:\[\]]+|\[[\w:.%]+\])(?::(?P<port>\d+))?/?"
)


@dataclass(frozen=True)
class ConnectionParameters:
    """A machine and how to log in there.

    What is left out is as the user's own ssh configuration has it, or the system's. A password
    lives in memory alone: it is in no text that is printed and in no pickle. Keys with a
    passphrase are for an agent.

    >>> ConnectionParameters("login.cluster.edu", "ada", password="secret")
    ConnectionParameters(host='login.cluster.edu', user='ada', gss_auth=False, port=None)
    """

    host: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    gss_auth: bool = False
    """Log in by Kerberos, and hand the ticket on, so that file systems there take it."""
    port: int | None = None
    ssh_config: str | None = field(default=None, repr=False)
    """An ssh configuration file instead of ``~/.ssh/config``."""
    accept_new_host_key: bool = field(default=False, repr=False)
    """Believe the key of a machine that was never seen, and remember it. One that has changed
    is refused in any case."""

    def __post_init__(self) -> None:
        for name in ("host", "user"):
            value = getattr(self, name)
            if value is not None and (value.startswith("-") or re.search(r"[\s\x00-\x1f]", value)):
                raise ValueError(f"{name}={value!r} is no name of a {name}")
        if not self.host:
            raise ValueError("host is empty: name a machine, such as 'login.cluster.edu'")
        if self.password is not None and re.search(r"[\n\0]", self.password):
            raise ValueError("a password cannot have a line break")

    @classmethod
    def of(cls, destination: str, **more: Any) -> ConnectionParameters:
        """Read ``host``, ``user@host``, ``user@host:port`` or the same behind ``ssh://``.

        Raises:
            ValueError: it is none of these.
        """
        match = _DESTINATION.fullmatch(destination)
        if match is None:
            raise ValueError(
                f"{destination!r} is no machine: write 'host', 'user@host' or 'user@host:port'"
            )
        port = int(match["port"]) if match["port"] else None
        return cls(match["host"].strip("[]"), match["user"], port=port, **more)

    @property
    def destination(self) -> str:
        """The machine as `of` reads it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}{'' if self.port is None else f':{self.port}'}"

    def without_secret(self) -> ConnectionParameters:
        """Return the same without the password."""
        return replace(self, password=None)

    def config_path(self) -> str | None:
        """Return the path of the configuration file that was named, if one was."""
        return None if self.ssh_config is None else os.path.expanduser(self.ssh_config)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.host, self.user, None, self.gss_auth, self.port)
        return type(self), (*values, self.ssh_config, self.accept_new_host_key)
