"""Endpoint: what uses a connection, the server's or the client's half of gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .frames import ProtocolError
from .header_blocks import Fields

__all__ = ["Endpoint"]


class Endpoint(Protocol):
    """What gRPC makes of a connection's frames.

    *calls* are those that have not ended, by stream. *held*: bytes that it holds for the peer. *unfinished*:
    it has not yet handled all that it was given, and goes on with that when asked to `resume`.
    """

    held: int
    unfinished: bool

    @property
    def calls(self) -> Mapping[int, object]: ...

    def connected(self) -> None:
        """Take note that the TCP connection stands."""
        ...

    def settled(self) -> None:
        """Take note that the peer speaks HTTP/2 and has told its settings, the first or later ones."""
        ...

    def headers(self, stream: int, fields: Fields, *, ended: bool) -> None:
        """Take the fields that begin a stream, or end it."""
        ...

    def data(self, stream: int, data: bytes, *, ended: bool) -> None:
        """Take some bytes of a stream."""
        ...

    def resume(self) -> None:
        """Go on with what is *unfinished*, for a bounded piece of it."""
        ...

    def reset(self, stream: int, code: int) -> None:
        """Take note that the peer gave a stream up."""
        ...

    def going(self, last: int) -> None:
        """Take note that the peer takes no new streams, and has seen none above *last*."""
        ...

    def unsuitable(self, data: bytes) -> None:
        """Take note that the peer, whose first bytes are *data*, doesn't speak HTTP/2."""
        ...

    def broke_rule(self, error: ProtocolError) -> None:
        """Take note that the connection ends because of *error*, a broken rule or an exceeded limit."""
        ...

    def writable(self) -> None:
        """Take note that the peer reads on what it had left unread."""
        ...

    def closed(self, detail: str) -> None:
        """Take the end of the connection."""
        ...
