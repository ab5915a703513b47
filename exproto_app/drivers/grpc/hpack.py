"""HPACK (RFC 7541), the compression of HTTP/2's header fields, as far as gRPC needs it.

The peers of this driver send the same few blocks again and again. A block that leaves the dynamic table as it
was always means the same until the table changes, so it is looked up instead of decoded.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

__all__ = ["Decoder", "Fields", "HpackError", "literal"]

Fields: TypeAlias = dict[bytes, bytes]
"""Header fields by name; of a name that comes twice, the last."""

TABLE_SIZE: Final = 4096
"""Bytes that the dynamic table may take up: the default, which we never change."""

CACHED: Final = 256
"""Blocks that are remembered for each connection."""

# Appendix A; what stands behind a space is the value.
_STATIC: Final = """
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https
:status 200|:status 204|:status 206|:status 304|:status 400|:status 404|:status 500
accept-charset|accept-encoding gzip, deflate|accept-language|accept-ranges|accept
access-control-allow-origin|age|allow|authorization|cache-control|content-disposition
content-encoding|content-language|content-length|content-location|content-range|content-type
cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range
if-unmodified-since|last-modified|link|location|max-forwards|proxy-authenticate
proxy-authorization|range|referer|refresh|retry-after|server|set-cookie
strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate
"""


def _static() -> tuple[tuple[bytes, bytes], ...]:
    words = (word.partition(" ") for line in _STATIC.split("\n") if line for word in line.split("|"))
    return tuple((name.encode(), value.encode()) for name, _, value in words)


STATIC: Final = _static()

# The code of Appendix B is canonical: the length of each symbol's code says it all.
_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)


def _codes() -> dict[tuple[int, int], int]:
    codes: dict[tuple[int, int], int] = {}
    code = length = 0
    for symbol in sorted(range(257), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        code <<= _LENGTHS[symbol] - length
        length = _LENGTHS[symbol]
        codes[length, code] = symbol
        code += 1
    return codes


_CODES: Final = _codes()
_END: Final = 256


class HpackError(Exception):
    """A block that can't be decoded; the connection is of no use any more."""


def literal(name: bytes, value: bytes) -> bytes:
    """Return a field that leaves every table as it is; both parts shorter than 127 bytes."""
    if max(len(name), len(value)) > 126:
        raise HpackError(f"{name!r} or its value has more than 126 bytes")
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Decoder:
    """The reading side of one connection."""

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._limit = TABLE_SIZE
        self._known: dict[bytes, Fields] = {}

    def decode(self, block: bytes) -> Fields:
        """Return the fields of *block*; the result is shared, so leave it as it is. Raises `HpackError`."""
        fields = self._known.get(block)
        if fields is None:
            try:
                fields, changed = self._decode(block)
            except IndexError:
                raise HpackError("a header block ends in the middle of a field") from None
            if changed:
                self._known.clear()
            elif len(self._known) < CACHED:
                self._known[block] = fields
        return fields

    def _decode(self, block: bytes) -> tuple[Fields, bool]:
        fields: Fields = {}
        changed = False
        at, end = 0, len(block)
        while at < end:
            first = block[at]
            if first & 0x80:  # indexed
                index, at = _integer(block, at, 0x7F)
                name, value = self._entry(index)
            elif first & 0xE0 == 0x20:  # a new size of the table
                size, at = _integer(block, at, 0x1F)
                if size > TABLE_SIZE:
                    raise HpackError(f"the table shall have {size} bytes, limit is {TABLE_SIZE}")
                self._limit, changed = size, True
                self._evict()
                continue
            else:
                kept = first & 0x40
                index, at = _integer(block, at, 0x3F if kept else 0x0F)
                if index:
                    name, _ = self._entry(index)
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                if kept:
                    changed = True
                    self._table.appendleft((name, value))
                    self._size += len(name) + len(value) + 32
                    self._evict()
            fields[name] = value
        return fields, changed

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if not 0 < index <= len(STATIC) + len(self._table):
            raise HpackError(f"there is no entry {index} in the table")
        return STATIC[index - 1] if index <= len(STATIC) else self._table[index - len(STATIC) - 1]

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HpackError("an integer takes more than 5 bytes")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    huffman = block[at] & 0x80
    size, at = _integer(block, at, 0x7F)
    data = block[at : at + size]
    if len(data) < size:
        raise HpackError("a header block ends in the middle of a field")
    return (_unpacked(data) if huffman else data), at + size


def _unpacked(data: bytes) -> bytes:
    """Undo the Huffman code."""
    out = bytearray()
    code = length = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = _CODES.get((length, code))
            if symbol is not None:
                if symbol == _END:
                    raise HpackError("a text has the end of the Huffman code in it")
                out.append(symbol)
                code = length = 0
    # What is left is padding: fewer than 8 bits, all of them 1.
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a text's Huffman code ends in the middle of a character")
    return bytes(out)


class Encoder:
    """The writing side of one connection: fields that were sent once are an index from then on.

    It is made for a few dozen fields in all, so that its table never overflows. Until `allow` has told that
    the peer keeps a table of the usual size it relies on none.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._prefix = b""
        self._entries: dict[tuple[bytes, bytes], int] = {}
        self._size = 0
        self._known: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}

    def allow(self, size: int) -> None:
        """Take note that the peer's table has *size* bytes."""
        if size >= TABLE_SIZE:
            self._allowed = not self._prefix
        elif not self._prefix:
            # Its table may be smaller than ours: say that we use none (RFC 7541, 4.2).
            self._allowed, self._prefix = False, b"\x20"
            self._entries.clear()
            self._known.clear()
            self._size = 0

    def encode(self, fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
        """Return the block of *fields*, which is remembered: nothing that differs from call to call."""
        block = self._known.get(fields)
        if block is None:
            before = len(self._entries)
            block = self._prefix + b"".join(map(self._field, fields))
            if len(self._entries) != before:
                self._known.clear()
            else:
                self._known[fields] = block
        return block

    def _field(self, field: tuple[bytes, bytes]) -> bytes:
        name, value = field
        if field in _STATIC_FIELDS:
            return bytes([0x80 | _STATIC_FIELDS[field]])
        number = self._entries.get(field)
        if number is not None:
            return bytes([0x80 | len(STATIC) + len(self._entries) - number])
        size = len(name) + len(value) + 32
        # An index above 126 would take more than the one byte that is written above.
        if not self._allowed or self._size + size > TABLE_SIZE or len(self._entries) > 60:
            return literal(name, value)
        self._entries[field] = len(self._entries)
        self._size += size
        return b"\x40" + literal(name, value)[1:]


_STATIC_FIELDS: Final = {field: number for number, field in enumerate(STATIC, 1) if field[1]}
