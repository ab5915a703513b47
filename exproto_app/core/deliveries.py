"""Deliveries: the broker's messages for the device, on their way to `on_deliver`."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..models import Message
from .calls import HandlerCalls
from .registration import unmounted
from .states import OPEN

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["Deliveries"]

log = logging.getLogger("exproto_app")

LEFT: Final = frozenset({"device closed", "lost", "taken over", "kicked"})
"""Reasons with which the device can't have got what a handler sent it last."""


@attrs.frozen(eq=False)
class Unacknowledged:
    """A message whose broker wants to know when its handler has ended."""

    message: Message
    acknowledge: Callable[[], object]


class Deliveries:
    """The messages of one connection that wait, *waiting* in number; made for the first one."""

    __slots__ = ("_calls", "_dropped", "_owner", "waiting")

    def __init__(self, owner: Owner, calls: HandlerCalls) -> None:
        self._owner = owner
        self._calls = calls
        self._dropped = 0
        self.waiting = 0

    def put(self, messages: Sequence[Message], acknowledge: Callable[[], object] | None) -> None:
        """Have *messages* wait for their turns, as many as there is room for."""
        owner = self._owner
        room = owner.engine.limits.deliveries - self.waiting if acknowledge is None else len(messages)
        if owner.state > OPEN:
            room = 0
        if len(messages) > room:
            self._drop(len(messages) - room)
            messages = messages[:room]
        if not messages:
            return
        routes = owner.protocol.router.routes
        if owner.tracer is not None:
            owner.tracer.delivered(messages, routes, owner.mount)
        if owner.mount:
            messages = [unmounted(message, owner.mount) for message in messages]
        owner.counters["messages_delivered"] += len(messages)
        self.waiting += len(messages)
        batch: deque[Message | Unacknowledged] = deque(messages)
        if acknowledge is not None:
            batch[-1] = Unacknowledged(messages[-1], acknowledge)
        last = owner.last_event()
        if last is not None and last[0] == self.run:
            last[1].extend(batch)
        else:
            owner.enqueue(self.run, batch)
            owner.later()

    def run(self, batch: deque[Message | Unacknowledged]) -> None:
        """Take the turn of the first of *batch*, or of all that one handler takes as a list."""
        owner = self._owner
        routes = owner.protocol.router.routes
        acknowledging: list[Callable[[], object]] = []
        first = _message(batch.popleft(), acknowledging)
        handler = routes.deliver(first.topic)
        argument: Any = first
        if handler is not None and handler.batch:
            argument = [first]
            while batch and routes.deliver(_topic(batch[0])) is handler:
                argument.append(_message(batch.popleft(), acknowledging))
            self.waiting -= len(argument) - 1
        self.waiting -= 1
        if batch:
            owner.put_back(self.run, batch)
        if handler is None:
            owner.counters["messages_unhandled"] += 1
            name = owner.protocol.router.name
            text = "%s ! no on_deliver of %r takes %r"
            owner.engine.once(("deliver", name), text, owner, name, first.topic)
            self._acknowledge(acknowledging)
        else:
            after = partial(self._acknowledge, acknowledging) if acknowledging else None
            self._calls.run((argument,), handler, after)

    def _acknowledge(self, acknowledging: list[Callable[[], object]]) -> None:
        """Tell the broker that its messages are handled, unless the device left in the middle of it."""
        if not self._owner.gone and self._owner.reason not in LEFT:
            for acknowledge in acknowledging:
                acknowledge()

    def _drop(self, count: int) -> None:
        owner = self._owner
        ends = owner.state > OPEN
        owner.drop("deliveries", count, "closing" if ends else "queue_full")
        if owner.tracer is not None:
            owner.tracer.dropped("messages", count)
        before, self._dropped = self._dropped, self._dropped + count
        if before.bit_length() == self._dropped.bit_length():  # a flood of messages isn't one of log lines
            return
        limit = owner.engine.limits.deliveries
        why = "the connection ends" if ends else f"{self.waiting} wait, limit is {limit}"
        log.warning("%s ! %d messages dropped: %s", owner, self._dropped, why)


def _message(item: Message | Unacknowledged, acknowledging: list[Callable[[], object]]) -> Message:
    """Return the message, and put what acknowledges it into *acknowledging*."""
    if type(item) is Unacknowledged:
        acknowledging.append(item.acknowledge)
        return item.message
    return item  # type: ignore[return-value] # mypy doesn't narrow by type()


def _topic(item: Message | Unacknowledged) -> str:
    return item.message.topic if isinstance(item, Unacknowledged) else item.topic
