"""Who has proved nothing yet, by kind and listener, the oldest first: those who give way when room is short.

An engine's observer: it takes note of each connection that begins, and looks at one again when its turn has
come. Who has registered by then, or said something on TCP, or has gone, is forgotten.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...core import Channel, Sniffer, State
from .faults import info_of
from .room import Candidate

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Unproved"]

log = logging.getLogger("exproto_app")

SPARE: Final = 64
"""Connections that are remembered beside those that are open, before the others are forgotten."""


class Unproved:
    """The connections of *gateway* that have proved nothing yet."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._links: dict[tuple[str, int], deque[Any]] = {}

    def connected(self, one: Channel | Sniffer) -> None:
        """Take note of a connection that begins."""
        if isinstance(one, Channel) and one.line is not None:  # a child has no place of its own
            return
        link: Any = one.link
        # A child has no line of its own; what is dialled would be dialled again.
        if one.line is not None or link.endpoint.listen.kind.dialled:
            return
        kind = "udp" if info_of(one).socktype == "udp" else "tcp"
        number = link.endpoint.number
        links = self._links.get((kind, number))
        if links is None:
            links = self._links[kind, number] = deque()
        links.append(link)
        if len(links) > 2 * self._gateway.room.open[number] + SPARE:
            self._links[kind, number] = deque(link for link in links if _unproved(link, kind) is not None)

    def ended(self, one: Channel | Sniffer) -> None:
        """Do nothing: it is forgotten when its turn comes."""

    def oldest(self, kind: str, number: int) -> Candidate | None:
        """Return the oldest of *kind* at the listener of that *number*."""
        if kind == "half-open":
            # What is dialled has none, and is never half-open.
            endpoints = self._gateway.endpoints[number : number + 1]
            half = next(iter(endpoints[0].pending), None) if endpoints else None
            return None if half is None else Candidate(half.since, half.vacate)
        links = self._links.get((kind, number))
        while links:
            one = _unproved(links[0], kind)
            if one is not None:
                return Candidate(one.since, partial(self._vacate, links[0], one, kind))
            links.popleft()
        return None

    def _vacate(self, link: Any, one: Channel | Sniffer, kind: str) -> bool:
        peer = info_of(one).peername
        if not link.vacate():
            return False
        engine = self._gateway.runner.engine
        engine.count("connections_evicted")
        engine.count(f"connections_evicted.{kind}")
        log.info(
            "%s ! connection closed: it hadn't registered or sent anything, and its place was needed", peer
        )
        return True


def _unproved(link: Any, kind: str) -> Channel | Sniffer | None:
    """Return what *link* feeds, unless that has gone, has registered, or has said something on TCP."""
    one: Channel | Sniffer | None = link.channel
    if one is None or one.gone:
        return None
    if isinstance(one, Channel) and (one.client is not None or (kind == "tcp" and one.state > State.OPENING)):
        return None
    return one
