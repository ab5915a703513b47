"""Framing alone: small frames in 1,460-byte chunks, beside loops written by hand for each format.

Run it as `python -m tests.bench.framing`; it prints a line for each figure, and the ratios are of one run.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import attrs

from exproto_app.checksums import CRC16_ARC, CRC16_MODBUS, CRC16_X25, SUM8, XOR
from exproto_app.framing import (
    JT808,
    RAW,
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

__all__ = ["figures"]

CHUNK = 1_460  # bytes of one TCP segment
STREAM = 10_000_000  # bytes
ROUNDS = 5

Loop: TypeAlias = Callable[[Sequence[bytes]], list[bytes]]
"""Takes chunks, returns all their frames; whole in one function, as one would write it by hand."""


class Prefixed:
    """What a user writes: two bytes of length, then the frame."""

    def encode(self, frame: bytes) -> bytes:
        return len(frame).to_bytes(2, "big") + frame

    def decode(self, reader: Reader) -> Decoding:
        while True:
            size = yield from reader.exactly(2)
            frame = yield from reader.exactly(int.from_bytes(size, "big"))
            yield frame


class PrefixedSplit:
    """The same, by `split`."""

    def encode(self, frame: bytes) -> bytes:
        return len(frame).to_bytes(2, "big") + frame

    def split(self, buffer: bytearray) -> list[bytes]:
        frames: list[bytes] = []
        data = bytes(buffer)
        start = 0
        while start + 2 <= len(data):
            end = start + 2 + (data[start] << 8 | data[start + 1])
            if end > len(data):
                break
            frames.append(data[start + 2 : end])
            start = end
        del buffer[:start]
        return frames


def one(data: bytes) -> list[bytes]:
    return [data]


def by_raw(chunks: Sequence[bytes]) -> list[bytes]:
    # There is no format to take apart: what is left to do by hand is a call for each read.
    frames: list[bytes] = []
    for chunk in chunks:
        frames += one(chunk)
    return frames


def by_line(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        frames += lines
    return frames


def by_crlf(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        lines = (rest + chunk).split(b"\r\n")
        rest = lines.pop()
        frames += lines
    return frames


def by_delimiter(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).split(b"||")
        rest = parts.pop()
        frames += parts
    return frames


def by_two(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).replace(b"\n", b";").split(b";")
        rest = parts.pop()
        frames += [part for part in parts if part]
    return frames


def by_endings(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        rest = parts.pop()
        frames += [part for part in parts if part]
    return frames


def by_decoder(chunks: Sequence[bytes]) -> list[bytes]:
    # What people write for JSON without delimiters: the parser tells where a value ends.
    frames: list[bytes] = []
    rest = ""
    raw_decode = json.JSONDecoder().raw_decode
    for chunk in chunks:
        text = rest + chunk.decode()
        start = 0
        while start < len(text):
            try:
                _, end = raw_decode(text, start)
            except ValueError:
                break
            frames.append(text[start:end].encode())
            start = end
        rest = text[start:]
    return frames


def by_meter(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        start, size = 0, len(data)
        while True:
            while data[start : start + 1] == b"\xfe":
                start += 1
            if start + 10 > size:
                break
            end = start + 12 + data[start + 9]
            if end > size:
                break
            body = data[start : end - 2]
            if data[start] == 0x68 and data[end - 1] == 0x16 and sum(body) & 0xFF == data[end - 2]:
                frames.append(body)
            start = end
        rest = data[start:]
    return frames


def by_bcc(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        start, size = 0, len(data)
        while start < size and data[start] == 2:
            end = data.find(b"\x03", start)
            if end < 0 or end + 1 >= size:
                break
            value = 0
            for byte in data[start + 1 : end + 1]:
                value ^= byte
            if value == data[end + 1]:
                frames.append(data[start + 1 : end])
            start = end + 2
        rest = data[start:]
    return frames


def by_length(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start + 2 <= size:
            end = start + 2 + (data[start] << 8 | data[start + 1])
            if end > size:
                break
            frames.append(data[start + 2 : end])
            start = end
        rest = data[start:]
    return frames


def by_header(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start + 3 <= size:
            end = start + data[start + 2] + 5
            if end > size:
                break
            frames.append(data[start:end])
            start = end
        rest = data[start:]
    return frames


def by_size(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        end = len(data) - len(data) % 32
        frames += [data[start : start + 32] for start in range(0, end, 32)]
        rest = data[end:]
    return frames


def by_brackets(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).split(b"\x03")
        rest = parts.pop()
        frames += [part[1:] for part in parts]
    return frames


def by_escapes(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).split(b"\x7e")
        rest = parts.pop()
        if len(parts) % 2:
            rest = b"\x7e" + rest
        for frame in parts[1::2]:
            if 0x7D in frame:
                frames.append(frame.replace(b"\x7d\x02", b"\x7e").replace(b"\x7d\x01", b"\x7d"))
            else:
                frames.append(frame)
    return frames


def by_slip(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).split(b"\xc0")
        rest = parts.pop()
        for frame in parts:
            if 0xDB in frame:
                frames.append(frame.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb"))
            elif frame:
                frames.append(frame)
    return frames


def by_varint(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start < size:
            length = shift = 0
            begin = start
            while begin < size:
                byte = data[begin]
                begin += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
            else:
                break
            end = begin + length
            if end > size:
                break
            frames.append(data[begin:end])
            start = end
        rest = data[start:]
    return frames


def by_octets(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start < size:
            space = data.find(b" ", start)
            if space < 0:
                break
            end = space + 1 + int(data[start:space])
            if end > size:
                break
            frames.append(data[space + 1 : end])
            start = end
        rest = data[start:]
    return frames


def by_either(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start < size:
            if data[start] == 0x02:
                if start + 2 > size:
                    break
                end = start + 2 + data[start + 1]
                if end > size:
                    break
                frames.append(data[start + 2 : end])
                start = end
            else:
                end = data.find(b"\n", start)
                if end < 0:
                    break
                frames.append(data[start:end])
                start = end + 1
        rest = data[start:]
    return frames


def by_xor(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        parts = (rest + chunk).split(b"\x7e")
        rest = parts.pop()
        if len(parts) % 2:
            rest = b"\x7e" + rest
        for part in parts[1::2]:
            frame = part
            if 0x7D in frame:
                frame = frame.replace(b"\x7d\x02", b"\x7e").replace(b"\x7d\x01", b"\x7d")
            if XOR.function(frame) == 0:
                frames.append(frame[:-1])
    return frames


def by_gt06(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    crc = CRC16_X25.function
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start + 4 <= size:
            if data[start] == 0x78:
                begin = start + 3
                end = begin + data[start + 2]
            else:
                begin = start + 4
                end = begin + (data[start + 2] << 8 | data[start + 3])
            if end + 2 > size:
                break
            if crc(data[start + 2 : end - 2]) == data[end - 2] << 8 | data[end - 1]:
                frames.append(data[begin : end - 2])
            start = end + 2
        rest = data[start:]
    return frames


def by_arc(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    crc = CRC16_ARC.function
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start + 8 <= size:
            end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "big")
            if end + 4 > size:
                break
            frame = data[start + 8 : end]
            if crc(frame) == int.from_bytes(data[end : end + 4], "big"):
                frames.append(frame)
            start = end + 4
        rest = data[start:]
    return frames


def by_nmea(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    for chunk in chunks:
        lines = (rest + chunk).split(b"\r\n")
        rest = lines.pop()
        for line in lines:
            body, _, digits = line.rpartition(b"*")
            if XOR.function(body[1:]) == int(digits, 16):
                frames.append(body)
    return frames


def by_modbus(chunks: Sequence[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    rest = b""
    crc = CRC16_MODBUS.function
    for chunk in chunks:
        data = rest + chunk
        size = len(data)
        start = 0
        while start + 3 <= size:
            end = start + 5 + data[start + 2]
            if end > size:
                break
            frame = data[start : end - 2]
            if crc(frame) == data[end - 2] | data[end - 1] << 8:
                frames.append(frame)
            start = end
        rest = data[start:]
    return frames


class ModbusAnswers:
    """What a user writes for the answers to function 3: the third byte tells how many follow."""

    def encode(self, frame: bytes) -> bytes:
        return frame

    def decode(self, reader: Reader) -> Decoding:
        while True:
            head = yield from reader.exactly(3)
            yield head + (yield from reader.exactly(head[2] + 2))


def short_gt06() -> Framing:
    return Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1)


GT06 = FirstOf(short_gt06(), Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2))
EITHER = FirstOf((b"\x02", LengthPrefix(1, start=b"\x02")), Line())
TELTONIKA = Checked(LengthPrefix(4, start=bytes(4), adjustment=4), CRC16_ARC, size=4)
BY_FUNCTION = FirstOf((lambda data: data[0] < 32, LengthPrefix(1, start=b"\x02")), Line())
BOTH_TELTONIKAS = FirstOf(TELTONIKA, (b"\x00\x0f", LengthPrefix(2)))
METER = Skip(
    Checked(LengthPrefix(1, start=b"\x68", offset=9, adjustment=1, end=b"\x16"), SUM8), b"\xfe", send=2
)
METER_HEAD = b"\x68\xaa\xaa\xaa\xaa\xaa\xaa\x68\x91"
BCC = Checked(StartEnd(b"\x02", b"\x03"), XOR, at="behind")
NMEA = Checked(Line(ending=b"\r\n"), XOR, start=1, mark=b"*", text=True)


@attrs.frozen
class Case:
    name: str
    framing: Framing
    by_hand: Loop
    bar: float
    text: bool = False
    json: bool = False
    sizes: tuple[int, int] = (20, 64)
    before: bytes = b""  # what every frame begins with


CASES = (
    Case("raw", RAW, by_raw, 0.4),
    Case("line", Line(), by_line, 0.5, text=True),
    Case("line_crlf", Line(ending=b"\r\n"), by_crlf, 0.5, text=True),
    Case("delimiter", Delimiter(b"||"), by_delimiter, 0.5, text=True),
    Case("several_delimiters", Delimiter(b";", b"\n"), by_two, 0.4, text=True),
    Case("line_universal", Line(universal=True), by_endings, 0.4, text=True),
    Case("json_objects", JsonObjects(), by_decoder, 0.3, text=True, json=True),
    Case("wake_up_and_end", METER, by_meter, 0.25, sizes=(4, 40), before=METER_HEAD),
    Case("checked_behind", BCC, by_bcc, 0.25, text=True),
    Case("length_prefix", LengthPrefix(2), by_length, 0.4),
    Case("length_header", LengthPrefix(1, offset=2, adjustment=2), by_header, 0.4),
    Case("fixed_size", FixedSize(32), by_size, 0.4, sizes=(32, 32)),
    Case("start_end", StartEnd(b"\x02", b"\x03"), by_brackets, 0.4, text=True),
    Case("start_end_escapes", JT808, by_escapes, 0.4),
    Case("slip", SLIP, by_slip, 0.4),
    Case("varint", Varint(), by_varint, 0.4, sizes=(20, 200)),
    Case("octet_counting", OctetCounting(), by_octets, 0.4, text=True),
    Case("length_marked", short_gt06(), by_gt06, 0.4),
    Case("first_of", EITHER, by_either, 0.4, text=True),
    Case("first_of_function", BY_FUNCTION, by_either, 0.4, text=True),
    Case("first_of_checked_teltonika", BOTH_TELTONIKAS, by_arc, 0.4),
    Case("checked_jt808", Checked(JT808, XOR), by_xor, 0.4),
    Case("checked_teltonika", TELTONIKA, by_arc, 0.4),
    Case("checked_nmea", NMEA, by_nmea, 0.4, text=True, before=b"$"),
    Case("first_of_checked_gt06", GT06, by_gt06, 0.4),
    Case("resync_gt06", Resync(GT06), by_gt06, 0.4),
    Case("checked_generator", Checked(ModbusAnswers(), CRC16_MODBUS, byteorder="little"), by_modbus, 0.25),
    Case("user_generator", Prefixed(), by_length, 0.25),
    Case("user_split", PrefixedSplit(), by_length, 0.25),
)


def stream(case: Case) -> bytes:
    """Return a stream of *case*'s frames, always the same."""
    source = random.Random(7)
    pieces: list[bytes] = []
    size = 0
    while size < STREAM:
        frame = source.randbytes(source.randint(*case.sizes))
        if case.text:
            frame = frame.hex()[: len(frame)].encode()
        if case.name == "length_header":
            frame = b"\x78\x78" + bytes([len(frame)]) + frame + b"\x0d\x0a"
        if case.json:
            frame = json.dumps(
                {"id": frame[:8].decode(), "values": [len(frame), {"text": frame.decode()}]}
            ).encode()
        if case.before == METER_HEAD:
            frame = bytes([len(frame)]) + frame
        if case.name == "checked_generator":
            frame = b"\x01\x03" + bytes([len(frame)]) + frame
        framing = case.framing
        if case.by_hand is by_either and len(pieces) % 2:
            framing = Line()
        pieces.append(framing.encode(case.before + frame))
        size += len(pieces[-1])
    return b"".join(pieces)


def decoded(framing: Framing, chunks: Sequence[bytes]) -> list[bytes]:
    feed = Decoder(framing).feed
    frames: list[bytes] = []
    for chunk in chunks:
        frames += feed(chunk)
    return frames


def seconds(work: Callable[[], list[bytes]]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(ours: Callable[[], list[bytes]], theirs: Callable[[], list[bytes]]) -> tuple[float, float]:
    """Return our seconds and how fast we are beside them: medians of rounds that alternate."""
    pairs: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    try:
        for number in range(ROUNDS):
            if number % 2:
                pairs.append((seconds(ours), seconds(theirs)))
            else:
                by_them = seconds(theirs)
                pairs.append((seconds(ours), by_them))
    finally:
        gc.enable()
    return statistics.median(our for our, _ in pairs), statistics.median(their / our for our, their in pairs)


def figure(case: Case, name: str, chunks: Sequence[bytes], bar: float | None) -> tuple[str, bool]:
    count = len(decoded(case.framing, chunks))
    if case.by_hand(chunks) != decoded(case.framing, chunks):
        raise AssertionError(f"{case.name}: the loop by hand finds other frames")
    ours, ratio = compare(lambda: decoded(case.framing, chunks), lambda: case.by_hand(chunks))
    good = bar is None or ratio >= bar
    told = "bar=none" if bar is None else f"bar={bar:.2f} {'ok' if good else 'BELOW'}"
    return f"framing.{name} {count / ours:.0f} frames/s ratio={ratio:.2f} {told}", good


def cuts(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def checked_figures() -> Iterator[tuple[str, bool]]:
    for case in CASES:
        yield figure(case, f"{case.name}.frames", cuts(stream(case), CHUNK), case.bar)
    line = CASES[1]
    lines = [bytes([65 + number % 26]) * 63 + b"\n" for number in range(32_000)]
    yield figure(line, "line.one_a_read", lines, None)
    sixteen = [b"".join(lines[start : start + 16]) for start in range(0, len(lines), 16)]
    yield figure(line, "line.sixteen_a_read", sixteen, None)
    yield figure(CASES[0], "raw.one_a_read", lines, None)


def figures() -> Iterator[str]:
    """Yield a line for each figure: name, value, unit, ratio to the loop by hand, bar."""
    for line, _ in checked_figures():
        yield line


def main() -> int:
    good = True
    for line, reached in checked_figures():
        print(line, flush=True)
        good = good and reached
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
