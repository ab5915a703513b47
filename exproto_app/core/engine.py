"""The engine: all connections of one app on one host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeVar

from ..app import App
from ..codec import giving_bytes
from ..commands import Command, Outcome, Pending, Publish, Register, several
from ..errors import DeniedError
from ..framing import RAW, Framing
from ..framing.modes import STOCK
from ..models import PLAIN, ConnectionInfo, Message, Reason
from ..router import Router
from ..runtime import Runtime
from ..tap import Mask, Published, Refused, Tap, Watcher
from .broker_queue import BrokerQueue
from .channel import Channel, Hub
from .child import Child
from .children import Children
from .login_queue import TASKS, THREADS, Judging
from .memory import Memory
from .scheduler import Scheduler
from .seams import IGNORED, CompiledRouter, Link
from .sniffing import Rules, Sniffer
from .states import LEAVING
from .takeovers import Takeovers
from .waiting_sends import WaitingSends

__all__ = ["Engine", "Observer"]

log = logging.getLogger("exproto_app")

OWN = 16
"""The app itself may have this many times `Limits.commands` wait."""

T = TypeVar("T")

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
    "sends_dropped",
    "sends_failed",
    "ticks_skipped",
)


class Observer(Protocol):
    """Learns which connections there are. Its methods must be fast and must not raise."""

    def connected(self, one: Channel | Sniffer, /) -> None:
        """Learn of a connection, before its first turn."""
        ...

    def ended(self, one: Channel | Sniffer, /) -> None:
        """Learn of its end, after its last turn; for a sniffer, that no channel takes its place."""
        ...


class Engine:
    """All connections of one app on one host."""

    def __init__(self, app: App[Any], runtime: Runtime, hub: Hub) -> None:
        self.app = app
        self.runtime = runtime
        self.hub = hub
        self.scheduler = Scheduler(runtime)
        self.together: dict[WaitingSends, None] | None = None
        self.takeovers = Takeovers()
        self.limits = app.limits
        self.memory = Memory(runtime, self.limits.memory, self.count)
        self.counters = app.counters
        self.channels: set[Channel] = set()
        self.sniffers: set[Sniffer] = set()
        self.clients: dict[str, Channel] = {}
        self.when_empty: Callable[[], object] | None = None
        self.when_failed: Callable[[BaseException], object] | None = None
        self.when_denied: Callable[[ConnectionInfo], object] = _ignored
        self._judging_threads, self._judging_tasks = Judging(THREADS), Judging(TASKS)
        self.held_back: Callable[[str, Any], bool] = _never
        self.observers: tuple[Observer, ...] = ()
        self.watchers: tuple[Watcher, ...] = ()
        self.masks: list[Mask] = app.masks
        self._tap = self.new_tap("", "")  # of the app itself
        self._protocols: dict[str, CompiledRouter] = {}
        self._children: dict[str, CompiledRouter] = {}  # of the same names
        self._ids = count(1)
        self._said: set[Hashable] = set()
        self._judging = False
        self._queue = BrokerQueue(
            self._execute,
            ordered=True,
            limit=OWN * self.limits.commands,
            limit_bytes=OWN * self.limits.commands_bytes,
            waiter=runtime.waiter,
            failed=self._publish_failed,
            idle=_nothing,
            full=self._commands_full,
            room=_nothing,
            large=_nothing,
        )

    def start(self) -> None:
        """Attach the app: no further handlers, counters at zero."""
        self.app.attach(self)
        self.hub.attach(self)
        self.counters.update(dict.fromkeys(COUNTERS, 0))
        self._protocols = {name: self._protocol(router) for name, router in self.app.protocols.items()}
        self._children = {name: self._of_children(one) for name, one in self._protocols.items()}
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

    def judging(self, *, blocking: bool) -> Judging:
        """Return where logins are judged that take their time, by threads if *blocking*."""
        return self._judging_threads if blocking else self._judging_tasks

    def new_child(self, line: Channel, children: Children, name: str) -> Child:
        """Return a new child of *line*, which is to be begun."""
        return Child(self, line, children, name, self._children[line.protocol.router.name])

    def begin_child(self, child: Child, command: Register) -> Outcome[None]:
        """Begin *child*: it is to register by *command*."""
        line = child.line
        if line.all_handled or line.state >= LEAVING:  # a thread was slower than the end
            return child.stillborn()
        self.counters["connections_opened"] += 1
        self.count("connections_opened.children")
        self.channels.add(child)
        log.debug("%s = a child of %s", child, child.line)
        self._tell_of(child)
        return child.start(command)

    def decided(self, sniffer: Sniffer, router: Router[Any]) -> Channel:
        """Begin the connection of *sniffer*, which speaks the protocol of *router*."""
        self.sniffers.discard(sniffer)
        self.memory.forget(sniffer)
        channel = self._begin(sniffer.link, sniffer.info, router, sniffer.id, attached=not sniffer.gone)
        sniffer.channel, sniffer.conn = channel, channel.conn
        channel.since, channel.bytes_received = sniffer.since, len(sniffer.data)
        log.debug("%s = recognized by %d bytes", channel, len(sniffer.data))
        if sniffer.tap is not None:
            channel.trace(sniffer.tap)
        if sniffer.gone:
            channel.unwritable()  # nothing can be sent to it any more
        channel.begin(resumed=sniffer.resumed, sniffed=sniffer.data)
        return channel

    def undecided(self, sniffer: Sniffer) -> None:
        """Remove *sniffer*: the connection has ended before its protocol was known."""
        self.sniffers.discard(sniffer)
        self.memory.forget(sniffer)
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
        """Deal with a connection that this process never saw begin, as a broker has them after our restart.

        It is closed, so that the device comes back and logs in cleanly: return False. With
        `Router(resume=True)` return True: it carries on with `connected(…, resumed=True)`, which not every
        host can do (*may_resume*). Where several *routers* share the listener none can: the bytes by which
        the protocol is recognized have gone by.
        """
        self.counters["connections_restarted"] += 1
        if len(routers) == 1 and routers[0].resume and may_resume:
            return True
        name = conn_id or str(next(self._ids))
        text = "%s/%s ! restarted: this process never saw the connection begin; it is closed"
        log.warning(text, name, Rules(routers).name)
        link.close()
        return False

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        if self.runtime.in_other_thread():
            return self.from_thread(partial(self.publish, command))
        self.counters["messages_published"] += 1
        topic, properties = command.topic, command.properties
        if properties is not PLAIN and not self.hub.has_properties:
            self.once("properties", IGNORED, "app")
        if self.watchers:
            message = Message(topic, command.payload, command.qos, command.retain, properties=properties)
            self._tap.show(Published(message))
        return self._queue.issue(command)

    def congested(self) -> None:
        """Have the host asked for nothing more: its queue of what the app publishes is full."""
        self._queue.hold()

    def relieved(self) -> None:
        """Go on: there is room in that queue again."""
        self._queue.resume()

    def publish_many(self, commands: Sequence[Publish]) -> Outcome[int]:
        """Publish several for the app itself."""
        if self.runtime.in_other_thread():
            return self.from_thread(partial(self.publish_many, commands))
        outcomes = []
        for one in commands:
            outcomes.append(self.publish(one))
            outcomes[-1].watched = True  # as `Verbs.issue_many` has it
        return several(outcomes, self.runtime.waiter)

    def watch(self, watcher: Watcher) -> None:
        """Show *watcher* what happens on all connections, present and future, and what the app publishes."""
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
        """End every connection, after what they have received is handled; children end with their lines."""
        for judging in (self._judging_threads, self._judging_tasks):
            judging.stop()
        for one in self.connections():
            if one.line is None:
                one.end("shutdown", drain=True)

    def from_thread(self, verb: Callable[[], Outcome[Any]]) -> Outcome[Any]:
        """Run *verb* in the loop's thread; return its outcome to be."""
        outcome: Outcome[Any] = Pending(self.runtime.waiter)
        self.runtime.call_from_thread(lambda: outcome.follow(verb()))
        return outcome

    def release_together(self, release: Callable[[T], object], argument: T) -> None:
        """Call *release*; what it releases to devices leaves when it has ended, in one write for each."""
        if self.together is not None:
            release(argument)
            return
        together: dict[WaitingSends, None] = {}
        self.together = together
        try:
            release(argument)
        finally:
            self.together = None
            for sends in together:
                sends.flush()

    def forget(self, channel: Channel) -> None:
        """Remove *channel*: it has ended."""
        self.channels.discard(channel)
        self.memory.forget(channel)
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
        login = router.routes.login or self.app.routes.login
        encode = _checked(router.reply_framing)
        if router.codec is None:
            return CompiledRouter(router, router.routes.catch_all, encode, errors, login=login)
        parse, build = router.codec.parse, router.codec.build
        built = encode if build is None else _built(build, encode)
        builds = build is not None
        return CompiledRouter(router, None, built, errors, parse=parse, builds=builds, login=login)

    def _of_children(self, line: CompiledRouter) -> CompiledRouter:
        router = line.router.child.complete()
        own = router.routes.error
        errors = line.errors if own is None else (own, *line.errors)
        login = router.routes.login or line.login
        return CompiledRouter(router, None, line.encode, errors, builds=line.builds, login=login)

    def _execute(self, command: Command) -> Outcome[Any]:
        if not isinstance(command, Publish):
            raise TypeError(f"the app itself only publishes; this is {command!r}")
        return self.hub.publish(command)

    def _publish_failed(self, command: object, outcome: Outcome[Any]) -> None:
        error = outcome.error
        if error is not None and isinstance(command, Publish):
            self._tap.show(Refused("publish", command.topic, error))
            self.counters["commands_failed"] += 1
            what = "refused" if isinstance(error, DeniedError) else "failed"
            log.warning("app ! publish to %r %s: %s", command.topic, what, error)

    def _commands_full(self) -> None:
        """Drop what is too much and nobody awaits, once whoever published it has had the time to await it."""
        if not self._judging:
            self._judging = True
            self.runtime.call_soon(self.runtime.call_soon, self._drop_excess)

    def _drop_excess(self) -> None:
        self._judging = False
        self._queue.drop_excess()


def _nothing() -> None:
    pass


def _ignored(_: object) -> None:
    pass


def _never(text: str, about: Any) -> bool:  # noqa: ARG001 - as whoever limits the log has it
    return False


def _built(build: Callable[[Any], bytes], encode: Callable[[bytes], bytes]) -> Callable[[Any], bytes]:
    return lambda message: encode(build(message))


def _as_it_is(data: bytes) -> bytes:
    return data


def _checked(framing: Framing) -> Callable[[bytes], bytes]:
    """Return the `encode` of *framing*; for one that isn't ours, its result is checked."""
    if framing is RAW:
        return _as_it_is
    encode = framing.encode
    if type(framing) in STOCK:
        return encode
    return giving_bytes(encode, framing, "encoded")
