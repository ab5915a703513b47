"""Handler calls: the place where handlers are called, and the calls that take longer.

`Straight.received` does for the commonest frame what `HandlerCalls.run` does for all; they have to agree.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from ..framing import RAW
from ..handlers import Handler
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

    @property
    def line(self) -> object:
        """What all have in common that share a connection."""
        ...

    def resume(self, call: Call | None, wake: Callable[[], None], /) -> None:
        """Have a suspended *call* go on with *wake*, in the next free turn."""
        ...

    def suspend(self, call: Call, /) -> None:
        """Give up the turn of *call*: it awaits an answer, which comes in a turn of its own."""
        ...

    def regain(self, call: Call, /) -> Generator[Any, None, None]:
        """Wait for the next free turn, after a cancelled wait for an answer."""
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
    """The handler calls of one connection; *turn* is the one in progress, if it takes longer.

    A call is suspended while it awaits the answer to a request: it has given up its turn, and resumes in the
    next free one.
    """

    __slots__ = ("_line", "_outbound", "_owner", "_resumes", "encode", "turn")

    def __init__(self, owner: Owner, outbound: Outbound, line: HandlerCalls | None = None) -> None:
        self._owner = owner
        self._outbound = outbound
        framing = owner.protocol.router.reply_framing
        # Not to be called where it changes nothing.
        self.encode = None if framing is RAW and not owner.protocol.builds else owner.protocol.encode
        self._line = line
        self._resumes: deque[Callable[[], None]] | None = None
        self.turn: Call | None = None

    @property
    def line(self) -> HandlerCalls:
        """The calls of the connection that the device's answers come by: of its line, if it is a child."""
        return self if self._line is None else self._line

    def run(  # noqa: C901, PLR0912 - the hot path is flat
        self,
        items: Iterable[Any],
        handler: Handler | None = None,
        after: After | None = None,
        failed: Failed | None = None,
    ) -> None:
        """Call *handler*, or the one that each frame is routed to, with each of *items*: the hot path.

        Stop as soon as there is a reason to wait; an iterator has the rest of the items then. *after* is
        called when the one call that it belongs to has ended, *failed* instead if that raised; without
        *failed* the connection's `failed` judges the error and calls *after*.
        """
        owner = self._owner
        conn, encode, chunks = owner.conn, self.encode, self._outbound.chunks
        route = call = None
        if handler is None:
            route = owner.route
        elif handler.blocking:
            for item in items:
                self._start_thread(handler, item, after, failed, _said(item))
            return
        else:
            call = handler.call
        outer = owner.waits
        owner.waits = running = outer | RUNNING if outer else RUNNING
        returned = True
        try:
            for frame in items:
                item = frame
                try:
                    if route is not None:
                        handler, item = route(frame)  # the message that it holds
                        if handler is None or handler.blocking:
                            if handler is not None:
                                self._start_thread(handler, item, None, None, _said(frame))
                            if owner.waits != running:
                                break
                            continue
                        call = handler.call
                    reply = call(conn, item) if item is not ALONE else call(conn)  # type: ignore[misc] # given, or just found
                    if type(reply) is bytes:
                        chunks.append(reply if encode is None else encode(reply))
                    elif reply is not None:
                        returned = self._take(reply, handler, after, failed, _said(frame))
                except BaseException as error:  # noqa: BLE001 - whatever a handler raises is judged by on_error
                    returned = False
                    if failed is not None:
                        failed(error)
                    else:
                        owner.failed(handler, after, error, _said(frame))
                if owner.waits != running:
                    break
        finally:
            if owner.waits == running:
                owner.waits = outer
            elif not outer & RUNNING:
                owner.waits &= NOT_RUNNING
        if after is not None and returned:
            after()

    def resume_next(self) -> None:
        """Resume the call that has waited longest for a free turn."""
        resumes = self._resumes
        if resumes:
            resume = resumes.popleft()
            if not resumes:
                self._owner.waits &= ~RESUMES
            resume()

    def resume(self, call: Call | None, wake: Callable[[], None]) -> None:
        """Resume a suspended *call* with *wake*, in the next free turn."""
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
        """Give up the turn of *call*: it awaits an answer, which comes in a turn of its own."""
        call.suspended += 1
        if self.turn is call:
            self._free_turn(call)
            if call.deadline is not None:
                call.deadline.cancel()
                call.deadline = None
            self._owner.later()

    def regain(self, call: Call) -> Generator[Any, None, None]:
        """Wait for the next free turn, after a cancelled wait for an answer."""
        waiter = self._owner.engine.runtime.waiter()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.resume(call, wake)
        yield from waiter.__await__()

    def hurry(self) -> None:
        """Limit the call in progress to the time that the end of a connection may take."""
        if self.turn is not None:
            self._set_deadline(self.turn)

    def cancel(self) -> None:
        """End the call in progress."""
        if self.turn is not None:
            self._late(self.turn, self._owner.engine.limits.end_timeout)

    def take(self, reply: object, handler: Handler, frame: bytes) -> None:
        """Send, or run, what *handler* returned for *frame* other than bytes."""
        self._take(reply, handler, None, None, frame)

    def _take(
        self,
        reply: object,
        handler: Handler | None,
        after: After | None,
        failed: Failed | None,
        said: bytes | None,
    ) -> bool:
        """Send, or run, what *handler* returned other than bytes; return whether its call has ended."""
        owner = self._owner
        if reply is None:
            return True
        awaitable = hasattr(reply, "__await__")
        if isinstance(reply, bytes) or (owner.protocol.builds and not awaitable):
            self._outbound.chunks.append(owner.protocol.encode(reply))
            return True
        if awaitable and handler is not None:
            self._start(reply, handler, after, failed, said)
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

    def _new_call(
        self, handler: Handler, after: After | None, failed: Failed | None, said: bytes | None
    ) -> Call:
        call = Call(self, handler, after, failed or partial(self._owner.failed, handler, after, said=said))
        self._take_turn(call)
        return call

    def _start(
        self,
        awaitable: object,
        handler: Handler,
        after: After | None,
        failed: Failed | None,
        said: bytes | None,
    ) -> None:
        call = self._new_call(handler, after, failed, said)
        token = CURRENT.set(call)
        try:
            task = self._owner.engine.runtime.run_task(awaitable, partial(self._returned, call), now=True)
        finally:
            CURRENT.reset(token)
        if self._owner.tracer is not None and self._outbound.chunks:
            self._outbound.flush()  # shown before the next frame also where tasks begin at once
        if not call.ended:
            call.task = task
            if not call.suspended:
                self._set_deadline(call)

    def _start_thread(
        self,
        handler: Handler,
        item: Any,
        after: After | None,
        failed: Failed | None,
        said: bytes | None,
    ) -> None:
        call = self._new_call(handler, after, failed, said)
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
        """Cancel a handler that takes too long; the second time, go on without it."""
        if call.ended:
            return
        if call.error is not None:
            log.error("%s ! %s keeps running although it was cancelled", self._owner, call.handler.name)
            self._returned(call, None, call.error)
            return
        call.error = TimeoutError(f"{call.handler.name} ran longer than {seconds:g} s")
        limits, runtime = self._owner.engine.limits, self._owner.engine.runtime
        call.deadline = runtime.call_later(limits.end_timeout, self._late, call, seconds)
        if call.task is not None:
            call.task.cancel()

    def _returned(self, call: Call, reply: object, error: BaseException | None) -> None:
        """End a call that took longer."""
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
                    self._take(reply, None if hasattr(reply, "__await__") else call.handler, None, None, None)
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


def _said(item: object) -> bytes | None:
    """Return the bytes that a device said, if *item* is that: a frame, and no message, reason or error."""
    if type(item) is tuple:  # a bad frame, and why
        item = item[0]
    return item if type(item) is bytes else None
