"""The embedded hub: routes messages between the connections of one process."""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import attrs

from .channel import Channel
from .commands import DONE, GRANTED, Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from .errors import DeniedError, UnavailableError
from .models import ClientInfo, Message
from .topics import Filters, split_share

__all__ = ["Login", "MemoryHub", "Watch"]

log = logging.getLogger("exproto_app")

Login: TypeAlias = Callable[[ClientInfo, str | None], bool | Awaitable[bool]]
"""A login rule: gets the client and its password (None if it gave none), tells whether it may register."""

Watch: TypeAlias = Callable[[Channel | None, Message], object]
"""Gets each message that is published and the channel it came from, None for the app's own."""


@attrs.define(eq=False)
class Group:
    """The members of one shared subscription; each message goes to one of them, in turn."""

    members: dict[Channel, int] = attrs.field(factory=dict)

    def take_turn(self) -> tuple[Channel, int]:
        """Return the member whose turn it is, with its QoS, and put it last."""
        channel = next(iter(self.members))
        qos = self.members.pop(channel)
        self.members[channel] = qos
        return channel, qos


class MemoryHub:
    """A hub in memory, without retained messages and without sessions that outlive a connection.

    *login* decides who may register; without it everybody may. A device's messages come back to it where it
    is subscribed; overlapping subscriptions of one device deliver once, with the highest QoS.
    """

    ordered = True
    keeps_wills = False
    keeps_sessions = False

    def __init__(self, login: Login | None = None, *, watch: Watch | None = None) -> None:
        self._login = login
        self._watch = watch
        self._filters: Filters[Channel | Group, int] = Filters()
        self._granted: dict[Channel, dict[str, int]] = {}
        self._groups: dict[str, Group] = {}
        self._ids = itertools.count(1)

    def __str__(self) -> str:
        return "the embedded hub"

    @property
    def asks(self) -> bool:
        """Whether a login rule decides who may register."""
        return self._login is not None

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        match command:
            case Publish():
                self._route(channel, command)
                return DONE
            case Subscribe(topic, qos):
                self._subscribe(channel, topic, qos)
                return GRANTED[qos]
            case Unsubscribe(topic):
                self._unsubscribe(channel, topic)
                return DONE
            case Register():
                return self._register(channel, command)

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        self._route(None, command)
        return DONE

    def gone(self, channel: Channel) -> None:
        """Forget a connection's subscriptions."""
        for topic in tuple(self._granted.get(channel, ())):
            self._unsubscribe(channel, topic)

    def subscribed(self, channel: Channel, topic: str) -> bool:
        """Tell whether a message of *topic* would reach *channel*."""
        return any(
            key is channel or (isinstance(key, Group) and channel in key.members)
            for key, _ in self._filters.matching(topic)
        )

    def _route(self, sender: Channel | None, command: Publish) -> None:
        message = Message(
            command.topic,
            command.payload,
            command.qos,
            command.retain,
            id=f"{next(self._ids):016x}",
            sender=sender.client.clientid if sender is not None and sender.client is not None else "",
            timestamp=time.time_ns() // 1_000_000,
        )
        if self._watch is not None:
            self._watch(sender, message)
        matching = self._filters.matching(command.topic)
        if not matching:
            return
        best: dict[Channel, int] = {}
        for key, qos in matching:
            if isinstance(key, Group):
                channel, qos = key.take_turn()  # noqa: PLW2901 - the member stands for its group
                channel.delivered((self._for(message, qos),))
            elif best.get(key, -1) < qos:
                best[key] = qos
        by_qos = [(self._for(message, qos),) for qos in range(3)]
        for channel, qos in best.items():
            channel.delivered(by_qos[qos])

    @staticmethod
    def _for(message: Message, qos: int) -> Message:
        """Return *message* as a subscription of this *qos* gets it."""
        if message.qos <= qos and not message.retain:
            return message
        return attrs.evolve(message, qos=min(message.qos, qos), retain=False)

    def _subscribe(self, channel: Channel, topic: str, qos: int) -> None:
        granted = self._granted.setdefault(channel, {})
        group_name, plain = split_share(topic)
        granted[topic] = qos
        if not group_name:
            self._filters.add(plain, channel, qos)
            return
        group = self._groups.get(topic)
        if group is None:
            group = self._groups[topic] = Group()
            self._filters.add(plain, group, 0)
        group.members[channel] = qos

    def _unsubscribe(self, channel: Channel, topic: str) -> None:
        granted = self._granted.get(channel)
        if granted is None or granted.pop(topic, None) is None:
            return
        if not granted:
            del self._granted[channel]
        group_name, plain = split_share(topic)
        if not group_name:
            self._filters.discard(plain, channel)
            return
        group = self._groups[topic]
        del group.members[channel]
        if not group.members:
            del self._groups[topic]
            self._filters.discard(plain, group)

    def _register(self, channel: Channel, command: Register) -> Outcome[None]:
        if self._login is None:
            return DONE
        try:
            answer = self._login(command.client, command.password)
        except Exception as error:  # noqa: BLE001 - a login rule is the user's code
            return refused(self._broken(error))
        if not inspect.isawaitable(answer):
            return DONE if answer else refused(self._denied(command.client))
        outcome: Outcome[None] = Outcome(channel.engine.runtime.waiter)
        channel.engine.runtime.run_task(answer, partial(self._answered, command.client, outcome))
        return outcome

    def _answered(
        self, client: ClientInfo, outcome: Outcome[None], answer: object, error: BaseException | None
    ) -> None:
        if error is not None:
            outcome.fail(self._broken(error))
        elif answer:
            outcome.settle(None)
        else:
            outcome.fail(self._denied(client))

    @staticmethod
    def _denied(client: ClientInfo) -> DeniedError:
        return DeniedError(f"{client.clientid!r} may not register: wrong clientid, username or password")

    @staticmethod
    def _broken(error: BaseException) -> UnavailableError:
        log.error("hub ! the login rule failed: %r", error, exc_info=error)
        return UnavailableError(f"the login rule failed: {error!r}")
