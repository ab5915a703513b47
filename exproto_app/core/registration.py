"""Registration: the device becomes a client of the broker, and an older connection of it has to go."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import attrs

from .. import tap as events
from ..commands import DONE, Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ..errors import CommandError, DeniedError
from ..models import Message
from ..topics import split_share
from .states import ENDED, OPEN, REGISTER, RUNNING

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["KEEPALIVE_FACTOR", "Registration", "mounted", "unmounted"]

log = logging.getLogger("exproto_app")

KEEPALIVE_FACTOR = 1.5
"""A client is silent for too long after this many keepalives (MQTT 5, 3.1.2.10)."""


class Registration:
    """How one connection's device is registered; made for its first `register`."""

    __slots__ = ("_owner", "_unanswered", "will")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._unanswered = 0
        self.will: Message | None = None

    def register(self, command: Register) -> Outcome[None]:
        """Ask the broker; turns wait for the outcome."""
        owner = self._owner
        if owner.client is not None:
            if attrs.evolve(command.client, keepalive=owner.client.keepalive) == owner.client:
                return DONE
            words = f"the connection is registered already, as {owner.client.clientid!r}"
            return refused(DeniedError(words))
        outcome: Outcome[None] = Outcome(owner.engine.runtime.waiter)
        self._unanswered += 1
        owner.waits |= REGISTER
        hub = owner.engine.hub
        if command.session_expiry and not hub.keeps_sessions:
            text = "%s ! session_expiry is ignored: this host keeps no sessions of clients that have gone"
            owner.engine.once("session_expiry", text, owner)
        mount = command.client.mountpoint
        if command.will is not None and mount:
            command.will = attrs.evolve(command.will, topic=mount + command.will.topic)
        hub.execute(owner, command).when_done(partial(self._answered, command, outcome))
        return outcome

    def release(self) -> None:
        """Wait no more: the device has gone."""
        self._unanswered = 0
        self._owner.waits &= ~REGISTER

    def leave(self) -> None:
        """Take the connection out of the tables of clients, unless a newer one stands there."""
        owner = self._owner
        if owner.client is None:
            return
        clientid, engine, live = owner.client.clientid, owner.engine, owner.protocol.router.live
        if engine.clients.get(clientid) is owner:
            del engine.clients[clientid]
            del engine.app.clients[clientid]
            live.pop(clientid, None)
        elif live.get(clientid) is owner.conn:
            del live[clientid]

    def _answered(self, command: Register, outcome: Outcome[None], result: Outcome[None]) -> None:
        """Take the host's answer."""
        owner = self._owner
        if owner.gone:
            outcome.fail(owner.closed_error())
            return
        if result.error is not None:
            self._done(outcome, result.error)
            return
        older = self._enter(command)
        if older is None or older.state is ENDED:
            self._done(outcome, None)
        else:
            self._take_over(older, outcome)

    def _enter(self, command: Register) -> Owner | None:
        """Be that client from now on; return the older connection that was it, if there is one."""
        owner, client = self._owner, command.client
        engine = owner.engine
        older: Owner | None = engine.clients.get(client.clientid)
        owner.client, owner.mount, self.will = client, client.mountpoint, command.will
        engine.clients[client.clientid] = owner
        engine.app.clients[client.clientid] = owner.conn
        owner.protocol.router.live[client.clientid] = owner.conn
        if owner.tracer is not None:
            owner.tracer.show(events.Registered(client))
        owner.move_on(OPEN)
        if client.keepalive and not engine.runtime.ticks:
            engine.once("keepalive", "%s ! keepalive is ignored: this host has no timers", owner)
        elif client.keepalive:
            owner.start_timer(KEEPALIVE_FACTOR * client.keepalive)
        log.debug("%s = registered %r", owner, client.clientid)
        return older

    def _take_over(self, older: Owner, outcome: Outcome[None]) -> None:
        """End the *older* connection, and wait until it has ended, bounded in time."""
        owner = self._owner
        engine = owner.engine

        def go_on() -> None:
            bound.cancel()
            self._done(outcome, None)

        bound = engine.runtime.call_later(2 * engine.limits.end_timeout, go_on)
        words = f"{older.client.clientid if older.client else ''} is connected anew, as {owner.id}"
        older.end("taken over", words)
        older.when_ended(go_on)

    def _done(self, outcome: Outcome[None], error: CommandError | None) -> None:
        if outcome.done:
            return
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
        case Publish(topic, payload, qos, retain):
            return Publish(mount + topic, payload, qos, retain)
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
