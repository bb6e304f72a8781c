"""A port of another machine at a port of this one."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DirectForward", "PortForward"]


class DirectForward:
    """A port that can be reached as it is."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def close(self) -> None:
        """Do nothing, since there is nothing to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class PortForward(DirectForward):
    """A port of this machine, ``host`` and ``port``, that leads to one which another reaches."""

    def __init__(
        self, stop: Callable[[PortForward], object], there: str, port: int, local_port: int
    ) -> None:
        super().__init__("127.0.0.1", local_port)
        self.there = there
        self.port_there = port
        self.broken = False
        self._stop = stop

    def __repr__(self) -> str:
        return f"<PortForward {self.host}:{self.port} to {self.there}:{self.port_there}>"

    def close(self) -> None:
        """Stop it; connections that go through it may break."""
        self._stop(self)
