"""Frames with bytes behind their end mark that belong to them."""

from __future__ import annotations

from typing import cast

import attrs

from ..errors import SetupError
from .base import Found, Framing, Stock, Wait, Wrong
from .enclosed import StartEnd
from .marked import Delimiter
from .sized import LengthPrefix

__all__ = ["Behind", "behind"]


@attrs.frozen
class Behind(Stock):
    """Frames of *framing*, each with *end*, its end mark, and the *size* bytes behind that."""

    framing: Stock
    end: bytes
    size: int

    @property
    def starts(self) -> tuple[bytes, ...]:
        """Those of the framing."""
        return self.framing.starts

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        found = self.framing.first(data, start)
        if type(found) is tuple:
            item, end = found
            if type(item) is not bytes:
                return found
            place = end + self.size
            if place > len(data):
                return Wait(place - start)
            return item + self.end + data[end:place], place
        begins = data.startswith(self.starts or b"", start)
        if begins and type(found) is Wrong and found.size and not found.excess:
            # It is a frame, and has a checksum too.
            return attrs.evolve(found, size=min(found.size + self.size, len(data) - start))
        return found


def behind(framing: Framing, given: Framing, size: int) -> Behind:
    """Return *given* with the end mark of *framing* and *size* bytes behind that. Raises `SetupError`."""
    kind, mark = type(framing), b""
    if kind is StartEnd and not cast("StartEnd", framing).shared:
        mark = cast("StartEnd", framing).end
    elif kind is Delimiter and not cast("Delimiter", framing).others:
        mark = cast("Delimiter", framing).delimiter
    elif kind is LengthPrefix:
        mark = cast("LengthPrefix", framing).end
    if not mark:
        raise SetupError(f"Checked: at is 'behind', but {framing!r} has no end mark that is always the same")
    kept = kind is LengthPrefix and cast("LengthPrefix", framing).strip == 0
    return Behind(cast("Stock", given).closed(), b"" if kept else mark, size)
