"""Connecting to devices that wait to be called: one target, kept connected.

`serve` returns the `Dialler` of one target. It looks the target's name up anew each time, connects within a
bounded time, and when the connection has ended, or never was, waits and tries again: longer each time, until
one has been up for a while. What goes wrong is told once, and again when it changes or has lasted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import attrs

from ...models import Address, Reason
from ...ops.backoff import Backoff
from .targets import Target
from .tcp import TcpLink
from .udp import UdpLink, UdpPort

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["Connect", "DialError", "DialOptions", "Dialler", "failure", "serve"]

log = logging.getLogger("exproto_app")

REMINDER: Final = 300.0
"""Seconds after which the log tells again of a target that is still in the same trouble."""


@attrs.frozen(kw_only=True)
class DialOptions:
    """How targets are dialled.

    *timeout*: seconds until a target is connected, name lookup and TLS handshake included; *rate*: attempts a
    second in all; *first* and *longest*: seconds until a target is dialled again, doubled each time, which
    begin anew when a connection has lasted for *steady* seconds.
    """

    timeout: float = 10.0
    rate: float = 50.0
    first: float = 0.5
    longest: float = 60.0
    steady: float = 30.0


class DialError(Exception):
    """A line couldn't be opened: what is wrong with it; *reason*, one word, is what it counts as."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


Ended: TypeAlias = "asyncio.Future[str]"
"""Tells why a connection has ended."""

Connect: TypeAlias = Callable[[], Awaitable[Ended]]
"""Connects, and returns what tells of the end. Raises `DialError`."""


async def serve(endpoint: Endpoint, _: socket.socket | None = None) -> Dialler:
    """Keep the target of *endpoint* connected."""
    target = cast("Target", endpoint.listen)
    connect = _connect_datagrams if target.kind.datagrams else _connect_stream
    dialler = Dialler(endpoint, partial(connect, endpoint, target))
    dialler.start()
    return dialler


class Dialler:
    """Keeps what *connect* connects to, the target of *endpoint*."""

    def __init__(self, endpoint: Endpoint, connect: Connect) -> None:
        options = endpoint.gateway.options.dial
        self.endpoint = endpoint
        self.ended: Ended | None = None
        self._connect = connect
        self._backoff = Backoff(options.first, options.longest, options.steady)
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._told = 0.0
        self._stopped = False

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self.ended is not None and not self.ended.done()

    def start(self) -> None:
        """Begin to dial."""
        self._task = self._loop.create_task(self._keep())

    def stop(self) -> None:
        """Dial no more; a connection that is open goes on."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Do nothing: the connection has ended."""

    async def _keep(self) -> None:
        pace, count, target = self.endpoint.gateway.pace, self.endpoint.engine.count, self.endpoint.listen
        while not self._stopped:
            await asyncio.sleep(pace.wait(self._loop.time()))
            began, reason = self._loop.time(), ""
            count("dials")
            try:
                self.ended = await self._connect()
                level = logging.INFO if self._trouble else logging.DEBUG
                log.log(level, "line = %s is up", target)
                why = await self.ended
            except DialError as error:
                why, reason = str(error), error.reason
                count("dials_failed")
                count(f"dials_failed.{reason}")
            except Exception as error:  # ours, or a library's: the others go on, and so does this one
                why, reason = repr(error), "error"
                count("dials_failed")
                count("dials_failed.error")
                log.exception("line ! %s failed", target)
            lasted = 0.0 if reason else self._loop.time() - began
            wait = self._backoff.wait(lasted)
            self._tell(reason, why, lasted, wait)
            await asyncio.sleep(wait)

    def _tell(self, reason: str, why: str, lasted: float, wait: float) -> None:
        """Log why the target isn't connected, if that is news."""
        if not reason and lasted >= self._backoff.steady:
            self._trouble = ""
            log.info("line = %s has ended: %s; tried again in %.1f s", self.endpoint.listen, why, wait)
            return
        trouble, words = reason, why
        if not reason:
            trouble = "ended"
            words = f"ended {'at once' if lasted < 1 else f'after {lasted:.0f} s'}: {why}"
        now = self._loop.time()
        news = trouble != self._trouble or now - self._told >= REMINDER
        if news:
            self._trouble, self._told = trouble, now
        level = logging.WARNING if news else logging.DEBUG
        log.log(level, "line ! %s %s; tried again in %.1f s", self.endpoint.listen, words, wait)


# --- streams


async def _connect_stream(endpoint: Endpoint, target: Target) -> Ended:
    """Connect on TCP or TLS, to the first address of the target that takes it."""
    return await _first_of(endpoint, target, _try_stream)


async def _try_stream(endpoint: Endpoint, target: Target, family: int, address: Any, seconds: float) -> Ended:
    loop = asyncio.get_running_loop()
    link = DialledLink(endpoint, Address(*address[:2]), loop.create_future())
    tls: dict[str, Any] = {}
    if endpoint.context is not None:
        name = target.server_name or target.host
        tls = {"ssl": endpoint.context, "server_hostname": name, "ssl_handshake_timeout": seconds}
    made = loop.create_connection(lambda: link, address[0], address[1], family=family, **tls)
    try:
        await asyncio.wait_for(made, seconds)
    except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
        if not link.begun:
            link.given_up = True
            raise
    return link.ended  # it has begun after all, and tells of its end itself


class DialledLink(TcpLink):
    """The connection to a target."""

    __slots__ = ("begun", "ended", "given_up")

    def __init__(self, endpoint: Endpoint, peer: Address, ended: Ended) -> None:
        super().__init__(endpoint, peer)
        self.begun = self.given_up = False
        self.ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.given_up:  # in the moment in which it succeeded
            cast("asyncio.Transport", transport).abort()
            return
        self.begun = True
        super().connection_made(transport)

    def never_began(self) -> None:
        super().never_began()
        _settle(self.ended, "it was lost at once")

    def connection_lost(self, exc: Exception | None) -> None:
        channel = self.channel
        super().connection_lost(exc)
        if channel is not None:
            _settle(self.ended, _words(channel))


# --- datagrams


async def _connect_datagrams(endpoint: Endpoint, target: Target) -> Ended:
    """Open a socket for the target: on UDP nobody answers that."""
    return await _first_of(endpoint, target, _try_datagrams)


async def _try_datagrams(endpoint: Endpoint, _: Target, family: int, address: Any, seconds: float) -> Ended:
    loop = asyncio.get_running_loop()
    port = DialledPort(endpoint, address, loop.create_future())
    made = loop.create_datagram_endpoint(lambda: port, remote_addr=address[:2], family=family)
    try:
        await asyncio.wait_for(made, seconds)
    except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
        if not port.begun:
            port.given_up = True
            raise
    return port.ended


class DialledPort(UdpPort):
    """A UDP socket for one target, whose address is *peer*."""

    def __init__(self, endpoint: Endpoint, peer: Any, ended: Ended) -> None:
        super().__init__(endpoint)
        self.begun = self.given_up = False
        self.ended = ended
        self._peer = peer
        self._link: UdpLink
        self._connected: asyncio.DatagramTransport
        self._writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connected = cast("asyncio.DatagramTransport", transport)
        if self.given_up:
            self._connected.abort()
            return
        self.begun = True
        self._link = self.new_link(self._peer)
        self.start_link(self._link)

    def new_link(self, peer: Any) -> UdpLink:
        return DialledPeer(self, peer)

    def datagram_received(self, data: bytes, _: Any) -> None:
        if self._link.channel is not None:
            self._link.channel.received(data)

    def error_received(self, exc: Exception) -> None:
        self._link.lost(str(exc))  # by ICMP, where nothing has the port for example

    def send(self, datagram: bytes, _: Any) -> None:
        if self._writable:
            self._connected.sendto(datagram)
        else:
            self.drop("socket_full")

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True

    def hang_up(self) -> None:
        """Close the socket."""
        self._connected.close()


class DialledPeer(UdpLink):
    """The only peer of a `DialledPort`."""

    __slots__ = ()

    port: DialledPort

    def end(self, reason: Reason, detail: str) -> bool:
        channel = self.channel
        if not super().end(reason, detail):
            return False
        self.port.hang_up()
        _settle(self.port.ended, _words(channel))
        return True


# --- what both share

Try: TypeAlias = "Callable[[Endpoint, Target, int, Any, float], Awaitable[Ended]]"


async def _first_of(endpoint: Endpoint, target: Target, attempt: Try) -> Ended:
    """Connect to the first address of *target* that takes it; it has its place then."""
    loop = asyncio.get_running_loop()
    until = loop.time() + endpoint.gateway.options.dial.timeout
    kind = target.kind.kind or socket.SOCK_STREAM
    datagrams = kind == socket.SOCK_DGRAM
    looking = endpoint.gateway.resolver.resolve(target.host, target.port, kind)
    try:
        addresses = await asyncio.wait_for(looking, until - loop.time())
    except asyncio.TimeoutError:
        raise DialError("dns", f"can't be reached: looking up {target.host!r} gave no answer") from None
    except OSError:
        raise DialError("dns", f"can't be reached: the host name {target.host!r} can't be resolved") from None
    if not endpoint.take_place(Address(target.host, target.port), datagrams=datagrams):
        raise DialError("room", "isn't tried: the gateway has no room for it")
    trouble = DialError("error", "can't be reached: it has no address")
    try:
        for tried, (family, address) in enumerate(addresses):
            seconds = max(0.01, (until - loop.time()) / (len(addresses) - tried))
            try:
                return await attempt(endpoint, target, family, address, seconds)
            except (OSError, asyncio.TimeoutError) as error:
                reason, words = failure(error, seconds)
                trouble = DialError(reason, f"can't be reached: {words}")
    except asyncio.CancelledError:
        endpoint.leave(None, datagrams=datagrams)
        raise
    endpoint.leave(None, datagrams=datagrams)
    raise trouble


def failure(error: BaseException, seconds: float) -> tuple[str, str]:
    """Return what an attempt that could take *seconds* counts as, and why it has failed, in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls", f"its certificate can't be trusted: {error.verify_message or error}"
    if isinstance(error, ssl.SSLError):
        return "tls", f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, ConnectionRefusedError):
        return "refused", "it refuses the connection"
    if isinstance(error, asyncio.TimeoutError | ConnectionAbortedError):
        return "timeout", f"no answer within {seconds:.2g} s"
    if isinstance(error, ConnectionError):
        return "reset", "it hung up before it was connected"
    words = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
    return "error", words or type(error).__name__


def _words(channel: Any) -> str:
    """Tell why a connection has ended."""
    return ": ".join(filter(None, (channel.reason, channel.detail)))


def _settle(ended: Ended, why: str) -> None:
    if not ended.done():
        ended.set_result(why)
