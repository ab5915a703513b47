"""Hostile structure for the formats that we read: well-formed but for what is wrong with it.

Bytes at random seldom get past the first check. What is made here is right in most places: lengths, counts,
nesting, order and encodings are those of the format, and one or the other of them lies.
"""

from __future__ import annotations

import ast
import contextlib
import io
import ipaddress
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exproto_app import App, Connection
from exproto_app.errors import FramingError, SetupError
from exproto_app.framing import Line
from exproto_app.hosts.emqx42.conf import LIMITS, Planned, broker_config
from exproto_app.hosts.emqx42.generate import files, module_name
from exproto_app.hosts.emqx42.terms import TermError, decode, encode
from exproto_app.hosts.gateway.proxy import LIMIT, SIGNATURE, header
from exproto_app.testing import replay
from exproto_app.traffic.capture import read
from exproto_app.traffic.hexdump import dump, undump
from exproto_app.traffic.recording import parse

from .test_linear import in_proportion, steps

pytestmark = pytest.mark.timeout(900)  # of many examples, on a busy machine
slow = settings(suppress_health_check=[HealthCheck.too_slow])
small = st.integers(0, 300)
sizes = st.one_of(small, st.sampled_from([0xFF, 0xFFFF, 0xFFFF_FFFF, 2**31]))


def in_one_sentence(error: Exception) -> None:
    """Assert that *error* can be told in a line."""
    assert str(error)
    assert "\n" not in str(error)


def echo() -> App:
    app = App(framing=Line(limit=64))

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> bytes:
        conn.publish("up", frame)
        return frame

    @app.on_deliver
    def message(conn: Connection, message: Any) -> bytes:
        return bytes(message.payload)

    return app


# --- Erlang's external term format


def lying(true: int) -> st.SearchStrategy[int]:
    """Return a count that is mostly true."""
    return st.one_of(st.just(true), st.just(true), sizes)


def sized(tag: bytes, form: str, body: bytes) -> st.SearchStrategy[bytes]:
    most = 256 ** struct.calcsize(form) - 1
    return lying(len(body)).map(lambda size: tag + struct.pack(form, min(size, most)) + body)


def atoms() -> st.SearchStrategy[bytes]:
    return st.binary(max_size=6).flatmap(
        lambda text: st.one_of(
            sized(b"s", ">B", text), sized(b"w", ">B", text), sized(b"d", ">H", text), sized(b"v", ">H", text)
        )
    )


leaves = st.one_of(
    atoms(),
    st.binary(max_size=8).flatmap(lambda body: sized(b"m", ">I", body)),
    st.binary(max_size=8).flatmap(lambda body: sized(b"k", ">H", body)),
    st.binary(max_size=9).flatmap(lambda body: sized(b"n", ">B", body)),
    st.binary(max_size=9).flatmap(lambda body: sized(b"o", ">I", body)),
    st.sampled_from([b"j", b"a\x01", b"b\xff\xff\xff\xff", b"F" + b"\x7f\xf0" + bytes(6), b"c" + b"x" * 31]),
    st.builds(lambda atom, rest: b"X" + atom + rest, atoms(), st.binary(min_size=12, max_size=13)),
    st.builds(
        lambda atom, words: b"Z\0" + bytes([words]) + atom + bytes(4 + 4 * words), atoms(), st.integers(0, 9)
    ),
    st.builds(
        lambda size, bits: b"M" + struct.pack(">IB", size, bits) + b"x" * size,
        st.integers(0, 4),
        st.integers(0, 9),
    ),
)


def nested(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    items = st.lists(inner, max_size=4)

    def counted(tag: bytes, form: str, per: int = 1) -> Callable[[list[bytes]], st.SearchStrategy[bytes]]:
        most = 256 ** struct.calcsize(form) - 1
        return lambda each: lying(len(each) // per).map(
            lambda count: tag + struct.pack(form, min(count, most)) + b"".join(each)
        )

    wrapped = st.builds(
        lambda term, kind: (
            b"h\x03s\x0e$erlport.opaque".replace(b"\x0e", b"\x0f")
            + kind
            + b"m"
            + struct.pack(">I", len(term))
            + term
        ),
        inner,
        st.sampled_from([b"s\x06erlang", b"s\x06python"]),
    )
    return st.one_of(
        items.flatmap(counted(b"h", ">B")),
        items.flatmap(counted(b"i", ">I")),
        items.flatmap(counted(b"t", ">I", 2)),
        st.tuples(items.flatmap(counted(b"l", ">I")), st.one_of(st.just(b"j"), inner)).map(b"".join),
        wrapped,
    )


@slow
@given(st.recursive(leaves, nested, max_leaves=12))
def test_a_term_whose_structure_lies_is_a_term_or_an_error(term: bytes) -> None:
    """Counts, sizes, nesting, tails, bitstrings and what erlport wraps."""
    try:
        value = decode(b"\x83" + term)
    except TermError:
        return
    encode(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: b"l\0\0\0\1a\1" * size + b"j",
        lambda size: b"l\0\0\0\0" * size + b"j",
        lambda size: b"l\0\0\0\1a\1" * 250 + b"l" + struct.pack(">I", size) + b"a\1" * size + b"j",
        lambda size: b"h\1" * size,
        lambda size: b"k" + struct.pack(">H", min(size, 65_535)) + bytes(min(size, 65_535)),
        lambda size: b"t" + struct.pack(">I", size) + b"a\1j" * size,
    ],
)
def test_a_term_is_read_in_steps_in_proportion(make: Callable[[int], bytes]) -> None:
    def cost(size: int) -> int:
        def read_it() -> None:
            with contextlib.suppress(TermError):
                decode(b"\x83" + make(size))

        return steps(read_it)

    assert in_proportion(cost)


# --- PROXY headers

words = st.sampled_from(
    [b"TCP4", b"TCP6", b"UNKNOWN", b"", b"127.0.0.1", b"::1", b"1", b"65536", b"01", b"-1", b"+1"]
)
version_1 = st.builds(
    lambda each, end: b"PROXY " + b" ".join(each) + end,
    st.lists(st.one_of(words, st.binary(max_size=4)), max_size=8),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b"", b"\0\r\n"]),
)
version_2 = st.builds(
    lambda version, family, body, size: (
        SIGNATURE
        + struct.pack("!BBH", version, family, min(len(body) if size is None else size, 65_535))
        + body
    ),
    st.sampled_from([0x20, 0x21, 0x22, 0x11, 0]),
    st.sampled_from([0, 0x11, 0x12, 0x13, 0x21, 0x22, 0x31, 0x32, 0x41, 0xFF]),
    st.one_of(st.binary(max_size=60), st.binary(min_size=216, max_size=230), st.just(bytes(LIMIT))),
    st.one_of(st.none(), st.none(), sizes),
)


@given(data=st.one_of(version_1, version_2), rest=st.binary(max_size=10))
def test_a_proxy_header_is_read_refused_or_unfinished_and_nothing_behind_it_is(
    data: bytes, rest: bytes
) -> None:
    reading = header()
    at, wanted = 0, next(reading)
    stream = data + rest
    try:
        while at + wanted <= len(stream):
            assert wanted > 0
            piece, at = stream[at : at + wanted], at + wanted
            wanted = reading.send(piece)
    except StopIteration as done:
        assert at <= LIMIT
        if done.value is not None:
            for end in (done.value.source, done.value.destination):
                ipaddress.ip_address(end.host)
                assert 0 <= end.port <= 65_535
    except FramingError as error:
        in_one_sentence(error)
    else:
        assert wanted <= LIMIT


# --- recordings

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
hexes = st.one_of(st.binary(max_size=8).map(bytes.hex), st.sampled_from(["0", "zz", "7 8", "\uff10\uff11"]))
addresses = st.sampled_from(["127.0.0.1:1", "[::1]:65535", "x", ":", "1:2:3", "h:-1", "h:99999", "h:\u0663"])
topics = st.sampled_from(["t", "", "#", "a/+", "\0", "t" * 70_000, "$SYS", "\ud800"])
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "at": st.one_of(st.floats(0, 100), st.sampled_from([-1, 1e308, float("inf")])),
    "conn": st.sampled_from(["", "1", "2", "\n"]),
    "protocol": st.sampled_from(["", "default", "nobody"]),
    "hex": hexes,
    "handler": st.sampled_from([None, "frame"]),
    "topic": topics,
    "qos": st.sampled_from([0, 1, 2, 3, True]),
    "retain": st.booleans(),
    "more": st.integers(0, 3),
    "socktype": st.sampled_from(["tcp", "udp", "dtls", "x"]),
    "peer": addresses,
    "local": addresses,
    "late": st.booleans(),
    "client": st.fixed_dictionaries(
        {"clientid": st.one_of(topics, st.integers())},
        optional={"keepalive": anything, "username": anything, "x": anything},
    ),
    "cert": st.dictionaries(
        st.sampled_from(["dn", "cn", "x"]), st.one_of(st.text(max_size=3), anything), max_size=3
    ),
    "what": st.sampled_from(["publish", "register", "bytes", "x"]),
    "error": st.sampled_from(["DeniedError", "SetupError", "__doc__", "CommandError", "annotations"]),
    "text": st.text(max_size=5),
    "where": st.text(max_size=5),
    "count": st.integers(-1, 5),
    "reason": st.sampled_from(["device closed", "shutdown", "error", "kicked", "x"]),
    "detail": st.text(max_size=5),
}
FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "opened": (("socktype", "peer", "local"), ("cert", "late", "client")),
    "in": (("hex",), ()),
    "frame": (("hex", "handler"), ()),
    "out": (("hex",), ()),
    "published": (("topic", "hex", "qos", "retain"), ()),
    "delivered": (("topic", "hex", "qos", "retain", "handler", "more"), ()),
    "registered": (("client",), ()),
    "subscribed": (("topic", "qos"), ()),
    "unsubscribed": (("topic",), ()),
    "refused": (("what", "topic", "error", "text"), ()),
    "failed": (("where", "text"), ()),
    "dropped": (("what", "count"), ()),
    "closed": (("reason", "detail"), ()),
    "gap": (("count",), ()),
}


@st.composite
def events(draw: Any) -> dict[str, Any]:
    """Return a line of a recording, now and then with a value of any other kind, or without one."""
    kind = draw(st.sampled_from(sorted(FIELDS)))
    needed, optional = FIELDS[kind]
    names = [
        "at",
        "conn",
        "protocol",
        *needed,
        *draw(st.lists(st.sampled_from(optional or needed), max_size=2)),
    ]
    facts = {"event": kind, **{name: draw(GOOD[name]) for name in names}}
    if draw(st.integers(0, 4)) == 0:
        facts[draw(st.sampled_from(sorted(facts)))] = draw(anything)
    if draw(st.integers(0, 9)) == 0:
        del facts[draw(st.sampled_from(sorted(facts)))]
    return facts


starts = st.one_of(
    st.just({"recording": 1, "part": 1, "started": "2026-01-01T00:00:00Z", "by": "x"}),
    st.fixed_dictionaries(
        {"recording": st.sampled_from([1, 1.0, True, 2, "1"])},
        optional={"started": st.one_of(anything, st.just("0001-01-01T00:00:00")), "part": anything},
    ),
)


@slow
@given(start=starts, said=st.lists(events(), max_size=8), speed=st.booleans())
def test_a_recording_whose_structure_lies_is_told_in_a_sentence_or_replayed(
    start: dict[str, Any], said: list[dict[str, Any]], speed: bool
) -> None:
    lines = [json.dumps(facts) + "\n" for facts in (start, *said)]
    try:
        recording = parse(lines, "it.jsonl")
        for entry in recording.entries:
            entry.at = min(entry.at, 1_000.0)
        replay(echo(), recording, protocol="default", chunk=3 if speed else None)
    except SetupError as error:
        in_one_sentence(error)


def test_a_recording_of_many_connections_is_compared_in_proportion() -> None:
    def cost(size: int) -> int:
        ends = {"protocol": "", "socktype": "tcp", "peer": "1.2.3.4:5", "local": "1.2.3.4:6"}
        lines = [json.dumps({"recording": 1, "part": 1, "started": "", "by": ""})]
        for number in range(size // 10):
            lines.append(json.dumps({"at": number, "conn": str(number), "event": "opened", **ends}))
            lines.append(
                json.dumps({"at": number, "conn": str(number), "protocol": "", "event": "in", "hex": "610a"})
            )
        recording = parse([line + "\n" for line in lines], "it")
        return steps(lambda: replay(echo(), recording))

    assert in_proportion(cost)


# --- captures


def ipv4(body: bytes, protocol: int, total: int | None, options: int) -> bytes:
    size = 20 + 4 * options + len(body) if total is None else total
    head = struct.pack(">BBHHHBBH", 0x45 + options, 0, size & 0xFFFF, 1, 0, 64, protocol, 0)
    return head + b"\x0a\0\0\x01\x0a\0\0\x07" + bytes(4 * options) + body


tcp_segments = st.builds(
    lambda ports, seq, flags, offset, data: (
        struct.pack(">HHIIBBHHH", *ports, seq, 0, offset << 4, flags, 100, 0, 0) + data
    ),
    st.sampled_from([(40_000, 7_993), (7_993, 40_000), (7_993, 7_993), (0, 0)]),
    st.sampled_from([0, 1, 5, 2**31, 2**32 - 1]),
    st.sampled_from([0x02, 0x12, 0x10, 0x11, 0x04, 0x00, 0xFF]),
    st.sampled_from([5, 5, 0, 15]),
    st.binary(max_size=8),
)
udp_datagrams = st.builds(
    lambda size, data: struct.pack(">HHHH", 40_000, 7_993, 8 + len(data) if size is None else size, 0) + data,
    st.one_of(st.none(), st.sampled_from([0, 7, 0xFFFF])),
    st.binary(max_size=8),
)
ip_packets = st.builds(
    lambda body, total, options: ipv4(body[1], body[0], total, options),
    st.one_of(
        st.tuples(st.just(6), tcp_segments),
        st.tuples(st.just(17), udp_datagrams),
        st.tuples(small.map(lambda n: n % 256), st.binary(max_size=9)),
    ),
    st.one_of(st.none(), st.none(), sizes),
    st.sampled_from([0, 0, 1, 10]),
)
ethernet = st.builds(
    lambda kind, body: bytes(12) + struct.pack(">H", kind) + body,
    st.sampled_from([0x0800, 0x0800, 0x86DD, 0x8100, 0x0806, 100]),
    st.one_of(ip_packets, ip_packets.map(lambda data: b"\0\1\x08\0" + data)),
)


def pcap(frames: list[tuple[bytes, int | None]], link: int, snap: int) -> bytes:
    out = io.BytesIO()
    out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snap, link))
    for number, (frame, size) in enumerate(frames):
        out.write(struct.pack("<IIII", number, 0, len(frame) if size is None else size, len(frame)) + frame)
    return out.getvalue()


def pcapng(frames: list[tuple[bytes, int | None]], link: int, snap: int) -> bytes:
    out = io.BytesIO()
    out.write(struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28))
    out.write(struct.pack("<IIHHII", 1, 20, link, 0, snap, 20))
    for frame, size in frames:
        pad = bytes(-len(frame) % 4)
        total = 32 + len(frame) + len(pad)
        said = len(frame) if size is None else size & 0xFFFF_FFFF
        out.write(struct.pack("<IIIIIII", 6, total, 0, 0, 1, said, len(frame)) + frame + pad)
        out.write(struct.pack("<I", total if size is None else said))
    return out.getvalue()


captures = st.builds(
    lambda make, frames, link, snap: make(frames, link, snap),
    st.sampled_from([pcap, pcapng]),
    st.lists(st.tuples(ethernet, st.one_of(st.none(), st.none(), st.none(), sizes)), max_size=8),
    st.sampled_from([1, 1, 1, 0, 12, 101, 113, 276, 999]),
    st.sampled_from([65_535, 0, 2**31]),
)


@slow
@given(data=captures, port=st.sampled_from([None, 7_993, 1]))
def test_a_capture_whose_structure_lies_is_told_in_a_sentence_or_replayed(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, port: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "lies.pcap"
    path.write_bytes(data)
    try:
        replay(echo(), read(path, port=port), protocol="default")
    except SetupError as error:
        in_one_sentence(error)


# --- hex

digits = st.sampled_from(["78", "7", "0x78", "0X", "\\x78", "zz", "7878", "\u0667", "0"])
between = st.sampled_from(
    [" ", "\n", ", ", "{", "}", "/*", "*/", "//", "#", "*\n", "|", ":", "b'", "'", "  ", "\t", "\0"]
)
offsets = st.sampled_from(
    ["00000000  ", "00000010: ", "0000010 ", "00000000\n", "ffffffff  ", "000000000000000f  "]
)
texts = st.lists(st.one_of(digits, between, offsets), max_size=25).map("".join)


@given(texts)
@example("00000000  78\n*\nfffffff0\n")
def test_hex_in_any_style_and_mixture_is_bytes_or_a_sentence(text: str) -> None:
    try:
        data = undump(text)
    except SetupError as error:
        in_one_sentence(error)
    else:
        assert len(data) <= len(text) + 2**24


@given(data=st.binary(min_size=1, max_size=80), place=st.integers(0, 400), put=between)
def test_a_dump_with_something_put_into_it_is_bytes_or_a_sentence(data: bytes, place: int, put: str) -> None:
    text = "\n".join(dump(data))
    with contextlib.suppress(SetupError):
        undump(text[:place] + put + text[place:])


# --- generated files

hostile_text = st.one_of(
    st.text(max_size=12),
    st.lists(
        st.sampled_from(
            ['"""', "'''", '"', "'", "\\", "\n", "\r", "\u2028", "{", "}", "{0}", "#", "x", "\x1b", "%"]
        ),
        max_size=8,
    ).map("".join),
)  # fmt: skip


def skeleton(text: str) -> str:
    """Return what a Python file does, whatever its texts are."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = "…"
        elif isinstance(node, ast.List) and all(isinstance(one, ast.Constant) for one in node.elts):
            node.elts = []
    return ast.dump(tree)


@pytest.mark.parametrize("stock", [False, True])
@given(target=hostile_text, protocol=hostile_text, path=hostile_text)
def test_a_generated_module_does_the_same_whatever_it_is_called(
    stock: bool, target: str, protocol: str, path: str
) -> None:
    """A name never becomes code, nor ends the docstring that it stands in."""
    plain = dict(files("app.py", [("exproto_x", "x")], ["/p"], stock=stock, acl=False))
    made = dict(files(target, [("exproto_x", protocol)], [path], stock=stock, acl=False))
    assert {name: skeleton(text) for name, text in made.items()} == {
        name: skeleton(text) for name, text in plain.items()
    }


@given(out=hostile_text, names=st.lists(hostile_text, min_size=1, max_size=3))
def test_generated_configuration_has_the_lines_that_it_has_to(out: str, names: list[str]) -> None:
    """Or a sentence says what can't stand in it."""
    modules = [Planned(module_name(name), name, 7993 + number) for number, name in enumerate(names)]
    try:
        text = broker_config(Path("/", *filter(None, [out.replace("\0", "")])), modules)
    except SetupError as error:
        in_one_sentence(error)
        return
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(names) * (1 + 3 + len(LIMITS))
    assert all(line.startswith("exproto.listener.") for line in lines)
