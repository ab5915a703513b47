"""Checksums are those of the catalogue, with fastcrc and without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from operator import xor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import checksums
from exproto_app.checksums import (
    CRC16_ARC,
    CRC16_CCITT_FALSE,
    CRC16_MODBUS,
    CRC16_X25,
    CRC16_XMODEM,
    CRC32,
    SUM8,
    XOR,
    Checksum,
)

OWN = {
    CRC16_X25: checksums._x25,
    CRC16_ARC: checksums._arc,
    CRC16_MODBUS: checksums._modbus,
    CRC16_CCITT_FALSE: checksums._ccitt_false,
    CRC16_XMODEM: checksums._xmodem,
}


def by_definition(data: bytes, *, poly: int, start: int, mirrored: bool, out: int) -> int:
    """Return a CRC of 16 bits as the catalogue defines it, bit by bit."""
    register = start
    for byte in data:
        register ^= (int(f"{byte:08b}"[::-1], 2) if mirrored else byte) << 8
        for _ in range(8):
            register = register << 1 ^ (poly if register & 0x8000 else 0)
            register &= 0xFFFF
    if mirrored:
        register = int(f"{register:016b}"[::-1], 2)
    return register ^ out


DEFINED: dict[Checksum, Callable[[bytes], int]] = {
    CRC16_X25: lambda data: by_definition(data, poly=0x1021, start=0xFFFF, mirrored=True, out=0xFFFF),
    CRC16_ARC: lambda data: by_definition(data, poly=0x8005, start=0, mirrored=True, out=0),
    CRC16_MODBUS: lambda data: by_definition(data, poly=0x8005, start=0xFFFF, mirrored=True, out=0),
    CRC16_CCITT_FALSE: lambda data: by_definition(data, poly=0x1021, start=0xFFFF, mirrored=False, out=0),
    CRC16_XMODEM: lambda data: by_definition(data, poly=0x1021, start=0, mirrored=False, out=0),
    XOR: lambda data: reduce(xor, data, 0),
    SUM8: lambda data: sum(data) % 256,
}


@pytest.mark.parametrize(
    ("checksum", "name", "size", "check"),
    [
        (XOR, "XOR", 1, 0x31),
        (SUM8, "SUM8", 1, 0xDD),
        (CRC16_X25, "CRC-16/X-25", 2, 0x906E),
        (CRC16_ARC, "CRC-16/ARC", 2, 0xBB3D),
        (CRC16_MODBUS, "CRC-16/MODBUS", 2, 0x4B37),
        (CRC16_CCITT_FALSE, "CRC-16/CCITT-FALSE", 2, 0x29B1),
        (CRC16_XMODEM, "CRC-16/XMODEM", 2, 0x31C3),
        (CRC32, "CRC-32", 4, 0xCBF43926),
    ],
)
def test_the_check_values_of_the_catalogue(checksum: Checksum, name: str, size: int, check: int) -> None:
    """Each gives the catalogue's check value for b"123456789", whoever computes it."""
    assert (checksum.name, checksum.size, checksum(b"123456789")) == (name, size, check)
    assert OWN.get(checksum, checksum)(b"123456789") == check
    assert repr(checksum) == f"Checksum(name={name!r}, size={size})"


@pytest.mark.parametrize("checksum", DEFINED, ids=lambda checksum: str(checksum.name))
@given(data=st.binary(max_size=300))
def test_all_ways_give_the_same(checksum: Checksum, data: bytes) -> None:
    """fastcrc, our own way and the definition agree, for any bytes."""
    expected = DEFINED[checksum](data)
    assert checksum(data) == expected
    assert OWN.get(checksum, checksum)(data) == expected


@pytest.mark.live
def test_without_fastcrc_our_own_are_used() -> None:
    """The library is an extra: nothing is missing without it."""
    code = (
        "import sys; sys.modules['fastcrc'] = None;"
        "from exproto_app.checksums import CRC16_X25, _x25;"
        "print(CRC16_X25.function is _x25, hex(CRC16_X25(b'123456789')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0x906e"]
