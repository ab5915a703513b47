"""MqttHub: the hub that is an MQTT 5 broker; each registered device is a client of it in its own right."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import attrs

from ...commands import Command, Outcome, Publish, Register, Subscribe, Unsubscribe
from ...core import Channel, Engine
from ...errors import UnavailableError
from ...hub import Login as LoginRule
from ...hub import MemoryHub
from ...models import ClientInfo
from .device import Device
from .dialling import Broker
from .own import Own
from .session import Bounds, Flight, Login
from .url import Url

__all__ = ["MqttHub", "Options", "WhenFull"]

log = logging.getLogger("exproto_app")

WhenFull: TypeAlias = Literal["wait", "drop-oldest", "disconnect"]

LEFT: Final = 10_000
"""Messages of devices that have gone which may wait for the broker in all."""


@attrs.frozen(kw_only=True)
class Options:
    """How the uplink behaves.

    *shared*: every connection uses the gateway's own client. *client_id* is that client's, by chance where
    empty. *required*: `start` fails unless the broker is there. *timeout*, in seconds, for an answer of the
    broker. *queue* messages, and *queue_bytes*, of one device may wait while the broker is away or slow;
    *when_full* says what happens then: `wait` stops reading from the device, `drop-oldest` and `disconnect`
    do what they say.
    """

    shared: bool = False
    client_id: str = ""
    required: bool = False
    timeout: float = 10.0
    queue: int = 256
    queue_bytes: int = 65_536
    when_full: WhenFull = "wait"


class MqttHub:
    """All connections of a gateway as clients of the MQTT 5 broker at *url*.

    *context* is for `mqtts`. *login* decides who may register in shared mode, where the broker doesn't.
    """

    ordered = True

    def __init__(
        self,
        url: Url | str,
        options: Options | None = None,
        *,
        context: ssl.SSLContext | None = None,
        login: LoginRule | None = None,
    ) -> None:
        self.url = Url.parse(url) if isinstance(url, str) else url
        self.options = options or Options()
        self.engine: Engine
        self.broker: Broker
        self.bounds: Bounds
        self.keeps_wills = self.keeps_sessions = not self.options.shared
        self.leaving: dict[Device, int] = {}  # with the number of messages that each had
        self.registering: set[Device] = set()
        self._left = 0
        self._context = context
        self._rule = MemoryHub(login)
        self._devices: dict[Channel, Device] = {}
        self._by_id: dict[str, Device] = {}
        self.own: Own

    def __str__(self) -> str:
        return f"{self.url}{', shared' if self.options.shared else ''}"

    @property
    def ready(self) -> bool:
        """Whether the gateway's own client is connected, once it has been started."""
        return self.own.link.connected

    async def start(self, engine: Engine) -> None:
        """Connect the gateway's own client. Raises `UnavailableError` if it has to be there and isn't."""
        options = self.options
        self.engine = engine
        self.broker = Broker(self.url, self._context, options.timeout, asyncio.get_running_loop())
        self.bounds = Bounds(
            messages=options.queue,
            queue=options.queue_bytes,
            receive_max=min(engine.limits.deliveries, Bounds().receive_max),
            timeout=options.timeout,
        )
        self.own = Own(self)
        self.broker.own = self.own.link
        self.broker.ticks.append(self._tick)
        self.broker.start()
        self.own.link.open()
        if options.required:
            why = await self._up()
            if why:
                await self.stop()
                raise UnavailableError(f"{self.url} is required and can't be used: {why}")

    async def _up(self) -> str:
        """Wait for the first answer of the broker; return what is wrong, if anything is."""
        up: asyncio.Future[str] = self.broker.loop.create_future()
        self.own.up = up

        def away(why: str) -> None:
            if not up.done():
                up.set_result(why)

        self.broker.when_away = away
        why = await up  # each attempt is bounded in time
        self.broker.when_away = None
        return why

    async def stop(self) -> None:
        """Disconnect every client, after what waits is sent where the broker takes it (bounded in time)."""
        devices = {*self.leaving, *self._devices.values()}
        links = [self.own.link, *(device.link for device in devices)]
        await self._until(lambda: not any(link.session.online and link.session.unsafe for link in links))
        left = sum(link.session.unsafe for link in links)
        if left:
            self.lost(left, "the gateway stops, and the broker hasn't taken them")
        for device in devices:
            device.close()
        self.own.link.close()
        await self._until(lambda: not any(link.connected for link in links))
        await self.broker.stop()

    async def _until(self, done: Callable[[], bool]) -> None:
        loop = self.broker.loop
        until = loop.time() + self.engine.limits.end_timeout
        while not done() and loop.time() < until:  # noqa: ASYNC110 - only the end waits for so many
            await asyncio.sleep(0.01)

    # --- from the engine

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        device = self._devices.get(channel)
        client: Device | Own = self.own if device is None or device.lost else device
        if type(command) is Publish:
            return client.publish(channel, command)
        if type(command) is Subscribe:
            return client.subscribe(channel, command)
        if type(command) is Unsubscribe:
            held = self.own.holds(channel, command.topic)
            return (self.own if held else client).unsubscribe(channel, command)
        if type(command) is Register:
            return self._register(channel, command)
        raise AssertionError(command)

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        return self.own.publish(None, command)

    def gone(self, channel: Channel) -> None:
        """End the client of a connection; what it has published still goes."""
        self.own.gone(channel)
        device = self._devices.pop(channel, None)
        if device is not None:
            device.leave(with_will=channel.will_due)

    # --- devices

    def _register(self, channel: Channel, command: Register) -> Outcome[None]:
        if self.options.shared:
            outcome = self._rule.execute(channel, command)
            outcome.when_done(partial(self._admitted, channel, command.client))
            return outcome
        device = Device(self, channel, command)
        self._devices[channel] = device
        self.registering.add(device)
        device.link.open()
        return device.registered

    def _admitted(self, channel: Channel, client: ClientInfo, outcome: Outcome[None]) -> None:
        if outcome.error is not None:
            self.login_refused(channel, client.clientid, client.username, str(outcome.error))

    def accepted(self, device: Device) -> None:
        """Let *device* have its clientid; what an older one of that name has left over is its to send."""
        older = self._by_id.get(device.clientid)
        self._by_id[device.clientid] = device
        if older is not None:
            device.link.session.outgoing.append(older.give_up(), first=True)
            older.close()

    def forget(self, device: Device) -> None:
        """Let go of *device*: it is through."""
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
