"""The gateway's own client of the broker, and who has subscribed through it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import attrs

from ...commands import DONE, Outcome, Publish, Subscribe, Unsubscribe
from ...core import Channel
from ...errors import CommandError
from ...models import Message
from ...topics import Filters, split_share
from .broker_link import BrokerLink
from .device import Sender
from .reasons import TAKEN_OVER
from .session import Blame, Login

if TYPE_CHECKING:
    from .uplink import MqttHub

__all__ = ["GatewayClient"]

log = logging.getLogger("exproto_app")

OWN: Final = 16
"""The gateway's own client, which many connections use, has a queue this many times a device's."""

IDENTIFIERS: Final = 8
"""Subscription identifiers remembered of a filter: messages with an older one may be on their way."""


RIVAL: Final = "if it is a second gateway, give each its own --mqtt-client-id"


@attrs.define(eq=False)
class Subscription:
    """A filter of the gateway's own client, and the connections that have subscribed to it.

    Those *leaving* get what the broker has sent before it answers to that.
    """

    members: dict[Channel, int] = attrs.field(factory=dict)
    leaving: set[Channel] = attrs.field(factory=set)
    identifiers: list[int] = attrs.field(factory=list)


class GatewayClient(Sender):
    """The gateway's own client: for the app, and for connections that aren't clients themselves."""

    __slots__ = ("_filters", "_identifiers", "_next", "_of", "_subscriptions", "up")

    def __init__(self, hub: MqttHub) -> None:
        super().__init__(hub)
        url = hub.url
        self.up: asyncio.Future[str] | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._of: dict[Channel, set[str]] = {}
        self._identifiers: dict[int, tuple[str, Channel]] = {}
        self._filters: Filters[str, None] = Filters()
        self._next = count(1)
        clientid = hub.options.client_id or f"exproto-app-{secrets.token_hex(6)}"
        bounds = attrs.evolve(hub.bounds, messages=OWN * hub.bounds.messages, queue=OWN * hub.bounds.queue)
        self.link = BrokerLink(hub.broker, self, Login(clientid, url.username, url.password), bounds)

    def use_password(self, password: str) -> None:
        """Have the next login be with *password*."""
        session = self.link.session
        session.login = attrs.evolve(session.login, password=password)

    def client_of(self, channel: Channel | None) -> str:
        return "" if channel is None or channel.client is None else channel.client.clientid

    # --- for connections

    def subscribe(self, channel: Channel, command: Subscribe) -> Outcome[int]:
        """Subscribe for *channel*; the broker is asked each time, for it has retained messages to send."""
        full = self.full()
        if full is not None:
            return full
        topic = command.topic
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            subscription = self._subscriptions[topic] = Subscription()
            self._filters.add(split_share(topic)[1], topic, None)
        subscription.members[channel] = command.qos
        subscription.leaving.discard(channel)
        self._of.setdefault(channel, set()).add(topic)
        identifier = next(self._next)
        self._identifiers[identifier] = topic, channel
        subscription.identifiers.append(identifier)
        if len(subscription.identifiers) > IDENTIFIERS:
            del self._identifiers[subscription.identifiers.pop(0)]
        outcome: Outcome[int] = Outcome(self.hub.broker.waiter)
        result = self._ask(topic, subscription, identifier)
        result.when_done(partial(self._subscribed, channel, command, outcome))
        self.bound(channel)
        return outcome

    def _ask(self, topic: str, subscription: Subscription, identifier: int = 0) -> Outcome[int]:
        """Ask the broker for *topic*, and, with a new *identifier*, for its retained messages."""
        highest = Subscribe(topic, max(subscription.members.values()))
        newest = identifier or subscription.identifiers[-1]
        return self.link.session.subscribe(highest, newest, retained=bool(identifier))

    def unsubscribe(self, channel: Channel, command: Unsubscribe) -> Outcome[None]:
        """Take a subscription of *channel* back, at the broker where it is the last."""
        topic = command.topic
        subscription = self._subscriptions.get(topic)
        if subscription is None or channel not in subscription.members:
            return DONE
        subscription.leaving.add(channel)
        outcome: Outcome[None] = Outcome(self.hub.broker.waiter)
        left = partial(self._left, channel, topic, outcome)
        if len(subscription.leaving) < len(subscription.members):
            # The others stay; the answer tells when what came before has come.
            # MQTT 3.1.1 would bring retained messages again for that.
            is_5 = self.link.session.dialect.is_5
            (self._ask(topic, subscription) if is_5 else DONE).when_done(left)
        else:
            self.link.session.unsubscribe(command).when_done(left)
        return outcome

    def _left(self, channel: Channel, topic: str, outcome: Outcome[None], result: Outcome[Any]) -> None:
        subscription = self._subscriptions.get(topic)
        if subscription is not None and channel in subscription.leaving:
            self._remove(channel, topic, subscription)
        if result.error is None:
            outcome.settle(None)
        else:
            outcome.fail(result.error)

    def _remove(self, channel: Channel, topic: str, subscription: Subscription) -> None:
        subscription.members.pop(channel, None)
        subscription.leaving.discard(channel)
        topics = self._of[channel]
        topics.discard(topic)
        if not topics:
            del self._of[channel]
        if subscription.members:
            return
        del self._subscriptions[topic]
        self._filters.discard(split_share(topic)[1], topic)
        for identifier in subscription.identifiers:
            del self._identifiers[identifier]

    def holds(self, channel: Channel, topic: str) -> bool:
        """Return whether *channel* has subscribed to *topic* here."""
        return topic in self._of.get(channel, ())

    def inherit(self, heir: Channel, older: Channel) -> None:
        """Have *heir* keep the subscriptions of *older*, and messages for them come to it alone."""
        for topic in tuple(self._of.get(older, ())):
            subscription = self._subscriptions[topic]
            if older in subscription.leaving:
                continue
            subscription.members[heir] = subscription.members[older]
            subscription.leaving.discard(heir)
            self._of.setdefault(heir, set()).add(topic)
            self._remove(older, topic, subscription)

    def gone(self, channel: Channel) -> None:
        """Forget *channel*."""
        if self._congested is not None:
            self._congested.pop(channel, None)
        for topic in tuple(self._of.get(channel, ())):
            subscription = self._subscriptions[topic]
            if subscription.members.keys() - subscription.leaving == {channel}:
                self.link.session.unsubscribe(Unsubscribe(topic))
            self._remove(channel, topic, subscription)

    def _subscribed(
        self, channel: Channel, command: Subscribe, outcome: Outcome[int], result: Outcome[int]
    ) -> None:
        if result.error is None:
            outcome.settle(min(result.value or 0, command.qos))
            return
        if self.holds(channel, command.topic):
            self._remove(channel, command.topic, self._subscriptions[command.topic])
        outcome.fail(result.error)

    # --- from the link

    def message(self, message: Message, ids: list[int], acknowledge: Callable[[], object] | None) -> None:
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
        if acknowledge is not None:
            acknowledge()

    def _meant(self, topic: str, ids: list[int]) -> list[tuple[str, Channel | None]]:
        """Return the filters that a message was sent for, and who subscribed last where that is known."""
        known = [self._identifiers[number] for number in ids if number in self._identifiers]
        if known:
            return list(known)
        return [(found, self._newest(found)) for found, _ in self._filters.matching(topic)]

    def _newest(self, topic: str) -> Channel | None:
        """Return who has subscribed to *topic* last."""
        identifiers = self._subscriptions[topic].identifiers
        return self._identifiers[identifiers[-1]][1] if identifiers else None

    def accepted(self) -> None:
        log.info(
            "mqtt = connected to %s as %s",
            self.hub.url.each()[self.link.at],
            self.link.session.login.clientid,
        )
        if self.up is not None and not self.up.done():
            self.up.set_result("")
        if self.hub.backlog is not None:
            self.hub.backlog.online(self)

    def refused(self, error: CommandError, words: str) -> None:
        login = self.link.session.login
        self.hub.login_refused(None, login.clientid, login.username, words)
        if self.hub.broker.when_away is not None:
            self.hub.broker.when_away(str(error))
        self.link.retry(str(error))

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> bool:
        self.hub.denied(None, self.link.session.login, command, words)
        return False

    def failed(self, words: str, *, worst: bool) -> None:
        if self.up is not None and not self.up.done():
            self.up.set_result(words)
        if self.link.trouble != words or worst:
            log.error("mqtt ! the gateway's own client: %s; trying again", words)

    def finished(self) -> None:
        """Do nothing: it is never asked to finish."""

    def disconnected(self, code: int, words: str, blame: Blame) -> bool:  # noqa: ARG002 - a client's
        if code == TAKEN_OVER:
            clientid = self.link.session.login.clientid
            log.error(
                "mqtt ! another client uses the clientid of the gateway, %s: %s; %s", clientid, words, RIVAL
            )
        return True
