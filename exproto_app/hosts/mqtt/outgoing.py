"""Commands on their way to the broker, in order: those that wait, and those that it hasn't acknowledged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from mqtt5 import (
    PublishPacket,
    PubRelPacket,
    PubRelReasonCode,
    SubAckPacket,
    UnsubAckPacket,
    UnsubscribePacket,
)

from ...commands import DONE, Outcome, Publish, Subscribe, Waiter, refused
from ...errors import DeniedError, UnavailableError
from .connecting import Bounds, Terms, shared_terms
from .flights import Blame, Flight, Sent, size_of
from .packets import IDS, PUBCOMP, PUBREC, ProtocolError, publish_packet, reason_of, subscribe_packet
from .reasons import NOT_AUTHORIZED, WRONG_PACKET, in_words

__all__ = ["Outgoing"]

log = logging.getLogger("exproto_app")


class Outgoing:
    """What one client sends: its packet identifiers, the queue, what is in flight, its subscriptions.

    *session* takes the packets; its owner is told what the broker refuses. *ready*: what is published may go
    out at once.

    A broker may end the connection because of one packet, and doesn't say which. Where only one is in flight
    that it can mean, it is that one. Else they become *suspects*: on the next connections each goes out
    alone, until the culprit has failed and the others have their acknowledgements.
    """

    __slots__ = (
        "_accused",
        "_bounds",
        "_finishing",
        "_flights",
        "_last_id",
        "_out",
        "_owner",
        "_proof",
        "_quota",
        "_session",
        "_suspects",
        "_unproved",
        "_waiter",
        "_writable",
        "ready",
        "subscriptions",
        "terms",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, session: Any, waiter: Callable[[], Waiter], bounds: Bounds, first_id: int) -> None:
        self.ready = False
        self.terms: Terms = shared_terms()
        self.waiting: deque[Flight] | None = None
        self.waiting_bytes = 0
        self.subscriptions: dict[str, tuple[int, int]] | None = None  # QoS and identifier by filter
        self._session = session
        self._owner = session.owner
        self._out: list[bytes] = session.out
        self._waiter = waiter
        self._bounds = bounds
        self._flights: dict[int, Flight] | None = None  # by packet identifier
        self._last_id = first_id
        self._quota = 0
        self._suspects = 0
        self._accused: tuple[Publish, str] | None = None  # of QoS 0, if none of the suspects is the culprit
        self._unproved: Publish | None = None  # of QoS 0, sent last: perhaps the broker hasn't taken it yet
        self._proof = 0  # the identifier of what was sent behind it
        self._writable = True
        self._finishing = False

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
            self._session.write(publish_packet(command, packet_id, duplicate=True))

    # --- commands

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish, in order. QoS 0 is done when it is handed to the network, 1 and 2 when acknowledged."""
        terms, qos = self.terms, command.qos
        if not self.ready or self.waiting or qos > terms.max_qos or (command.retain and not terms.retain):
            return self.issue(command)
        outcome: Outcome[None]
        if not qos:
            packet = PublishPacket(command.topic, command.payload, retain=command.retain).write()
            if len(packet) > terms.packet_max:
                return refused(self._refusal(command, terms.too_large(len(packet))))
            self._unproved = command
            self._proof = 0
            outcome = DONE
        else:
            if self._quota <= 0:
                return self.issue(command)
            packet_id = self._next_id()
            packet = publish_packet(command, packet_id, duplicate=False)
            if len(packet) > terms.packet_max:
                return refused(self._refusal(command, terms.too_large(len(packet))))
            outcome = Outcome(self._waiter)
            self._fly(packet_id, Flight(command, outcome))
            self._quota -= 1
        out = self._out  # as the session's `write` has it: this is the hot path
        if not out:
            self._owner.wants_write()
        out.append(packet)
        return outcome

    def issue(self, command: Sent, identifier: int = 0, *, retained: bool = True) -> Outcome[Any]:
        """Send *command* when its turn comes; that of a subscription is for *retained* messages too."""
        words = self.terms.misfit(command) if self._session.online else ""
        if words:
            return refused(self._refusal(command, words))
        flight = Flight(command, Outcome(self._waiter), identifier, retained=retained)
        if self._session.online and self._writable and not self.waiting and self._free(command):
            self._launch(flight)
        else:
            if self.waiting is None:
                self.waiting = deque()
            self.waiting.append(flight)
            self.waiting_bytes += size_of(command)
        return flight.outcome

    def drop_oldest(self) -> Flight | None:
        """Take the oldest message that waits out of the queue, for the caller to fail."""
        for flight in self.waiting or ():
            if isinstance(flight.command, Publish):
                self.waiting.remove(flight)  # type: ignore[union-attr] # we iterate over it
                self.waiting_bytes -= size_of(flight.command)
                return flight
        return None

    def pending(self) -> list[Flight]:
        """Take out every message that isn't safe yet, the oldest first; other commands fail."""
        self.fail_subscriptions("the session with the broker has ended")
        flights = self._all()
        self._flights = self.waiting = None
        self.waiting_bytes = self._suspects = 0
        return [flight for flight in flights if isinstance(flight.command, Publish)]

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
        """Tell whether *command* may go out now."""
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
            self._session.write(publish_packet(command, 0, duplicate=False))
            flight.outcome.settle(None)
            return
        packet_id = self._next_id()
        self._fly(packet_id, flight)
        if type(command) is Publish:
            self._quota -= 1
            packet = publish_packet(command, packet_id, duplicate=False)
        elif type(command) is Subscribe:
            identifier = flight.identifier if self.terms.subscription_ids else 0
            packet = subscribe_packet(command, packet_id, identifier, retained=flight.retained)
        else:
            packet = UnsubscribePacket(packet_id, [command.topic]).write()
        self._session.write(packet)

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
        code, words = reason_of(packet, body, 2)
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
            lost = PubRelReasonCode.PACKET_ID_NOT_FOUND
            self._session.write(PubRelPacket(packet_id, reason_code=lost).write())

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

    def _refused(self, command: Sent, words: str, text: str = "") -> DeniedError:
        about = "the message to " if type(command) is Publish else ""
        return self._refusal(command, words, text or f"the broker refused {about}{command.topic!r}: {words}")

    def _refusal(self, command: Sent, words: str, text: str = "") -> DeniedError:
        self._owner.denied(command, words)
        return DeniedError(text or words)

    # --- a packet that the broker ends the connection for

    def blame(self, code: int, words: str) -> Blame:
        """Find out what the broker means by ending the connection, lest it be sent for ever."""
        denied = code == NOT_AUTHORIZED
        if not denied and code not in WRONG_PACKET:
            return Blame.NOBODY
        flights = self._flights or {}
        suspects = [number for number, flight in flights.items() if not flight.released]
        unproved, self._unproved = self._unproved, None
        if len(suspects) == 1 and (self._suspects or (denied and unproved is None)):
            flight = flights.pop(suspects[0])
            sought, self._accused = self._suspects > 0, None
            self._clear_suspect()
            text = "" if denied else f"the broker ended the connection because of this: {words}"
            flight.outcome.fail(self._refused(flight.command, words, text))
            return Blame.SOUGHT if sought else Blame.FOUND
        if suspects:
            self._suspects = len(suspects)
            self._accused = None if unproved is None else (unproved, words)
            return Blame.SOUGHT
        if unproved is None:
            return Blame.NOBODY
        self._refused(unproved, words)
        return Blame.FOUND

    def _clear_suspect(self) -> None:
        if not self._suspects:
            return
        self._suspects -= 1
        if not self._suspects and self._accused is not None:
            accused, self._accused = self._accused, None
            self._refused(*accused)
