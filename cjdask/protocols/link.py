"""One connection to another machine that is made when it is needed, and again when it broke."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from cjdask.errors import HostKeyError, LinkLostError, LoginError, ProtocolError, UnreachableError
from cjdask.protocols.base import Protocol
from cjdask.protocols.forwarding import PortForward
from cjdask.protocols.parameters import ConnectionParameters

__all__ = ["PATIENCE", "Link", "end_with"]

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

PATIENCE = 60.0
"""Seconds from its loss for which a link is tried to be made anew before calls fail; after that
each fails at once, and the link is tried at most every `LONGEST_PAUSE` seconds."""
LONGEST_PAUSE, LONGEST_AFTER_REFUSAL = 10.0, 60.0
"""Seconds between two attempts to connect at most; they begin with 1 s and double. Where a
machine did not let us in they may be longer, since some lock out who tries too often."""
LOOK_EVERY = 1.0
"""Seconds between two looks at a link that must be kept up."""


_open: weakref.WeakSet[Link] = weakref.WeakSet()
"""Links that may have to be closed when the interpreter ends."""


class Link(Protocol):
    """The part of a protocol to another machine that keeps its one connection, and its ports."""

    def __init__(
        self,
        params: ConnectionParameters | str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.params = ConnectionParameters.of(params) if isinstance(params, str) else params
        self._clock = clock
        self._sleep = sleep
        self._connecting = threading.RLock()
        self._forwards: list[PortForward] = []
        self._watcher: threading.Thread | None = None
        self._opened = False
        self._lost_at: float | None = None
        self._pause = 0.0
        self._failed_at = float("-inf")
        self._failure: UnreachableError | None = None

    @property
    def host(self) -> str:  # type: ignore[override]
        """The machine, as messages show it."""
        return self.params.host

    @property
    def connected(self) -> bool:  # type: ignore[override]
        """Whether there is a connection, as far as is known."""
        return self._is_open()

    def __repr__(self) -> str:
        state = "connected" if self._is_open() else "not connected"
        return f"<{type(self).__name__} {self.params.destination}: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.params.without_secret(),)

    # -- what a way to a machine must have -----------------------------------------------------

    @abstractmethod
    def _open(self) -> None:
        """Make the connection.

        Raises:
            UnreachableError: it cannot be made now.
            LoginError, HostKeyError: it will not be made by trying again.
        """

    @abstractmethod
    def _is_open(self) -> bool:
        """Tell whether there is a connection, as far as is known."""

    @abstractmethod
    def _drop(self) -> None:
        """Close the connection, if there is one."""

    @abstractmethod
    def _start_forward(self, forward: PortForward) -> None:
        """Begin to forward a port, or go on with it over a new connection."""

    @abstractmethod
    def _stop_forward(self, forward: PortForward) -> None:
        """Stop to forward a port."""

    # -- the connection ------------------------------------------------------------------------

    def open(self) -> None:
        """Connect now, if there is no connection.

        Raises:
            UnreachableError: the machine does not answer, or does not let us in.
        """
        with self._connecting:
            while not self._is_open():
                if self._opened and self._lost_at is None:
                    self._lost_at = self._clock()
                due = self._failed_at + self._pause - self._clock()
                if self._failure is not None and due > 0:
                    if not self._has_patience(due):
                        raise type(self._failure)(str(self._failure)) from self._failure
                    self._sleep(due)
                _open.add(self)
                try:
                    self._open()
                except UnreachableError as error:
                    self._note(error)
                    final = isinstance(error, LoginError | HostKeyError)
                    if final or not self._has_patience(self._pause):
                        raise
                else:
                    self._failure, self._pause, self._lost_at = None, 0.0, None
                    self._opened = True
                    self._forward_again(self._forwards)

    def _forward_again(self, forwards: list[PortForward]) -> None:
        """Have ports lead through a new connection; those that cannot are tried again later."""
        for forward in forwards:
            try:
                self._start_forward(forward)
                forward.broken = False
            except ProtocolError as error:
                if not forward.broken:
                    logger.warning("%s", error)
                forward.broken = True

    def _has_patience(self, pause: float) -> bool:
        """Tell whether a link that was lost is tried once more after a pause, for the caller."""
        if self._lost_at is None:
            return False
        return self._clock() + pause < self._lost_at + PATIENCE

    def _note(self, error: UnreachableError) -> None:
        self._failure, self._failed_at = error, self._clock()
        final = isinstance(error, LoginError | HostKeyError)
        longest = LONGEST_AFTER_REFUSAL if final else LONGEST_PAUSE
        self._pause = min(longest, max(1.0, 2 * self._pause))
        self._drop()

    def close(self) -> None:
        for forward in list(self._forwards):
            forward.close()
        with self._connecting:
            self._drop()
            self._opened, self._lost_at, self._failure = False, None, None

    def _again(self, operation: Callable[[], Value]) -> Value:
        """Do what may be done twice, once more when the link was lost, as long as there is hope."""
        deadline = self._clock() + PATIENCE
        while True:
            try:
                return operation()
            except LinkLostError as error:
                if self._clock() > deadline:
                    raise
                logger.info("%s; trying again", error)

    # -- ports ---------------------------------------------------------------------------------

    def forward(self, port: int, host: str = "localhost", local_port: int = 0) -> PortForward:
        self.open()
        forward = PortForward(self._forget, host, port, local_port)
        with self._connecting:
            self._start_forward(forward)
            self._forwards.append(forward)
            if self._watcher is None or not self._watcher.is_alive():
                name = f"cjdask-link-{self.host}"
                self._watcher = threading.Thread(target=self._watch, name=name, daemon=True)
                self._watcher.start()
        return forward

    def _forget(self, forward: PortForward) -> None:
        with self._connecting:
            if forward in self._forwards:
                self._forwards.remove(forward)
                self._stop_forward(forward)

    def _watch(self) -> None:
        """Keep the link up as long as a port is forwarded."""
        lost = False
        while self._forwards and threading.main_thread().is_alive():
            try:
                self.open()
                lost = False
                with self._connecting:
                    self._forward_again([each for each in self._forwards if each.broken])
            except ProtocolError as error:
                if not lost:
                    logger.warning("the link to %s is down, trying on: %s", self.host, error)
                lost = True
            self._sleep(LOOK_EVERY)


def end_with(link: Link, end: Callable[..., object], *args: Any) -> weakref.finalize[Any, Any]:
    """Have a connection ended once: by a call of what is returned, or when its link is forgotten.

    While the interpreter goes down nothing is called any more; `_close_all` comes before that.
    """
    ending = weakref.finalize(link, end, *args)
    ending.atexit = False
    return ending


@atexit.register
def _close_all() -> None:
    for link in list(_open):
        link._drop()
