"""Packets of ours that the broker has to acknowledge, or that wait until they may be sent."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, TypeAlias

from ...commands import Outcome, Publish, Subscribe, Unsubscribe
from ...models import PLAIN

__all__ = ["Blame", "Flight", "Sent", "is_safe", "size_of"]

OVERHEAD: Final = 64
"""Bytes that a message in the queue counts beside its topic and payload."""

Sent: TypeAlias = Publish | Subscribe | Unsubscribe


class Blame(Enum):
    """What a broker that ended the connection may mean by it."""

    NOBODY = 0
    FOUND = 1  # one packet of ours, which has failed or was of QoS 0
    SOUGHT = 2  # one of those in flight: from now on each goes out alone


class Flight:
    """A packet of ours on its way: it waits for its turn, or for the broker's acknowledgement.

    *identifier* is the subscription's, which may want no *retained* messages. *restores*: it builds a
    subscription up again that nobody asks for now. *released*: the broker has this message of QoS 2 (PUBREC).
    """

    __slots__ = ("command", "identifier", "outcome", "released", "restores", "retained")

    def __init__(
        self,
        command: Sent,
        outcome: Outcome[Any],
        identifier: int = 0,
        retained: bool = True,
        restores: bool = False,
    ) -> None:
        self.command = command
        self.outcome = outcome
        self.identifier = identifier
        self.retained = retained
        self.restores = restores
        self.released = False


def is_safe(command: Sent) -> bool:
    """Return whether *command* is a message of QoS 1 or 2."""
    return type(command) is Publish and command.qos > 0


def size_of(command: Sent) -> int:
    """Return what *command* counts in the queue."""
    size = len(command.topic) + OVERHEAD
    if isinstance(command, Publish):
        size += len(command.payload)
        if command.properties is not PLAIN:
            size += command.properties.size
    return size
