"""Commands on their way to the broker, in order: those that wait, and those that it hasn't acknowledged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from mqtt5 import PubRelPacket, SubAckPacket, UnsubAckPacket

from ...commands import DONE, Outcome, Publish, Subscribe, Waiter, refused
from ...errors import DeniedError, UnavailableError
from ...models import PLAIN
from .connecting import Bounds, Terms, shared_terms
from .dialects import MQTT_5, Dialect
from .flights import Flight, Sent, is_safe, size_of
from .packets import (
    IDS,
    PUBCOMP,
    PUBREC,
    ProtocolError,
    prefixed,
)
from .reasons import in_words
from .suspicion import Suspicion

__all__ = ["Outgoing"]

log = logging.getLogger("exproto_app")


class Outgoing(Suspicion):
    """What one client sends: its packet identifiers, the queue, what is in flight, its subscriptions.

    *session* takes the packets; its owner is told what the broker refuses. *ready*: what is published may go
    out at once.
    """

    __slots__ = (
        "_bounds",
        "_dialect",
        "_finishing",
        "_last_id",
        "_out",
        "_plain_publish",
        "_quota",
        "_session",
        "_topic",
        "_topic_bytes",
        "_waiter",
        "_writable",
        "ready",
        "subscriptions",
        "terms",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, session: Any, waiter: Callable[[], Waiter], bounds: Bounds, first_id: int) -> None:
        super().__init__(session.owner)
        self.ready = False
        self.terms: Terms = shared_terms()
        self.waiting: deque[Flight] | None = None
        self.waiting_bytes = 0
        self.subscriptions: dict[str, tuple[int, int]] | None = None  # QoS and identifier by filter
        self._dialect: Dialect = MQTT_5
        self._plain_publish = MQTT_5.plain_publish
        self._session = session
        self._out: list[bytes] = session.out
        self._waiter = waiter
        self._bounds = bounds
        self._last_id = first_id
        self._quota = 0
        self._writable = True
        self._finishing = False
        self._topic, self._topic_bytes = "", b""  # most devices publish to the same one again and again

    # --- the network connection

    def blocked(self) -> None:
        """Send nothing more: the broker reads too slowly."""
        self._writable = self.ready = False

    def unblocked(self) -> None:
        """Send again."""
        self._writable = True
        if self._session.online:
            self.drain()

    def lost(self) -> None:
        """Keep what is unacknowledged for the next network connection."""
        self.ready = False
        self._writable = True
        self._unproved, self._proof = None, 0

    def begin(self, dialect: Dialect, terms: Terms) -> None:
        """Take note of what the broker speaks, and what it allows."""
        self._dialect, self.terms = dialect, terms
        self._plain_publish = dialect.plain_publish

    def resume(self, *, present: bool) -> None:
        """Go on with the session that the broker still has (*present*), or build it up anew (4.4)."""
        self._quota = min(self.terms.receive_max, self._bounds.messages)
        flights, self._flights = self._flights or {}, None
        if not present:
            flights = {number: flight for number, flight in flights.items() if not flight.restores}
        back = []
        for packet_id, flight in flights.items():
            alone = self._suspects and not flight.released
            if present and type(flight.command) is Publish and self._quota > 0 and not alone:
                self._resend(packet_id, flight, flight.command)
            else:
                back.append(flight)
        self._put_first(back)
        if not present:
            self._restore()
        self.drain()

    def _restore(self) -> None:
        """Subscribe again, before anything else."""
        waiting = [flight for flight in self.waiting or () if not flight.restores]
        self.waiting, self.waiting_bytes = None, 0
        again = []
        for topic, (qos, identifier) in (self.subscriptions or {}).items():
            flight = Flight(Subscribe(topic, qos), Outcome(self._waiter), identifier, restores=True)
            flight.outcome.when_done(partial(self._restored, topic))
            again.append(flight)
        if self._suspects:
            self._suspects += len(again)
        self._put_first([*again, *waiting])

    def _restored(self, topic: str, outcome: Outcome[int]) -> None:
        if not isinstance(outcome.error, DeniedError):
            return
        (self.subscriptions or {}).pop(topic, None)
        clientid = self._session.login.clientid
        log.warning("mqtt ! %s lost its subscription to %r: %s", clientid, topic, outcome.error)

    def _put_first(self, flights: list[Flight]) -> None:
        if not flights:
            return
        for flight in flights:
            flight.released = False
        if self.waiting is None:
            self.waiting = deque()
        self.waiting.extendleft(reversed(flights))
        self.waiting_bytes += sum(size_of(flight.command) for flight in flights)

    def _resend(self, packet_id: int, flight: Flight, command: Publish) -> None:
        self._fly(packet_id, flight)
        self._quota -= 1
        if flight.released:
            self._session.write(PubRelPacket(packet_id).write())
        else:
            self._session.write(self._dialect.publish(command, packet_id, duplicate=True))

    # --- commands

    def publish(  # noqa: C901 - the hot path is flat
        self, command: Publish, outcome: Outcome[None] | None = None
    ) -> Outcome[None]:
        """Publish, in order. QoS 0 is done when it is handed to the network, 1 and 2 when acknowledged.

        *outcome*: of QoS 1 and 2, what is to be settled then. What is refused at once has another.
        """
        terms, qos, retain = self.terms, command.qos, command.retain
        if not self.ready or self.waiting or qos > terms.max_qos or (retain and not terms.retain):
            return self.issue(command, outcome=outcome)
        if qos and self._quota <= 0:
            return self.issue(command, outcome=outcome)
        packet_id = 0
        if qos:
            packet_id = self._last_id % IDS + 1
            if self._flights is not None and packet_id in self._flights:
                packet_id = self._next_id()
            self._last_id = packet_id
        if command.properties is PLAIN:
            if command.topic != self._topic:
                self._topic_bytes, self._topic = prefixed(command.topic), command.topic
            packet = self._plain_publish(self._topic_bytes, command.payload, qos << 1 | retain, packet_id)
        else:
            packet = self._dialect.publish(command, packet_id, duplicate=False)
        if len(packet) > terms.packet_max:
            return refused(self._refusal(command, terms.too_large(len(packet))))
        if not qos:
            self._unproved = command
            self._proof = 0
            outcome = DONE
        else:
            if outcome is None:
                outcome = Outcome(self._waiter)
            self._fly(packet_id, Flight(command, outcome))
            self._quota -= 1
        out = self._out  # as the session's `write` has it: this is the hot path
        if not out:
            self._owner.wants_write()
        out.append(packet)
        return outcome

    def issue(
        self,
        command: Sent,
        identifier: int = 0,
        *,
        retained: bool = True,
        outcome: Outcome[Any] | None = None,
    ) -> Outcome[Any]:
        """Send *command* when its turn comes; that of a subscription is for *retained* messages too."""
        words = self.terms.misfit(command) if self._session.online else ""
        if words:
            return refused(self._refusal(command, words))
        if outcome is None:
            outcome = Outcome(self._waiter)
        flight = Flight(command, outcome, identifier, retained)
        if self._session.online and self._writable and not self.waiting and self._free(command):
            self._launch(flight)
        else:
            if self.waiting is None:
                self.waiting = deque()
            self.waiting.append(flight)
            self.waiting_bytes += size_of(command)
        return flight.outcome

    def drop_oldest(self) -> Flight | None:
        """Take the oldest message that waits and nobody awaits out of the queue, for the caller to fail.

        The newest may be awaited yet.
        """
        for flight in tuple(self.waiting or ())[:-1]:
            awaited = flight.outcome.awaited or flight.outcome.watched
            if isinstance(flight.command, Publish) and not awaited:
                self.waiting.remove(flight)  # type: ignore[union-attr] # we iterate over it
                self.waiting_bytes -= size_of(flight.command)
                return flight
        return None

    def withdraw(self, command: Publish) -> bool:
        """Take *command* out of the queue; return whether it was there still.

        What was sent before the network connection was lost waits too. Of QoS 2 the broker may know the
        identifier, so it is sent again all the same.
        """
        sent = {} if self._session.online else self._flights or {}
        for number, flight in tuple(sent.items()):
            if flight.command is command and command.qos == 1:
                del sent[number]
                return True
        for flight in self.waiting or ():
            if flight.command is command:
                self.waiting.remove(flight)  # type: ignore[union-attr] # we iterate over it
                self.waiting_bytes -= size_of(command)
                return True
        return False

    def pending(self) -> list[Flight]:
        """Take out every message that isn't safe yet, the oldest first; other commands fail."""
        self.fail_subscriptions("the session with the broker has ended")
        flights = self._all()
        self._flights = self.waiting = None
        self.waiting_bytes = self._suspects = 0
        return [flight for flight in flights if isinstance(flight.command, Publish)]

    def take_waiting(self) -> tuple[list[Flight], list[Flight]]:
        """Return the messages of QoS 1 and 2 that were sent, and take those that wait out of the queue.

        Of suspects each is to go out alone, so they count as sent.
        """
        sent = [flight for flight in (self._flights or {}).values() if is_safe(flight.command)]
        taken = [flight for flight in self.waiting or () if is_safe(flight.command)]
        if self._suspects:
            return sent + taken, []
        if taken:
            rest = [flight for flight in self.waiting or () if not is_safe(flight.command)]
            self.waiting, self.waiting_bytes = None, 0
            self._put_first(rest)
        return sent, taken

    def fail_subscriptions(self, words: str) -> None:
        """Fail what isn't a message: nobody else can carry it out."""
        for flight in self._all():
            if not isinstance(flight.command, Publish):
                flight.outcome.fail(UnavailableError(words))

    def append(self, flights: list[Flight], *, first: bool = False) -> None:
        """Send *flights* of another session behind everything that waits, or before it (*first*)."""
        if first:
            self._put_first(flights)
        else:
            waiting, self.waiting, self.waiting_bytes = self.waiting, None, 0
            self._put_first([*(waiting or ()), *flights])
        if self._session.online:
            self.drain()

    def finish(self) -> None:
        """Tell the owner when every message is safe."""
        self._finishing = True

    def messages(self) -> list[Flight]:
        """Return every message that waits, for sending or for an acknowledgement, the oldest first."""
        return [flight for flight in self._all() if type(flight.command) is Publish]

    @property
    def unsafe(self) -> int:
        """How many messages wait, for sending or for an acknowledgement."""
        return sum(type(flight.command) is Publish for flight in self._all())

    @property
    def in_flight(self) -> bool:
        """Whether the broker owes an acknowledgement."""
        return bool(self._flights)

    def _all(self) -> Iterable[Flight]:
        return (*(self._flights or {}).values(), *(self.waiting or ()))

    # --- sending

    def _free(self, command: Sent) -> bool:
        """Return whether *command* may go out now."""
        if self._suspects:
            return not self._flights
        if isinstance(command, Publish) and command.qos:
            return self._quota > 0
        return self._flights is None or len(self._flights) < min(IDS, 2 * self._bounds.messages)

    def _launch(self, flight: Flight) -> None:
        """Send *flight* for the first time on this network connection."""
        command = flight.command
        if type(command) is Publish and not command.qos:
            self._unproved, self._proof = command, 0
            self._session.write(self._dialect.publish(command, 0, duplicate=False))
            flight.outcome.settle(None)
            return
        packet_id = self._next_id()
        self._fly(packet_id, flight)
        self._quota -= type(command) is Publish
        self._session.write(self._packet(flight, packet_id))

    def _packet(self, flight: Flight, packet_id: int) -> bytes:
        command = flight.command
        if type(command) is Publish:
            return self._dialect.publish(command, packet_id, duplicate=False)
        if type(command) is Subscribe:
            identifier = flight.identifier if self.terms.subscription_ids else 0
            return self._dialect.subscribe(command, packet_id, identifier, retained=flight.retained)
        return self._dialect.unsubscribe(command.topic, packet_id)

    def _fly(self, packet_id: int, flight: Flight) -> None:
        if self._flights is None:
            self._flights = {}
        self._flights[packet_id] = flight
        if self._unproved is not None and not self._proof:
            self._proof = packet_id

    def drain(self) -> None:
        """Send what waits, as far as the broker and the network take it."""
        waiting = self.waiting
        while waiting and self._writable and self._free(waiting[0].command):
            flight = waiting.popleft()
            self.waiting_bytes -= size_of(flight.command)
            words = self.terms.misfit(flight.command)
            if words:
                flight.outcome.fail(self._refusal(flight.command, words))
                self._clear_suspect()
            else:
                self._launch(flight)
        if not self._flights and not self.waiting:
            self._suspects = 0  # the last of them may have been dropped
        self.ready = self._writable and not self._suspects
        if waiting is not None:
            bounds = self._bounds
            if len(waiting) <= bounds.messages // 2 and self.waiting_bytes <= bounds.queue // 2:
                self._owner.relieved()
            if not waiting and self.waiting is waiting:
                self.waiting = None
        if self._finishing and not self.unsafe:
            self._owner.finished()

    def _next_id(self) -> int:
        number = self._last_id % IDS + 1
        while self._flights is not None and number in self._flights:
            number = number % IDS + 1
        self._last_id = number
        return number

    # --- the broker's answers

    def answered(self, kind: int, packet: memoryview, body: memoryview) -> None:
        """Take a PUBACK, PUBREC or PUBCOMP. Raises `ProtocolError`."""
        packet_id = (body[0] << 8) + body[1]
        code, words = self._dialect.reason(packet, body, 2)
        flight = self._flights.get(packet_id) if self._flights else None
        if kind != PUBREC or (flight is not None and code >= 0x80):
            if kind == PUBCOMP and code == 0x92:
                code = 0  # the broker knows nothing of it any more, so it is through (4.3.3)
            self.acknowledged(packet_id, code, words)
        elif flight is not None:
            flight.released = True
            if packet_id == self._proof:
                self._unproved, self._proof = None, 0
            self._session.write(PubRelPacket(packet_id).write())
        elif code < 0x80:
            self._session.write(self._dialect.unknown(packet_id))

    def acknowledged(self, packet_id: int, code: int, words: str) -> None:
        """Take the broker's answer to a message of ours. Raises `ProtocolError`."""
        flight = self._flights.pop(packet_id, None) if self._flights else None
        if flight is None:
            return  # of a message that has been given up
        command = flight.command
        if type(command) is not Publish:
            raise ProtocolError("it acknowledged a subscription as a message")
        self._quota += 1
        if packet_id == self._proof:
            self._unproved, self._proof = None, 0
        if code >= 0x80:
            flight.outcome.fail(self._refused(command, words))
        else:
            flight.outcome.settle(None)
        if self.waiting or self._suspects or self._finishing:
            self._go_on()

    def subscription_answered(self, packet: SubAckPacket | UnsubAckPacket) -> None:
        """Take a SUBACK or UNSUBACK. Raises `ProtocolError`."""
        flight = self._flights.pop(packet.packet_id, None) if self._flights else None
        if flight is None:
            return
        if len(packet.reason_codes) != 1:
            raise ProtocolError(f"it answered one subscription with {len(packet.reason_codes)} codes")
        if packet.packet_id == self._proof:
            self._unproved, self._proof = None, 0
        code = int(packet.reason_codes[0])
        command = flight.command
        if code >= 0x80:
            flight.outcome.fail(self._refused(command, in_words(code, packet.reason_str)))
        elif type(command) is Subscribe:
            if self.subscriptions is None:
                self.subscriptions = {}
            self.subscriptions[command.topic] = command.qos, flight.identifier
            flight.outcome.settle(code)
        else:
            if self.subscriptions is not None:
                self.subscriptions.pop(command.topic, None)
            flight.outcome.settle(None)
        self._go_on()

    def _go_on(self) -> None:
        """Take note that there is room for one more."""
        if self._suspects:
            self._clear_suspect()
            if self._session.online:
                self.drain()
        elif self.waiting and self._session.online:
            self.drain()
        elif self._finishing and not self.unsafe:
            self._owner.finished()
