"""The broker's messages of QoS 1 and 2, each acknowledged when it is handled."""

from __future__ import annotations

from functools import partial
from typing import Any

from mqtt5 import DisconnectReasonCode, PubAckPacket, PubCompPacket, PublishPacket, PubRecPacket

from .connecting import Bounds
from .packets import ProtocolError, message_of

__all__ = ["Incoming"]


class Incoming:
    """Messages of the broker, of one session with it; it may send them again on each network connection.

    *session* takes the acknowledgements, and has an owner for the messages.
    """

    __slots__ = ("_bounds", "_handled", "_session")

    def __init__(self, session: Any, bounds: Bounds) -> None:
        self._session = session
        self._bounds = bounds
        self._handled: dict[int, bool] = {}  # by packet identifier, of those that aren't finished yet

    def take(self, packet: PublishPacket) -> None:
        """Take a message of QoS 1 or 2. Raises `ProtocolError`."""
        packet_id, qos = packet.packet_id or 0, int(packet.qos)
        handled = self._handled.get(packet_id)
        if handled:
            self._taken(packet_id, qos)
        elif handled is None:
            self._check_room()
            self._handled[packet_id] = False
            taken = partial(self._taken, packet_id, qos)
            self._session.owner.message(message_of(packet, qos), packet.subscription_ids, taken)

    def released(self, packet_id: int) -> None:
        """Take a PUBREL: the broker has our PUBREC."""
        self._handled.pop(packet_id, None)
        self._session.write(PubCompPacket(packet_id).write())

    def forget(self) -> None:
        """Acknowledge nothing more: the broker has forgotten the session."""
        self._handled = {}

    def _check_room(self) -> None:
        number, bounds = len(self._handled), self._bounds
        if number < bounds.receive_max + bounds.excess:
            return
        words = (
            f"{number} of its messages are unacknowledged, and it sends more; "
            f"{bounds.receive_max} are allowed"
        )
        raise ProtocolError(words, DisconnectReasonCode.RECEIVE_MAX_EXCEEDED)

    def _taken(self, packet_id: int, qos: int) -> None:
        """Acknowledge a message that is handled; if that can't be now, when the broker sends it again."""
        if packet_id not in self._handled:
            return
        self._handled[packet_id] = True
        if not self._session.online:
            return
        if qos == 1:
            del self._handled[packet_id]
            self._session.write(PubAckPacket(packet_id).write())
        else:
            self._session.write(PubRecPacket(packet_id).write())
