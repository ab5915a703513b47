"""The network side of MQTT sessions: dialling, waiting between attempts, writing what turns publish."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol, cast

from ...asyncio_host.reading import limit_reads
from ...commands import Publish, Subscribe, Unsubscribe
from ...errors import CommandError, DeniedError, UnavailableError
from ...models import Message
from .dialling import BrokerConnections, jittered, why
from .reasons import DENIED, TAKEN_OVER, UNSUPPORTED_VERSION
from .session import Blame, Bounds, Login, ProtocolError, Session
from .versions import Versions

__all__ = ["BrokerLink", "LinkUser"]

log = logging.getLogger("exproto_app")

FIRST_WAIT: Final = 0.25
LONGEST_WAIT: Final = 30.0
"""Seconds between attempts, the first and the longest; each is cut by up to a half, by chance, and by the
broker's end of an outage."""

STEADY: Final = 10.0
"""Seconds after which a connection counts as one that works."""

HIGH_WATER: Final = 65_536
"""Bytes that may wait in a socket's buffer; then what is published waits in the session's queue."""

ONE: Final = 5
"""Bytes of one acknowledgement at most; more may be several."""


class LinkUser(Protocol):
    """Who has a session with the broker, and is told what becomes of it; times and bytes are the link's."""

    def accepted(self) -> None:
        """Take note that the session is up."""
        ...

    def refused(self, error: CommandError, words: str) -> None:
        """Take note that the broker won't let the client in, now and later; *words* are its reason."""
        ...

    def offline(self) -> None:
        """Take note that the network connection is gone, if there was one, and the session with it."""
        ...

    def failed(self, words: str, *, worst: bool) -> None:
        """Take note that the broker is there but ended the session; it is tried again.

        *worst*: the waits between attempts grow no longer.
        """
        ...

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> bool:
        """Log that the broker refuses *command*; return whether that names the device."""
        ...

    def disconnected(self, code: int, words: str, blame: Blame) -> bool:
        """Take note of the broker's DISCONNECT; return whether to connect again."""
        ...

    def message(self, message: Message, ids: list[int], acknowledge: Callable[[], object] | None) -> None:
        """Take a message."""
        ...

    def relieved(self) -> None:
        """Take note that half of the queue is free again."""
        ...

    def finished(self) -> None:
        """Take note that every message is safe, which the session was asked for."""
        ...


class BrokerLink(asyncio.Protocol):
    """One session on its way to the broker, again and again until it is closed."""

    __slots__ = (
        "_attempts",
        "_closed_at",
        "_closing",
        "_transport",
        "_wait",
        "at",
        "broker",
        "client",
        "denied_entry",
        "dialling",
        "look_at",
        "session",
        "stopped",
        "trouble",
    )

    def __init__(
        self, broker: BrokerConnections, client: LinkUser, login: Login, bounds: Bounds, *, first_id: int = 0
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
        self.at = 0  # which node of the broker
        self.denied_entry = False  # the broker is there, and won't have this client
        self._closing = False
        self._wait: asyncio.TimerHandle | None = None
        self.look_at = 0.0

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
        self._stop_waiting()
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
        self.denied_entry = True

    def hurry(self, *, afresh: bool = False) -> None:
        """Dial now instead of waiting longer; *afresh*: and begin with short waits if that fails."""
        if self._wait is not None:
            self._stop_waiting()
            self.broker.dial(self)
        if afresh:
            self._attempts = 0

    def tick(self, now: float) -> None:
        """See to the keepalive; *look_at* says from when on to do so again."""
        if self._transport is not None and not self._closing:
            dead = self.session.tick(now)
            self.look_at = now + self.session.rest
            if self.dialling and not dead and now - self.session.since >= self.broker.patience:
                dead = f"no CONNACK within {self.broker.patience:g} s"
            if dead:
                self._drop(dead, away=True)

    def flush(self) -> None:
        """Write what the session has to send."""
        # One that is closing has failed, and `connection_lost` is about to say so.
        transport = self._transport
        if transport is not None and not transport.is_closing():
            data = self.session.take()
            if data:
                transport.write(data)

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.look_at = 0.0
        self.dialling = True
        self._closing = False
        if self.stopped:
            self._transport.abort()
            return
        limit_reads(transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.session.connect(self.broker.loop.time(), self._versions.dialect)
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            if len(data) <= ONE:
                self.session.receive(data)
            else:
                self.broker.receive(self.session.receive, data)
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
        ends = self.stopped or self._closing
        before = self._closed_before() if was_online and not ends else 0.0
        if before > self.broker.away_at and self.session.silenced():
            return
        self._session_lost()
        if ends:
            self._answered()
            return
        if before and self._usurped(before):
            words = "the broker closed it twice without a word, for another client"
            self.disconnected(TAKEN_OVER, words, Blame.NOBODY)
            return
        words, anew = "it closed the connection" if exc is None else why(exc), False
        # Some close before they have read everything, which resets the connection.
        if self.dialling and not was_online and (exc is None or isinstance(exc, ConnectionResetError)):
            anew = self._versions.closed(self.session.dialect)
            if hint := self._versions.hint:
                words = f"it closes the connection at our CONNECT; {hint}"
                anew = anew or self.broker.moved(self.at, words)
        elif before > self.broker.away_at:
            words = f"{words} again, soon after it let us in; {self._rival()}"
        self._lost(words, anew=anew)

    # --- from the session

    def wants_write(self) -> None:
        broker = self.broker
        if not broker.unwritten:
            broker.flush_soon()
        broker.unwritten.append(self)

    def accepted(self) -> None:
        self.broker.accepted(self)
        self._answered()
        self.client.accepted()

    def refused(self, code: int, words: str) -> None:
        if self._versions.refused(self.session.dialect, code):
            self._drop("", anew=True)
        elif code in DENIED:
            self._answered()
            self._closing = True
            self._abort()
            self._session_lost()
            error: CommandError = UnavailableError(words)
            if code != UNSUPPORTED_VERSION:
                error = DeniedError(f"the broker refused {self.session.login.clientid!r}: {words}")
            self.client.refused(error, words)
        else:
            words = f"the broker refused: {words}"
            self._drop(words, anew=self.broker.moved(self.at, words))

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> bool:
        return self.client.denied(command, words)

    def disconnected(self, code: int, words: str, blame: Blame) -> None:
        if blame is Blame.SOUGHT:
            self._attempts = 0  # one attempt for each packet in flight, then the culprit is known
        again = self.client.disconnected(code, words, blame)
        if again and not self.stopped:
            self._drop(f"the broker ended the session: {words}")
        else:
            self._closing = True
            self._abort()

    def message(self, message: Message, ids: list[int], acknowledge: Callable[[], object] | None) -> None:
        self.client.message(message, ids, acknowledge)

    def relieved(self) -> None:
        self.client.relieved()

    def finished(self) -> None:
        self.client.finished()

    # --- inside

    def _usurped(self, before: float) -> bool:
        """Return whether the broker, which closed this session *before* too, leaves the gateway's own alone.

        Mosquitto doesn't say that another client has taken the clientid (measured, 2.0.11): it only closes.
        The one that was there first finds out first, since it is the first to have come back.
        """
        own = self.broker.gateway_client
        return own is not None and own.session.online and own.session.since < before

    @property
    def _versions(self) -> Versions:
        return self.broker.cluster.versions_of(self.at)

    def _rival(self) -> str:
        clientid = self.session.login.clientid
        if self is not self.broker.gateway_client:
            return f"perhaps for another client called {clientid!r}"
        return f"a second gateway may use the clientid {clientid!r}: give each its own --mqtt-client-id"

    def _closed_before(self) -> float:
        """Return when the broker closed this session before, if it does so twice in a row, soon; else 0."""
        before, self._closed_at = self._closed_at, self.broker.loop.time()
        since = self.session.since
        soon = before < since < before + STEADY and self._closed_at - since < STEADY
        return before if soon else 0.0

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _drop(self, words: str, *, away: bool = False, anew: bool = False) -> None:
        """Give the network connection up, and try again; *away*: it is no fault of this session.

        *anew*: the next time something is done otherwise, so there is nothing to wait for.
        """
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._lost(words, away=away, anew=anew)

    def _session_lost(self) -> None:
        self.session.lost()
        self.client.offline()

    def _lost(self, words: str, *, away: bool = False, anew: bool = False) -> None:
        self._session_lost()
        now = self.broker.loop.time()
        if now - self.session.since > STEADY and not self.dialling:
            self._attempts = 0
        silent = self.dialling and away
        self._answered(words if silent else None)
        if self.stopped:
            return
        if silent or anew:
            self.broker.dial(self)
        else:
            self._again(words)

    def _answered(self, trouble: str | None = None) -> None:
        if self.dialling:
            self.dialling = False
            self.broker.answered(trouble, self.at)

    def _again(self, words: str) -> None:
        """Wait, longer each time, and dial."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 16)
        self.client.failed(words, worst=wait >= LONGEST_WAIT)
        self.trouble = words
        if not self.stopped:
            self.denied_entry = False
            self.broker.waiting[self] = None
            self._wait = self.broker.loop.call_later(jittered(wait), self.hurry)

    def _stop_waiting(self) -> None:
        self.broker.waiting.pop(self, None)
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
