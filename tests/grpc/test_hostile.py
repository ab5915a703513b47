"""What breaks the rules of HTTP/2 and gRPC: nothing escapes, nothing grows, the end has its right code."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import Address, App, Connection, Limits
from exproto_app.core import Channel
from exproto_app.hosts.grpc import AdapterMap, Service
from exproto_app.hosts.grpc import exproto_pb2 as pb
from exproto_app.hosts.grpc.caller import Caller
from exproto_app.hosts.grpc.client import AdapterClient, ClientConnection
from exproto_app.hosts.http2.frames import PREFACE, pack_frame

from .test_wire import SETTINGS, Sink

pytestmark = pytest.mark.live

PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION, CALM = 1, 3, 5, 6, 9, 11
DATA, HEADERS, PRIORITY, RST, SET, PUSH, PING, GOAWAY, WINDOW, MORE = range(10)


def request(path: str = "/emqx.exproto.v1.ConnectionUnaryHandler/OnReceivedBytes") -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), ("te", "trailers")]
    return bytes(hpack.Encoder().encode(fields))


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def event(conn: str, data: bytes) -> bytes:
    return message(pb.ReceivedBytesRequest(conn=conn, bytes=data).SerializeToString())


BLOCK = request()
EVENT = event("c", b"hi")


def head(stream: int, block: bytes = BLOCK) -> bytes:
    return pack_frame(HEADERS, 0x4, stream, block)


def call(stream: int, data: bytes = EVENT, block: bytes = BLOCK) -> bytes:
    pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
    body = [pack_frame(DATA, number == len(pieces), stream, piece) for number, piece in enumerate(pieces, 1)]
    return head(stream, block) + b"".join(body)


CALL = call(1)


class Server:
    """A service whose callers are fed by hand."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.app: App[Any] = App(limits=Limits(end_timeout=0.1))

        @self.app.on_received
        async def take(conn: Connection[Any], frame: bytes) -> None:
            if frame.startswith(b"stay"):
                await asyncio.sleep(3600)

        self.service = Service(self.app, Address("127.0.0.1", 0), AdapterMap(["http://127.0.0.1:9"]))
        self.loop.run_until_complete(self.service.start())
        self.caller: Caller
        self.sink: Sink

    def connect(self) -> None:
        async def make() -> None:
            self.caller, self.sink = Caller(self.service), Sink()
            self.caller.protocol.connection_made(self.sink)  # type: ignore[arg-type] # as much of it as is used

        self.loop.run_until_complete(make())

    def feed(self, *pieces: bytes) -> None:
        async def feed() -> None:
            for piece in pieces:
                if not self.sink.closed:
                    self.caller.protocol.data_received(piece)
            await asyncio.sleep(0)
            while self.service.callers.scheduler.busy:  # noqa: ASYNC110 - round by round
                await asyncio.sleep(0)
            await asyncio.sleep(0)

        self.loop.run_until_complete(feed())

    def disconnect(self) -> None:
        self.caller.protocol.connection_lost(None)

    def stop(self) -> None:
        self.loop.run_until_complete(self.service.stop())
        self.loop.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    logging.getLogger("exproto_app").setLevel(logging.CRITICAL)
    yield server
    logging.getLogger("exproto_app").setLevel(logging.NOTSET)
    server.stop()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.connect()
    yield running
    running.disconnect()


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return what was written as kinds, flags, streams and payloads."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def ended_with(sink: Sink) -> tuple[int, int] | None:
    """Return the last stream and the code of a GOAWAY."""
    for kind, _, _, payload in frames(sink.data.removeprefix(PREFACE)):
        if kind == GOAWAY:
            return int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
    return None


def wrong(name: str, code: int, *pieces: bytes) -> Any:
    return pytest.param(b"".join(pieces), code, id=name)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        wrong("an oversize frame", SIZE, b"\x00\x40\x01\0\1\0\0\0\1"),
        wrong("an even stream", PROTOCOL, head(4)),
        wrong("stream 0", PROTOCOL, head(0)),
        wrong("streams going back", PROTOCOL, head(5), head(3)),
        wrong("a stream used twice", PROTOCOL, CALL, head(1)),
        wrong("trailers that don't end", PROTOCOL, head(1), head(1)),
        wrong("data of stream 0", PROTOCOL, pack_frame(DATA, 1, 0, EVENT)),
        wrong("data of an idle stream", PROTOCOL, pack_frame(DATA, 1, 7, EVENT)),
        wrong("padding beyond the frame", PROTOCOL, head(1), pack_frame(DATA, 9, 1, b"\5abc")),
        wrong("a reset of an idle stream", PROTOCOL, pack_frame(RST, 0, 7, bytes(4))),
        wrong("a reset of stream 0", PROTOCOL, pack_frame(RST, 0, 0, bytes(4))),
        wrong("a reset of 3 bytes", SIZE, CALL, pack_frame(RST, 0, 1, bytes(3))),
        wrong("a window of an idle stream", PROTOCOL, pack_frame(WINDOW, 0, 7, b"\0\0\0\1")),
        wrong("a window update of 0", PROTOCOL, pack_frame(WINDOW, 0, 0, bytes(4))),
        wrong("a window update of 3 bytes", SIZE, pack_frame(WINDOW, 0, 0, bytes(3))),
        wrong("a window overflow", FLOW, pack_frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff")),
        wrong("settings of a stream", PROTOCOL, pack_frame(SET, 0, 1)),
        wrong("settings of 5 bytes", SIZE, pack_frame(SET, 0, 0, bytes(5))),
        wrong("acknowledged settings", SIZE, pack_frame(SET, 1, 0, bytes(6))),
        wrong("an initial window too large", FLOW, pack_frame(SET, 0, 0, b"\0\4\xff\xff\xff\xff")),
        wrong("frames limited to 0", PROTOCOL, pack_frame(SET, 0, 0, b"\0\5\0\0\0\0")),
        wrong("pushes neither on nor off", PROTOCOL, pack_frame(SET, 0, 0, b"\0\2\0\0\0\2")),
        wrong("a ping of a stream", PROTOCOL, pack_frame(PING, 0, 1, bytes(8))),
        wrong("a ping of 7 bytes", SIZE, pack_frame(PING, 0, 0, bytes(7))),
        wrong("a push", PROTOCOL, pack_frame(PUSH, 4, 1, bytes(8))),
        wrong("a goaway of a stream", PROTOCOL, pack_frame(GOAWAY, 0, 1, bytes(8))),
        wrong("a goaway of 7 bytes", SIZE, pack_frame(GOAWAY, 0, 0, bytes(7))),
        wrong("a priority of 4 bytes", SIZE, pack_frame(PRIORITY, 0, 3, bytes(4))),
        wrong("a priority within headers of 4 bytes", SIZE, pack_frame(HEADERS, 0x24, 1, bytes(4))),
        wrong("a continuation of nothing", PROTOCOL, pack_frame(MORE, 4, 1, BLOCK)),
        wrong(
            "an interrupted block",
            PROTOCOL,
            pack_frame(HEADERS, 0, 1, BLOCK),
            pack_frame(PING, 0, 0, bytes(8)),
        ),
        wrong(
            "a continuation of another", PROTOCOL, pack_frame(HEADERS, 0, 1), pack_frame(MORE, 4, 3, BLOCK)
        ),
        wrong(
            "a block without end", CALM, pack_frame(HEADERS, 0, 1), *[pack_frame(MORE, 0, 1, bytes(9000))] * 2
        ),
        wrong(
            "a flood of empty continuations", CALM, pack_frame(HEADERS, 0, 1), pack_frame(MORE, 0, 1) * 2000
        ),
        wrong("an index of nothing", COMPRESSION, pack_frame(HEADERS, 4, 1, b"\xff\xff\xff\x01")),
        wrong(
            "a Huffman code with an end in it",
            COMPRESSION,
            pack_frame(HEADERS, 4, 1, b"\0\1a\x84\xff\xff\xff\xff"),
        ),
        wrong("half a field", COMPRESSION, pack_frame(HEADERS, 4, 1, b"\0\1a\x7f")),
        wrong("a table too large", COMPRESSION, pack_frame(HEADERS, 4, 1, b"\x3f\xff\xff\x7f\x82")),
        wrong(
            "a header bomb",
            COMPRESSION,
            pack_frame(HEADERS, 4, 1, b"\x40\1a\x7f\xd1\x1e" + bytes(4000) + b"\xbe" * 8000),
        ),
        wrong("a flood of pings", CALM, pack_frame(PING, 0, 0, bytes(8)) * 10_001),
        wrong("a flood of settings", CALM, pack_frame(SET, 0, 0) * 10_001),
        wrong("a flood of resets", CALM, CALL, pack_frame(RST, 0, 1, bytes(4)) * 10_001),
        wrong("a flood of empty data", CALM, head(1), pack_frame(DATA, 0, 1) * 10_001),
        wrong("a flood of unknown frames", CALM, pack_frame(99, 0, 0) * 10_001),
        wrong(
            "a held window overrun",
            FLOW,
            head(1),
            pack_frame(DATA, 0, 1, b"\0\0\x90\0\0") + pack_frame(DATA, 0, 1, bytes(16_000)) * 5,
        ),
    ],
)
def test_a_broken_rule_ends_the_connection_with_its_code(server: Server, data: bytes, code: int) -> None:
    if code == FLOW and len(data) > 50_000:
        server.caller.http2.hold(1)
    server.feed(PREFACE + SETTINGS, data)
    assert server.sink.closed
    assert ended_with(server.sink) == (server.caller.http2.last, code)


def test_a_rapid_reset_leaves_nothing_behind(server: Server) -> None:
    server.feed(PREFACE + SETTINGS)
    for stream in range(1, 4001, 2):
        server.feed(
            head(stream) + pack_frame(DATA, 0, stream, EVENT[:8]) + pack_frame(RST, 0, stream, bytes(4))
        )
    assert not server.sink.closed
    assert not server.caller.calls
    assert not server.caller.http2.account.used
    assert not server.caller.http2._receiver.taken_of


def test_data_of_streams_that_nobody_serves_is_not_remembered(server: Server) -> None:
    nowhere = request("/no/such")
    server.feed(PREFACE + SETTINGS)
    for stream in range(1, 2001, 2):
        server.feed(head(stream, nowhere) + pack_frame(DATA, 0, stream, EVENT))
    assert not server.caller.calls
    assert not server.caller.http2._receiver.taken_of


def test_an_event_goes_on_after_its_end(server: Server) -> None:
    server.feed(PREFACE + SETTINGS, head(1))
    server.caller.calls[1].take = lambda *_: False  # its answer is withheld
    server.feed(pack_frame(DATA, 1, 1, EVENT), pack_frame(DATA, 1, 1, EVENT))
    assert ended_with(server.sink) == (1, CLOSED)


def test_who_never_reads_is_not_read(server: Server) -> None:
    server.feed(PREFACE + SETTINGS)
    server.caller.protocol.pause_writing()
    assert server.sink.paused
    server.caller.protocol.resume_writing()
    assert not server.sink.paused


def test_who_resets_the_connection_while_it_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise OSError(107, "Transport endpoint is not connected")  # as the kernel says it then

    monkeypatch.setattr(server.sink, "write_eof", gone)
    server.feed(PREFACE + SETTINGS, pack_frame(PUSH, 4, 1, bytes(8)))
    assert ended_with(server.sink) == (0, PROTOCOL)


def test_events_without_their_rest_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.callers.budget, "each", 100_000)
    server.feed(PREFACE + SETTINGS)
    for stream in range(1, 100, 2):
        server.feed(head(stream) + pack_frame(DATA, 0, stream, b"\0\0\1\0\0" + bytes(10_000)))
    assert ended_with(server.sink) == (17, CALM)


def test_a_broker_that_waits_for_no_answers_costs_that_device_its_connection(server: Server) -> None:
    created = message(pb.SocketCreatedRequest(conn="greedy").SerializeToString())
    block = request("/emqx.exproto.v1.ConnectionUnaryHandler/OnSocketCreated")
    server.feed(PREFACE + SETTINGS, call(1, created, block))
    channel = server.caller.broker.links[b"greedy"].channel  # type: ignore[union-attr] # it has called
    assert isinstance(channel, Channel)
    server.feed(call(3, event("greedy", b"stay")))
    for stream in range(5, 61, 2):
        server.feed(call(stream, event("greedy", bytes(100_000))))
    assert channel.closing == "error"
    assert "waits for no answers" in channel.detail
    assert not server.sink.closed


def test_an_event_that_is_split_or_compressed_or_too_short(server: Server) -> None:
    server.feed(
        PREFACE + SETTINGS,
        head(1) + pack_frame(DATA, 0, 1, EVENT) + pack_frame(DATA, 1, 1),
        head(3) + pack_frame(DATA, 1, 3, b"\1" + EVENT[1:]),
        head(5) + pack_frame(DATA, 1, 5, EVENT[:4]),
        pack_frame(HEADERS, 5, 7, BLOCK),
        head(9) + pack_frame(DATA, 0, 9, EVENT) + pack_frame(HEADERS, 5, 9, b"\x82"),
    )
    written = frames(server.sink.data)
    answered = [stream for kind, flags, stream, _ in written if kind == HEADERS and flags & 1]
    assert answered == [1, 3, 5, 7, 9]
    assert not server.caller.calls


# --- anything at all

kinds = st.integers(0, 10)
payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([BLOCK, EVENT, bytes(4), bytes(8), b"\0\4\0\0\0\1", b"\0\3\0\0\0\0", b"\0\1\0\0\0\0"]),
)
any_frame = st.builds(pack_frame, kinds, st.integers(0, 255), st.integers(0, 9), payloads)
good = st.sampled_from(
    [CALL, call(5), head(3), pack_frame(DATA, 1, 3, EVENT), pack_frame(PING, 0, 0, bytes(8))]
)
traffic = st.lists(st.one_of(good, any_frame), max_size=20).map(b"".join)


@st.composite
def cut(draw: Any, source: st.SearchStrategy[bytes]) -> list[bytes]:
    """Return some traffic, a byte of it changed now and then, cut where it may."""
    data = bytearray(draw(source))
    for at in draw(st.lists(st.integers(0, max(len(data) - 1, 0)), max_size=3)):
        if data:
            data[at] ^= draw(st.integers(0, 255))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
    return [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


@given(pieces=cut(traffic))
def test_no_traffic_harms_the_server(running: Server, pieces: list[bytes]) -> None:
    running.connect()
    try:
        running.feed(PREFACE + SETTINGS, *pieces)
        assert all(kind <= MORE for kind, *_ in frames(running.sink.data))
        assert len(running.sink.data) < 1000 + 40 * len(b"".join(pieces))
        if running.sink.closed:
            assert ended_with(running.sink) is not None
    finally:
        running.disconnect()
    assert not running.caller.calls


@given(pieces=cut(st.one_of(st.binary(max_size=100), traffic.map(lambda data: PREFACE + data))))
def test_no_beginning_harms_the_server(running: Server, pieces: list[bytes]) -> None:
    running.connect()
    try:
        running.feed(*pieces)
    finally:
        running.disconnect()
    assert not running.caller.calls


ANSWER = bytes(hpack.Encoder().encode([(":status", "200"), ("content-type", "application/grpc")]))
TRAILERS = bytes(hpack.Encoder().encode([("grpc-status", "0")]))
LONG = bytes(hpack.Encoder().encode([("grpc-status", "9" * 6000), ("grpc-message", "%zz%41")]))
replies = st.sampled_from(
    [
        pack_frame(HEADERS, 4, 1, ANSWER)
        + pack_frame(DATA, 0, 1, bytes(5))
        + pack_frame(HEADERS, 5, 1, TRAILERS),
        pack_frame(HEADERS, 5, 3, TRAILERS),
        pack_frame(HEADERS, 5, 3, LONG),
        pack_frame(RST, 0, 3, b"\0\0\0\7"),
        pack_frame(GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\0"),
        SETTINGS,
    ]
)


def asked(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], Sink]:
    """Call an adapter that says *pieces*; return the outcomes of three calls."""

    async def ask() -> tuple[list[tuple[int, bytes]], Sink]:
        outcomes: list[tuple[int, bytes]] = []
        client = AdapterClient("127.0.0.1", 9)
        connection, sink = ClientConnection(client), Sink()
        connection.protocol.connection_made(sink)  # type: ignore[arg-type] # as much of it as is used
        connection.protocol.data_received(SETTINGS)
        method = client.method("/a/Send")
        for _ in range(3):
            client.call(method, b"x", lambda status, words: outcomes.append((status, words)))
        for piece in pieces:
            if not sink.closed:
                connection.protocol.data_received(piece)
        await asyncio.sleep(0)
        connection.protocol.connection_lost(None)
        await client.close()
        return outcomes, sink

    return asyncio.run(ask())


@given(pieces=cut(st.lists(st.one_of(replies, any_frame), max_size=10).map(b"".join)))
def test_no_answer_harms_the_client(pieces: list[bytes]) -> None:
    outcomes, _ = asked(pieces)
    assert len(outcomes) == 3


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (pack_frame(HEADERS, 5, 1, TRAILERS), (2, b"the answer is no message")),
        (pack_frame(HEADERS, 5, 1, LONG), (2, b"%zzA")),
        (
            pack_frame(HEADERS, 4, 1, ANSWER) + pack_frame(DATA, 1, 1, bytes(5)),
            (2, b"the answer has no status"),
        ),
    ],
)
def test_an_answer_that_is_none(said: bytes, outcome: tuple[int, bytes]) -> None:
    outcomes, _ = asked([said])
    assert outcomes[0] == outcome


def test_a_late_answer_is_nobodys_and_costs_no_reset() -> None:
    async def ask() -> None:
        client = AdapterClient("127.0.0.1", 9)
        connection, sink = ClientConnection(client), Sink()
        connection.protocol.connection_made(sink)  # type: ignore[arg-type] # as much of it as is used
        connection.protocol.data_received(SETTINGS)
        outcomes: list[int] = []
        client.call(client.method("/a/Send"), b"x", lambda status, _: outcomes.append(status))
        for late in client._begun:
            late.begun = -1000.0
        client._sweep()
        assert outcomes == [4]
        assert connection.given_up == 1
        connection.protocol.data_received(
            pack_frame(HEADERS, 4, 1, ANSWER)
            + pack_frame(DATA, 0, 1, bytes(5))
            + pack_frame(HEADERS, 5, 1, TRAILERS)
        )
        await asyncio.sleep(0)
        assert outcomes == [4]
        assert not connection.calls
        assert connection.given_up == 0
        assert RST not in [kind for kind, *_ in frames(sink.data.removeprefix(PREFACE))]
        connection.protocol.connection_lost(None)
        await client.close()

    asyncio.run(ask())


def test_a_client_ends_the_connection_with_its_code() -> None:
    _, sink = asked([pack_frame(HEADERS, 4, 9, ANSWER)])
    assert ended_with(sink) == (0, PROTOCOL)
    _, sink = asked([pack_frame(HEADERS, 4, 2, ANSWER)])
    assert ended_with(sink) == (0, PROTOCOL)


def test_random_bytes_at_length(server: Server) -> None:
    server.disconnect()
    for _ in range(50):
        server.connect()
        server.feed(PREFACE + SETTINGS, os.urandom(50_000))
        server.disconnect()
    server.connect()
    assert list(server.service.callers) == [server.caller]
