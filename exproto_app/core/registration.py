"""Registration: the device becomes a client of the broker, and an older connection of it has to go."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from .. import tap as events
from ..commands import DONE, Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ..errors import CommandError, DeniedError, UnavailableError
from ..models import Message
from ..topics import split_share
from .logins import LoginCall
from .roaming import MOST, Roaming
from .states import ENDED, OPEN, REGISTER, RUNNING

if TYPE_CHECKING:
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["KEEPALIVE_FACTOR", "Registration", "mounted", "unmounted"]

log = logging.getLogger("exproto_app")

DATAGRAMS: Final = frozenset({"udp", "dtls"})

KEEPALIVE_FACTOR = 1.5
"""A client is silent for too long after this many keepalives (MQTT 5, 3.1.2.10)."""


@attrs.define(eq=False)
class _Delayed:
    """A login that waits, because its clientid changes hands too often."""

    command: Register
    outcome: Outcome[None]
    timer: Timer | None = None


class Registration:
    """How one connection's device is registered; made for its first `register`."""

    __slots__ = ("_calls", "_delayed", "_owner", "_unanswered", "keeps_session", "will")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._unanswered = 0
        self._delayed: list[_Delayed] | None = None
        self._calls: list[LoginCall] | None = None
        self.will: Message | None = None
        self.keeps_session = False

    def register(self, command: Register) -> Outcome[None]:
        """Ask the broker; turns wait for the outcome."""
        owner = self._owner
        if owner.client is not None:
            if attrs.evolve(command.client, keepalive=owner.client.keepalive) == owner.client:
                return DONE
            words = f"the connection is registered already, as {owner.client.clientid!r}"
            return refused(DeniedError(words))
        delay = self._delay(command)
        if delay is None:
            words = f"{command.client.clientid!r} is taken over repeatedly; try again later"
            return refused(UnavailableError(words))
        outcome: Outcome[None] = Outcome(owner.engine.runtime.waiter)
        self._unanswered += 1
        owner.waits |= REGISTER
        if not delay:
            self._ask(command, outcome)
            return outcome
        delayed = _Delayed(command, outcome)
        delayed.timer = owner.engine.runtime.call_later(delay, self._go_on, delayed)
        self._delayed = [*(self._delayed or ()), delayed]
        return outcome

    def _delay(self, command: Register) -> float | None:
        """Return how many seconds a takeover has to wait; None if that is too long."""
        owner, clientid = self._owner, command.client.clientid
        engine = owner.engine
        older: Owner | None = engine.clients.get(clientid)
        if older is None or older.state > OPEN:
            return 0.0
        if self._may_join(older, command) and len(older.roaming.members if older.roaming else ()) < MOST:
            return 0.0
        now = engine.runtime.time()
        delay = engine.takeovers.delay(clientid, now)
        if engine.takeovers.news(clientid, now):
            text = "%s ! clientid %r is taken over repeatedly, now from %s by %s; this takeover is delayed"
            log.warning(text, owner, clientid, older.conn.info.peername, owner.conn.info.peername)
        return delay if engine.runtime.ticks else 0.0

    def _go_on(self, delayed: _Delayed) -> None:
        """Ask for a login whose time has come."""
        if self._delayed is not None and delayed in self._delayed:
            self._delayed.remove(delayed)
            self._ask(delayed.command, delayed.outcome)

    def _ask(self, command: Register, outcome: Outcome[None]) -> None:
        """Ask the broker, now."""
        owner = self._owner
        hub = owner.engine.hub
        if command.session_expiry and not hub.keeps_sessions:
            text = "%s ! session_expiry is ignored: this host keeps no sessions for absent clients"
            owner.engine.once("session_expiry", text, owner)
        handler = owner.protocol.login
        if handler is None:
            self._log_in(command, outcome)
            return
        call = LoginCall(owner, handler, command, partial(self._judged, outcome))
        self._calls = [*(one for one in self._calls or () if not one.ended), call]
        call.start()

    def _judged(self, outcome: Outcome[None], command: Register, error: CommandError | None) -> None:
        """Take what `on_login` says: ask the broker too, or refuse the device."""
        if error is None:
            self._log_in(command, outcome)
        else:
            self._answered(command, outcome, refused(error))

    def _log_in(self, command: Register, outcome: Outcome[None]) -> None:
        """Ask the broker."""
        owner = self._owner
        mount = command.client.mountpoint
        if command.will is not None and mount:
            command.will = attrs.evolve(command.will, topic=mount + command.will.topic)
        owner.log_in(command).when_done(partial(self._answered, command, outcome))

    def release(self) -> None:
        """Wait no more: the device has gone."""
        owner = self._owner
        self._unanswered = 0
        owner.waits &= ~REGISTER
        calls, self._calls = self._calls, None
        for call in calls or ():
            call.cancel()
        delayed, self._delayed = self._delayed, None
        for one in delayed or ():
            if one.timer is not None:
                one.timer.cancel()
            if owner.judged(one.command):
                one.outcome.fail(UnavailableError("the device hung up before the broker answered"))
            else:
                self._ask(one.command, one.outcome)  # so that what it said behind its login counts

    def leave(self) -> None:
        """Take the connection out of the tables of clients, unless a newer one stands there."""
        owner = self._owner
        if owner.client is None:
            return
        clientid, engine, live = owner.client.clientid, owner.engine, owner.protocol.router.live
        group, owner.roaming = owner.roaming, None
        heir = None if group is None else group.leave(owner)
        if heir is not None:
            if engine.clients.get(clientid) is owner:
                engine.clients[clientid] = heir
                engine.app.clients[clientid] = live[clientid] = heir.conn
        elif engine.clients.get(clientid) is owner:
            del engine.clients[clientid]
            del engine.app.clients[clientid]
            live.pop(clientid, None)
        elif live.get(clientid) is owner.conn:
            del live[clientid]

    def _answered(self, command: Register, outcome: Outcome[None], result: Outcome[None]) -> None:
        """Take the host's answer."""
        owner = self._owner
        if owner.gone:
            outcome.fail(result.error or owner.closed_error())
            return
        if result.error is not None:
            self._done(outcome, result.error)
            return
        older: Owner | None = owner.engine.clients.get(command.client.clientid)
        joins = older is not None and self._may_join(older, command)
        self._enter(command, older, joins=joins)
        if older is None or older.state is ENDED:
            self._done(outcome, None)
        elif joins:
            self._join(older)
            self._done(outcome, None)
        else:
            self._take_over(older, outcome)

    def _enter(self, command: Register, older: Owner | None, *, joins: bool) -> None:
        """Be that client from now on, in the place of *older*, or beside it where this *joins* it."""
        owner, client = self._owner, command.client
        engine = owner.engine
        owner.client, owner.mount, self.will = client, client.mountpoint, command.will
        self.keeps_session = command.session_expiry > 0 and engine.hub.keeps_sessions
        engine.clients[client.clientid] = owner
        engine.app.clients[client.clientid] = owner.conn
        owner.protocol.router.live[client.clientid] = owner.conn
        if owner.tracer is not None:
            owner.tracer.show(events.Registered(client))
        owner.move_on(OPEN)
        if not joins:
            same = older is not None and older.mount == owner.mount
            engine.hub.registered(owner, command, older if same else None)
        if client.keepalive and not engine.runtime.ticks:
            engine.once("keepalive", "%s ! keepalive is ignored: this host has no timers", owner)
        elif client.keepalive:
            owner.start_timer(KEEPALIVE_FACTOR * client.keepalive)
        log.debug("%s = registered %r", owner, client.clientid)

    def _may_join(self, older: Owner, command: Register) -> bool:
        """Return whether *older* and this, by *command*, are addresses that one device speaks from."""
        owner = self._owner
        if owner.protocol is not older.protocol or not owner.protocol.router.roaming:
            return False
        datagrams = {owner.conn.info.socktype, older.conn.info.socktype} <= DATAGRAMS
        return (
            datagrams
            and owner.engine.hub.roams
            and command.client.mountpoint == older.mount
            and older.state <= OPEN
        )

    def _join(self, older: Owner) -> None:
        """Be one more connection of the client."""
        owner = self._owner
        group = older.roaming
        if group is None:
            group = older.roaming = Roaming(older)
        owner.roaming = group
        group.join(owner)
        log.debug("%s = another address of %s", owner, older)
        if len(group.members) > MOST:
            oldest = group.members[0]
            oldest.end("taken over", f"the device speaks from more than {MOST} addresses")

    def _take_over(self, older: Owner, outcome: Outcome[None]) -> None:
        """Have what was *older*'s, and wait until that connection has ended, bounded in time.

        What ends behind a line takes a turn of it to end. So nobody may wait for it who keeps that turn: a
        handler of the same line, or of another one whose own end that line waits for.
        """
        owner = self._owner
        engine = owner.engine
        mine, theirs = owner.line or owner, older.line or older
        if older.mount == owner.mount:
            owner.delivered(older.take_deliveries())

        waiting = [outcome]

        def go_on() -> None:
            bound.cancel()
            if waiting:
                engine.takeovers.end(mine, theirs)
                self._done(waiting.pop(), None)

        bound = engine.runtime.call_later(2 * engine.limits.end_timeout, go_on)
        words = f"{older.client.clientid if older.client else ''} is connected anew, as {owner.id}"
        circle = engine.takeovers.begin(mine, theirs)
        older.end("taken over", words)
        if older.line is owner:
            go_on()
            return
        if circle:
            outcome.settle(None)  # a handler may await it
        older.when_ended(go_on)

    def _done(self, outcome: Outcome[None], error: CommandError | None) -> None:
        owner = self._owner
        if not owner.gone:
            self._unanswered -= 1
            if not self._unanswered:
                owner.waits &= ~REGISTER
        if error is None:
            outcome.settle(None)
        else:
            outcome.fail(error)
        if not owner.waits & RUNNING:
            owner.later()


def mounted(command: Command, mount: str) -> Command:
    """Return *command* with its topic below *mount*."""
    match command:
        case Publish(topic, payload, qos, retain, properties, absolute):
            if absolute:
                return command
            if properties.response_topic:
                properties = attrs.evolve(properties, response_topic=mount + properties.response_topic)
            return Publish(mount + topic, payload, qos, retain, properties)
        case Subscribe(topic, qos):
            return Subscribe(_mounted_filter(topic, mount), qos)
        case Unsubscribe(topic):
            return Unsubscribe(_mounted_filter(topic, mount))
    return command


def unmounted(message: Message, mount: str) -> Message:
    """Return *message* with its topic as the app knows it."""
    return attrs.evolve(message, topic=message.topic.removeprefix(mount))


def _mounted_filter(topic: str, mount: str) -> str:
    group, plain = split_share(topic)
    return f"$share/{group}/{mount}{plain}" if group else mount + plain
