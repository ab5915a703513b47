"""Replies: what a handler of `on_deliver(reply=True)` returns goes to whoever asked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import attrs

from ..commands import Publish
from ..handlers import Handler
from ..models import PLAIN, Message, Properties
from ..topics import check_topic

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .seams import Owner

__all__ = ["Reply"]

log = logging.getLogger("exproto_app")


class Reply:
    """The answer to one *message*; *given*: its handler has come to one."""

    __slots__ = ("_message", "_owner", "given")

    def __init__(self, owner: Owner, message: Message) -> None:
        self._owner = owner
        self._message = message
        self.given = False

    def by(self, handler: Handler) -> Handler:
        """Return *handler* so that what it returns is published; it may be called in a thread."""
        call = handler.call

        def answer(conn: Any, message: Message) -> Any:
            result = call(conn, message)
            if hasattr(result, "__await__"):
                return later(result)
            return self._publish(handler, result)

        async def later(result: Awaitable[Any]) -> None:
            self._publish(handler, await result)

        return attrs.evolve(handler, call=answer)

    def _publish(self, handler: Handler, answer: object) -> None:
        """Publish *answer* where the message wants one. Raises `TypeError` unless it is bytes or None."""
        if answer is not None and not isinstance(answer, bytes):
            hint = "; encode it first" if isinstance(answer, str) else ""
            raise TypeError(f"{handler.name} returned {type(answer).__name__}, not bytes or None{hint}")
        self.given = True
        if answer is None:
            return
        owner, message = self._owner, self._message
        topic, correlation = message.response_topic, message.correlation_data
        why = "it came without a response topic"
        try:
            if topic:
                check_topic(topic)
        except ValueError as error:
            topic, why = "", f"its response topic is wrong: {error}"
        if not topic:
            owner.engine.count("replies_dropped")
            log.info("%s ! the answer to %r is dropped: %s", owner, message.topic, why)
            return
        properties = Properties(correlation_data=correlation) if correlation else PLAIN
        owner.issue(Publish(topic, answer, message.qos, properties=properties, absolute=True))
