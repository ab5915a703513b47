"""Roaming: one client that speaks from several addresses (`Router(roaming=True)`).

Each address is a connection of its own. The one that registered last is the *anchor*: it stands for all of
them at the broker. What the others ask for is asked in its name, and messages that come to it go to the
connection that has subscribed to them. When the anchor ends, the newest of the others takes its place; the
client goes with the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..commands import DONE, Command, Outcome, Subscribe, Unsubscribe
from ..topics import matches, split_share

if TYPE_CHECKING:
    from ..models import Message
    from .seams import Owner

__all__ = ["MOST", "Roaming"]

MOST: Final = 8
"""Addresses that one client may speak from; the oldest of more is let go of."""


class Roaming:
    """The connections of one client."""

    __slots__ = ("_filters", "members")

    def __init__(self, first: Owner) -> None:
        self.members = [first]
        self._filters: dict[str, Owner] = {}  # who has subscribed, the latest last

    @property
    def anchor(self) -> Owner:
        """The connection that stands for all at the broker."""
        return self.members[-1]

    def join(self, newer: Owner) -> None:
        """Have *newer* be the anchor."""
        newer.engine.hub.move(self.anchor, newer)
        self.members.append(newer)

    def leave(self, one: Owner) -> Owner | None:
        """Let *one* go; return the anchor that is left, if any."""
        others = [member for member in self.members if member is not one]
        if not others:
            return None
        if one is self.anchor:
            one.engine.hub.move(one, others[-1])
        self.members = others
        for topic, owner in tuple(self._filters.items()):
            if owner is one:
                self._filters[topic] = others[-1]
        return others[-1]

    def execute(self, one: Owner, command: Command) -> Outcome[Any]:
        """Carry out in the client's name what *one* asks."""
        match command:
            case Subscribe(topic):
                self._filters.pop(topic, None)
                self._filters[topic] = one
            case Unsubscribe(topic):
                if self._filters.get(topic, one) is not one:
                    return DONE  # another one has it now
                self._filters.pop(topic, None)
        return self.anchor.broker_side.execute(self.anchor, command)

    def receiver(self, message: Message) -> Owner:
        """Return the connection that *message*, with its topic as the broker has it, is for."""
        for topic, owner in reversed(self._filters.items()):
            if matches(split_share(topic)[1], message.topic):
                return owner
        return self.anchor
