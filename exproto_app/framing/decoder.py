"""The decoder: runs a framing over the bytes of one connection.

Where nothing is wrong, what comes goes straight to the framing's `cut`. Otherwise the decoder is stopped at
one of three things, and every byte is looked at a bounded number of times all the same:

- a long frame whose end hasn't come: bytes are collected, and only the new ones are searched for the end;
- an error: `recover` moves on from it frame by frame, so what stands behind isn't cut from its start again;
  what else is wrong there is looked for in one go (`sift`), since one who sends garbage sends much of it;
- a bad frame that counts as an error (`Fatal`): the frames behind it were cut already and wait in `_Behind`.

A user's own framing (`Splitter`, `Stream`) is given large reads in pieces, since it may copy its buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast, final

from ..errors import FramingError, SetupError
from .base import (
    MIXED,
    Fatal,
    Framing,
    Items,
    Searched,
    Sifted,
    SplitFraming,
    Stock,
    StreamFraming,
    Wait,
    Wrong,
    is_count,
)
from .checked import Checked
from .custom import Splitter, Stream, finish_datagram
from .modes import mode_of
from .reader import FRAME_LIMIT, Bad, has_come

__all__ = ["BadFrameError", "Decoder"]

_LONG: Final = 4_096  # bytes of an unfinished frame, beyond which it is no longer searched from its start
NOTHING: Final[list[Sifted]] = []  # shared by all to whom nothing has gone wrong
_FRAMES: Final = {bytes}  # the types of items where none is bad
_PIECE: Final = 8_192  # bytes that a user's framing is given at once


class BadFrameError(FramingError):
    """A bad frame in the place of an error: *item*, which is dropped by `Decoder.recover`."""

    def __init__(self, item: Bad) -> None:
        super().__init__(item.reason)
        self.item = item


@final
class Decoder:
    """The frames of one connection: what comes is fed, whole frames come out.

    *framing* may be shared. Nothing is raised: `error` says what is wrong behind the frames that were just
    returned. While it is set, bytes are kept and no frames come; `recover` goes on. `bad` is what was dropped
    without an error since the last `take_bad`. With *stops* a bad frame is an error too, so that it has its
    place among the others: a `BadFrameError`.
    """

    __slots__ = (
        "_at",
        "_behind",
        "_check",
        "_fast",
        "_framing",
        "_later",
        "_long",
        "_other",
        "_rest",
        "_sifted",
        "_stops",
        "_wait",
        "_wrong",
        "bad",
        "error",
    )

    def __init__(self, framing: Framing, *, stops: bool = False) -> None:
        self._framing = framing
        self._stops = stops
        self._fast: Stock | None = None  # None unless the next bytes can go straight to cut
        self._other: Splitter | Stream | None = None
        self._rest = b""
        self._long: bytearray | None = None  # instead of _rest: a long frame
        self._wait: Wait | None = None  # what a long frame waits for
        self._later: bytearray | None = None  # what came behind _rest, or behind what the other was given
        self._behind: _Behind | None = None
        self._check: Callable[[Items], tuple[Items, bool]] | None = None
        self._at = 0  # where in _rest to go on behind an error
        self._wrong = 0  # bytes that are wrong there; 0 where that isn't known
        self._sifted: list[Sifted] = NOTHING  # what stands there, as far as it is known
        self.bad: list[Bad] | None = None
        self.error: FramingError | None = None
        mode = mode_of(framing)
        if mode == "cut":
            self._fast = cast("Stock", framing).core
            return
        if type(framing) is Checked:
            # All frames of a read are checked at once, which is faster than one by one.
            self._check = framing.check
            framing = framing.framing
        limit = getattr(framing, "limit", FRAME_LIMIT)
        if not is_count(limit):
            raise SetupError(f"{framing!r}: limit is {limit!r}; it must be a whole number above 0")
        if mode == "split":
            self._other = Splitter(cast("SplitFraming", framing), limit)
        else:
            self._other = Stream(cast("StreamFraming", framing), limit)

    @property
    def framing(self) -> Framing:
        """The framing that this decoder was made for."""
        return self._framing

    @property
    def buffered(self) -> int:
        """How many bytes wait for the rest of their frame or, after an error, for `recover`."""
        size = 0 if self._later is None else len(self._later)
        if self._behind is not None:
            size += self._behind.left
        if self._other is not None:
            return size + self._other.buffered
        if self._long is not None:
            return size + len(self._long)
        if self._fast is not None and self._rest == self._fast.flag:
            return size  # it ended the frame before
        return size + len(self._rest) - self._at

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data* as it came and return all frames that are whole now; look at `error` next.

        After `recover`, `feed(b"")` gives the frames that had come behind the error.
        """
        framing = self._fast
        if framing is None:
            return self._feed_slowly(data)
        rest = self._rest
        frames, rest, wrong = framing.cut(rest + data if rest else data)
        self._rest = rest
        if wrong is not None or len(rest) > _LONG:
            return self._sort_out(frames, wrong)
        return frames

    def _sort_out(self, items: Items, wrong: Wrong | None) -> list[bytes]:
        """Return the frames among *items*; see to what is wrong, or too long to be looked at each time."""
        if wrong is not None and wrong is not MIXED:
            items, self._rest, wrong = cast("Stock", self._framing).mend((items, self._rest, wrong))
        if wrong is not None and wrong is not MIXED:
            self.error = FramingError(wrong.reason)
            self._wrong = wrong.size
            if not cast("Stock", self._framing).consumes:
                self._rest = Searched(self._rest)
            self._fast = None
        elif len(self._rest) > _LONG:
            self._wait = cast("Stock", self._framing).waits(self._rest)
            self._long = bytearray(self._rest)
            self._rest = b""
            self._fast = None
        return items if wrong is None else self._frames_of(items)

    def _frames_of(self, items: Items, behind: _Behind | None = None) -> list[bytes]:
        """Return the frames among *items*, up to the first bad one that is an error; keep the bad ones.

        With *behind*, only of those that it has not given yet.
        """
        if behind is None and (not items or {*map(type, items)} == _FRAMES):
            return items
        begin = 0 if behind is None else behind.place + 1
        for place in range(begin, len(items)):
            item = items[place]
            if type(item) is Fatal or (self._stops and type(item) is Bad and item.frame):
                self._behind = _Behind(items, place, self.error, behind)
                self.error = FramingError(item.reason) if type(item) is Fatal else BadFrameError(item)
                self._fast = None
                items = items[begin:place]
                break
        else:
            items = items[begin:] if begin else items
        bad = [item for item in items if type(item) is Bad]
        if bad:
            self.bad = bad if self.bad is None else self.bad + bad
            items = [item for item in items if type(item) is bytes]
        return items

    def take_bad(self) -> list[Bad]:
        """Return what was dropped, in its order, and forget it."""
        bad, self.bad = self.bad, None
        return bad or []

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        if self._sifted and self.error is None and self._behind is None:  # as in a flood of errors
            return self._go_on(data)
        if self.error is not None:
            self._keep(data)
            return []
        if self._behind is not None:
            return self._feed_behind(self._behind, data)
        if self._sifted:
            return self._go_on(data)
        if self._other is not None:
            return self._feed_other(self._other, data)
        return self._go_on(data) if self._long is None else self._feed_long(self._long, data)

    def _feed_long(self, long: bytearray, data: bytes) -> list[bytes]:
        """Collect a long frame."""
        searched = len(long)
        long += data
        if not self._enough(long, searched):
            return []
        self._run_fast()
        return self.feed(b"")

    def _keep(self, data: bytes) -> None:
        """Keep *data* until `recover`."""
        if self._later is not None:
            self._later += data
        elif data:
            self._later = bytearray(data)

    def _take_later(self) -> bytes:
        later, self._later = self._later, None
        return bytes(later or b"")

    def _run_fast(self) -> None:
        if self._long is not None:
            self._rest = bytes(self._long)
            self._long = self._wait = None
        self._fast = cast("Stock", self._framing).core

    def _enough(self, long: bytearray, searched: int) -> bool:
        """Return whether the bytes that the framing waits for are there."""
        wait = self._wait
        if wait is None or len(long) >= wait.size:
            return True
        if wait.whole is not None:
            return wait.whole(long, searched)
        return bool(wait.ends) and has_come(wait.ends, long, searched)

    def _go_on(self, data: bytes) -> list[bytes]:
        """Return the frames behind an error, up to the next."""
        if data:
            self._keep(data)
        if not self._sifted:
            self._sifted = cast("Stock", self._framing).sift(self._rest, self._at)
        items, start, error, size = self._sifted.pop()
        if error is not None:
            self.error = error
            self._at, self._wrong = start, size
            if not items or (len(items) == 1 and type(items[0]) is bytes):
                return items
            return self._frames_of(items)
        self._rest = self._rest[start:]
        self._at = 0
        self._run_fast()
        frames = self._frames_of(items)
        return frames if self.error is not None else frames + self.feed(self._take_later())

    def _feed_other(self, other: Splitter | Stream, data: bytes) -> list[bytes]:
        """Give *data* to a user's framing, piece by piece."""
        if self._later is None and len(data) <= _PIECE:
            return self._judged(other, other.feed(data))
        self._keep(data)
        frames = self._judged(other, other.feed(b""))
        while self.error is None and self._later:
            piece = bytes(self._later[:_PIECE])
            del self._later[:_PIECE]
            frames += self._judged(other, other.feed(piece))
        self._later = self._later or None
        return frames

    def _judged(self, other: Splitter | Stream, items: Items) -> list[bytes]:
        self.error = other.error
        mixed, other.mixed = other.mixed, False
        if self._check is not None:
            items, bad = self._check(items)
            mixed = mixed or bad
        return self._frames_of(items) if mixed else items

    def _feed_behind(self, behind: _Behind, data: bytes) -> list[bytes]:
        """Go on behind a bad frame that was an error."""
        self._keep(data)
        self._behind = None
        self.error = behind.error
        frames = self._frames_of(behind.items, behind)
        if self.error is not None:
            return frames
        if self._other is None:
            self._run_fast()
        return frames + self.feed(self._take_later())

    def finish(self) -> list[bytes]:
        """Return the frames that the end of a datagram ends, and be clean for the next; look at `error` next.

        What ends within a frame is an error, and is dropped.
        """
        other = self._other
        if other is None and self._fast is not None and not self._rest:
            return []
        if self.error is None and (self._behind is not None or self._later is not None or self._recovered):
            return self.feed(b"") + self.finish()
        self._behind = None
        self._sifted = NOTHING
        items: Items = []
        if other is not None:
            items = other.finish(len(self._take_later()))
            self.error = self.error or other.error
            other.mixed = False
            return self._frames_of(items if self._check is None else self._check(items)[0])
        self._run_fast()
        if self.error is None:
            items, self.error = finish_datagram(self._framing, bytearray(self._rest))
        if self.error is None:
            self._rest = b""
        else:
            self._fast, self._wrong = None, 0
        return self._frames_of(items)

    @property
    def _recovered(self) -> bool:
        """Whether what stands behind an error is still to be cut."""
        return self._other is None and self._fast is None and self._long is None

    def recover(self) -> int:
        """Go on after `error`, and return how many bytes were dropped for it.

        That is the wrong ones, where the framing knows their end, or else all that had come.
        """
        if self.error is None:
            return 0
        self.error = None
        if self._behind is not None:
            return self._behind.size
        if self._other is not None:
            dropped, known = self._other.recover()
            return dropped if known else dropped + len(self._take_later())
        wrong, self._wrong = self._wrong, 0
        if wrong:
            self._at += wrong
            return wrong
        dropped = self.buffered
        self._rest = b""
        self._at = 0
        self._later = None
        return dropped


@final
class _Behind:
    """*items*, of which the one at *place* is a bad frame that was an error, and an *error* behind them.

    *before* is the bad frame of them that was an error before this one.
    """

    __slots__ = ("error", "items", "left", "place")

    def __init__(self, items: Items, place: int, error: FramingError | None, before: _Behind | None) -> None:
        self.items = items
        self.place = place
        self.error = error
        if before is None:
            self.left = sum(map(_size, items[place:]))
        else:
            self.left = before.left - sum(map(_size, items[before.place : place]))

    @property
    def size(self) -> int:
        """Bytes of the bad frame."""
        return _size(self.items[self.place])


def _size(item: bytes | Bad) -> int:
    return len(item if type(item) is bytes else item.data)  # type: ignore[union-attr] # by type()
