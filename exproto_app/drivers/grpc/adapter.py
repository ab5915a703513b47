"""The broker as the engine sees it: its adapters, a link for each of its connections, and the hub."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from ...commands import Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...core import Channel, Intake
from ...errors import (
    ClosedError,
    CommandError,
    DeniedError,
    SetupError,
    UnavailableError,
    UnsupportedError,
)
from . import exproto_pb2 as pb
from .client import CANCELLED, NOT_FOUND, OK, UNAVAILABLE, UNIMPLEMENTED, Client, Done, Method

__all__ = ["PROBE", "AdapterHub", "AdapterMap", "Broker", "Early", "GrpcLink", "judge"]

log = logging.getLogger("exproto_app")

GRACE: Final = 1.0
"""Seconds in which the broker may still tell why a connection is gone that it no longer has."""

CLOSE_WAIT: Final = 3.0
"""Seconds until a connection that we closed counts as gone although the broker didn't say so."""

MISSING: Final = {UNIMPLEMENTED, NOT_FOUND}
"""What an adapter answers that has no such method; EMQX's grpc-erl says NOT_FOUND."""

PACE: Final = 64
"""Closes and probes that are on their way to one broker at a time."""

NEVER_IDLE: Final = 86_400
"""Seconds given to the broker's own timer: ours does the work, but without it UDP ends after 30 s."""

PROBE: Final = "exproto-app/probe"
"""A topic that nobody subscribed to: taking it back changes nothing, and tells whether there is somebody."""

RAW: Final = 10_000
"""Messages of the app itself that are on their way to one broker at a time."""

CLOSED: Final = 10_000
"""Connections that are remembered after their end, for what still comes in their name."""


class GrpcLink:
    """One connection process of the broker, which has the device's socket."""

    __slots__ = (
        "_head",
        "_loop",
        "_timer",
        "broker",
        "channel",
        "closing",
        "conn",
        "datagram",
        "heard",
        "missed",
        "registers",
        "withheld",
    )

    answers = True
    write = None
    fence = None

    def __init__(self, broker: Broker, conn: bytes, *, datagram: bool) -> None:
        self.broker = broker
        self.conn = conn
        self.datagram = datagram
        self.channel: Intake | None = None
        self.heard = 0.0
        self.closing = False
        self.missed = False
        self.registers = False
        self.withheld: list[Callable[[], None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = b"\x0a" + _varint(len(conn)) + conn + b"\x12"

    # --- from the channel

    def send(self, chunks: list[bytes]) -> Outcome[None]:
        if self.closing:
            return refused(ClosedError("the broker is closing the connection"))
        outcome: Outcome[None] = Outcome(self.broker.waiter)
        if self.datagram and len(chunks) > 1:
            self._send_each(deque(chunks), outcome)
        else:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._call(data, partial(self._sent, outcome))
        return outcome

    def close(self) -> None:
        self.closing = True
        self.answer()  # the broker reports the end behind what waits for our answer
        self.broker.paced(self._close)

    def abort(self) -> None:
        self.close()
        self.broker.loop.call_soon(self.gone, "the broker didn't close it in time")

    def pause(self) -> None:
        """Do nothing: the service withholds its answers while the channel is paused."""

    def resume(self) -> None:
        self.answer()

    # --- from the service

    def answer(self) -> None:
        """Let the broker go on, if it waits."""
        withheld, self.withheld = self.withheld, None
        for answer in withheld or ():
            answer()

    def lift_idle_limit(self) -> None:
        """Have the broker leave a UDP connection alone."""
        request = pb.TimerRequest(conn=self.conn.decode(), type=pb.KEEPALIVE, interval=NEVER_IDLE)
        self.broker.call("StartTimer", request.SerializeToString(), self._idle_lifted)

    def probe(self, done: Callable[[], None]) -> None:
        """Ask whether the broker still has the connection."""
        request = pb.UnsubscribeRequest(conn=self.conn.decode(), topic=PROBE)

        def answered(status: int, answer: bytes) -> None:
            self.judge("Unsubscribe", status, answer)
            done()

        self.broker.call("Unsubscribe", request.SerializeToString(), answered)

    def judge(self, name: str, status: int, answer: bytes) -> CommandError | None:
        """Return what an answer of the adapter means, None for success."""
        if status == OK and not answer:
            return None
        error, dead = _judge(name, status, answer)
        if dead:
            self.missing()
        return error

    def missing(self) -> None:
        """Take note that the broker has no such connection: wait a little for its own words, then end it."""
        self.closing = self.missed = True
        self.answer()
        if self._timer is None:
            # Where we had ended it already, there is nothing left to learn.
            wait = GRACE if self.channel is not None and self.channel.closing is None else 0.0
            self._timer = self.broker.loop.call_later(wait, self.gone, "the broker has no such connection")

    def gone(self, detail: str) -> None:
        """End the connection without the broker's words."""
        self.broker.forget(self)
        if self.channel is not None:
            channel, self.channel = self.channel, None
            channel.terminated("lost", detail)

    def ended(self) -> None:
        """Let go of what waits for the end."""
        self.closing = True
        self.answer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- inside

    def _call(self, data: bytes, done: Done) -> None:
        # A SendBytesRequest, by hand: it is most of what is sent.
        self.broker.client.call(self.broker.send, self._head + _varint(len(data)) + data, done)

    def _send_each(self, chunks: deque[bytes], outcome: Outcome[None]) -> None:
        """Send datagrams one after another: calls may overtake each other."""

        def done(status: int, answer: bytes) -> None:
            error = self.judge("Send", status, answer)
            if error is not None:
                outcome.fail(error)
            elif not chunks:
                outcome.settle(None)
            elif self.closing:
                outcome.fail(ClosedError("the broker is closing the connection"))
            else:
                self._call(chunks.popleft(), done)

        self._call(chunks.popleft(), done)

    def _sent(self, outcome: Outcome[None], status: int, answer: bytes) -> None:
        if status == OK and not answer:
            outcome.settle(None)
            return
        error = self.judge("Send", status, answer)
        if error is None:
            outcome.settle(None)
        else:
            outcome.fail(error)

    def __str__(self) -> str:
        return self.conn.decode() if self.channel is None else str(self.channel)

    def _idle_lifted(self, status: int, answer: bytes) -> None:
        error = self.judge("StartTimer", status, answer)
        if error is not None and not self.closing:
            log.warning("%s ! the broker will end it after its idle_timeout: %s", self, error)

    def _close(self, done: Callable[[], None]) -> None:
        request = pb.CloseSocketRequest(conn=self.conn.decode())

        def answered(status: int, answer: bytes) -> None:
            error = self.judge("Close", status, answer)
            if error is not None and not isinstance(error, ClosedError) and status != CANCELLED:
                log.warning("%s ! the broker didn't close it: %s", self, error)
            if self._timer is None and self.channel is not None:
                words = "the broker didn't tell of its end"
                self._timer = self.broker.loop.call_later(CLOSE_WAIT, self.gone, words)
            done()

        self.broker.call("Close", request.SerializeToString(), answered)


@attrs.define(eq=False)
class Early:
    """What came of a connection before its beginning: events, of *size* bytes, and the streams that stand."""

    feeds: list[Callable[[GrpcLink], object]] = attrs.Factory(list)
    size: int = 0
    streams: list[Callable[[], None]] = attrs.Factory(list)


class Broker:
    """One adapter and the connections behind it."""

    def __init__(self, host: str, port: int) -> None:
        self.client = Client(host, port)
        self.loop = asyncio.get_running_loop()
        self.waiter = self.loop.create_future
        self.links: dict[bytes, GrpcLink] = {}
        self.closed: dict[bytes, None] = {}
        self.early: dict[bytes, Early] = {}
        self.early_bytes = 0
        self.callers = 0  # connections on which it calls us
        self._methods = {
            name: self.client.method(f"/emqx.exproto.v1.ConnectionAdapter/{name}", again=again)
            for name, again in {
                "Send": False,
                "Close": True,
                "Authenticate": False,
                "StartTimer": True,
                "Publish": False,
                "Subscribe": True,
                "Unsubscribe": True,
                "RawPublish": False,
            }.items()
        }
        self.send: Method = self._methods["Send"]
        self.raw = 0  # RawPublish calls on their way
        self._queue: deque[Callable[[Callable[[], None]], None]] = deque()
        self._running = 0

    def call(self, name: str, message: bytes, done: Done) -> None:
        """Call a method of the adapter; *done* gets its status and its answer."""
        self.client.call(self._methods[name], message, done)

    def paced(self, start: Callable[[Callable[[], None]], None]) -> None:
        """Run *start*, which tells by the function it is given that it is done; only some at a time."""
        if self._running >= PACE:
            self._queue.append(start)
            return
        self._running += 1
        start(self._paced_done)

    async def close(self) -> None:
        """Let go of the connection; what still waits is not started any more."""
        self._queue.clear()
        await self.client.close()

    def forget(self, link: GrpcLink) -> None:
        """Remember of *link* only that it has ended."""
        link.ended()
        if self.links.get(link.conn) is link:
            del self.links[link.conn]
        self.ignore(link.conn)

    def ignore(self, conn: bytes) -> None:
        """Remember that *conn* is to be ignored from now on."""
        self.closed[conn] = None
        if len(self.closed) > CLOSED:
            del self.closed[next(iter(self.closed))]

    def _paced_done(self) -> None:
        self._running -= 1
        if self._queue:
            self._running += 1
            # Not at once: an answer that comes in the same breath must not nest ever deeper.
            self.loop.call_soon(self._queue.popleft(), self._paced_done)


class AdapterMap:
    """Which adapter belongs to a broker that calls, by the address it calls from.

    *texts* are `http://HOST:PORT` for all, `auto:PORT` for the address that called, `ADDRESS=http://HOST:PORT`
    for the one at ADDRESS. Raises `SetupError`.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._fixed: dict[str, tuple[str, int]] = {}
        self._auto: int | None = None
        self._brokers: dict[tuple[str, int], Broker] = {}
        self.last: Broker | None = None
        for text in texts:
            self._add(text)
        if not self._fixed and self._auto is None:
            raise SetupError("there is no adapter; add --adapter http://HOST:9100")

    def __iter__(self) -> Any:
        return iter(self._brokers.values())

    @property
    def fixed(self) -> list[tuple[str, int]]:
        """Host and port of each adapter that is known before anybody calls."""
        return list(dict.fromkeys(self._fixed.values()))

    def find(self, caller: str) -> Broker | None:
        """Return the broker that *caller* stands for, None if nobody knows."""
        where = self._fixed.get(caller) or self._fixed.get("")
        if where is None and self._auto is not None:
            where = caller, self._auto
        if where is None:
            return None
        broker = self._brokers.get(where)
        if broker is None:
            broker = self._brokers[where] = Broker(*where)
        self.last = broker
        return broker

    def any(self) -> Broker | None:
        """Return the broker for what belongs to no connection: the last to call that is still there."""
        if self.last is None and "" in self._fixed:
            return self.find("")
        if self.last is None or self.last.callers:
            return self.last
        return next((broker for broker in self._brokers.values() if broker.callers), self.last)

    def _add(self, text: str) -> None:
        if text.startswith("auto:"):
            port = text.removeprefix("auto:")
            if not port.isdigit() or not 0 < int(port) < 65_536:
                raise SetupError(f"--adapter {text}: {port!r} is no port; write auto:9100")
            self._auto = int(port)
            return
        caller, _, url = text.rpartition("=")
        if url.startswith("https:"):
            raise SetupError(f"--adapter {text}: EMQX's adapter has no TLS; write http://")
        try:
            parts = urlsplit(url)
            host, number = parts.hostname, parts.port
        except ValueError:
            host = number = None
        if not url.startswith("http://") or not host or not number or parts.path.strip("/"):
            raise SetupError(f"--adapter {text} is no address; write http://HOST:9100, or auto:9100")
        if caller in self._fixed:
            raise SetupError(f"--adapter {text}: there is another for {caller or 'all brokers'} already")
        self._fixed[caller] = host, number


class AdapterHub:
    """The adapters as the engine's `Hub`."""

    # Calls of one connection may overtake each other.
    ordered = False
    keeps_wills = False
    keeps_sessions = False

    def __init__(self, adapters: AdapterMap) -> None:
        self.adapters = adapters
        self._loop = asyncio.get_running_loop()
        self._waiter = self._loop.create_future
        self._said_retain = False

    @property
    def ready(self) -> bool:
        """Whether no adapter is known to be away; they are called when there is something to say."""
        return not any(broker.client.away for broker in self.adapters)

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Call the adapter for what a device's connection asks."""
        link = channel.link
        if not isinstance(link, GrpcLink):
            raise TypeError(f"{link!r} is no link of this hub")
        if isinstance(command, Publish) and (channel.gone or link.missed or not link.registers):
            # The broker takes nothing from a connection that has ended or never was a client: then it is the
            # app that publishes. But not for a device that was refused.
            if not channel.gone and link.registers and channel.client is None:
                return refused(DeniedError("the broker didn't take the device as a client"))
            return self._raw(link.broker, command)
        if channel.gone:
            return refused(ClosedError(f"the connection is closed: {channel.reason}"))
        if isinstance(command, Register):
            link.registers = True
        name, request = self._request(link.conn.decode(), command)
        outcome: Outcome[Any] = Outcome(self._waiter)

        def done(status: int, answer: bytes) -> None:
            error = link.judge(name, status, answer)
            if error is None:
                outcome.settle(command.qos if isinstance(command, Subscribe) else None)
            elif isinstance(command, Publish) and isinstance(error, ClosedError):
                # The device hung up, but what it had said before still counts.
                self._raw(link.broker, command).when_done(partial(_pass_on, outcome))
            else:
                outcome.fail(error)

        link.broker.call(name, request, done)
        return outcome

    def _request(self, conn: str, command: Command) -> tuple[str, bytes]:
        """Return the method for *command* and its request."""
        match command:
            case Publish(topic, payload, qos):
                self._look_at_retain(command)
                publish = pb.PublishRequest(conn=conn, topic=topic, payload=payload, qos=qos)
                return "Publish", publish.SerializeToString()
            case Subscribe(topic, qos):
                return "Subscribe", pb.SubscribeRequest(conn=conn, topic=topic, qos=qos).SerializeToString()
            case Unsubscribe(topic):
                return "Unsubscribe", pb.UnsubscribeRequest(conn=conn, topic=topic).SerializeToString()
            case Register(client, password):
                # The mountpoint is the engine's, so the broker gets none.
                info = pb.ClientInfo(
                    proto_name=client.proto_name,
                    proto_ver=client.proto_ver,
                    clientid=client.clientid,
                    username=client.username,
                )
                register = pb.AuthenticateRequest(conn=conn, clientinfo=info, password=password or "")
                return "Authenticate", register.SerializeToString()

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        broker = self.adapters.any()
        if broker is None:
            return refused(UnavailableError("no broker has called yet, so nobody knows where its adapter is"))
        return self._raw(broker, command)

    def gone(self, channel: Channel) -> None:
        """Do nothing: the broker's process is gone too."""

    def _raw(self, broker: Broker, command: Publish) -> Outcome[None]:
        self._look_at_retain(command)
        if broker.raw >= RAW:
            return refused(UnavailableError(f"{RAW} messages are on their way already, that is the limit"))
        outcome: Outcome[None] = Outcome(self._waiter)
        request = pb.RawPublishRequest(topic=command.topic, payload=command.payload, qos=command.qos)
        broker.raw += 1

        def done(status: int, answer: bytes) -> None:
            broker.raw -= 1
            if status in MISSING:
                words = (
                    "EMQX before 5.1 publishes only for a live connection, not for an app or one that ended"
                )
                outcome.fail(UnsupportedError(words))
            elif status == OK and not answer:
                outcome.settle(None)
            else:
                error, _ = _judge("RawPublish", status, answer)
                if error is None:
                    outcome.settle(None)
                else:
                    outcome.fail(error)

        broker.call("RawPublish", request.SerializeToString(), done)
        return outcome

    def _look_at_retain(self, command: Publish) -> None:
        if command.retain and not self._said_retain:
            self._said_retain = True
            log.warning("broker ! EMQX's exproto retains nothing; retain= is ignored")


def _pass_on(outcome: Outcome[Any], result: Outcome[None]) -> None:
    if result.error is None:
        outcome.settle(None)
    else:
        outcome.fail(result.error)


def judge(name: str, status: int, answer: bytes) -> CommandError | None:
    """Return what an answer of the adapter means, None for success."""
    return None if status == OK and not answer else _judge(name, status, answer)[0]


def _judge(name: str, status: int, answer: bytes) -> tuple[CommandError | None, bool]:
    """Return what an answer of the adapter means, and whether the connection is dead."""
    words = answer.decode(errors="replace")
    if status in MISSING:
        return UnsupportedError(f"this EMQX has no {name}: {words}"), False
    if status != OK:
        hint = "" if status == UNAVAILABLE else f" (status {status})"
        return UnavailableError(f"the adapter's {name} failed{hint}: {words}"), False
    try:
        response = pb.CodeResponse.FromString(answer)
    except Exception as wrong:  # noqa: BLE001 - protobuf's own error, whose place differs between versions
        return UnavailableError(f"the adapter's answer to {name} is no CodeResponse: {wrong}"), False
    return _meaning(
        name, response.code, _unquoted(response.message)
    ), response.code == pb.CONN_PROCESS_NOT_ALIVE


def _meaning(name: str, code: int, message: str) -> CommandError | None:
    if code == pb.SUCCESS:
        return None
    if code == pb.PERMISSION_DENY:
        return DeniedError(f"the broker refuses {name}: {message or 'not allowed'}")
    if code == pb.CONN_PROCESS_NOT_ALIVE:
        return ClosedError(f"the broker has no such connection any more: {message}")
    if "unexpected_call" in message:
        return CommandError(f"the broker takes no {name} before register has succeeded")
    word = pb.ResultCode.Name(code) if code in pb.ResultCode.values() else str(code)
    return CommandError(f"the broker's {name} failed: {word} {message}".rstrip())


def _unquoted(message: str) -> str:
    """Return the text of an Erlang binary that was printed."""
    found = re.fullmatch(r'<<"(.*)">>', message, re.DOTALL)
    return found[1] if found else message


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
