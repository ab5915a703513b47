"""Frames that end by silence."""

from __future__ import annotations

import attrs

from ..errors import FramingError, SetupError
from .base import Cut, Found, Stock, Wait, Wrong, limit_option
from .reader import over

__all__ = ["Gap"]

LONGEST = 3_600
"""Seconds of a gap; what is meant to take longer is no pause between two frames."""


def _seconds(_: object, __: object, seconds: float) -> None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= LONGEST:
        raise SetupError(
            f"Gap: seconds is {seconds!r}; it must be a number above 0 and at most {LONGEST}, as in Gap(0.02)"
        )


@attrs.frozen
class Gap(Stock):
    """A frame ends when nothing has come for *seconds*, as on a serial line: `Gap(0.02)`.

    The end of a datagram ends a frame too, and so does the end of the connection. `encode` changes nothing,
    and keeps no silence. *limit* is in bytes: more without a gap are a `FramingError`.
    """

    seconds: float = attrs.field(validator=_seconds)
    limit: int = limit_option()

    @property
    def gap(self) -> float:
        """The seconds of silence that end a frame."""
        return self.seconds

    @property
    def last(self) -> bool:
        """Whether the end of the connection ends a frame: silence follows."""
        return True

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*; raises `FramingError` if it is empty, for that is silence."""
        if not frame:
            raise FramingError("an empty frame can't be told from silence")
        return frame

    def first(self, data: bytes, start: int) -> Found:
        """Wait: no byte ends a frame."""
        size = len(data) - start
        return Wrong(over(size, self.limit), 0) if size > self.limit else Wait(self.limit + 1)

    def cut(self, data: bytes) -> Cut:
        """Return no frames."""
        wrong = Wrong(over(len(data), self.limit), 0) if len(data) > self.limit else None
        return [], data, wrong

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove and return the frame that silence ends."""
        frame = bytes(buffer)
        buffer.clear()
        return [frame] if frame else []
