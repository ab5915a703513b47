"""Devices on WebSocket (RFC 6455), as those that come through HTTP proxies: each message is a read.

A `Socket` is a layer between the link of a TCP or TLS connection, which feeds it as a channel, and the
device's channel, whose link it is. Until the handshake is done the connection counts as half-open: it is
bounded in time and bytes, and has no channel yet. Compression isn't agreed to, so a message is never larger
than what comes over the line.

What comes is worked off in slices (`Unread`), and waits while the device doesn't read: pings cost as much as
messages do, and are answered.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ...core import Channel, Intake
from ...core.memory import LARGE
from ...errors import ExprotoError
from ...models import Address, ConnectionInfo, Reason
from . import acceptor
from .unread import Unread
from .websocket_line import WebSocketLine

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .tcp import TcpLink

__all__ = ["Socket", "serve"]

log = logging.getLogger("exproto_app")

REQUEST: Final = 16_384
"""Bytes of the request that opens a connection."""

BATCH: Final = 16
"""Parts of messages between two looks at the clock."""

GOODBYE: Final = 1.0
"""Seconds that the device has to answer that the connection is closed."""

PROTOCOL_ERROR: Final = 1002
TOO_BIG: Final = 1009
NORMAL: Final = 1000


async def serve(endpoint: Endpoint, sock: socket.socket | None) -> acceptor.Acceptor:
    """Serve *endpoint* on *sock*. Raises `ExprotoError` without wsproto."""
    try:
        import wsproto  # noqa: PLC0415 - an extra
    except ImportError:
        raise ExprotoError(f"{endpoint.listen} needs: pip install 'exproto-app[ws]'") from None
    endpoint.layer = partial(Socket, wsproto, endpoint)
    return await acceptor.serve(endpoint, sock)


class Socket:
    """One connection: the channel of *lower*, and the link of the device's own channel."""

    __slots__ = (
        "_closing",
        "_code",
        "_deaf",
        "_late",
        "_library",
        "_line",
        "_message",
        "_pinged",
        "_pong",
        "_protocol",
        "_request",
        "_unread",
        "channel",
        "endpoint",
        "info",
        "lower",
        "peer",
        "since",
    )

    answers = False
    write = None
    broker_side = None
    confirm = None

    def __init__(self, library: Any, endpoint: Endpoint, lower: TcpLink, info: ConnectionInfo) -> None:
        self._library = library
        self.endpoint = endpoint
        self.lower = lower
        self.info = info
        self.peer: Address = info.peername
        self.channel: Intake | None = None
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        self._line: WebSocketLine = endpoint.listen.settings
        self._protocol: Any = library.WSConnection(library.ConnectionType.SERVER)
        self._request = 0  # bytes of it so far
        self._message = bytearray()
        self._unread = Unread(endpoint.engine, self, lower)
        self._pong: Any = None
        self._closing = False
        self._deaf = False  # what it says has ended
        self._code = NORMAL
        self._pinged = False
        seconds = endpoint.gateway.options.handshake_timeout
        self._late: asyncio.TimerHandle | None = loop.call_later(
            seconds, self._refuse, f"it wasn't complete within {seconds:g} s"
        )
        endpoint.pending[self] = None
        lower.channel = self

    # --- half-open, for the gateway

    @property
    def host(self) -> str:
        """The address that it comes from."""
        return self.peer.host

    def vacate(self, why: str = "its place was needed") -> bool:
        """Give the connection's place to somebody else; return whether it still had one."""
        if self in self.endpoint.pending:
            self._forget()
            self.endpoint.unshaken(self.peer, why, "WebSocket")
        return self.lower.vacate()

    def give_up(self) -> None:
        """Close it, because the gateway stops."""
        self._forget()
        self.lower.abort()

    def _forget(self) -> None:
        """Take note that the handshake is over."""
        self.endpoint.pending.pop(self, None)
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, why: str) -> None:
        if self in self.endpoint.pending:
            self._forget()
            self.endpoint.unshaken(self.peer, why, "WebSocket")
            self.lower.close()

    # --- from the link below, which takes this for its channel

    @property
    def closing(self) -> Reason | None:
        return None if self.channel is None else self.channel.closing

    @property
    def gone(self) -> bool:
        return self.channel is not None and self.channel.gone

    @property
    def busy(self) -> bool:
        return self.channel is not None and self.channel.busy

    @property
    def paused(self) -> bool:
        return self.channel is not None and self.channel.paused

    @property
    def shut(self) -> bool:
        return self.channel is not None and self.channel.shut

    @property
    def scheduled(self) -> bool:
        return self._unread.scheduled

    @property
    def turn(self) -> object | None:
        return None if self.channel is None else self.channel.turn

    def received(self, data: bytes) -> None:
        """Take *data*; a lot of it in pieces, so that others have their turn."""
        self._unread.put(data)

    def delivered(self, *_: Any) -> None:
        """Do nothing: messages go to the device's own channel."""

    def note_memory(self) -> None:
        if self.channel is not None:
            self.channel.note_memory()

    def unwritable(self) -> None:
        self._unread.block()
        if self.channel is not None:
            self.channel.unwritable()

    def drained(self) -> None:
        if self.channel is not None:
            self.channel.drained()
        self._unread.unblock()

    def end(self, reason: Reason, detail: str = "", *, drain: bool = False) -> None:
        """End the connection, behind what has come."""
        self._deaf = True
        self._unread.then(partial(self._end_now, reason, detail, drain=drain), over=False)

    def _end_now(self, reason: Reason, detail: str, *, drain: bool) -> None:
        if self._closing:
            self.lower.close()
        elif self.channel is not None:
            self.channel.end(reason, detail, drain=drain)
        elif self in self.endpoint.pending:
            self._forget()
            if not self._request:
                self.endpoint.probed(self.peer)
            else:
                self.endpoint.unshaken(self.peer, "the other side hung up", "WebSocket")
            self.lower.close()

    def terminated(self, reason: Reason = "device closed", detail: str = "") -> None:
        """Take the end of the line; the channel learns of it behind what has come."""
        if self.channel is None:
            self._unread.clear()
        self._unread.then(partial(self._ended, reason, detail), over=True)

    def _ended(self, reason: Reason, detail: str) -> None:
        if self in self.endpoint.pending:
            self._forget()
            if self._request:
                self.endpoint.unshaken(self.peer, detail or "the other side hung up", "WebSocket")
            else:
                self.endpoint.probed(self.peer)
        if self._late is not None:
            self._late.cancel()
        channel, self.channel = self.channel, None
        self._unread.clear()
        self._message.clear()
        self._protocol = None  # which may hold a lot, too
        if channel is not None:
            channel.terminated(reason, detail)

    # --- what comes

    @property
    def newcomer(self) -> bool:
        """Whether the device has said nothing useful yet."""
        return not isinstance(self.channel, Channel) or self.channel.newcomer

    def worked(self) -> None:
        """Answer the last ping: that does for those before it (5.5.3)."""
        pong, self._pong = self._pong, None
        if pong is not None and not self._unread.over:
            self._reply(pong)

    def take(self, data: bytes, until: float) -> bool:
        """Take the next piece of what comes; return whether there is more to do than *until* allows."""
        if not data:
            return self._events(until)
        if self in self.endpoint.pending:
            data = self._head(data, until)
            if self.channel is None:
                return False
        ended = self._protocol.state is self._library.connection.ConnectionState.CLOSED
        if data and not ended and self._code == NORMAL and (self.channel is not None or self._closing):
            return self._feed(data, until)
        return False

    def _feed(self, data: bytes, until: float) -> bool:
        try:
            self._protocol.receive_data(data)
        except self._library.utilities.RemoteProtocolError as error:
            self._wrong(str(error), error.event_hint)
        except (ValueError, UnicodeError) as error:  # of headers that are none
            self._wrong(str(error), None)
        else:
            return self._events(until)
        return False

    def _events(self, until: float) -> bool:
        """Take what wsproto makes of what it was given; return whether *until* came before the end of it."""
        try:
            for number, event in enumerate(self._protocol.events(), 1):
                self._event(event)
                if number % BATCH == 0 and self.endpoint.engine.runtime.time() >= until:
                    return True
        except self._library.utilities.RemoteProtocolError as error:
            self._wrong(str(error), error.event_hint)
        return False

    def _head(self, data: bytes, until: float) -> bytes:
        """Take a piece of the request; return what is behind it, for wsproto leaves that out."""
        self._request += len(data)
        head = self._message
        head += data
        end = head.find(b"\r\n\r\n", max(0, len(head) - len(data) - 3)) + 4
        if end < 4:
            if self._request > REQUEST:
                self._refuse(f"its request has more than {REQUEST} bytes")
            return b""
        request, rest = bytes(head[:end]), bytes(head[end:])
        head.clear()
        self._feed(request, until)
        return rest

    def _wrong(self, why: str, answer: Any) -> None:
        """End a connection that breaks the rules."""
        if self in self.endpoint.pending:
            self._reply(answer or self._library.events.RejectConnection(status_code=400))
            self._refuse(why[:1].lower() + why[1:])
        else:
            self._fail(PROTOCOL_ERROR, why)

    def _fail(self, code: int, why: str) -> None:
        self.endpoint.engine.count("ws_errors")
        self._code = code
        self._message.clear()
        if self.channel is not None:
            self.channel.end("error", f"WebSocket: {why}")

    def _event(self, event: Any) -> None:
        events = self._library.events
        if isinstance(event, events.Request):
            self._open(event)
        elif isinstance(event, events.Message):
            self._part(event)
        elif isinstance(event, events.Ping):
            self._pong = event.response()
        elif isinstance(event, events.Pong):
            self._pinged = False
        elif isinstance(event, events.CloseConnection):
            self._hung_up(event)

    def _open(self, request: Any) -> None:
        """Accept or refuse the connection that *request* asks for."""
        events, line = self._library.events, self._line
        path = urlsplit(request.target).path
        if line.path not in ("", path):
            self._reply(events.RejectConnection(status_code=404))
            self._refuse(f"its path is {path[:64]!r}, not {line.path!r}")
            return
        offered = [name for name in line.subprotocols if name in request.subprotocols]
        if line.subprotocols and not offered:
            self._reply(events.RejectConnection(status_code=400))
            self._refuse(f"it doesn't speak {' or '.join(line.subprotocols)}")
            return
        if self.endpoint.gateway.stopping:
            self.give_up()
            return
        self._reply(events.AcceptConnection(subprotocol=offered[0] if offered else None))
        self._protocol = self._protocol.connection  # without what only the request needed
        self._forget()
        if line.ping:
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(line.ping, self._ping)
        self.endpoint.engine.connected(self, self.info, self.endpoint.routers)

    def _part(self, message: Any) -> None:
        """Take a part of a message; give it to the channel when it is whole."""
        channel = self.channel
        if channel is None or self._code != NORMAL:
            return
        data = message.data
        self._message += data.encode() if isinstance(data, str) else data
        most = self._line.max_message
        if len(self._message) > most:
            self._fail(TOO_BIG, f"a message has more than {most} bytes, which is the limit")
        elif message.message_finished and self._message:
            whole = bytes(self._message)
            self._message.clear()
            self.worked()  # what it asked before is answered before
            channel.received(whole)
        elif len(self._message) > LARGE:
            channel.note_memory()

    def _hung_up(self, event: Any) -> None:
        """Answer that the device closes; or that it knows that we do; or take what breaks the rules."""
        states = self._library.connection.ConnectionState
        if self._protocol.state is states.OPEN:
            self._fail(int(event.code), event.reason)
            return
        if self._protocol.state is states.REMOTE_CLOSING:
            self._reply(event.response())
        if self._closing or self.channel is None:
            self.lower.close()
        else:
            self._closing = True
            self.channel.end("device closed", f"WebSocket: code {int(event.code)}", drain=True)

    def _ping(self) -> None:
        """Ask whether the device is there; it should have answered the last time."""
        if self._pinged:
            self._ended("lost", "it doesn't answer pings")
            self.lower.abort()
            return
        self._pinged = True
        self._reply(self._library.events.Ping())
        self._late = asyncio.get_running_loop().call_later(self._line.ping, self._ping)

    def _reply(self, event: Any) -> None:
        """Send *event*, if there is still somebody to hear it."""
        try:
            data = self._protocol.send(event)
        except self._library.utilities.LocalProtocolError:  # it is closed already
            return
        if data:
            self.lower.send([data])

    # --- from the channel

    def send(self, chunks: list[bytes]) -> None:
        message = self._library.events.BytesMessage
        if self._line.text:
            texts = [chunk.decode("utf-8", "replace") for chunk in chunks]
            parts = [self._protocol.send(self._library.events.TextMessage(text)) for text in texts]
        else:
            parts = [self._protocol.send(message(chunk)) for chunk in chunks]
        self.lower.send(parts)

    def close(self) -> None:
        """Say goodbye, and close when the device has too, or after a while."""
        if self._closing:  # it has hung up
            self.lower.close()
            return
        self._closing = True
        self._reply(self._library.events.CloseConnection(self._code))
        if self._deaf:
            self.lower.close()
        else:
            asyncio.get_running_loop().call_later(GOODBYE, self.lower.close)

    def abort(self) -> None:
        self.lower.abort()

    def pause(self) -> None:
        self.lower.pause()

    def resume(self) -> None:
        self._unread.resume()

    @property
    def buffered(self) -> int:
        return len(self._unread) + len(self._message) + self.lower.buffered
