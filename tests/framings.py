"""Framings to test with, and what is done with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import attrs
from hypothesis import strategies as st

from exproto_app.checksums import CRC16_ARC, CRC16_MODBUS, CRC16_X25, CRC32, SUM8, XOR
from exproto_app.errors import FramingError
from exproto_app.framing import (
    JT808,
    SLIP,
    Checked,
    Decoder,
    Decoding,
    Delimiter,
    FirstOf,
    FixedSize,
    Framing,
    JsonObjects,
    LengthPrefix,
    Line,
    OctetCounting,
    Reader,
    Resync,
    Skip,
    StartEnd,
    Varint,
)

__all__ = [
    "BCC",
    "CASES",
    "DLT645",
    "GT06",
    "MBUS",
    "NMEA",
    "WIALON",
    "Case",
    "Counted",
    "CountedSplit",
    "Starting",
    "Words",
    "anything",
    "by",
    "bytewise",
    "cut",
    "decoded",
    "dense",
    "meter",
    "places",
    "sendable",
    "splitting",
    "told",
    "whole",
]


# --- users' framings


@attrs.frozen
class Counted:
    """Two bytes of length, then the frame, as a generator."""

    limit: int = 65_536

    def encode(self, frame: bytes) -> bytes:
        return len(frame).to_bytes(2, "big") + frame

    def decode(self, reader: Reader) -> Decoding:
        while True:
            size = yield from reader.exactly(2)
            data = yield from reader.exactly(int.from_bytes(size, "big"))
            yield data


@attrs.frozen
class CountedSplit:
    """The same by split, one frame a call, and a frame b"bad" is refused."""

    limit: int = 65_536

    def encode(self, frame: bytes) -> bytes:
        return len(frame).to_bytes(2, "big") + frame

    def split(self, buffer: bytearray) -> list[bytes]:
        size = 2 + int.from_bytes(buffer[:2], "big")
        if len(buffer) < max(size, 2):
            return []
        frame = bytes(buffer[2:size])
        del buffer[:size]
        if frame == b"bad":
            raise FramingError("refused")
        return [frame]


@attrs.frozen
class Starting:
    """One byte, which the framing knows, one of length, and the rest, as a generator."""

    limit: int = 65_536
    starts: tuple[bytes, ...] = (b"#",)

    def encode(self, frame: bytes) -> bytes:
        if len(frame) > 255:
            raise FramingError("too long")
        return b"#" + bytes([len(frame)]) + frame

    def decode(self, reader: Reader) -> Decoding:
        while True:
            start, size = yield from reader.exactly(2)
            if start != b"#"[0]:
                raise FramingError("no start")
            yield (yield from reader.exactly(size))


@attrs.frozen
class Words:
    """Words end with a semicolon, as a generator."""

    limit: int = 65_536

    def encode(self, frame: bytes) -> bytes:
        return frame + b";;"

    def decode(self, reader: Reader) -> Decoding:
        while True:
            yield (yield from reader.until(b";;"))


def by(decode: Callable[[Reader], Decoding]) -> Framing:
    """Return a framing with this generator."""

    class User:
        def encode(self, frame: bytes) -> bytes:
            return frame

        def decode(self, reader: Reader) -> Decoding:
            return decode(reader)

        def __repr__(self) -> str:
            return "User()"

    return User()


def splitting(split: Callable[[bytearray], Any]) -> Framing:
    """Return a framing with this split."""

    class User:
        def encode(self, frame: bytes) -> bytes:
            return frame

        def split(self, buffer: bytearray) -> list[bytes]:
            return cast("list[bytes]", split(buffer))

        def __repr__(self) -> str:
            return "User()"

    return User()


# --- what is done with them


def decoded(framing: Framing, chunks: Iterable[bytes]) -> list[bytes]:
    decoder = Decoder(framing)
    frames: list[bytes] = []
    for chunk in chunks:
        frames += decoder.feed(chunk)
        assert decoder.error is None
    assert all(type(frame) is bytes for frame in frames)
    return frames


def told(framing: Framing, chunks: Iterable[bytes]) -> list[bytes | str]:
    """Return frames and errors in their order; each error is survived."""
    decoder = Decoder(framing)
    events: list[bytes | str] = []
    for chunk in chunks:
        data = chunk
        while True:
            events += decoder.feed(data)
            if decoder.error is None:
                break
            events.append(str(decoder.error))
            decoder.recover()
            data = b""
    return events


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


# Few different bytes, so that markers and halves of them are everywhere.
dense = st.lists(st.sampled_from(b"\r\n|ab\x7e\x7d\x01\x02\xc0\xdb\xdc<>#"), max_size=12).map(bytes)
anything = st.one_of(dense, st.binary(max_size=40))
places = st.lists(st.integers(min_value=0, max_value=10_000), max_size=20)


def whole(frame: bytes) -> bytes:
    """Return *frame* with a GT06 header, which stays in the frame."""
    return b"\x78\x78" + bytes([len(frame)]) + frame + b"\x0d\x0a"


def meter(data: bytes) -> bytes:
    """Return what stands before the checksum of a DL/T 645 frame with *data*."""
    return b"\x68\xaa\xaa\xaa\xaa\xaa\xaa\x68\x11" + bytes([len(data)]) + data


@attrs.frozen
class Case:
    """A framing, and frames for it; *loses*: behind garbage it drops all that has come."""

    name: str
    framing: Framing
    frames: st.SearchStrategy[bytes] = attrs.field(default=anything, repr=False)
    loses: bool = attrs.field(default=False, kw_only=True)


def lossy(name: str, framing: Framing, frames: st.SearchStrategy[bytes] = anything) -> Case:
    return Case(name, framing, frames, loses=True)


GT06 = FirstOf(
    Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1),
    Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2),
)
NMEA = Checked(StartEnd(b"$", b"\r\n"), XOR, mark=b"*", text=True)
MIXED = FirstOf((b"\x7e", JT808), (b"<", StartEnd(b"<", b">")), Line())


DLT645 = Checked(LengthPrefix(1, start=b"\x68", offset=9, adjustment=1, end=b"\x16"), SUM8)
MBUS = FirstOf(
    Checked(LengthPrefix(1, start=b"\x68", adjustment=3, strip=0, end=b"\x16"), SUM8, start=4),
    (b"\x10", Checked(FixedSize(5), SUM8, start=1, end=b"\x16")),
    (b"\xe5", FixedSize(1)),
)
BCC = Checked(StartEnd(b"\x02", b"\x03"), XOR, at="behind")
WIALON = Checked(Line(ending=b"\r\n"), CRC16_ARC, start=3, text="short", mark=b";", covers_mark=True)

leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,  # more are drawn for long, and nest no deeper
)
objects = st.one_of(st.lists(values, max_size=4), st.dictionaries(st.text(max_size=4), values, max_size=4))
texts = st.builds(json.dumps, objects, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 1])).map(
    str.encode
)


def is_text(data: bytes) -> bool | None:
    """Take letters for text, after a look at two of them."""
    return None if len(data) < 2 else data.isalpha()


CASES = [
    Case("line", Line()),
    Case("line crlf", Line(ending=b"\r\n")),
    Case("delimiter", Delimiter(b"|")),
    Case("delimiter of two", Delimiter(b"||")),
    Case("delimiter that overlaps itself", Delimiter(b"|a|")),
    lossy("length 1", LengthPrefix(1)),
    lossy("length 2", LengthPrefix(2)),
    lossy("length 3", LengthPrefix(3, byteorder="little")),
    lossy("length 4", LengthPrefix(4, byteorder="little")),
    lossy("length 8", LengthPrefix(8)),
    lossy("length that counts itself", LengthPrefix(2, adjustment=-2)),
    lossy("length without checksum", LengthPrefix(2, adjustment=1), st.binary(min_size=1, max_size=40)),
    lossy("header stays", LengthPrefix(1, offset=2, adjustment=2), anything.map(whole)),
    lossy("plain length stays", LengthPrefix(1, strip=0), anything.map(lambda f: bytes([len(f)]) + f)),
    Case("fixed size", FixedSize(3), st.binary(min_size=3, max_size=3)),
    Case("start and end", StartEnd(b"<", b">")),
    Case("markers of two", StartEnd(b"<#", b"#>")),
    Case("markers that overlap", StartEnd(b"<>", b">>")),
    Case("equal markers", StartEnd(b"|", b"|")),
    Case("equal markers of two", StartEnd(b"||", b"||")),
    Case("jt808", JT808),
    Case("slip", SLIP),
    Case("start, escaped end", StartEnd(b"##", b"a>", {b">": b"<a", b"<": b"<b", b"#": b"<c"})),
    Case("slip's markers once", StartEnd(b"||", b"||", shared=True)),
    lossy(
        "header and second header go",
        LengthPrefix(1, adjustment=1, strip=1),
        st.binary(min_size=1, max_size=40),
    ),
    lossy("varint", Varint(), st.one_of(anything, st.binary(min_size=120, max_size=140))),
    lossy("octet counting", OctetCounting()),
    lossy("length with markers", LengthPrefix(1, start=b"xx", end=b"|")),
    lossy("length with a start", LengthPrefix(2, start=b"\x7e", adjustment=-3)),
    lossy("length with an end", LengthPrefix(1, end=b"\r\n")),
    lossy(
        "first of two lengths", FirstOf(LengthPrefix(1, start=b"a"), LengthPrefix(2, start=b"ab|"), Line())
    ),
    Case("first of text and binary", MIXED),
    lossy("first by a function", FirstOf((is_text, Line()), LengthPrefix(1))),
    lossy("first of both ways of syslog", FirstOf(OctetCounting(), (b"<", Line()))),
    lossy(
        "first of stock and user's",
        FirstOf((b"|", Line()), Starting(), JT808, (b"\x01\x02", Words()), Counted()),
    ),
    Case("checked xor", Checked(JT808, XOR)),
    Case("checked sum in front of an end", Checked(StartEnd(b"<", b">>"), SUM8)),
    lossy("checked from the second byte", Checked(LengthPrefix(1), CRC32, start=1, byteorder="little")),
    lossy("checked with its length", Checked(LengthPrefix(2, start=b"ab", end=b"|"), CRC16_ARC, start=-2)),
    lossy(
        "checked with all before it",
        Checked(LengthPrefix(1, start=b"<", adjustment=2), CRC16_ARC, start=-2, size=4),
    ),
    lossy("checked twice", Checked(Checked(LengthPrefix(1), XOR), CRC16_MODBUS)),
    Case("checked text", NMEA),
    lossy(
        "checked by a function", Checked(LengthPrefix(1), lambda data: len(data) % 256, size=1, bad="error")
    ),
    lossy("checked user's generator", Checked(Starting(), CRC16_MODBUS, byteorder="little")),
    lossy("checked user's split", Checked(CountedSplit(), XOR)),
    lossy("gt06", GT06),
    Case("resync gt06", Resync(GT06)),
    Case("resync markers", Resync(StartEnd(b"<#", b"#>"))),
    Case("resync lines", Resync(Line(), b"$"), anything.map(lambda frame: b"$" + frame)),
    lossy("resync several", Resync(FirstOf(LengthPrefix(1, start=b"#"), JT808))),
    lossy("resync user's", Resync(Starting())),
    lossy("resync user's among others", Resync(FirstOf(Starting(), JT808))),
    Case("lines with any ending", Line(universal=True)),
    Case("lines with a lone carriage return", Line(ending=b"\r")),
    Case("several delimiters", Delimiter(b"|", b"\n")),
    Case("delimiters in each other", Delimiter(b"\r\n", b"\n", b"\r")),
    Case("delimiters of two", Delimiter(b"||", b"ab")),
    lossy("json objects", JsonObjects(), texts),
    Case("resync json objects", Resync(JsonObjects()), texts),
    lossy("first of json and lines", FirstOf(JsonObjects(), Line()), st.one_of(texts, anything)),
    lossy("json beside a user's", FirstOf(JsonObjects(), Counted()), texts),
    Case("wake-up bytes", Skip(StartEnd(b"<", b">"), b"\xfe")),
    Case("wake-up bytes are sent", Skip(Line(), b"\xfe", b"ab", send=2)),
    lossy("wake-up bytes before a length", Skip(Checked(LengthPrefix(1, start=b"x"), XOR), b"\xfe", b"\r\n")),
    Case("resync behind wake-up bytes", Resync(Skip(StartEnd(b"<", b">"), b"|"))),
    lossy("wake-up bytes before a user's", Skip(Starting(), b"|", b"ab")),
    lossy("checked in front of an end that stays", DLT645, anything.map(meter)),
    lossy("checked in three ways", MBUS, anything.map(lambda f: b"h" + bytes([len(f)]) * 2 + b"h" + f)),
    Case("checked behind an end", BCC),
    Case("checked behind an end, escaped", Checked(JT808, CRC16_X25, at="behind", start=-1)),
    lossy("checked behind a length's end", Checked(LengthPrefix(1, end=b"|"), XOR, at="behind", start=-1)),
    lossy("checked behind a delimiter", Checked(Delimiter(b"||"), XOR, at="behind", stop=-2)),
    lossy("checked in front", Checked(LengthPrefix(1, start=b"<"), CRC16_X25, at=0, start=-1)),
    Case("checked within", Checked(StartEnd(b"<", b">"), SUM8, at=1), st.binary(min_size=1, max_size=40)),
    Case("checked in part", Checked(Line(), XOR, stop=4, end=b"ab")),
    Case("checked text of few digits", WIALON),
    Case(
        "checked decimal", Checked(StartEnd(b"<", b">"), SUM8, start=-1, text="decimal", mark=b"|", stop=-1)
    ),
    lossy("user's generator", Counted()),
    lossy("user's generator with a start", Starting()),
    lossy("user's split", CountedSplit()),
]


def sendable(case: Case, data: st.DataObject) -> tuple[list[bytes], bytes]:
    """Return frames that the framing takes, and the stream that they make."""
    frames: list[bytes] = []
    stream = b""
    for frame in data.draw(st.lists(case.frames, max_size=12)):
        if frame == b"bad":
            continue
        try:
            stream += case.framing.encode(frame)
        except FramingError:
            continue
        frames.append(frame)
    return frames, stream
