"""The packets of MQTT 3.1.1 and MQTT 5, for servers and clients. Section numbers are those of MQTT 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import attrs

from .properties import NONE, Properties

__all__ = [
    "V4",
    "V5",
    "Ack",
    "Auth",
    "ConnAck",
    "Connect",
    "Disconnect",
    "Kind",
    "Packet",
    "Ping",
    "Publish",
    "SubAck",
    "Subscribe",
    "Subscription",
    "UnsubAck",
    "Unsubscribe",
    "Will",
]

V4: Final = 4
"""The protocol version of MQTT 3.1.1."""

V5: Final = 5


class Kind:
    """Packet types (2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@attrs.define
class Will:
    """What the server publishes when the client has gone without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = NONE


@attrs.define
class Connect:
    """A client's first packet; *version* 4 is MQTT 3.1.1."""

    clientid: str
    version: int = V5
    clean_start: bool = True
    keepalive: int = 0
    username: str | None = None
    password: bytes | None = attrs.field(default=None, repr=False)
    will: Will | None = None
    properties: Properties = NONE


@attrs.define
class ConnAck:
    """The answer to CONNECT."""

    code: int = 0
    session_present: bool = False
    properties: Properties = NONE


@attrs.define
class Publish:
    """A message."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    packet_id: int = 0
    properties: Properties = NONE


@attrs.define
class Ack:
    """PUBACK, PUBREC, PUBREL or PUBCOMP, as *kind* says."""

    kind: int
    packet_id: int
    code: int = 0
    properties: Properties = NONE


@attrs.define
class Subscription:
    """A filter with its options (3.8.3.1); *handling* is about retained messages."""

    topic: str
    qos: int = 0
    no_local: bool = False
    as_published: bool = False
    handling: int = 0


@attrs.define
class Subscribe:
    """Filters to be subscribed to."""

    packet_id: int
    filters: Sequence[Subscription]
    properties: Properties = NONE


@attrs.define
class SubAck:
    """A code for each filter: the QoS granted, or why not."""

    packet_id: int
    codes: Sequence[int]
    properties: Properties = NONE


@attrs.define
class Unsubscribe:
    """Subscriptions to be taken back."""

    packet_id: int
    topics: Sequence[str]
    properties: Properties = NONE


@attrs.define
class UnsubAck:
    """A code for each filter; MQTT 3.1.1 has none."""

    packet_id: int
    codes: Sequence[int] = ()
    properties: Properties = NONE


@attrs.define
class Ping:
    """PINGREQ or PINGRESP, as *kind* says."""

    kind: int


@attrs.define
class Disconnect:
    """The last packet of either side."""

    code: int = 0
    properties: Properties = NONE


@attrs.define
class Auth:
    """A step of an enhanced authentication, which this server has none of."""

    code: int = 0
    properties: Properties = NONE


Packet: TypeAlias = (
    Connect | ConnAck | Publish | Ack | Subscribe | SubAck | Unsubscribe | UnsubAck | Ping | Disconnect | Auth
)
