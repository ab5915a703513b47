"""Sniffing: several protocols on one listener, recognized by the first bytes that a device sends.

The driver feeds a `Sniffer` until the protocol is known; then the connection's `Channel` takes its place, as
`link.channel`, and gets the bytes that have come. `Rules` decides by the bytes alone, never by how they were
cut: several reads decide as one would.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import attrs

from .. import tap as events
from ..connection import Connection
from ..errors import FramingError
from ..masking import hide_said, log_error
from ..models import ConnectionInfo, Message, Reason
from ..router import Router
from ..runtime import Timer
from ..tap import Tap, Watcher
from .calls import Call
from .channel import Channel
from .naming import shown
from .seams import Context, Link
from .tracing import HOLD

__all__ = ["Rules", "SniffFailed", "Sniffer", "Sniffing"]

log = logging.getLogger("exproto_app")


class SniffFailed(Exception):  # noqa: N818 - it is about the user's function, not an error of ours
    """A router's `sniff=` raised, which is the cause of this, or returned neither a bool nor None."""


@attrs.frozen(eq=False)
class Rules:
    """The protocols that share a listener, in its order, and how one is chosen.

    They are asked in order, and the first that takes the bytes is chosen; one that can't decide yet gets more
    bytes first. Prefixes count together, in the place of the first one that matches: the longest wins, once
    no longer one can match any more. A router without `sniff=` takes what is left.
    """

    routers: Sequence[Router[Any, Any]]

    @property
    def name(self) -> str:
        """The protocols, as they are written for a listener: `gt06,jt808`."""
        return ",".join(router.name for router in self.routers)

    def choose(self, data: bytes, *, final: bool) -> tuple[Router[Any, Any] | None, bool]:
        """Return the router that takes *data*, if one does, and whether more bytes may change that.

        If *final*, there won't be more: who can't decide is passed over. Raises `SniffFailed`.
        """
        rest: Router[Any, Any] | None = None
        for router in self.routers:
            if router.sniff is None:
                rest = router
                continue
            taken, waits = self._asked(router, data)
            if waits and not final:
                return None, True
            if taken:
                return (router if callable(router.sniff) else self._longest(data)), False
        return rest, False

    def _asked(self, router: Router[Any, Any], data: bytes) -> tuple[bool, bool]:
        """Return whether *router* takes *data*, and whether it has to see more."""
        if callable(router.sniff):
            verdict = _ask(router, router.sniff, data)
            return verdict is True, verdict is None
        if not _length(router, data):
            return False, _may_grow(router, data)
        return True, any(_may_grow(other, data) for other in self.routers)

    def _longest(self, data: bytes) -> Router[Any, Any]:
        """Return the router with the longest prefix of *data*, the first of those."""
        return max(self.routers, key=lambda router: _length(router, data))


def _length(router: Router[Any, Any], data: bytes) -> int:
    """Return the length of the longest of its prefixes with which *data* begins."""
    prefixes = router.sniff if isinstance(router.sniff, tuple) else ()
    return max((len(prefix) for prefix in prefixes if data.startswith(prefix)), default=0)


def _may_grow(router: Router[Any, Any], data: bytes) -> bool:
    """Return whether *data* may become one of its prefixes."""
    prefixes = router.sniff if isinstance(router.sniff, tuple) else ()
    return any(len(prefix) > len(data) and prefix.startswith(data) for prefix in prefixes)


def _ask(router: Router[Any, Any], sniff: Callable[[bytes], bool | None], data: bytes) -> bool | None:
    if not data:
        return None
    try:
        verdict = sniff(data)
    except BaseException as error:  # as a handler may
        raise SniffFailed(f"sniff= of {router!r} failed: {error!r}") from error
    if verdict is not None and not isinstance(verdict, bool):
        kind = type(verdict).__name__
        raise SniffFailed(f"sniff= of {router!r} returned {kind}, not True, False or None")
    return verdict


class Sniffing(Context, Protocol):
    """What a sniffer needs of the engine."""

    def decided(self, sniffer: Sniffer, router: Router[Any, Any], /) -> Channel:
        """Begin the connection of *sniffer*, which speaks the protocol of *router*."""
        ...

    def undecided(self, sniffer: Sniffer, /) -> None:
        """Remove *sniffer*: the connection has ended before its protocol was known."""
        ...


class Sniffer:
    """A connection whose protocol isn't known yet. Drivers feed it as they feed a `Channel`.

    *channel* and *conn* are those that took its place, None before.
    """

    line = None  # it is nobody's child

    __slots__ = (
        "channel",
        "conn",
        "data",
        "detail",
        "engine",
        "gone",
        "id",
        "info",
        "link",
        "reason",
        "resumed",
        "rules",
        "since",
        "tap",
        "timer",
    )

    def __init__(
        self, engine: Sniffing, link: Link, info: ConnectionInfo, rules: Rules, conn_id: str, *, resumed: bool
    ) -> None:
        self.engine = engine
        self.link = link
        self.info = info
        self.rules = rules
        self.id = conn_id
        self.resumed = resumed
        self.since = engine.runtime.time()
        self.data = b""
        self.channel: Channel | None = None
        self.conn: Connection[Any, Any] | None = None
        self.gone = False
        self.reason: Reason | None = None  # set as soon as it ends
        self.detail = ""
        self.tap: Tap | None = None
        self.timer: Timer | None = None

    def __str__(self) -> str:
        """Name the connection as the log does, with all protocols that it may speak."""
        return f"{self.id}/{self.rules.name}"

    def begin(self) -> None:
        """Wait for the first bytes."""
        if self.tap is not None:
            self.tap.show(events.Opened(self.info, self.resumed))
        self.timer = self.engine.runtime.call_later(self.engine.limits.sniff_time, self._late)

    # --- what watchers see

    def watch(self, watcher: Watcher, *, late: bool = True) -> None:
        """Show *watcher* what happens here; with *late*, first what it has missed."""
        if self.tap is None:
            self.tap = self.engine.new_tap(self.id, self.rules.name)
        self.tap.add(watcher, events.Opened(self.info, late=True) if late else None)

    def unwatch(self, watcher: Watcher) -> None:
        """Show *watcher* nothing more."""
        if self.tap is not None:
            self.tap.remove(watcher)
            if not self.tap.watchers:
                self.tap = None

    def _show_received(self, tap: Tap, data: bytes) -> None:
        runtime = self.engine.runtime
        tap.show(events.Received(data), hold=runtime.ticks)
        tap.release_later(runtime.call_later, HOLD)

    # --- events, from the driver

    def received(self, data: bytes) -> None:
        """Take *data*, as it came from the device; a datagram decides by itself."""
        if self.channel is not None:
            self.channel.received(data)
            return
        size = len(data)
        self.engine.counters["bytes_received"] += size
        if self.reason is not None:
            self.engine.counters["bytes_dropped"] += size
            self.engine.count("bytes_dropped.closing", size)
            return
        if self.tap is not None:
            self._show_received(self.tap, data)
        self.data += data
        self._decide(final=self.info.socktype in ("udp", "dtls"))

    def delivered(self, messages: Sequence[Message]) -> None:
        """Drop *messages*: nobody has subscribed yet."""
        self.engine.counters["deliveries_dropped"] += len(messages)

    def unwritable(self) -> None:
        """Do nothing: nothing is sent yet."""

    def drained(self) -> None:
        """Do nothing."""

    def terminated(self, reason: Reason = "device closed", detail: str = "") -> None:
        """Take the end of the connection; what it received before may decide, and is handled then."""
        if self.gone:
            return
        self.gone = True
        if self.channel is not None:
            self.channel.terminated(reason, detail)
            return
        self._cancel_timer()
        if self.reason is None and self.data:
            channel = self._decide(final=True, reason=reason)
            if channel is not None:
                channel.terminated(reason, detail)
                return
        if self.reason is None:
            self.reason = reason
        self.detail = self.detail or detail
        if self.tap is not None:
            self.tap.show(events.Closed(self.reason, self.detail))
        log.debug("%s = closed: %s %s (protocol unknown)", self, self.reason, self.detail)
        self.engine.undecided(self)

    def end(self, reason: Reason, detail: str = "", *, drain: bool = False) -> None:
        """Close for *reason*; with *drain*, no more is read, so what has come decides and is handled."""
        if self.channel is not None:
            self.channel.end(reason, detail, drain=drain)
            return
        if self.reason is not None:
            return
        channel = self._decide(final=True, reason=reason) if drain and self.data else None
        if channel is not None:
            channel.end(reason, detail, drain=True)
        else:
            self._close(reason, detail)

    # What drivers ask behind an event, which may have been the one that decided.

    @property
    def paused(self) -> bool:
        """Whether reading is paused."""
        return self.channel is not None and self.channel.paused

    @property
    def busy(self) -> bool:
        """Whether there is a reason to wait."""
        return self.channel is None or self.channel.busy

    @property
    def scheduled(self) -> bool:
        """Whether what came waits for one of the next rounds."""
        return self.channel is not None and self.channel.scheduled

    @property
    def turn(self) -> Call | None:
        """The turn that runs."""
        return None if self.channel is None else self.channel.turn

    @property
    def shut(self) -> bool:
        """Whether what comes is dropped."""
        return self.reason is not None if self.channel is None else self.channel.shut

    @property
    def closing(self) -> Reason | None:
        """Why we close the connection; None while we don't."""
        return self.reason if self.channel is None else self.channel.closing

    # --- the decision

    def _decide(self, *, final: bool, reason: Reason = "error") -> Channel | None:
        """Return the channel that goes on, if the protocol can be recognized by now.

        If no protocol fits, close for *reason*.
        """
        limit = self.engine.limits.sniff_bytes
        final = final or len(self.data) >= limit
        try:
            router, waits = self.rules.choose(self.data[:limit], final=final)
        except SniffFailed as error:
            self._failed(error)
            return None
        if router is not None:
            self._cancel_timer()
            return self.engine.decided(self, router)
        if not waits:
            self._refuse(reason)
        return None

    def _late(self) -> None:
        """Decide by what has come in time."""
        self.timer = None
        if self.data:
            self._decide(final=True)
            return
        seconds = self.engine.limits.sniff_time
        hint = "a protocol in which the server speaks first needs its own listener"
        log.warning("%s ! it said nothing within %g s; %s", self, seconds, hint)
        self._close("timeout", f"no byte within {seconds:g} s")

    def _refuse(self, reason: Reason) -> None:
        """Close a connection that no protocol takes."""
        why = f"no protocol takes {len(self.data)} bytes"
        # Nobody knows which of the bytes are secret.
        log.warning("%s ! no protocol takes %d bytes", self, len(self.data))
        log.debug("%s ! no protocol takes: %s", self, shown(self.data))
        if self.tap is not None:
            self.tap.show(events.Failed("sniff", FramingError(f"{why}: {shown(self.data)}")))
        self._close(reason, why)

    def _failed(self, error: SniffFailed) -> None:
        """Close a connection for which a router's `sniff=` failed."""
        cause = error.__cause__ or error
        self.engine.counters["handler_errors"] += 1
        hide = partial(hide_said, said=bytes(self.data))
        log_error(log, "%s ! protocol not recognized: %s", self, error=cause, hide=hide, words=str(error))
        if self.tap is not None:
            self.tap.show(events.Failed("sniff", cause))
        if self.engine.when_failed is not None:
            self.engine.when_failed(cause)
        runtime = self.engine.runtime
        if isinstance(cause, runtime.exits):
            runtime.exit(cause)
        self._close("error", str(error))

    def _close(self, reason: Reason, detail: str) -> None:
        if self.reason is not None:
            return
        self.reason, self.detail = reason, detail
        if self.gone:
            return
        self._cancel_timer()
        self.timer = self.engine.runtime.call_later(self.engine.limits.end_timeout, self.link.abort)
        self.link.close()

    # --- memory

    @property
    def bytes_held(self) -> int:
        """How many bytes it holds."""
        over = self.gone or self.reason is not None or self.channel is not None
        return 0 if over else len(self.data) + self.link.buffered

    def note_memory(self) -> None:
        """Take note that it holds much, and more than before."""
        self.engine.memory.note(self)

    def lose(self, detail: str) -> None:
        """Give the device up."""
        log.warning("%s ! lost: %s", self, detail)
        self._close("lost", detail)
        self.link.abort()

    def _cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
