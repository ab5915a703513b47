"""Places for connections: in all, for each listener, and who gives way. No I/O, no clock.

Each listener has a share that the others can't take, so that a flood at one of them, of UDP peers for
example, leaves room at the rest. Where there is no room, what has proved nothing yet goes first: half-open
connections (a TLS handshake or a PROXY header that isn't there), then UDP peers, then TCP devices that have
said nothing, the oldest first. UDP addresses may be forged, so a UDP peer displaces UDP peers alone. Who has
registered, or has said something on TCP, keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

__all__ = ["Candidate", "Room"]

RESERVED: Final = 0.1
"""Part of all places that is kept for the listeners, in equal shares."""

PATIENCE: Final = {"half-open": 1.0, "udp": 0.0, "tcp": 5.0}
"""Seconds that each kind has to prove something before its place may be taken."""

KINDS: Final = (("half-open", "udp", "tcp"), ("half-open", "tcp"))
"""Who gives way to a newcomer on TCP, in that order; the latter where sockets are short."""


@attrs.frozen(eq=False)
class Candidate:
    """A connection that may have to give way; *since* when it began.

    *vacate* gives its place up at once, and tells whether it still had one.
    """

    since: float
    vacate: Callable[[], bool]


Oldest: TypeAlias = Callable[[str, int], "Candidate | None"]
"""Returns the oldest connection that has proved nothing yet, of a kind and at the listener of a number.

The kinds are `half-open`, `udp` and `tcp`.
"""


@attrs.define(eq=False)
class Room:
    """*limit* places in all, of which sockets may have *sockets*; *most* has each listener's own limit.

    *shared*: the listeners whose connections share one socket. *closed*: nobody comes in any more.
    """

    limit: int
    most: list[int | None]
    oldest: Oldest
    sockets: int | None = None
    shared: frozenset[int] = frozenset()
    closed: bool = False
    open: list[int] = attrs.field(init=False)
    open_sockets: int = 0
    evicted: int = 0

    def __attrs_post_init__(self) -> None:
        self.open = [0] * len(self.most)

    @property
    def total(self) -> int:
        """How many places are taken."""
        return sum(self.open)

    def enter(self, number: int, now: float, *, datagrams: bool, proved: bool = False) -> str:
        """Take a place at listener *number*; return nothing, or which limit there is no way around.

        Who sends *datagrams* needs no socket; its address may be forged, unless it has *proved* it.
        """
        if self.closed:
            return "draining"
        why = self._full(number, datagrams=datagrams)
        forgeable = datagrams and not proved
        while why and self._make_room(number, now, why, forgeable=forgeable):
            why = self._full(number, datagrams=datagrams)
        if not why:
            self.open[number] += 1
            self.open_sockets += not datagrams
        return why

    def leave(self, number: int, *, datagrams: bool) -> None:
        """Give a place back."""
        self.open[number] -= 1
        self.open_sockets -= not datagrams

    def words(self, number: int, why: str) -> str:
        """Tell the limit that *why* stands for, with both numbers."""
        match why:
            case "draining":
                return "the gateway drains"
            case "listener":
                return f"it has {self.open[number]}, limit is {self.most[number]}"
            case "files":
                return f"{self.open_sockets} sockets are open, the system allows no more open files"
            case "share":
                kept = "the other listeners keep their share"
                return f"the gateway has {self.total}, limit is {self.limit}, and {kept}"
        return f"the gateway has {self.total}, limit is {self.limit}"

    def _full(self, number: int, *, datagrams: bool) -> str:
        most, mine = self.most[number], self.open[number]
        if most is not None and mine >= most:
            return "listener"
        if not datagrams and self.sockets is not None and self.open_sockets >= self.sockets:
            return "files"
        free = self.limit - self.total
        if free <= 0:
            return "gateway"
        if mine >= self._share and len(self.open) > 1:
            kept = sum(max(0, self._share - other) for at, other in enumerate(self.open) if at != number)
            if free <= kept:
                return "share"
        return ""

    @property
    def _share(self) -> int:
        """The places that each listener has to itself."""
        return int(self.limit * RESERVED) // len(self.open)

    def _make_room(self, number: int, now: float, why: str, *, forgeable: bool) -> bool:
        """Have one connection give way; return whether one did."""
        numbers = [number]
        if why in ("gateway", "files"):  # the most crowded listener first; each keeps its own share
            numbers += [at for at, count in enumerate(self.open) if count > self._share and at != number]
            numbers.sort(key=lambda at: -self.open[at])
        if why == "files":
            numbers = [at for at in numbers if at not in self.shared]
        for kind in ("udp",) if forgeable else KINDS[why == "files"]:
            for at in numbers:
                candidate = self.oldest(kind, at)
                if candidate is None or now - candidate.since < PATIENCE[kind]:
                    continue
                if candidate.vacate():
                    self.evicted += 1
                    return True
        return False
