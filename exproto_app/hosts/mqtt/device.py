"""Clients of the broker: what they have in common, and a device as one of its own."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from ...commands import DONE, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...core import Channel, Engine
from ...errors import CommandError, UnavailableError
from ...models import Message
from .broker_link import BrokerLink
from .packets import IDS
from .reasons import KICKED, TAKEN_OVER
from .session import Blame, Flight, Login
from .stored_queue import Record

if TYPE_CHECKING:
    from .uplink import MqttHub

__all__ = ["Device", "Sender"]

log = logging.getLogger("exproto_app")

HARD: Final = 4
"""A queue may be filled this many times over by those who can't be made to wait; what is more is refused."""

GRACE: Final = 1.0
"""Seconds for which what a device has left over waits for a newer connection of the same clientid."""

SHORTEST_KEEPALIVE: Final = 5
DEFAULT_KEEPALIVE: Final = 60
"""Seconds; the gateway pings in a device's name, so a shorter one would tell the broker nothing."""


class Sender:
    """A client of the broker that connections publish through, and what happens when its queue is full."""

    __slots__ = ("_congested", "_expiring", "_said", "hub", "link")

    link: BrokerLink

    def __init__(self, hub: MqttHub) -> None:
        self.hub = hub
        self._congested: dict[Channel | Engine, None] | None = None
        self._said = False
        self._expiring: list[tuple[float, Publish, Outcome[None]]] | None = None

    def client_of(self, channel: Channel | None) -> str:
        """Return the clientid of *channel*, if it has one."""
        raise NotImplementedError

    def publish(self, channel: Channel | None, command: Publish) -> Outcome[None]:
        """Publish for *channel*, None for the app itself."""
        outgoing, backlog = self.link.session.outgoing, self.hub.backlog
        given = None
        if backlog is not None and command.qos:
            stored = backlog.publish(self, channel, command)
            if stored is not None:
                return stored
            given = backlog.outcome(self, channel)
        if outgoing.waiting is None:
            outcome = outgoing.publish(command, given)
            if outgoing.waiting is not None:
                self._may_expire(command, outcome)
                self.bound(channel)
            return outcome
        # What is left of a connection that has gone is bounded with that of all others (`MqttHub.left`).
        full = None if channel is not None and channel.gone else self.full()
        if full is not None:
            self.hub.count("publishes_dropped")
            return full
        outcome = outgoing.publish(command, given)
        self._may_expire(command, outcome)
        self.bound(channel)
        return outcome

    def _may_expire(self, command: Publish, outcome: Outcome[None]) -> None:
        """Look after a message that waits, if it is only for so long worth anything."""
        expiry = command.properties.expiry
        if expiry is not None and not outcome.done:
            deadline = self.hub.broker.loop.time() + expiry
            if self._expiring is None:
                self._expiring = []
            self._expiring.append((deadline, command, outcome))
            self.hub.expiring.add(self)

    def look_at_expiry(self, now: float) -> None:
        """Drop what has expired while it waited for the broker; the rest has less time left (3.3.2.3.3)."""
        left: list[tuple[float, Publish, Outcome[None]]] = []
        expiring, self._expiring = self._expiring or (), None
        for deadline, command, outcome in expiring:
            if outcome.done:
                continue
            if deadline > now:
                command.properties = attrs.evolve(command.properties, expiry=math.ceil(deadline - now))
                left.append((deadline, command, outcome))
            elif self.link.session.outgoing.withdraw(command):
                self.hub.count("messages_expired")
                if isinstance(outcome, Record):
                    outcome.settle(None)  # nothing more is to be done about it
                    continue
                outcome.fail(UnavailableError("the message expired while it waited for the broker"))
            else:
                left.append((deadline, command, outcome))  # it is on its way, and may come back yet
        self._expiring = [*left, *(self._expiring or ())] or None
        if self._expiring is None:
            self.hub.expiring.discard(self)

    def full(self) -> Outcome[Any] | None:
        """Return the refusal of whatever more is to wait, None while there is room."""
        session = self.link.session
        outgoing, bounds = session.outgoing, session.bounds
        number, size = len(outgoing.waiting or ()), outgoing.waiting_bytes
        if number < HARD * bounds.messages and size < HARD * bounds.queue:
            return None
        limits = f"limits are {HARD * bounds.messages} and {HARD * bounds.queue}"
        words = f"{number} messages and the like ({size} bytes) wait for the broker, {limits}"
        return refused(UnavailableError(words))

    def offline(self) -> None:
        """Have what is on its way be stored, or expire like what waits."""
        if self.hub.backlog is not None:
            self.hub.backlog.offline(self)
        known = {id(command) for _, command, _ in self._expiring or ()}
        for flight in self.link.session.outgoing.messages():
            command = flight.command
            if type(command) is Publish and id(command) not in known:
                self._may_expire(command, flight.outcome)

    def pending(self) -> list[Flight]:
        """Take out every message that isn't safe yet, the oldest first; what is stored is nobody else's."""
        flights, backlog = self.link.session.outgoing.pending(), self.hub.backlog
        return flights if backlog is None else backlog.reclaim(flights)

    def relieved(self) -> None:
        """Have those go on that wait for room, one after the other while there is any."""
        self._said = False
        waiting, self._congested = self._congested, None
        if waiting is None:
            return
        for one in tuple(waiting):
            if self.over:
                break
            del waiting[one]
            one.relieved()
        if waiting:
            self._congested = {**waiting, **(self._congested or {})}

    @property
    def over(self) -> bool:
        """Whether more waits than should."""
        outgoing, bounds = self.link.session.outgoing, self.link.session.bounds
        number = len(outgoing.waiting or ())
        return number > bounds.messages or outgoing.waiting_bytes > bounds.queue

    def bound(self, channel: Channel | None) -> None:
        """See to a queue that is full."""
        session, policy = self.link.session, self.hub.options.when_full
        outgoing = session.outgoing
        while outgoing.waiting and self.over:
            if not self._said:
                self._said = True
                text = "mqtt ! %s: %d messages (%d bytes) wait for the broker, the queue is full: %s"
                number, size = len(outgoing.waiting), outgoing.waiting_bytes
                # A broker that is only slow makes queues full again and again.
                level = logging.WARNING if self.hub.broker.trouble or policy != "wait" else logging.DEBUG
                log.log(level, text, session.login.clientid, number, size, policy)
            if policy == "drop-oldest" and len(outgoing.waiting) > 1:
                oldest = outgoing.drop_oldest()
                if oldest is None:
                    self._wait_for_room(channel)
                    return
                self.hub.count("publishes_dropped")
                oldest.outcome.fail(UnavailableError("the message was dropped: the queue was full"))
                continue
            if policy == "wait":
                self._wait_for_room(channel)
            elif channel is not None and policy == "disconnect":
                channel.end("error", "the broker is away or too slow, and the queue is full")
            return

    def _wait_for_room(self, channel: Channel | None) -> None:
        """Have *channel*, None for the app itself, publish nothing more for now."""
        one = channel or self.hub.engine
        if self._congested is None:
            self._congested = {}
        self._congested[one] = None
        one.congested()


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
        self.registered: Outcome[None] = Outcome(hub.broker.waiter)
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
        older = hub.connected(client.clientid)
        # The broker may remember identifiers of a session that we don't; few are where we begin by chance.
        known = command.session_expiry or older is not None
        first_id = random.randrange(IDS) if known else 0  # noqa: S311 - no secret
        self.link = BrokerLink(hub.broker, self, login, hub.bounds, first_id=first_id)
        if older is not None:
            self.link.session.take_over(older.link.session)

    @property
    def clientid(self) -> str:
        """What it is to the broker."""
        return self.link.session.login.clientid

    def client_of(self, channel: Channel | None) -> str:  # noqa: ARG002 - as `Sender` has it
        return self.clientid

    def subscribe(self, channel: Channel, command: Subscribe) -> Outcome[int]:
        """Subscribe at the broker."""
        outcome = self.full() or self.link.session.subscribe(command)
        self.bound(channel)
        return outcome

    def unsubscribe(self, channel: Channel, command: Unsubscribe) -> Outcome[None]:
        """Take a subscription back."""
        outcome = self.full() or self.link.session.unsubscribe(command)
        self.bound(channel)
        return outcome

    def leave(self, *, with_will: bool) -> None:
        """End: the connection has gone. What it has published is sent first."""
        hub = self.hub
        self._with_will = with_will
        self.channel = self._congested = None
        if hub.backlog is not None:
            hub.backlog.left(self)
        if self.registered.done and self.link.session.unsafe:
            if not self.lost:
                hub.left(self)
                self.link.session.outgoing.finish()
                return
            self._hand_over()
        self.close()

    def give_up(self) -> list[Flight]:
        """Hand over what isn't safe yet, for another to send."""
        self.lost = True
        if self.hub.backlog is not None:
            self.hub.backlog.left(self)
        return self.pending()

    def close(self) -> None:
        """Disconnect, if that hasn't happened yet, and be forgotten."""
        self.hub.forget(self)
        self.link.close(with_will=self._with_will)

    def look_at_deadline(self, now: float) -> None:
        """Fail a register that takes too long; the time in which it only waits for its turn doesn't count."""
        if self.hub.broker.waits(self.link):
            self._deadline = now + self.hub.options.timeout
        if now < self._deadline:
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
            registered, self.registered = self.registered, DONE
            registered.settle(None)
        if self.hub.backlog is not None:
            self.hub.backlog.arrived(self)

    def refused(self, error: CommandError, words: str) -> None:
        if not self.registered.done:
            self._unregistered(error)
            return
        login = self.link.session.login
        self.hub.login_refused(self.channel, login.clientid, login.username, words)
        self._over("kicked", str(error))

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> bool:
        self.hub.denied(self.channel, self.link.session.login, command, words)
        return True

    def failed(self, words: str, *, worst: bool) -> None:
        self.hub.count("sessions_interrupted")
        level = logging.WARNING if worst else logging.DEBUG
        log.log(level, "mqtt ! %s: %s; trying again", self.clientid, words)

    def finished(self) -> None:
        self.close()

    def disconnected(self, code: int, words: str, blame: Blame) -> bool:
        if code == TAKEN_OVER:
            self._over("taken over", words)
        elif code in KICKED and blame is Blame.NOBODY:
            self._over("kicked", words)
        return not self.lost

    def message(self, message: Message, _: list[int], acknowledge: Callable[[], object] | None) -> None:
        if self.channel is not None:
            self.channel.delivered((message,), acknowledge)

    def _over(self, reason: Literal["kicked", "taken over"], words: str) -> None:
        """Take the end of the session, which the broker wants: the device goes too."""
        self.lost = True
        self.link.session.outgoing.fail_subscriptions(words)
        if reason == "kicked":
            self.hub.drop(self.pending(), f"{self.clientid} was kicked: {words}")
        if self.channel is not None:
            self.channel.relieved()
            self.channel.end(reason, words)
        else:
            # Perhaps the device is about to come back here, and takes its messages.
            self.hub.broker.loop.call_later(GRACE, self._left_over)

    def _left_over(self) -> None:
        if self.link.session.unsafe:
            self._hand_over()
        self.close()

    def _hand_over(self) -> None:
        """Have the gateway's own client send what is left: another has this one's clientid."""
        self.hub.gateway_client.link.session.outgoing.append(self.give_up())
