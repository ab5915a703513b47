"""Publishing past the process of a connection that ends: it would look at nothing more that it is cast."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from ...commands import Outcome
from ...errors import CommandError, UnavailableError
from . import facts
from .terms import export

if TYPE_CHECKING:
    from .calls import Calls

__all__ = ["Past"]

AT_ONCE: Final = 500
"""Messages that are published in one call."""

BYTES: Final = 1_048_576
"""Bytes of their payloads, beyond which no further message joins them."""

PAYLOAD: Final = 7
"""Where a `#message{}` has it."""

PUBLISH: Final = export("emqx", "publish", 1)


class Past:
    """Publishes messages of one connection in order, one call after another."""

    def __init__(self, hub: Calls) -> None:
        self._hub = hub
        self._waiting: list[tuple[Any, Outcome[None]]] = []
        self._running = False

    def publish(self, record: Any) -> Outcome[None]:
        """Publish *record*, a `#message{}`, behind those before it."""
        outcome: Outcome[None] = Outcome(self._hub.waiter)
        self._waiting.append((record, outcome))
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._next)
        return outcome

    def _next(self) -> None:
        number = size = 0
        for record, _ in self._waiting[:AT_ONCE]:
            if size > BYTES:
                break
            number += 1
            size += len(record[PAYLOAD])
        batch, self._waiting = self._waiting[:number], self._waiting[number:]
        if not batch:
            self._running = False
            return

        def published(answer: object, error: CommandError | None) -> None:
            answers = (
                answer if isinstance(answer, list) and len(answer) == len(batch) else [answer] * len(batch)
            )
            for (_, outcome), result in zip(batch, answers, strict=True):
                why = error or facts.problem(result)
                if why:
                    outcome.fail(UnavailableError(f"the broker didn't publish: {why}"))
                else:
                    outcome.settle(None)
            self._next()

        self._hub.call("lists", "map", [PUBLISH, [record for record, _ in batch]], published)
