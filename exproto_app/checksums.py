"""Checksums of device protocols, for `framing.Checked` and for handlers.

Each is an object with a *name*, a *size* in bytes, and a call: `CRC16_X25(b"123456789") == 0x906E`. The names
are those of the catalogue of parametrised CRC algorithms (https://reveng.sourceforge.io/crc-catalogue/all.htm),
where aliases are told too. With `pip install 'exproto-app[crc]'` the CRCs of 16 bits are computed by fastcrc,
several times as fast; the results are the same.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from binascii import crc_hqx
from collections.abc import Callable
from typing import Final

import attrs

from .errors import SetupError

__all__ = [
    "CRC16_ARC",
    "CRC16_CCITT_FALSE",
    "CRC16_MODBUS",
    "CRC16_X25",
    "CRC16_XMODEM",
    "CRC32",
    "SUM8",
    "XOR",
    "Checksum",
    "crc",
]


@attrs.frozen
class Checksum:
    """A checksum: call it with bytes. *function* is what it calls, for those who are in a hurry.

    *parameters* are those of a CRC, as `crc` takes them: width, poly, init, reflected, xorout.
    """

    name: str
    size: int
    function: Callable[[bytes], int] = attrs.field(repr=False, eq=False)
    parameters: tuple[int, int, int, bool, int] | None = attrs.field(default=None, repr=False, eq=False)

    def __call__(self, data: bytes, /) -> int:
        """Return the checksum of *data*."""
        return self.function(data)


def _xor(data: bytes) -> int:
    # The number is folded in half until one byte is left: what stands above that doesn't matter.
    value = int.from_bytes(data, "big")
    shift = 4 << (len(data) - 1).bit_length()
    while shift >= 8:
        value ^= value >> shift
        shift >>= 1
    return value & 0xFF


def _sum8(data: bytes) -> int:
    return sum(data) & 0xFF


def _reversed(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


_MIRROR: Final = bytes(_reversed(byte, 8) for byte in range(256))


def _x25(data: bytes) -> int:
    # Python has this polynomial highest bit first; X-25 is the same with all bits mirrored, and inverted.
    value = crc_hqx(data.translate(_MIRROR), 0xFFFF)
    return (_MIRROR[value & 0xFF] << 8 | _MIRROR[value >> 8]) ^ 0xFFFF


def _ccitt_false(data: bytes) -> int:
    return crc_hqx(data, 0xFFFF)


def _xmodem(data: bytes) -> int:
    return crc_hqx(data, 0)


class _Words:
    """The table of the polynomial 8005, lowest bit first: what two bytes at once do to the register."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table: list[int] | None = None  # made when it is first needed: 65,536 numbers

    def crc(self, data: bytes, register: int) -> int:
        table = self.table
        if table is None:
            table = self.table = _words()
        pairs, odd = divmod(len(data), 2)
        for word in struct.unpack_from(f"<{pairs}H", data):
            register = table[register ^ word]
        if odd:
            # One byte in the place of the second leaves the register's upper half to be shifted down.
            byte = (register ^ data[-1]) & 0xFF
            register = register >> 8 ^ table[byte << 8]
        return register


def _words() -> list[int]:
    one = []
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = register >> 1 ^ (0xA001 if register & 1 else 0)
        one.append(register)
    # The first byte's effect goes through the second step; both add up.
    two = [value >> 8 ^ one[value & 0xFF] for value in one]
    return [two[low] ^ one[high] for high in range(256) for low in range(256)]


_WORDS: Final = _Words()


def _arc(data: bytes) -> int:
    return _WORDS.crc(data, 0)


def _modbus(data: bytes) -> int:
    return _WORDS.crc(data, 0xFFFF)


def _fast(name: str, own: Callable[[bytes], int]) -> Callable[[bytes], int]:
    """Return fastcrc's function of this name, or *own* where there is none."""
    try:
        module = importlib.import_module("fastcrc")
    except ImportError:
        return own
    function: Callable[[bytes], int] = getattr(module.crc16, name, own)
    return function


XOR: Final = Checksum("XOR", 1, _xor)
"""All bytes, exclusive or: JT/T 808, NMEA 0183; also called BCC or LRC."""

SUM8: Final = Checksum("SUM8", 1, _sum8)
"""The sum of all bytes, modulo 256."""

CRC16_X25: Final = Checksum("CRC-16/X-25", 2, _fast("ibm_sdlc", _x25), (16, 0x1021, 0xFFFF, True, 0xFFFF))
"""CRC-16/IBM-SDLC, alias X-25, ISO-HDLC, CRC-B: GT06."""

CRC16_ARC: Final = Checksum("CRC-16/ARC", 2, _fast("arc", _arc), (16, 0x8005, 0, True, 0))
"""CRC-16/ARC, alias IBM, LHA: Teltonika."""

CRC16_MODBUS: Final = Checksum("CRC-16/MODBUS", 2, _fast("modbus", _modbus), (16, 0x8005, 0xFFFF, True, 0))
"""CRC-16/MODBUS, which stands lowest byte first in a Modbus RTU frame."""

CRC16_CCITT_FALSE: Final = Checksum(
    "CRC-16/CCITT-FALSE", 2, _fast("ibm_3740", _ccitt_false), (16, 0x1021, 0xFFFF, False, 0)
)
"""CRC-16/IBM-3740, alias CCITT-FALSE, AUTOSAR."""

CRC16_XMODEM: Final = Checksum("CRC-16/XMODEM", 2, _fast("xmodem", _xmodem), (16, 0x1021, 0, False, 0))
"""CRC-16/XMODEM, alias ACORN, V-41-MSB."""

CRC32: Final = Checksum("CRC-32", 4, zlib.crc32, (32, 0x04C11DB7, 0xFFFFFFFF, True, 0xFFFFFFFF))
"""CRC-32/ISO-HDLC, alias PKZIP, the one of Ethernet and zip."""


def crc(width: int, poly: int, *, init: int = 0, reflected: bool = False, xorout: int = 0) -> Checksum:
    """Return the CRC of these parameters, named as in the catalogue: `crc(16, 0x1021, reflected=True)`.

    *width* is in bits, 8 to 64 and whole bytes; *poly*, *init* and *xorout* are written highest bit first;
    *reflected* stands for refin and refout. It is slower than the ready-made ones.
    """
    if width % 8 or not 8 <= width <= 64:
        raise SetupError(
            f"crc: width is {width} bits; it must be 8, 16, 24, 32 or another whole number of bytes"
        )
    for name, value in (("poly", poly), ("init", init), ("xorout", xorout)):
        if not 0 <= value < 1 << width:
            raise SetupError(f"crc: {name} is {value:#x}; it has to fit into {width} bits")
    mask = (1 << width) - 1
    if reflected:
        low, start = _reversed(poly, width), _reversed(init, width)
        table = [_shifted_down(byte, low) for byte in range(256)]

        def function(data: bytes) -> int:
            register = start
            for byte in data:
                register = register >> 8 ^ table[(register ^ byte) & 0xFF]
            return register ^ xorout
    else:
        top = width - 8
        table = [_shifted_up(byte << top, poly, width) for byte in range(256)]

        def function(data: bytes) -> int:
            register = init
            for byte in data:
                register = (register << 8 & mask) ^ table[register >> top ^ byte]
            return register ^ xorout

    return Checksum(f"CRC-{width}/{poly:#x}", width // 8, function, (width, poly, init, reflected, xorout))


def _shifted_down(register: int, poly: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (poly if register & 1 else 0)
    return register


def _shifted_up(register: int, poly: int, width: int) -> int:
    for _ in range(8):
        register <<= 1
        if register >> width:
            register ^= 1 << width | poly
    return register
