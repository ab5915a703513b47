"""MqttHub: the hub that is an MQTT broker; each registered device is a client of it in its own right."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs

from ...asyncio_host.renewal import Source
from ...commands import Command, Outcome, Publish, Register, Subscribe, Unsubscribe
from ...core import Channel, Context, Engine
from ...errors import UnavailableError
from ...hub import Login as LoginRule
from ...hub import MemoryHub
from ...ops.certificates import read_secret
from .device import Device, Sender
from .dialling import BrokerConnections
from .gateway_client import GatewayClient
from .session import Bounds, Flight, Login
from .stored import Backlog
from .url import Trust, Url
from .versions import Wanted

__all__ = ["MqttHub", "Options", "WhenFull"]

log = logging.getLogger("exproto_app")

WhenFull: TypeAlias = Literal["wait", "drop-oldest", "disconnect"]

LEFT: Final = 10_000
"""Messages of devices that have gone which may wait for the broker in all."""


@attrs.frozen(kw_only=True)
class Options:
    """How the uplink behaves.

    *version* of MQTT: 5, 3.1.1 where the broker doesn't speak 5, or one of them in any case. *shared*: every
    connection uses the gateway's own client. *client_id* is that client's, by chance where
    empty; *password_file* has its password, which the URL has too, and is read again. *required*: `start`
    fails unless the broker is there. *timeout*, in seconds, for an answer of the broker. *queue* messages,
    and *queue_bytes*, of one device may wait while the broker is away or slow; *when_full* says what happens
    then: `wait` stops reading from the device, `drop-oldest` and `disconnect` do what they say.
    *connects_per_second* bounds how fast clients connect, those after an outage too; 0 is as fast as the
    broker answers.

    *store*: a folder where messages of QoS 1 and 2 are safe while the broker is away, or *store_when*
    `always`; of *store_bytes* at most. *store_when_full*: what is too much is not stored but waits in the
    queue, as without a store; or the oldest are dropped. A folder is for one process alone, see
    `exproto_app.store`.
    """

    version: Wanted = "auto"
    shared: bool = False
    client_id: str = ""
    password_file: str | None = None
    required: bool = False
    timeout: float = 10.0
    queue: int = 256
    queue_bytes: int = 65_536
    when_full: WhenFull = "wait"
    connects_per_second: float = 1000.0
    store: Path | None = None
    store_when: Literal["away", "always"] = "away"
    store_bytes: int = 268_435_456
    store_when_full: Literal["wait", "drop-oldest"] = "wait"


class MqttHub:
    """All connections of a gateway as clients of the MQTT broker at *url*.

    *trust* has the files for TLS, which are read again when they change. *login* decides who may register in
    shared mode, where the broker doesn't.
    """

    ordered = True
    many_clients = True
    roams = True

    def __init__(
        self,
        url: Url | str,
        options: Options | None = None,
        *,
        trust: Trust | None = None,
        login: LoginRule | None = None,
    ) -> None:
        self.url = Url.parse(url) if isinstance(url, str) else url
        self.options = options or Options()
        self.engine: Engine
        self.broker: BrokerConnections
        self.bounds: Bounds
        self.keeps_wills = self.keeps_sessions = not self.options.shared
        self.backlog: Backlog | None = None
        self.leaving: dict[Device, int] = {}  # with the number of messages that each had
        self.registering: set[Device] = set()
        self.expiring: set[Sender] = set()
        self._left = 0
        self._trust = trust or Trust()
        self._context = self._trust.context(self.url)
        self._rule = MemoryHub(login)
        self._devices: dict[Channel, Device] = {}
        self._by_id: dict[str, Device] = {}
        self.gateway_client: GatewayClient

    def __str__(self) -> str:
        return f"{self.url}{', shared' if self.options.shared else ''}"

    @property
    def has_properties(self) -> bool:
        """Whether messages have properties: with MQTT 5."""
        return self.broker.versions.dialect.is_5

    @property
    def ready(self) -> bool:
        """Whether the gateway's own client is connected, once it has been started."""
        return self.gateway_client.link.connected

    def gauges(self) -> dict[str, float]:
        """Return what metrics tell of the store, where there is one."""
        return {} if self.backlog is None else self.backlog.gauges()

    def sources(self) -> Iterator[Source]:
        """Yield what is read again: certificates, and the password of the gateway's own client."""
        if self.url.tls:
            yield self._trust.source(self.url, self._use_tls)
        if file := self.options.password_file:
            read = partial(read_secret, file, "--mqtt-password-file")
            yield Source("mqtt", "password", lambda: (file,), read, self._use_password)

    def _use_tls(self, context: ssl.SSLContext | None) -> None:
        self.broker.use_tls(context)

    def _use_password(self, password: str) -> None:
        self.gateway_client.use_password(password)

    async def start(self, engine: Engine) -> None:
        """Connect the gateway's own client. Raises `UnavailableError` if it has to be there and isn't."""
        options = self.options
        self.engine = engine
        loop = asyncio.get_running_loop()
        self.broker = BrokerConnections(
            self.url,
            self._context,
            options.timeout,
            loop,
            rate=options.connects_per_second,
            version=options.version,
        )
        self.bounds = Bounds(
            messages=options.queue,
            queue=options.queue_bytes,
            receive_max=min(engine.limits.deliveries, Bounds().receive_max),
            timeout=options.timeout,
        )
        self.gateway_client = GatewayClient(self)
        self.broker.gateway_client = self.gateway_client.link
        self.broker.receive = engine.release_together
        self.broker.ticks.append(self._tick)
        if options.store is not None:
            await self._open(options.store)
        self.broker.start()
        self.gateway_client.link.open()
        if options.required:
            why = await self._up()
            if why:
                await self.stop()
                raise UnavailableError(f"{self.url} is required and can't be used: {why}")

    async def _open(self, folder: Path) -> None:
        """Open the store; a disk that can't be used keeps nobody from serving devices."""
        backlog = Backlog(self, folder)
        try:
            await backlog.start()
        except OSError as error:
            log.error("store ! %s can't be used: %s; nothing is stored", folder, error.strerror or error)  # noqa: TRY400 - the disk's fault, not the code's
        else:
            self.backlog = backlog

    async def _up(self) -> str:
        """Wait for the first answer of the broker; return what is wrong, if anything is."""
        up: asyncio.Future[str] = self.broker.loop.create_future()
        self.gateway_client.up = up

        def away(why: str) -> None:
            if not up.done():
                up.set_result(why)

        self.broker.when_away = away
        why = await up  # each attempt is bounded in time
        self.broker.when_away = None
        return why

    async def stop(self) -> None:
        """Disconnect every client, after what waits is sent where the broker takes it (bounded in time)."""
        if self.backlog is not None:
            self.backlog.stopping = True
        devices = {*self.leaving, *self._devices.values()}
        links = [self.gateway_client.link, *(device.link for device in devices)]
        await self._until(lambda: not any(link.session.online and link.session.unsafe for link in links))
        if self.backlog is None:
            left = sum(link.session.unsafe for link in links)
        else:
            left = await self.backlog.close((self.gateway_client, *devices))
        if left:
            self.lost(left, "the gateway stops, and the broker hasn't taken them")
        for device in devices:
            device.close()
        self.gateway_client.link.close()
        await self._until(lambda: not any(link.connected for link in links))
        await self.broker.stop()

    async def _until(self, done: Callable[[], bool]) -> None:
        loop = self.broker.loop
        until = loop.time() + self.engine.limits.end_timeout
        while not done() and loop.time() < until:  # noqa: ASYNC110 - only the end waits for so many
            await asyncio.sleep(0.01)

    # --- from the engine

    @property
    def broker_side(self) -> MqttHub:
        """Carries out what devices ask: this."""
        return self

    def attach(self, context: Context) -> None:
        """Do nothing: the broker's clock counts."""

    def judges(self, channel: Channel, command: Register) -> bool:  # noqa: ARG002 - as `BrokerSide` has it
        """Return whether a login may be refused."""
        return True

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        device = self._devices.get(channel)
        client: Device | GatewayClient = self.gateway_client if device is None or device.lost else device
        if type(command) is Publish:
            return client.publish(channel, command)
        if type(command) is Subscribe:
            return client.subscribe(channel, command)
        if type(command) is Unsubscribe:
            held = self.gateway_client.holds(channel, command.topic)
            return (self.gateway_client if held else client).unsubscribe(channel, command)
        if type(command) is Register:
            return self._register(channel, command)
        raise AssertionError(command)

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        return self.gateway_client.publish(None, command)

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:  # noqa: ARG002 - as `HubProtocol` has it
        """Have *channel* keep what *older* has subscribed to by the gateway's own client.

        A client's own subscriptions are the broker's, whose session the newer one continues.
        """
        if older is not None:
            self.gateway_client.inherit(channel, older)

    def move(self, older: Channel, heir: Channel) -> None:
        """Have *heir* be the client of *older*, unless it is one already, which has continued the session."""
        self.gateway_client.inherit(heir, older)
        device = self._devices.get(older)
        if device is not None and not device.lost and self._lacks_client(heir):
            del self._devices[older]
            self._devices[heir] = device
            device.channel = heir

    def _lacks_client(self, channel: Channel) -> bool:
        device = self._devices.get(channel)
        return device is None or device.lost

    def gone(self, channel: Channel) -> None:
        """End the client of a connection; what it has published still goes."""
        self.gateway_client.gone(channel)
        device = self._devices.pop(channel, None)
        if device is not None:
            device.leave(with_will=channel.will_due)

    # --- devices

    def _register(self, channel: Channel, command: Register) -> Outcome[None]:
        if self.options.shared:
            return self._rule.execute(channel, command)  # which decides, and that is all
        device = Device(self, channel, command)
        self._devices[channel] = device
        self.registering.add(device)
        device.link.open()
        return device.registered

    def connected(self, clientid: str) -> Device | None:
        """Return who is *clientid* now, on a connection that is there."""
        device = self._by_id.get(clientid)
        return None if device is None or device.channel is None or device.lost else device

    def accepted(self, device: Device) -> None:
        """Let *device* have its clientid; what an older one of that name has left over is its to send."""
        older = self._by_id.get(device.clientid)
        self._by_id[device.clientid] = device
        if older is not None:
            if self.backlog is not None:
                self.backlog.arrived(device)
            device.link.session.outgoing.append(older.give_up(), first=True)
            older.close()

    def forget(self, device: Device) -> None:
        """Let go of *device*: it is through."""
        if self.backlog is not None:
            self.backlog.left(device)
        self._left -= self.leaving.pop(device, 0)
        self.registering.discard(device)
        if self._by_id.get(device.clientid) is device:
            del self._by_id[device.clientid]

    def unregistered(self, device: Device) -> None:
        """Take note that a register failed: the gateway's own client publishes for the connection again."""
        self.forget(device)
        if device.channel is not None:
            self._devices.pop(device.channel, None)

    def drop(self, flights: list[Flight], why: str) -> None:
        """Give messages up, logged and counted."""
        for flight in flights:
            flight.outcome.fail(UnavailableError(f"the message was dropped: {why}"))
        if flights:
            self.lost(len(flights), why)

    def lost(self, number: int, why: str) -> None:
        """Log and count messages that are given up."""
        self.count("publishes_dropped", number)
        log.warning("mqtt ! %d messages dropped: %s", number, why)

    def login_refused(self, channel: Channel | None, clientid: str, username: str, words: str) -> None:
        """Log that the broker, or `--users`, has not let a client in."""
        text = "%s ! login refused for clientid %r, username %r: %s"
        log.warning(text, channel or "mqtt", clientid, username, words)

    def denied(
        self, channel: Channel | None, login: Login, command: Publish | Subscribe | Unsubscribe, words: str
    ) -> None:
        """Log that the broker refuses *command* of the client *login*."""
        verb = type(command).__name__.lower()
        text = "%s ! %s to %r refused for clientid %r, username %r: %s"
        log.warning(text, channel or "mqtt", verb, command.topic, login.clientid, login.username, words)

    def count(self, name: str, number: int = 1) -> None:
        """Count what happens to nobody's connection in particular."""
        self.engine.count(name, number)

    def left(self, device: Device) -> None:
        """Keep *device* until its messages are safe, of all such the newest: the oldest are given up."""
        number = self.leaving[device] = device.link.session.unsafe
        self._left += number
        while self._left > LEFT:
            oldest = next(iter(self.leaving))
            self.drop(oldest.give_up(), f"of devices that have gone more than {LEFT} wait")
            oldest.close()

    def _tick(self, now: float) -> None:
        for device in tuple(self.registering):
            device.look_at_deadline(now)
        for sender in tuple(self.expiring):
            sender.look_at_expiry(now)
