"""Clients of the broker: what they have in common, and a device as one of its own."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from ...commands import DONE, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...core import Channel
from ...errors import CommandError, UnavailableError
from ...models import Message
from .link import Link
from .packets import IDS
from .reasons import KICKED, TAKEN_OVER
from .session import Blame, Flight, Login

if TYPE_CHECKING:
    from .uplink import MqttHub

__all__ = ["Device", "Sender"]

log = logging.getLogger("exproto_app")

HARD: Final = 4
"""A turn that runs may fill the queue this many times over; beyond that its messages are refused."""

GRACE: Final = 1.0
"""Seconds for which what a device has left over waits for a newer connection of the same clientid."""

SHORTEST_KEEPALIVE: Final = 5
DEFAULT_KEEPALIVE: Final = 60
"""Seconds; the gateway pings in a device's name, so a shorter one would tell the broker nothing."""


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
        outgoing = self.link.session.outgoing
        if outgoing.waiting is None:
            outcome = outgoing.publish(command)
            if outgoing.waiting is not None:
                self.bound(channel)
            return outcome
        full = self.full()
        if full is not None:
            self.hub.count("publishes_dropped")
            return full
        outcome = outgoing.publish(command)
        self.bound(channel)
        return outcome

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

    def relieved(self) -> None:
        """Have those go on that wait for room."""
        self._said = False
        channels, self._congested = self._congested, None
        for channel in channels or ():
            channel.relieved()

    def bound(self, channel: Channel | None) -> None:
        """See to a queue that is full."""
        session, policy = self.link.session, self.hub.options.when_full
        outgoing, bounds = session.outgoing, session.bounds
        while outgoing.waiting and (
            len(outgoing.waiting) > bounds.messages or outgoing.waiting_bytes > bounds.queue
        ):
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
        # The broker may remember identifiers of a session that we don't; few are where we begin by chance.
        first_id = random.randrange(IDS) if command.session_expiry else 0  # noqa: S311 - no secret
        self.link = Link(hub.broker, self, login, hub.bounds, first_id=first_id)

    @property
    def clientid(self) -> str:
        """What it is to the broker."""
        return self.link.session.login.clientid

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
        return self.link.session.outgoing.pending()

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
            registered, self.registered = self.registered, DONE
            registered.settle(None)

    def refused(self, error: CommandError, words: str) -> None:
        login = self.link.session.login
        self.hub.login_refused(self.channel, login.clientid, login.username, words)
        if not self.registered.done:
            self._unregistered(error)
        else:
            self._over("kicked", str(error))

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> None:
        self.hub.denied(self.channel, self.link.session.login, command, words)

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

    def message(self, message: Message, _: list[int], taken: Callable[[], object] | None) -> None:
        if self.channel is not None:
            self.channel.delivered((message,), taken)

    def _over(self, reason: Literal["kicked", "taken over"], words: str) -> None:
        """Take the end of the session, which the broker wants: the device goes too."""
        self.lost = True
        self.link.session.outgoing.fail_subscriptions(words)
        if reason == "kicked":
            self.hub.drop(self.link.session.outgoing.pending(), f"{self.clientid} was kicked: {words}")
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
        self.hub.own.link.session.outgoing.append(self.give_up())
