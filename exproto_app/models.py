"""Facts about connections, clients and messages; frozen, compared by value."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, TypeAlias

import attrs

from .errors import SetupError

__all__ = [
    "Address",
    "Certificate",
    "ClientInfo",
    "ConnectionInfo",
    "Limits",
    "Message",
    "Reason",
    "SockType",
    "is_loopback",
]

SockType: TypeAlias = Literal["tcp", "ssl", "udp", "dtls"]

Reason: TypeAlias = Literal[
    "device closed",
    "terminated",
    "timeout",
    "taken over",
    "kicked",
    "restarted",
    "lost",
    "error",
    "shutdown",
]
"""Why a connection ended; the host's own words are in `Connection.close_detail`."""


def is_loopback(host: str) -> bool:
    """Tell whether *host*, a name or an address, is this machine for itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@attrs.frozen
class Address:
    """One end of a socket; `str()` gives `host:port`, IPv6 in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class Certificate:
    """What the device's TLS certificate says: its distinguished and its common name."""

    dn: str = ""
    cn: str = ""


@attrs.frozen
class ConnectionInfo:
    """How a device is connected.

    *socktype* is `tcp`, `ssl`, `udp` or `dtls` (EMQX reports DTLS as `ssl`); *peername* is the device's
    end, *sockname* ours; *peercert* is None unless the device showed a certificate.
    """

    socktype: SockType
    peername: Address
    sockname: Address
    peercert: Certificate | None = None


@attrs.frozen
class ClientInfo:
    """Who a device is to the broker.

    *proto_name* is filled with the router's name where it is empty. *mountpoint* is put before every topic
    that the device publishes or subscribes to, and taken off what it is sent. *keepalive* is in seconds, 0
    for none: a device silent for one and a half times as long is timed out.
    """

    clientid: str
    username: str = ""
    proto_name: str = ""
    proto_ver: str = ""
    mountpoint: str = ""
    keepalive: int = 0


@attrs.frozen
class Message:
    """A message of the broker; *id*, *sender* and *timestamp* don't count in `==`.

    *sender* is the publisher's clientid where the host tells it, *timestamp* is in milliseconds since 1970.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    id: str = attrs.field(default="", eq=False)
    sender: str = attrs.field(default="", eq=False)
    timestamp: int = attrs.field(default=0, eq=False)


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise SetupError(f"limit {attribute.name} is {value}; it must be above 0")


@attrs.frozen(kw_only=True)
class Limits:
    """What one connection may use; at a limit reading pauses, or something is refused, logged and counted.

    Sizes, in bytes: *inbox* received and not yet handled, beyond it reading pauses; *outbox* to be sent,
    beyond it no new turn starts; *outbox_max* to be sent, beyond it the device counts as lost.
    Counts: *deliveries* waiting for `on_deliver`, beyond it the newest are dropped; *commands* waiting for
    the broker; *requests* waiting for an answer; *tasks* started by `spawn`.
    Where several protocols share a listener: *sniff_bytes* that may tell which it is, and *sniff_time*,
    in seconds, for them to come.
    Times, in seconds: *handler_timeout* of one async handler; *end_timeout* that a closing connection waits
    for its handler and its lanes; *first_frame* from a device that says nothing useful and doesn't register;
    *stall* of a device that doesn't read what is sent; *datagram_idle* until a silent UDP peer counts as gone
    (a timer of the app's own is the better judge, where it runs).
    """

    inbox: int = attrs.field(default=65_536, validator=_positive)
    outbox: int = attrs.field(default=65_536, validator=_positive)
    outbox_max: int = attrs.field(default=1_048_576, validator=_positive)
    deliveries: int = attrs.field(default=1_000, validator=_positive)
    commands: int = attrs.field(default=1_000, validator=_positive)
    requests: int = attrs.field(default=100, validator=_positive)
    tasks: int = attrs.field(default=100, validator=_positive)
    handler_timeout: float = attrs.field(default=60.0, validator=_positive)
    end_timeout: float = attrs.field(default=5.0, validator=_positive)
    first_frame: float = attrs.field(default=60.0, validator=_positive)
    stall: float = attrs.field(default=30.0, validator=_positive)
    datagram_idle: float = attrs.field(default=120.0, validator=_positive)
    sniff_bytes: int = attrs.field(default=1_024, validator=_positive)
    sniff_time: float = attrs.field(default=30.0, validator=_positive)
