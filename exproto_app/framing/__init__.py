"""Framings: where a frame ends in the bytes of a device, and what is put around a frame that is sent.

A framing is any object with `encode(frame) -> bytes` and one of two ways to find frames:

`decode(reader)` is a generator for the connection's life, so it can keep state. It asks for bytes and
yields frames::

    class Counted:
        def encode(self, frame: bytes) -> bytes:
            return len(frame).to_bytes(2, "big") + frame

        def decode(self, reader: Reader) -> Decoding:
            while True:
                size = yield from reader.exactly(2)
                frame = yield from reader.exactly(int.from_bytes(size, "big"))
                yield frame

`split(buffer)` is faster: it removes whole frames from the front of *buffer* (`del buffer[:n]`) and returns
them. It returns the good frames that stand before anything wrong, and raises `FramingError` only if the
first thing in the buffer is wrong: it is called again while it finds something. Had it removed the wrong
bytes before it raised, decoding can go on behind them. A framing with both ways is used by `split`.

What is wrong and can be dropped without harm to the frames behind it isn't an error: either way may give
`Bad` in the place of a frame (`yield Bad(frame, "why")`), and `yield from reader.skip(n, "why")` drops bytes
that are in no frame. Both are logged with the connection's id and counted in `app.stats`, as `frames_bad` and
`bytes_skipped`.

Four things are optional. `limit` is the most bytes that a frame may have, 65,536 where there is none; it is
for what the device sends, not for what is sent to it. `starts`, a tuple of bytes, tells `FirstOf` and
`Resync` how frames begin. `finish(buffer)` belongs to `split`: it is called at the end of a datagram with
what `split` left, and returns the frames that end there. `gap`, in seconds, has it called after so much
silence too.

For every framing here `decode(encode(frame)) == frame`: `encode` refuses a frame for which this can't hold.
They are stateless, may be shared, and are compared by their options.
"""

from __future__ import annotations

from .base import Framing, SplitFraming, StreamFraming
from .checked import Checked, Checksum
from .decoder import Decoder
from .enclosed import JT808, SLIP, StartEnd
from .filled import Skip
from .first_of import FirstOf
from .json_objects import JsonObjects
from .marked import Delimiter, Line
from .reader import FRAME_LIMIT, Bad, Decoding, Need, Reader
from .resync import Resync
from .silence import Gap
from .sized import RAW, FixedSize, LengthPrefix, OctetCounting, Raw, Varint

__all__ = [
    "FRAME_LIMIT",
    "JT808",
    "RAW",
    "SLIP",
    "Bad",
    "Checked",
    "Checksum",
    "Decoder",
    "Decoding",
    "Delimiter",
    "FirstOf",
    "FixedSize",
    "Framing",
    "Gap",
    "JsonObjects",
    "LengthPrefix",
    "Line",
    "Need",
    "OctetCounting",
    "Raw",
    "Reader",
    "Resync",
    "Skip",
    "SplitFraming",
    "StartEnd",
    "StreamFraming",
    "Varint",
]
