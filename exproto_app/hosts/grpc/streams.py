"""Streams: which streams of the callers bring the events of a connection.

A broker that calls `ConnectionHandler` opens up to five for each, and never ends one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .caller import Caller, InboundCall

__all__ = ["Streams"]

KEPT: Final = 10
"""Streams of one connection; a broker has five, and opens another only where one was lost."""


class Streams:
    """The streams of one broker's connections."""

    def __init__(self) -> None:
        self._of: dict[bytes, list[tuple[Caller, InboundCall]]] = {}

    def tie(self, conn: bytes, caller: Caller, call: InboundCall, *, known: bool) -> None:
        """Take note that *call* brings events of *conn*, which is *known* if such a device is connected."""
        call.tied = True
        mine = self._of.setdefault(conn, [])
        if len(mine) >= KEPT:
            mine[:] = [(caller, call) for caller, call in mine if caller.calls.get(call.stream) is call]
            if len(mine) >= KEPT:
                oldest, first = mine.pop(0)
                oldest.answer(first.stream)
        mine.append((caller, call))
        if known:
            caller.established(call)

    def established(self, conn: bytes) -> None:
        """Take note that the device *conn* is connected: its streams cost the broker nothing more."""
        for caller, call in self._of.get(conn, ()):
            caller.established(call)

    def answer(self, conn: bytes) -> None:
        """Answer the streams of *conn*, which has ended: the broker forgets them, and so do we."""
        for caller, call in self._of.pop(conn, ()):
            if caller.calls.get(call.stream) is call:
                caller.answer(call.stream)
