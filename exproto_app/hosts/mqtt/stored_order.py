"""A client's order across the processes of a gateway, each of which has a part of the store.

Before a message is launched, the other parts are asked for older ones of its client; while there are any, its
queue is *behind*, and looked at again and again. That is bounded: where the others don't get on although the
broker is there, messages overtake, which is logged and counted. `exproto_app.store.order` says how parts tell
each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ...store import NEWEST, Older, Order
from .stored_queue import Queue

if TYPE_CHECKING:
    from .stored import Backlog

__all__ = ["QueueOrder"]

log = logging.getLogger("exproto_app")

T = TypeVar("T")

LOOK: Final = 0.02
"""Seconds between two looks at the queues that are behind; more where there are very many."""

EACH: Final = 50e-6
"""Seconds of that for each of them."""

PATIENCE: Final = 60.0
"""Seconds for which a queue waits for others that don't get on."""

LINGER: Final = 0.05
"""Seconds for which a queue that is empty still counts: most have the next message soon."""


class QueueOrder:
    """The order of *backlog*'s queues among those of other processes; where there are none, all may pass."""

    def __init__(self, backlog: Backlog, folder: Path, part: int, loop: asyncio.AbstractEventLoop) -> None:
        self.file: Order | None = None
        self._backlog = backlog
        self._loop = loop
        self._known: set[str] = set()  # the clients that others know of
        self._empty: set[str] = set()  # those of them that may be forgotten
        self._behind: dict[Queue, tuple[Older, float]] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        try:
            self.file = Order(folder, part)
        except FileNotFoundError:  # there is one process alone
            pass
        except OSError as error:
            self._failed(error)

    def ready(self) -> None:
        """Tell others what waits here."""
        self._try(Order.ready, None)

    def close(self, *, empty: bool) -> None:
        """Tell nobody anything more; *empty*: nothing waits."""
        for timer in (self._looking, self._sweeping):
            if timer is not None:
                timer.cancel()
        if empty:
            for clientid in tuple(self._known):
                self._forget(clientid)
        self._try(Order.close, None)
        self.file = None

    def put(self, queue: Queue, oldest: int) -> None:
        """Take note that messages of *queue* wait, none older than *oldest*."""
        if self.file is not None and queue.clientid not in self._known and queue.clientid:
            self._known.add(queue.clientid)
            self._put(queue, oldest)

    def adopted(self, queue: Queue) -> None:
        """Take note that older messages of *queue* than others know of wait here."""
        if self.file is not None and queue.clientid:
            self._known.add(queue.clientid)
            self._put(queue, queue.oldest or 1)

    def leave(self, queue: Queue) -> None:
        """Have nobody wait for *queue*."""
        self._forget(queue.clientid)

    def emptied(self, queue: Queue) -> None:
        """Take note that *queue* is empty: unless it has a message soon, others needn't know of it."""
        if queue.clientid in self._known:
            self._empty.add(queue.clientid)
            if self._sweeping is None:
                self._sweeping = self._loop.call_later(LINGER, self._sweep)

    def elsewhere(self, clientid: str) -> bool:
        """Return whether messages of a client wait in another part."""
        if self.file is None or not clientid:
            return False
        return bool(self._older(clientid.encode(), NEWEST))

    def may_pass(self, queue: Queue, number: int) -> bool:
        """Return whether the message with id *number* of *queue* may go: no older one waits elsewhere."""
        if self.file is None or not queue.clientid or queue.overtakes:
            return True
        older = self._older(queue.key, number)
        if not older:
            self._behind.pop(queue, None)
            return True
        now = self._loop.time()
        before, since = self._behind.get(queue, ((), 0.0))
        if before != older:
            self._behind[queue] = older, now
        elif now - since >= PATIENCE:
            del self._behind[queue]
            queue.overtakes = True
            self._backlog.count("store_overtakes")
            text = "store ! older messages of %r wait with another worker, which sends none; newer ones go"
            log.warning(text, queue.clientid)
            return True
        # Who waits tells exactly what it has: the others may wait for that.
        self._put(queue, min(number, queue.oldest or number))
        self._look_soon()
        return False

    def others(self) -> list[int]:
        """Return the other parts where messages wait, or their processes have said so."""
        return self._try(Order.others, [])

    def taken_over(self, part: int) -> None:
        """Take note that what waited in *part* waits here."""
        self._try(lambda file: file.taken_over(part), None)

    def tick(self, _: float) -> None:
        """Tell others how far the queues have come."""
        if self.others():
            for clientid in self._known - self._empty:
                queue = self._backlog.queues.get(clientid)
                if queue is None or queue.empty:
                    self._empty.add(clientid)
                elif queue.oldest and not queue.parked:
                    self._put(queue, queue.oldest)
            self._sweep()

    def _look_soon(self) -> None:
        if self._looking is None and self._behind:
            pause = max(LOOK, EACH * len(self._behind))
            self._looking = self._loop.call_later(pause, self._look)

    def _look(self) -> None:
        self._looking = None
        now = self._loop.time()
        for queue in tuple(self._behind):
            if self._backlog.queues.get(queue.clientid) is not queue:
                self._behind.pop(queue, None)
            elif self._backlog.takes(queue):
                self._backlog.pump(queue)
            else:  # the time in which it couldn't send anyway doesn't count
                self._behind[queue] = (), now
        self._look_soon()

    def _sweep(self) -> None:
        self._sweeping = None
        empty, self._empty = self._empty, set()
        for clientid in empty:
            queue = self._backlog.queues.get(clientid)
            if queue is None or queue.empty:
                self._forget(clientid)

    def _forget(self, clientid: str) -> None:
        if clientid in self._known:
            self._known.discard(clientid)
            self._try(lambda file: file.remove(clientid.encode()), None)

    def _older(self, client: bytes, number: int) -> Older:
        nothing: Older = ()
        return self._try(lambda file: file.older(client, number), nothing)

    def _put(self, queue: Queue, oldest: int) -> None:
        self._try(lambda file: file.put(queue.key, oldest), None)

    def _try(self, what: Callable[[Order], T], otherwise: T) -> T:
        """Do *what*; a file that can't be used is told once, and then nobody waits for anybody."""
        if self.file is None:
            return otherwise
        try:
            return what(self.file)
        except OSError as error:
            self._failed(error)
            return otherwise

    def _failed(self, error: OSError) -> None:
        self.file = None
        text = "store ! the order of devices that change workers can't be kept: %s"
        log.error(text, error.strerror or error)
