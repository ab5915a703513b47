"""Connections whose process ended without a word: killed by an operator, or by a crash while it ended.

The broker never calls `terminated` for them. So all processes are asked for now and then, whether they live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from ...errors import CommandError
from .link import ErlangLink
from .terms import Opaque

if TYPE_CHECKING:
    from .calls import Calls

__all__ = ["Liveness"]

SWEEP: Final = 30.0
"""Seconds between two rounds."""

AT_ONCE: Final = 1_000
"""Connections that are asked about in one call."""


class Liveness:
    """Finds those of *links* whose process has gone, and ends them."""

    def __init__(self, hub: Calls, links: Mapping[bytes, ErlangLink]) -> None:
        self._hub = hub
        self._links = links
        self._loop = asyncio.get_running_loop()
        self._round: Iterator[ErlangLink] = iter(())
        self._asked = 0

    def watch(self) -> None:
        """Begin the next round in `SWEEP` seconds."""
        self._loop.call_later(SWEEP, self.sweep)

    def sweep(self) -> None:
        """Ask about all connections, some at a time."""
        self._round = iter(tuple(self._links.values()))
        self._next()

    def _next(self) -> None:
        for link in islice(self._round, AT_ONCE):
            self._asked += 1
            self._hub.each("erlang", "is_process_alive", Opaque(link.pid), partial(self._answered, link))
        if not self._asked and not self._hub.lost:
            self.watch()

    def _answered(self, link: ErlangLink, answer: object, error: CommandError | None) -> None:
        self._asked -= 1
        if error is None and answer == "false" and not link.ending and link.pid in self._links:
            link.vanished()
        if not self._asked:
            self._next()
