"""Facts about connections, clients and messages; frozen, compared by value."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

import attrs

from .errors import SetupError

__all__ = [
    "PLAIN",
    "Address",
    "Certificate",
    "ClientInfo",
    "ConnectionInfo",
    "Limits",
    "Login",
    "Message",
    "Properties",
    "Reason",
    "SockType",
    "is_loopback",
]

SockType: TypeAlias = Literal["tcp", "ssl", "udp", "dtls", "unix", "serial", "ws", "wss", "mqtt"]

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
    """Return whether *host*, a name or an address, is this machine for itself alone."""
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

    *socktype* is `tcp`, `ssl`, `udp`, `dtls` (EMQX reports DTLS as `ssl`), `unix`, `serial`, `ws`, `wss` or
    `mqtt`; *peername* is the device's end (of a Unix socket, its path and the other process's number; of a
    serial line, its device file; of a modem, its id), *sockname* ours; *peercert* is None unless the device
    presented a certificate. *target* is the URL that was dialled or opened, empty if the device connected to
    us. *name* is the URL's `?name=`, or else its host; if the device connected to us, the host of
    *peername*.
    """

    socktype: SockType
    peername: Address
    sockname: Address
    peercert: Certificate | None = None
    target: str = ""
    name: str = attrs.field(default=attrs.Factory(lambda self: self.peername.host, takes_self=True))


@attrs.frozen
class ClientInfo:
    """Who a device is to the broker.

    *proto_name* is the router's name by default. *mountpoint* is prefixed to every topic that the device
    publishes or subscribes to, and removed from the topics of the messages it gets. *keepalive* is in
    seconds, 0 for none: a device that is silent for one and a half times as long is timed out.
    """

    clientid: str
    username: str = ""
    proto_name: str = ""
    proto_ver: str = ""
    mountpoint: str = ""
    keepalive: int = 0


_SETTER: Final = object.__setattr__.__get__

PAIR: Final = 64
"""Bytes that a pair of user properties takes beside its text."""


@attrs.frozen(repr=False)
class Properties:
    """What MQTT 5 adds to a message; `Message` explains each. *utf8*: its payload is text."""

    expiry: int | None = None
    content_type: str = ""
    response_topic: str = ""
    correlation_data: bytes = b""
    user_properties: tuple[tuple[str, str], ...] = ()
    utf8: bool = False

    def __repr__(self) -> str:
        return f"Properties({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"

    @property
    def size(self) -> int:
        """How many bytes they take, roughly."""
        texts = [self.content_type, self.response_topic]
        texts += [text for pair in self.user_properties for text in pair]
        return sum(map(len, texts)) + len(self.correlation_data) + PAIR * (1 + len(self.user_properties))

    def given(self) -> dict[str, Any]:
        """Return those that are there, by name."""
        values = attrs.asdict(self, recurse=False)
        return {name: value for name, value in values.items() if value or (name == "expiry" and value == 0)}


PLAIN: Final = Properties()
"""Of a message without any."""


@attrs.frozen(init=False)
class Message:
    """A message of the broker; *id*, *sender* and *timestamp* don't count in `==`.

    *sender* is the publisher's clientid, if the host reports it; *timestamp* is in milliseconds since 1970.

    With MQTT 5: *expiry* is the number of seconds, from now, for which the message is valid, None for ever;
    *content_type* says what the payload is; *response_topic* is where an answer is to be published, with the
    same *correlation_data*; *user_properties* are any pairs of text.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    id: str = attrs.field(eq=False)
    sender: str = attrs.field(eq=False)
    timestamp: int = attrs.field(eq=False)
    properties: Properties

    def __init__(  # noqa: PLR0917 - those before `properties` are as attrs would make them
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        id: str = "",  # noqa: A002 - as the attribute
        sender: str = "",
        timestamp: int = 0,
        properties: Properties = PLAIN,
        *,
        expiry: int | None = None,
        content_type: str = "",
        response_topic: str = "",
        correlation_data: bytes = b"",
        user_properties: Iterable[tuple[str, str]] = (),
    ) -> None:
        if expiry is not None or content_type or response_topic or correlation_data or user_properties:
            pairs = tuple(user_properties)
            given = Properties(expiry, content_type, response_topic, correlation_data, pairs).given()
            properties = attrs.evolve(properties, **given)
        put = _SETTER(self)  # as attrs would do it, but for one call less for each message
        put("topic", topic)
        put("payload", payload)
        put("qos", qos)
        put("retain", retain)
        put("id", id)
        put("sender", sender)
        put("timestamp", timestamp)
        put("properties", properties)

    @property
    def expiry(self) -> int | None:
        """For how many seconds, from now, the message is valid; None for ever."""
        return self.properties.expiry

    @property
    def content_type(self) -> str:
        """What the payload is, such as `application/json`."""
        return self.properties.content_type

    @property
    def response_topic(self) -> str:
        """Where an answer is to be published; empty if none is wanted."""
        return self.properties.response_topic

    @property
    def correlation_data(self) -> bytes:
        """What the answer has to carry too."""
        return self.properties.correlation_data

    @property
    def user_properties(self) -> tuple[tuple[str, str], ...]:
        """Pairs of text."""
        return self.properties.user_properties


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise SetupError(f"limit {attribute.name} is {value}; it must be above 0")


@attrs.frozen
class Login:
    """A device that asks to register, as `on_login` gets it.

    *client* is who it wants to be, *password* what it gave, if anything. *info* says how it is connected,
    *protocol* is the name of its router.
    """

    client: ClientInfo
    password: str | None = attrs.field(repr=False)
    info: ConnectionInfo
    protocol: str

    @property
    def clientid(self) -> str:
        """The clientid that it wants."""
        return self.client.clientid

    @property
    def username(self) -> str:
        """The username that it gave; empty if none."""
        return self.client.username

    @property
    def address(self) -> Address:
        """Where it is connected from."""
        return self.info.peername

    @property
    def certificate(self) -> Certificate | None:
        """Its client certificate; None without one."""
        return self.info.peercert


@attrs.frozen(kw_only=True)
class Limits:
    """What one connection may use; at a limit reading pauses, or something is refused, logged and counted.

    Sizes, in bytes: *inbox* received and not yet handled, beyond it reading pauses; *outbox* to be sent,
    beyond it no new turn starts; *outbox_max* to be sent, beyond it the device counts as lost;
    *deliveries_bytes* and *commands_bytes* of what *deliveries* and *commands* count; *memory* that all
    connections of this process hold together, unfinished frames included: beyond it those that hold most are
    closed.
    Counts: *deliveries* waiting for `on_deliver`, beyond it the newest are dropped; *commands* waiting for
    the broker, beyond it no new turn starts, and what nobody awaits is dropped when the turn has ended;
    *waiting_sends* waiting for the outcomes that `send(after=…)` names, beyond it no new turn starts;
    *requests* waiting for an answer; *tasks* started by `spawn`; *children*
    behind one line.
    Where several protocols share a listener: *sniff_bytes* that may tell which it is, and *sniff_time*,
    in seconds, for them to come.
    Times, in seconds: *handler_timeout* of one async handler; *login_timeout* of `on_login`; *end_timeout*
    that a closing connection waits for its handler and its queues; *first_frame* from a device that says
    nothing useful and doesn't register; *stall* of a device that doesn't read what is sent; *datagram_idle*
    until a silent UDP peer counts as gone (a timer of the app's own is the better judge, where it runs).
    """

    inbox: int = attrs.field(default=65_536, validator=_positive)
    outbox: int = attrs.field(default=65_536, validator=_positive)
    outbox_max: int = attrs.field(default=1_048_576, validator=_positive)
    deliveries_bytes: int = attrs.field(default=4_194_304, validator=_positive)
    commands_bytes: int = attrs.field(default=4_194_304, validator=_positive)
    memory: int = attrs.field(default=67_108_864, validator=_positive)
    deliveries: int = attrs.field(default=1_000, validator=_positive)
    commands: int = attrs.field(default=1_000, validator=_positive)
    waiting_sends: int = attrs.field(default=1_000, validator=_positive)
    requests: int = attrs.field(default=100, validator=_positive)
    tasks: int = attrs.field(default=100, validator=_positive)
    children: int = attrs.field(default=5_000, validator=_positive)
    handler_timeout: float = attrs.field(default=60.0, validator=_positive)
    login_timeout: float = attrs.field(default=10.0, validator=_positive)
    end_timeout: float = attrs.field(default=5.0, validator=_positive)
    first_frame: float = attrs.field(default=60.0, validator=_positive)
    stall: float = attrs.field(default=30.0, validator=_positive)
    datagram_idle: float = attrs.field(default=120.0, validator=_positive)
    sniff_bytes: int = attrs.field(default=1_024, validator=_positive)
    sniff_time: float = attrs.field(default=30.0, validator=_positive)
