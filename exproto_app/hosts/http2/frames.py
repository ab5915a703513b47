"""Frames of HTTP/2 and what their numbers mean (RFC 9113, 4 and 6)."""

from __future__ import annotations

from struct import Struct
from typing import Final

__all__ = [
    "ACK",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONTINUATION",
    "DATA",
    "DEFAULT_WINDOW",
    "END_HEADERS",
    "END_STREAM",
    "ENHANCE_YOUR_CALM",
    "FLOW_CONTROL_ERROR",
    "FRAME_SIZE_ERROR",
    "GOAWAY",
    "HEADERS",
    "MAX_FRAME",
    "MAX_WINDOW",
    "NO_ERROR",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PRIORITY_FRAME",
    "PROTOCOL_ERROR",
    "PUSH_PROMISE",
    "REFUSED_STREAM",
    "RST_STREAM",
    "SETTINGS",
    "STREAM_CLOSED",
    "WINDOW_UPDATE",
    "ProtocolError",
    "pack_frame",
    "pack_header",
    "remove_padding",
    "unpack_header",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY_FRAME, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 2, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

MAX_FRAME: Final = 16_384
"""Bytes of a frame's payload that we accept; the least that a peer has to accept."""

MAX_WINDOW: Final = 0x7FFFFFFF
DEFAULT_WINDOW: Final = 65_535

unpack_header: Final = Struct(">BHBBI").unpack_from
pack_header: Final = Struct(">BHBBI").pack
"""Packs a frame's header: the upper byte and the lower two of its size, kind, flags, stream."""


class ProtocolError(Exception):
    """The peer broke a rule of HTTP/2 or exceeded a limit. An endpoint may raise it for what it is given."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def pack_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return pack_header(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def remove_padding(payload: bytes) -> bytes:
    """Return *payload* without its padding. Raises `ProtocolError`."""
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(PROTOCOL_ERROR, "a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]
