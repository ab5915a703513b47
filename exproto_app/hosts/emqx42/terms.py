"""Erlang's external term format, as the port to EMQX speaks it (erts, "External Term Format").

Python has for Erlang: int, float, bytes (binaries), tuple, list, dict (maps), and `Atom`, which is a `str`
of its own class. What has no counterpart keeps its bytes, so that it goes back as it came: pids, ports,
references, functions, bitstrings (`Opaque`). A string such as "abc" is a list of numbers to Erlang and to us.
What erlport has wrapped is read as the term that it stands for, so it never goes back wrapped.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, Final

import attrs

__all__ = [
    "Atom",
    "ImproperList",
    "Opaque",
    "TermError",
    "TermTooLargeError",
    "body",
    "decode",
    "encode",
    "export",
    "parse",
]

DEEPEST: Final = 256
"""Terms within terms; deeper ones are refused before Python's own recursion ends."""

LARGEST: Final = 67_108_864
"""Bytes of a compressed term, unpacked."""

MOST: Final = 1_000_000
"""Items in all lists, tuples and maps of a term: of one byte in the format, 64 and more become in Python."""

WRAPPED: Final = "$erlport.opaque"
"""With `{'$erlport.opaque', erlang, Binary}` erlport stands in for a term, which is in the binary."""

VERSION: Final = b"\x83"
PACKED: Final = b"P"


class TermError(ValueError):
    """Bytes that are no term, or a value that can't be one."""


class TermTooLargeError(TermError):
    """A term that is sound, but larger or deeper than what is read."""


class Atom(str):
    """An Erlang atom; equal to the text of the same characters."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str(self)!r})"


@attrs.frozen
class Opaque:
    """A term that is kept as its bytes, without version: a pid, port, reference, function or bitstring.

    Pids, ports and references are equal where they are one in Erlang, however their node's name was written.
    """

    raw: bytes

    @property
    def is_pid(self) -> bool:
        """Whether it is a pid, of either form."""
        return self.raw[0] in (PID, NEW_PID)


@attrs.frozen
class ImproperList:
    """A list whose last tail is no list."""

    items: tuple[Any, ...]
    tail: Any


@attrs.frozen
class Pairs:
    """A map with keys that Python can't hash."""

    items: tuple[tuple[Any, Any], ...]


NEW_FLOAT: Final = 70
BIT_BINARY: Final = 77
NEW_PID: Final = 88
NEW_PORT: Final = 89
NEWER_REFERENCE: Final = 90
SMALL_INTEGER: Final = 97
INTEGER: Final = 98
FLOAT: Final = 99
ATOM: Final = 100
REFERENCE: Final = 101
PORT: Final = 102
PID: Final = 103
SMALL_TUPLE: Final = 104
LARGE_TUPLE: Final = 105
NIL: Final = 106
STRING: Final = 107
LIST: Final = 108
BINARY: Final = 109
SMALL_BIG: Final = 110
LARGE_BIG: Final = 111
NEW_FUN: Final = 112
EXPORT: Final = 113
NEW_REFERENCE: Final = 114
SMALL_ATOM: Final = 115
MAP: Final = 116
FUN: Final = 117
ATOM_UTF8: Final = 118
SMALL_ATOM_UTF8: Final = 119
V4_PORT: Final = 120

_u16: Final = struct.Struct(">H").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_i32: Final = struct.Struct(">i").unpack_from
_f64: Final = struct.Struct(">d").unpack_from

# Bytes of an identifier behind its node's name.
_IDENTIFIERS: Final = {PID: 9, NEW_PID: 12, PORT: 5, NEW_PORT: 8, V4_PORT: 12, REFERENCE: 5}

_atoms: dict[bytes, Atom] = {}
"""Atoms seen, by their bytes; at most 4,096, though Erlang bounds their number too."""


def decode(data: bytes) -> Any:
    """Return the term that *data* holds, with its version byte. Raises `TermError`."""
    if data[:1] != VERSION:
        raise TermError(f"a term starts with 131, not with {data[:1]!r}")
    start = 1
    if data[1:2] == PACKED:
        data, start = _unpacked(data), 0
    term, end = parse(data, start)
    if end != len(data):
        raise TermError(f"{len(data) - end} bytes behind the term")
    return term


def parse(data: bytes, start: int) -> tuple[Any, int]:
    """Return the term at *start*, which isn't compressed, and where it ends. Raises `TermError`."""
    try:
        return _parse(data, start, 0, [MOST])
    except (IndexError, struct.error):
        raise TermError(f"the term ends after {len(data)} bytes, within something") from None


def _take(data: bytes, start: int, size: int) -> bytes:
    end = start + size
    if end > len(data):
        raise TermError(f"the term needs {end} bytes and has {len(data)}")
    return data[start:end]


def _parse(  # noqa: C901, PLR0911, PLR0912 - a case for each tag
    data: bytes, at: int, depth: int, left: list[int]
) -> tuple[Any, int]:
    tag = data[at]
    at += 1
    if tag == BINARY:
        size = _u32(data, at)[0]
        return _take(data, at + 4, size), at + 4 + size
    if tag in (SMALL_ATOM_UTF8, SMALL_ATOM):
        return _atom(data, at + 1, data[at], utf8=tag == SMALL_ATOM_UTF8)
    if tag in (ATOM, ATOM_UTF8):
        return _atom(data, at + 2, _u16(data, at)[0], utf8=tag == ATOM_UTF8)
    if tag == SMALL_INTEGER:
        return data[at], at + 1
    if tag == INTEGER:
        return _i32(data, at)[0], at + 4
    if tag == NIL:
        return [], at
    if tag in _IDENTIFIERS:
        node, behind = _parse_atom(data, at)
        end = behind + _IDENTIFIERS[tag]
        raw = _take(data, at - 1, end - at + 1)
        # OTP 26 and newer write names in both forms: whose identifier it is must not depend on that.
        return Opaque(raw if data[at] == ATOM else raw[:1] + _encode_atom(node) + data[behind:end]), end
    if tag == SMALL_TUPLE:
        items, at = _items(data, at + 1, data[at], depth, left)
        if len(items) == 3 and items[0] == WRAPPED and isinstance(items[2], bytes):
            return _unwrapped(items, depth, left), at
        return tuple(items), at
    if tag == LIST:
        if depth >= DEEPEST:  # without items there would still be the tail
            raise TermTooLargeError(f"the term is more than {DEEPEST} deep")
        items, at = _items(data, at + 4, _u32(data, at)[0], depth, left)
        tail, at = _parse(data, at, depth + 1, left)
        return (items if tail == [] else _joined(items, tail)), at
    if tag == STRING:
        size = _u16(data, at)[0]
        left[0] -= size
        if left[0] < 0:
            raise TermTooLargeError(f"the term has more than {MOST} items")
        return list(_take(data, at + 2, size)), at + 2 + size
    if tag == MAP:
        items, at = _items(data, at + 4, 2 * _u32(data, at)[0], depth, left)
        pairs = tuple(zip(items[::2], items[1::2], strict=True))
        try:
            # Erlang tells 1 from 1.0, Python doesn't.
            made = dict(pairs)
            return (made if len(made) == len(pairs) else Pairs(pairs)), at
        except TypeError:
            return Pairs(pairs), at
    if tag == LARGE_TUPLE:
        items, at = _items(data, at + 4, _u32(data, at)[0], depth, left)
        return tuple(items), at
    if tag in (SMALL_BIG, LARGE_BIG):
        size, at = (data[at], at + 1) if tag == SMALL_BIG else (_u32(data, at)[0], at + 4)
        value = int.from_bytes(_take(data, at + 1, size), "little")
        return (-value if data[at] else value), at + 1 + size
    if tag == NEW_FLOAT:
        return _finite(_f64(data, at)[0]), at + 8
    return _rare(data, at, tag, depth, left)


def _rare(  # noqa: C901 - a case for each tag
    data: bytes, at: int, tag: int, depth: int, left: list[int]
) -> tuple[Any, int]:
    first = at - 1
    if tag == FLOAT:
        try:
            return _finite(float(_take(data, at, 31).split(b"\0")[0])), at + 31
        except ValueError:
            raise TermError("an old float is no number") from None
    if tag in (NEW_REFERENCE, NEWER_REFERENCE):
        words = _u16(data, at)[0]
        node, behind = _parse_atom(data, at + 2)
        at = behind + (1 if tag == NEW_REFERENCE else 4) + 4 * words
        return Opaque(data[first : first + 3] + _encode_atom(node) + _take(data, behind, at - behind)), at
    if tag == BIT_BINARY:
        size, bits = _u32(data, at)[0], data[at + 4]
        if bits > 8 or (bits == 0) != (size == 0):
            raise TermError(f"a bitstring of {size} bytes can't have {bits} bits in the last one")
        at += 5 + size
    elif tag == NEW_FUN:
        size = _u32(data, at)[0]
        if size < 29:  # what stands in front of the module's name
            raise TermError(f"a function can't have {size} bytes")
        at += size
    elif tag == EXPORT:
        for _ in range(2):
            _, at = _parse_atom(data, at)
        if data[at] != SMALL_INTEGER:
            raise TermError(f"an arity is a small number, not a term with the tag {data[at]}")
        at += 2
    elif tag == FUN:
        count = _u32(data, at)[0]
        _, at = _items(data, at + 4, count + 4, depth, left)
    else:
        raise TermError(f"there is no term with the tag {tag}")
    return Opaque(_take(data, first, at - first)), at


def _unwrapped(items: list[Any], depth: int, left: list[int]) -> Any:
    """Return the term that erlport wrapped, for Python has no type for it: a map, a reference, a function."""
    if items[1] != "erlang":
        return tuple(items)
    if depth >= DEEPEST:
        raise TermTooLargeError(f"the term is more than {DEEPEST} deep")
    term, end = _parse(items[2], 0, depth + 1, left)
    if end != len(items[2]):
        raise TermError(f"{len(items[2]) - end} bytes behind a wrapped term")
    return term


def _unpacked(data: bytes) -> bytes:
    size = int.from_bytes(_take(data, 2, 4), "big")
    if size > LARGEST:
        raise TermTooLargeError(f"a compressed term has {size} bytes, limit is {LARGEST}")
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data[6:], size + 1)
    except zlib.error as error:
        raise TermError(f"a compressed term can't be unpacked: {error}") from None
    if len(plain) != size:
        raise TermError(f"a compressed term says {size} bytes and has other")
    if not unpacker.eof:
        raise TermError("a compressed term ends before its checksum")
    if unpacker.unused_data:
        raise TermError(f"{len(unpacker.unused_data)} bytes behind the compressed term")
    return plain


def _joined(items: list[Any], tail: Any) -> Any:
    """Return the list of *items* and *tail*; to Erlang, `[1 | [2]]` is `[1, 2]`."""
    if not items:
        return tail
    if isinstance(tail, list):
        return items + tail
    if isinstance(tail, ImproperList):
        return ImproperList((*items, *tail.items), tail.tail)
    return ImproperList(tuple(items), tail)


def _items(data: bytes, at: int, count: int, depth: int, left: list[int]) -> tuple[list[Any], int]:
    if count > len(data) - at:  # each item has a byte at least
        raise TermError(f"{count} items can't be in {len(data) - at} bytes")
    if count and depth >= DEEPEST:
        raise TermTooLargeError(f"the term is more than {DEEPEST} deep")
    left[0] -= count
    if left[0] < 0:
        raise TermTooLargeError(f"the term has more than {MOST} items")
    items = []
    for _ in range(count):
        item, at = _parse(data, at, depth + 1, left)
        items.append(item)
    return items, at


def _parse_atom(data: bytes, at: int) -> tuple[Any, int]:
    if data[at] not in (ATOM, SMALL_ATOM, ATOM_UTF8, SMALL_ATOM_UTF8):
        raise TermError(f"a name is an atom, not a term with the tag {data[at]}")
    return _parse(data, at, DEEPEST, [0])


def _atom(data: bytes, at: int, size: int, *, utf8: bool) -> tuple[Atom, int]:
    text = _take(data, at, size)
    atom = _atoms.get(text) if utf8 or text.isascii() else None
    if atom is None:
        try:
            atom = Atom(text.decode("utf-8" if utf8 else "latin-1"))
        except UnicodeDecodeError:
            raise TermError(f"an atom is no UTF-8 text: {text!r}") from None
        if len(atom) > 255:
            raise TermError(f"an atom has {len(atom)} characters, limit is 255")
        if len(_atoms) < 4096 and (utf8 or text.isascii()):
            _atoms[text] = atom
    return atom, at + size


def encode(term: Any) -> bytes:
    """Return the bytes of *term*, with the version byte. Raises `TermError` for what Erlang can't have."""
    out: list[bytes] = [VERSION]
    _encode(term, out, 0)
    return b"".join(out)


def body(term: Any) -> bytes:
    """Return the bytes of *term* without the version byte, to be put into another."""
    return encode(term)[1:]


def export(module: str, function: str, arity: int) -> Opaque:
    """Return `fun Module:Function/Arity`."""
    return Opaque(b"q" + body(Atom(module)) + body(Atom(function)) + body(arity))


def _encode(term: Any, out: list[bytes], depth: int) -> None:  # noqa: C901, PLR0912 - a case for each type
    if depth > DEEPEST:
        raise TermError(f"the term is more than {DEEPEST} deep")
    if isinstance(term, bytes):
        out += (b"m", len(term).to_bytes(4, "big"), term)
    elif isinstance(term, Atom):
        out.append(_encode_atom(term))
    elif isinstance(term, bool):
        out.append(_encode_atom("true" if term else "false"))
    elif isinstance(term, int):
        out.append(_encode_int(term))
    elif isinstance(term, tuple):
        size = len(term)
        out.append(bytes((SMALL_TUPLE, size)) if size < 256 else b"i" + size.to_bytes(4, "big"))
        for item in term:
            _encode(item, out, depth + 1)
    elif isinstance(term, list):
        if term:
            out.append(b"l" + len(term).to_bytes(4, "big"))
            for item in term:
                _encode(item, out, depth + 1)
        out.append(b"j")
    elif isinstance(term, Opaque):
        out.append(term.raw)
    elif isinstance(term, (dict, Pairs)):
        pairs = term.items() if isinstance(term, dict) else term.items
        out.append(b"t" + len(pairs).to_bytes(4, "big"))
        for key, value in pairs:
            _encode(key, out, depth + 1)
            _encode(value, out, depth + 1)
    elif isinstance(term, ImproperList):
        out.append(b"l" + len(term.items).to_bytes(4, "big"))
        for item in (*term.items, term.tail):
            _encode(item, out, depth + 1)
    elif isinstance(term, float):
        out.append(b"F" + struct.pack(">d", _finite(term)))
    else:
        raise TermError(f"{type(term).__name__} is nothing that Erlang has; text has to be an Atom or bytes")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise TermError(f"Erlang has no number {value}")
    return value


def _encode_atom(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise TermError(f"{text!r} can't be an atom: half a character is in it") from None
    if len(text) > 255:
        raise TermError(f"an atom has {len(text)} characters, limit is 255")
    if text.isascii():
        # The old form: OTP 22 and older, where EMQX 4.2 may run, sends and reads it too.
        return b"d" + len(data).to_bytes(2, "big") + data
    if len(data) < 256:
        return b"w" + bytes((len(data),)) + data
    return b"v" + len(data).to_bytes(2, "big") + data


def _encode_int(value: int) -> bytes:
    if 0 <= value < 256:
        return bytes((SMALL_INTEGER, value))
    if -(1 << 31) <= value < 1 << 31:
        return b"b" + value.to_bytes(4, "big", signed=True)
    sign = b"\1" if value < 0 else b"\0"
    value = abs(value)
    size = (value.bit_length() + 7) // 8
    head = b"n" + bytes((size,)) if size < 256 else b"o" + size.to_bytes(4, "big")
    return head + sign + value.to_bytes(size, "little")
