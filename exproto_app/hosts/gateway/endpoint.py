"""One open listener, or one target that is dialled: who may connect there, and how refusals are logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from ...core import Engine
from ...models import Address, Certificate, ConnectionInfo
from ...router import Router
from .listeners import Listen

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Endpoint", "HalfOpen"]

log = logging.getLogger("exproto_app")

SHOWN: Final = 64
"""Bytes of a bad PROXY header that the log shows."""

REFUSED: Final = {
    "denied": "its network is not allowed",
    "banned": "its address is banned",
    "rate": "its address opens too many connections a second",
    "address": "its address has too many connections",
}


class HalfOpen(Protocol):
    """A connection whose handshake, or PROXY header, isn't there yet."""

    peer: Address
    since: float

    @property
    def host(self) -> str:
        """The address that it comes from."""
        ...

    def vacate(self, why: str = ...) -> bool:
        """Give it up; return whether it was still half-open."""
        ...

    def give_up(self) -> None:
        """Close it, because the gateway stops."""
        ...


@attrs.define(eq=False)
class Endpoint:
    """One open listener, or one target that is dialled: what its connections share.

    *context*: of the ssl module, or of pyOpenSSL for DTLS; None without encryption. *layer* takes a link that
    is connected in place of the engine, and hands it over later.
    """

    gateway: Gateway
    number: int
    listen: Listen
    routers: Sequence[Router[Any]]
    context: Any = None
    pending: dict[HalfOpen, None] = attrs.field(factory=dict)
    layer: Callable[[Any, ConnectionInfo], object] | None = None

    @property
    def engine(self) -> Engine:
        """The engine that takes the connections."""
        return self.gateway.runner.engine

    def info(
        self, peer: Address, sockname: Address, certificate: Certificate | None = None
    ) -> ConnectionInfo:
        """Return how a device of this listener is connected."""
        kind = self.listen.kind
        if not kind.dialled:
            return ConnectionInfo(kind.socktype, peer, sockname, certificate)
        return ConnectionInfo(kind.socktype, peer, sockname, certificate, str(self.listen), self.listen.name)

    def connected(self, link: Any, info: ConnectionInfo) -> None:
        """Begin the connection of *link*, or what stands between the two."""
        if self.layer is None:
            self.engine.connected(link, info, self.routers)
        else:
            self.layer(link, info)

    @property
    def open(self) -> int:
        """How many connections there are, half-open ones among them."""
        return self.gateway.room.open[self.number]

    def admit(self, peer: Address, *, datagrams: bool = False, proved: bool = False) -> bool:
        """Count a new connection, or refuse it because of its address or a limit, logged and counted.

        *proved*: it sends datagrams, and yet its address can't be forged.
        """
        if not self.judge(peer):
            return False
        if self.take_place(peer, datagrams=datagrams, proved=proved):
            return True
        if self.listen.kind.judged:
            self.gateway.guard.closed(peer.host)
        return False

    def judge(self, peer: Address) -> bool:
        """Count a connection of *peer*, or refuse it because of its address, logged and counted."""
        gateway = self.gateway
        if not self.listen.kind.judged:
            return True
        now = gateway.runner.time()
        why = gateway.guard.refusal(peer.host, now)
        if why is None:
            gateway.guard.opened(peer.host, now)
            return True
        level = logging.INFO if why in ("denied", "banned") else logging.WARNING  # those were asked for
        self._refused(peer, why, level, REFUSED[why])
        return False

    def settled(self, half: HalfOpen) -> bool:
        """Take note that *half* is half-open no more; return whether it still was."""
        if half not in self.pending:
            return False
        del self.pending[half]
        self.gateway.handshakes.ended(half)
        return True

    def take_place(self, peer: Address, *, datagrams: bool = False, proved: bool = False) -> bool:
        """Count a new connection, or refuse it because of a limit of the gateway's, logged and counted."""
        gateway = self.gateway
        if gateway.stopping:
            return False
        why = gateway.room.enter(self.number, gateway.runner.time(), datagrams=datagrams, proved=proved)
        if not why:
            return True
        who = f"{self.listen}: " if why == "listener" else ""
        self._refused(peer, why, logging.WARNING, who + gateway.room.words(self.number, why))
        return False

    def leave(self, peer: Address | None, *, datagrams: bool = False) -> None:
        """Count the end of a connection of *peer*; None where its address didn't count."""
        self.gateway.room.leave(self.number, datagrams=datagrams)
        if peer is not None and self.listen.kind.judged:
            self.gateway.guard.closed(peer.host)

    def headless(self, peer: Address, why: str, data: bytes) -> None:
        """Count and log a connection that is closed for want of a PROXY header; *data* is what came."""
        self.engine.count("proxy_headers_refused")
        shown = data[:SHOWN].hex(" ")
        log.warning("%s ! connection closed: %s; %d bytes came: %s", peer, why, len(data), shown)

    def unshaken(self, peer: Address, why: str, what: str = "TLS") -> None:
        """Count and log a handshake of *what* that failed."""
        self.engine.count(f"{what.lower()}_handshakes_failed")
        log.warning("%s ! %s handshake failed on %s: %s", peer, what, self.listen, why)

    def probed(self, peer: Address) -> None:
        """Count a connection that ended without a byte: somebody looked whether we listen."""
        self.engine.count("connections_probed")
        log.debug("%s = connected to %s and closed without a byte", peer, self.listen)

    def _refused(self, peer: Address, why: str, level: int, words: str) -> None:
        self.engine.count("connections_refused")
        self.engine.count(f"connections_refused.{why}")
        log.log(level, "%s ! connection refused: %s", peer, words)
