"""Retained messages: the last one of each topic that was to be kept, in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from ..commands import DONE, Outcome, refused
from ..errors import UnavailableError
from ..models import PLAIN, Message
from ..topics import Topics

__all__ = ["RETAINED", "RETAINED_BYTES", "Retained"]

RETAINED: Final = 10_000
"""Retained messages that a hub keeps, and beyond which it keeps no further topic."""

RETAINED_BYTES: Final = 16 * 1024 * 1024
"""Bytes of their topics and payloads, likewise."""

LEVEL: Final = 400
"""Bytes that each further level of a topic counts among them: what a node of the tree takes."""


class Retained:
    """At most *most* messages, of at most *most_bytes* bytes; *now* returns the time."""

    def __init__(self, most: int, most_bytes: int, now: Callable[[], float]) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.size = 0
        self._now = now
        self._messages: Topics[Message] = Topics()
        self._expiring: dict[str, float] = {}  # when those expire that do, by topic
        self._looked = 0.0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> Outcome[None]:
        """Keep *message* for later subscribers, in place of the last one; an empty one just removes that."""
        topic = message.topic
        before = self._messages.get(topic)
        size = _size(message) if message.payload else 0
        total = self.size + size - (_size(before) if before is not None else 0)
        full = total > self.most_bytes or (before is None and len(self) >= self.most)
        if size and full and self._drop_expired():
            return self.put(message)
        if size and full:
            words = f"{len(self)} messages with {self.size} bytes are kept"
            limits = f"limits are {self.most} and {self.most_bytes}"
            return refused(UnavailableError(f"{topic!r} isn't retained: {words}, {limits}"))
        self.size = total
        self._expiring.pop(topic, None)
        if not size:
            self._messages.discard(topic)
            return DONE
        self._messages.put(topic, message)
        if message.expiry is not None:
            self._expiring[topic] = self._now() + message.expiry
        return DONE

    def get(self, topic: str) -> Message | None:
        """Return the message of *topic*, unless it has expired."""
        message = self._messages.get(topic)
        return message if message is None or message.expiry is None else self._fresh(message)

    def matching(self, topic_filter: str) -> list[Message]:
        """Return those that match a plain filter."""
        found = [
            message if message.expiry is None else self._fresh(message)
            for message in self._messages.matching(topic_filter)
        ]
        return [message for message in found if message is not None]

    def topics(self, topic_filter: str) -> Iterator[str | None]:
        """Yield the topics of those that match, one step at a time: None for a step that finds nothing.

        They may have expired; `get` finds out.
        """
        for message in self._messages.walk(topic_filter):
            yield None if message is None else message.topic

    def _drop_expired(self) -> bool:
        """Forget what has expired, at most once a second; return whether there was any."""
        now = self._now()
        if now < self._looked + 1 or not self._expiring:
            return False
        self._looked = now
        expired = [topic for topic, when in self._expiring.items() if when <= now]
        for topic in expired:
            self.get(topic)
        return bool(expired)

    def _fresh(self, message: Message) -> Message | None:
        """Return a *message* that expires, with the time that is left; without any, forget it."""
        left = self._expiring[message.topic] - self._now()
        if left > 0:
            return attrs.evolve(message, expiry=math.ceil(left))
        self.put(attrs.evolve(message, payload=b"", properties=PLAIN))
        return None


def _size(message: Message) -> int:
    size = len(message.topic.encode()) + len(message.payload) + LEVEL * message.topic.count("/")
    return size if message.properties is PLAIN else size + message.properties.size
