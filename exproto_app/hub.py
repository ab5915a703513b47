"""The embedded hub: routes messages between the connections of one process, and keeps the retained ones."""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import attrs

from .commands import (
    DONE,
    GRANTED,
    Command,
    Outcome,
    Publish,
    Register,
    Subscribe,
    Unsubscribe,
    all_of,
    refused,
)
from .core import Channel
from .errors import DeniedError, UnavailableError
from .models import ClientInfo, Message
from .topics import Filters, Topics, split_share

__all__ = ["Login", "Member", "MemoryHub", "Watch"]

log = logging.getLogger("exproto_app")

Login: TypeAlias = Callable[[ClientInfo, str | None], bool | Awaitable[bool]]
"""A login rule: gets the client and its password (None if it gave none), tells whether it may register."""

Watch: TypeAlias = Callable[[Channel | None, Message], object]
"""Gets each message that is published and the channel it came from, None for the app's own."""

RETAINED: Final = 10_000
"""Retained messages that a hub keeps, and beyond which it keeps no further topic."""

RETAINED_BYTES: Final = 16 * 1024 * 1024
"""Bytes of their topics and payloads, likewise."""

LEVEL: Final = 400
"""Bytes that each further level of a topic counts among them: what a node of the tree takes."""


class Member(Hashable, Protocol):
    """Who subscribes and publishes: the `Channel` of a device, or an MQTT client that came in by a door."""

    @property
    def client(self) -> ClientInfo | None:
        """Who it is."""
        ...

    def delivered(self, messages: Sequence[Message], /) -> Outcome[None] | None:
        """Take messages that it is subscribed to.

        None: it has them, or it drops them by its own rules. An outcome: it has them and is full; the outcome
        is settled when there is room again, and whoever published is made to wait for it. One that has
        failed: it has no room for them.
        """
        ...


@attrs.define(eq=False)
class Group:
    """The members of one shared subscription; each message goes to one of them, in turn."""

    members: dict[Member, int] = attrs.field(factory=dict)

    def take_turn(self, absent: set[Member]) -> tuple[Member, int]:
        """Return the member whose turn it is, with its QoS, and put it last; the *absent* only if all are."""
        channel = next(iter(self.members))
        if channel in absent:
            channel = next((member for member in self.members if member not in absent), channel)
        qos = self.members.pop(channel)
        self.members[channel] = qos
        return channel, qos


class MemoryHub:
    """A hub in memory, without sessions that outlive a connection.

    *login* decides who may register; without it everybody may. A device's messages come back to it where it
    is subscribed; overlapping subscriptions of one device deliver once, with the highest QoS. Retained
    messages are kept as long as the hub is there, *retained* of them at most, with *retained_bytes* at most:
    what is beyond that is delivered, but not kept, and its outcome is `UnavailableError`.
    """

    ordered = True
    keeps_wills = False
    keeps_sessions = False

    def __init__(
        self,
        login: Login | None = None,
        *,
        watch: Watch | None = None,
        retained: int = RETAINED,
        retained_bytes: int = RETAINED_BYTES,
    ) -> None:
        self._login = login
        self._watch = watch
        self._filters: Filters[Member | Group, int] = Filters()
        self._granted: dict[Member, dict[str, int]] = {}
        self._retained: Topics[Message] = Topics()
        self._retained_bytes = 0
        self._most = retained, retained_bytes
        self._groups: dict[str, Group] = {}
        self._absent: set[Member] = set()
        self._ids = itertools.count(1)

    def __str__(self) -> str:
        return "the embedded hub"

    @property
    def asks(self) -> bool:
        """Whether a login rule decides who may register."""
        return self._login is not None

    def gauges(self) -> dict[str, float]:
        """Return what metrics tell of it."""
        return {
            "retained_messages": len(self._retained),
            "retained_bytes": self._retained_bytes,
            "subscriptions": sum(map(len, self._granted.values())),
        }

    async def admits(self, client: ClientInfo, password: str | None) -> bool:
        """Tell whether *client*, which is no device, may come in: by the same rule. It may raise anything."""
        if self._login is None:
            return True
        answer = self._login(client, password)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        if type(command) is Publish:  # most are
            return self._route(channel, command)
        if isinstance(command, Register):
            return self._register(channel, command)
        return self.serve(channel, command)

    def serve(self, member: Member, command: Publish | Subscribe | Unsubscribe) -> Outcome[Any]:
        """Carry out what a member asks."""
        match command:
            case Publish():
                return self._route(member, command)
            case Subscribe(topic, qos):
                self._subscribe(member, topic, qos)
                return GRANTED[qos]
            case Unsubscribe(topic):
                self._unsubscribe(member, topic)
                return DONE

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        return self._route(None, command)

    def subscribe(self, member: Member, command: Subscribe) -> None:
        """Subscribe *member*, which sees to the retained messages itself."""
        self._add(member, command.topic, command.qos)

    def retained_topics(self, topic_filter: str) -> Iterator[str | None]:
        """Yield the topics with retained messages that match a plain filter; None for a step without one."""
        for message in self._retained.walk(topic_filter):
            yield None if message is None else message.topic

    def retained(self, topic: str) -> Message | None:
        """Return the retained message of *topic*."""
        return self._retained.get(topic)

    def absent(self, member: Member) -> None:
        """Give messages of shared subscriptions to others than *member* where there are any."""
        self._absent.add(member)

    def present(self, member: Member) -> None:
        """Give *member* its share again."""
        self._absent.discard(member)

    def gone(self, member: Member) -> None:
        """Forget a member's subscriptions."""
        self._absent.discard(member)
        for topic in tuple(self._granted.get(member, ())):
            self._unsubscribe(member, topic)

    def subscribed(self, channel: Channel, topic: str) -> bool:
        """Tell whether a message of *topic* would reach *channel*."""
        return any(
            key is channel or (isinstance(key, Group) and channel in key.members)
            for key, _ in self._filters.matching(topic)
        )

    def _route(self, sender: Member | None, command: Publish) -> Outcome[None]:
        matching = self._filters.matching(command.topic)
        if not matching and not command.retain and self._watch is None:
            return DONE  # nobody ever sees it
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
            self._watch(sender if isinstance(sender, Channel) else None, message)
        outcome = self._retain(message) if message.retain else DONE
        if not matching:
            return outcome
        full = self._deliver(message, matching)
        if not full or outcome is not DONE:
            return outcome
        return full[0] if len(full) == 1 else all_of(full)

    def _deliver(
        self, message: Message, matching: Sequence[tuple[Member | Group, int]]
    ) -> list[Outcome[None]]:
        """Give *message* to each once; return the outcomes of those who have no room."""
        only, qos = matching[0]
        if len(matching) == 1 and not isinstance(only, Group):  # as most are
            outcome = only.delivered((self._for(message, qos),))
            return [] if outcome is None else [outcome]
        best: dict[Member, int] = {}
        full: list[Outcome[None]] = []
        for key, qos in matching:
            if isinstance(key, Group):
                channel, qos = key.take_turn(self._absent)  # noqa: PLW2901 - the member stands for its group
                outcome = channel.delivered((self._for(message, qos),))
                if outcome is not None:
                    full.append(outcome)
            elif best.get(key, -1) < qos:
                best[key] = qos
        by_qos = {qos: (self._for(message, qos),) for qos in set(best.values())}
        for channel, qos in best.items():
            outcome = channel.delivered(by_qos[qos])
            if outcome is not None:
                full.append(outcome)
        return full

    def _retain(self, message: Message) -> Outcome[None]:
        """Keep *message* for later subscribers, in place of the last one; an empty one just removes that."""
        topic = message.topic
        before = self._retained.get(topic)
        size = _size(message) if message.payload else 0
        total = self._retained_bytes + size - (_size(before) if before is not None else 0)
        most, most_bytes = self._most
        if size and (total > most_bytes or (before is None and len(self._retained) >= most)):
            words = f"{len(self._retained)} messages with {self._retained_bytes} bytes are kept"
            limits = f"limits are {most} and {most_bytes}"
            return refused(UnavailableError(f"{topic!r} isn't retained: {words}, {limits}"))
        self._retained_bytes = total
        if size:
            self._retained.put(topic, message)
        else:
            self._retained.discard(topic)
        return DONE

    @staticmethod
    def _for(message: Message, qos: int) -> Message:
        """Return *message* as a subscription of this *qos* gets it."""
        if message.qos <= qos and not message.retain:
            return message
        return attrs.evolve(message, qos=min(message.qos, qos), retain=False)

    def _subscribe(self, channel: Member, topic: str, qos: int) -> None:
        self._add(channel, topic, qos)
        group_name, plain = split_share(topic)
        if group_name:
            return  # a group gets none (MQTT 5, 4.8.2): each of its members would get them
        retained = self._retained.matching(plain)
        if retained:
            channel.delivered([attrs.evolve(one, qos=min(one.qos, qos)) for one in retained])

    def _add(self, channel: Member, topic: str, qos: int) -> None:
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

    def _unsubscribe(self, channel: Member, topic: str) -> None:
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


def _size(message: Message) -> int:
    return len(message.topic.encode()) + len(message.payload) + LEVEL * message.topic.count("/")
