"""MQTT clients at a gateway: another listener, and the same rules for addresses as everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ...models import Address
from .endpoint import REFUSED

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["GuestGate"]

log = logging.getLogger("exproto_app")

End: TypeAlias = Callable[[Callable[[str], bool]], object]
"""Closes the clients whose host it is told to."""


class GuestGate:
    """What *gateway* tells a listener that isn't its own of those who come there."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.end: End = lambda of: None  # noqa: ARG005 - until there is somebody to end

    def admit(self, peer: Address) -> bool:
        """Count a connection of *peer*, or refuse it, logged and counted."""
        gateway = self._gateway
        room, now = gateway.room, gateway.runner.time()
        why = gateway.guard.refusal(peer.host, now)
        if why is not None:
            level = logging.INFO if why in ("denied", "banned") else logging.WARNING  # those were asked for
            self._refused(peer, why, level, REFUSED[why])
            return False
        if room.sockets is not None and room.open_sockets >= room.sockets:
            words = f"{room.open_sockets} sockets are open, the system allows no more open files"
            self._refused(peer, "files", logging.WARNING, words)
            return False
        room.open_sockets += 1
        gateway.guard.opened(peer.host, now)
        return True

    def leave(self, peer: Address) -> None:
        """Count the end of a connection that was admitted."""
        self._gateway.room.open_sockets -= 1
        self._gateway.guard.closed(peer.host)

    def login_failed(self, peer: Address) -> None:
        """Count a refused login."""
        self._gateway.login_failed(peer, ban=True)

    def _refused(self, peer: Address, why: str, level: int, words: str) -> None:
        count = self._gateway.runner.engine.count
        count("door_clients_refused")
        count("connections_refused")
        count(f"connections_refused.{why}")
        log.log(level, "%s ! MQTT client refused: %s", peer, words)
