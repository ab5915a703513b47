"""Handler calls: the one place where handlers are called, and the calls that take longer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from ..router import Handler
from .states import HANDLER, NOT_RUNNING, OPEN, RESUMES, RUNNING

if TYPE_CHECKING:
    from ..runtime import Timer
    from .outbound import Outbound
    from .seams import Owner

__all__ = ["ALONE", "CURRENT", "After", "Call", "Failed", "HandlerCalls", "Suspending"]

log = logging.getLogger("exproto_app")

After: TypeAlias = Callable[[], None]
Failed: TypeAlias = Callable[[BaseException], None]

ALONE: Final = object()
"""Stands for the argument of handlers that get none but the connection."""


class Suspending(Protocol):
    """The connection that a call and its requests belong to."""

    def suspend(self, call: Call, /) -> None:
        """Give the turn of *call* up: it awaits an answer, which has to come in a turn of its own."""
        ...

    def regain(self, call: Call, /) -> Generator[Any, None, None]:
        """Wait for the next free turn, after a wait for an answer that was cancelled."""
        ...


class Call:
    """A call that has not returned yet: a coroutine, or a function in a thread."""

    __slots__ = ("after", "deadline", "ended", "error", "failed", "handler", "owner", "suspended", "task")

    def __init__(self, owner: Suspending, handler: Handler, after: After | None, failed: Failed) -> None:
        self.owner = owner
        self.handler = handler
        self.after = after
        self.failed = failed
        self.suspended = 0
        self.ended = False
        self.error: Exception | None = None
        self.task: Timer | None = None
        self.deadline: Timer | None = None


# Which call a coroutine belongs to, also in tasks that its handler made (asyncio.gather, wait_for): the one
# that `await conn.request()` suspends. Nothing else reads it.
CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


class HandlerCalls:
    """The handler calls of one connection; *turn* is the one that takes longer and has the turn.

    A call is suspended while it awaits the answer to a request: it has given its turn up, and resumes in
    the next one that is free.
    """

    __slots__ = ("_outbound", "_owner", "_resumes", "turn")

    def __init__(self, owner: Owner, outbound: Outbound) -> None:
        self._owner = owner
        self._outbound = outbound
        self._resumes: deque[Callable[[], None]] | None = None
        self.turn: Call | None = None

    def run(  # noqa: C901, PLR0912 - the hot path is flat
        self,
        items: Iterable[Any],
        handler: Handler | None = None,
        after: After | None = None,
        failed: Failed | None = None,
    ) -> Iterator[Any] | None:
        """Call *handler*, or the one that each frame is routed to, with each of *items*: the hot path.

        Stop as soon as there is a reason to wait, and return the rest of the items, if any. *after* is called
        when the one call that it is for has ended, *failed* in its place if that raised; without *failed* the
        connection's `failed` judges the error and sees to *after*.
        """
        owner = self._owner
        conn, encode, append = owner.conn, owner.protocol.encode, self._outbound.chunks.append
        route = None
        if handler is None:
            route = owner.route
        elif handler.blocking:
            for item in items:
                self._start_thread(handler, item, after, failed)
            return None
        outer = owner.waits
        owner.waits = running = outer | RUNNING
        returned = True
        rest: Iterator[Any] | None = iter(items)
        try:
            for item in rest:  # type: ignore[union-attr] # just made
                try:
                    if route is not None:
                        handler, item = route(item)  # noqa: PLW2901 - the message that the frame holds
                        if handler is None or handler.blocking:
                            if handler is not None:
                                self._start_thread(handler, item, None, None)
                            if owner.waits != running:
                                break
                            continue
                    reply = handler.call(conn, item) if item is not ALONE else handler.call(conn)  # type: ignore[union-attr] # given, or just found
                    if type(reply) is bytes:
                        append(encode(reply))
                    elif reply is not None:
                        returned = self._take(reply, handler, after, failed)
                except BaseException as error:  # noqa: BLE001 - whatever a handler raises is judged by on_error
                    returned = False
                    if failed is not None:
                        failed(error)
                    else:
                        owner.failed(handler, after, error)
                if owner.waits != running:
                    break
            else:
                rest = None
        finally:
            if not outer & RUNNING:
                owner.waits &= NOT_RUNNING
        if after is not None and returned:
            after()
        return rest

    def resume_next(self) -> None:
        """Have the call go on that has waited longest for a free turn."""
        resumes = self._resumes
        if resumes:
            resume = resumes.popleft()
            if not resumes:
                self._owner.waits &= ~RESUMES
            resume()

    def resume(self, call: Call | None, wake: Callable[[], None]) -> None:
        """Have a suspended *call* go on with *wake*, in the next free turn."""
        if call is None or call.ended:
            wake()
            return

        def resume() -> None:
            call.suspended -= 1
            # While it awaits other answers too, the turn stays free for the frames that bring them.
            if call.suspended == 0 and not call.ended:
                self._take_turn(call)
                self._set_deadline(call)
            wake()

        if self._resumes is None:
            self._resumes = deque()
        self._resumes.append(resume)
        self._owner.waits |= RESUMES
        self._owner.later()

    def suspend(self, call: Call) -> None:
        """Give the turn of *call* up: it awaits an answer, which has to come in a turn of its own."""
        call.suspended += 1
        if self.turn is call:
            self._free_turn(call)
            if call.deadline is not None:
                call.deadline.cancel()
                call.deadline = None
            self._owner.later()

    def regain(self, call: Call) -> Generator[Any, None, None]:
        """Wait for the next free turn, after a wait for an answer that was cancelled."""
        waiter = self._owner.engine.runtime.waiter()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.resume(call, wake)
        yield from waiter.__await__()

    def hurry(self) -> None:
        """Give the call that has the turn no more time than the end of a connection has."""
        if self.turn is not None:
            self._set_deadline(self.turn)

    def cancel(self) -> None:
        """End the call that has the turn."""
        if self.turn is not None:
            self._late(self.turn, self._owner.engine.limits.end_timeout)

    def _take(
        self, reply: object, handler: Handler | None, after: After | None, failed: Failed | None
    ) -> bool:
        """Take what *handler* gave, other than bytes; return whether its call has ended with that."""
        owner = self._owner
        if reply is None:
            return True
        awaitable = hasattr(reply, "__await__")
        if isinstance(reply, bytes) or (owner.protocol.builds and not awaitable):
            self._outbound.chunks.append(owner.protocol.encode(reply))
            return True
        if awaitable and handler is not None:
            self._start(reply, handler, after, failed)
            return False
        name = "the handler" if handler is None else handler.name
        hint = "; encode it first" if isinstance(reply, str) else ""
        raise TypeError(f"{name} returned {type(reply).__name__}, not bytes or None{hint}")

    def _take_turn(self, call: Call) -> None:
        self.turn = call
        self._owner.waits |= HANDLER

    def _free_turn(self, call: Call) -> None:
        if self.turn is call:
            self.turn = None
            self._owner.waits &= ~HANDLER

    def _new_call(self, handler: Handler, after: After | None, failed: Failed | None) -> Call:
        call = Call(self, handler, after, failed or partial(self._owner.failed, handler, after))
        self._take_turn(call)
        return call

    def _start(self, awaitable: object, handler: Handler, after: After | None, failed: Failed | None) -> None:
        call = self._new_call(handler, after, failed)
        token = CURRENT.set(call)
        try:
            task = self._owner.engine.runtime.run_task(awaitable, partial(self._returned, call), now=True)
        finally:
            CURRENT.reset(token)
        if not call.ended:
            call.task = task
            if not call.suspended:
                self._set_deadline(call)

    def _start_thread(self, handler: Handler, item: Any, after: After | None, failed: Failed | None) -> None:
        call = self._new_call(handler, after, failed)
        conn = self._owner.conn
        function = partial(handler.call, conn) if item is ALONE else partial(handler.call, conn, item)
        call.task = self._owner.engine.runtime.run_thread(function, partial(self._returned, call))
        self._set_deadline(call)

    def _set_deadline(self, call: Call) -> None:
        limits = self._owner.engine.limits
        seconds = limits.handler_timeout
        if self._owner.state > OPEN:
            seconds = min(seconds, limits.end_timeout)
        if call.deadline is not None:
            call.deadline.cancel()
        call.deadline = self._owner.engine.runtime.call_later(seconds, self._late, call, seconds)

    def _late(self, call: Call, seconds: float) -> None:
        """End a handler that takes too long; the second time, go on without it."""
        if call.ended:
            return
        if call.error is not None:
            log.error("%s ! %s goes on although it was cancelled", self._owner, call.handler.name)
            self._returned(call, None, call.error)
            return
        call.error = TimeoutError(f"{call.handler.name} ran longer than {seconds:g} s")
        limits, runtime = self._owner.engine.limits, self._owner.engine.runtime
        call.deadline = runtime.call_later(limits.end_timeout, self._late, call, seconds)
        if call.task is not None:
            call.task.cancel()

    def _returned(self, call: Call, reply: object, error: BaseException | None) -> None:
        """Take the end of a call that needed longer."""
        if call.ended:
            return
        call.ended = True
        if call.deadline is not None:
            call.deadline.cancel()
        # Both know the context that they were made in, where the call before may be, which would know the one
        # before that: no call of a busy connection would ever be freed.
        call.deadline = call.task = None
        self._free_turn(call)
        owner = self._owner
        if call.error is not None and not isinstance(error, owner.engine.runtime.exits):
            error = call.error
        outer = owner.waits & RUNNING
        owner.waits |= RUNNING
        try:
            if error is None:
                try:
                    # A coroutine's result is never awaited a second time.
                    self._take(reply, None if hasattr(reply, "__await__") else call.handler, None, None)
                except BaseException as wrong:  # noqa: BLE001 - a reply that can't be sent is the handler's error
                    error = wrong
            if error is not None:
                call.failed(error)
            elif call.after is not None:
                call.after()
        finally:
            if not outer:
                owner.waits &= ~RUNNING
        owner.advance()
