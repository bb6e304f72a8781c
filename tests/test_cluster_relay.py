"""Connections that outlive the link they go over."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import cjdask.cluster_relay
from cjdask.cluster_relay import FarRelay, NearRelay

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Link:
    """A way between the relays that can be broken."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.up = True
        self.made = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            writer.close()
            return
        self.made += 1
        other, far = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, far}
        await asyncio.gather(self._pass(reader, far), self._pass(other, writer))
        for each in (writer, far):
            self._writers.discard(each)
            each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(5000):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Break all connections, with what is under way."""
        for writer in list(self._writers):
            writer.transport.abort()


@asynccontextmanager
async def relays(
    handler: Handler, gone: Callable[[], bool] = lambda: False, kept: float = 60.0
) -> AsyncIterator[tuple[NearRelay, Link, FarRelay]]:
    """Start both relays, with a link between them, before a server."""
    target: Any = await asyncio.start_server(handler, "127.0.0.1", 0)
    far = FarRelay("127.0.0.1", target.sockets[0].getsockname()[1], kept)
    link = Link(await far.start())
    server = await link.start()
    near = NearRelay(("127.0.0.1", link.port), gone)
    near.start()
    try:
        yield near, link, far
    finally:
        await asyncio.to_thread(near.stop)
        await far.stop()
        link.cut()
        server.close()
        target.close()
        await asyncio.sleep(0.05)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(10_000):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_no_byte_is_lost_when_the_link_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 MB go there and back whole while the link is cut 10 times, over one connection."""
    monkeypatch.setattr(cjdask.cluster_relay, "PAUSE", 0.01)

    async def run() -> None:
        async with relays(echo) as (near, link, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", near.port)
            block = bytes(range(256)) * 120
            sent, came = hashlib.sha256(), hashlib.sha256()

            async def send() -> None:
                for number in range(100):
                    sent.update(block)
                    writer.write(block)
                    await writer.drain()
                    if number % 10 == 5:
                        link.cut()
                        await asyncio.sleep(0.03)

            sending = asyncio.ensure_future(send())
            for _ in range(100):
                came.update(await asyncio.wait_for(reader.readexactly(len(block)), 20))
            await sending
            assert came.digest() == sent.digest()
            assert link.made >= 5
            writer.close()
            await writer.wait_closed()

    asyncio.run(run())


def test_an_end_is_passed_on() -> None:
    """What closes its connection on one side closes it on the other, with all that was sent."""
    heard: list[bytes] = []
    over = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(-1))
        writer.close()
        over.set()

    async def run() -> None:
        async with relays(listen) as (near, _, far):
            _, writer = await asyncio.open_connection("127.0.0.1", near.port)
            writer.write(b"last words")
            writer.close()
            await asyncio.wait_for(over.wait(), 10)
            assert heard == [b"last words"]
            while far.attached:
                await asyncio.sleep(0.01)

    asyncio.run(run())


@pytest.mark.parametrize("why", ["gone", "impatient"])
def test_connections_are_given_up(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a link a connection breaks if the far side has ended, or patience has an end."""
    monkeypatch.setattr(cjdask.cluster_relay, "PAUSE", 0.01)
    monkeypatch.setattr(cjdask.cluster_relay, "DOUBT", 0.1)

    async def run() -> None:
        async with relays(echo, lambda: why == "gone") as (near, link, far):
            reader, writer = await asyncio.open_connection("127.0.0.1", near.port)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            assert far.attached
            link.up = False
            link.cut()
            if why == "impatient":
                near.patience = 0.2
            assert await asyncio.wait_for(reader.read(), 10) == b""
            assert not far.attached
            writer.close()

    asyncio.run(run())


def test_a_connection_whose_client_is_gone_is_kept_for_a_while() -> None:
    """The far side keeps the connection of a client that vanished, but not for ever."""
    ended: list[float] = []
    loop_time: Callable[[], float] = lambda: asyncio.get_running_loop().time()  # noqa: E731

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        ended.append(loop_time())
        writer.close()

    async def run() -> None:
        async with relays(listen, kept=0.5) as (near, _, far):
            _, writer = await asyncio.open_connection("127.0.0.1", near.port)
            writer.write(b"x")
            while not far.attached:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(near.stop)
            left = loop_time()
            while not ended:
                await asyncio.sleep(0.02)
            assert 0.4 < ended[0] - left < 5
            writer.close()

    asyncio.run(run())
