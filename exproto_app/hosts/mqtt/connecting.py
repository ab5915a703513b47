"""Who connects to the broker, within which bounds, and on which terms the broker lets it in."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import attrs
from mqtt5 import ConnAckPacket, ConnectPacket, Will

from ...commands import Publish, Subscribe
from ...models import PLAIN, Message
from ...topics import split_share
from .packets import IDS, QOS, arguments, publish_packet

__all__ = ["Bounds", "Login", "Terms", "connect_packet", "shared_terms", "terms_of"]

GRACE: Final = 120
"""Seconds for which the broker keeps the session of a client that lost its network connection, even if it
is to end with the device: messages for it wait until the gateway is back."""


WILL_DELAY: Final = 2
"""Seconds for which the broker withholds a will: a device that comes back elsewhere never seems to be gone,
and one whose gateway is reconnected to the broker soon doesn't either."""


@attrs.frozen
class Login:
    """Who connects. *keepalive* and *session_expiry* are in seconds.

    With an expiry a session from before is resumed; without, it begins anew and ends with `disconnect`.
    """

    clientid: str
    username: str = ""
    password: str | None = attrs.field(default=None, repr=False)
    keepalive: int = 60
    session_expiry: int = 0
    will: Message | None = None


@attrs.frozen(kw_only=True)
class Bounds:
    """What one session may use.

    Counts: *messages* waiting for the broker, and likewise unacknowledged by it, with as many other commands;
    *receive_max* messages of QoS 1 and 2 of the broker that aren't handled yet, and *excess* more of one that
    doesn't keep to it: Mosquitto 2.0.11 answers each acknowledgement with 20 messages of its queue.
    Bytes: *queue* of what waits, *packet_max* of a packet that the broker may send.
    Times, in seconds: *timeout* for an answer, *ping* of silence after which the broker is asked for one.
    """

    messages: int = 256
    queue: int = 65_536
    receive_max: int = 64
    excess: int = 1_000
    packet_max: int = 1_048_576
    timeout: float = 10.0
    ping: float = 60.0


@attrs.frozen
class Terms:
    """What the broker's CONNACK allows (3.2.2.3)."""

    receive_max: int = IDS
    max_qos: int = 2
    retain: bool = True
    packet_max: int = 268_435_460
    wildcards: bool = True
    shared: bool = True
    subscription_ids: bool = True

    def misfit(self, command: object) -> str:
        """Return why the broker won't take *command*; empty if it may."""
        match command:
            case Publish(topic, payload, qos, retain, properties):
                if qos > self.max_qos:
                    return f"the broker takes QoS {self.max_qos} at most, not {qos}"
                if retain and not self.retain:
                    return "the broker keeps no retained messages"
                # The lengths of the packet, the topic and the properties, and the identifier, at most.
                size = len(topic.encode()) + len(payload) + 10
                if properties is not PLAIN:
                    size += properties.size
                if size > self.packet_max:
                    size = len(publish_packet(command, 1, duplicate=False))
                    return self.too_large(size) if size > self.packet_max else ""
            case Subscribe(topic):
                group, plain = split_share(topic)
                if group and not self.shared:
                    return "the broker has no shared subscriptions"
                if not self.wildcards and ("+" in plain or "#" in plain):
                    return "the broker has no wildcard subscriptions"
        return ""

    def too_large(self, size: int) -> str:
        """Return why a packet of *size* bytes isn't sent."""
        return f"the packet has {size} bytes, the broker takes {self.packet_max} at most"


shared_terms = lru_cache(maxsize=64)(Terms)
"""Thousands of sessions with one broker share what it allows."""


def connect_packet(login: Login, bounds: Bounds, *, again: bool) -> bytes:
    """Return the CONNECT; *again*: the broker may have the session, from an earlier network connection."""
    will = login.will
    return ConnectPacket(
        login.clientid,
        username=login.username or None,
        password=None if login.password is None else login.password.encode(),
        clean_start=not login.session_expiry and not again,
        will=None
        if will is None
        else Will(
            will.topic,
            payload=will.payload,
            qos=QOS[will.qos],
            retain=will.retain,
            will_delay_interval=WILL_DELAY,
            **arguments(will.properties),
        ),
        keep_alive=login.keepalive,
        session_expiry_interval=login.session_expiry or GRACE,
        receive_max=bounds.receive_max,
        max_packet_size=bounds.packet_max,
    ).write()


def terms_of(connack: ConnAckPacket) -> Terms:
    """Return what the broker allows."""
    return shared_terms(
        connack.receive_max,
        int(connack.max_qos),
        connack.retain_available,
        connack.max_packet_size or shared_terms().packet_max,
        connack.wildcard_subscription_available,
        connack.shared_subscription_available,
        connack.subscription_id_available,
    )
