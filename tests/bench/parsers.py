"""Every parser of ours on hostile input: a mebibyte of the worst that we know of, beside one of good input.

Run it as `python -m tests.bench parsers`. Input is decoded as one read, and errors are kept with `recover`,
as with `conn.keep()`. The ratio is the time that good input takes to that of the hostile one; the bar is a
twentieth.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial

from exproto_app import checksums
from exproto_app.errors import SetupError
from exproto_app.framing import (
    JT808,
    Checked,
    Decoder,
    Delimiter,
    FirstOf,
    Framing,
    LengthPrefix,
    Line,
    OctetCounting,
    Resync,
    StartEnd,
    Varint,
)
from exproto_app.traffic.hexdump import undump

from ..framings import Counted, CountedSplit
from .figures import show

__all__ = ["main"]

SIZE = 1 << 20
BAR = 0.05

ESCAPED = StartEnd(b"x", b"a", {b"a": b"<>", b"<": b"<]"})
MIXED = Resync(FirstOf(StartEnd(b"x", b"a"), (b"\x7e", Counted())))

FRAMINGS: list[tuple[str, Framing, bytes, bytes]] = [
    ("jt808", JT808, b"\x7e\x7d\x00\x7e", b"\x7eab\x7e"),
    ("jt808_checked", Checked(JT808, checksums.XOR), b"\x7e\x7d\x00\x7e", b"\x7eaa\x7e"),
    ("jt808_errors", Checked(JT808, checksums.XOR, bad="error"), b"\x7eab\x7e", b"\x7eaa\x7e"),
    ("jt808_resync", Resync(Checked(JT808, checksums.XOR)), b"\x7e\x7d\x00", b"\x7eaa\x7e"),
    ("start_end_escapes", ESCAPED, b"x<a>", b"xbba"),
    ("start_end_garbage", StartEnd(b"<", b">"), b"a<a>", b"<aa>"),
    ("start_end_resync", Resync(StartEnd(b"x", b"a")), b"x", b"xba"),
    ("line_limit", Line(limit=2), b"abcd\n", b"ab\n"),
    ("delimiter_limit", Delimiter(b"\r\n", limit=2), b"abcd\r\n", b"ab\r\n"),
    ("length_prefix", Resync(LengthPrefix(2, start=b"x", end=b"\r\n")), b"x\0\x10\0", b"x\0\x01a\r\n"),
    ("varint", Varint(limit=5), b"\x7f", b"\x01a"),
    ("octet_counting", OctetCounting(), b"x", b"1 a"),
    ("user_generator", Checked(Counted(), checksums.XOR, bad="error"), b"\0\x02ab", b"\0\x02aa"),
    ("user_split", CountedSplit(), b"\0\x03bad", b"\0\x03abc"),
    ("mixed_resync", MIXED, b"x", b"xba"),
]


def decode(framing: Framing, data: bytes) -> None:
    decoder = Decoder(framing)
    decoder.feed(data)
    while decoder.error is not None:
        decoder.recover()
        decoder.feed(b"")
        decoder.take_bad()


def hex_text(text: str) -> None:
    with contextlib.suppress(SetupError):
        undump(text)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def compare(name: str, hostile: Callable[[], object], good: Callable[[], object]) -> None:
    """Print what *hostile* takes beside *good*: the best of three each, in turns."""
    rounds = [(seconds(good), seconds(hostile)) for _ in range(3)]
    best, worst = min(pair[0] for pair in rounds), min(pair[1] for pair in rounds)
    show(f"parsers.{name}", f"{worst * 1e3:.1f}", "ms", ratio=best / worst, bar=BAR)


def main() -> None:
    for name, framing, hostile, good in FRAMINGS:
        compare(name, partial(decode, framing, repeated(hostile)), partial(decode, framing, repeated(good)))
    good_text = repeated(b"78 ").decode()
    for name, unit in (("comment", b"/*a"), ("brace", b"{"), ("offsets", b"00000000 aa\n")):
        compare(f"hex_{name}", partial(hex_text, repeated(unit).decode()), partial(hex_text, good_text))


def repeated(unit: bytes) -> bytes:
    return unit * (SIZE // len(unit))


if __name__ == "__main__":
    main()
