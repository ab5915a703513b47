"""Running a user's own framing, `split` or `decode`, over the bytes of one connection."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, final

from ..errors import FramingError
from .base import Fatal, Items, SplitFraming, StreamFraming
from .reader import HEADER, NEED, Bad, Decoding, Reader, has_come, over

__all__ = ["Splitter", "Stream", "finish_datagram"]

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
class Splitter:
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
        """How many bytes wait for the rest of their frame or, after an error, for `recover`."""
        return len(self._buffer) + self._skipped

    def feed(self, data: bytes) -> Items:
        """Take *data* and return the frames that are whole now; look at `error` next."""
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

    def finish(self, more: int = 0) -> Items:
        """Return the frames that the end of a datagram ends; *more* bytes of it have not been fed."""
        size = self.buffered + more
        frames: Items = []
        if size and self.error is None:
            frames, self.error = finish_datagram(self._framing, self._buffer)
            self.mixed = True
            frames = [self._within(frame) for frame in frames]
        if self.error is not None:
            self._skipped = size
        self._buffer.clear()
        return frames

    def recover(self) -> tuple[int, bool]:
        """Go on; return how many bytes were dropped, and whether their end is known."""
        known = self._skipped > 0
        dropped = self._skipped or len(self._buffer)
        if not known:
            self._buffer.clear()
        self._skipped = 0
        self.error = None
        return dropped, known


def finish_datagram(framing: object, buffer: bytearray) -> tuple[Items, FramingError | None]:
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
class Stream(Reader):
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
        """How many bytes wait for the rest of their frame or, after an error, for `recover`."""
        return self._size + len(self._pending) + self._skipped

    def feed(self, data: bytes) -> Items:
        """Take *data* and return the frames that are whole now; look at `error` next."""
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
        return self._delimiter is not None and has_come(self._delimiter, data, searched)

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

    def finish(self, more: int = 0) -> Items:
        """Return the frames that the end of a datagram ends; *more* bytes of it have not been fed."""
        frames: Items = []
        size = self.buffered + more
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

    def recover(self) -> tuple[int, bool]:
        """Go on; return how many bytes were dropped, and whether their end is known."""
        known = self._skipped > 0
        dropped = self._skipped or self.buffered
        if not known:
            self._clear()
        self._skipped = 0
        self.error = None
        return dropped, known
