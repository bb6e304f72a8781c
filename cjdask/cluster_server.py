"""The program of a Dask scheduler that runs apart from the cluster object.

It is started as ``python -m cjdask.cluster_server FOLDER``, as a process of its own or in a batch
job. It reads ``server.json`` in the folder, and writes ``contact.json`` there when it can be
connected to. It ends when it is told to, or when for the time of the setting nobody was
connected and there was nothing to do.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.comm.addressing import get_address_host_port
from distributed.security import Security

from cjdask.cluster_address import addresses_of
from cjdask.cluster_load import install
from cjdask.cluster_relay import FarRelay
from cjdask.cluster_state import write_json

__all__ = ["CONTACT", "FORMAT", "LOG", "SETTINGS", "serve"]

SETTINGS, CONTACT, LOG = "server.json", "contact.json", "scheduler.log"
FORMAT = 1
"""The version of both files."""
LOOK = 0.5
"""Seconds between two looks at whether anybody is connected."""


async def serve(folder: Path) -> None:
    """Run a Dask scheduler as the settings in a folder say, until it has ended."""
    settings = json.loads((folder / SETTINGS).read_text())
    if settings["format"] != FORMAT:
        raise ValueError(f"{folder / SETTINGS} is of another version of cjdask")
    security: Any = settings["security"] and Security(**settings["security"])
    scheduler = await Scheduler(security=security, **settings["options"])
    install(scheduler)
    address, port = get_address_host_port(scheduler.listeners[0].contact_address)
    relay = FarRelay(address, port)
    loop = asyncio.get_running_loop()
    closing: list[asyncio.Task[Any]] = []

    def end() -> None:
        closing.append(asyncio.ensure_future(scheduler.close(reason="told by a signal")))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    told_where = {"host", "interface"} & settings["options"].keys()
    contact = {
        "format": FORMAT,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "addresses": [scheduler.address] if told_where else addresses_of(scheduler.address),
        "dashboard": scheduler.services.get("dashboard") and scheduler.services["dashboard"].port,
        "relay": await relay.start(),
    }
    write_json(folder / CONTACT, contact)
    awake = asyncio.ensure_future(_stay(scheduler, relay))
    try:
        await scheduler.finished()
    finally:
        awake.cancel()
        await relay.stop()
        await asyncio.gather(*closing, return_exceptions=True)
        shutil.rmtree(folder, ignore_errors=True)


async def _stay(scheduler: Scheduler, relay: FarRelay) -> None:
    """Let the time of idleness begin when the last one who was connected has gone."""
    while True:
        if relay.attached and scheduler.idle_since is not None:
            scheduler.idle_since = time.time()
        await asyncio.sleep(LOOK)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
