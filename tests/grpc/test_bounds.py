"""What one peer may cost: bytes held for it, time of the loop, places, and what it may leave undone."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exproto_app import Address, App, Connection, Limits
from exproto_app.asyncio_host import accepting
from exproto_app.core import scheduler as engine_scheduler
from exproto_app.hosts.grpc import AdapterMap, Service, caller, service
from exproto_app.hosts.grpc import exproto_pb2 as pb
from exproto_app.hosts.grpc.acceptor import Acceptor
from exproto_app.hosts.grpc.caller import Caller
from exproto_app.hosts.grpc.callers import Callers
from exproto_app.hosts.grpc.client import AdapterClient, ClientConnection
from exproto_app.hosts.http2 import Budget, scheduler, transport
from exproto_app.hosts.http2.budget import STREAM_COST, Account
from exproto_app.hosts.http2.frames import PREFACE, pack_frame
from exproto_app.hosts.http2.header_blocks import Decoder, Encoder

from .test_hostile import (
    ANSWER,
    BLOCK,
    CALM,
    DATA,
    EVENT,
    HEADERS,
    PING,
    RST,
    SET,
    TRAILERS,
    WINDOW,
    call,
    ended_with,
    event,
    frames,
    head,
    message,
    request,
)
from .test_wire import SETTINGS, Sink

pytestmark = pytest.mark.live

CREATE = request("/emqx.exproto.v1.ConnectionUnaryHandler/OnSocketCreated")
STREAM = request("/emqx.exproto.v1.ConnectionHandler/OnReceivedBytes")
WATCH = request("/grpc.health.v1.Health/Watch")


class Peer:
    """One connection to the service, fed by hand."""

    def __init__(self, service: Service) -> None:
        self.caller, self.sink = Caller(service), Sink()
        self.caller.protocol.connection_made(self.sink)  # type: ignore[arg-type] # as much of it as is used
        self.feed(PREFACE + SETTINGS)

    def feed(self, data: bytes) -> None:
        if not self.sink.closed:
            self.caller.protocol.data_received(data)

    @property
    def held(self) -> int:
        return 0 if self.caller.http2.account.closed else self.caller.http2.account.used

    @property
    def answered(self) -> list[int]:
        """The streams that were ended with success or without."""
        written = frames(self.sink.data)
        return [stream for kind, flags, stream, _ in written if kind == HEADERS and flags & 1]

    def lose(self) -> None:
        self.caller.protocol.connection_lost(None)


class Serving:
    """A service and its peers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.app: App[Any] = App(limits=Limits(end_timeout=0.1))
        self.got: list[bytes] = []

        @self.app.on_received
        async def take(conn: Connection[Any], frame: bytes) -> None:
            self.got.append(frame)
            if frame.startswith(b"stay"):
                await asyncio.sleep(3600)

        self.problems: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self.service = Service(self.app, Address("127.0.0.1", 0), AdapterMap(["http://127.0.0.1:9"]))
        self.loop.run_until_complete(self.service.start())
        self.budget = self.service.callers.budget
        self.peers: list[Peer] = []

    def run(self, function: Callable[[], Any]) -> Any:
        """Call *function* on the loop, and let it come to rest."""

        async def call() -> Any:
            result = function()
            await asyncio.sleep(0)
            while self.service.callers.scheduler.busy:  # noqa: ASYNC110 - round by round
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(call())

    def connect(self) -> Peer:
        peer: Peer = self.run(lambda: Peer(self.service))
        self.peers.append(peer)
        return peer

    def feed(self, peer: Peer, *pieces: bytes) -> None:
        for piece in pieces:
            self.run(partial(peer.feed, piece))

    def lose_all(self) -> None:
        while self.peers:
            self.run(self.peers.pop().lose)

    def stop(self) -> None:
        self.loop.run_until_complete(self.service.stop())
        self.loop.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.stop()


@pytest.fixture
def serving(running: Serving, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(running.budget, "each", 100_000)
    monkeypatch.setattr(running.budget, "total", 300_000)
    yield running
    running.lose_all()
    assert not running.budget.used
    assert not running.problems


# --- bytes that are held


@pytest.mark.parametrize("data", [b"", b"\0"])
def test_calls_that_are_begun_and_not_ended_are_bounded_in_bytes(
    serving: Serving, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = serving.app.stats.get("callers_over_limit", 0)
    peer = serving.connect()
    for stream in range(1, 1001, 2):
        serving.feed(peer, head(stream) + (pack_frame(DATA, 0, stream, data) if data else b""))
        assert peer.held <= 100_000
    assert ended_with(peer.sink) == (2 * (100_000 // (STREAM_COST + len(data))) + 1, CALM)
    assert not peer.held
    assert not peer.caller.calls
    assert serving.app.stats["callers_over_limit"] == before + 1
    assert "10.1.2.3 exceeds a limit, its connection ends: 100" in caplog.text


def test_the_one_that_holds_most_ends_where_all_together_hold_too_much(serving: Serving) -> None:
    largest, *others = [serving.connect() for _ in range(5)]
    for stream in range(1, 81, 2):
        serving.feed(largest, head(stream))
    assert largest.held == 40 * STREAM_COST
    for peer in others:
        for stream in range(1, 61, 2):
            serving.feed(peer, head(stream))
    ended = [peer for peer in (largest, *others) if ended_with(peer.sink)]
    assert ended == [largest]
    serving.feed(others[0], call(1001))
    assert others[0].answered == [1001]


def test_a_part_of_a_frame_and_of_a_header_block_is_held_too(serving: Serving) -> None:
    peer = serving.connect()
    serving.feed(peer, pack_frame(HEADERS, 0, 1, bytes(9_000)))
    serving.feed(peer, pack_frame(9, 0, 1, bytes(5_000))[:4_000])
    assert peer.held == 9_000 + 4_000


def test_a_whole_call_leaves_nothing_held(serving: Serving) -> None:
    peer = serving.connect()
    serving.feed(peer, call(1), head(3) + pack_frame(DATA, 0, 3, EVENT[:9]))
    assert peer.held == STREAM_COST + 9
    serving.feed(peer, pack_frame(DATA, 1, 3, EVENT[9:]))
    assert peer.answered == [1, 3]
    assert not serving.budget.used


def test_a_stream_is_the_devices_where_there_is_such_a_device(serving: Serving) -> None:
    peer = serving.connect()
    created = message(pb.SocketCreatedRequest(conn="dev").SerializeToString())
    serving.feed(peer, call(1, created, CREATE))
    serving.feed(peer, head(3, STREAM), pack_frame(DATA, 0, 3, event("dev", b"hi")))
    assert serving.got[-1:] == [b"hi"]
    assert not peer.held
    assert 3 in peer.caller.calls
    for stream in range(5, 31, 2):  # a device has so many streams and no more
        serving.feed(peer, head(stream, STREAM), pack_frame(DATA, 0, stream, event("dev", b"hi")))
    assert len(peer.caller.calls) == 10
    serving.feed(peer, head(31, STREAM), pack_frame(DATA, 0, 31, event("nobody", b"hi")))
    assert serving.budget.used == STREAM_COST


def test_watches_of_the_health_are_bounded(serving: Serving) -> None:
    peer = serving.connect()
    for stream in range(1, 1001, 2):
        serving.feed(peer, call(stream, bytes(5), WATCH))
    assert ended_with(peer.sink) == (2 * (100_000 // STREAM_COST) + 1, CALM)


def test_answers_that_wait_for_the_peers_window_are_bounded(serving: Serving) -> None:
    peer = serving.connect()
    serving.feed(peer, pack_frame(SET, 0, 0, b"\0\4\0\0\0\0"))
    for stream in range(1, 1001, 2):
        serving.feed(peer, call(stream))
    assert ended_with(peer.sink) is not None
    assert not peer.held


def test_what_is_not_read_is_held_and_ends_in_time(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALLED", 0.01)
    peer = serving.connect()
    serving.run(peer.caller.protocol.pause_writing)
    assert peer.held == len(peer.sink.data)
    serving.loop.run_until_complete(asyncio.sleep(0.05))
    assert peer.sink.closed


def test_a_call_has_to_be_whole_in_time(serving: Serving) -> None:
    peer = serving.connect()
    serving.feed(peer, head(1), head(3, STREAM), call(5), head(7))
    peer.caller.calls[7].since += 1000.0
    serving.run(lambda: peer.caller.end_incomplete(peer.caller.http2.heard + caller.WHOLE_WAIT))
    assert peer.answered == [5, 1, 3]
    assert list(peer.caller.calls) == [7]
    assert not peer.sink.closed


# --- slices


def test_a_read_full_of_calls_lets_others_have_their_turn(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "SLICE", 0.0)
    monkeypatch.setattr(scheduler, "ROUND", 0.0)
    flood, other = serving.connect(), serving.connect()

    def come() -> None:
        flood.feed(b"".join(call(stream) for stream in range(1, 2001, 2)))
        other.feed(call(1))
        assert flood.sink.paused

    async def until_answered() -> None:
        come()
        while not other.answered:  # noqa: ASYNC110 - round by round
            await asyncio.sleep(0)

    serving.loop.run_until_complete(until_answered())
    assert len(flood.answered) < 100
    serving.run(lambda: None)
    assert len(flood.answered) == 1000
    assert not flood.sink.paused


def test_a_frame_full_of_messages_is_handled_in_pieces(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BATCH", 1)
    monkeypatch.setattr(transport, "SLICE", 0.0)
    monkeypatch.setattr(scheduler, "ROUND", 0.0)
    peer = serving.connect()
    serving.feed(peer, call(1, message(pb.SocketCreatedRequest(conn="many").SerializeToString()), CREATE))
    serving.feed(peer, head(3, STREAM))
    del serving.got[:]
    many = b"".join(event("many", b"%d" % number) for number in range(200))

    async def come() -> None:
        peer.feed(pack_frame(DATA, 1, 3, many) + call(5, event("many", b"last")))
        while not serving.got:  # noqa: ASYNC110 - round by round
            await asyncio.sleep(0)
        assert len(serving.got) < 100
        while len(serving.got) < 201:  # noqa: ASYNC110 - round by round
            await asyncio.sleep(0)

    serving.loop.run_until_complete(come())
    assert serving.got == [*[b"%d" % number for number in range(200)], b"last"]
    assert peer.answered == [1, 3, 5]


def test_a_large_read_is_the_last_of_its_round(serving: Serving) -> None:
    peer = serving.connect()

    async def come() -> None:
        peer.feed(head(1) + pack_frame(DATA, 0, 1, b"\0\0\1\0\0" + bytes(16_000)) * 5)
        assert peer.sink.paused

    serving.loop.run_until_complete(come())
    serving.run(lambda: None)
    assert not peer.sink.paused


# --- odd events


def test_events_of_an_unusual_size_are_refused_before_they_cost(serving: Serving) -> None:
    before = serving.app.stats.get("events_ignored", 0)
    peer = serving.connect()
    messages = request("/emqx.exproto.v1.ConnectionUnaryHandler/OnReceivedMessages")
    many = pb.ReceivedMessagesRequest(conn="c", messages=[pb.Message()] * 1001).SerializeToString()
    long = pb.SocketCreatedRequest(conn="c" * 2000).SerializeToString()
    large = pb.SocketCreatedRequest(conn="c", conninfo=pb.ConnInfo(peername=pb.Address(host="h" * 70_000)))
    serving.feed(peer, call(1, message(many), messages), call(3, message(long), CREATE))
    serving.feed(peer, call(5, message(large.SerializeToString()), CREATE))
    assert peer.answered == [1, 3, 5]
    assert serving.app.stats["events_ignored"] == before + 3


def test_a_table_that_is_resized_again_and_again_costs_two_bytes() -> None:
    encoder, decoder = Encoder(), Decoder()
    fields = ((b"a", b"1"),)
    for size in (0, 4096, 17, 1000) * 500:
        encoder.allow(size)
    block = encoder.encode(fields)
    assert len(block) < 12
    assert decoder.decode(block) == dict(fields)


# --- places


def test_a_connection_that_says_nothing_gives_way(serving: Serving) -> None:
    async def connect() -> None:
        callers = Callers(half_open=3)
        host = _Host(callers)
        made = []
        for _ in range(5):
            one, sink = Caller(host), Sink()
            one.protocol.connection_made(sink)  # type: ignore[arg-type] # as much of it as is used
            made.append((one, sink))
        assert [sink.closed for _, sink in made] == [True, True, False, False, False]
        for one, _ in made:
            one.protocol.connection_lost(None)
        assert not callers

    serving.loop.run_until_complete(connect())


def test_a_newcomer_has_the_place_of_the_oldest_that_has_called_nothing(serving: Serving) -> None:
    async def connect() -> None:
        callers = Callers(most=3)
        host = _Host(callers)
        made = []
        for number in range(5):
            one, sink = Caller(host), Sink()
            one.protocol.connection_made(sink)  # type: ignore[arg-type] # as much of it as is used
            one.protocol.data_received(PREFACE + SETTINGS)
            one.proven = number == 0
            made.append((one, sink))
        assert [sink.closed for _, sink in made] == [False, True, True, False, False]
        for one, _ in made:
            if one in callers:
                one.protocol.connection_lost(None)

    serving.loop.run_until_complete(connect())


class _Host:
    """A service without any method."""

    def __init__(self, callers: Callers) -> None:
        self.adapters = AdapterMap(["auto:9100"])
        self.methods: Any = {}
        self.callers = callers

    def say(self, *_: object) -> None:
        """Say nothing."""

    def count(self, _: str) -> None:
        """Count nothing."""


class _Exhausted(socket.socket):
    """A socket of a system that has no files left for a while."""

    left = 3

    def accept(self) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_accepting_pauses_where_there_are_no_files_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.01)
    counted: list[str] = []

    async def connect() -> None:
        sock = _Exhausted()
        sock.bind(("127.0.0.1", 0))
        callers = Callers()
        host = _Host(callers)
        listener = Acceptor(sock, None, lambda: Caller(host), counted.append)
        listener.start()
        _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        writer.write(PREFACE + SETTINGS)
        while not callers:  # noqa: ASYNC110 - a matter of three pauses
            await asyncio.sleep(0.005)
        await listener.close()
        for one in callers:
            one.protocol.abort()
        writer.close()
        await asyncio.sleep(0.01)
        assert not callers

    asyncio.run(connect())
    assert counted == ["accepts_paused"] * 3
    assert caplog.text.count("accepts no connections until others have ended: too many open files") == 1


# --- the adapter


def adapter_says(*pieces: bytes, calls: int = 3) -> tuple[list[int], Sink, AdapterClient]:
    """Call an adapter that says *pieces*; return what came of it."""

    async def ask() -> tuple[list[int], Sink, AdapterClient]:
        outcomes: list[int] = []
        client = AdapterClient("127.0.0.1", 9)
        connection, sink = ClientConnection(client), Sink()
        connection.protocol.connection_made(sink)  # type: ignore[arg-type] # as much of it as is used
        connection.protocol.data_received(SETTINGS)
        for _ in range(calls):
            client.call(client.method("/a/Send"), b"x", lambda status, _: outcomes.append(status))
        for piece in pieces:
            if not sink.closed:
                connection.protocol.data_received(piece)
            while client.scheduler.busy:  # noqa: ASYNC110 - round by round
                await asyncio.sleep(0)
            assert sum(len(call.answer) for call in connection.calls.values()) <= 65_536 + 16_384
        await asyncio.sleep(0)
        connection.protocol.connection_lost(None)
        await client.close()
        return outcomes, sink, client

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(pack_frame(PING, 0, 0, bytes(8)), id="pings"),
        pytest.param(pack_frame(SET, 0, 0, b"\0\1\0\0\0\0" * 2000), id="settings"),
        pytest.param(pack_frame(HEADERS, 4, 1, ANSWER), id="lists of fields"),
        pytest.param(pack_frame(7, 0, 0, b"\0\0\0\x01\0\0\0\0"), id="goaways"),
        pytest.param(pack_frame(99, 0, 0, bytes(100)), id="unknown frames"),
    ],
)
def test_a_flood_of_an_adapter_ends_its_connection(flood: bytes) -> None:
    outcomes, sink, _ = adapter_says(*[flood * 100] * 200)
    assert len(outcomes) == 3
    assert sink.closed


def test_data_that_nobody_asked_for_ends_the_adapters_connection() -> None:
    answer = pack_frame(HEADERS, 4, 1, ANSWER) + pack_frame(DATA, 0, 1, bytes(5))
    done = answer + pack_frame(HEADERS, 5, 1, TRAILERS)
    outcomes, sink, _ = adapter_says(done, *[pack_frame(DATA, 0, 1, bytes(100)) * 100] * 200)
    assert outcomes[0] == 0
    assert ended_with(sink) == (0, CALM)


def test_an_endless_answer_is_cut() -> None:
    outcomes, sink, _ = adapter_says(
        pack_frame(HEADERS, 4, 1, ANSWER), *[pack_frame(DATA, 0, 1, bytes(16_000))] * 10
    )
    assert outcomes[0] == 8
    assert RST in [kind for kind, *_ in frames(sink.data.removeprefix(PREFACE))]


def test_the_calls_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from exproto_app.hosts.grpc import client as module  # noqa: PLC0415 - named as the fixture's argument

    monkeypatch.setattr(module, "HELD", 1_000)

    async def ask() -> None:
        client = AdapterClient("127.0.0.1", 9)
        outcomes: list[tuple[int, bytes]] = []
        for size in (900, 200, 100):
            client.call(client.method("/a/Send"), bytes(size), lambda *one: outcomes.append(one))
        await asyncio.sleep(0)
        assert outcomes == [(8, b"calls of 900 bytes have no answer yet, limit is 1000")]
        await client.close()
        assert [status for status, _ in outcomes] == [8, 1, 1]
        assert not client._held

    asyncio.run(ask())


class Mute(asyncio.Protocol):
    """An adapter that says its settings and nothing more, or goes on saying them."""

    def __init__(self, flood: bool) -> None:
        self.flood = flood
        self.transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(SETTINGS)
        if self.flood:
            asyncio.get_running_loop().call_later(0.01, self._more)

    def _more(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(pack_frame(WINDOW, 0, 0, b"\0\0\0\1") * 100)
            asyncio.get_running_loop().call_later(0.01, self._more)


@pytest.mark.parametrize("flood", [False, True])
def test_a_stop_gives_a_mute_adapter_up_and_says_what_is_lost(
    flood: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "MUTE", 0.2)
    monkeypatch.setattr(service, "FAREWELL", 0.2)
    ended: list[str] = []
    app: App[Any] = App()

    @app.on_terminated
    def gone(conn: Connection[Any], reason: str) -> None:
        ended.append(reason)

    async def stop() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Mute(flood), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        serving = Service(app, Address("127.0.0.1", 0), AdapterMap([f"http://127.0.0.1:{port}"]))
        await serving.start()
        peer = Peer(serving)
        for number in range(3):
            created = message(pb.SocketCreatedRequest(conn=f"c{number}").SerializeToString())
            peer.feed(call(2 * number + 1, created, CREATE))
        await asyncio.sleep(0)
        await serving.stop()
        assert peer.sink.closed
        peer.lose()
        assert not any(broker.client.open for broker in serving.adapters)
        server.close()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    asyncio.run(stop())
    assert ended == ["shutdown"] * 3
    assert "was given up, it answered nothing within 0.2 s of the stop: 3 connections" in caplog.text


# --- whatever comes

BLOCKS = st.sampled_from(
    [BLOCK, STREAM, CREATE, WATCH, BLOCK[:7], b"\x82" * 300, b"\x20\x3f\xe1\x1f" + BLOCK]
)
BODIES = st.sampled_from(
    [
        EVENT,
        EVENT[:7],
        EVENT * 30,
        b"\0" * 5,
        b"\0" * 500,
        b"\0\0\1\0\0",
        b"\0\xff\xff\xff\xff",
        message(pb.SocketCreatedRequest(conn="c").SerializeToString()),
        message(pb.SocketClosedRequest(conn="c").SerializeToString()),
        event("d", b"stay"),
        bytes(16_000),
    ]
)
STREAMS = st.integers(0, 12)
FRAMES = st.one_of(
    st.builds(pack_frame, st.just(HEADERS), st.sampled_from([0, 1, 4, 5, 0x24, 0x2D]), STREAMS, BLOCKS),
    st.builds(pack_frame, st.just(DATA), st.sampled_from([0, 0, 1, 8, 9]), STREAMS, BODIES),
    st.builds(pack_frame, st.just(9), st.sampled_from([0, 4]), STREAMS, BLOCKS),
    st.builds(
        pack_frame,
        st.just(SET),
        st.sampled_from([0, 0, 0, 1]),
        st.just(0),
        st.lists(
            st.tuples(
                st.integers(0, 7), st.sampled_from([0, 1, 10, 4096, 16_384, 65_535, 2**31 - 1, 2**32 - 1])
            ),
            max_size=3,
        ).map(lambda pairs: b"".join(k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in pairs)),
    ),
    st.builds(
        pack_frame,
        st.just(WINDOW),
        st.just(0),
        STREAMS,
        st.sampled_from([1, 100, 65_535, 2**31 - 1]).map(lambda more: more.to_bytes(4, "big")),
    ),
    st.builds(pack_frame, st.just(RST), st.just(0), STREAMS, st.just(bytes(4))),
    st.builds(
        pack_frame, st.sampled_from([2, 5, 6, 7, 99]), st.integers(0, 1), STREAMS, st.binary(max_size=9)
    ),
    # As a peer does that means no harm: whole calls, streams in their order.
    st.sampled_from([call(1), call(3), call(5), call(7, EVENT * 3), head(9), head(11, STREAM)]),
)
TRAFFIC = st.lists(
    st.one_of(FRAMES, st.tuples(FRAMES, st.integers(2, 40)).map(lambda many: many[0] * many[1])), max_size=25
)


@st.composite
def pieces(draw: Any) -> list[bytes]:
    """Return frames, some cut or altered, in pieces of any size."""
    data = bytearray(b"".join(draw(TRAFFIC)))
    for at in draw(st.lists(st.integers(0, max(len(data) - 1, 0)), max_size=2)):
        if data:
            data[at] ^= draw(st.integers(0, 255))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


@pytest.fixture(scope="module")
def attacked() -> Iterator[Serving]:
    serving = Serving()
    serving.budget.each, serving.budget.total = 50_000, 120_000
    logging.getLogger("exproto_app").setLevel(logging.ERROR)
    yield serving
    logging.getLogger("exproto_app").setLevel(logging.NOTSET)
    serving.stop()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(attacks=st.lists(pieces(), min_size=1, max_size=4))
def test_whatever_some_peers_send_others_are_served_and_memory_is_bounded(
    attacked: Serving, caplog: pytest.LogCaptureFixture, attacks: list[list[bytes]]
) -> None:
    """Their pieces come in turn; a connection that sends whole calls has an answer to each."""
    serving = attacked
    good = serving.connect()
    hostile = [serving.connect() for _ in attacks]
    stream = 1
    try:
        for turn in range(max(len(one) for one in attacks)):
            for peer, data in zip(hostile, attacks, strict=True):
                if turn < len(data):
                    serving.feed(peer, data[turn])
                assert peer.held <= serving.budget.each
                assert serving.budget.used <= serving.budget.total
            serving.feed(good, call(stream, event("good", b"hi")))
            assert good.answered[-1] == stream
            stream += 2
        assert not good.sink.closed
        for peer in hostile:
            if peer.sink.closed:
                assert ended_with(peer.sink) is not None
    finally:
        serving.lose_all()
    assert not serving.budget.used
    assert not serving.problems
    assert not caplog.records


REPLIES = st.one_of(
    FRAMES,
    st.sampled_from([1, 3, 5]).flatmap(
        lambda stream: st.sampled_from(
            [
                pack_frame(HEADERS, 4, stream, ANSWER),
                pack_frame(DATA, 0, stream, bytes(5)),
                pack_frame(DATA, 0, stream, b"\0\xff\xff\xff\xff"),
                pack_frame(HEADERS, 5, stream, TRAILERS),
                pack_frame(RST, 0, stream, b"\0\0\0\7"),
            ]
        )
    ),
)


@settings(deadline=None)
@given(
    said=st.lists(
        st.tuples(REPLIES, st.sampled_from([1, 1, 1, 30])).map(lambda it: it[0] * it[1]), max_size=25
    )
)
def test_whatever_an_adapter_says_each_call_has_one_outcome(said: list[bytes]) -> None:
    logging.getLogger("exproto_app").setLevel(logging.ERROR)
    try:
        outcomes, _, client = adapter_says(*said)
    finally:
        logging.getLogger("exproto_app").setLevel(logging.NOTSET)
    assert len(outcomes) == 3
    assert not client._held


# --- in proportion


def steps(function: Callable[[], object]) -> int:
    """Return how many calls *function* makes, those of the interpreter's own functions included."""
    count = 0

    def profile(_: FrameType, kind: str, __: Any) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def repeated(unit: str, times: int) -> bytes:  # noqa: PLR0911 - one unit after another
    """Return *times* of what is named, each on a stream of its own where that matters."""
    streams = range(1, 2 * times + 1, 2)
    match unit:
        case "calls":
            return b"".join(call(stream) for stream in streams)
        case "unfinished calls":
            return b"".join(head(stream) + pack_frame(DATA, 0, stream, b"\0") for stream in streams)
        case "bytes of one call":
            return head(1) + pack_frame(DATA, 0, 1, b"\0\0\1\0\0") + pack_frame(DATA, 0, 1, b"x") * times
        case "messages of one call":
            return head(1, STREAM) + b"".join(pack_frame(DATA, 0, 1, EVENT * 20) for _ in range(times // 20))
        case "answers without a window":
            closed = pack_frame(SET, 0, 0, b"\0\4\0\0\0\0")
            return closed + b"".join(call(s) + pack_frame(WINDOW, 0, 0, b"\0\0\0\1") for s in streams)
        case "windows of one byte":
            closed = pack_frame(SET, 0, 0, b"\0\4\0\0\0\0")
            calls = b"".join(call(stream) for stream in streams)
            return closed + calls + b"".join(pack_frame(WINDOW, 0, s, b"\0\0\0\1") for s in streams)
        case "initial windows":
            calls = b"".join(call(stream) for stream in streams)
            sizes = pack_frame(SET, 0, 0, b"\0\4\0\0\0\1") + pack_frame(SET, 0, 0, b"\0\4\0\0\0\0")
            return pack_frame(SET, 0, 0, b"\0\4\0\0\0\0") + calls + sizes * 100
        case "table sizes":
            return pack_frame(SET, 0, 0, b"\0\1\0\0\0\0\0\1\0\0\x10\0") * times
        case "resets":
            return b"".join(head(s) + pack_frame(RST, 0, s, bytes(4)) for s in streams)
    raise AssertionError(unit)


@pytest.mark.parametrize(
    "unit",
    [
        "calls",
        "unfinished calls",
        "bytes of one call",
        "messages of one call",
        "answers without a window",
        "windows of one byte",
        "initial windows",
        "table sizes",
        "resets",
    ],
)
def test_work_is_in_proportion_to_what_came(
    running: Serving, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as much of anything takes about twice the steps, however it is cut."""
    # Else it is a matter of time which answers there are when a window changes.
    monkeypatch.setattr(transport, "SLICE", 3600.0)
    for one in (scheduler, engine_scheduler):
        monkeypatch.setattr(one, "ROUND", 3600.0)

    def cost(times: int, chunk: int) -> int:
        data = repeated(unit, times)
        peer = running.connect()

        def feed() -> None:
            for at in range(0, len(data), chunk):
                running.feed(peer, data[at : at + chunk])

        try:
            return steps(feed)
        finally:
            running.lose_all()

    for chunk in (300, 10**6):
        assert cost(800, chunk) < 6 * cost(200, chunk) + 8_000
    assert not running.problems


def test_an_account_is_closed_once() -> None:
    budget = Budget(each=100, total=150)
    ended: list[str] = []
    one = Account(budget, lambda error: ended.append(f"one: {error}"))
    two = Account(budget, lambda error: ended.append(f"two: {error}"))
    one.charge(90)
    two.charge(70)
    assert ended == [
        "one: 160 bytes are held for all connections, limit is 150, and it holds most of them, 90"
    ]
    one.charge(1000)
    one.release(1000)
    one.close()
    assert budget.used == 70
    two.charge(31)
    assert ended[1:] == ["two: 101 bytes are held for it, limit is 100"]
    assert not budget.used
    assert not budget.accounts


def test_a_huffman_block_is_decoded_in_proportion() -> None:
    def cost(size: int) -> int:
        block = bytes(hpack.Encoder().encode([("a", "0" * size)]))
        return steps(lambda: Decoder().decode(block))

    assert cost(8_000) < 6 * cost(2_000) + 1_000
