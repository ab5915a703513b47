"""The PROXY protocol's header, versions 1 and 2, without I/O (haproxy.org, doc/proxy-protocol.txt).

A load balancer sends it before the device's first byte, before TLS too, to tell whom it speaks for. A
connection without one, with a malformed one, one over 4,096 bytes or one that takes longer than
`--handshake-timeout` is closed, logged in hex and counted as `proxy_headers_refused`.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Generator
from typing import Final

import attrs

from ...errors import FramingError
from ...models import Address

__all__ = ["LIMIT", "Proxied", "header"]

LIMIT: Final = 4096
"""Bytes of a header in all, its extensions (TLVs) included; nginx takes as many."""

LIMIT_V1: Final = 107
"""Bytes of a header of version 1, by its specification."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
FIELDS: Final = {b"TCP4": 6, b"TCP6": 6, b"UNKNOWN": 2}
"""Words of a line of version 1, `PROXY` included, by its second; of UNKNOWN those that have to be there."""

IPV4: Final = struct.Struct("!4s4sHH")
IPV6: Final = struct.Struct("!16s16sHH")
UNIX_SIZE: Final = 216


@attrs.frozen
class Proxied:
    """Both ends of the connection that the load balancer took: the device's and its own."""

    source: Address
    destination: Address


def header() -> Generator[int, bytes, Proxied | None]:
    """Yield how many bytes to read, get exactly those, and so on; return what the header tells.

    None means that the load balancer speaks for itself, or for somebody without an address that we know. It
    never asks for a byte behind the header. Raises `FramingError` for anything else than a header.
    """
    data = yield len(SIGNATURE)
    if data == SIGNATURE:
        return (yield from _version_2())
    if data.startswith(b"PROXY "):
        return (yield from _version_1(data))
    raise FramingError("it didn't begin with a PROXY header")


def _version_1(line: bytes) -> Generator[int, bytes, Proxied | None]:
    while not line.endswith(b"\r\n"):
        missing = _missing(line)
        if len(line) + missing > LIMIT_V1:
            raise FramingError(f"the PROXY line has more than {LIMIT_V1} bytes")
        line += yield missing
    words = line[:-2].split(b" ")
    if b"\n" in line[:-1] or b"\r" in line[:-2]:
        raise FramingError("the PROXY line has a line end in the middle")
    if words[1] == b"UNKNOWN":  # what follows it has no meaning
        return None
    if len(words) != FIELDS.get(words[1]):
        raise FramingError("the PROXY line isn't TCP4, TCP6 or UNKNOWN with two addresses and two ports")
    kind = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        source, destination = (kind(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise FramingError("the PROXY line has an invalid address") from None
    return Proxied(_address(source, _port(words[4])), _address(destination, _port(words[5])))


def _missing(line: bytes) -> int:
    """Return how many bytes have to follow *line* at least, so that few reads are enough."""
    if line.endswith(b"\r"):
        return 1
    words = line.split(b" ")
    if len(words) < 3:  # in the second word, the shortest of which is TCP4 and has more behind it
        return 2
    return 2 * max(0, FIELDS.get(words[1], 2) - len(words)) + (not words[-1]) + 2


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or int(word) > 65_535:
        raise FramingError("the PROXY line has an invalid port")
    return int(word)


def _version_2() -> Generator[int, bytes, Proxied | None]:
    version, family, size = struct.unpack("!BBH", (yield 4))
    if version not in (0x20, 0x21):
        raise FramingError(f"the PROXY header has version and command 0x{version:02x}, not 0x20 or 0x21")
    if len(SIGNATURE) + 4 + size > LIMIT:
        raise FramingError(f"the PROXY header has {len(SIGNATURE) + 4 + size} bytes, limit is {LIMIT}")
    body = (yield size) if size else b""
    if version == 0x20:  # LOCAL: a health check; the family has no meaning
        return None
    least = {0x0: 0, 0x1: IPV4.size, 0x2: IPV6.size, 0x3: UNIX_SIZE}.get(family >> 4)
    if least is None or family & 0x0F > 2:
        raise FramingError(f"the PROXY header has an unknown address family 0x{family:02x}")
    if size < least:
        raise FramingError(f"the PROXY header has {size} bytes of addresses, they need {least}")
    if family >> 4 == 0x1:
        a, b, port, own_port = IPV4.unpack_from(body)
        return Proxied(_address(ipaddress.IPv4Address(a), port), _address(ipaddress.IPv4Address(b), own_port))
    if family >> 4 == 0x2:
        a, b, port, own_port = IPV6.unpack_from(body)
        return Proxied(_address(ipaddress.IPv6Address(a), port), _address(ipaddress.IPv6Address(b), own_port))
    return None


def _address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    """Return *ip* as sockets tell it; an IPv4 address inside an IPv6 one is what the device has."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return Address(str(mapped or ip), port)
