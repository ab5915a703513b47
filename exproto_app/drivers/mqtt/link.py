"""The network side of MQTT sessions: dialling, waiting between attempts, writing what turns publish."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol, cast

import attrs

from ...commands import Publish, Subscribe, Unsubscribe
from ...errors import CommandError, DeniedError, UnavailableError
from ...models import Message
from .reasons import DENIED, NO_MQTT5, TAKEN_OVER, UNSUPPORTED_VERSION
from .session import Blame, Bounds, Login, ProtocolError, Session
from .url import Url

__all__ = ["Broker", "Client", "Link", "why"]

log = logging.getLogger("exproto_app")

DIALS: Final = 200
"""Connections that are being made at a time, so that a storm of devices fits a broker's backlog."""

FIRST_WAIT: Final = 0.25
LONGEST_WAIT: Final = 30.0
"""Seconds between attempts, the first and the longest; each is cut by up to a half, by chance."""

STEADY: Final = 10.0
"""Seconds after which a connection counts as one that works."""

HIGH_WATER: Final = 65_536
"""Bytes that may wait in a socket's buffer; then what is published waits in the session's queue."""

MUTE: Final = 3
"""Times that a broker closes at our CONNECT without a word, until we take it for one of MQTT 3."""


class Client(Protocol):
    """Who has a session with the broker, and is told what becomes of it; times and bytes are the link's."""

    def accepted(self) -> None:
        """Take note that the session is up."""
        ...

    def refused(self, error: CommandError, words: str) -> None:
        """Take note that the broker won't let the client in, now and later; *words* are its reason."""
        ...

    def failed(self, words: str, *, worst: bool) -> None:
        """Take note that the broker is there but ended the session; it is tried again.

        *worst*: the waits between attempts grow no longer.
        """
        ...

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> None:
        """Take note that the broker refuses *command*."""
        ...

    def disconnected(self, code: int, words: str, blame: Blame) -> bool:
        """Take note of the broker's DISCONNECT; return whether to connect again."""
        ...

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:
        """Take a message."""
        ...

    def relieved(self) -> None:
        """Take note that half of the queue is free again."""
        ...

    def finished(self) -> None:
        """Take note that every message is safe, which the session was asked for."""
        ...


class Link(asyncio.Protocol):
    """One session on its way to the broker, again and again until it is closed."""

    __slots__ = (
        "_attempts",
        "_closed_at",
        "_closing",
        "_transport",
        "_wait",
        "broker",
        "client",
        "dialling",
        "session",
        "stopped",
        "trouble",
    )

    def __init__(
        self, broker: Broker, client: Client, login: Login, bounds: Bounds, *, first_id: int = 0
    ) -> None:
        self.broker = broker
        self.client = client
        self.session = Session(login, self, broker.waiter, bounds, first_id=first_id)
        self.stopped = False
        self.trouble = ""
        self._transport: asyncio.Transport | None = None
        self._attempts = 0
        self._closed_at = 0.0
        self.dialling = False
        self._closing = False
        self._wait: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Connect, and stay connected."""
        self.broker.links.add(self)
        self.broker.dial(self)

    def close(self, *, with_will: bool = False) -> None:
        """Send what may be sent, then DISCONNECT, and don't come back."""
        if self.stopped:
            return
        self.stopped = True
        self.broker.links.discard(self)
        self.broker.undial(self)
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        self.session.disconnect(with_will=with_will)
        if self._transport is not None:
            self.flush()
            self._transport.close()
            if self._transport.get_write_buffer_size():  # the broker doesn't read
                self.broker.loop.call_later(self.broker.timeout, self._abort)

    @property
    def connected(self) -> bool:
        """Whether there is a network connection, if only to be closed."""
        return self._transport is not None

    def retry(self, words: str) -> None:
        """Try again after a refusal, with longer and longer waits."""
        self._again(words)

    def tick(self, now: float) -> None:
        """See to the keepalive."""
        if self._transport is not None and not self._closing:
            dead = self.session.tick(now)
            if dead:
                self._drop(dead, away=True)

    def flush(self) -> None:
        """Write what the session has to send."""
        # One that is closing has failed, and `connection_lost` is about to say so.
        if self._transport is not None and not self._transport.is_closing():
            data = self.session.take()
            if data:
                self._transport.write(data)

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.dialling = True
        self._closing = False
        if self.stopped:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.session.connect(self.broker.loop.time())
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self.session.receive(data)
        except ProtocolError as error:
            self.session.broken(error)
            self.flush()
            self._drop(f"the broker breaks the protocol: {error}")

    def pause_writing(self) -> None:
        self.session.blocked()

    def resume_writing(self) -> None:
        self.session.unblocked()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        was_online = self.session.online
        self.session.lost()
        if self.stopped or self._closing:
            self._answered()
            return
        if was_online and self._usurped():
            words = "the broker closed it twice without a word, for another client"
            self.disconnected(TAKEN_OVER, words, Blame.NOBODY)
            return
        if self.dialling and not was_online and exc is None:
            self.broker.mute += 1
        words = "it closed the connection" if exc is None else why(exc)
        if self.broker.mute >= MUTE:
            words = f"it closes the connection at our CONNECT; perhaps {NO_MQTT5}"
        self._lost(words)

    # --- from the session

    def wants_write(self) -> None:
        self.broker.flush_later(self)

    def accepted(self) -> None:
        self.broker.mute = 0
        self._answered()
        self.client.accepted()

    def refused(self, code: int, words: str) -> None:
        if code in DENIED:
            self._answered()
            self._closing = True
            self._abort()
            self.session.lost()
            error: CommandError = UnavailableError(NO_MQTT5)
            if code != UNSUPPORTED_VERSION:
                error = DeniedError(f"the broker refused {self.session.login.clientid!r}: {words}")
            self.client.refused(error, words)
        else:
            self._drop(f"the broker refused: {words}")

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> None:
        self.client.denied(command, words)

    def disconnected(self, code: int, words: str, blame: Blame) -> None:
        if blame is Blame.SOUGHT:
            self._attempts = 0  # one attempt for each packet in flight, then the culprit is known
        again = self.client.disconnected(code, words, blame)
        if again and not self.stopped:
            self._drop(f"the broker ended the session: {words}")
        else:
            self._closing = True
            self._abort()

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:
        self.client.message(message, ids, taken)

    def relieved(self) -> None:
        self.client.relieved()

    def finished(self) -> None:
        self.client.finished()

    # --- inside

    def _usurped(self) -> bool:
        """Tell whether the broker closed this session twice in a row, soon, and not the gateway's own.

        Mosquitto doesn't say that another client has taken the clientid (measured, 2.0.11): it only closes.
        The one that was there first finds out first, since it is the first to have come back.
        """
        before, self._closed_at = self._closed_at, self.broker.loop.time()
        since, own = self.session.since, self.broker.own
        return (
            0 < before < since < before + STEADY
            and self._closed_at - since < STEADY
            and own is not None
            and own.session.online
            and own.session.since < before
        )

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _drop(self, words: str, *, away: bool = False) -> None:
        """Give the network connection up, and try again; *away*: it is no fault of this session."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._lost(words, away=away)

    def _lost(self, words: str, *, away: bool = False) -> None:
        self.session.lost()
        now = self.broker.loop.time()
        if now - self.session.since > STEADY and not self.dialling:
            self._attempts = 0
        silent = self.dialling and away
        self._answered(words if silent else None)
        if self.stopped:
            return
        if silent:
            self.broker.dial(self)
        else:
            self._again(words)

    def _answered(self, trouble: str | None = None) -> None:
        if self.dialling:
            self.dialling = False
            self.broker.answered(trouble)

    def _again(self, words: str) -> None:
        """Wait, longer each time, and dial."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 16)
        self.client.failed(words, worst=wait >= LONGEST_WAIT)
        self.trouble = words
        if not self.stopped:
            self._wait = self.broker.loop.call_later(_jittered(wait), self._dial)

    def _dial(self) -> None:
        self._wait = None
        self.broker.dial(self)


@attrs.define(eq=False)
class Broker:
    """The broker as all links see it: who dials, who has something to write, who is to be looked after.

    *own* is the link of the gateway's own client.
    """

    url: Url
    tls: ssl.SSLContext | None
    timeout: float
    loop: asyncio.AbstractEventLoop
    links: set[Link] = attrs.field(factory=set)
    mute: int = 0
    trouble: str = ""
    _away_since: float | None = None
    _failures: int = 0
    _hold: asyncio.TimerHandle | None = None
    _sweeper: asyncio.TimerHandle | None = None
    _queue: dict[Link, None] = attrs.field(factory=dict)
    _dials: int = 0
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set)
    _unwritten: list[Link] = attrs.field(factory=list)
    ticks: list[Callable[[float], object]] = attrs.field(factory=list)
    when_away: Callable[[str], object] | None = None
    own: Link | None = None
    waiter: Callable[[], asyncio.Future[None]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.waiter = self.loop.create_future

    def start(self) -> None:
        """Begin to look after the links."""
        self._sweep()

    async def stop(self) -> None:
        """Stop dialling."""
        for timer in (self._sweeper, self._hold):
            if timer is not None:
                timer.cancel()
        self._queue.clear()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- writing

    def flush_later(self, link: Link) -> None:
        """Write what *link* has after what runs now: what one turn publishes goes out in one write."""
        if not self._unwritten:
            self.loop.call_soon(self._flush)
        self._unwritten.append(link)

    def _flush(self) -> None:
        links, self._unwritten = self._unwritten, []
        for link in links:
            link.flush()

    # --- dialling

    def dial(self, link: Link) -> None:
        """Connect *link* when its turn comes."""
        self._queue[link] = None
        self._dial_next()

    def undial(self, link: Link) -> None:
        """Forget that *link* wanted to be connected."""
        self._queue.pop(link, None)

    def waits(self, link: Link) -> bool:
        """Tell whether *link* only waits for its turn: the broker is there."""
        return link in self._queue and not self.trouble

    def answered(self, trouble: str | None) -> None:
        """Take note that a CONNECT was answered, or what kept it from that: one more may be sent."""
        self._dials -= 1
        if trouble is None:
            self._there()
        else:
            self._away(trouble)
        self._dial_next()

    def _there(self) -> None:
        if self._away_since is not None:
            log.info("mqtt = %s is back after %.1f s", self.url, self.loop.time() - self._away_since)
        self.trouble, self._failures, self._away_since = "", 0, None
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None

    def _away(self, trouble: str) -> None:
        """Wait, longer each time; tell of an outage once, and again where somebody has to mend something."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**self._failures)
        if self._away_since is None:
            self._away_since = self.loop.time()
        if self.trouble != trouble or wait >= LONGEST_WAIT:
            log.warning("mqtt ! %s can't be reached: %s; trying again", self.url, trouble)
        self.trouble = trouble
        if self.when_away is not None:
            self.when_away(trouble)
        if self._hold is None:
            self._failures = min(self._failures + 1, 16)
            self._hold = self.loop.call_later(_jittered(wait), self._go_on)

    def _go_on(self) -> None:
        self._hold = None
        self._dial_next()

    def _dial_next(self) -> None:
        # While the broker is away one attempt at a time tells as much as many.
        while self._queue and self._hold is None and self._dials < (1 if self.trouble else DIALS):
            link = next(iter(self._queue))
            del self._queue[link]
            self._dials += 1
            task = self.loop.create_task(self._connect(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, link: Link) -> None:
        url = self.url
        try:
            await asyncio.wait_for(
                self.loop.create_connection(
                    lambda: link,
                    url.host,
                    url.port,
                    ssl=self.tls,
                    server_hostname=url.host if self.tls else None,
                ),
                self.timeout,
            )
        except (OSError, asyncio.TimeoutError) as error:
            words = why(error) if str(error) else f"no answer within {self.timeout:g} s"
            if link.dialling:  # its connection is there after all, and tells of its end itself
                return
            if not link.stopped:
                self._queue[link] = None
            self.answered(words)
        except asyncio.CancelledError:
            self._dials -= 1
            raise

    def _sweep(self) -> None:
        now = self.loop.time()
        self._sweeper = self.loop.call_later(min(1.0, self.timeout / 4), self._sweep)
        for link in tuple(self.links):
            link.tick(now)
        for tick in self.ticks:
            tick(now)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def why(error: BaseException) -> str:
    """Return what went wrong on the way to the broker, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate can't be trusted: {error.verify_message or error}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
