"""Known protocols: those of the examples, by their framing, and foreign ones, by their first bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from ..checksums import CRC16_ARC, CRC16_X25, XOR
from ..framing import JT808, Checked, Decoder, Delimiter, FirstOf, Framing, LengthPrefix, Line
from .streams import Stream

__all__ = ["Known", "example_of", "foreign"]


@attrs.frozen
class Known:
    """A protocol that an example speaks: its name, the example, its framing, and how frames begin."""

    name: str
    example: str
    framing: Framing
    begins: Callable[[bytes], bool]
    code: str


_GT06: Final = FirstOf(
    Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1),
    Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2),
)
_TELTONIKA: Final = FirstOf(
    Checked(LengthPrefix(4, start=bytes(4), adjustment=4), CRC16_ARC, size=4), (b"\x00\x0f", LengthPrefix(2))
)
_NMEA: Final = Checked(Line(ending=b"\r\n"), XOR, start=1, mark=b"*", text=True)

EXAMPLES: Final = (
    Known(
        "GT06",
        "examples/gt06.py",
        _GT06,
        lambda data: data.startswith((b"\x78\x78", b"\x79\x79")),
        r"""FirstOf(
    Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1),
    Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2),
)""",
    ),
    Known(
        "JT/T 808",
        "examples/jt808.py",
        Checked(JT808, XOR),
        lambda data: data[:1] == b"\x7e",
        "Checked(JT808, XOR)",
    ),
    Known(
        "Teltonika",
        "examples/teltonika.py",
        _TELTONIKA,
        lambda data: data.startswith((b"\x00\x0f", bytes(4))),
        r"""FirstOf(
    Checked(LengthPrefix(4, start=bytes(4), adjustment=4), CRC16_ARC, size=4),
    (b"\x00\x0f", LengthPrefix(2)),
)""",
    ),
    Known(
        "NMEA 0183",
        "examples/nmea.py",
        _NMEA,
        lambda data: re.match(rb"[$!][A-Z]{2}[A-Z0-9]{3},", data) is not None,
        'Checked(Line(ending=b"\\r\\n"), XOR, start=1, mark=b"*", text=True)',
    ),
    Known(
        "Wialon IPS",
        "examples/wialon.py",
        Line(ending=b"\r\n"),
        lambda data: data.startswith(b"#L#"),
        'Line(ending=b"\\r\\n")',
    ),
    Known(
        "Coban or TK103",
        "examples/coban.py",
        Delimiter(b";", b"\r\n", b"\n", b"*"),
        lambda data: re.match(rb"##,imei:\d|imei:\d{10,},", data) is not None,
        'Delimiter(b";", b"\\r\\n", b"\\n", b"*")',
    ),
)

ERRORS: Final = 100
"""After so many framing errors a stream isn't looked at any more."""

ENOUGH: Final = 0.8
"""The share of bytes that have to be in good frames of a known protocol."""


def example_of(streams: Sequence[Stream]) -> tuple[Known, int, int] | None:
    """Return the known protocol that fits, how many frames of it are good, and how many are bad."""
    for known in EXAMPLES:
        begun = [stream for stream in streams if known.begins(stream.data)]
        if len(begun) < ENOUGH * len(streams):
            continue
        good = bad = left = total = 0
        for stream in begun:
            decoder = Decoder(known.framing)
            errors = 0
            for read in stream.reads:
                if errors > ERRORS:
                    left += len(read)
                    continue
                good += sum(map(bool, decoder.feed(read)))
                while decoder.error is not None and errors <= ERRORS:
                    errors += 1
                    left += decoder.recover()
                    good += sum(map(bool, decoder.feed(b"")))
                bad += len(decoder.take_bad())
            left += decoder.buffered
            total += len(stream.data)
        if good and good >= ENOUGH * (good + bad) and left <= (1 - ENOUGH) * total:
            return known, good, bad
    return None


FOREIGN: Final = (
    (
        "TLS",
        re.compile(rb"\x16\x03[\x00-\x04]..\x01", re.DOTALL),
        "it is encrypted: look at what comes behind TLS, with `run --listen tls://… --hex`",
    ),
    (
        "HTTP",
        re.compile(rb"(?:GET|POST|PUT|HEAD|OPTIONS|DELETE|PATCH|CONNECT) [^\r\n]* HTTP/1"),
        "use a web server",
    ),
    ("HTTP/2", re.compile(rb"PRI \* HTTP/2"), "use a web server"),
    ("SSH", re.compile(rb"SSH-[12]\."), "it is encrypted"),
    (
        "MQTT",
        re.compile(rb"\x10[\x00-\xff]{1,4}\x00[\x04\x06]MQ(?:TT|Isdp)"),
        "connect it to the broker itself",
    ),
)
"""What is no device protocol of its own, and what to do."""


def foreign(streams: Sequence[Stream]) -> tuple[str, str] | None:
    """Return the name of the general protocol that most *streams* begin with, and what to do about it."""
    for name, pattern, remedy in FOREIGN:
        count = sum(pattern.match(stream.data) is not None for stream in streams)
        if count >= max(1, 0.5 * len(streams)):
            return name, remedy
    return None
