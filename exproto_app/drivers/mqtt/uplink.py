"""MqttHub: the hub that is an MQTT 5 broker; each registered device is a client of it in its own right."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import ssl
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final, Literal, TypeAlias

import attrs

from ...channel import Channel
from ...commands import DONE, Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...engine import Engine
from ...errors import CommandError, DeniedError, SetupError, UnavailableError
from ...hub import Login as LoginRule
from ...hub import MemoryHub
from ...models import Message
from ...topics import Filters, split_share
from .link import Broker, Link
from .reasons import KICKED, TAKEN_OVER
from .session import IDS, Bounds, Flight, Login
from .url import Url

__all__ = ["MqttHub", "Options", "WhenFull"]

log = logging.getLogger("exproto_app")

WhenFull: TypeAlias = Literal["wait", "drop-oldest", "disconnect"]

HARD: Final = 4
"""A turn that runs may fill the queue this many times over; beyond that its messages are refused."""

OWN: Final = 16
"""The gateway's own client, which many connections use, has a queue this many times a device's."""

LEFT: Final = 10_000
"""Messages of devices that have gone which may wait for the broker in all."""

SHORTEST_KEEPALIVE: Final = 5
DEFAULT_KEEPALIVE: Final = 60
"""Seconds; the gateway pings in a device's name, so a shorter one would tell the broker nothing."""

IDENTIFIERS: Final = 8
"""Subscription identifiers that are remembered of a filter: messages with an older one may be on their way."""

UNSUPPORTED_VERSION: Final = 0x84


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
        url: Url,
        options: Options | None = None,
        *,
        context: ssl.SSLContext | None = None,
        login: LoginRule | None = None,
    ) -> None:
        self.url = url
        self.options = options or Options()
        self.engine: Engine
        self.broker: Broker
        self.bounds: Bounds
        self.keeps_wills = self.keeps_sessions = not self.options.shared
        self.leaving: set[Device] = set()
        self.registering: set[Device] = set()
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
        """Connect the gateway's own client. Raises `SetupError` if it has to be there and isn't."""
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
        self.broker.ticks.append(self._tick)
        self.broker.start()
        self.own.link.open()
        if options.required:
            try:
                await asyncio.wait_for(asyncio.shield(self.own.up), options.timeout)
            except (SetupError, asyncio.TimeoutError) as error:
                why = self.broker.trouble or str(error) or f"no answer within {options.timeout:g} s"
                await self.stop()
                raise SetupError(f"{self.url} is required and can't be used: {why}") from None

    async def stop(self) -> None:
        """Disconnect every client, after what waits is sent where the broker takes it (bounded in time)."""
        links = tuple(self.broker.links)
        if not self.broker.trouble:
            await self._until(lambda: not any(link.session.unsafe for link in links))
        left = sum(link.session.unsafe for link in links)
        if left:
            self.lost(left, "the gateway stops, and the broker hasn't taken them")
        for link in links:
            link.close(with_will=True)
        await self._until(lambda: not any(link.connected for link in links))
        await self.broker.stop()

    async def _until(self, done: Callable[[], bool]) -> None:
        loop = self.broker.loop
        until = loop.time() + self.engine.limits.end_timeout
        while not done() and loop.time() < until:
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
            return self._rule.execute(channel, command)
        device = Device(self, channel, command)
        self._devices[channel] = device
        self.registering.add(device)
        device.link.open()
        return device.registered

    def accepted(self, device: Device) -> None:
        """Let *device* have its clientid; what an older one of that name has left over is its to send."""
        older = self._by_id.get(device.clientid)
        self._by_id[device.clientid] = device
        if older is not None:
            device.link.session.inherit(older.give_up())
            older.close()

    def forget(self, device: Device) -> None:
        """Let go of *device*: it is through."""
        self.leaving.discard(device)
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

    def count(self, name: str, number: int = 1) -> None:
        """Count what happens to nobody's connection in particular."""
        counters = self.engine.counters
        counters[name] = counters.get(name, 0) + number

    def left(self, device: Device) -> None:
        """Keep *device* until its messages are safe, of all such the newest: the oldest are given up."""
        self.leaving.add(device)
        if len(self.leaving) % 100 == 0:
            waiting = [other for other in self._by_id.values() if other in self.leaving]
            total = sum(other.link.session.unsafe for other in waiting)
            for other in waiting:
                if total <= LEFT:
                    break
                flights = other.give_up()
                total -= len(flights)
                self.drop(flights, f"of devices that have gone more than {LEFT} wait")
                other.close()

    def _tick(self, now: float) -> None:
        for device in tuple(self.registering):
            device.look_at_deadline(now)
        for device in tuple(self.leaving):
            if not device.link.session.unsafe:
                device.close()


class Sender:
    """A client of the broker that connections publish through, and what happens when its queue is full."""

    __slots__ = ("_congested", "_said", "hub", "link")

    link: Link

    def __init__(self, hub: MqttHub) -> None:
        self.hub = hub
        self._congested: set[Channel] | None = None
        self._said = False

    def publish(self, channel: Channel | None, command: Publish) -> Outcome[None]:
        """Publish for *channel*, None for the app itself."""
        session = self.link.session
        if session.waiting is None:
            outcome = session.publish(command)
            if session.waiting is not None:
                self._bound(channel)
            return outcome
        number, bounds = len(session.waiting), session.bounds
        if number >= HARD * bounds.messages or session.waiting_bytes >= HARD * bounds.queue:
            self.hub.count("publishes_dropped")
            words = f"{number} messages ({session.waiting_bytes} bytes) wait for the broker"
            limits = f"limits are {HARD * bounds.messages} and {HARD * bounds.queue}"
            return refused(UnavailableError(f"{words}, {limits}"))
        outcome = session.publish(command)
        self._bound(channel)
        return outcome

    def relieved(self) -> None:
        """Have those go on that wait for room."""
        self._said = False
        channels, self._congested = self._congested, None
        for channel in channels or ():
            channel.relieved()

    def _bound(self, channel: Channel | None) -> None:
        """See to a queue that is full."""
        session, policy = self.link.session, self.hub.options.when_full
        bounds = session.bounds
        while session.waiting and (
            len(session.waiting) > bounds.messages or session.waiting_bytes > bounds.queue
        ):
            if not self._said:
                self._said = True
                text = "mqtt ! %s: %d messages (%d bytes) wait for the broker, the queue is full: %s"
                number, size = len(session.waiting), session.waiting_bytes
                # A broker that is only slow makes queues full again and again.
                level = logging.WARNING if self.hub.broker.trouble or policy != "wait" else logging.DEBUG
                log.log(level, text, session.login.clientid, number, size, policy)
            if policy == "drop-oldest" and len(session.waiting) > 1:
                oldest = session.drop_oldest()
                if oldest is None:
                    return
                self.hub.count("publishes_dropped")
                oldest.outcome.fail(UnavailableError("the message was dropped: the queue was full"))
                continue
            if channel is not None and policy == "wait":
                if self._congested is None:
                    self._congested = set()
                self._congested.add(channel)
                channel.congested()
            elif channel is not None and policy == "disconnect":
                channel.end("error", "the broker is away or too slow, and the queue is full")
            return


class Device(Sender):
    """A registered connection, or one that registers; without a *channel*, what it has left over.

    *lost*: the session is over, and for good.
    """

    __slots__ = ("_deadline", "_with_will", "channel", "lost", "registered")

    def __init__(self, hub: MqttHub, channel: Channel, command: Register) -> None:
        super().__init__(hub)
        loop = hub.broker.loop
        self.channel: Channel | None = channel
        self.lost = False
        self.registered: Outcome[None] = Outcome(loop.create_future)
        self._deadline = loop.time() + hub.options.timeout
        self._with_will = False
        client = command.client
        login = Login(
            client.clientid,
            client.username,
            command.password,
            max(client.keepalive, SHORTEST_KEEPALIVE) if client.keepalive else DEFAULT_KEEPALIVE,
            command.session_expiry,
            command.will,
        )
        # The broker may remember identifiers of a session that we don't; few are where we begin by chance.
        first_id = random.randrange(IDS) if command.session_expiry else 0  # noqa: S311 - no secret
        self.link = Link(hub.broker, self, login, hub.bounds, first_id=first_id)

    @property
    def clientid(self) -> str:
        """What it is to the broker."""
        return self.link.session.login.clientid

    def subscribe(self, _: Channel, command: Subscribe) -> Outcome[int]:
        """Subscribe at the broker."""
        return self.link.session.subscribe(command)

    def unsubscribe(self, _: Channel, command: Unsubscribe) -> Outcome[None]:
        """Take a subscription back."""
        return self.link.session.unsubscribe(command)

    def leave(self, *, with_will: bool) -> None:
        """End: the connection has gone. What it has published is sent first."""
        hub = self.hub
        self._with_will = with_will
        self.channel = self._congested = None
        if self.registered.done and self.link.session.unsafe:
            if not self.lost:
                hub.left(self)
                return
            # Another has the clientid now, at the broker or in another gateway.
            hub.own.link.session.append(self.give_up())
        self.close()

    def give_up(self) -> list[Flight]:
        """Hand over what isn't safe yet, for another to send."""
        self.lost = True
        return self.link.session.pending()

    def close(self) -> None:
        """Disconnect, if that hasn't happened yet, and be forgotten."""
        self.hub.forget(self)
        self.link.close(with_will=self._with_will)

    def look_at_deadline(self, now: float) -> None:
        """Fail a register that takes too long, unless it only waits for its turn."""
        if now < self._deadline or self.hub.broker.waits(self.link):
            return
        why = self.link.trouble or self.hub.broker.trouble
        words = f"no session with the broker within {self.hub.options.timeout:g} s"
        self._unregistered(UnavailableError(f"{words}: {why}" if why else words))

    def _unregistered(self, error: CommandError) -> None:
        self.lost = True
        self.hub.unregistered(self)
        self.link.close()
        self.registered.fail(error)

    # --- from the link

    def accepted(self) -> None:
        if not self.registered.done:
            self.hub.registering.discard(self)
            self.hub.accepted(self)
            self.registered.settle(None)

    def refused(self, code: int, words: str) -> None:
        if not self.registered.done:
            denied = DeniedError(f"the broker refused {self.clientid!r}: {words}")
            self._unregistered(UnavailableError(words) if code == UNSUPPORTED_VERSION else denied)
        else:
            self._over("kicked", f"the broker refused to let it back in: {words}")

    def failed(self, words: str, *, worst: bool) -> None:
        self.hub.count("sessions_interrupted")
        level = logging.WARNING if worst else logging.DEBUG
        log.log(level, "mqtt ! %s: %s; trying again", self.clientid, words)

    def disconnected(self, code: int, words: str) -> bool:
        if code == TAKEN_OVER:
            self._over("taken over", words)
        elif code in KICKED:
            self._over("kicked", words)
        return not self.lost

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:
        if self.channel is not None:
            self.channel.delivered((message,), taken)

    def _over(self, reason: Literal["kicked", "taken over"], words: str) -> None:
        """Take the end of the session, which the broker wants: the device goes too."""
        self.lost = True
        if reason == "kicked":
            self.hub.drop(self.link.session.pending(), f"{self.clientid} was kicked: {words}")
        if self.channel is not None:
            self.channel.relieved()
            self.channel.end(reason, words)
        else:
            self.hub.own.link.session.append(self.give_up())
            self.close()


@attrs.define(eq=False)
class Subscription:
    """A filter of the gateway's own client, and the connections that have subscribed to it."""

    members: dict[Channel, int] = attrs.field(factory=dict)
    identifiers: list[int] = attrs.field(factory=list)


class Own(Sender):
    """The gateway's own client: for the app, and for connections that aren't clients themselves."""

    __slots__ = ("_filters", "_identifiers", "_next", "_of", "_subscriptions", "up")

    def __init__(self, hub: MqttHub) -> None:
        super().__init__(hub)
        url = hub.url
        self.up: asyncio.Future[None] = hub.broker.loop.create_future()
        self._subscriptions: dict[str, Subscription] = {}
        self._of: dict[Channel, set[str]] = {}
        self._identifiers: dict[int, tuple[str, Channel]] = {}
        self._filters: Filters[str, None] = Filters()
        self._next = count(1)
        clientid = hub.options.client_id or f"exproto-app-{secrets.token_hex(6)}"
        bounds = attrs.evolve(hub.bounds, messages=OWN * hub.bounds.messages, queue=OWN * hub.bounds.queue)
        self.link = Link(hub.broker, self, Login(clientid, url.username, url.password), bounds)

    # --- for connections

    def subscribe(self, channel: Channel, command: Subscribe) -> Outcome[int]:
        """Subscribe for *channel*; the broker is asked each time, for it has retained messages to send."""
        topic = command.topic
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            subscription = self._subscriptions[topic] = Subscription()
            self._filters.add(split_share(topic)[1], topic, None)
        subscription.members[channel] = command.qos
        self._of.setdefault(channel, set()).add(topic)
        identifier = next(self._next)
        self._identifiers[identifier] = topic, channel
        subscription.identifiers.append(identifier)
        if len(subscription.identifiers) > IDENTIFIERS:
            del self._identifiers[subscription.identifiers.pop(0)]
        highest = Subscribe(topic, max(subscription.members.values()))
        outcome: Outcome[int] = Outcome(self.hub.broker.loop.create_future)
        result = self.link.session.subscribe(highest, identifier)
        result.when_done(partial(self._subscribed, channel, command, outcome))
        return outcome

    def unsubscribe(self, channel: Channel, command: Unsubscribe) -> Outcome[None]:
        """Take a subscription of *channel* back, at the broker where it is the last."""
        topic = command.topic
        subscription = self._subscriptions.get(topic)
        if subscription is None or channel not in subscription.members:
            return DONE
        del subscription.members[channel]
        topics = self._of[channel]
        topics.discard(topic)
        if not topics:
            del self._of[channel]
        if subscription.members:
            return DONE
        del self._subscriptions[topic]
        self._filters.discard(split_share(topic)[1], topic)
        for identifier in subscription.identifiers:
            del self._identifiers[identifier]
        return self.link.session.unsubscribe(command)

    def holds(self, channel: Channel, topic: str) -> bool:
        """Tell whether *channel* has subscribed to *topic* here."""
        return topic in self._of.get(channel, ())

    def gone(self, channel: Channel) -> None:
        """Forget *channel*."""
        if self._congested is not None:
            self._congested.discard(channel)
        for topic in tuple(self._of.get(channel, ())):
            self.unsubscribe(channel, Unsubscribe(topic))

    def _subscribed(
        self, channel: Channel, command: Subscribe, outcome: Outcome[int], result: Outcome[int]
    ) -> None:
        if result.error is None:
            outcome.settle(min(result.value or 0, command.qos))
            return
        if self.holds(channel, command.topic):
            self.unsubscribe(channel, Unsubscribe(command.topic))
        outcome.fail(result.error)

    # --- from the link

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:
        """Give *message* to whoever has subscribed; the broker sends one for each filter that matches."""
        best: dict[Channel, int] = {}
        for topic, newest in self._meant(message.topic, ids):
            members = self._subscriptions[topic].members
            if topic.startswith("$share/"):
                channel = next(iter(members))
                members[channel] = members.pop(channel)  # the next one's turn
                chosen = {channel: members[channel]}
            elif message.retain and newest in members:
                chosen = {newest: members[newest]}  # who subscribed last: the others have it
            else:
                chosen = members
            for channel, qos in chosen.items():
                best[channel] = max(qos, best.get(channel, 0))
        for channel, qos in best.items():
            channel.delivered((message if qos >= message.qos else attrs.evolve(message, qos=qos),))
        if taken is not None:
            taken()

    def _meant(self, topic: str, ids: list[int]) -> list[tuple[str, Channel | None]]:
        """Return the filters that a message was sent for, and who subscribed last where that is known."""
        known = [self._identifiers[number] for number in ids if number in self._identifiers]
        if known:
            return list(known)
        return [(found, None) for found, _ in self._filters.matching(topic)]

    def accepted(self) -> None:
        log.info("mqtt = connected to %s as %s", self.hub.url, self.link.session.login.clientid)
        if not self.up.done():
            self.up.set_result(None)

    def refused(self, code: int, words: str) -> None:
        if self.hub.options.required and not self.up.done():
            self.up.set_exception(SetupError(f"it refused the gateway's own client: {words}"))
        self.link.retry(f"the broker refused it: {words}")

    def failed(self, words: str, *, worst: bool) -> None:
        if self.link.trouble != words or worst:
            log.error("mqtt ! the gateway's own client: %s; trying again", words)

    def disconnected(self, code: int, words: str) -> bool:
        if code == TAKEN_OVER:
            clientid = self.link.session.login.clientid
            log.error("mqtt ! another client uses the clientid of the gateway, %s", clientid)
        return True
