"""What a process that died has left in the store: another one takes it over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...store import Found, Log, Place, find, leftovers, take_over
from .stored_order import QueueOrder

__all__ = ["Heir"]

log = logging.getLogger("exproto_app")

LOOK: Final = 5.0
"""Seconds between two looks for what was left behind."""


class Heir:
    """Has *take* told what is found in parts of *folder* that nobody has; their files move to *place*.

    *order* learns that it is there by now.
    """

    def __init__(
        self,
        folder: Path,
        place: Place,
        log: Log[Any],
        order: QueueOrder,
        take: Callable[[Found], object],
    ) -> None:
        self.place = place
        self._folder = folder
        self._log = log
        self._order = order
        self._take = take
        self._said: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._look_at = 0.0

    def tick(self, now: float) -> None:
        """Look, where it is time."""
        if now >= self._look_at and (self._looking is None or self._looking.done()):
            self._look_at = now + LOOK
            self._looking = asyncio.get_running_loop().create_task(self.adopt())

    async def stop(self) -> None:
        """Look no more; what is being moved is moved."""
        if self._looking is not None:
            await self._looking
        self._look_at = float("inf")

    async def adopt(self) -> None:
        """Take over the parts of processes that have ended."""
        disk, place = self._log.disk, self.place
        try:
            also = self._order.others()
            for other in await disk.run(partial(leftovers, self._folder, place.number, also)):
                try:
                    first = self._log.reserve(len(other.files))
                    taken = await disk.run(partial(take_over, other, place.folder, first))
                    found = await disk.run(partial(find, place.folder, taken))
                    self._take(found)
                    self._order.taken_over(other.number)
                finally:
                    other.release()
        except OSError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                text = "store ! what others have left can't be taken over: %s"
                log.error(text, error)  # noqa: TRY400 - the disk's fault, not the code's
