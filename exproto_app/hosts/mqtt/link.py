"""The network side of MQTT sessions: dialling, waiting between attempts, writing what turns publish."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol, cast

from ...commands import Publish, Subscribe, Unsubscribe
from ...errors import CommandError, DeniedError, UnavailableError
from ...models import Message
from .dialling import Broker, jittered, why
from .reasons import DENIED, NO_MQTT5, TAKEN_OVER, UNSUPPORTED_VERSION
from .session import Blame, Bounds, Login, ProtocolError, Session

__all__ = ["Client", "Link"]

log = logging.getLogger("exproto_app")

FIRST_WAIT: Final = 0.25
LONGEST_WAIT: Final = 30.0
"""Seconds between attempts, the first and the longest; each is cut by up to a half, by chance, and by the
broker's end of an outage."""

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
        "denied_entry",
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
        self.denied_entry = False  # the broker is there, and won't have this client
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
        """See to the keepalive."""
        if self._transport is not None and not self._closing:
            dead = self.session.tick(now)
            if self.dialling and not dead and now - self.session.since >= self.broker.patience:
                dead = f"no CONNACK within {self.broker.patience:g} s"
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
        self.broker.accepted(self)
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
            self.denied_entry = False
            self.broker.waiting[self] = None
            self._wait = self.broker.loop.call_later(jittered(wait), self.hurry)

    def _stop_waiting(self) -> None:
        self.broker.waiting.pop(self, None)
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
