"""Bad frames, by the address that they come from: looked at only where an address may be banned for them."""

from __future__ import annotations

from collections.abc import Callable

from ...core import Channel, Sniffer
from ...models import Address, ConnectionInfo
from ...tap import Event, Failed, Tap

__all__ = ["BadFrames", "accountable", "info_of"]


def info_of(one: Channel | Sniffer) -> ConnectionInfo:
    """Return how a connection is connected."""
    return one.conn.info if isinstance(one, Channel) else one.info


def accountable(info: ConnectionInfo) -> bool:
    """Return whether a device's address may be banned for what it does.

    On UDP it may be forged, to have somebody else banned; where we have dialled, we know whom we called.
    """
    return info.socktype not in ("udp", "unix") and not info.target


class BadFrames:
    """An observer and a watcher of an engine: calls *failed* with the address of each bad frame."""

    def __init__(self, failed: Callable[[Address], object]) -> None:
        self._failed = failed
        self._peers: dict[str, Address] = {}

    def connected(self, one: Channel | Sniffer) -> None:
        """Take note of a connection."""
        info = info_of(one)
        if accountable(info):
            self._peers[one.id] = info.peername

    def ended(self, one: Channel | Sniffer) -> None:
        """Forget it."""
        self._peers.pop(one.id, None)

    def __call__(self, tap: Tap, _: float, event: Event) -> None:
        """Take what happens."""
        if isinstance(event, Failed) and event.where == "framing" and (peer := self._peers.get(tap.id)):
            self._failed(peer)
