"""Ending: how a connection gets from its last turn to the end, each step bounded in time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .calls import HandlerCalls
from .inbound import Inbound
from .outbound import Outbound
from .states import CLOSED, CLOSING, DRAINING, ENDED, GONE, LEAVING, OPEN, WRITE_BLOCKED

if TYPE_CHECKING:
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["Ending"]

log = logging.getLogger("exproto_app")

HURRY: Final = 1.0
"""Seconds of a shutdown in which what was received before is still handled, and a device may still read."""

AGAIN: Final = 0.25
"""Seconds from then on between two checks whether only the device is waited for."""


class Ending:
    """The end of one connection; made when it begins to end."""

    __slots__ = (
        "_callbacks",
        "_calls",
        "_hurried",
        "_inbound",
        "_outbound",
        "_owner",
        "_stopping",
        "_timer",
        "terminating",
    )

    def __init__(self, owner: Owner, inbound: Inbound, outbound: Outbound, calls: HandlerCalls) -> None:
        self._owner = owner
        self._inbound = inbound
        self._outbound = outbound
        self._calls = calls
        self._timer: Timer | None = None
        self._stopping = False
        self._hurried = 0
        self.terminating = False
        self._callbacks: list[Callable[[], None]] = []

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the connection has ended."""
        self._callbacks.append(callback)

    def limit(self) -> None:
        """Give the current step `Limits.end_timeout` seconds, unless it has its limit already."""
        if self._timer is None:
            engine = self._owner.engine
            seconds, then = engine.limits.end_timeout, self._late
            if self._stopping and self._owner.state <= GONE and seconds > HURRY:
                seconds, then = HURRY, self._hurry
            self._timer = engine.runtime.call_later(seconds, then)

    def stop(self) -> None:
        """Hurry: the host stops, whatever ended the connection before."""
        if not self._stopping:
            self._stopping = True
            self._cancel_timer()
            self.limit()

    def _hurry(self) -> None:
        """Handle no more of what waits, and give up a device that reads nothing."""
        owner = self._owner
        if self._timer is None or owner.state > GONE:
            return
        self._inbound.shut = True
        limits = owner.engine.limits
        self._hurried += 1
        left = limits.end_timeout - HURRY - self._hurried * AGAIN
        then = self._hurry if left > 0 else self._late
        self._timer = owner.engine.runtime.call_later(AGAIN, then)
        if owner.state is CLOSED:
            owner.link.abort()
        elif owner.waits & WRITE_BLOCKED and self._calls.turn is None and not owner.commands_waiting:
            owner.lose("it doesn't read, and the host is stopping")
        owner.later()

    def close_when_flushed(self) -> None:
        """Close once all input is handled and both queues are flushed."""
        owner = self._owner
        if not DRAINING <= owner.state <= CLOSING or self._calls.turn is not None:
            return
        if owner.last_event() is not None or self._inbound.waiting:
            return
        if owner.state is DRAINING and owner.reason == "device closed":
            frames = self._inbound.finish()
            if frames:
                self._inbound.add(frames)
                owner.later()
                return
        if self._outbound.busy or owner.commands_waiting:
            return
        owner.move_on(CLOSED)
        owner.link.close()

    def gone(self) -> None:
        """Go on without the device: what it sent before is handled, then `on_terminated` runs."""
        owner = self._owner
        ended_by_us = owner.state > OPEN
        self._cancel_timer()
        owner.move_on(GONE)
        if ended_by_us:
            self.limit()
        self._calls.hurry()

    def _late(self) -> None:
        """End the step that took too long to end by itself."""
        owner = self._owner
        if self._timer is None or owner.state is ENDED:  # fired although it was cancelled
            return
        self._timer = None
        if owner.state is LEAVING:
            self._finish()
            return
        self._inbound.shut = True
        self._calls.cancel()
        if owner.state < GONE:
            engine = owner.engine
            self._timer = engine.runtime.call_later(engine.limits.end_timeout, owner.link.abort)
            if owner.state < CLOSED:
                self._outbound.flush()
                owner.move_on(CLOSED)
                owner.link.close()
        owner.later()

    def run_terminated(self) -> bool:
        """Run `on_terminated` once all else has had its turn; return whether something was done."""
        owner, inbound = self._owner, self._inbound
        if owner.state is not GONE or self.terminating:
            return False
        if owner.reason == "device closed" and not inbound.shut:
            frames = inbound.finish()
            inbound.add(frames)
            if inbound.waiting:
                return True
        if owner.children is not None and owner.children.end(owner.reason or "device closed", owner.detail):
            return True
        self.terminating = True
        owner.forgive()
        inbound.drop_unfinished()
        self._cancel_timer()
        handler = owner.protocol.router.routes.terminated
        if handler is None:
            self._leave()
        else:
            self._calls.run((owner.reason,), handler, self._leave)
        return True

    def _leave(self) -> None:
        """Finish once what was published last is on its way (bounded in time)."""
        owner = self._owner
        owner.publish_will()
        owner.hand_over()
        owner.move_on(LEAVING)
        if owner.commands_waiting:
            self.limit()
        else:
            self._finish()

    def idle(self) -> None:
        """Finish, now that nothing is on its way to the broker any more."""
        if self._owner.state is LEAVING:
            self._finish()

    def _finish(self) -> None:
        owner = self._owner
        if owner.state is ENDED:
            return
        self._cancel_timer()
        owner.move_on(ENDED)
        owner.let_go()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
