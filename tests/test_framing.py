"""Framings find the same frames however the network cuts the stream, and say what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app import framing as module
from exproto_app.errors import FramingError, SetupError
from exproto_app.framing import (
    JT808,
    RAW,
    SLIP,
    Decoder,
    Decoding,
    Delimiter,
    FixedSize,
    Framing,
    Gap,
    JsonObjects,
    LengthPrefix,
    Line,
    OctetCounting,
    Raw,
    Reader,
    SplitFraming,
    StartEnd,
    Varint,
    custom,
)

from .framings import (
    CASES,
    Case,
    Counted,
    CountedSplit,
    Words,
    by,
    bytewise,
    cut,
    decoded,
    dense,
    meter,
    places,
    sendable,
    splitting,
    told,
    whole,
)

STOCK = [case for case in CASES if "user" not in case.name]
thrifty = settings(max_examples=settings().max_examples * 2 // 5)  # each looks at many cuts
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_stock = pytest.mark.parametrize("case", STOCK, ids=lambda case: case.name)


# --- every framing


@each_case
@thrifty
@given(data=st.data())
def test_what_is_encoded_is_decoded(case: Case, data: st.DataObject) -> None:
    """decode(encode(frame)) == frame, for each frame that encode doesn't refuse."""
    frame = data.draw(case.frames)
    try:
        sent = case.framing.encode(frame)
    except FramingError:
        return
    if frame != b"bad":
        assert decoded(case.framing, [sent]) == [frame]


@each_case
@thrifty
@given(data=st.data())
def test_random_cuts_change_nothing(case: Case, data: st.DataObject) -> None:
    """A stream gives its frames however it is cut."""
    frames, stream = sendable(case, data)
    assert decoded(case.framing, [stream]) == frames
    assert decoded(case.framing, cut(stream, data.draw(places))) == frames
    assert decoded(case.framing, bytewise(stream)) == frames


def as_json(raw: bytes) -> bytes:
    return json.dumps({"a": [raw.decode("latin-1")], '"{\\': "]"}).encode()


def forms(case: Case, raw: bytes) -> list[bytes]:
    """Return *raw* as a frame that the framing takes, if it takes any."""
    shapes: dict[str, Callable[[bytes], bytes]] = {
        "header stays": whole,
        "plain length stays": lambda frame: bytes([len(frame)]) + frame,
        "resync lines": lambda frame: b"$" + frame,
        "json objects": as_json,
        "resync json objects": as_json,
        "first of json and lines": as_json,
        "json beside a user's": as_json,
        "checked in front of an end that stays": meter,
        "checked in three ways": lambda frame: b"h" + bytes([len(frame)]) * 2 + b"h" + frame,
    }
    frame = shapes.get(case.name, bytes)(raw)
    try:
        case.framing.encode(frame)
    except FramingError:
        return []
    return [frame]


@each_case
def test_every_cut_changes_nothing(case: Case) -> None:
    """A stream gives its frames wherever it is cut in two."""
    inner = [b"one", b"abc", b"\xc0\x7e", b"\x7d2", b"\xc0\x7e\x7d", b"$1", b"\x01\x02\x03"]
    frames = [frame for raw in inner for frame in forms(case, raw)]
    assert len(frames) > 2
    stream = b"".join(map(case.framing.encode, frames))
    for place in range(len(stream) + 1):
        assert decoded(case.framing, [stream[:place], stream[place:]]) == frames


@each_stock
@thrifty
@given(stream=dense.map(lambda data: data * 3), where=places)
def test_garbage_is_told_alike_however_it_is_cut(case: Case, stream: bytes, where: list[int]) -> None:
    """Frames before, between and after what is wrong don't depend on the cuts, only the wording may."""
    if case.loses:
        return  # what has come is dropped, and that depends on the cuts
    pieces = cut(stream, where)
    frames = [event for event in told(case.framing, pieces) if isinstance(event, bytes)]
    assert frames == [event for event in told(case.framing, [stream]) if isinstance(event, bytes)]


@each_stock
@thrifty
@given(stream=st.one_of(dense.map(lambda data: data * 3), st.binary()), where=places)
def test_split_finds_what_the_decoder_finds(case: Case, stream: bytes, where: list[int]) -> None:
    """The public split of a stock framing, driven as a user's own, gives the same frames and errors."""
    stock = cast("SplitFraming", case.framing)
    assert told(splitting(stock.split), cut(stream, where)) == told(stock, cut(stream, where))


@each_case
def test_an_idle_decoder_holds_nothing(case: Case) -> None:
    """Before the first byte, and after no bytes, there are no frames, no error and no generator."""
    decoder = Decoder(case.framing)
    assert decoder.feed(b"") == []
    assert decoder.finish() == []
    assert (decoder.error, decoder.buffered, decoder.recover()) == (None, 0, 0)
    assert decoder.framing is case.framing


LARGE = [
    Line(limit=1 << 20),
    Delimiter(b"\r\n", limit=1 << 20),
    Delimiter(b";", b"\r\n", limit=1 << 20),
    Line(universal=True, limit=1 << 20),
    LengthPrefix(4, limit=1 << 20),
    FixedSize(1 << 18, limit=1 << 20),
    StartEnd(b"<<", b">>", limit=1 << 20),
    StartEnd(b"<", b"<", {b"<": b"!a", b"!": b"!b"}, limit=1 << 20),
]


@pytest.mark.parametrize(("chunk", "size"), [(1, 1 << 16), (1_460, 1 << 18), (70_000, 1 << 18)])
@pytest.mark.parametrize("framing", [*LARGE, Words(limit=1 << 20)], ids=repr)
def test_a_large_frame_in_small_pieces(framing: Framing, chunk: int, size: int) -> None:
    """A large frame arrives in any pieces."""
    frame = b"x" * (framing.size if isinstance(framing, FixedSize) else size)
    stream = framing.encode(frame)
    decoder = Decoder(framing)
    got: list[bytes] = []
    for start in range(0, len(stream), chunk):
        got += decoder.feed(stream[start : start + chunk])
    assert decoder.error is None
    assert got == [frame]
    assert decoder.buffered == 0


@pytest.mark.parametrize("framing", LARGE, ids=repr)
def test_an_unfinished_frame_is_not_searched_again_and_again(
    framing: Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at for a frame that comes byte by byte grows with its size, not with its square."""
    looked = 0
    cut_it = type(framing).cut  # type: ignore[union-attr]

    def counting(self: Any, data: bytes) -> Any:
        nonlocal looked
        looked += len(data)
        return cut_it(self, data)

    monkeypatch.setattr(type(framing), "cut", counting)
    frame = bytes(framing.size if isinstance(framing, FixedSize) else 1 << 16)
    assert decoded(framing, bytewise(framing.encode(frame))) == [frame]
    start = 4_096  # bytes, up to which it is simply looked at again
    assert looked < start * start / 2 + 3 * len(frame)


@pytest.mark.parametrize("framing", [Counted(), Words()], ids=repr)
def test_a_generator_is_woken_when_its_bytes_are_there(
    framing: Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for bytes, one at a time, doesn't copy those that wait."""
    woken = 0
    run = custom.Stream._run

    def counting(self: custom.Stream) -> list[bytes]:
        nonlocal woken
        woken += 1
        return run(self)

    monkeypatch.setattr(custom.Stream, "_run", counting)
    assert decoded(framing, bytewise(framing.encode(bytes(60_000)))) == [bytes(60_000)]
    assert woken <= 3


# --- limits


@pytest.mark.parametrize("chunk", [1, 7, 1_000])
@pytest.mark.parametrize(
    ("framing", "good", "bad", "size"),
    [
        (Line(limit=20), b"x" * 20 + b"\r\n", b"x" * 21 + b"\n", 21),
        (Delimiter(b"||", limit=20), b"x" * 20 + b"||", b"x" * 21 + b"||", 21),
        (Delimiter(b"||", b";", limit=20), b"x" * 20 + b";", b"x" * 21 + b"||", 21),
        (Line(ending=b"\r", limit=20), b"x" * 20 + b"\r", b"x" * 21 + b"\n", 21),
        (JsonObjects(limit=20), b"[" + b"1" * 18 + b"]", b"[" + b"1" * 19 + b"]", 21),
        (LengthPrefix(2, limit=20), b"\x00\x14" + b"x" * 20, b"\x00\x15" + b"x" * 21, 21),
        (LengthPrefix(1, offset=1, limit=20), b"!\x12" + b"x" * 18, b"!\x13" + b"x" * 19, 21),
        (StartEnd(b"<", b">>", limit=20), b"<" + b"x" * 20 + b">>", b"<" + b"x" * 21 + b">>", 21),
        (attrs.evolve(JT808, limit=20), JT808.encode(b"~" * 20), JT808.encode(b"~" * 21), 21),
        (Counted(limit=20), b"\x00\x14" + b"x" * 20, b"\x00\x55" + b"x" * 85, 85),
        (Counted(limit=20), b"\x00\x14" + b"x" * 20, b"\x00\x15" + b"x" * 21, 21),
        (Words(limit=20), b"x" * 20 + b";;", b"x" * 21 + b";;", 21),
    ],
    ids=repr,
)
def test_the_limit_is_the_largest_frame(
    framing: Framing, good: bytes, bad: bytes, size: int, chunk: int
) -> None:
    """A frame of limit bytes passes, a longer one is an error with both numbers, after the good frame."""
    decoder = Decoder(framing)
    stream = good + bad
    frames: list[bytes] = []
    for start in range(0, len(stream), chunk):
        frames += decoder.feed(stream[start : start + chunk])
        if decoder.error is not None:
            break
    assert len(frames) == 1
    least, limit = str(decoder.error).removeprefix("frame has ").split(" bytes, limit is ")
    # What never ends is told at the latest when it is one delimiter longer.
    assert size <= int(least) <= size + 1
    assert limit == "20"


@pytest.mark.parametrize(
    "framing",
    [
        Line(limit=50),
        Delimiter(b"##", limit=50),
        Delimiter(b"##", b"\n", limit=50),
        Line(universal=True, limit=50),
        Gap(0.1, limit=50),
        StartEnd(b"x", b"##", limit=50),
        attrs.evolve(SLIP, limit=50),
        Words(limit=50),
        splitting(lambda _: []),
    ],
    ids=repr,
)
def test_a_frame_that_never_ends_is_an_error(framing: Framing) -> None:
    """Nobody waits for the end of a frame beyond the limit, and what is buffered stays bounded."""
    decoder = Decoder(framing)
    start = b"\xc0" if getattr(framing, "start", b"") == b"\xc0" else b"x"
    decoder.feed(start)
    limit = getattr(framing, "limit", 65_536)
    for _ in range(3 * limit):
        assert decoder.feed(b"x") == []
        if decoder.error is not None:
            break
    assert str(decoder.error).endswith(f" bytes, limit is {limit}")
    assert decoder.buffered <= 2 * limit + 100
    assert decoder.recover() > limit
    assert decoder.buffered == 0


def test_good_lines_before_and_after_a_long_one() -> None:
    """A line over the limit takes nothing else with it."""
    stream = b"a\r\n" + b"x" * 11 + b"\nb\n" + b"x" * 10 + b"\r\n"
    expected = [b"a", "frame has 11 bytes, limit is 10", b"b", b"x" * 10]
    assert told(Line(limit=10), [stream]) == expected


def test_a_users_limit_counts_what_waits() -> None:
    """A user's split that waits too long is stopped at its limit, with 64 bytes for a header."""
    decoder = Decoder(CountedSplit(limit=100))
    assert decoder.feed(b"\xff\xff" + b"x" * 162) == []
    assert decoder.error is None
    assert decoder.feed(b"x") == []
    assert str(decoder.error) == "frame has 165 bytes, limit is 100"


def test_a_users_split_keeps_its_limit() -> None:
    """A frame over it is an error that stops neither those before nor those behind it."""
    good, bad = CountedSplit().encode(b"good"), CountedSplit().encode(b"x" * 11)
    for chunks in ([good + bad + good], bytewise(good + bad + good)):
        assert told(CountedSplit(limit=10), chunks) == [b"good", "frame has 11 bytes, limit is 10", b"good"]


def test_until_takes_a_limit_of_its_own() -> None:
    """`reader.until` may be given less than the framing's limit."""

    def decode(reader: Reader) -> Decoding:
        while True:
            yield (yield from reader.until(b":", 3))

    assert told(by(decode), [b"abc:", b"abcd"]) == [b"abc", "frame has 4 bytes, limit is 3"]


# --- RAW


def test_raw_takes_each_read_as_a_frame() -> None:
    """RAW changes nothing in either direction."""
    decoder = Decoder(RAW)
    assert [decoder.feed(data) for data in (b"a", b"", b"bc")] == [[b"a"], [], [b"bc"]]
    assert RAW.encode(b"any\n") == b"any\n"
    assert Raw() == RAW


def test_raw_cuts_reads_over_the_limit() -> None:
    """A read over the limit becomes several frames, none of it is lost."""
    assert decoded(Raw(limit=2), [b"abcde"]) == [b"ab", b"cd", b"e"]
    assert list(map(len, decoded(RAW, [bytes(70_000)]))) == [65_536, 70_000 - 65_536]


# --- lines


@pytest.mark.parametrize("stream", [b"a\nb\r\n\r\n\nc\rd\n\r\r\n", b"a\r\nb\r\n\r\n\r\nc\rd\r\n\r\r\n"])
def test_lines_end_with_or_without_a_carriage_return(stream: bytes) -> None:
    """One carriage return before the line feed is dropped, others belong to the line."""
    assert decoded(Line(), [stream]) == [b"a", b"b", b"", b"", b"c\rd", b"\r"]
    assert decoded(Line(), bytewise(stream)) == [b"a", b"b", b"", b"", b"c\rd", b"\r"]


@pytest.mark.parametrize("frame", [b"a\nb", b"a\r", b"\n"])
@pytest.mark.parametrize("framing", [Line(), Line(ending=b"\r\n")])
def test_a_line_that_would_be_read_otherwise_is_refused(framing: Line, frame: bytes) -> None:
    """encode refuses what wouldn't come back as it is."""
    with pytest.raises(FramingError, match=frame.hex()):
        framing.encode(frame)


def test_a_delimiter_may_not_end_a_frame_early() -> None:
    """A frame that ends with half a delimiter is refused, like one that holds it."""
    framing = Delimiter(b"||")
    for frame in (b"a||b", b"a|"):
        with pytest.raises(FramingError, match="cut by its delimiter"):
            framing.encode(frame)
    assert decoded(framing, [framing.encode(b"|a")]) == [b"|a"]


# --- lengths


def test_a_length_prefix_as_on_the_wire() -> None:
    """The options mean what Netty's mean."""
    assert LengthPrefix(2).encode(b"abc") == b"\x00\x03abc"
    assert LengthPrefix(4, byteorder="little").encode(b"abc") == b"\x03\x00\x00\x00abc"
    assert LengthPrefix(3).encode(b"abc") == b"\x00\x00\x03abc"
    assert LengthPrefix(2, adjustment=-2).encode(b"abc") == b"\x00\x05abc"
    login = bytes.fromhex("78780D01012345678901234500018CDD0D0A")
    assert decoded(LengthPrefix(1, offset=2, adjustment=2), [login * 2]) == [login, login]
    assert decoded(LengthPrefix(1, offset=2, adjustment=2, strip=2), [login]) == [login[2:]]
    assert decoded(LengthPrefix(2, strip=0), [b"\x00\x01a"]) == [b"\x00\x01a"]


@pytest.mark.parametrize(
    ("framing", "frame", "why"),
    [
        (LengthPrefix(1), bytes(256), "frame has 256 bytes; its length, 256, doesn't fit into 1 bytes"),
        (LengthPrefix(1, adjustment=2), b"a", "frame has 1 bytes; its length, -1, doesn't fit into 1 bytes"),
        (LengthPrefix(1, offset=2), b"ab", "frame has 2 bytes, its header alone has 3"),
        (LengthPrefix(1, offset=2), b"ab\x02c", "frame has 4 bytes, its length field says 5"),
        (LengthPrefix(1, offset=2, strip=2), b"\x01c", "give the router a reply_framing="),
        (LengthPrefix(2, strip=1), b"\x01c", "give the router a reply_framing="),
        (
            LengthPrefix(1, start=b"x", end=b"|", strip=0),
            b"x\x01a-",
            "frame isn't between 78 and 7c: 7801612d",
        ),
        (OctetCounting(), b"", "an empty frame has no length"),
        (FixedSize(3), b"ab", "frame has 2 bytes, FixedSize(3) needs 3"),
        (StartEnd(b"<", b">"), b"a>b", "frame would be cut by its end marker 3e: 613e62"),
        (StartEnd(b"<", b">>"), b"a>", "frame would be cut by its end marker 3e3e: 613e"),
        (JT808, b"", "an empty frame between markers 7e is fill"),
    ],
)
def test_what_cannot_be_a_frame_is_not_sent(framing: Framing, frame: bytes, why: str) -> None:
    """encode says what is wrong with a frame."""
    with pytest.raises(FramingError) as info:
        framing.encode(frame)
    assert why in str(info.value)


def test_a_length_below_the_header_is_an_error() -> None:
    """A frame can't be shorter than its header; what has come is dropped, for nobody knows its end."""
    decoder = Decoder(LengthPrefix(2, adjustment=-2))
    assert decoder.feed(b"\x00\x03a\x00\x01bcd") == [b"a"]
    assert str(decoder.error) == "frame has 1 bytes by its length field, its header 2"
    assert (decoder.buffered, decoder.recover(), decoder.buffered) == (5, 5, 0)
    assert decoder.feed(b"\x00\x03a") == [b"a"]


def test_a_header_over_the_limit_is_told_at_once() -> None:
    """The error doesn't wait for the bytes that the length promises."""
    decoder = Decoder(LengthPrefix(4))
    assert decoder.feed(b"\x00\x00\x00\x01a\x7f\x00\x00\x00") == [b"a"]
    assert str(decoder.error) == f"frame has {0x7F000000} bytes, limit is 65536"


NETTY = [
    # The seven examples in the documentation of Netty's LengthFieldBasedFrameDecoder.
    (LengthPrefix(2, strip=0), "000c 48454c4c4f2c20574f524c44", "000c48454c4c4f2c20574f524c44"),
    (LengthPrefix(2), "000c 48454c4c4f2c20574f524c44", "48454c4c4f2c20574f524c44"),
    (
        LengthPrefix(2, adjustment=-2, strip=0),
        "000e 48454c4c4f2c20574f524c44",
        "000e48454c4c4f2c20574f524c44",
    ),
    (LengthPrefix(3, offset=2), "cafe 00000c 48454c4c4f2c20574f524c44", "cafe00000c48454c4c4f2c20574f524c44"),
    (
        LengthPrefix(3, adjustment=2, strip=0),
        "00000c cafe 48454c4c4f2c20574f524c44",
        "00000ccafe48454c4c4f2c20574f524c44",
    ),
    (
        LengthPrefix(2, offset=1, adjustment=1, strip=3),
        "ca 000c fe 48454c4c4f2c20574f524c44",
        "fe48454c4c4f2c20574f524c44",
    ),
    (
        LengthPrefix(2, offset=1, adjustment=-3, strip=3),
        "ca 0010 fe 48454c4c4f2c20574f524c44",
        "fe48454c4c4f2c20574f524c44",
    ),
    # Not among them, but in words: the bytes behind the length field may be stripped too.
    (
        LengthPrefix(2, offset=1, adjustment=1, strip=4),
        "ca 000c fe 48454c4c4f2c20574f524c44",
        "48454c4c4f2c20574f524c44",
    ),
]


@pytest.mark.parametrize(("framing", "stream", "frame"), NETTY)
def test_the_options_are_netty_s(framing: LengthPrefix, stream: str, frame: str) -> None:
    """What Netty documents for its LengthFieldBasedFrameDecoder is what comes out."""
    data = bytes.fromhex(stream)
    assert decoded(framing, [data, data]) == [bytes.fromhex(frame)] * 2
    if framing.strip == 0:
        assert framing.encode(bytes.fromhex(frame)) == data


@pytest.mark.parametrize(
    ("framing", "stream", "why"),
    [
        (LengthPrefix(1, start=b"xx"), b"xy\x01a", "frame starts with 7879, not with 7878"),
        (LengthPrefix(1, start=b"xx", end=b"|"), b"xx\x01ab", "frame ends with 62, not with 7c"),
        (
            LengthPrefix(2, start=b"x", adjustment=-3),
            b"x\x00\x02",
            "frame has 2 bytes by its length field, its header 3",
        ),
        (Varint(), b"\xff\xff\xff\xff\xff\x01", "length is not a varint of at most 5 bytes: ffffffffff"),
        (Varint(limit=9), b"\x0a", "frame has 10 bytes, limit is 9"),
        (OctetCounting(), b"<34>x", "frame begins with 3c, not with its length and a space"),
        (OctetCounting(), b"012 x", "frame begins with 30, not with its length and a space"),
        (OctetCounting(), b" x", "frame begins with 20, not with its length and a space"),
        (
            OctetCounting(),
            b"12345678901",
            "frame begins with 3132333435363738393031, not with its length and a space",
        ),
        (OctetCounting(limit=9), b"10 ", "frame has 10 bytes, limit is 9"),
    ],
)
def test_a_wrong_header_is_told_as_soon_as_it_is_there(framing: Framing, stream: bytes, why: str) -> None:
    """What is no header is an error, behind the good frame before it, and isn't waited for."""
    good = framing.encode(b"a")
    decoder = Decoder(framing)
    frames = [frame for data in bytewise(good + stream) for frame in decoder.feed(data)]
    assert frames == [b"a"]
    assert str(decoder.error) == why
    decoder.recover()
    assert decoder.feed(good) == [b"a"]


def test_varints_as_on_the_wire() -> None:
    """Seven bits a byte, the lowest first; a longer form of the same number is taken too."""
    assert Varint().encode(bytes(300))[:3] == b"\xac\x02\x00"
    assert Varint().encode(b"") == b"\x00"
    assert decoded(Varint(), [b"\x81\x00a\x01b"]) == [b"a", b"b"]


def test_octet_counting_as_on_the_wire() -> None:
    """RFC 6587: the length in decimal, a space, the message, whatever is in it."""
    assert OctetCounting().encode(b"<34>1 x\n") == b"8 <34>1 x\n"
    assert decoded(OctetCounting(), [b"8 <34>1 x\n1  "]) == [b"<34>1 x\n", b" "]


def test_a_length_above_an_end_marker_says_where_a_frame_ends() -> None:
    """The payload may hold the end marker: the length decides."""
    long = bytes.fromhex("797900109b0344373532304136320d0a000f87f00d0a")
    framing = LengthPrefix(2, start=b"\x79\x79", end=b"\r\n")
    assert decoded(framing, bytewise(long * 2)) == [long[4:-2]] * 2
    assert framing.encode(long[4:-2]) == long


# --- start and end


def test_slip_takes_one_marker_for_two() -> None:
    """RFC 1055: packets end with C0 and may begin with it; nothing between two of them is nothing."""
    assert decoded(SLIP, bytewise(b"a\xc0b\xc0\xc0\xc0c\xdb\xdc\xc0")) == [b"a", b"b", b"c\xc0"]
    assert SLIP.encode(b"a\xc0") == b"\xc0a\xdb\xdc\xc0"
    decoder = Decoder(SLIP)
    assert decoder.feed(b"\xc0" * 10_000) == []
    assert decoder.buffered == 0


def test_frames_of_a_real_protocol() -> None:
    """JT/T 808 as published: 7D02 is 7E, 7D01 is 7D."""
    assert decoded(JT808, [bytes.fromhex("7e307d02087d01557e")]) == [bytes.fromhex("307e087d55")]
    assert JT808.encode(bytes.fromhex("307e087d55")) == bytes.fromhex("7e307d02087d01557e")
    assert decoded(SLIP, [b"\xc0a\xdb\xdcb\xdb\xdd\xc0"]) == [b"a\xc0b\xdb"]


@pytest.mark.parametrize("fill", [1, 2, 3, 4, 5])
def test_fill_between_frames_is_skipped(fill: int) -> None:
    """Any number of equal markers with nothing between them is no frame."""
    stream = b"\x7e" * fill + b"a\x7e" + b"\x7e" * fill + b"b\x7e"
    assert decoded(JT808, [stream]) == [b"a", b"b"]
    assert decoded(JT808, bytewise(stream)) == [b"a", b"b"]


def test_an_empty_frame_between_different_markers_is_one() -> None:
    """Where the markers differ there is no fill."""
    assert decoded(StartEnd(b"<", b">"), [b"<><a>"]) == [b"", b"a"]


def test_garbage_before_a_start_marker() -> None:
    """It is an error, told at once, and the frames behind it still come."""
    decoder = Decoder(StartEnd(b"<<", b">"))
    assert decoder.feed(b"<<a>x<<b>yz<<c>") == [b"a"]
    assert str(decoder.error) == "1 bytes before the start marker 3c3c: 78"
    assert decoder.buffered == 11
    assert decoder.feed(b"<") == []
    assert decoder.recover() == 1
    assert decoder.error is None
    assert decoder.feed(b"") == [b"b"]
    assert str(decoder.error) == "2 bytes before the start marker 3c3c: 797a"
    assert decoder.recover() == 2
    assert decoder.feed(b"") == [b"c"]
    assert (decoder.error, decoder.buffered) == (None, 1)
    assert decoder.feed(b"<d>") == [b"d"]


def test_half_a_start_marker_waits() -> None:
    """What may become a start marker is no garbage yet; what can't any more is."""
    decoder = Decoder(StartEnd(b"<<", b">"))
    assert decoder.feed(b"ab<") == []
    assert decoder.recover() == 2
    assert (decoder.feed(b"<a>"), decoder.error) == ([b"a"], None)
    assert decoder.feed(b"<") == []
    assert decoder.error is None
    assert decoder.feed(b"-" * 20) == []
    assert str(decoder.error) == f"21 bytes before the start marker 3c3c: 3c{'2d' * 15}… (21 bytes)"


def test_an_unknown_escape_spoils_its_frame_alone() -> None:
    """An escape that the table lacks is an error, and decoding goes on behind that frame."""
    stream = b"\x7ea\x7e\x7eb\x7d\x05\x7e\x7ec\x7d\x01\x7e\x7e\x7d\x7e"
    assert told(JT808, [stream]) == [
        b"a",
        "frame has an unknown escape: 627d05",
        b"c\x7d",
        "frame has an unknown escape: 7d",
    ]


# --- errors, and going on


def test_an_error_waits_behind_the_frames_before_it() -> None:
    """While an error stands, bytes are kept and no frames come."""
    decoder = Decoder(CountedSplit())
    assert decoder.feed(b"\x00\x01a\x00\x03bad\x00\x01b") == [b"a"]
    assert str(decoder.error) == "refused"
    assert decoder.feed(b"\x00\x01c") == []
    assert str(decoder.error) == "refused"
    assert decoder.buffered == 5 + 3 + 3
    assert decoder.recover() == 5
    assert decoder.feed(b"") == [b"b", b"c"]
    assert decoder.error is None


def test_an_error_without_its_end_drops_all_that_came() -> None:
    """What raised and removed nothing can't be gone behind."""

    def split(buffer: bytearray) -> list[bytes]:
        if buffer.startswith(b"!"):
            raise FramingError("no")
        frames = [bytes(buffer)]
        buffer.clear()
        return frames

    decoder = Decoder(splitting(split))
    decoder.feed(b"!ab")
    decoder.feed(b"cd")
    assert (decoder.recover(), decoder.buffered) == (5, 0)
    assert (decoder.feed(b"ef"), decoder.error) == ([b"ef"], None)


@pytest.mark.parametrize(
    ("split", "why"),
    [
        (lambda buffer: [buffer[:1]], "User(): split failed: TypeError('it returned a frame of bytearray"),
        (lambda _: None, "User(): split failed: TypeError('it returned NoneType, not a list')"),
        (lambda _: [b"a"], "User(): split failed: RuntimeError('it returned frames and removed nothing')"),
        (lambda _: 1 // 0, "User(): split failed: ZeroDivisionError("),
    ],
)
def test_a_faulty_split_is_named(split: Callable[[bytearray], Any], why: str) -> None:
    """Whatever a user's split does becomes a framing error that names it, its cause chained."""
    decoder = Decoder(splitting(split))
    assert decoder.feed(b"xyz") == []
    assert str(decoder.error).startswith(why)
    assert decoder.error is not None
    assert decoder.error.__cause__ is not None


def no_bytes(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    yield cast("bytes", "text")


def no_yield_from(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    yield cast("bytes", reader.exactly(1))


def raises(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    raise KeyError("x")


def returns(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))


def negative(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    yield (yield from reader.exactly(-1))


def no_delimiter(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    yield (yield from reader.until(b""))


def runs_away(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    while True:
        yield b"again"


def looks_for_ever(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    while True:
        yield from reader.peek(1)


def reads_nothing_for_ever(reader: Reader) -> Decoding:
    yield (yield from reader.exactly(1))
    while True:
        yield from reader.exactly(0)


@pytest.mark.parametrize(
    ("decode", "why"),
    [
        (no_bytes, "User(): decode yielded str, not bytes"),
        (no_yield_from, "User(): decode yielded generator, not bytes; is `yield from` missing?"),
        (raises, "User(): decode failed: KeyError('x')"),
        (returns, "User(): decode returned, with 2 bytes to come"),
        (negative, "frame says that it has -1 bytes"),
        (no_delimiter, "User(): decode failed: ValueError("),
        (looks_for_ever, "decode looked 10000 times without reading a byte"),
        (reads_nothing_for_ever, "decode looked 10000 times without reading a byte"),
    ],
)
def test_a_faulty_generator_is_named(decode: Callable[[Reader], Decoding], why: str) -> None:
    """Whatever a user's generator does becomes a framing error; the frame before it still comes."""
    decoder = Decoder(by(decode))
    assert decoder.feed(b"abc") == [b"a"]
    assert str(decoder.error).startswith(why)
    assert decoder.recover() == 2
    assert decoder.feed(b"d") == [b"d"]


def test_a_generator_that_yields_for_ever_is_stopped() -> None:
    """Frames that cost no bytes come to an end, and are not handed out."""
    decoder = Decoder(by(runs_away))
    assert decoder.feed(b"abc") == [b"a"]
    assert str(decoder.error) == "User(): decode yielded 10000 frames without reading a byte"


def test_many_frames_of_one_read_are_no_runaway() -> None:
    """A frame may hold others, thousands of them."""

    def decode(reader: Reader) -> Decoding:
        while True:
            for byte in (yield from reader.exactly(9_000)):
                yield bytes([byte])

    assert len(decoded(by(decode), [bytes(27_000)])) == 27_000


def test_a_generator_may_return_when_all_is_read() -> None:
    """It is an error only when there is more to come."""
    decoder = Decoder(by(returns))
    assert (decoder.feed(b"a"), decoder.error) == ([b"a"], None)
    assert decoder.feed(b"b") == []
    assert str(decoder.error) == "User(): decode returned, with 1 bytes to come"


def test_a_generator_goes_on_behind_a_frame_that_it_refused() -> None:
    """The bytes that it had read since the last frame are dropped, and it is started anew."""

    def decode(reader: Reader) -> Decoding:
        while True:
            frame = yield from reader.exactly(3)
            if frame == b"bad":
                raise FramingError("refused")
            yield frame

    assert told(by(decode), [b"onebadtwo"]) == [b"one", "refused", b"two"]
    assert told(by(decode), bytewise(b"onebadtwo")) == [b"one", "refused", b"two"]
    decoder = Decoder(by(decode))
    decoder.feed(b"onebadtwo")
    assert decoder.buffered == 6
    assert decoder.feed(b"xy") == []
    assert (decoder.recover(), decoder.feed(b"z")) == (3, [b"two", b"xyz"])


def test_a_generator_that_was_stopped_in_a_frame_loses_all() -> None:
    """Where the reader itself refused, nobody knows where the frame ends."""
    decoder = Decoder(Counted(limit=100))
    assert decoder.feed(b"\x00\x01a\xff\xffabc") == [b"a"]
    assert str(decoder.error) == "frame has 65535 bytes, limit is 100"
    assert (decoder.recover(), decoder.buffered) == (3, 0)
    assert decoder.feed(b"\x00\x01a") == [b"a"]


def test_a_frame_put_together_is_measured_too() -> None:
    """The limit is that of a frame, not of each piece of it."""

    def decode(reader: Reader) -> Decoding:
        while True:
            first = yield from reader.exactly(40_000)
            yield first + (yield from reader.exactly(40_000))

    decoder = Decoder(by(decode))
    assert decoder.feed(bytes(80_001)) == []
    assert str(decoder.error) == "frame has 80000 bytes, limit is 65536"
    assert (decoder.recover(), decoder.buffered) == (80_000, 1)


def test_a_generator_that_fails_while_it_is_closed_harms_nobody() -> None:
    """Its clean-up is the user's code too."""

    def decode(reader: Reader) -> Decoding:
        try:
            yield (yield from reader.exactly(1))
            yield from reader.exactly(9)
        finally:
            raise OSError("at the end")

    decoder = Decoder(by(decode))
    assert decoder.feed(b"ab") == [b"a"]
    assert decoder.finish() == []
    assert str(decoder.error) == "datagram ends within a frame: 1 bytes left"


def test_a_generator_keeps_state() -> None:
    """One generator lives as long as its connection, and can peek."""

    def decode(reader: Reader) -> Decoding:
        name = yield from reader.until(b"\n")
        while True:
            if (yield from reader.peek(1)) == b"#":
                yield from reader.exactly(2)
            yield name + (yield from reader.exactly(1))

    for chunks in ([b"me\nab#-c"], bytewise(b"me\nab#-c")):
        assert decoded(by(decode), chunks) == [b"mea", b"meb", b"mec"]


def test_a_framing_with_both_ways_is_used_by_split() -> None:
    """split is the faster one."""

    class Both(Counted):
        def split(self, buffer: bytearray) -> list[bytes]:
            buffer.clear()
            return [b"split"]

    assert decoded(Both(), [b"abc"]) == [b"split"]


def test_a_split_of_a_users_subclass_counts() -> None:
    """What a user overrides in a stock framing is used."""

    class Upper(Line):
        def split(self, buffer: bytearray) -> list[bytes]:
            return [frame.upper() for frame in super().split(buffer)]

    assert decoded(Upper(), [b"a\nb", b"\n"]) == [b"A", b"B"]


# --- datagrams


@pytest.mark.parametrize(
    ("framing", "datagram", "frames"),
    [
        (Line(), b"a\r\nb\r", [b"a", b"b"]),
        (Line(), b"a\n", [b"a"]),
        (Delimiter(b"||"), b"a||b|", [b"a", b"b|"]),
        (RAW, b"ab", [b"ab"]),
        (Words(), b"a;;b;", [b"a", b"b;"]),
        (Words(), b"a;;", [b"a"]),
        (JT808, b"\x7ea\x7e\x7e\x7e", [b"a"]),
        (JT808, b"\x7ea\x7e\x7e", [b"a"]),
        (splitting(Line().split), b"a\n", [b"a"]),
    ],
)
def test_the_end_of_a_datagram_ends_a_line(framing: Framing, datagram: bytes, frames: list[bytes]) -> None:
    """Each datagram is taken to its end, and the next one starts clean."""
    decoder = Decoder(framing)
    for _ in range(3):
        assert decoder.feed(datagram) + decoder.finish() == frames
        assert (decoder.error, decoder.buffered) == (None, 0)


@pytest.mark.parametrize(
    ("framing", "datagram", "left"),
    [
        (LengthPrefix(2), b"\x00\x01a\x00\x02b", 3),
        (LengthPrefix(2), b"\x00\x01a\x00", 1),
        (FixedSize(2), b"abc", 1),
        (StartEnd(b"<", b">"), b"<a><b", 2),
        (LengthPrefix(2), b"\x00\x01a\x20\x00" + bytes(5_000), 5_002),
        (Counted(), b"\x00\x01a\x00\x02b", 3),
        (Counted(), b"\x00\x01a\x00\x02", 2),
        (Counted(), b"\x00\x01a\x00", 1),
        (CountedSplit(), b"\x00\x01a\x00", 1),
    ],
)
def test_a_datagram_that_ends_within_a_frame(framing: Framing, datagram: bytes, left: int) -> None:
    """What is left is an error and is dropped; the frames before it came, and the next datagram is clean."""
    decoder = Decoder(framing)
    for _ in range(2):
        assert len(decoder.feed(datagram)) == 1
        assert decoder.finish() == []
        assert str(decoder.error) == f"datagram ends within a frame: {left} bytes left"
        assert decoder.recover() == left
        assert decoder.buffered == 0


@pytest.mark.parametrize("framing", [Line(limit=3), Delimiter(b"|", limit=3), Words(limit=3)])
def test_the_limit_holds_for_what_a_datagram_ends(framing: Framing) -> None:
    """A frame that the end of its datagram ends is measured like any other."""
    decoder = Decoder(framing)
    decoder.feed(b"abcd")
    decoder.finish()
    assert str(decoder.error) == "frame has 4 bytes, limit is 3"
    decoder.recover()
    assert decoder.feed(b"abc") + decoder.finish() == [b"abc"]


@pytest.mark.parametrize("framing", [StartEnd(b"<", b">"), CountedSplit(), Counted(limit=5)])
def test_an_error_drops_the_datagram(framing: Framing) -> None:
    """finish after an error leaves nothing for the next datagram."""
    decoder = Decoder(framing)
    decoder.feed(b"\x00\x03bad\xff\xff" if isinstance(framing, CountedSplit) else b"\xff\xff<a>")
    assert decoder.error is not None
    assert decoder.finish() == []
    assert decoder.error is not None
    decoder.recover()
    assert decoder.finish() == []
    assert decoder.buffered == 0
    good = framing.encode(b"good")
    assert decoder.feed(good) == [b"good"]
    assert decoder.error is None


def test_a_users_finish_may_fail() -> None:
    """finish is optional, and the user's code."""

    class Odd:
        def encode(self, frame: bytes) -> bytes:
            return frame

        def split(self, buffer: bytearray) -> list[bytes]:
            return []

        def finish(self, buffer: bytearray) -> list[bytes]:
            if buffer == b"x":
                raise KeyError("x")
            return [bytes(buffer.pop(0).to_bytes(1, "big"))]

    decoder = Decoder(Odd())
    decoder.feed(b"x")
    assert decoder.finish() == []
    assert "finish failed: KeyError('x')" in str(decoder.error)
    assert decoder.recover() == 1
    decoder.feed(b"ab")
    assert decoder.finish() == [b"a"]
    assert str(decoder.error) == "datagram ends within a frame: 1 bytes left"


# --- set-up


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Line(limit=0), "Line: limit is 0; it must be a whole number above 0"),
        (lambda: Line(limit=cast("int", 1.5)), "Line: limit is 1.5; it must be a whole number above 0"),
        (lambda: Line(ending=b"\t"), r"Line: ending is b'\t'; it must be b'\n', b'\r\n' or b'\r'"),
        (
            lambda: Line(ending=b"\r", universal=False),
            r"Line: ending is b'\r', which ends a line only with universal=True",
        ),
        (lambda: Delimiter(b";", b""), "Delimiter: b'' is not a delimiter; give bytes, at least one"),
        (
            lambda: Delimiter(b"\r\n", b"\r"),
            r"Delimiter: b'\r\n' never matches, because b'\r' in it ends a frame first",
        ),
        (
            lambda: Delimiter(b"b", b"abc"),
            "Delimiter: b'abc' never matches, because b'b' in it ends a frame first",
        ),
        (lambda: Delimiter(b"|", b"|"), "Delimiter: [b'|', b'|'] has a duplicate"),
        (lambda: JsonObjects(depth=0), "JsonObjects: depth is 0; it must be a whole number above 0"),
        (
            lambda: Gap(0),
            "Gap: seconds is 0; it must be a number above 0 and at most 3600, as in Gap(0.02)",
        ),
        (lambda: Delimiter(b""), "Delimiter: delimiter is b''; it must be bytes, at least one"),
        (
            lambda: Delimiter(cast("bytes", "|")),
            "Delimiter: delimiter is '|'; it must be bytes, at least one",
        ),
        (lambda: LengthPrefix(5), "LengthPrefix: size is 5, a length field has 1, 2, 3, 4 or 8 bytes"),
        (
            lambda: LengthPrefix(2, byteorder=cast("Any", "network")),
            "LengthPrefix: byteorder is 'network'; it must be 'big' or 'little'",
        ),
        (
            lambda: LengthPrefix(2, offset=-1),
            "LengthPrefix: offset is -1; it must be a whole number, 0 or more",
        ),
        (lambda: LengthPrefix(2, strip=3), "LengthPrefix: strip is 3, above the header's 2 bytes"),
        (
            lambda: LengthPrefix(2, start=b"ab", offset=1),
            "LengthPrefix: offset is 1, start alone has 2 bytes",
        ),
        (
            lambda: LengthPrefix(2, start=cast("bytes", "ab")),
            "LengthPrefix: start is 'ab'; it must be bytes",
        ),
        (
            lambda: StartEnd(b"<", b">", shared=True),
            "StartEnd: shared markers must be equal, not b'<', b'>'",
        ),
        (
            lambda: LengthPrefix(2, adjustment=cast("int", "2")),
            "LengthPrefix: adjustment is '2'; it must be a whole number",
        ),
        (lambda: FixedSize(0), "FixedSize: size is 0; it must be a whole number above 0"),
        (lambda: FixedSize(100_000), "FixedSize: size is 100000 bytes, limit is 65536"),
        (
            lambda: StartEnd(b"~", cast("bytes", "~"), {b"~": b"}a", b"}": b"}b"}),
            "StartEnd: end is '~'; it must be bytes, at least one",
        ),
        (lambda: StartEnd(b"", b">"), "StartEnd: start is b''; it must be bytes, at least one"),
        (
            lambda: StartEnd(b"~", b"~", {b"}\x02": b"~"}),
            r"StartEnd: escapes has b'}\x02': b'~', it maps one byte to the two that are sent for it",
        ),
        (
            lambda: StartEnd(b"~", b"~", cast("Any", 3)),
            "StartEnd: escapes is 3; it must be a mapping of bytes to bytes",
        ),
        (
            lambda: StartEnd(b"~", b"~", {b"~": b"}a", b"}": b"{b"}),
            "StartEnd: escapes start with different bytes, they must start with the same one",
        ),
        (
            lambda: StartEnd(b"~", b"~", {b"~": b"}a"}),
            "StartEnd: escapes lack b'}', with which they start, or any other byte",
        ),
        (
            lambda: StartEnd(b"~", b"~", {b"~": b"}a", b"}": b"}a"}),
            "StartEnd: the second bytes of escapes must differ, and must not be escaped themselves",
        ),
        (
            lambda: StartEnd(b"~", b"~", {b"!": b"}a", b"}": b"}b"}),
            "StartEnd: escapes don't keep the end marker b'~' out of frames",
        ),
        (lambda: Decoder(Words(0)), "Words(limit=0): limit is 0; it must be a whole number above 0"),
        (lambda: Decoder(cast("Framing", 3)), "3 is not a framing: it has neither split nor decode"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], why: str) -> None:
    """A wrong option is told in one sentence, when the framing is made."""
    with pytest.raises(SetupError) as info:
        make()
    assert str(info.value) == why


def test_framings_are_values() -> None:
    """They are compared by their options, can be hashed, and show themselves."""
    assert LengthPrefix(2) == LengthPrefix(2, strip=2)
    assert LengthPrefix(2) != LengthPrefix(2, byteorder="little")
    assert len({JT808, attrs.evolve(JT808), SLIP, Line(), Line()}) == 3
    assert repr(Delimiter(b"|", limit=9)) == "Delimiter(delimiter=b'|', limit=9)"


def test_all_is_sorted_and_there() -> None:
    """The public names exist, in order."""
    assert set(module.__all__) <= set(dir(module))
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
