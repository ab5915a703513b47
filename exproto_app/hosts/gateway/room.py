"""Places for connections: in all, for each listener, and who gives way. No I/O, no clock.

Each listener has a share that the others can't take, so that a flood at one of them, of UDP peers for
example, leaves room at the rest. Where there is no room, what has proved nothing yet goes first: half-open
connections (a TLS handshake or a PROXY header that isn't there), then UDP peers, then TCP devices that have
said nothing, the oldest first. UDP addresses may be forged, so a UDP peer displaces UDP peers alone. Who has
registered, or has said something on TCP, keeps its place.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

import attrs

__all__ = ["Candidate", "Room", "crowded"]

RESERVED: Final = 0.1
"""Part of all places that is kept for the listeners, in equal shares."""

SCAN: Final = 25e-6
"""Seconds, for each connection, between two looks for those that may give way: about 20 times their cost."""

PATIENCE: Final = {"half-open": 1.0, "udp": 0.0, "tcp": 5.0}
"""Seconds that each kind has to prove something before its place may be taken."""

KINDS: Final = (("half-open", "udp", "tcp"), ("half-open", "tcp"))
"""Who gives way to a newcomer on TCP, in that order; the latter where sockets are short."""

Key = TypeVar("Key")


@attrs.frozen(eq=False)
class Candidate:
    """A connection that may have to give way, of the listener of that *number*; *since* when it began.

    *kind* is `half-open`, `udp` or `tcp`. *vacate* gives its place up at once, and tells whether it still had
    one.
    """

    kind: str
    number: int
    since: float
    vacate: Callable[[], bool]


class Candidates(Protocol):
    def __call__(self) -> Iterable[Candidate]:
        """Return the connections that have proved nothing yet."""
        ...


@attrs.define(eq=False)
class Room:
    """*limit* places in all, of which sockets may have *sockets*; *most* has each listener's own limit."""

    limit: int
    most: list[int | None]
    candidates: Candidates
    sockets: int | None = None
    open: list[int] = attrs.field(init=False)
    open_sockets: int = 0
    evicted: int = 0
    _waiting: dict[tuple[str, int], deque[Candidate]] = attrs.field(factory=dict)
    _scanned: float | None = None

    def __attrs_post_init__(self) -> None:
        self.open = [0] * len(self.most)

    @property
    def total(self) -> int:
        """How many places are taken."""
        return sum(self.open)

    def enter(self, number: int, now: float, *, datagrams: bool) -> str:
        """Take a place at listener *number*; return nothing, or which limit there is no way around."""
        why = self._full(number, datagrams=datagrams)
        while why and self._make_room(number, now, datagrams=datagrams, why=why):
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

    def _make_room(self, number: int, now: float, *, datagrams: bool, why: str) -> bool:
        """Have one connection give way; tell whether one did."""
        numbers = [number]
        if why in ("gateway", "files"):  # the most crowded listener first; each keeps its own share
            numbers += [at for at, count in enumerate(self.open) if count > self._share and at != number]
            numbers.sort(key=lambda at: -self.open[at])
        for kind in ("udp",) if datagrams else KINDS[why == "files"]:
            for at in numbers:
                waiting = self._find(kind, at, now)
                while waiting and now - waiting[0].since >= PATIENCE[kind]:
                    if waiting.popleft().vacate():
                        self.evicted += 1
                        return True
        return False

    def _find(self, kind: str, number: int, now: float) -> deque[Candidate]:
        """Return what may give way, the oldest first; rarely looked up anew."""
        found = self._waiting.get((kind, number))
        if not found and (self._scanned is None or now - self._scanned >= SCAN * self.total):
            self._scanned = now
            self._waiting.clear()
            for candidate in sorted(self.candidates(), key=lambda candidate: candidate.since):
                self._waiting.setdefault((candidate.kind, candidate.number), deque()).append(candidate)
            found = self._waiting.get((kind, number))
        return found if found is not None else deque()


def crowded(under_way: Iterable[tuple[Key, str]]) -> Key:
    """Return the oldest of what is *under_way* from the host that has most of it: keys and hosts, by age."""
    items = list(under_way)
    most, _ = Counter(host for _, host in items).most_common(1)[0]
    return next(key for key, host in items if host == most)
