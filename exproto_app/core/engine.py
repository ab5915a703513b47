"""The engine: all connections of one app on one host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

from ..app import App
from ..codec import giving_bytes
from ..commands import Outcome, Publish
from ..framing import RAW, Framing
from ..framing.modes import STOCK
from ..models import ConnectionInfo, Message, Reason
from ..router import Router
from ..runtime import Runtime
from ..tap import Mask, Published, Refused, Tap, Watcher
from .channel import Channel, Hub
from .scheduler import Scheduler
from .seams import CompiledRouter, Link
from .sniffing import Rules, Sniffer

__all__ = ["Engine", "Observer"]

log = logging.getLogger("exproto_app")

COUNTERS = (
    "bytes_dropped",
    "bytes_received",
    "bytes_sent",
    "bytes_skipped",
    "commands_failed",
    "connections_closed",
    "connections_opened",
    "connections_restarted",
    "connections_undecided",
    "datagrams_dropped",
    "deliveries_dropped",
    "frames_bad",
    "frames_dropped",
    "frames_received",
    "frames_unhandled",
    "handler_errors",
    "messages_delivered",
    "messages_published",
    "messages_unhandled",
    "requests_retried",
    "requests_timed_out",
    "sends_failed",
    "ticks_skipped",
)


class Observer(Protocol):
    """Is told which connections there are. It has to be quick, and must not raise."""

    def connected(self, one: Channel | Sniffer, /) -> None:
        """Take note of a connection, before its first turn."""
        ...

    def ended(self, one: Channel | Sniffer, /) -> None:
        """Take note of its end, after its last turn; of a sniffer, that there is no channel in its place."""
        ...


class Engine:
    """All connections of one app on one host."""

    def __init__(self, app: App[Any], runtime: Runtime, hub: Hub) -> None:
        self.app = app
        self.runtime = runtime
        self.hub = hub
        self.scheduler = Scheduler(runtime)
        self.limits = app.limits
        self.counters = app.counters
        self.channels: set[Channel] = set()
        self.sniffers: set[Sniffer] = set()
        self.clients: dict[str, Channel] = {}
        self.when_empty: Callable[[], object] | None = None
        self.when_failed: Callable[[BaseException], object] | None = None
        self.observers: tuple[Observer, ...] = ()
        self.watchers: tuple[Watcher, ...] = ()
        self.masks: list[Mask] = app.masks
        self._tap = self.new_tap("", "")  # of the app itself
        self._protocols: dict[str, CompiledRouter] = {}
        self._ids = count(1)
        self._said: set[Hashable] = set()

    def start(self) -> None:
        """Attach the app: no further handlers, counters at zero."""
        self.app.attach(self)
        self.counters.update(dict.fromkeys(COUNTERS, 0))
        self._protocols = {name: self._protocol(router) for name, router in self.app.protocols.items()}
        for watcher in self.app.watchers:
            self.watch(watcher)

    def stop(self) -> None:
        """Detach the app."""
        self.app.detach()

    @property
    def open(self) -> int:
        """How many connections there are, those among them whose protocol isn't known yet."""
        return len(self.channels) + len(self.sniffers)

    def connected(
        self,
        link: Link,
        info: ConnectionInfo,
        routers: Sequence[Router[Any]],
        *,
        conn_id: str | None = None,
        resumed: bool = False,
    ) -> Channel | Sniffer:
        """Begin a connection: its `on_connect` is the first turn, unless it is *resumed*.

        *routers* are those of its listener; where there are several, the first bytes decide, and the
        connection begins with them: until then *link* has a `Sniffer` for its channel.
        """
        name = conn_id or str(next(self._ids))
        self.counters["connections_opened"] += 1
        if len(routers) == 1:
            channel = self._begin(link, info, routers[0], name)
            log.debug("%s = connected from %s", channel, info.peername)
            self._tell_of(channel)
            channel.begin(resumed=resumed)
            return channel
        sniffer = link.channel = Sniffer(self, link, info, Rules(routers), name, resumed=resumed)
        self.sniffers.add(sniffer)
        log.debug("%s = connected from %s", sniffer, info.peername)
        self._tell_of(sniffer)
        sniffer.begin()
        return sniffer

    def decided(self, sniffer: Sniffer, router: Router[Any]) -> Channel:
        """Begin the connection of *sniffer*, which speaks the protocol of *router*."""
        self.sniffers.discard(sniffer)
        channel = self._begin(sniffer.link, sniffer.info, router, sniffer.id, attached=not sniffer.gone)
        sniffer.channel, sniffer.conn = channel, channel.conn
        channel.since, channel.bytes_received = sniffer.since, len(sniffer.data)
        log.debug("%s = told by %d bytes", channel, len(sniffer.data))
        if sniffer.tap is not None:
            channel.trace(sniffer.tap)
        if sniffer.gone:
            channel.unwritable()  # it hears no answer any more
        channel.begin(resumed=sniffer.resumed, sniffed=sniffer.data)
        return channel

    def undecided(self, sniffer: Sniffer) -> None:
        """Let go of *sniffer*: the connection has ended before its protocol was known."""
        self.sniffers.discard(sniffer)
        for observer in self.observers:
            observer.ended(sniffer)
        self.counters["connections_undecided"] += 1
        self._ended(sniffer.reason)

    def connections(self) -> tuple[Channel | Sniffer, ...]:
        """Return all connections, those among them whose protocol isn't known yet."""
        return (*self.channels, *self.sniffers)

    def unknown(
        self,
        link: Link,
        routers: Sequence[Router[Any]],
        *,
        conn_id: str | None = None,
        may_resume: bool = True,
    ) -> bool:
        """Meet a connection that this process never saw begin, as a broker has them after our restart.

        It is closed, so that the device comes back and logs in cleanly: return False. With
        `Router(resume=True)` return True: it is to be carried on by `connected(…, resumed=True)`, which not
        every host can do (*may_resume*). Where several *routers* share the listener nobody can: the bytes
        that told the protocol have gone by.
        """
        self.counters["connections_restarted"] += 1
        if len(routers) == 1 and routers[0].resume and may_resume:
            return True
        name = conn_id or str(next(self._ids))
        text = "%s/%s ! restarted: this process never saw the connection begin; it is closed"
        log.warning(text, name, Rules(routers).name)
        link.close()
        return False

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> Outcome[None]:
        """Publish for the app itself."""
        if self.runtime.in_other_thread():
            return self.from_thread(partial(self.publish, topic, payload, qos, retain=retain))
        self.counters["messages_published"] += 1
        if self.watchers:
            self._tap.show(Published(Message(topic, payload, qos, retain)))
        outcome = self.hub.publish(Publish(topic, payload, qos, retain))
        outcome.when_done(partial(self._published, topic))
        return outcome

    def watch(self, watcher: Watcher) -> None:
        """Show *watcher* what happens on all connections, also those to come, and what the app publishes."""
        if watcher in self.watchers:
            return
        self.watchers = (*self.watchers, watcher)
        self._tap.add(watcher, None)
        for one in self.connections():
            one.watch(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Show *watcher* nothing more, on no connection."""
        self.watchers = tuple(other for other in self.watchers if other != watcher)
        self._tap.remove(watcher)
        for one in self.connections():
            one.unwatch(watcher)

    def shutdown(self) -> None:
        """End every connection, after what they have received is handled."""
        for one in self.connections():
            one.end("shutdown", drain=True)

    def from_thread(self, verb: Callable[[], Outcome[Any]]) -> Outcome[Any]:
        """Run *verb* in the loop's thread; return its outcome to be."""
        outcome: Outcome[Any] = Outcome(self.runtime.waiter)
        self.runtime.call_from_thread(lambda: outcome.follow(verb()))
        return outcome

    def forget(self, channel: Channel) -> None:
        """Let go of *channel*: it has ended."""
        self.channels.discard(channel)
        for observer in self.observers:
            observer.ended(channel)
        self.hub.gone(channel)
        self._ended(channel.reason)

    def count(self, name: str, number: int = 1) -> None:
        """Count what has no counter from the start; `NAME.REASON` is a part of what NAME counts."""
        self.counters[name] = self.counters.get(name, 0) + number

    def once(self, what: Hashable, text: str, *args: object) -> None:
        """Log a warning the first time that *what* happens."""
        if what not in self._said:
            self._said.add(what)
            log.warning(text, *args)

    def new_tap(self, conn_id: str, protocol: str) -> Tap:
        """Return a tap for a connection."""
        return Tap(conn_id, protocol, time=self.runtime.time, masks=self.masks, broken=self.unwatch)

    def _begin(
        self, link: Link, info: ConnectionInfo, router: Router[Any], conn_id: str, *, attached: bool = True
    ) -> Channel:
        channel = Channel(self, link, info, self._protocols[router.name], conn_id)
        if attached:
            link.channel = channel
        self.channels.add(channel)
        return channel

    def _tell_of(self, one: Channel | Sniffer) -> None:
        for observer in self.observers:
            observer.connected(one)
        for watcher in self.watchers:
            one.watch(watcher, late=False)

    def _ended(self, reason: Reason | None) -> None:
        self.counters["connections_closed"] += 1
        self.count(f"connections_closed.{reason}".replace(" ", "_"))
        if not self.open and self.when_empty is not None:
            self.when_empty()

    def _protocol(self, router: Router[Any]) -> CompiledRouter:
        own, apps = router.routes.error, self.app.routes.error
        errors = tuple(dict.fromkeys(handler for handler in (own, apps) if handler is not None))
        encode = _checked(router.reply_framing)
        if router.codec is None:
            return CompiledRouter(router, router.routes.catch_all, encode, errors)
        parse, build = router.codec.parse, router.codec.build
        built = encode if build is None else _built(build, encode)
        return CompiledRouter(router, None, built, errors, parse=parse, builds=build is not None)

    def _published(self, topic: str, outcome: Outcome[None]) -> None:
        if outcome.error is not None:
            self._tap.show(Refused("publish", topic, outcome.error))
            self.counters["commands_failed"] += 1
            log.warning("app ! publish to %r failed: %s", topic, outcome.error)


def _built(build: Callable[[Any], bytes], encode: Callable[[bytes], bytes]) -> Callable[[Any], bytes]:
    return lambda message: encode(build(message))


def _checked(framing: Framing) -> Callable[[bytes], bytes]:
    """Return the encode of *framing*, checked for its result unless it is one of ours."""
    if framing is RAW:
        return bytes  # which gives back the bytes that it gets
    encode = framing.encode
    if type(framing) in STOCK:
        return encode
    return giving_bytes(encode, framing, "encoded")
