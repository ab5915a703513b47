"""TestClient: a device in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..app import App
from ..commands import Publish
from ..connection import Connection
from ..core import Channel, Sniffer
from ..errors import SetupError
from ..hub import MemoryHub
from ..models import Address, ConnectionInfo, Message, Reason, SockType
from ..properties import checked_properties
from ..topics import check_qos, check_topic
from ..verb_arguments import check_payload
from .broker import Broker, Mood, Refusals
from .world import MemoryLink, World

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TestClient"]


class TestClient:
    """A device, connected to *app* in memory; use it in a `with` block.

    *protocol* names the router where there are several, or those that share the device's listener, as in
    `gt06,jt808`: then what it sends first decides. *login* is the broker's rule: it gets the
    `ClientInfo` and the password, and returns whether the device may register; without it everybody may.
    *info* says how the device is connected, or just its *socktype*: on `udp` each `send` is a datagram.
    *restarted* begins with a connection that the app never saw begin, as after a restart of the process.

    *broker* is how the broker begins: `away`, or `holds` its acknowledgements back; or a `Broker` of the
    test's own. *refuse* are the messages and subscriptions that it refuses: a mapping of topic filters to
    reasons, or a function of the message. `TestClient.broker` steers it.

    Time is virtual: it moves only in `advance`, for the app's timers and for asyncio's own; *now* is the
    time of day that `Connection.now` begins with, the real one by default. Each call returns when nothing
    can go on by itself. A handler's exception is raised by the call in which it happened, unless
    *raise_errors* is False; then `errors` has it.
    """

    __test__ = False  # for pytest, which takes every class of such a name for a test

    def __init__(
        self,
        app: App[Any, Any],
        protocol: str | None = None,
        *,
        login: Callable[..., bool | Awaitable[bool]] | None = None,
        broker: Mood | Broker | None = None,
        refuse: Refusals | None = None,
        info: ConnectionInfo | None = None,
        socktype: SockType = "tcp",
        raise_errors: bool = True,
        restarted: bool = False,
        now: datetime | None = None,
    ) -> None:
        if now is not None and now.tzinfo is None:
            raise ValueError(f"{now!r} has no time zone; add tzinfo=timezone.utc, or the zone that it is in")
        self.app = app
        self._now = now
        self._routers = app.find_protocols(protocol)
        self._protocol = protocol
        self._login = login
        self._broker = _broker(broker, refuse)
        self._info = info
        self._socktype = socktype
        self._raise_errors = raise_errors
        self._restarted = restarted
        self._world: World | None = None
        self._owner = True
        self._link: MemoryLink | None = None
        self._intake: Channel | Sniffer | None = None
        self._connection: Connection[Any] | None = None

    # --- the device

    def send(self, data: bytes, *, chunk: int | None = None) -> None:
        """Send *data* as it is, in pieces of *chunk* bytes if given. Raises `ConnectionError` if closed."""
        world, link = self._connected()
        if self.closed:
            raise ConnectionError(f"the connection is closed: {self.close_reason}, {self.close_detail}")
        for start in range(0, len(data), chunk or max(len(data), 1)):
            piece = data[start : start + chunk] if chunk else data
            world.loop.call_soon(link.arrive, piece)
        world.run()

    def recv(self) -> bytes:
        """Return all bytes that the device was sent since the last call."""
        _, link = self._connected()
        data = bytes(link.inbox)
        link.inbox.clear()
        return data

    def close(self) -> None:
        """Hang up."""
        world, link = self._connected()
        world.loop.call_soon(link.hang_up)
        world.run()

    def stop_reading(self) -> None:
        """Leave what is sent unread, until `start_reading`."""
        self._connected()[1].read(reading=False)

    def start_reading(self) -> None:
        """Read again."""
        world, link = self._connected()
        world.loop.call_soon(lambda: link.read(reading=True))
        world.run()

    def another(
        self,
        protocol: str | None = None,
        *,
        info: ConnectionInfo | None = None,
        socktype: SockType | None = None,
        restarted: bool = False,
    ) -> TestClient:
        """Connect a second device to the same app and hub, of the same protocol unless told otherwise."""
        world, _ = self._connected()
        other = TestClient(
            self.app,
            protocol or self._protocol,
            info=info,
            socktype=socktype or self._socktype,
            restarted=restarted,
        )
        other._owner = False
        other._connect(world)
        return other

    # --- the broker

    @property
    def broker(self) -> Broker:
        """The broker, which all devices of the test share."""
        return self._connected()[0].broker

    def deliver(self, topic: str, payload: bytes, qos: int = 0, **properties: Any) -> None:
        """Have the broker deliver a message to the device, or to those of its children that want it.

        Raises `AssertionError` if none is subscribed. *properties* are those of `Connection.publish`:
        `expiry`, `response_topic` and so on.
        """
        world, _ = self._connected()
        kin = [one for one in world.runner.engine.channels if self._channel in (one, one.line)]
        wanted = [one for one in kin if world.memory.subscribed(one, topic)]
        if not wanted:
            raise AssertionError(f"the device isn't subscribed to {topic!r}")
        message = Message(topic, payload, qos, properties=checked_properties(**properties))
        for channel in wanted:
            world.loop.call_soon(world.broker.others, message, partial(_deliver, channel))
        world.run()

    def publish(
        self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False, **properties: Any
    ) -> None:
        """Have somebody else publish a message, to whoever is subscribed; *properties* as for `deliver`."""
        world, _ = self._connected()
        check_topic(topic)
        check_payload(payload)
        check_qos(qos)
        message = Message(topic, payload, qos, retain, properties=checked_properties(**properties))
        world.loop.call_soon(world.broker.others, message, partial(_publish, world.memory))
        world.run()

    @property
    def published(self) -> list[Message]:
        """All messages that the device and its children have published."""
        world, _ = self._connected()
        channel = self._channel
        return [] if channel is None else world.published.setdefault(channel, [])

    @property
    def app_published(self) -> list[Message]:
        """All messages of `app.publish`."""
        return self._connected()[0].app_published

    # --- the rest

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self._connected()[0].run(seconds)

    @property
    def connection(self) -> Connection[Any, Any]:
        """The connection as the handlers see it."""
        known = self._known
        if known is None:
            why = (
                "the app refused this connection" if self._intake is None else "its protocol isn't known yet"
            )
            raise RuntimeError(f"{why}, so it has no Connection")
        return known

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        known = self._known
        if known is None:
            return self._intake is None or self._intake.gone
        return known.closed

    @property
    def close_reason(self) -> Reason | None:
        """Why it has ended."""
        known = self._known
        if known is None:
            return "restarted" if self._intake is None else self._intake.reason
        return known.close_reason

    @property
    def close_detail(self) -> str:
        """The words that go with the reason."""
        known = self._known
        if known is None:
            return "" if self._intake is None else self._intake.detail
        return known.close_detail

    @property
    def errors(self) -> list[BaseException]:
        """What handlers raised, with `raise_errors=False`."""
        return self._connected()[0].errors

    def __enter__(self) -> Self:
        if self._world is None:
            began = None if self._now is None else self._now.timestamp()
            world = World(
                self.app, self._login, broker=self._broker, raise_errors=self._raise_errors, began=began
            )
            self._connect(world)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        world, link = self._connected()
        try:
            world.loop.call_soon(link.hang_up)
            if exc is None:
                world.run()
        finally:
            if self._owner:
                world.close()
                self._world = None
        if exc is None:
            world.raise_first()

    def _connected(self) -> tuple[World, MemoryLink]:
        if self._world is None or self._link is None:
            raise RuntimeError(
                "the device isn't connected; use it in a block: with TestClient(app) as device:"
            )
        return self._world, self._link

    @property
    def _channel(self) -> Channel | None:
        """The engine's half of the connection, once its protocol is known."""
        return self._intake.channel if isinstance(self._intake, Sniffer) else self._intake

    @property
    def _known(self) -> Connection[Any] | None:
        """The connection, once its protocol is known."""
        return self._intake.conn if isinstance(self._intake, Sniffer) else self._connection

    def _connect(self, world: World) -> None:
        self._world = world
        self._link = link = MemoryLink(world)
        info = self._info or ConnectionInfo(
            self._socktype, Address("127.0.0.1", next(world.ports)), Address("127.0.0.1", 7993)
        )

        def connect() -> None:
            engine = world.runner.engine
            if self._restarted and not engine.unknown(link, self._routers):
                return
            self._intake = engine.connected(link, info, self._routers, resumed=self._restarted)
            if isinstance(self._intake, Channel):
                self._connection = self._intake.conn

        world.loop.call_soon(connect)
        try:
            world.run()
        except BaseException:
            if self._owner:
                world.close()
                self._world = None
            raise


def _deliver(channel: Channel, message: Message) -> None:
    channel.delivered([message])


def _publish(memory: MemoryHub, message: Message) -> None:
    memory.publish(Publish(message.topic, message.payload, message.qos, message.retain, message.properties))


def _broker(broker: Mood | Broker | None, refuse: Refusals | None) -> Broker:
    if isinstance(broker, Broker):
        if refuse is not None:
            raise SetupError("refuse= belongs to the broker that is given: Broker(refuse=…)")
        return broker
    if broker not in (None, "away", "holds"):
        raise SetupError(f"broker is {broker!r}; it is 'away', 'holds' or a Broker")
    return Broker(away=broker == "away", holds=broker == "holds", refuse=refuse)
