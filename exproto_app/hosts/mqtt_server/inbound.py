"""What an MQTT client has sent and nobody has handled yet, cut into packets."""

from __future__ import annotations

from .codec import head_of
from .reasons import MqttError, Reason

__all__ = ["Inbound"]

HEAD = 5
"""Bytes of the longest fixed header."""


class Inbound:
    """Bytes in, packets out; each byte is copied a few times at most, however it comes in.

    There is either data with whole packets in it, and behind it what came meanwhile, or the beginning of one
    packet, which isn't looked at again before the rest of it is there. *limit*: bytes of a packet.
    """

    __slots__ = ("_at", "_data", "_need", "_rest", "_since", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = b""
        self._at = 0
        self._rest = bytearray()
        self._need = 0
        self._since = 0.0

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self._data) - self._at + len(self._rest)

    @property
    def ready(self) -> bool:
        """Whether `next` may have a packet."""
        return self._at < len(self._data) or (bool(self._rest) and self._has_next)

    @property
    def _has_next(self) -> bool:
        return bool(self._data) or len(self._rest) >= self._need

    @property
    def first(self) -> int | None:
        """The first byte, None if there is none."""
        if self._at < len(self._data):
            return self._data[self._at]
        return self._rest[0] if self._rest else None

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self._rest or self._at < len(self._data):
            self._rest += data
        else:
            self._data, self._at = data, 0

    def next(self) -> tuple[int, bytes] | None:
        """Return the first byte and the body of the next packet, if it is complete. Raises `MqttError`."""
        while True:
            data, at, end = self._data, self._at, len(self._data)
            if at < end:
                found = head_of(data, at, end)
                if found is None:
                    need = end - at + 1
                else:
                    begin, stop = found
                    if stop - begin > self.limit:
                        words = f"a packet has {stop - begin} bytes, limit is {self.limit}"
                        raise MqttError(words, Reason.TOO_LARGE)
                    if stop <= end:
                        self._at = stop
                        self._since = 0.0
                        return data[at], data[begin:stop]
                    need = stop - at
                self._rest = bytearray(data[at:]) + self._rest
                self._need = need
            elif end:
                self._need = 1
            self._data, self._at = b"", 0
            if not self._rest or len(self._rest) < self._need:
                return None
            self._data, self._rest = bytes(self._rest), bytearray()

    def late(self, now: float, seconds: float) -> bool:
        """Return whether the packet that has begun takes longer than *seconds*."""
        if not self._rest or self._data:
            self._since = 0.0
        elif not self._since:
            self._since = now
        return bool(self._since) and now - self._since > seconds

    def clear(self) -> None:
        """Forget what there is."""
        self._data, self._at = b"", 0
        self._rest = bytearray()
