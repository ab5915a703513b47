"""Deliveries: the broker's messages for the device, on their way to `on_deliver`."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from ..commands import Outcome, refused
from ..errors import UnavailableError
from ..handlers import Handler
from ..models import PLAIN, Message
from ..topics import check_topic
from .calls import HandlerCalls
from .memory import LARGE
from .registration import unmounted
from .replies import Reply
from .states import OPEN

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["Deliveries"]

log = logging.getLogger("exproto_app")

LEFT: Final = frozenset({"device closed", "lost", "taken over", "kicked"})
"""Reasons for which the device can't have received what a handler sent last."""


@attrs.frozen(eq=False)
class TrackedMessage:
    """A message whose broker wants to know when its handler has ended, or that expires at *deadline*."""

    message: Message
    acknowledge: Callable[[], object] | None
    deadline: float | None

    def at(self, now: float) -> Message:
        """Return the message with the time that it has left."""
        message = self.message
        if self.deadline is None:
            return message
        left = max(1, math.ceil(self.deadline - now))
        return message if left == message.expiry else attrs.evolve(message, expiry=left)


Item: TypeAlias = Message | TrackedMessage
"""What waits: most messages neither expire nor are acknowledged."""


class Deliveries:
    """The messages of one connection that wait; made for the first one.

    *waiting* is their number, *size* their bytes. Those that are for a device when it next speaks are *held*
    until a frame of it has come.

    Above half of what `Limits` allow whoever publishes is made to wait, where the host has a way to; above
    all of it what comes is dropped.
    """

    __slots__ = ("_calls", "_dropped", "_owner", "_room", "held", "size", "waiting")

    def __init__(self, owner: Owner, calls: HandlerCalls) -> None:
        self._owner = owner
        self._calls = calls
        self._dropped = 0
        self._room: list[Outcome[None]] | None = None  # of publishers
        self.held: deque[Item] | None = None
        self.waiting = self.size = 0

    def put(  # noqa: C901, PLR0912 - most messages need few of these
        self, messages: Sequence[Message], acknowledge: Callable[[], object] | None
    ) -> Outcome[None] | None:
        """Queue *messages*, as many as there is room for.

        Of QoS 1 and 2 an outcome says when there is room again, or that there was none.
        """
        owner, refusal = self._owner, None
        try:
            for message in messages:
                check_topic(message.topic)
        except (TypeError, ValueError) as error:
            messages = self._sound(messages, acknowledge, error)
        room = len(messages)
        if owner.state > OPEN:
            room = 0
            if self._kept(acknowledge):
                return None
        elif acknowledge is None:
            room = self._fitting(messages)
        if len(messages) > room:
            refusal = self._refuse(messages[room:])
            messages = messages[:room]
        if not messages:
            return refusal
        routes = owner.protocol.router.routes
        if owner.tracer is not None:
            owner.tracer.delivered(messages, routes, owner.mount)
        if owner.mount:
            messages = [unmounted(message, owner.mount) for message in messages]
        owner.counters["messages_delivered"] += len(messages)
        self.waiting += len(messages)
        self.size += sum(map(_weight, messages))
        if self.size > LARGE:
            owner.engine.memory.note(owner)
        batch = self._batch(messages, acknowledge)
        event = owner.last_event()
        if event is not None and event[0] == self.run:
            event[1].extend(batch)
        else:
            owner.enqueue(self.run, batch)
            owner.later()
        if refusal is None and acknowledge is None and messages[-1].qos:
            return self._wait_for_room()
        return refusal

    def _refuse(self, messages: Sequence[Message]) -> Outcome[None] | None:
        """Drop *messages*; return what their publisher is told."""
        owner = self._owner
        self._drop(len(messages))
        if owner.state > OPEN or not any(message.qos for message in messages):
            return None
        limits = owner.engine.limits
        words = f"{self.waiting} messages wait for it, limit is {limits.deliveries}"
        if self.waiting < limits.deliveries:
            words = f"messages of {self.size} bytes wait for it, limit is {limits.deliveries_bytes}"
        return refused(UnavailableError(f"{owner} can't take it: {words}"))

    def _wait_for_room(self) -> Outcome[None] | None:
        """Return what a publisher may wait for while much waits here."""
        engine = self._owner.engine
        if self._within(2):
            return None
        outcome: Outcome[None] = Outcome(engine.runtime.waiter)
        if self._room is None:
            self._room = []
        self._room.append(outcome)
        return outcome

    def _tell_room(self) -> None:
        """Have publishers go on, where little waits."""
        if self._room is not None and self._within(4):
            room, self._room = self._room, None
            for outcome in room:
                outcome.settle(None)

    def _within(self, part: int) -> bool:
        """Return whether no more waits than that *part* of what may."""
        limits = self._owner.engine.limits
        return part * self.waiting <= limits.deliveries and part * self.size <= limits.deliveries_bytes

    def _batch(self, messages: Sequence[Message], acknowledge: Callable[[], object] | None) -> deque[Item]:
        """Return *messages* as they wait."""
        batch: deque[Item] = deque(messages)
        if acknowledge is not None:
            batch[-1] = TrackedMessage(messages[-1], acknowledge, self._deadline(messages[-1]))
        for number, message in enumerate(messages):
            if message.properties is not PLAIN and type(batch[number]) is Message:
                batch[number] = TrackedMessage(message, None, self._deadline(message))
        return batch

    def _fitting(self, messages: Sequence[Message]) -> int:
        """Return for how many of *messages* there is room; where nothing waits, one may have any size."""
        if not self.waiting and len(messages) == 1:
            return 1
        limits = self._owner.engine.limits
        room = min(len(messages), limits.deliveries - self.waiting)
        size = self.size
        for number in range(room):
            weight = _weight(messages[number])
            if size and size + weight > limits.deliveries_bytes:
                return number
            size += weight
        return room

    def run(self, batch: deque[Item]) -> None:
        """Take the turn of the first of *batch*, or of all that one handler takes as a list."""
        item = batch[0]
        if type(item) is Message:  # as most are
            handler = self._owner.protocol.router.routes.deliver(item.topic)
            if handler is not None and handler.plain:
                del batch[0]
                self.waiting -= 1
                self.size -= len(item.payload) + len(item.topic)
                if self._room is not None:
                    self._tell_room()
                if batch:
                    self._owner.put_back(self.run, batch)
                self._calls.run((item,), handler)
                return
        handler = self._handler(item)
        if handler is None or handler.when == "now" or self._expired(batch[0]):
            self._take(batch, handler, self.run)
            return
        if self.held is None:
            self.held = deque()
        self.held.append(batch.popleft())
        if batch:
            self._owner.put_back(self.run, batch)
        self._owner.choose_path()

    def run_now(self, batch: deque[Item]) -> None:
        """Do so with messages that have waited for a word of the device."""
        self._take(batch, self._handler(batch[0]), self.run_now)

    def _take(
        self, batch: deque[Item], handler: Handler | None, again: Callable[[deque[Item]], None]
    ) -> None:
        owner = self._owner
        acknowledging: list[Callable[[], object]] = []
        messages: list[Message] = []
        while True:
            item = batch.popleft()
            self.waiting -= 1
            self.size -= _weight(item if type(item) is Message else item.message)  # type: ignore[union-attr] # it is a `TrackedMessage`
            if type(item) is Message:
                messages.append(item)
            elif isinstance(item, TrackedMessage):
                if self._expired(item):
                    self._expire(item)
                else:
                    messages.append(item.at(owner.engine.runtime.time()))
                    if item.acknowledge is not None:
                        acknowledging.append(item.acknowledge)
            if handler is None or not handler.batch or not batch or self._handler(batch[0]) is not handler:
                break
        self._tell_room()
        if batch:
            owner.put_back(again, batch)
        if messages:
            self._call(handler, messages, acknowledging)

    def _call(
        self, handler: Handler | None, messages: list[Message], acknowledging: list[Callable[[], object]]
    ) -> None:
        owner = self._owner
        if handler is None:
            owner.counters["messages_unhandled"] += 1
            name = owner.protocol.router.name
            text = "%s ! no on_deliver of %r takes %r"
            owner.engine.once(("deliver", name), text, owner, name, messages[0].topic)
            self._acknowledge(acknowledging)
        elif handler.reply:
            reply = Reply(owner, messages[0])
            after = partial(self._acknowledge, acknowledging, reply)
            self._calls.run((messages[0],), reply.by(handler), after)
        else:
            argument: Any = messages if handler.batch else messages[0]
            done = partial(self._acknowledge, acknowledging) if acknowledging else None
            self._calls.run((argument,), handler, done)

    # --- messages that wait for a word of the device

    def spoke(self) -> None:
        """Take note that the device has spoken: behind what it said those are handled that waited for it."""
        held, self.held = self.held, None
        if held:
            self._owner.enqueue(self.run_now, held)
            self._owner.choose_path()

    def waits_in(self, event: tuple[Callable[[Any], None], Any]) -> bool:
        """Return whether *event* is that of messages."""
        return event[0] in (self.run, self.run_now)

    # --- the end

    def take_out(self, batch: deque[Item]) -> list[Message]:
        """Take those of *batch* that the broker doesn't keep, with their topics as the broker has them."""
        owner, now = self._owner, self._owner.engine.runtime.time()
        taken: list[Message] = []
        kept: list[Item] = []
        for item in batch:
            if type(item) is Message:
                taken.append(item)
            elif isinstance(item, TrackedMessage):
                if item.acknowledge is not None or self._expired(item):
                    kept.append(item)
                else:
                    taken.append(item.at(now))
        batch.clear()
        batch.extend(kept)
        self.waiting -= len(taken)
        self.size -= sum(map(_weight, taken))
        owner.counters["messages_delivered"] -= len(taken)
        return [attrs.evolve(one, topic=owner.mount + one.topic) for one in taken] if owner.mount else taken

    def lost(self, items: Iterable[Item]) -> int:
        """Return how many of *items*, which won't be handled here, the broker doesn't keep."""
        return sum(not (isinstance(item, TrackedMessage) and self._kept(item.acknowledge)) for item in items)

    def _kept(self, acknowledge: Callable[[], object] | None) -> bool:
        """Return whether what is acknowledged by *acknowledge* comes again in the client's session."""
        return acknowledge is not None and self._owner.keeps_session

    def close(self) -> None:
        """Drop what waited for a word of the device, unless the broker keeps it."""
        held, self.held = self.held, None
        lost = self.lost(held or ())
        if lost:
            self._drop(lost)
        self.waiting = self.size = 0
        self._tell_room()

    def _acknowledge(self, acknowledging: list[Callable[[], object]], reply: Reply | None = None) -> None:
        """Tell the broker that its messages are handled, unless the device left in the middle of it.

        A handler that has answered has come to an end, wherever the device is.
        """
        left = self._owner.gone or self._owner.reason in LEFT
        if not left or (reply is not None and reply.given):
            for acknowledge in acknowledging:
                acknowledge()

    def _sound(
        self, messages: Sequence[Message], acknowledge: Callable[[], object] | None, error: Exception
    ) -> Sequence[Message]:
        """Return those of *messages* whose topic can be one; of another one that is the *error*."""
        owner = self._owner
        sound = [message for message in messages if _is_sound(message)]
        dropped = len(messages) - len(sound)
        owner.drop("deliveries", dropped, "invalid_topic")
        if owner.tracer is not None:
            owner.tracer.dropped("messages", dropped)
        log.warning("%s ! %d messages dropped: %s", owner, dropped, error)
        if not sound and acknowledge is not None:
            acknowledge()  # a broker that isn't told would send them again
        return sound

    def _handler(self, item: Item) -> Handler | None:
        topic = item.message.topic if isinstance(item, TrackedMessage) else item.topic
        return self._owner.protocol.router.routes.deliver(topic)

    def _deadline(self, message: Message) -> float | None:
        if message.expiry is None:
            return None
        return self._owner.engine.runtime.time() + message.expiry

    def _expired(self, item: Item) -> bool:
        if not isinstance(item, TrackedMessage) or item.deadline is None:
            return False
        return item.deadline <= self._owner.engine.runtime.time()

    def _expire(self, item: TrackedMessage) -> None:
        """Drop a message that has waited too long; it is finished for the broker."""
        owner = self._owner
        owner.drop("deliveries", 1, "expired")
        if owner.tracer is not None:
            owner.tracer.dropped("messages", 1)
        log.info("%s ! message to %r dropped: it expired while it waited", owner, item.message.topic)
        if item.acknowledge is not None:
            self._acknowledge([item.acknowledge])

    def _drop(self, count: int) -> None:
        owner = self._owner
        ends = owner.state > OPEN
        owner.drop("deliveries", count, "closing" if ends else "queue_full")
        if owner.tracer is not None:
            owner.tracer.dropped("messages", count)
        before, self._dropped = self._dropped, self._dropped + count
        if before.bit_length() == self._dropped.bit_length():  # a flood of messages isn't one of log lines
            return
        limits = owner.engine.limits
        why = f"{self.waiting} wait, limit is {limits.deliveries}"
        if ends:
            why = "the connection ends"
        elif self.waiting < limits.deliveries:
            why = f"{self.size} bytes wait, limit is {limits.deliveries_bytes}"
        log.warning("%s ! %d messages dropped: %s", owner, self._dropped, why)


def _weight(message: Message) -> int:
    """Return the bytes that *message* counts while it waits."""
    size = len(message.payload) + len(message.topic)
    return size if message.properties is PLAIN else size + message.properties.size


def _is_sound(message: Message) -> bool:
    try:
        check_topic(message.topic)
    except (TypeError, ValueError):
        return False
    return True
