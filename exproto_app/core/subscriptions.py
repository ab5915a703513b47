"""Subscriptions: who has subscribed to what, where a line and its children have one client at the broker.

Such a broker sends that client a message once for each of its filters that matches, as MQTT allows. Each copy
has the id of the message. To everybody who has subscribed the first copy is given, as a client with
overlapping subscriptions gets it from the embedded hub; those that follow are dropped. A shared subscription
is no such overlap: the copy that its group sends is for one of its members, in turn.

Copies come close behind each other, but others' messages may come between them, and a batch may end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Protocol

from ..commands import Command, Outcome, Subscribe, Unsubscribe
from ..models import Message
from ..topics import Filters, split_share

__all__ = ["Subscriptions"]

REMEMBERED: Final = 256
"""Messages whose further copies are still to come, beyond which the oldest is forgotten."""


class Subscriber(Protocol):
    """A connection or a child of it."""

    def delivered(self, messages: Sequence[Message], /) -> Any: ...


class Subscriptions:
    """The subscriptions of *line* and of its children; made for the first one."""

    __slots__ = ("_copies", "_filters", "_line", "_owners")

    def __init__(self, line: Subscriber) -> None:
        self._line = line
        self._owners: dict[str, dict[Subscriber, None]] = {}
        self._filters: Filters[str, dict[Subscriber, None]] | None = (
            None  # one filter of the line's needs none
        )
        self._copies: dict[str, int] = {}  # how many have come, by the message's id

    def add(self, owner: Subscriber, topic: str) -> None:
        """Give messages for *topic* to *owner* too.

        The broker may send those that it retains again, with the ids that they have had before.
        """
        self._copies.clear()
        owners = self._owners.get(topic)
        if owners is None:
            owners = self._owners[topic] = {}
            if self._filters is not None:
                self._filters.add(split_share(topic)[1], topic, owners)
        owners[owner] = None
        if self._filters is None and (owner is not self._line or len(self._owners) > 1):
            self._filters = Filters()
            for known, its_owners in self._owners.items():
                self._filters.add(split_share(known)[1], known, its_owners)

    def discard(self, owner: Subscriber, topic: str) -> bool:
        """Give *owner* no more messages for *topic*; return whether nobody wants any."""
        owners = self._owners.get(topic)
        if owners is None:
            return True
        owners.pop(owner, None)
        if owners:
            return False
        del self._owners[topic]
        if self._filters is not None:
            self._filters.discard(split_share(topic)[1], topic)
        return True

    def topics(self, owner: Subscriber) -> list[str]:
        """Return what *owner* has subscribed to."""
        return [topic for topic, owners in self._owners.items() if owner in owners]

    def changes(self, owner: Subscriber, command: Command) -> bool:
        """Take note of what *owner* asks; return whether the broker has to be asked for it."""
        match command:
            case Unsubscribe(topic):
                return self.discard(owner, topic)
            case Subscribe(topic):
                self.add(owner, topic)
        return True

    def watch(self, owner: Subscriber, command: Command, outcome: Outcome[Any]) -> None:
        """Take a subscription back if the broker refuses it."""
        if isinstance(command, Subscribe):
            outcome.when_done(partial(self._answered, owner, command.topic))

    def _answered(self, owner: Subscriber, topic: str, outcome: Outcome[Any]) -> None:
        if outcome.error is not None:
            self.discard(owner, topic)

    def share(self, messages: Sequence[Message], mount: str) -> Sequence[Message]:
        """Give *messages* to the children that want them; return those for the line."""
        filters = self._filters
        if filters is None:
            return messages
        left = []
        for message in messages:
            for owner in self._takers(message, filters.matching(message.topic.removeprefix(mount))):
                if owner is self._line:
                    left.append(message)
                else:
                    owner.delivered((message,))
        return left

    def _takers(
        self, message: Message, matching: list[tuple[str, dict[Subscriber, None]]]
    ) -> tuple[Subscriber, ...]:
        """Return who gets this copy of *message*."""
        number = self._number(message.id, len(matching))
        if not matching:
            return () if number else (self._line,)
        plain = [owners for topic, owners in matching if not split_share(topic)[0]]
        if not number and plain:
            return (
                tuple(plain[0]) if len(plain) == 1 else tuple({owner: None for one in plain for owner in one})
            )
        shared = [owners for topic, owners in matching if split_share(topic)[0]]
        if not shared or number < len(plain):
            return ()
        members = shared[(number - len(plain)) % len(shared)]
        member = next(iter(members))
        members[member] = members.pop(member)  # the next one's turn
        return (member,)

    def _number(self, key: str, expected: int) -> int:
        """Return how many copies of the message of this id have come before, where *expected* come in all."""
        copies = self._copies
        number = copies.get(key, 0)
        if not key or (expected < 2 and not number):
            return 0
        if number + 1 >= expected:
            copies.pop(key, None)
            return number
        copies[key] = number + 1
        if len(copies) > REMEMBERED:
            del copies[next(iter(copies))]
        return number
