"""Traffic as text: hex dumps of what a tap shows, and the way back from hex that people have at hand."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from ..errors import SetupError
from ..models import ClientInfo, Message
from ..tap import (
    Closed,
    Delivered,
    Dropped,
    Event,
    Failed,
    Frame,
    Opened,
    Published,
    Received,
    Refused,
    Registered,
    Sent,
    Subscribed,
    Unsubscribed,
)

__all__ = ["dump", "payload", "plain", "shown", "undump"]

LONG: Final = 1_024
"""Bytes of one read or frame that are shown; the rest is counted."""

LARGE: Final = 1 << 24
"""Bytes that a dump may stand for: one line of it may say any number."""

INLINE: Final = 32
"""Bytes that are shown in the line itself."""


def dump(data: bytes, indent: str = "") -> Iterator[str]:
    """Yield *data* as lines of sixteen bytes: offset, hex, ASCII."""
    for start in range(0, min(len(data), LONG), 16):
        row = data[start : start + 16]
        halves = f"{row[:8].hex(' ')}  {row[8:].hex(' ')}" if len(row) > 8 else row.hex(" ")
        yield f"{indent}{start:04x}  {halves:<48}  |{_ascii(row)}|"
    if len(data) > LONG:
        yield f"{indent}… {len(data) - LONG:,} more"


def _ascii(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def plain(text: str) -> str:
    """Return *text* fit for a terminal: as it is, or quoted where it would do anything there."""
    return text if text.isprintable() else repr(text)


def shown(event: Event) -> Iterator[str]:  # noqa: C901, PLR0912 - one case for each event
    """Yield the lines for *event*; the first begins with a sign, the others are indented.

    `<` came from the device, `:` is a frame, `>` was sent, `^` published, `v` delivered, `=` is a fact,
    `!` went wrong.
    """
    match event:
        case Received(data):
            yield f"< {_size(data)}"
            yield from dump(data, "    ")
        case Frame(frame, handler):
            yield f": frame of {_size(frame)} for {_handler(handler)}{_inline(frame)}"
        case Sent(data):
            yield f"> {_size(data)}"
            yield from dump(data, "    ")
        case Published(message):
            yield f"^ {_message(message)}"
        case Delivered(message, handler):
            yield f"v {_message(message)} for {_handler(handler)}"
        case Opened(info, resumed, late, client):
            word = "resumed" if resumed else "open already" if late else "opened"
            name = f" as {_client(client)}" if client is not None else ""
            yield f"= {word}: {info.socktype} {info.peername}{name}"
        case Registered(client):
            yield f"= registered {_client(client)}"
        case Subscribed(topic, qos):
            yield f"= subscribing to {plain(topic)} qos {qos}"
        case Unsubscribed(topic):
            yield f"= unsubscribing from {plain(topic)}"
        case Refused(what, topic, _, text):
            about = f" {plain(topic)}" if topic else ""
            yield f"! {what}{about} refused: {plain(text)}"
        case Failed(where, _, text):
            yield f"! {where} failed: {plain(text)}"
        case Dropped(what, count):
            yield f"! {count:,} {what} dropped"
        case Closed(reason, detail):
            yield f"= closed: {reason}{f', {plain(detail)}' if detail else ''}"


def _size(data: bytes) -> str:
    return f"{len(data):,} byte{'' if len(data) == 1 else 's'}"


def _handler(name: str | None) -> str:
    return "nobody" if name is None else name


def _inline(data: bytes) -> str:
    more = " …" if len(data) > INLINE else ""
    return f": {data[:INLINE].hex(' ')}{more}" if data else ""


def _client(client: ClientInfo) -> str:
    named = client.username not in ("", client.clientid)
    user = f" ({plain(client.username)})" if named else ""
    return plain(client.clientid) + user


def _message(message: Message) -> str:
    flags = f" qos {message.qos}" + (" retain" if message.retain else "")
    given = [f"{name} {plain(str(value))}" for name, value in message.properties.given().items()]
    more = f" ({', '.join(given)})" if given else ""
    return f"{plain(message.topic)}{flags} {payload(message.payload)}{more}"


def payload(data: bytes, limit: int = LONG) -> str:
    """Return *data* as quoted text, where it is that, or else in hex; at most *limit* bytes of it."""
    cut = data[:limit]
    more = f" … {len(data) - limit:,} more" if len(data) > limit else ""
    try:
        text = cut.decode()
    except UnicodeDecodeError:
        text = ""
    return (f"'{text}'" if text.isprintable() and (text or not cut) else cut.hex(" ")) + more


# --- the way back

_OFFSET: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{4,16})(:?)(?:(\s+)(.*))?")
# A comment that nothing closes is taken to the end: to look for its close from each /* is quadratic.
_NOISE: Final = re.compile(r"/\*.*?(?:\*/|\Z)|//[^\n]*|#[^\n]*", re.DOTALL)
_PIECE: Final = re.compile(r"(?:0[xX]|\\x|\\)?([0-9a-fA-F]+)[hHuUlL]*")
_BETWEEN: Final = re.compile(r"[\s,;:.\-_\"'{}\[\]()|<>]+")


def undump(text: str) -> bytes:
    r"""Return the bytes that *text* writes in hex, as people copy it from elsewhere.

    `78780d01`, `78 78 0d 01`, `78:78:0d:01`, `0x78, 0x78`, `\x78\x78`, a C array, the output of `xxd`,
    `hexdump` or `hexdump -C`, also several of them. Raises `SetupError` that names what isn't hex.
    """
    dumped = _undump_lines([line.strip() for line in text.splitlines() if line.strip()])
    if dumped is not None:
        return dumped
    with contextlib.suppress(ValueError):  # most is nothing but digits and blanks
        return bytes.fromhex(text)
    text = _NOISE.sub(_blank, text)
    if "{" in text:  # a C array: what stands around the braces declares it
        text = " ".join(re.findall(r"\{([^{}]*)\}", text)) or text
    text = re.sub(r"\bb(?=['\"])", " ", text).replace("\\x", " 0x")  # of Python, b'\x78'
    data = bytearray()
    for piece in filter(None, _BETWEEN.split(text)):
        match = _PIECE.fullmatch(piece)
        digits = match[1] if match else ""
        if piece[:2] in ("0x", "0X") and len(digits) == 1:
            digits = "0" + digits
        if not digits:
            raise SetupError(f"{piece!r} is not hex; write it like 78780d01 or 78 78 0d 01")
        if len(digits) % 2:
            raise SetupError(f"{piece!r} has an odd number of hex digits; a byte needs two")
        data += bytes.fromhex(digits)
    return bytes(data)


def _blank(noise: re.Match[str]) -> str:
    if noise[0].startswith("/*") and not (len(noise[0]) > 3 and noise[0].endswith("*/")):
        raise SetupError(f"the comment {noise[0][:16]!r} isn't closed; end it with */, or leave it out")
    return " "


def _undump_lines(lines: list[str]) -> bytes | None:
    """Return the bytes of dump lines, which begin with offsets that fit; None for anything else."""
    data = bytearray()
    words = False
    repeat = False
    first: int | None = None
    for number, line in enumerate(lines):
        if line == "*":  # as often as the next offset says
            repeat = True
            continue
        match = _OFFSET.fullmatch(line)
        if match is None:
            return None
        digits, colon, gap, rest = match.groups()
        last = rest is None and number == len(lines) - 1 and number > 0
        words = words or (len(digits) == 7 and gap == " ")
        if not last and (rest is None or not (colon or words or len(gap) > 1)):
            return None
        offset = int(digits, 16)
        first = offset if first is None else first
        if repeat and offset - first <= LARGE:
            data += data[-16:] * ((offset - first - len(data)) // 16)
            repeat = False
        if last and words:
            del data[offset - first :]  # an odd number of bytes was filled up
        if offset - first != len(data):
            return None
        if not last:
            row = _row(rest, colon=bool(colon), words=words)
            if row is None:
                return None
            data += row
    return bytes(data) if data else None


def _row(text: str, *, colon: bool, words: bool) -> bytes | None:
    """Return the bytes of one dump line, behind its offset; None if it isn't one."""
    text = text.partition("  ")[0] if colon else text.partition("|")[0]
    pieces = text.split()
    if not pieces or any(re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,8}", piece) is None for piece in pieces):
        return None
    if words:  # hexdump without -C shows pairs of bytes as numbers, the second byte first
        return b"".join(bytes.fromhex(piece)[::-1] for piece in pieces)
    return bytes.fromhex("".join(pieces))
