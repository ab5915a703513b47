"""An MQTT client's session, sans-IO: its subscriptions, what waits for it, what it hasn't acknowledged.

A session is the member of the hub. It has a connection most of the time; one that is to be kept outlives it,
collects messages of QoS 1 and 2 meanwhile, and gives them to the next connection of the same client::

    fresh ── attach ──> present <── attach ── absent ── expiry or too many ──> ended
                          │  └── detach, expires later ───^
                          └── detach, expires at once ──> ended
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from ...commands import Outcome, refused
from ...errors import UnavailableError
from ...models import PLAIN, ClientInfo, Message
from ...topics import matches
from .bounds import LATE, LEVEL, MESSAGE
from .codec import acknowledge, encode, publish_head
from .late import LateMessages
from .packets import Ack, Kind, Subscription
from .properties import for_message
from .reasons import Reason

if TYPE_CHECKING:
    from .broker import MqttBroker
    from .connection import ClientConnection

__all__ = ["Session"]

IDS: Final = 65_535
RETAINED: Final = 100
"""Steps of the look-up of retained messages that are taken in one slice."""

LARGE: Final = 4_096
"""Bytes of a payload that isn't copied into its packet."""


class Session:
    """The session of one client, which *broker* keeps."""

    __slots__ = (
        "_deadlines",
        "_flights",
        "_flying",
        "_last_id",
        "_late",
        "_queue",
        "_received",
        "_retained",
        "_retaining",
        "_room",
        "_will_bytes",
        "broker",
        "client",
        "connection",
        "ended",
        "expiry",
        "filter_bytes",
        "held",
        "no_local",
        "receiving",
        "subscriptions",
        "window",
    )

    def __init__(self, broker: MqttBroker, client: ClientInfo) -> None:
        self.broker = broker
        self.client = client
        self.connection: ClientConnection | None = None
        self.expiry = 0
        self.ended = False
        self.held = 0
        self.window = 0
        self.subscriptions: dict[str, Subscription] = {}
        self.filter_bytes = 0
        self.no_local = 0
        self.receiving = 0
        self._queue: deque[Message] = deque()
        self._deadlines: dict[str, float] | None = None  # when those in the queue expire, by their id
        self._flights: dict[int, Message | None] = {}  # None: received by the client (PUBREC), not finished
        self._flying = 0  # bytes of them
        self._last_id = 0
        self._received: bytearray | None = None  # a bit for each QoS 2 identifier that awaits its PUBREL
        self._will_bytes = 0
        self._room: list[Outcome[None]] = []
        self._late: LateMessages | None = None  # what doesn't fit into the queue
        self._retained: dict[str, int] = {}  # filters whose retained messages are still to be looked up
        self._retaining: tuple[Iterator[str | None], int] | None = None

    def __str__(self) -> str:
        return f"mqtt:{self.client.clientid!r}"

    @property
    def waiting(self) -> int:
        """How many messages wait, beside those that are unacknowledged."""
        return len(self._queue) + len(self._late or ())

    @property
    def in_flight(self) -> int:
        """How many messages the client hasn't acknowledged."""
        return len(self._flights)

    # --- from the hub

    def delivered(self, messages: Sequence[Message]) -> Outcome[None] | None:
        """Take messages of the hub; the outcome, if there is one, says when there is room again."""
        outcome = None
        for message in messages:
            outcome = self._take(message) or outcome
        return outcome

    def _take(self, message: Message) -> Outcome[None] | None:  # noqa: PLR0911 - each finds a place
        connection = self.connection
        if self.ended or (connection is None and not message.qos):
            return None
        if self.no_local and message.sender == self.client.clientid and not self._wants_own(message.topic):
            return None
        bounds, budget = self.broker.bounds, self.broker.budget
        size = cost(message)
        if (
            not self._queue
            and connection is not None
            and connection.ready
            and self._flies(message)
            and (size < LARGE or budget.allows(self.held + connection.out_bytes, size))
        ):
            self._send(message)
            return None
        absent = connection is None
        if self._deadlines and self.held + size > bounds.queue:
            self._drop_expired()
        full = not self._fits(size)
        if message.qos and not absent and (full or self._late):
            if self._late is None:
                self._late = LateMessages(self.broker.late, self.broker.waiter, self._no_room)
            return self._late.put(message, size + LATE)
        if full:
            error = self._no_room()
            return refused(error) if message.qos else None
        self._enqueue(message, size)
        if absent or not message.qos or self.held <= bounds.soft:
            return None
        outcome: Outcome[None] = Outcome(self.broker.waiter)
        self._room.append(outcome)
        return outcome

    def _enqueue(self, message: Message, size: int) -> None:
        self._hold(size)
        self._queue.append(message)
        if message.expiry is not None:
            if self._deadlines is None:
                self._deadlines = {}
            self._deadlines[message.id] = self.broker.now + message.expiry

    def _no_room(self, number: int = 1) -> UnavailableError:
        """Count and log *number* messages that are dropped; return what their publishers are told."""
        bounds, late = self.broker.bounds, self.broker.late
        words = (
            f"{self.held} bytes wait for it, limits are {bounds.queue} and {self.broker.budget.total} in all"
        )
        more = f"{late.used} bytes wait for room, limit is {late.total}"
        self.broker.dropped(self, f"{words}; {more}", number)
        return UnavailableError(f"{self} can't take it: {words}; {more}")

    def _fits(self, size: int) -> bool:
        absent = self.connection is None
        return self.held + size <= self.broker.bounds.queue and self.broker.budget.allows(
            self.held, size, absent=absent
        )

    def _take_late(self) -> bool:
        """Take what has waited for room into the queue, as far as it fits; return whether anything has."""
        late, taken = self._late, False
        while late is not None and len(late) and self._fits(late.next_size - LATE):
            taken = True
            message, outcome = late.take()
            self._enqueue(message, cost(message))
            if self.held <= self.broker.bounds.soft:
                outcome.settle(None)
            else:
                self._room.append(outcome)
        return taken

    def _leave_late(self) -> None:
        """Wait for room no more: nobody is there who makes it."""
        late, self._late = self._late, None
        if late is None or not len(late):
            return
        if self.ended or not self.expiry:
            self.broker.settle(late.take_all())
            return
        self._late = late
        while self._take_late():
            pass
        self._late = None
        if len(late):
            error = self._no_room(len(late))
            self.broker.settle(late.take_all(), error)

    def _flies(self, message: Message) -> bool:
        if not message.qos or not self._flights:
            return True
        limit = self.broker.bounds.queue // 2
        return len(self._flights) < self.window and self._flying + cost(message) <= limit

    def _wants_own(self, topic: str) -> bool:
        return any(matches(one.topic, topic) for one in self.subscriptions.values() if not one.no_local)

    # --- to the client

    def pump(self) -> None:
        """Send what waits, as far as the client takes it."""
        self._pump()
        while self._late and self._take_late():
            self._pump()
        self._tell_room()

    def _pump(self) -> None:
        connection, queue = self.connection, self._queue
        while queue and connection is not None and connection.ready and self._flies(queue[0]):
            message = queue.popleft()
            self._hold(-cost(message))
            if message.expiry is not None and self._deadlines is not None:
                self._send_in_time(message, self._deadlines.pop(message.id, None))
            else:
                self._send(message)

    def _drop_expired(self) -> None:
        """Make room: forget what has waited too long."""
        queue, self._queue = self._queue, deque()
        deadlines, now = self._deadlines or {}, self.broker.now
        for message in queue:
            if deadlines.get(message.id, now + 1) > now:
                self._queue.append(message)
                continue
            del deadlines[message.id]
            self._hold(-cost(message))
            self.broker.expired(self, message)

    def _send_in_time(self, message: Message, deadline: float | None) -> None:
        """Send a message that has waited, with the time that it has left (3.3.2.3.3), if there is any."""
        if deadline is None:
            self._send(message)
        elif deadline > self.broker.now:
            self._send(attrs.evolve(message, expiry=math.ceil(deadline - self.broker.now)))
        else:
            self.broker.expired(self, message)

    @property
    def sendable(self) -> bool:
        """Whether there is something that the client could be sent."""
        if self.connection is None or not self.connection.ready:
            return False
        if self._queue:
            return self._flies(self._queue[0])
        if not (self._retaining or self._retained):
            return False
        return len(self._flights) < self.window

    def retain(self) -> None:
        """Send a slice of the retained messages that subscriptions asked for, once nothing else waits."""
        if self._queue or not self.sendable:
            return
        if self._retaining is None:
            topic_filter = next(iter(self._retained))
            qos = self._retained.pop(topic_filter)
            self._retaining = self.broker.hub.retained_topics(topic_filter), qos
        topics, qos = self._retaining
        for _ in range(RETAINED):
            if not self.sendable:
                return
            topic = next(topics, "")
            if topic == "":
                self._retaining = None
                return
            # As it is now: it must not undo a newer one.
            message = self.broker.hub.retained(topic) if topic is not None else None
            if message is not None:
                self._send(attrs.evolve(message, qos=min(message.qos, qos)))

    def _send(self, message: Message) -> None:
        connection = self.connection
        if connection is None:
            return
        qos, payload, packet_id = message.qos, message.payload, 0
        if not qos and len(payload) < LARGE and not message.retain:
            packet = self.broker.encoded(message, connection.version)
            if connection.maximum and len(packet) > connection.maximum:
                self.broker.dropped(self, f"it takes packets of {connection.maximum} bytes at most")
                return
            self.broker.counted_sent()
            connection.send(packet)
            return
        if qos:
            packet_id = self._next_id()
        flags = qos << 1 | message.retain
        head = self._head(message, connection.version, flags, packet_id)
        if connection.maximum and len(head) + len(payload) > connection.maximum:
            self.broker.dropped(self, f"it takes packets of {connection.maximum} bytes at most")
            return
        if qos:
            self._flights[packet_id] = message
            self._fly(cost(message))
        self.broker.counted_sent()
        connection.send(head, payload)

    @staticmethod
    def _head(message: Message, version: int, flags: int, packet_id: int) -> bytes:
        """Return what stands before the payload."""
        properties = for_message(message.properties)
        size = len(message.payload)
        return publish_head(
            message.topic, size, version, flags=flags, packet_id=packet_id, properties=properties
        )

    def _next_id(self) -> int:
        packet_id = self._last_id
        while True:
            packet_id = packet_id % IDS + 1
            if packet_id not in self._flights:
                self._last_id = packet_id
                return packet_id

    def acknowledged(self, ack: Ack, connection: ClientConnection) -> None:
        """Take a PUBACK, PUBREC or PUBCOMP."""
        packet_id = ack.packet_id
        flights = self._flights
        if packet_id not in flights:
            if ack.kind == Kind.PUBREC:
                connection.send(encode(Ack(Kind.PUBREL, packet_id, Reason.UNKNOWN_ID), connection.version))
            return
        message = flights[packet_id]
        if ack.kind == Kind.PUBREC and ack.code < 0x80:
            if message is not None and message.qos == 2:
                flights[packet_id] = None
                self._fly(-cost(message))
            connection.send(acknowledge(Kind.PUBREL, packet_id))
            return
        if message is not None:
            if (message.qos == 2) != (ack.kind == Kind.PUBREC):
                return  # a PUBACK for QoS 2, or the like
            self._fly(-cost(message))
        elif ack.kind == Kind.PUBACK:
            return
        del flights[packet_id]
        self.pump()

    # --- QoS 2 from the client

    def receives(self, packet_id: int) -> bool:
        """Note that a message of QoS 2 has come; return False if it had come before."""
        if self._received is None:
            self._received = bytearray((IDS + 8) // 8)
        byte, bit = packet_id >> 3, 1 << (packet_id & 7)
        if self._received[byte] & bit:
            return False
        self._received[byte] |= bit
        self.receiving += 1
        return True

    def released(self, packet_id: int) -> bool:
        """Take the PUBREL of a message of QoS 2; return whether there was one."""
        byte, bit = packet_id >> 3, 1 << (packet_id & 7)
        if self._received is None or not self._received[byte] & bit:
            return False
        self._received[byte] &= ~bit
        self.receiving -= 1
        return True

    # --- subscriptions

    def subscribe(self, one: Subscription) -> bool:
        """Add a subscription or replace it; return False where that is too much."""
        topic = one.topic
        before = self.subscriptions.get(topic)
        if before is None:
            bounds, size = self.broker.bounds, filter_cost(topic)
            if len(self.subscriptions) >= bounds.subscriptions or self.filter_bytes + size > bounds.filters:
                return False
            if not self.broker.budget.allows(self.filter_bytes, size):
                return False
            self.filter_bytes += size
            self.broker.budget.used += size
        self.no_local += one.no_local - (before.no_local if before is not None else 0)
        self.subscriptions[topic] = one
        if not topic.startswith("$share/") and (one.handling == 0 or (one.handling == 1 and before is None)):
            self._retained[topic] = one.qos
        return True

    def unsubscribe(self, topic: str) -> bool:
        """Remove a subscription; return whether there was one."""
        one = self.subscriptions.pop(topic, None)
        if one is None:
            return False
        size = filter_cost(topic)
        self.filter_bytes -= size
        self.broker.budget.used -= size
        self.no_local -= one.no_local
        self._retained.pop(topic, None)
        return True

    # --- connections

    def attach(self, connection: ClientConnection) -> None:
        """Go on with *connection*: what wasn't acknowledged is sent again, then what waits."""
        self.connection = connection
        self.window = connection.window
        again, self._flights = self._flights, {}
        late = []
        for packet_id, message in again.items():
            if len(self._flights) >= self.window and message is not None:
                late.append(message)
                self._flying -= cost(message)
                continue
            self._flights[packet_id] = message
            if message is None:
                connection.send(acknowledge(Kind.PUBREL, packet_id))
                continue
            flags = 8 | message.qos << 1 | message.retain
            connection.send(self._head(message, connection.version, flags, packet_id), message.payload)
        self._queue.extendleft(reversed(late))

    def detach(self) -> None:
        """Go on without a connection: nobody waits for this client, and QoS 0 isn't kept for it."""
        self.connection = None
        self._retained.clear()
        self._retaining = None
        kept = deque(message for message in self._queue if message.qos)
        self._hold(-sum(cost(message) for message in self._queue if not message.qos))
        self._queue = kept
        if self._deadlines:
            there = {message.id for message in kept}
            self._deadlines = {name: when for name, when in self._deadlines.items() if name in there}
        self._leave_late()
        self._tell_room()

    def end(self) -> None:
        """Give everything back."""
        self.ended = True
        self.connection = None
        self._queue.clear()
        self._flights.clear()
        self._hold(-self.held)
        self.broker.budget.used -= self.filter_bytes
        self.filter_bytes = 0
        self._leave_late()
        self._tell_room()

    def keep_will(self, size: int) -> None:
        """Count the *size* bytes of a will, 0 for none any more."""
        if not self.ended:
            self._hold(size - self._will_bytes)
            self._will_bytes = size

    def _hold(self, size: int) -> None:
        self.held += size
        self.broker.budget.used += size

    def _fly(self, size: int) -> None:
        self._flying += size
        self._hold(size)

    def _tell_room(self) -> None:
        if self._room and (self.connection is None or self.held <= self.broker.bounds.soft // 2):
            room, self._room = self._room, []
            self.broker.settle(room)


def cost(message: Message) -> int:
    """Return the bytes that a message counts while it waits."""
    size = len(message.payload) + len(message.topic) + MESSAGE
    return size if message.properties is PLAIN else size + message.properties.size


def filter_cost(topic: str) -> int:
    """Return the bytes that a subscription counts."""
    return len(topic) + LEVEL * (topic.count("/") + 1)
