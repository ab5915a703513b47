"""HTTP/2 and HPACK, byte by byte; and what a real EMQX sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app.hosts.grpc import exproto_pb2 as pb
from exproto_app.hosts.grpc.events import _start
from exproto_app.hosts.http2 import Budget, ProtocolError
from exproto_app.hosts.http2.frames import PREFACE, pack_frame
from exproto_app.hosts.http2.header_blocks import BlockError as HpackError
from exproto_app.hosts.http2.header_blocks import Decoder, Encoder
from exproto_app.hosts.http2.scheduler import Scheduler
from exproto_app.hosts.http2.transport import Http2Protocol
from exproto_app.hosts.reasons import reason

RECORDED = sorted((Path(__file__).parent.parent / "data" / "exproto-grpc").glob("*.jsonl"))

# RFC 7541, C.4 and C.3: the same three requests, with and without the Huffman code.
HUFFMAN = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)
PLAIN = (
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
)


@pytest.mark.parametrize("blocks", [HUFFMAN, PLAIN])
def test_the_examples_of_the_rfc(blocks: tuple[str, ...]) -> None:
    decoder = Decoder()
    first, second, third = (decoder.decode(bytes.fromhex(block)) for block in blocks)
    assert first == {
        b":method": b"GET",
        b":scheme": b"http",
        b":path": b"/",
        b":authority": b"www.example.com",
    }
    assert second == {**first, b"cache-control": b"no-cache"}
    assert third == {
        **first,
        b":scheme": b"https",
        b":path": b"/index.html",
        b"custom-key": b"custom-value",
    }


def test_a_block_means_something_else_when_the_table_has_changed() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x011")
    assert decoder.decode(b"\xbe") == {b"a": b"1"}
    assert decoder.decode(b"\xbe") == {b"a": b"1"}
    decoder.decode(b"\x40\x01b\x012")
    assert decoder.decode(b"\xbe") == {b"b": b"2"}
    assert decoder.decode(b"\xbf") == {b"a": b"1"}


@given(st.binary(max_size=60))
def test_no_bytes_harm_the_decoder(data: bytes) -> None:
    with contextlib.suppress(HpackError):
        Decoder().decode(data)


fields = st.lists(
    st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=20)),
    max_size=5,
    unique_by=lambda field: field[0],
).map(tuple)


@given(st.lists(fields, max_size=40), st.sampled_from([None, 0, 100, 4096, 65_536]))
def test_what_is_encoded_is_decoded(lists: list[Any], size: int | None) -> None:
    encoder, decoder = Encoder(), Decoder()
    if size is not None:
        encoder.allow(size)
    for some in lists:
        assert decoder.decode(encoder.encode(some)) == dict(some)


class Heard:
    """An owner that takes note."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.calls: dict[int, object] = {}

        self.held = 0
        self.unfinished = False

    def connected(self) -> None:
        self.events.append("connected")

    def settled(self) -> None:
        self.events.append("settled")

    def headers(self, stream: int, fields: Any, *, ended: bool) -> None:
        self.calls[stream] = fields
        self.events.append(("headers", stream, fields, ended))

    def data(self, stream: int, data: bytes, *, ended: bool) -> None:
        self.events.append(("data", stream, data, ended))

    def reset(self, stream: int, code: int) -> None:
        self.events.append(("reset", stream, code))

    def going(self, last: int) -> None:
        self.events.append(("going", last))

    def resume(self) -> None:
        raise AssertionError("nothing is unfinished")

    def unsuitable(self, data: bytes) -> None:
        self.events.append(("unsuitable", data))

    def broke_rule(self, error: ProtocolError) -> None:
        self.broken = error

    def writable(self) -> None:
        self.events.append("writable")

    def closed(self, detail: str) -> None:
        self.events.append("closed")


class Sink:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = self.paused = False

    def write(self, data: bytes) -> None:
        self.data += data

    def get_write_buffer_size(self) -> int:
        return len(self.data)

    def set_write_buffer_limits(self, high: int) -> None:
        assert high

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> Any:
        return ("::ffff:10.1.2.3", 5, 0, 0)


def served(*pieces: bytes, chunk: int = 0) -> tuple[Http2Protocol, Heard, Sink]:
    """Feed a server's connection with *pieces*; return what came of it."""

    async def feed() -> tuple[Http2Protocol, Heard, Sink]:
        owner, sink = Heard(), Sink()
        scheduler = Scheduler(asyncio.get_running_loop())
        protocol = Http2Protocol(owner, scheduler, Budget(), client=False)
        protocol.connection_made(sink)  # type: ignore[arg-type] # as much of a transport as is used
        data = b"".join(pieces)
        for at in range(0, len(data), chunk or len(data)):
            protocol.data_received(data[at : at + (chunk or len(data))])
        while scheduler.busy:  # noqa: ASYNC110 - round by round
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return protocol, owner, sink

    return asyncio.run(feed())


SETTINGS = pack_frame(4, 0, 0)
REQUEST = (
    pack_frame(1, 0x4, 1, b"\x83\x86\x44\x02/x"),
    pack_frame(0, 0, 1, b"\0\0\0\0\3ab"),
    pack_frame(0, 1, 1, b"c"),
)
SEEN = [
    "connected",
    "settled",
    ("headers", 1, {b":method": b"POST", b":scheme": b"http", b":path": b"/x"}, False),
    ("data", 1, b"\0\0\0\0\3ab", False),
    ("data", 1, b"c", True),
]


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_frames_in_pieces(chunk: int) -> None:
    protocol, owner, sink = served(PREFACE, SETTINGS, *REQUEST, chunk=chunk)
    assert owner.events == SEEN
    assert pack_frame(4, 1, 0) in sink.data
    assert protocol.peer == "10.1.2.3"


def test_padding_priorities_continuations_and_unknown_frames() -> None:
    block = b"\x83\x86\x44\x02/x"
    _, owner, _ = served(
        PREFACE,
        SETTINGS,
        pack_frame(99, 0, 0, b"?"),
        pack_frame(1, 0x28, 1, b"\2" + b"\0\0\0\0\x10" + block[:3] + b"\0\0"),
        pack_frame(9, 0, 1, block[3:4]),
        pack_frame(9, 0x4, 1, block[4:]),
        pack_frame(0, 0x8, 1, b"\3" + b"\0\0\0\0\3ab" + b"\0\0\0"),
        pack_frame(0, 0x9, 1, b"\0c"),
    )
    assert owner.events == SEEN


def test_a_ping_is_answered_and_a_window_given_back() -> None:
    _, _, sink = served(PREFACE, SETTINGS, pack_frame(6, 0, 0, b"12345678"), REQUEST[0])
    assert pack_frame(6, 1, 0, b"12345678") in sink.data
    many = [pack_frame(0, 0, 1, b"x" * 16_384)] * 3
    _, _, sink = served(PREFACE, SETTINGS, REQUEST[0], *many)
    assert pack_frame(8, 0, 1, (32_768).to_bytes(4, "big")) in sink.data


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x40\x01" + bytes(16_500),
        pack_frame(1, 0x4, 1, b"\xff\xff\xff\xff\xff\xff"),
        pack_frame(9, 0x4, 1, b"\x83"),
        pack_frame(1, 0, 1, b"\x83") + pack_frame(6, 0, 0, b"12345678"),
        pack_frame(0, 0x8, 1, b"\x05abc"),
        pack_frame(0, 0, 0, b"abc"),
        pack_frame(6, 0, 0, b"1"),
        pack_frame(8, 0, 1, b"1"),
        pack_frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        pack_frame(7, 0, 0, b"1"),
        pack_frame(3, 0, 1, b"1"),
        pack_frame(4, 0, 0, b"1"),
        pack_frame(5, 0, 1, b"1234"),
        pack_frame(1, 0, 1, b"x" * 16_000) + pack_frame(9, 0, 1, b"x" * 16_000) * 4,
    ],
)
def test_broken_rules_end_the_connection(frame: bytes) -> None:
    _, owner, sink = served(PREFACE, SETTINGS, frame, REQUEST[0])
    assert sink.closed
    assert owner.events == ["connected", "settled"]


def test_sending_waits_for_the_peers_window() -> None:
    async def send() -> None:
        owner, sink = Heard(), Sink()
        scheduler = Scheduler(asyncio.get_running_loop())
        protocol = Http2Protocol(owner, scheduler, Budget(), client=False)
        protocol.connection_made(sink)  # type: ignore[arg-type] # as above
        protocol.data_received(PREFACE + pack_frame(4, 0, 0, b"\0\4\0\0\0\x0a") + REQUEST[0])
        await asyncio.sleep(0)
        sink.data = b""
        protocol.http2.send(1, b"x" * 25, ended=False, tail=b"TAIL")
        await asyncio.sleep(0)
        assert sink.data == pack_frame(0, 0, 1, b"x" * 10)
        assert protocol.http2.waits(1)
        protocol.data_received(pack_frame(8, 0, 1, b"\0\0\0\x0b"))
        await asyncio.sleep(0)
        assert sink.data == pack_frame(0, 0, 1, b"x" * 10) + pack_frame(0, 0, 1, b"x" * 11)
        protocol.data_received(pack_frame(4, 0, 0, b"\0\4\0\0\0\x20"))
        await asyncio.sleep(0)
        assert sink.data.endswith(pack_frame(0, 0, 1, b"x" * 4) + b"TAIL")
        assert not protocol.http2.waits(1)

    asyncio.run(send())


@given(st.binary(max_size=200))
def test_no_bytes_harm_the_connection(data: bytes) -> None:
    served(PREFACE, SETTINGS, data)
    served(data, b"?")


def recorded(method: str) -> Iterator[bytes]:
    for path in RECORDED:
        for line in path.read_text().splitlines():
            it = json.loads(line)
            if it["method"] == method and "hex" in it:
                yield bytes.fromhex(it["hex"])


def test_what_emqx_sent_is_read_by_hand_as_by_protobuf() -> None:
    seen = 0
    for message in recorded("OnReceivedBytes"):
        request = pb.ReceivedBytesRequest.FromString(message)
        start = _start(message, 2 + message[1])
        assert message[2 : 2 + message[1]] == request.conn.encode()
        assert message[start:] == request.bytes
        seen += 1
    assert seen > 50


@given(st.binary(max_size=300), st.text("abc=", min_size=1, max_size=100))
def test_reading_by_hand(data: bytes, conn: str) -> None:
    message = pb.ReceivedBytesRequest(conn=conn, bytes=data).SerializeToString()
    start = _start(message, 2 + len(conn))
    assert message[start:] == data if data else start == 0


def test_the_reason_of_a_call_that_failed() -> None:
    assert reason("{shutdown,{error,{on_received_bytes,{'UNKNOWN',<<>>}}}}") == "lost"


def test_the_reasons_that_emqx_gave() -> None:
    found = {pb.SocketClosedRequest.FromString(it).reason for it in recorded("OnSocketClosed")}
    assert {words: reason(words) for words in sorted(found)} == {
        "{shutdown,discarded}": "taken over",
        "{shutdown,keepalive_timeout}": "timeout",
        "{shutdown,normal}": "device closed",
        "{shutdown,tcp_closed}": "device closed",
    }
