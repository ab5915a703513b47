"""Reaching the broker: who dials when, how often while it is away, and who has something to write."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from ...asyncio_host.dead_peers import watch_peer
from ...ops.backoff import Pace
from .cluster import Cluster
from .url import Url
from .versions import LOST, Versions, Wanted

if TYPE_CHECKING:
    from .broker_link import BrokerLink

__all__ = ["BrokerConnections", "jittered", "why"]

log = logging.getLogger("exproto_app")

DIALS: Final = 200
"""Connections that are being made at a time, so that a storm of devices fits a broker's backlog."""

BURST: Final = 0.05
"""Seconds of the allowed rate of connections that may come at once."""

FIRST_WAIT: Final = 0.25
PROBE_WAIT: Final = 1.5
"""Seconds between attempts while the broker is away, the first and the longest; one connection tries, so it
may do so often. Each wait is cut by up to a half, by chance."""

PROBE_PATIENCE: Final = 2.0
"""Seconds for which one attempt is waited for then, if the broker has been faster than that before."""

REMINDER: Final = 30.0
"""Seconds after which the log tells of an outage again."""


@attrs.define(eq=False)
class BrokerConnections:
    """The broker as all links see it: who dials, who has something to write, who is to be looked after.

    *gateway_client* is the link of the gateway's own client; those *waiting* pause between two attempts of
    their own. *receive* hands what the broker sent to a function; what devices are sent because of it leaves
    together.

    It is away while nobody gets through to it (*trouble*, last *away_at*), or gets in: then one link tries
    at a time, and often. As soon as one gets in the others follow, at first one, then twice as many with each
    round of answers, up to `DIALS` at a time, and *rate* a second (0: as fast as it answers).
    """

    url: Url
    tls: ssl.SSLContext | None
    timeout: float
    loop: asyncio.AbstractEventLoop
    rate: float = 0.0
    version: Wanted = "auto"
    cluster: Cluster = attrs.field(init=False)
    links: set[BrokerLink] = attrs.field(factory=set)
    trouble: str = ""
    away_at: float = 0.0
    _away_since: float | None = None
    waiting: dict[BrokerLink, None] = attrs.field(factory=dict)
    _out: bool = True  # no client is in
    _probe_at: float = 0.0
    _slowest: float | None = None  # of the answers to CONNECT, in seconds
    _window: int = DIALS
    _said_at: float = 0.0
    _failures: int = 0
    _hold: asyncio.TimerHandle | None = None
    _sweeper: asyncio.TimerHandle | None = None
    _queue: dict[BrokerLink, None] = attrs.field(factory=dict)
    _dials: int = 0
    _pace: Pace | None = attrs.field(init=False)
    _pacing: asyncio.TimerHandle | None = None
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set)
    unwritten: list[BrokerLink] = attrs.field(factory=list)
    ticks: list[Callable[[float], object]] = attrs.field(factory=list)
    when_away: Callable[[str], object] | None = None
    gateway_client: BrokerLink | None = None
    receive: Callable[[Callable[[bytes], None], bytes], object] = attrs.field(
        default=lambda take, data: take(data)
    )
    waiter: Callable[[], asyncio.Future[None]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.waiter = self.loop.create_future
        self.cluster = Cluster(self.url, self.version)
        self._pace = Pace(self.rate, BURST) if self.rate else None

    def use_tls(self, context: ssl.SSLContext | None) -> None:
        """Have connections from now on be made with *context*."""
        self.tls = context

    def start(self) -> None:
        """Begin to look after the links."""
        self._sweep()

    async def stop(self) -> None:
        """Stop dialling."""
        for timer in (self._sweeper, self._hold, self._pacing):
            if timer is not None:
                timer.cancel()
        self._queue.clear()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- writing

    def flush_soon(self) -> None:
        """Write what the links that are *unwritten* have after what runs now.

        So what one turn publishes goes out in one write.
        """
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        links, self.unwritten = self.unwritten, []
        for link in links:
            link.flush()

    # --- dialling

    def dial(self, link: BrokerLink) -> None:
        """Connect *link* when its turn comes."""
        self._queue[link] = None
        self._dial_next()

    def undial(self, link: BrokerLink) -> None:
        """Forget that *link* wanted to be connected."""
        self._queue.pop(link, None)

    def waits(self, link: BrokerLink) -> bool:
        """Return whether *link* only waits for its turn: the broker is there."""
        return link in self._queue and not self.trouble

    def answered(self, trouble: str | None, at: int) -> None:
        """Take note that the node *at* answered a CONNECT, or why not: one more may be sent."""
        self._dials -= 1
        if trouble is None:
            self._window = min(DIALS, self._window + 1)
            self._there()
        elif not self.moved(at, trouble):
            self._away(trouble)
        self._dial_next()

    def moved(self, at: int, trouble: str) -> bool:
        """Return whether to try another node at once, because of *trouble* with the one *at*."""
        first = at == self.cluster.at
        if any(link.session.online for link in self.links) or not self.cluster.failed(at):
            return False
        self._window = 1
        if first and self._away_since is None:
            where = self.cluster.here
            log.warning("mqtt ! %s can't be used: %s; trying %s", self.url.each()[at], trouble, where)
        return True

    @property
    def versions(self) -> Versions:
        """What the node speaks that is used."""
        return self.cluster.versions

    @property
    def patience(self) -> float:
        """How long an attempt is waited for."""
        if not self.trouble or self._slowest is None:
            return self.timeout
        return min(self.timeout, max(PROBE_PATIENCE, 3 * self._slowest))

    def accepted(self, link: BrokerLink) -> None:
        """Take note that a client got in; where it is the first after an outage, the others follow."""
        took = self.loop.time() - link.session.since
        self.cluster.works()
        self.cluster.versions_of(link.at).accepted()
        self._tell_version(link)
        self._slowest = took if self._slowest is None else max(took, 0.9 * self._slowest)
        if not self._out:
            return
        self._out = False
        self._window = 1
        for other in tuple(self.waiting):
            other.hurry(afresh=True)

    def _tell_version(self, link: BrokerLink) -> None:
        """Log once that a broker isn't spoken to with MQTT 5, and that it is again."""
        dialect, versions = link.session.dialect, self.cluster.versions_of(link.at)
        if dialect.is_5 != versions.told:
            return
        versions.told = not dialect.is_5
        if dialect.is_5:
            log.info("mqtt = %s is spoken to with MQTT 5 again", self.url.each()[link.at])
        else:
            where = self.url.each()[link.at]
            log.warning("mqtt ! %s is spoken to with %s, not MQTT 5: %s", where, dialect.name, LOST)

    def _there(self) -> None:
        if self._away_since is not None:
            log.info("mqtt = %s is back after %.1f s", self.url, self.loop.time() - self._away_since)
        self.trouble, self._failures, self._away_since = "", 0, None
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None

    def _away(self, trouble: str) -> None:
        """Wait, longer each time; tell of an outage once, and again where somebody has to mend something."""
        wait = min(PROBE_WAIT, FIRST_WAIT * 2**self._failures)
        now = self.away_at = self.loop.time()
        self._window = 1
        if self._away_since is None:
            self._away_since = now
        if self.trouble != trouble or now - self._said_at >= REMINDER:
            self._said_at = now
            log.warning("mqtt ! %s can't be reached: %s; trying again", self.url, trouble)
        self.trouble = trouble
        if self.when_away is not None:
            self.when_away(trouble)
        if self._hold is None:
            self._failures = min(self._failures + 1, 16)
            self._hold = self.loop.call_later(jittered(wait), self._go_on)

    def _go_on(self) -> None:
        self._hold = None
        self._dial_next()

    def _dial_next(self) -> None:
        # While the broker is away one attempt at a time tells as much as many.
        while self._queue and self._hold is None and self._dials < self._window and self._in_pace():
            link = next(iter(self._queue))
            del self._queue[link]
            self._dials += 1
            task = self.loop.create_task(self._connect(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _in_pace(self) -> bool:
        """Return whether another connection may be made now; if not, see to it that it is made in time."""
        wait = 0.0 if self._pace is None else self._pace.take(self.loop.time())
        if wait and self._pacing is None:
            self._pacing = self.loop.call_later(wait, self._paced)
        return not wait

    def _paced(self) -> None:
        self._pacing = None
        self._dial_next()

    async def _connect(self, link: BrokerLink) -> None:
        if self.versions.doubtful and not any(other.session.online for other in self.links):
            self.versions.doubt()
        url, patience = self.cluster.here, self.patience
        link.at = self.cluster.at
        try:
            transport, _ = await asyncio.wait_for(
                self.loop.create_connection(
                    lambda: link,
                    url.host,
                    url.port,
                    ssl=self.tls,
                    server_hostname=url.host if self.tls else None,
                ),
                patience,
            )
            watch_peer(transport, self.timeout, self.timeout)
        except (OSError, asyncio.TimeoutError) as error:
            words = why(error) if str(error) else f"no answer within {patience:g} s"
            if link.dialling:  # its connection is there after all, and tells of its end itself
                return
            if not link.stopped:
                self._queue[link] = None
            self.answered(words, link.at)
        except asyncio.CancelledError:
            self._dials -= 1
            raise

    def _sweep(self) -> None:
        now = self.loop.time()
        self._sweeper = self.loop.call_later(min(1.0, self.timeout / 4), self._sweep)
        for link in tuple(self.links):
            if link.look_at <= now:
                link.tick(now)
        self._probe(now)
        for tick in self.ticks:
            tick(now)

    def _probe(self, now: float) -> None:
        """While no client is in, have the one that has waited longest try, often."""
        self._out = not any(link.session.online for link in self.links)
        if not self._out or self._dials or self._queue or now < self._probe_at:
            return
        probe = next((link for link in self.waiting if not link.denied_entry), None)
        if probe is not None:
            self._probe_at = now + jittered(PROBE_WAIT)
            probe.hurry()


def jittered(seconds: float) -> float:
    """Return *seconds*, cut by up to a half."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def why(error: BaseException) -> str:
    """Return what went wrong on the way to the broker, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate can't be trusted: {error.verify_message or error}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
