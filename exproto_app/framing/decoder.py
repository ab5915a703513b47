"""The decoder: runs a framing over the bytes of one connection."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, cast, final

from ..errors import FramingError, SetupError
from .base import MIXED, Fatal, Framing, Items, SplitFraming, Stock, StreamFraming, Wait, Wrong, is_count
from .combined import Checked, mode_of
from .reader import FRAME_LIMIT, HEADER, NEED, Bad, Decoding, Reader, over
from .sized import RAW

__all__ = ["Decoder"]

_LONG: Final = 4_096  # bytes of an unfinished frame, beyond which it is no longer searched from its start
_STILL: Final = 10_000  # frames without reading a byte, after which a generator is stopped


def _blamed(framing: object, method: str, error: Exception) -> FramingError:
    """Return *error* as the framing error that it is, or that it becomes."""
    if isinstance(error, FramingError):
        return error
    blamed = FramingError(f"{framing!r}: {method} failed: {error!r}")
    blamed.__cause__ = error
    return blamed


def _within(size: int) -> FramingError:
    return FramingError(f"datagram ends within a frame: {size} bytes left")


@final
class _Splitter:
    """Runs the `split` of a user's framing over one connection."""

    __slots__ = ("_buffer", "_framing", "_limit", "_skipped", "error", "mixed")

    def __init__(self, framing: SplitFraming, limit: int) -> None:
        self._framing = framing
        self._limit = limit
        self._buffer = bytearray()
        self._skipped = 0
        self.error: FramingError | None = None
        self.mixed = False  # whether there is Bad among what was returned

    @property
    def buffered(self) -> int:
        return len(self._buffer) + self._skipped

    def feed(self, data: bytes) -> Items:
        buffer = self._buffer
        frames: Items = []
        size = len(buffer)
        try:
            buffer += data
            while buffer and self.error is None:
                size = len(buffer)
                more = self._framing.split(buffer)
                frames += self._judged(more, size)
                if len(buffer) == size:
                    break
        except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
            self._skipped = size - len(buffer)
            self.error = _blamed(self._framing, "split", error)
        if self.error is None and len(buffer) > self._limit + HEADER:
            self.error = FramingError(over(len(buffer), self._limit))
        return frames

    def _judged(self, frames: object, size: int) -> Items:
        """Return *frames* if they may be some; those over the limit are errors, which stop no others."""
        if not isinstance(frames, list):
            raise TypeError(f"it returned {type(frames).__name__}, not a list")
        limit = self._limit
        for frame in frames:
            if type(frame) is not bytes or len(frame) > limit:
                if not isinstance(frame, bytes | Bad):
                    raise TypeError(f"it returned a frame of {type(frame).__name__}, not bytes")
                self.mixed = True
        if frames and len(self._buffer) >= size:
            raise RuntimeError("it returned frames and removed nothing")
        return [self._within(frame) for frame in frames] if self.mixed else frames

    def _within(self, frame: bytes | Bad) -> bytes | Bad:
        if isinstance(frame, Bad) or len(frame) <= self._limit:
            return frame
        return Fatal(frame, over(len(frame), self._limit))

    def finish(self) -> Items:
        size = self.buffered
        frames: Items = []
        if size and self.error is None:
            frames, self.error = _finish(self._framing, self._buffer)
            self.mixed = True
            frames = [self._within(frame) for frame in frames]
        if self.error is not None:
            self._skipped = size
        self._buffer.clear()
        return frames

    def recover(self) -> int:
        dropped = self._skipped or len(self._buffer)
        if not self._skipped:
            self._buffer.clear()
        self._skipped = 0
        self.error = None
        return dropped


def _finish(framing: object, buffer: bytearray) -> tuple[Items, FramingError | None]:
    """Return the frames that the end of a datagram ends, and what is wrong with the rest."""
    finish: Callable[[bytearray], Items] | None = getattr(framing, "finish", None)
    frames: Items = []
    try:
        if finish is not None:
            frames = finish(buffer)
    except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
        return [], _blamed(framing, "finish", error)
    return frames, _within(len(buffer)) if buffer else None


@final
class _Stream(Reader):
    """Runs the `decode` of a framing over one connection: the reader's other side."""

    __slots__ = ("_framing", "_generator", "_open", "_pending", "_skipped", "error", "mixed")

    def __init__(self, framing: StreamFraming, limit: int) -> None:
        super().__init__(limit)
        self._framing = framing
        self._generator: Decoding | None = None
        self._open = 0  # bytes read since the last frame
        self._pending = bytearray()  # what came while too little is there; _data is empty then
        self._skipped = 0
        self.error: FramingError | None = None
        self.mixed = False

    @property
    def buffered(self) -> int:
        return self._size + len(self._pending) + self._skipped

    def feed(self, data: bytes) -> Items:
        pending = self._pending
        if pending:
            searched = len(pending)
            pending += data
            if self.error is not None or not self._enough(pending, searched):
                return []
            data = bytes(pending)
            self._pending = bytearray()
        else:
            rest = self._data
            if rest:
                data = rest + data
            if self.error is not None or not self._enough(data, len(rest)):
                pending += data
                self._data = b""
                self._size = 0
                return []
        self._data = data
        self._size = len(data)
        self._quick = self._size if self._size <= self._most else 0
        self._seen = -1
        return self._run()

    def _enough(self, data: bytes | bytearray, searched: int) -> bool:
        if len(data) >= self._wanted:
            return True
        delimiter = self._delimiter
        # The delimiter may straddle two reads.
        return delimiter is not None and data.find(delimiter, max(0, searched - len(delimiter) + 1)) >= 0

    def _run(self) -> Items:
        """Return the frames that the generator yields before it waits: the hot path."""
        frames: Items = []
        append = frames.append
        limit = self._limit
        mark = -self._open
        still = 0
        item: object = None
        try:
            generator = self._generator
            if generator is None:
                generator = self._generator = self._framing.decode(self)
            for item in generator:
                if type(item) is not bytes or len(item) > limit:
                    if not isinstance(item, Bad):
                        break
                    self.mixed = True
                append(item)
                start = self._start
                if start == mark:
                    still += 1
                    if still >= _STILL:
                        break
                else:
                    mark = start
                    still = 0
            else:
                item = None
        except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
            self._settle(mark)
            self._fail(_blamed(self._framing, "decode", error))
            return frames
        self._settle(mark)
        if item is not NEED:
            self._judge(frames, item, still)
        return frames

    def _settle(self, mark: int) -> None:
        """Let go of what was read."""
        self._open = self._start - mark
        self._data = self._data[self._start :]
        self._size -= self._start
        self._passed += self._start
        self._start = 0
        self._quick = 0

    def _judge(self, frames: Items, item: object, still: int) -> None:
        """Tell why the generator was stopped, if it isn't waiting."""
        where = f"{self._framing!r}: decode"
        if still >= _STILL:
            del frames[-still:]
            self._fail(FramingError(f"{where} yielded {still} frames without reading a byte"))
        elif item is None:
            self._wanted = 1
            self._delimiter = None
            if self._size:
                self._fail(FramingError(f"{where} returned, with {self._size} bytes to come"))
        elif isinstance(item, bytes) and len(item) > self._limit:
            self._fail(FramingError(over(len(item), self._limit)))
        else:
            hint = "; is `yield from` missing?" if isinstance(item, Generator) else ""
            self._fail(FramingError(f"{where} yielded {type(item).__name__}, not bytes{hint}"))

    def _fail(self, error: FramingError) -> None:
        self.error = error
        # Where the reader refused, nobody knows where the frame ends.
        self._skipped = 0 if error is self._refused else self._open
        self._restart()

    def _restart(self) -> None:
        generator, self._generator = self._generator, None
        self._wanted = 1
        self._delimiter = None
        self._refused = self._back = None
        self._ended = False
        self._open = 0
        if generator is not None:
            try:
                generator.close()
            except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
                self.error = self.error or _blamed(self._framing, "decode", error)

    def finish(self) -> Items:
        frames: Items = []
        size = self.buffered
        if self.error is None and self._delimiter is not None and size + self._open:
            self._data += bytes(self._pending)
            self._size = len(self._data)
            self._pending = bytearray()
            self._ended = True
            frames = self._run()
        left = self._size + len(self._pending) + self._open
        if self.error is None and left:
            self.error = _within(left)
        self._restart()
        self._clear()
        self._skipped = 0 if self.error is None else max(size, left)
        return frames

    def _clear(self) -> None:
        self._data = b""
        self._size = 0
        self._pending = bytearray()

    def recover(self) -> int:
        dropped = self._skipped or self.buffered
        if not self._skipped:
            self._clear()
        self._skipped = 0
        self.error = None
        return dropped


@final
class Decoder:
    """The frames of one connection: what comes is fed, whole frames come out.

    *framing* may be shared. Nothing is raised: `error` tells what is wrong behind the frames that were just
    returned. While it is set, bytes are kept and no frames come; `recover` goes on. `bad` is what was dropped
    without an error since the last `take_bad`.
    """

    __slots__ = (
        "_behind",
        "_check",
        "_fast",
        "_framing",
        "_long",
        "_other",
        "_rest",
        "_skipped",
        "_wait",
        "bad",
        "error",
    )

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._fast: Stock | None = None  # None unless the next bytes can go straight to cut
        self._other: _Splitter | _Stream | None = None
        self._rest = b""
        self._long: bytearray | None = None  # instead of _rest: a long frame, or after an error
        self._wait: Wait | None = None  # what a long frame waits for
        self._behind: _Behind | None = None
        self._check: Callable[[Items], tuple[Items, bool]] | None = None
        self._skipped = 0
        self.bad: list[Bad] | None = None
        self.error: FramingError | None = None
        mode = mode_of(framing)
        if mode == "cut":
            self._fast = cast("Stock", framing)
            return
        if type(framing) is Checked:
            # All frames of a read are checked at once, which is faster than one by one.
            self._check = framing.check
            framing = framing.framing
        limit = getattr(framing, "limit", FRAME_LIMIT)
        if not is_count(limit):
            raise SetupError(f"{framing!r}: limit is {limit!r}, it has to be a whole number above 0")
        if mode == "split":
            self._other = _Splitter(cast("SplitFraming", framing), limit)
        else:
            self._other = _Stream(cast("StreamFraming", framing), limit)

    @property
    def framing(self) -> Framing:
        """The framing that this decoder was made for."""
        return self._framing

    @property
    def buffered(self) -> int:
        """How many bytes wait for the rest of their frame or, after an error, for `recover`."""
        behind = 0 if self._behind is None else self._behind.buffered
        if self._other is not None:
            return behind + self._other.buffered
        return behind + len(self._rest if self._long is None else self._long) + self._skipped

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data* as it came and return all frames that are whole now; look at `error` next.

        After `recover`, `feed(b"")` gives the frames that had come behind the error.
        """
        framing = self._fast
        if framing is RAW and 0 < len(data) <= FRAME_LIMIT:
            return [data]
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
            self.error = FramingError(wrong.reason)
            self._skipped = wrong.size
            self._collect()
        elif len(self._rest) > _LONG:
            self._wait = cast("Stock", self._framing).waits(self._rest)
            self._collect()
        return items if wrong is None else self._frames_of(items)

    def _frames_of(self, items: Items) -> list[bytes]:
        """Return the frames among *items*, up to the first bad one that is an error; keep the bad ones."""
        for place, item in enumerate(items):
            if type(item) is Fatal:
                self._behind = _Behind(items[place + 1 :], self.error, len(item.data))
                self.error = FramingError(item.reason)
                if self._other is None and self._long is None:
                    self._collect()
                items = items[:place]
                break
        bad = [item for item in items if type(item) is Bad]
        if bad:
            self.bad = bad if self.bad is None else self.bad + bad
            items = [item for item in items if type(item) is bytes]
        return items

    def take_bad(self) -> list[Bad]:
        """Return what was dropped, in its order, and forget it."""
        bad, self.bad = self.bad, None
        return bad or []

    def _collect(self) -> None:
        """Collect what comes, until there is more to find in it or `recover` is called."""
        self._fast = None
        self._long = bytearray(self._rest[self._skipped :])
        self._rest = b""

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        if self._behind is not None:
            return self._feed_behind(self._behind, data)
        other = self._other
        if other is not None:
            items = other.feed(data)
            self.error = other.error
            mixed, other.mixed = other.mixed, False
            if self._check is not None:
                items, bad = self._check(items)
                mixed = mixed or bad
            return self._frames_of(items) if mixed else items
        long = cast("bytearray", self._long)
        searched = len(long)
        long += data
        if self.error is not None or not self._enough(long, searched):
            return []
        self._release()
        return self.feed(b"")

    def _enough(self, long: bytearray, searched: int) -> bool:
        """Tell whether the bytes that the framing waits for are there."""
        wait = self._wait
        if wait is None or len(long) >= wait.size:
            return True
        ends = wait.ends
        # The end may straddle two reads.
        return bool(ends) and long.find(ends, max(0, searched - len(ends) + 1)) >= 0

    def _feed_behind(self, behind: _Behind, data: bytes) -> list[bytes]:
        """Go on behind a bad frame that was an error, or keep *data* while it is."""
        if self.error is None:
            self._behind = None
            self.error = behind.error
            if self._other is None and self.error is None:
                self._release()
            return self._frames_of(behind.items) + self.feed(data)
        if self._other is None:
            cast("bytearray", self._long).extend(data)
        else:
            items = self._other.feed(data)
            behind.items += items if self._check is None else self._check(items)[0]
            behind.error = self._other.error
        return []

    def _release(self) -> None:
        self._rest = bytes(self._long or b"")
        self._long = None
        self._wait = None
        self._fast = cast("Stock", self._framing)

    def finish(self) -> list[bytes]:
        """Return the frames that the end of a datagram ends, and be clean for the next; look at `error` next.

        What ends within a frame is an error, and is dropped.
        """
        if self._behind is not None and self.error is None:
            return self.feed(b"") + self.finish()
        self._behind = None
        other = self._other
        if other is not None:
            items = other.finish()
            self.error = self.error or other.error
            other.mixed = False
            return self._frames_of(items if self._check is None else self._check(items)[0])
        if not self._rest and self._long is None:
            return []
        return self._finish()

    def _finish(self) -> list[bytes]:
        size = self.buffered
        items: Items = []
        if self.error is None:
            items, self.error = _finish(self._framing, bytearray(self._long or self._rest))
        self._rest = b""
        self._long = None
        if self.error is None:
            self._release()
        else:
            self._skipped = size
            self._collect()
        return self._frames_of(items)

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
            return self._other.recover()
        if self._skipped:
            dropped = self._skipped
        else:
            dropped = self.buffered
            self._long = None
        self._skipped = 0
        self._release()
        return dropped


@final
class _Behind:
    """What came behind a bad frame of *size* bytes that was an error: *items*, and an *error* behind them."""

    __slots__ = ("error", "items", "size")

    def __init__(self, items: Items, error: FramingError | None, size: int) -> None:
        self.items = items
        self.error = error
        self.size = size

    @property
    def buffered(self) -> int:
        return self.size + sum(len(item if type(item) is bytes else item.data) for item in self.items)
