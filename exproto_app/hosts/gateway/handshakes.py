"""Whose TLS handshake begins when: one in each round of the event loop, and so many under way. No I/O.

A handshake costs a millisecond or more of CPU, mostly for one signature, and some 100 KB until it is done.
Anybody may ask for one, hang up and ask again. So they begin one after another, and devices are heard in
between; addresses take turns. Where too many are under way, the oldest of the address with the most of them
is given up.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

__all__ = ["MOST", "Handshakes", "crowded"]

MOST: Final = 100
"""Handshakes that are under way at the same time."""

Key = TypeVar("Key")


class HalfOpen(Protocol):
    """A connection whose handshake, or PROXY header, isn't there yet; `Endpoint` has more of it."""

    @property
    def host(self) -> str:
        """The address that it comes from."""
        ...

    def vacate(self, why: str = ...) -> bool:
        """Give it up; return whether it was still half-open."""
        ...


class Handshakes:
    """The handshakes that are under way, and those that wait; *soon* has a function called in the next round.

    Those that wait hold nothing but their socket.
    """

    def __init__(self, soon: Callable[[Callable[[], object]], object]) -> None:
        self._soon = soon
        self._under_way: dict[HalfOpen, str] = {}
        self._waiting: OrderedDict[str, deque[tuple[HalfOpen, Callable[[], object]]]] = OrderedDict()
        self._left: set[HalfOpen] = set()  # of those that wait
        self._running = False

    def wait(self, one: HalfOpen, begin: Callable[[], object]) -> None:
        """Have *begin* called in the turn of *one*, unless it has `ended` before."""
        self._waiting.setdefault(one.host, deque()).append((one, begin))
        self._left.add(one)
        if not self._running:
            self._running = True
            self._soon(self._run)

    def enter(self, one: HalfOpen) -> None:
        """Count *one* among those that are under way; beyond the limit another one is given up for it."""
        if len(self._under_way) >= MOST:
            crowded(self._under_way.items()).vacate("too many handshakes are under way")
        self._under_way[one] = one.host

    def ended(self, one: HalfOpen) -> None:
        """Take note that *one* is half-open no more."""
        self._under_way.pop(one, None)
        self._left.discard(one)

    def _run(self) -> None:
        """Begin the next one, of the address that hasn't had a turn for longest."""
        while self._waiting:
            host, waiting = self._waiting.popitem(last=False)
            one, begin = waiting.popleft()
            if waiting:
                self._waiting[host] = waiting
            if one in self._left:
                self._left.discard(one)
                self.enter(one)
                begin()
                break
        self._running = bool(self._waiting)
        if self._running:
            self._soon(self._run)


def crowded(under_way: Iterable[tuple[Key, str]]) -> Key:
    """Return the oldest of what is *under_way* from the host that has most of it: keys and hosts, by age."""
    items = list(under_way)
    most, _ = Counter(host for _, host in items).most_common(1)[0]
    return next(key for key, host in items if host == most)
