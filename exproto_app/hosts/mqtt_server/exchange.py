"""What a logged-in MQTT client asks for, packet by packet, and how it is answered; sans-IO."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ...commands import DONE, Outcome
from ...commands import Publish as PublishCommand
from ...commands import Subscribe as SubscribeCommand
from ...commands import Unsubscribe as UnsubscribeCommand
from ...topics import check_filter
from .checks import check_levels, check_message_topic, shortened
from .codec import acknowledge, encode
from .packets import (
    V5,
    Ack,
    Disconnect,
    Kind,
    Packet,
    Ping,
    Publish,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
)
from .properties import SUBSCRIPTION_ID, TOPIC_ALIAS, of_message
from .reasons import MqttError, Reason

if TYPE_CHECKING:
    from .broker import MqttBroker
    from .connection import ClientConnection
    from .session import Session

__all__ = ["Exchange"]

log = logging.getLogger("exproto_app")

PIECE: Final = 50
"""Filters of one packet that are handled before others get their turn."""

SHOWN: Final = 64
"""Characters of a filter that a line of the log shows."""

REFUSED: Final = 0x80
PINGRESP: Final = b"\xd0\x00"


class Exchange:
    """The packets between *session* and its client on *connection*.

    *job* is what is left of a long packet; the next packet waits for it. Acknowledgements of messages leave
    in the order in which those came, each when those who get its message have room again. Meanwhile further
    packets are taken, for among them may be what makes room: so who doesn't stop sending by itself is
    acknowledged without waiting, once many are owed.
    """

    def __init__(self, broker: MqttBroker, session: Session, connection: ClientConnection) -> None:
        self.job: Iterator[None] | None = None
        self._broker = broker
        self._session = session
        self._connection = connection
        self._owed: deque[tuple[int, int, Outcome[None], str]] = deque()

    def go_on(self) -> None:
        """Do another piece of the job."""
        if self.job is not None and next(self.job, self) is self:
            self.job = None

    def handle(self, packet: Packet) -> None:
        """Take *packet*. Raises `MqttError`."""
        connection = self._connection
        match packet:
            case Publish():
                self._publish(packet)
            case Ack(kind, packet_id) if kind == Kind.PUBREL:
                if self._session.released(packet_id):
                    connection.send(acknowledge(Kind.PUBCOMP, packet_id))
                else:
                    self._answer(Ack(Kind.PUBCOMP, packet_id, Reason.UNKNOWN_ID))
            case Ack():
                connection.moved = True
                self._session.acknowledged(packet, connection)
            case Subscribe():
                if SUBSCRIPTION_ID in packet.properties:
                    raise MqttError("it uses subscription identifiers", Reason.NO_SUBSCRIPTION_IDS)
                self.job = self._subscribe(packet)
            case Unsubscribe():
                self.job = self._unsubscribe(packet)
            case Ping(kind) if kind == Kind.PINGREQ:
                connection.send(PINGRESP)
            case Disconnect():
                connection.disconnected(packet)
            case _:
                raise MqttError(f"{type(packet).__name__} is not for a client to send", Reason.PROTOCOL_ERROR)

    def _answer(self, packet: Packet) -> None:
        self._connection.send(encode(packet, self._connection.version))

    def _publish(self, packet: Publish) -> None:
        if TOPIC_ALIAS in packet.properties:
            raise MqttError("it uses topic aliases", Reason.ALIAS_INVALID)
        if SUBSCRIPTION_ID in packet.properties:
            raise MqttError("a PUBLISH has a subscription identifier", Reason.PROTOCOL_ERROR)
        check_message_topic(packet.topic)
        broker, session, connection = self._broker, self._session, self._connection
        properties = of_message(packet.properties)
        if properties.response_topic:
            check_message_topic(properties.response_topic)
        command = PublishCommand(packet.topic, packet.payload, packet.qos, packet.retain, properties)
        if not packet.qos:
            broker.publish(session, command)
            return
        kind = Kind.PUBACK if packet.qos == 1 else Kind.PUBREC
        if connection.version == V5:
            self._check_unfinished()
        if kind == Kind.PUBREC and not session.receives(packet.packet_id):
            connection.send(acknowledge(kind, packet.packet_id))
            return
        broker.count("door_messages_received", 1)
        outcome = broker.hub.serve(session, command)
        if outcome is DONE and not self._owed:
            connection.send(acknowledge(kind, packet.packet_id))
            return
        self._owed.append((kind, packet.packet_id, outcome, packet.topic))
        outcome.when_done(self._settle)
        self._settle()

    def _check_unfinished(self) -> None:
        """See that a client of MQTT 5 keeps to what its CONNACK said; MQTT 3.1.1 knows no such limit."""
        limit = self._broker.bounds.receive_max
        unfinished = self._session.receiving + sum(kind == Kind.PUBACK for kind, *_ in self._owed)
        if unfinished >= limit:
            words = f"{unfinished + 1} of its messages are unfinished, limit is {limit}"
            raise MqttError(words, Reason.RECEIVE_MAXIMUM)

    def _settle(self, _: object = None) -> None:
        """Acknowledge what the hub has taken, in the order in which it came (4.6)."""
        owed = self._owed
        while owed and (owed[0][2].done or len(owed) > self._broker.bounds.receive_max):
            kind, packet_id, outcome, topic = owed.popleft()
            if outcome.error is None:
                self._connection.send(acknowledge(kind, packet_id))
                continue
            text = "%s ! publish to %r refused for username %r: %s"
            log.warning(text, self._session, topic, self._session.client.username, outcome.error)
            if kind == Kind.PUBREC and self._connection.version == V5:
                self._session.released(packet_id)
            self._answer(Ack(kind, packet_id, Reason.QUOTA))

    def _subscribe(self, packet: Subscribe) -> Iterator[None]:
        codes, refused, first, why = [], 0, "", ""
        for number, one in enumerate(packet.filters, 1):
            code, words = self._granted(one)
            codes.append(code if self._connection.version == V5 else min(code, REFUSED))
            if words:
                refused += 1
                if refused == 1:
                    first, why = _cut(one.topic), words
            if number % PIECE == 0:
                yield
        if refused:
            text = "%s ! %d of %d subscriptions refused for username %r, the first to %r: %s"
            log.warning(text, self._session, refused, len(codes), self._session.client.username, first, why)
        self._answer(SubAck(packet.packet_id, codes))

    def _granted(self, one: Subscription) -> tuple[int, str]:
        """Subscribe; return the code of the answer, and why it is a refusal."""
        session = self._session
        try:
            check_levels(one.topic)
            check_filter(one.topic)
        except ValueError as error:
            return Reason.FILTER_INVALID, shortened(error)
        if one.no_local and one.topic.startswith("$share/"):
            raise MqttError("a shared subscription has the option No Local", Reason.PROTOCOL_ERROR)
        if not session.subscribe(one):
            number, size = len(session.subscriptions), session.filter_bytes
            return Reason.QUOTA, f"it has {number} that take {size} bytes, which is the limit"
        self._broker.hub.subscribe(session, SubscribeCommand(one.topic, one.qos))
        return one.qos, ""

    def _unsubscribe(self, packet: Unsubscribe) -> Iterator[None]:
        codes = []
        for number, topic in enumerate(packet.topics, 1):
            there = self._session.unsubscribe(topic)
            if there:
                self._broker.hub.serve(self._session, UnsubscribeCommand(topic))
            codes.append(0 if there else Reason.NO_SUBSCRIPTION)
            if number % PIECE == 0:
                yield
        self._answer(UnsubAck(packet.packet_id, codes))


def _cut(topic: str) -> str:
    return topic if len(topic) <= SHOWN else f"{topic[:SHOWN]}…"
