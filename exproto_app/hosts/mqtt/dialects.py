"""The versions of MQTT that a session can speak: what differs in the packets of 5 and of 3.1.1.

A session has the packets of MQTT 5 in its hands, whatever the broker speaks: those of 3.1.1 are translated
here, and what 3.1.1 has no place for is left out. Section numbers without a version are those of MQTT 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import attrs
from mqtt5 import (
    ConnAckPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PublishPacket,
    PubRelPacket,
    PubRelReasonCode,
    SubAckPacket,
    SubAckReasonCode,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
)

from ...commands import Publish, Subscribe
from ..mqtt_server import codec
from ..mqtt_server.packets import V4, Connect, Kind, SubAck, Subscription, UnsubAck, Will
from ..mqtt_server.packets import Publish as PublishV4
from ..mqtt_server.packets import Subscribe as SubscribeV4
from ..mqtt_server.packets import Unsubscribe as UnsubscribeV4
from ..mqtt_server.properties import encode_varint
from ..mqtt_server.reasons import MqttError
from .connecting import Bounds, Login, Terms, connect_packet, shared_terms, terms_of
from .packets import QOS, ProtocolError, parsed, plain_publish, publish_packet, reason_of, subscribe_packet
from .reasons import NO_MQTT5, NO_MQTT311, OLD_CODES, TRIED, UNSUPPORTED_VERSION, in_words

__all__ = ["MQTT_5", "MQTT_311", "TRIAL", "Answer", "Dialect"]

_NOT_FOUND: Final = PubRelReasonCode.PACKET_ID_NOT_FOUND


@attrs.frozen(kw_only=True)
class Answer:
    """What the broker says to CONNECT: *code* 0 lets the client in, on *terms*; else *words* say why not."""

    code: int = 0
    words: str = ""
    present: bool = False
    keepalive: int | None = None
    terms: Terms = attrs.field(factory=shared_terms)


class Dialect(Protocol):
    """One version of MQTT, as a session speaks it.

    *is_5*: messages have properties, subscriptions have options, the broker says why it refuses something.
    """

    @property
    def name(self) -> str: ...
    @property
    def is_5(self) -> bool: ...

    @property
    def plain_publish(self) -> Callable[[bytes, bytes, int, int], bytes]:
        """Write a message without properties; see `packets.plain_publish`."""
        ...

    def connect(self, login: Login, bounds: Bounds, *, again: bool) -> bytes:
        """Write the CONNECT; *again*: the broker may have the session."""
        ...

    def answer(self, packet: memoryview, body: memoryview) -> Answer:
        """Read the CONNACK. Raises `ProtocolError`."""
        ...

    def publish(self, command: Publish, packet_id: int, *, duplicate: bool) -> bytes:
        """Write a message."""
        ...

    def subscribe(self, command: Subscribe, packet_id: int, identifier: int, *, retained: bool) -> bytes:
        """Write a SUBSCRIBE."""
        ...

    def unsubscribe(self, topic: str, packet_id: int) -> bytes:
        """Write an UNSUBSCRIBE."""
        ...

    def unknown(self, packet_id: int) -> bytes:
        """Write the PUBREL of a message that we know nothing of."""
        ...

    def goodbye(self, *, with_will: bool, expiry: int) -> bytes:
        """Write the DISCONNECT that ends the session, empty where just closing the connection does it."""
        ...

    def complaint(self, code: DisconnectReasonCode) -> bytes:
        """Write what tells the broker that it broke the rules, empty where nothing does."""
        ...

    def reason(self, packet: memoryview, body: memoryview, at: int) -> tuple[int, str]:
        """Return the reason code at *at* in *body*, and it in words."""
        ...

    def parsed(self, packet: memoryview, head: int) -> Any:
        """Return a whole *packet*, *head* bytes of which are before its body, as MQTT 5's codec does.

        Raises `ProtocolError`.
        """
        ...


class _Mqtt5:
    """MQTT 5."""

    name = "MQTT 5"
    is_5 = True
    plain_publish = staticmethod(plain_publish)
    connect = staticmethod(connect_packet)
    publish = staticmethod(publish_packet)
    subscribe = staticmethod(subscribe_packet)
    reason = staticmethod(reason_of)

    def answer(self, packet: memoryview, body: memoryview) -> Answer:
        """Read the CONNACK; one of MQTT 3 is two bytes long."""
        if len(body) == 2:
            return Answer(code=UNSUPPORTED_VERSION, words=NO_MQTT5)
        if len(body) > 2 and body[1] >= 0x80:
            code, words = reason_of(packet, body, 1)
            return Answer(code=code, words=NO_MQTT5 if code == UNSUPPORTED_VERSION else words)
        connack = parsed(packet)
        if not isinstance(connack, ConnAckPacket):
            raise ProtocolError("its first packet is not a CONNACK")
        return Answer(
            present=connack.session_present, keepalive=connack.server_keep_alive, terms=terms_of(connack)
        )

    def unsubscribe(self, topic: str, packet_id: int) -> bytes:
        """Write an UNSUBSCRIBE."""
        return UnsubscribePacket(packet_id, [topic]).write()

    def unknown(self, packet_id: int) -> bytes:
        """Write the PUBREL of a message that we know nothing of."""
        return PubRelPacket(packet_id, reason_code=_NOT_FOUND).write()

    def goodbye(self, *, with_will: bool, expiry: int) -> bytes:
        """Write the DISCONNECT: the broker publishes the will or forgets it (3.14.2.1)."""
        code = DisconnectReasonCode.NORMAL_DISCONNECTION
        if with_will:
            code = DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
        return DisconnectPacket(reason_code=code, session_expiry_interval=expiry).write()

    def complaint(self, code: DisconnectReasonCode) -> bytes:
        """Write a DISCONNECT."""
        return DisconnectPacket(reason_code=code).write()

    def parsed(self, packet: memoryview, head: int) -> Any:  # noqa: ARG002 - as `Dialect` has it
        """Read *packet*."""
        return parsed(packet)


class _Mqtt311:
    """MQTT 3.1.1: no properties, no reasons, a clean session or one that never expires."""

    name = "MQTT 3.1.1"
    is_5 = False

    def connect(self, login: Login, bounds: Bounds, *, again: bool) -> bytes:  # noqa: ARG002 - as `Dialect` has it
        """Write the CONNECT. The session is clean unless it is to outlive the connection."""
        will, password = login.will, login.password
        packet = Connect(
            login.clientid,
            V4,
            clean_start=not login.session_expiry,
            keepalive=login.keepalive,
            # A password needs a username before it (3.1.1: 3.1.2.9), which may be empty.
            username=login.username or (None if password is None else ""),
            password=None if password is None else password.encode(),
            will=None if will is None else Will(will.topic, will.payload, will.qos, will.retain),
        )
        return codec.encode(packet, V4)

    def answer(self, packet: memoryview, body: memoryview) -> Answer:  # noqa: ARG002 - as `Dialect` has it
        """Read the CONNACK, its code as MQTT 5 has it."""
        if len(body) < 2:
            raise ProtocolError("its CONNACK is shorter than it says")
        code = body[1]
        if not code:
            return Answer(present=bool(body[0] & 1))
        code = OLD_CODES.get(code, max(code, 0x80))
        words = NO_MQTT311 if code == UNSUPPORTED_VERSION else in_words(code)
        return Answer(code=code, words=words)

    @staticmethod
    def plain_publish(topic: bytes, payload: bytes, flags: int, packet_id: int) -> bytes:
        """Write a message; *topic* has its length in front."""
        behind = packet_id.to_bytes(2, "big") if packet_id else b""
        size = len(topic) + len(behind) + len(payload)
        if size < 128:
            return b"".join((bytes((0x30 | flags, size)), topic, behind, payload))
        return b"".join((bytes((0x30 | flags,)), encode_varint(size), topic, behind, payload))

    def publish(self, command: Publish, packet_id: int, *, duplicate: bool) -> bytes:
        """Write a message, without its properties."""
        number = packet_id if command.qos else 0
        return codec.encode(
            PublishV4(command.topic, command.payload, command.qos, command.retain, duplicate, number), V4
        )

    def subscribe(self, command: Subscribe, packet_id: int, identifier: int, *, retained: bool) -> bytes:  # noqa: ARG002 - as `Dialect` has it
        """Write a SUBSCRIBE, which always brings retained messages."""
        return codec.encode(SubscribeV4(packet_id, [Subscription(command.topic, command.qos)]), V4)

    def unsubscribe(self, topic: str, packet_id: int) -> bytes:
        """Write an UNSUBSCRIBE."""
        return codec.encode(UnsubscribeV4(packet_id, [topic]), V4)

    def unknown(self, packet_id: int) -> bytes:
        """Write the PUBREL of a message that we know nothing of, like any other."""
        return codec.acknowledge(Kind.PUBREL, packet_id)

    def goodbye(self, *, with_will: bool, expiry: int) -> bytes:  # noqa: ARG002 - as `Dialect` has it
        """Write the DISCONNECT, by which the broker forgets the will (3.1.1: 3.14.4)."""
        return b"" if with_will else b"\xe0\0"

    def complaint(self, code: DisconnectReasonCode) -> bytes:  # noqa: ARG002 - as `Dialect` has it
        """Write nothing."""
        return b""

    def reason(self, packet: memoryview, body: memoryview, at: int) -> tuple[int, str]:  # noqa: ARG002 - as `Dialect` has it
        """Return success: there is nothing else."""
        return 0, ""

    def parsed(self, packet: memoryview, head: int) -> Any:
        """Read *packet*, into what MQTT 5's codec would make of its like."""
        try:
            read = codec.decode(packet[0], bytes(packet[head:]), V4)
        except MqttError as error:
            words = f"it sent {bytes(packet[:32])!r}, which is not a packet: {error}"
            raise ProtocolError(words, DisconnectReasonCode.MALFORMED_PACKET) from None
        match read:
            case PublishV4(topic, payload, qos, retain, duplicate, number):
                return PublishPacket(
                    topic, payload, qos=QOS[qos], retain=retain, packet_id=number or None, duplicate=duplicate
                )
            case SubAck(number, codes):
                known = [SubAckReasonCode(code if code < 3 else 0x80) for code in codes]
                return SubAckPacket(number, known)
            case UnsubAck(number):
                return UnsubAckPacket(number, [UnsubAckReasonCode.SUCCESS])
        return read


class _Trial(_Mqtt311):
    """MQTT 3.1.1, to see whether the broker speaks it: it is never taken for one that lets the client in."""

    def connect(self, login: Login, bounds: Bounds, *, again: bool) -> bytes:
        """Write a CONNECT without a will, since no DISCONNECT may follow."""
        return super().connect(attrs.evolve(login, will=None), bounds, again=again)

    def answer(self, packet: memoryview, body: memoryview) -> Answer:
        """Read the CONNACK, as a refusal."""
        answer = super().answer(packet, body)
        return answer if answer.code else Answer(code=TRIED, words="MQTT 3.1.1 works")


MQTT_5: Final[Dialect] = _Mqtt5()
MQTT_311: Final[Dialect] = _Mqtt311()
TRIAL: Final[Dialect] = _Trial()
