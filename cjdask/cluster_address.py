"""Where the Dask scheduler can be reached from the nodes of a cluster."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from typing import Any

import psutil
from distributed.comm.addressing import get_address_host_port
from distributed.utils import get_ip

__all__ = ["NOWHERE", "addresses_for", "addresses_of"]

NOWHERE = "tcp://<address-of-the-dask-scheduler>:8786"
"""Stands for the address while there is none."""


def addresses_for(scheduler: Any, options: Mapping[str, Any]) -> list[str]:
    """Return the addresses under which workers may find a Dask scheduler.

    ``options`` are those it was made with: one that was told where to listen has one address.
    """
    if found := getattr(scheduler, "node_addresses", ()):  # one that runs apart has told them
        return list(found)
    address = getattr(scheduler, "address", None)
    if not address:
        return [NOWHERE]
    contact = getattr(scheduler, "contact_address", None)
    if contact or options.get("host") or options.get("interface"):
        return [contact or address]
    return addresses_of(address)


def addresses_of(address: str) -> list[str]:
    """Return the addresses under which nodes may reach a server that listens everywhere.

    The one that the default route suggests comes first, then those of the other networks
    of this machine (login nodes often have an inner one), and last its name.

    >>> addresses_of("ucx://10.0.0.1:8786")
    ['ucx://10.0.0.1:8786']
    """
    protocol, _, _ = address.partition("://")
    if protocol not in ("tcp", "tls"):
        return [address]
    _, port = get_address_host_port(address)
    return [f"{protocol}://{host}:{port}" for host in _hosts()]


def _hosts() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no route: there are other ways
        found = [get_ip()]
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    for name, entries in psutil.net_if_addrs().items():
        found += [e.address for e in entries if e.family == socket.AF_INET and name in up]
    outside = [host for host in found if not host.startswith("127.")]
    return list(dict.fromkeys([*outside, socket.gethostname()]))
