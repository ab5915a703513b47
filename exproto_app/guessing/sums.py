"""Which checksum frames carry, where it stands and what it covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import attrs

from .. import checksums
from ..checksums import crc

__all__ = ["KINDS", "Kind", "Sum", "find_sum", "find_text_sum"]


Order: TypeAlias = Literal["big", "little"]


@attrs.frozen
class Kind:
    """A checksum: its name, its bytes, the *code* that makes it, and what that *imports* of `checksums`."""

    name: str
    size: int
    function: Callable[[bytes], int] = attrs.field(repr=False, eq=False)
    code: str
    imports: str = ""


def _named(name: str) -> Kind:
    checksum = getattr(checksums, name)
    return Kind(checksum.name, checksum.size, checksum.function, name, name)


def _crc(name: str, width: int, poly: int, init: int, xorout: int, *, reflected: bool) -> Kind:
    options = [str(width), f"0x{poly:0{width // 4}X}"]
    options += [f"init=0x{init:X}"] if init else []
    options += ["reflected=True"] if reflected else []
    options += [f"xorout=0x{xorout:X}"] if xorout else []
    made = crc(width, poly, init=init, reflected=reflected, xorout=xorout)
    return Kind(name, width // 8, made.function, f"crc({', '.join(options)})", "crc")


def _lambda(name: str, size: int, function: Callable[[bytes], int], code: str) -> Kind:
    return Kind(name, size, function, f"lambda data: {code}")


def _fletcher(data: bytes) -> int:
    one = two = 0
    for byte in data:
        one = (one + byte) & 0xFF
        two = (two + one) & 0xFF
    return one << 8 | two


KINDS: Final = (
    _named("XOR"),
    _named("SUM8"),
    _lambda("the negative sum (LRC)", 1, lambda data: -sum(data) & 0xFF, "-sum(data) & 0xFF"),
    _lambda("the inverted sum", 1, lambda data: ~sum(data) & 0xFF, "~sum(data) & 0xFF"),
    _crc("CRC-8/SMBUS", 8, 0x07, 0, 0, reflected=False),
    _crc("CRC-8/MAXIM-DOW", 8, 0x31, 0, 0, reflected=True),
    _crc("CRC-8/ROHC", 8, 0x07, 0xFF, 0, reflected=True),
    _crc("CRC-8/NRSC-5", 8, 0x31, 0xFF, 0, reflected=False),
    _crc("CRC-8/DVB-S2", 8, 0xD5, 0, 0, reflected=False),
    _crc("CRC-8/SAE-J1850", 8, 0x1D, 0xFF, 0xFF, reflected=False),
    _crc("CRC-8/WCDMA", 8, 0x9B, 0, 0, reflected=True),
    _named("CRC16_X25"),
    _named("CRC16_MODBUS"),
    _named("CRC16_ARC"),
    _named("CRC16_CCITT_FALSE"),
    _named("CRC16_XMODEM"),
    _crc("CRC-16/KERMIT", 16, 0x1021, 0, 0, reflected=True),
    _crc("CRC-16/MCRF4XX", 16, 0x1021, 0xFFFF, 0, reflected=True),
    _crc("CRC-16/GENIBUS", 16, 0x1021, 0xFFFF, 0xFFFF, reflected=False),
    _crc("CRC-16/SPI-FUJITSU", 16, 0x1021, 0x1D0F, 0, reflected=False),
    _crc("CRC-16/GSM", 16, 0x1021, 0, 0xFFFF, reflected=False),
    _crc("CRC-16/UMTS", 16, 0x8005, 0, 0, reflected=False),
    _crc("CRC-16/CMS", 16, 0x8005, 0xFFFF, 0, reflected=False),
    _crc("CRC-16/USB", 16, 0x8005, 0xFFFF, 0xFFFF, reflected=True),
    _crc("CRC-16/MAXIM-DOW", 16, 0x8005, 0, 0xFFFF, reflected=True),
    _crc("CRC-16/DNP", 16, 0x3D65, 0, 0xFFFF, reflected=True),
    _crc("CRC-16/EN-13757", 16, 0x3D65, 0, 0xFFFF, reflected=False),
    _crc("CRC-16/T10-DIF", 16, 0x8BB7, 0, 0, reflected=False),
    _crc("CRC-16/PROFIBUS", 16, 0x1DCF, 0xFFFF, 0xFFFF, reflected=False),
    _lambda("the sum in 16 bits", 2, lambda data: sum(data) & 0xFFFF, "sum(data) & 0xFFFF"),
    _lambda("the negative sum in 16 bits", 2, lambda data: -sum(data) & 0xFFFF, "-sum(data) & 0xFFFF"),
    _lambda(
        "Fletcher's sums",
        2,
        _fletcher,
        "(sum(data) & 0xFF) << 8 | sum((len(data) - at) * byte for at, byte in enumerate(data)) & 0xFF",
    ),
    _named("CRC32"),
    _crc("CRC-32C", 32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, reflected=True),
    _crc("CRC-32/MPEG-2", 32, 0x04C11DB7, 0xFFFFFFFF, 0, reflected=False),
    _crc("CRC-32/JAMCRC", 32, 0x04C11DB7, 0xFFFFFFFF, 0, reflected=True),
)
"""In the order in which they are tried: those of device protocols first."""

STARTS: Final = 9
"""Bytes of a frame that a checksum may leave out in front."""

TRIED: Final = 5
LOOKED_AT: Final = 200
LONGEST: Final = 400
"""Frames on which each checksum is tried, those on which what holds there is, and bytes of the former."""


@attrs.frozen
class Sum:
    """A checksum that was found: it covers a frame from byte *start* on, and *fits* so many of those *tried*.

    It stands at the end, or *behind* an end mark, in *width* bytes. As *text* it is written in hex.
    """

    kind: Kind
    start: int
    width: int
    order: Order
    fits: int
    tried: int
    text: bool = False
    mark: bytes = b""
    covers_mark: bool = False
    behind: bool = False

    @property
    def share(self) -> float:
        """The share of frames whose checksum is right."""
        return self.fits / (self.tried or 1)


def find_sum(bodies: Sequence[bytes], cache: dict[Any, Any]) -> Sum | None:
    """Return the checksum at the end of *bodies*; *cache* remembers what was tried."""
    bodies = bodies[:LOOKED_AT]
    probes = _different(bodies)
    if probes not in cache:
        cache[probes] = list(_hits(probes))
    best: Sum | None = None
    for kind, start, width, order in cache[probes]:
        fits = sum(_right(kind, start, width, order, body) for body in bodies)
        found = Sum(kind, start, width, order, fits, len(bodies))
        if _counts(found) and (best is None or found.share > best.share):
            best = found
    return best


def _hits(probes: Sequence[bytes]) -> Iterator[tuple[Kind, int, int, Order]]:  # noqa: C901 - it is tight
    """Yield the checksums that are right in half of *probes*."""
    if len(probes) < 2:
        return
    misses_at_most = len(probes) // 2
    for kind in KINDS:
        for width in (2, 4) if kind.size == 2 else (kind.size,):
            orders: tuple[Order, ...] = ("big", "little") if width > 1 else ("big",)
            for start in range(STARTS):
                right = dict.fromkeys(orders, 0)
                for number, body in enumerate(probes):
                    if number - max(right.values()) > misses_at_most:
                        break
                    if len(body) <= start + width:
                        continue
                    value = kind.function(body[start:-width])
                    for order in orders:
                        right[order] += value == int.from_bytes(body[-width:], order)
                for order, count in right.items():
                    if count >= max(2, len(probes) - misses_at_most):
                        yield kind, start, width, order


def _counts(found: Sum) -> bool:
    """Return whether so many frames can't be right by chance."""
    if found.kind.size == 1:
        return found.fits >= 3 and found.share >= 0.8
    return found.fits >= 2 and found.share >= 0.6


def _different(bodies: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return a few that differ, short ones first."""
    return tuple(sorted(dict.fromkeys(body for body in bodies if 4 < len(body) <= LONGEST), key=len)[:TRIED])


def _right(kind: Kind, start: int, width: int, order: Order, body: bytes) -> bool:
    if len(body) <= start + width:
        return False
    return kind.function(body[start:-width]) == int.from_bytes(body[-width:], order)


# --- text


def find_text_sum(bodies: Sequence[bytes]) -> Sum | None:
    """Return the checksum in hex digits at the end of *bodies*, if they have one."""
    bodies = bodies[:LOOKED_AT]
    probes = _different(bodies)
    for kind in KINDS:
        digits = 2 * kind.size
        for mark, covered in ((b"*", False), (b"*", True), (b";", True), (b"", False)):
            for start in range(5):
                hits = sum(_text_right(kind, start, digits, mark, body, covered=covered) for body in probes)
                if not probes or hits < max(2, (len(probes) + 1) // 2):
                    continue
                fits = sum(_text_right(kind, start, digits, mark, body, covered=covered) for body in bodies)
                found = Sum(
                    kind,
                    start,
                    kind.size,
                    "big",
                    fits,
                    len(bodies),
                    text=True,
                    mark=mark,
                    covers_mark=covered,
                )
                if _counts(found):
                    return found
    return None


def _text_right(kind: Kind, start: int, digits: int, mark: bytes, body: bytes, *, covered: bool) -> bool:
    place = len(body) - digits
    text = body[place:]
    if place <= start + len(mark) or not text.isalnum() or body[place - len(mark) : place] != mark:
        return False
    try:
        value = int(text, 16)
    except ValueError:
        return False
    return kind.function(body[start : place if covered else place - len(mark)]) == value
