"""Identities of recorded devices, replaced by those of many others wherever they stand. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..errors import SetupError
from ..names import shortened

__all__ = ["SHORTEST", "Identities"]

SHORTEST = 4
"""Characters of an identity, so that it isn't found where it doesn't stand."""


@attrs.frozen
class Identities:
    """The identities that one connection told, in the forms in which they stand in bytes.

    Those are: as text; as digits of half a byte each, as in BCD, or in hex; and as a whole number of eight
    bytes, highest first. *width* characters at the end of each are replaced, by the number of the device.
    """

    texts: tuple[str, ...]
    width: int

    @classmethod
    def of(cls, texts: Sequence[str], devices: int) -> Identities:
        """Return those of *texts* for so many *devices*. Raises `SetupError` for one that is too short."""
        texts = tuple(dict.fromkeys(texts))
        width = len(str(max(devices * max(1, len(texts)) - 1, 0)))
        for text in texts:
            if len(text) < max(width, SHORTEST):
                raise SetupError(
                    f"identity {shortened(text)} is too short for {devices:,} devices of their own; "
                    "name the right one with --identity"
                )
        return cls(texts, width)

    def named(self, device: int) -> tuple[str, ...]:
        """Return the identities of the device of this number, from 0 on."""
        first = device * len(self.texts)
        ends = (f"{first + number:0{self.width}d}" for number in range(len(self.texts)))
        return tuple(text[: len(text) - self.width] + end for text, end in zip(self.texts, ends, strict=True))

    def told_in(self, data: bytes) -> bool:
        """Return whether one of them stands in *data*."""
        return any(self.rewritten(data, device) != data for device in (0, 1)) if self.texts else False

    def rewritten(self, data: bytes, device: int) -> bytes:
        """Return *data* with the identities of *device*; it stays as long as it is."""
        for text, name in zip(self.texts, self.named(device), strict=True):
            data = data.replace(text.encode(), name.encode())
            if text.isascii() and text.isdigit() and int(text) >= 1 << 32:
                data = data.replace(_number(text), _number(name))
            if _is_hex(text):
                data = bytes.fromhex(data.hex().replace(text.lower(), name.lower()))
        return data


def _number(text: str) -> bytes:
    number = int(text)
    return number.to_bytes(8, "big") if number < 1 << 64 else text.encode()


def _is_hex(text: str) -> bool:
    return text.isascii() and all(letter in "0123456789abcdef" for letter in text.lower())
