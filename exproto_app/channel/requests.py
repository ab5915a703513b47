"""Frames sent to a device that wait for the frames that answer them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import Any

from ..commands import Outcome, Waiter
from ..errors import CommandError, RequestTimeout
from ..host import Timer
from .turns import TURN, Parking, Turn

__all__ = ["Request", "Requests"]

log = logging.getLogger("exproto_app")


class Request(Outcome[Any]):
    """A frame sent to the device, waiting for the frame that answers it."""

    __slots__ = ("channel", "deadline", "frame", "key", "match", "retries", "timeout", "tries", "turn")

    def __init__(
        self,
        channel: Parking,
        waiter: Callable[[], Waiter],
        frame: bytes,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
    ) -> None:
        super().__init__(waiter)
        self.channel = channel
        self.frame = frame
        self.match = match
        self.timeout = timeout
        self.retries = retries
        self.key = key
        self.tries = 0
        self.turn: Turn | None = None
        self.deadline: Timer | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        self.awaited = True
        turn = TURN.get()
        if self.done or turn is None or turn.channel is not self.channel or turn.ended:
            return (yield from super().__await__())
        self.turn = turn
        self.channel.park(turn)
        try:
            return (yield from super().__await__())
        except GeneratorExit:
            self.channel.withdraw(self)
            raise
        except CommandError:
            raise
        except BaseException:
            # Cancelled, by a timeout of the handler's own: it goes on in the next free turn all the same.
            if self.channel.withdraw(self):
                yield from self.channel.regain(turn)
            elif not self.done:
                yield from self._wait()
            raise


class Requests:
    """The requests of one connection, *waiting* in order.

    Those with the same key are asked one after another. *send* hands a frame over, *go_on* has a handler go
    on in its turn, *unawaited* takes the error of a request that nobody awaits; *owner* names the connection
    in the log.
    """

    __slots__ = (
        "_call_later",
        "_counters",
        "_go_on",
        "_owner",
        "_released",
        "_send",
        "_unawaited",
        "waiting",
    )

    def __init__(
        self,
        owner: object,
        *,
        send: Callable[[bytes], object],
        go_on: Callable[[Turn | None, Callable[[], None]], None],
        call_later: Callable[..., Timer],
        counters: dict[str, int],
        unawaited: Callable[[RequestTimeout], object],
    ) -> None:
        self._owner = owner
        self._send = send
        self._go_on = go_on
        self._call_later = call_later
        self._counters = counters
        self._unawaited = unawaited
        self._released = False
        self.waiting: list[Request] = []

    def add(self, request: Request) -> None:
        """Ask *request*, behind those that wait with the same key."""
        waits = request.key is not None and any(other.key == request.key for other in self.waiting)
        self.waiting.append(request)
        if not waits:
            self._ask(request)

    def offer(self, message: Any) -> bool:
        """Offer *message* to those that are asked; tell whether it answers one."""
        for request in self.waiting:
            if request.tries and (request.match is None or request.match(message)):
                self._close(request)
                self._go_on(request.turn, partial(request.settle, message))
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
            self._go_on(request.turn, partial(request.fail, error))

    def _ask(self, request: Request) -> None:
        request.tries += 1
        self._send(request.frame)
        request.deadline = self._call_later(request.timeout, self._unanswered, request)

    def _unanswered(self, request: Request) -> None:
        if request.tries <= request.retries:
            self._counters["requests_retried"] += 1
            log.debug("%s = no answer within %g s, it is sent again", self._owner, request.timeout)
            self._ask(request)
            return
        self._counters["requests_timed_out"] += 1
        self._close(request)
        times = f", sent {request.tries} times" if request.tries > 1 else ""
        error = RequestTimeout(f"no answer within {request.timeout:g} s{times}")
        if not request.awaited:
            self._unawaited(error)
        self._go_on(request.turn, partial(request.fail, error))

    def _close(self, request: Request) -> None:
        if request.deadline is not None:
            request.deadline.cancel()
        self.waiting.remove(request)
        if request.key is not None and not self._released:
            first = next((other for other in self.waiting if other.key == request.key), None)
            if first is not None and not first.tries:
                self._ask(first)
