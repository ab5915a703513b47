"""Shapes of frames that real lines bring: checksums around end marks, wake-up bytes, JSON, silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app.checksums import CRC16_ARC, CRC16_MODBUS, SUM8, XOR
from exproto_app.errors import FramingError, SetupError
from exproto_app.framing import (
    JT808,
    Checked,
    Decoder,
    Delimiter,
    FirstOf,
    FixedSize,
    Framing,
    Gap,
    JsonObjects,
    LengthPrefix,
    Line,
    Resync,
    Skip,
    StartEnd,
)

from .framings import BCC, DLT645, MBUS, WIALON, Counted, Starting, bytewise, objects


def outcome(framing: Framing, stream: bytes) -> tuple[list[bytes], list[str], str]:
    """Return frames, why others were dropped, and the error, which all ways to cut *stream* agree on."""
    results = []
    for chunks in ([stream], bytewise(stream)):
        decoder = Decoder(framing)
        frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
        bad = [item.reason for item in decoder.take_bad()]
        results.append((frames, bad, str(decoder.error or "")))
    assert results[0] == results[1]
    return results[0]


# --- checksums: where they stand, and what they cover

# A meter's answer to a read of its energy, a read, and an answer with a line feed's neighbours in it.
METER = bytes.fromhex("68aaaaaaaaaaaa681104 33333333 ad16".replace(" ", ""))


@attrs.frozen
class Wire:
    """What is on the wire, and what a handler gets of it."""

    framing: Framing
    wire: bytes
    frame: bytes


ASTM = Checked(StartEnd(b"\x02", b"\r\n"), SUM8, text=True)
MEITRACK = Checked(StartEnd(b"$$", b"\r\n"), SUM8, start=-2, mark=b"*", covers_mark=True, text=True)


def astm(text: bytes) -> bytes:
    return b"\x02" + text + b"%02X\r\n" % (sum(text) & 0xFF)


WIRES = [
    Wire(DLT645, METER, METER[:-2]),
    Wire(
        Skip(DLT645, b"\xfe", send=4),
        bytes.fromhex("fefefefe68190205110000689104333333336216"),
        bytes.fromhex("6819020511000068910433333333"),
    ),
    # M-Bus: a request of user data, a long frame, an acknowledgement.
    Wire(MBUS, bytes.fromhex("105b015c16"), bytes.fromhex("105b01")),
    Wire(MBUS, bytes.fromhex("6803036853fe50a116"), bytes.fromhex("6803036853fe50")),
    Wire(MBUS, b"\xe5", b"\xe5"),
    # STX, text, ETX, and the exclusive or of text and ETX; or of the text alone; or of all three.
    Wire(BCC, b"\x02R1\x03\x60", b"R1"),
    Wire(Checked(StartEnd(b"\x02", b"\x03"), XOR, at="behind", stop=-1), b"\x02R1\x03\x63", b"R1"),
    Wire(Checked(StartEnd(b"\x02", b"\x03"), XOR, at="behind", start=-1), b"\x02R1\x03\x62", b"R1"),
    Wire(BCC, b"\x02\x02\x03\x01", b"\x02"),
    Wire(BCC, b"\x02\x01\x03\x02", b"\x01"),
    Wire(Checked(StartEnd(b"\x02", b"\x03"), XOR, at="behind", text=True), b"\x02R1\x0360", b"R1"),
    Wire(ASTM, astm(b"1H|\\^&|||Host\r\x03"), b"1H|\\^&|||Host\r\x03"),
    Wire(MEITRACK, b"$$F28,353358017784062,A10*5A\r\n"[:-4] + b"FA\r\n", b""),
    Wire(WIALON, b"#D#10;NA;1A;\r\n", b""),
]


def spoilt(wire: bytes, place: int) -> bytes:
    return wire[:place] + bytes([wire[place] ^ 0x55]) + wire[place + 1 :]


@pytest.mark.parametrize("case", [case for case in WIRES if case.frame], ids=lambda case: case.wire.hex())
def test_a_checksum_beside_an_end_mark(case: Wire) -> None:
    """It is verified, dropped and put back, wherever it stands."""
    assert outcome(case.framing, case.wire * 3) == ([case.frame] * 3, [], "")
    assert case.framing.encode(case.frame) == case.wire


@pytest.mark.parametrize("framing", [DLT645, BCC, MEITRACK, WIALON, ASTM], ids=repr)
def test_a_wrong_one_costs_its_frame_alone(framing: Framing) -> None:
    """The frames before and behind it come."""
    frame = METER[:-2] if framing == DLT645 else b"#D#12;34"
    good = framing.encode(frame)
    behind = 3 if framing == BCC else 4
    frames, bad, error = outcome(framing, good + spoilt(good, len(good) - behind) + good)
    assert (frames, error) == ([frame, frame], "")
    assert bad
    assert all(reason.startswith("checksum is ") for reason in bad)


def test_the_document_s_own_sums() -> None:
    """What covers what, worked out by hand."""
    text = b"$$A25,123,ABC*"
    assert MEITRACK.encode(b"A25,123,ABC") == text + b"%02X\r\n" % (sum(text) & 0xFF)
    assert WIALON.encode(b"#D#1;2") == b"#D#1;2;%X\r\n" % CRC16_ARC(b"1;2;")
    front = Checked(LengthPrefix(1, start=b"\xaa"), SUM8, at=0)
    assert front.encode(b"ab") == b"\xaa\x03\xc3ab"
    part = Checked(Line(), SUM8, stop=1, end=b"!")
    assert part.encode(b"\x05\x06") == b"\x05\x06\x05!\n"


@pytest.mark.parametrize("digits", [b"F", b"0F", b"000f"])
def test_leading_zeros_may_be_missing(digits: bytes) -> None:
    """They may also be there; what is sent has none."""
    framing = Checked(Line(), lambda _: 15, size=2, text="short", mark=b"*")
    assert outcome(framing, b"a*b*" + digits + b"\n") == ([b"a*b"], [], "")
    assert framing.encode(b"a*b") == b"a*b*F\n"


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b"*", "checksum is '*'; it must be '*F'"),
        (b"*0000F", "checksum is '*0000F'; it must be '*F'"),
        (b"*+F", "checksum is '*+F'; it must be '*F'"),
        (b"*0_F", "checksum is '*0_F'; it must be '*F'"),
        (b"*G", "checksum is '*G'; it must be '*F'"),
        (b"F", "frame has no b'*' before a checksum: 6146"),
    ],
)
def test_what_is_no_checksum_in_text(tail: bytes, why: str) -> None:
    """It is told; nothing but digits counts."""
    framing = Checked(Line(), lambda _: 15, size=2, text="short", mark=b"*")
    assert outcome(framing, b"a" + tail + b"\n") == ([], [why], "")


def test_a_decimal_checksum() -> None:
    """It is written as a number, without leading zeros."""
    framing = Checked(StartEnd(b"<", b">"), SUM8, text="decimal", mark=b",")
    assert framing.encode(b"a") == b"<a,97>"
    assert outcome(framing, b"<a,97><a,097><a,61>")[0] == [b"a", b"a"]


def test_what_isnt_behind_the_checksum_is_told() -> None:
    """An end that stays in the frame has to be there."""
    framing = Checked(FixedSize(4), SUM8, end=b"\x16")
    assert outcome(framing, b"ab\xc3\x17") == ([], ["frame ends with 17, not with 16"], "")
    short = Checked(Line(), SUM8, at=3)
    assert outcome(short, b"ab\n") == (
        [],
        ["frame has 2 bytes, with its checksum it has at least 4"],
        "",
    )


def test_a_checksum_behind_the_end_is_found_again_behind_garbage() -> None:
    """Resync works with it."""
    framing = Resync(BCC)
    decoder = Decoder(framing)
    assert decoder.feed(b"xx" + BCC.encode(b"a") + b"\x03y" + BCC.encode(b"b")) == [b"a", b"b"]
    assert [item.data for item in decoder.take_bad()] == [b"xx", b"\x03y"]


@pytest.mark.parametrize("framing", [Checked(JT808, XOR), Resync(Checked(JT808, XOR))], ids=repr)
def test_one_flag_between_two_checked_frames(framing: Framing) -> None:
    """It ends one and begins the next, with a checksum and behind garbage too."""
    stream = b"\x7eaa\x7ebb\x7e" + b"cc\x7e"
    assert outcome(framing, stream) == ([b"a", b"b", b"c"], [], "")
    if isinstance(framing, Resync):
        assert Decoder(framing).feed(b"xy" + stream) == [b"a", b"b", b"c"]


# --- several delimiters, lone carriage returns


@pytest.mark.parametrize(
    "framing", [Line(universal=True), Line(ending=b"\r"), Delimiter(b"\r\n", b"\r", b"\n")]
)
def test_any_ending_ends_a_line_at_once(framing: Framing) -> None:
    """A device that waits for its answer behind a lone carriage return gets it."""
    decoder = Decoder(framing)
    assert decoder.feed(b"a\r") == [b"a"]
    assert decoder.feed(b"\nb\nc\r\n\r\r\nd") == [b"b", b"c"]
    assert decoder.finish() == [b"d"]
    assert decoder.buffered == 0


def test_the_first_of_several_delimiters_ends_a_frame() -> None:
    """What is sent ends with the first of them; nothing between two is no frame."""
    framing = Delimiter(b";", b"\n")
    assert outcome(framing, b"a;b;\nc\n;d;") == ([b"a", b"b", b"c", b"d"], [], "")
    assert framing.encode(b"x") == b"x;"
    assert repr(framing) == r"Delimiter(b';', b'\n', limit=65536)"


# --- wake-up bytes


def test_wake_up_bytes_are_no_garbage() -> None:
    """They are neither logged nor counted, before and between frames."""
    framing = Skip(DLT645, b"\xfe")
    stream = b"\xfe\xfe" + METER + b"\xfe" + METER + METER + b"\xfe\xfe"
    decoder = Decoder(framing)
    assert decoder.feed(stream) == [METER[:-2]] * 3
    assert (decoder.bad, decoder.error, decoder.buffered) == (None, None, 0)


def test_real_garbage_behind_wake_up_bytes_is_told() -> None:
    """With Resync around it the next start is found."""
    decoder = Decoder(Resync(Skip(DLT645, b"\xfe")))
    assert decoder.feed(b"\xfe\x01\x02" + METER) == [METER[:-2]]
    assert [item.data for item in decoder.take_bad()] == [b"\x01\x02"]


def test_wake_up_bytes_within_a_frame_belong_to_it() -> None:
    """Only before a frame are they fill."""
    frame = b"\x68\xfe\xfe\xfe\xfe\xfe\xfe\x68\x11\x02\xfe\xfe"
    assert outcome(Skip(DLT645, b"\xfe"), b"\xfe" + DLT645.encode(frame)) == ([frame], [], "")


# --- JSON


@given(values=st.lists(objects, max_size=5), gap=st.sampled_from(["", " ", "\r\n", "\n\n\t"]))
def test_json_objects_need_nothing_between_them(values: list[Any], gap: str) -> None:
    """Each comes as it was sent, whatever is in its strings."""
    texts = [json.dumps(value) for value in values]
    frames, bad, error = outcome(JsonObjects(), gap.join(texts).encode())
    assert ([json.loads(frame) for frame in frames], bad, error) == (values, [], "")


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b'{"a":1}x,{}', "2 bytes outside any object or array: 782c"),
        (b"[]]", "1 bytes outside any object or array: 5d"),
        (b'{}"a"', "3 bytes outside any object or array: 226122"),
        (b"{}" + b"[" * 5, "frame nests 4 levels deep, limit is 3"),
        (b"{}[" + b"1" * 60, "frame has 61 bytes, limit is 40"),
        (b"{}[" + b"1" * 60 + b"]", "frame has 62 bytes, limit is 40"),
    ],
)
def test_what_is_no_json_object_is_told(stream: bytes, why: str) -> None:
    """With both numbers where a limit is exceeded."""
    decoder = Decoder(JsonObjects(depth=3, limit=40))
    frames = decoder.feed(stream)
    assert (len(frames), str(decoder.error)) == (1, why)


def test_a_large_object_in_small_pieces_is_looked_at_once() -> None:
    """Strings that end in backslashes and brackets are seen across reads."""
    value = {"a": ['\\"', "]}", "\\\\"] * 5_000}
    data = json.dumps(value).encode()
    decoder = Decoder(JsonObjects(limit=1 << 20))
    frames = [frame for chunk in bytewise(data) for frame in decoder.feed(chunk)]
    assert frames == [data]


@pytest.mark.parametrize("frame", [b"", b"1", b'"a"', b" {}", b"{} ", b"{}{}", b"{", b"[" * 4 + b"]" * 4])
def test_what_is_no_json_object_is_not_sent(frame: bytes) -> None:
    """Nobody could find it again."""
    with pytest.raises(FramingError, match="isn't one JSON object or array of at most 3 levels"):
        JsonObjects(depth=3).encode(frame)


# --- silence


@pytest.mark.parametrize(
    ("framing", "stream", "frame"),
    [
        (Gap(0.02), b"a\nb", b"a\nb"),
        (Checked(Gap(0.02), CRC16_MODBUS, byteorder="little"), bytes.fromhex("01030400060005da31"), None),
        (Skip(Gap(0.02), b"\xfe"), b"\xfe\xfeab", b"ab"),
    ],
    ids=repr,
)
def test_silence_ends_a_frame(framing: Framing, stream: bytes, frame: bytes | None) -> None:
    """Whoever keeps the time says `finish`."""
    decoder = Decoder(framing)
    for chunk in bytewise(stream):
        assert decoder.feed(chunk) == []
    assert decoder.finish() == [stream[:-2] if frame is None else frame]
    assert decoder.finish() == []
    assert (decoder.error, decoder.buffered) == (None, 0)


def test_a_frame_by_silence_has_a_limit() -> None:
    """Its error has both numbers."""
    decoder = Decoder(Gap(1, limit=3))
    assert decoder.feed(b"abc") == []
    assert decoder.feed(b"d") == []
    assert str(decoder.error) == "frame has 4 bytes, limit is 3"
    assert decoder.recover() == 4
    with pytest.raises(FramingError, match="silence"):
        Gap(1).encode(b"")


# --- set-up


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Skip(Line()), r"Skip: fill is (); say which bytes to skip, as in Skip(framing, b'\xfe')"),
        (lambda: Skip(Resync(BCC), b"\xfe"), "Skip: put Resync around it, as in Resync(Skip(…))"),
        (
            lambda: Skip(BCC, b"\x02"),
            f"Skip: {BCC!r} starts with b'\\x02', which would be skipped",
        ),
        (lambda: Skip(Line(), b"a", send=-1), "Skip: send is -1; it must be a whole number, 0 or more"),
        (
            lambda: FirstOf((b"a", Line()), Gap(1)),
            "FirstOf: Gap(seconds=1, limit=65536) takes whatever comes up to a silence; use it alone",
        ),
        (
            lambda: Resync(Checked(Gap(1), XOR), b"a"),
            f"Resync: {Checked(Gap(1), XOR)!r} takes whatever comes up to a silence; use it alone",
        ),
        (
            lambda: Checked(Line(), XOR, at="behind"),
            f"Checked: at is 'behind', but {Line()!r} has no end mark that is always the same",
        ),
        (
            lambda: Checked(Line(), XOR, at=cast("Any", "front")),
            "Checked: at is 'front'; it must be 'end', 'behind', or the number of a byte",
        ),
        (
            lambda: Checked(Line(), XOR, at=-1),
            "Checked: at is -1; it must be 'end', 'behind', or the number of a byte",
        ),
        (
            lambda: Checked(Line(), XOR, text="short"),
            "Checked: text is 'short', so the number of digits varies; mark= has to say where they begin",
        ),
        (
            lambda: Checked(Line(), XOR, text="decimal", mark=b"A"),
            ("Checked: text is 'decimal', so the number of digits varies; mark= has to say where they begin"),
        ),
        (
            lambda: Checked(LengthPrefix(1), XOR, text="short", mark=b"*", start=-1),
            "Checked: text is 'short', so it has to be at the end, and can't cover a length field",
        ),
        (
            lambda: Checked(Line(), XOR, text=cast("Any", "hex")),
            "Checked: text is 'hex'; it must be True, False, 'short' or 'decimal'",
        ),
        (
            lambda: Checked(StartEnd(b"<", b">"), XOR, start=-2),
            "Checked: start is -2, the start marker b'<' has 1 bytes",
        ),
        (
            lambda: Checked(Line(), XOR, stop=cast("Any", "1")),
            "Checked: stop is '1'; it must be a whole number, as in a slice",
        ),
        (lambda: Checked(Line(), XOR, end=cast("Any", 1)), "Checked: end is 1; it must be bytes"),
        (
            lambda: Checked(BCC.framing, XOR, at="behind", end=b"x"),
            "Checked: at is 'behind', so no end=b'x' stands behind the checksum",
        ),
        (
            lambda: Checked(Line(), XOR, covers_mark=True),
            "Checked: covers_mark is True, but there is no mark=",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], why: str) -> None:
    """A wrong combination is told in one sentence, when it is made."""
    with pytest.raises(SetupError) as info:
        make()
    assert str(info.value) == why


@pytest.mark.parametrize("inner", [Counted(), Starting()], ids=repr)
def test_users_framings_have_fill_too(inner: Framing) -> None:
    """It is skipped before each frame of a generator."""
    framing = Skip(inner, b"\xfe", b"\xff\xff")
    stream = b"\xfe\xff\xff" + inner.encode(b"a") + inner.encode(b"b") + b"\xff\xff" + inner.encode(b"c")
    assert outcome(framing, stream) == ([b"a", b"b", b"c"], [], "")


def test_shapes_are_values() -> None:
    """They are compared by what they are made of, can be hashed, and show themselves."""
    assert Skip(Line(), b"\xfe") == Skip(Line(), b"\xfe")
    assert len({Skip(Line(), b"\xfe"), Skip(Line(), b"\xfe", send=1), JsonObjects(), Gap(1), Gap(1.0)}) == 4
    assert repr(Skip(Line(), b"\xfe", send=4)) == r"Skip(Line(ending=b'\n', limit=65536), b'\xfe', send=4)"
    assert repr(Line(universal=True)) == r"Line(ending=b'\n', universal=True, limit=65536)"
    assert repr(BCC).endswith(", checksum=Checksum(name='XOR', size=1), at='behind')")
    assert Checked(Line(), XOR, stop=-1) != Checked(Line(), XOR)
