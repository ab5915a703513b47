"""What listeners for datagrams take, as their URLs say. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from ...errors import SetupError

if TYPE_CHECKING:
    from .listeners import Url

__all__ = ["DTLS_OPTIONS", "UDP_OPTIONS", "DatagramLine"]

UDP_OPTIONS: Final = frozenset({"buffer"})
DTLS_OPTIONS: Final = UDP_OPTIONS | {"mtu"}

LEAST: Final = 256
MOST: Final = 16_384
"""Bytes of a datagram that `mtu=` takes; OpenSSL makes no smaller ones."""

LARGEST: Final = 1 << 30
"""Bytes of a buffer."""


@attrs.frozen(kw_only=True)
class DatagramLine:
    """How datagrams go.

    *buffer*: bytes that the kernel keeps until we read them, None for its own default; *mtu*: bytes of the
    datagrams of a handshake at most. 1,232 are what every path of IPv6 carries in one piece.
    """

    buffer: int | None = None
    mtu: int = 1_232

    @classmethod
    def read(cls, url: Url) -> DatagramLine:
        """Read the options of *url*. Raises `SetupError`."""
        buffer, mtu = url.count("buffer"), url.count("mtu") or cls().mtu
        if buffer is not None and buffer > LARGEST:
            raise SetupError(f"{url.what} {url.text!r}: buffer is {buffer}, limit is {LARGEST}")
        if not LEAST <= mtu <= MOST:
            raise SetupError(f"{url.what} {url.text!r}: mtu is {mtu}; it must be from {LEAST} to {MOST}")
        return cls(buffer=buffer, mtu=mtu)
