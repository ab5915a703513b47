"""Frames sent to a device that wait for the frames that answer them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..commands import Outcome, Waiter
from ..errors import CommandError, RequestTimeout, UnavailableError
from .calls import CURRENT, Call, HandlerCalls

if TYPE_CHECKING:
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["Request", "Requests"]

log = logging.getLogger("exproto_app")


class Request(Outcome[Any]):
    """A frame sent to the device, waiting for the frame that answers it."""

    __slots__ = ("call", "deadline", "frame", "key", "match", "requests", "retries", "timeout", "tries")

    def __init__(
        self,
        requests: Requests,
        waiter: Callable[[], Waiter],
        frame: bytes,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
    ) -> None:
        super().__init__(waiter)
        self.requests = requests
        self.frame = frame
        self.match = match
        self.timeout = timeout
        self.retries = retries
        self.key = key
        self.tries = 0
        self.call: Call | None = None
        self.deadline: Timer | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        self.awaited = True
        call = CURRENT.get()
        if self.done or call is None or call.owner.line is not self.requests.calls or call.ended:
            return (yield from super().__await__())
        self.call = call
        call.owner.suspend(call)
        try:
            return (yield from super().__await__())
        except GeneratorExit:
            self.requests.withdraw(self)
            raise
        except CommandError:
            raise
        except BaseException:
            # Cancelled, by a timeout of the handler's own: it goes on in the next free turn all the same.
            if self.requests.withdraw(self):
                yield from call.owner.regain(call)
            elif not self.done:
                yield from self._wait()
            raise


class Requests:
    """The requests of one connection, *waiting* in order; those with the same key are asked one by one."""

    __slots__ = ("_owner", "_released", "_send", "calls", "waiting")

    def __init__(self, owner: Owner, calls: HandlerCalls, send: Callable[[bytes], object]) -> None:
        self._owner = owner
        self._send = send
        self._released = False
        self.calls = calls
        self.waiting: list[Request] = []

    def ask(
        self,
        frame: bytes,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
    ) -> Outcome[Any]:
        """Send *frame*, behind those that wait with the same key, and wait for its answer."""
        owner = self._owner
        limit = owner.engine.limits.requests
        if len(self.waiting) >= limit:
            words = f"{limit} requests are waiting already, which is the limit"
            return owner.refuse("request", UnavailableError(words))
        waiter = owner.engine.runtime.waiter
        request = Request(self, waiter, frame, match=match, timeout=timeout, retries=retries, key=key)
        waits = key is not None and any(other.key == key for other in self.waiting)
        self.waiting.append(request)
        owner.choose_path()
        if not waits:
            self._ask(request)
        return request

    def offer(self, message: Any) -> bool:
        """Offer *message* to the requests that were sent; return whether it answers one."""
        for request in self.waiting:
            if request.tries and (request.match is None or request.match(message)):
                self._close(request)
                self._resume(request, partial(request.settle, message))
                return True
        return False

    def withdraw(self, request: Request) -> bool:
        """Forget *request*; return False if it has its answer already."""
        if request not in self.waiting:
            return False
        self._close(request)
        return True

    def release(self, error: CommandError) -> None:
        """Have all fail with *error*: the device has gone."""
        self._released = True
        for request in tuple(self.waiting):
            self._close(request)
            self._resume(request, partial(request.fail, error))

    def _ask(self, request: Request) -> None:
        request.tries += 1
        self._send(request.frame)
        call_later = self._owner.engine.runtime.call_later
        request.deadline = call_later(request.timeout, self._unanswered, request)

    def _unanswered(self, request: Request) -> None:
        owner = self._owner
        if request not in self.waiting:  # a timer that fires although it was cancelled
            return
        if request.tries <= request.retries:
            owner.counters["requests_retried"] += 1
            log.debug("%s = no answer within %g s; it is sent again", owner, request.timeout)
            self._ask(request)
            return
        owner.counters["requests_timed_out"] += 1
        self._close(request)
        times = f", sent {request.tries} times" if request.tries > 1 else ""
        error = RequestTimeout(f"no answer within {request.timeout:g} s{times}")
        if not request.awaited:
            owner.refuse("request", error)
        self._resume(request, partial(request.fail, error))

    def _resume(self, request: Request, wake: Callable[[], None]) -> None:
        calls = self.calls if request.call is None else request.call.owner
        calls.resume(request.call, wake)

    def _close(self, request: Request) -> None:
        if request.deadline is not None:
            request.deadline.cancel()
        self.waiting.remove(request)
        if not self.waiting:
            self._owner.choose_path()
        if request.key is not None and not self._released:
            first = next((other for other in self.waiting if other.key == request.key), None)
            if first is not None and not first.tries:
                self._ask(first)
