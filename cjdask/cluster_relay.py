"""Connections to the Dask scheduler that outlive the link they go over.

Dask gives up a client, with all its futures, when its connection breaks. So both sides of a link
that may break, an ssh connection for instance, have a relay: the near one keeps the connection of
the client, the far one that to the Dask scheduler. What goes between them is numbered, and kept
until the other side has it, so that a new link goes on where the old one broke.

Between relays: a greeting (id of the session, whether it is new, how many bytes came so far), the
answer (whether the session is there, how many bytes came so far), then frames: data, how many
bytes have come, the end. There is no secret in it that guards anything: what is guarded is
encrypted by Dask from end to end.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["FarRelay", "NearRelay"]

logger = logging.getLogger(__name__)

KEPT = 3600.0
"""Seconds for which the far side keeps a connection, whose client does not come back."""
UNACKNOWLEDGED = 16 << 20
"""Bytes that may be under way; no more is read before some have arrived."""
PIECE, SMALL = 1 << 18, 1 << 15
"""Bytes that are read at a time at most, and of messages that are put together."""
GREETED_WITHIN = 20.0
"""Seconds for a greeting to be answered."""
PAUSE, LONGEST_PAUSE = 0.5, 5.0
"""Seconds between two tries to get a new link."""
LAST_WORDS = 2.0
"""Seconds in which connections that the Dask scheduler has closed end on the other side too."""
DOUBT = 3.0
"""Seconds without a link after which one asks whether the far side is there at all."""

_GREETING = struct.Struct("!16s?Q")
_ANSWER = struct.Struct("!?Q")
_FRAME = struct.Struct("!cI")
_COUNT = struct.Struct("!Q")
_DATA, _CAME, _END = b"d", b"a", b"e"

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_LOST = (OSError, EOFError, asyncio.TimeoutError)


class _Session:
    """One connection of Dask, and what of it is under way to the other relay."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came = 0
        """How many bytes came from the other relay and were passed on."""
        self.ended = False
        self._reader = reader
        self._writer = writer
        self._kept: deque[bytes] = deque()
        self._first = 0
        """The number of the first byte in ``_kept``."""
        self._last = 0
        self._over = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._told = 0
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        """Take what Dask writes."""
        with suppress(OSError):
            while data := await self._reader.read(PIECE):
                if self._kept and len(self._kept[-1]) + len(data) <= SMALL:
                    self._kept[-1] += data
                else:
                    self._kept.append(data)
                self._last += len(data)
                if self._last - self._first >= UNACKNOWLEDGED:
                    self._room.clear()
                self._news.set()
                await self._room.wait()
        self._over = True
        self._news.set()

    def _forget(self, count: int) -> None:
        """Forget what the other side has, the first ``count`` bytes of all."""
        while self._kept and self._first + len(self._kept[0]) <= count:
            self._first += len(self._kept.popleft())
        if self._kept and self._first < count:
            self._kept[0] = self._kept[0][count - self._first :]
            self._first = count
        if self._last - self._first < UNACKNOWLEDGED:
            self._room.set()

    async def serve(self, link: Link, has: int) -> None:
        """Move what there is over a link whose other side has that many bytes of ours.

        It returns when the session has ended, or the link is lost.
        """
        self._forget(has)
        self._told = self.came
        tasks = [
            asyncio.ensure_future(self._send(link[1])),
            asyncio.ensure_future(self._receive(link[0])),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is None for task in done):
                self.ended = True
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception) and not isinstance(error, _LOST):
                raise error

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        """Send all that is new; return when Dask has closed the connection and all is sent."""
        sent = self._first
        while True:
            self._news.clear()
            if self._told < self.came:
                self._told = self.came
                writer.write(_FRAME.pack(_CAME, _COUNT.size) + _COUNT.pack(self._told))
            position, pieces = self._first, []
            for piece in self._kept:
                if position + len(piece) > sent:
                    pieces.append(piece[max(0, sent - position) :])
                position += len(piece)
            for piece in pieces:
                writer.write(_FRAME.pack(_DATA, len(piece)) + piece)
                sent += len(piece)
                await writer.drain()
            if self._over and sent == self._last:
                writer.write(_FRAME.pack(_END, 0))
                await writer.drain()
                return
            await writer.drain()
            await self._news.wait()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        """Pass on what comes; return when the other side has closed the connection."""
        while True:
            kind, size = _FRAME.unpack(await reader.readexactly(_FRAME.size))
            data = await reader.readexactly(size)
            if kind == _END:
                return
            if kind == _CAME:
                self._forget(_COUNT.unpack(data)[0])
                continue
            self.came += size
            self._news.set()
            try:
                self._writer.write(data)
                await self._writer.drain()
            except OSError:
                self._over = True  # `_read` sees it too

    async def close(self) -> None:
        """Close the connection of Dask."""
        self.ended = True
        self._reading.cancel()
        await _close(self._writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


class FarRelay:
    """The relay beside the Dask scheduler. It lives in the event loop that it is started in."""

    def __init__(self, host: str, port: int, kept: float = KEPT) -> None:
        self._target = host, port
        self._kept = kept
        self._sessions: dict[bytes, _Session] = {}
        self._links: dict[bytes, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def attached(self) -> bool:
        """Whether somebody is connected at present."""
        return bool(self._links)

    async def start(self) -> int:
        """Listen on all networks; return the port."""
        self._server = await asyncio.start_server(
            self._accept, None, 0, family=socket.AF_INET, limit=PIECE
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Close all connections; what the Dask scheduler has said and closed is passed on."""
        if self._server is not None:
            self._server.close()
        if self._links:
            await asyncio.wait(self._links.values(), timeout=LAST_WORDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self._sessions.values()):
            await session.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with suppress(*_LOST):
                await self._greet(reader, writer, task)
        finally:
            await _close(writer)

    async def _greet(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
    ) -> None:
        greeting = await asyncio.wait_for(reader.readexactly(_GREETING.size), GREETED_WITHIN)
        name, new, has = _GREETING.unpack(greeting)
        session = self._sessions.get(name)
        if session is None and new:
            session = _Session(*await asyncio.open_connection(*self._target, limit=PIECE))
            self._sessions[name] = session
        if session is None:
            writer.write(_ANSWER.pack(False, 0))
            await writer.drain()
            return
        before = self._links.pop(name, None)
        if before is not None:  # a link that is lost, which nobody has told us
            before.cancel()
            await asyncio.wait({before})
        self._links[name] = task
        try:
            writer.write(_ANSWER.pack(True, session.came))
            await session.serve((reader, writer), has)
        finally:
            if self._links.get(name) is task:
                del self._links[name]
            if session.ended:
                self._sessions.pop(name, None)
                await session.close()
            else:
                self._expire(name, session)

    def _expire(self, name: bytes, session: _Session) -> None:
        """Give up a session in time if nobody comes back to it."""

        async def expire() -> None:
            await asyncio.sleep(self._kept)
            if name not in self._links and self._sessions.get(name) is session:
                del self._sessions[name]
                await session.close()

        waiting = asyncio.ensure_future(expire())
        self._tasks.add(waiting)
        waiting.add_done_callback(self._tasks.discard)


class NearRelay:
    """The relay beside clients, in a thread of its own.

    ``target`` is where the far relay is reached, which may change. ``gone`` is asked, in a
    thread, whether the far side has ended for good when no link can be had for a while.
    """

    def __init__(self, target: tuple[str, int], gone: Callable[[], bool]) -> None:
        self.target = target
        self.port = 0
        self.over = False
        """Whether the far side has ended; then no connection is taken any more."""
        self.patience = float("inf")
        """Seconds without a link after which connections are given up."""
        self._gone = gone
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cjdask-relay", daemon=True)

    def start(self) -> None:
        """Listen on a port of this machine, for this machine.

        Raises:
            OSError: it cannot be had.
        """
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Close all connections here; the far side keeps those that Dask has not closed."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it has stopped by now
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                logger.exception("the relay of a Dask scheduler has ended")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._keep, "127.0.0.1", 0, limit=PIECE)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep a connection of Dask, over one link after the other."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        session, name, new = _Session(reader, writer), secrets.token_bytes(16), True
        try:
            lost, pause = time.monotonic(), PAUSE
            asked = lost
            while not session.ended and not self.over:
                with suppress(*_LOST):
                    known = await self._over_one_link(session, name, new)
                    if known is not None:
                        new, pause, lost = False, PAUSE, time.monotonic()
                        asked = lost
                    if known is False:
                        return
                if session.ended:
                    return
                await asyncio.sleep(pause)
                pause, now = min(2 * pause, LONGEST_PAUSE), time.monotonic()
                if now - lost > self.patience:
                    return
                if now - asked > DOUBT:
                    asked = now
                    if await asyncio.get_running_loop().run_in_executor(None, self._gone):
                        self.over = True
                        return
            if new:  # let Dask's own handshake begin, whose failure it knows how to tell
                await asyncio.sleep(PAUSE)
        finally:
            await session.close()

    async def _over_one_link(self, session: _Session, name: bytes, new: bool) -> bool | None:
        """Serve a session as long as a link lasts.

        It tells whether the far side knows the session; ``None`` if there was no answer.
        """
        reader, writer = await asyncio.open_connection(*self.target, limit=PIECE)
        try:
            writer.write(_GREETING.pack(name, new, session.came))
            await writer.drain()
            answer = await asyncio.wait_for(reader.readexactly(_ANSWER.size), GREETED_WITHIN)
            known, has = _ANSWER.unpack(answer)
            if known:
                await session.serve((reader, writer), has)
            return bool(known)
        finally:
            await _close(writer)
