"""Framings made of framings: several in one stream, with a checksum, found again behind garbage."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import attrs

from ..errors import FramingError, SetupError
from .base import (
    MIXED,
    Cut,
    Fatal,
    Found,
    Framing,
    Items,
    Stock,
    StreamFraming,
    Wait,
    Wrong,
    check_order,
    half,
    partial,
)
from .marked import Delimiter, Line, StartEnd
from .reader import FRAME_LIMIT, NEED, Bad, Decoding, Need, Reader, over, shown
from .sized import FixedSize, LengthPrefix, OctetCounting, Raw, Varint

__all__ = ["STOCK", "Checked", "Checksum", "FirstOf", "Mode", "Resync", "mode_of"]

Mode: TypeAlias = Literal["cut", "split", "decode"]

STOCK: Final = frozenset({Raw, Line, Delimiter, LengthPrefix, Varint, OctetCounting, FixedSize, StartEnd})
"""Only these go straight to `cut`: a subclass may have a `split` of its own."""

_SNIFF: Final = 64
"""Bytes that a predicate may look at."""


class Checksum(Protocol):
    """What computes a checksum, as the objects of `exproto_app.checksums` do: *size* is in bytes."""

    @property
    def size(self) -> int:
        """Bytes of the result."""
        ...

    def __call__(self, data: bytes, /) -> int:
        """Return the checksum of *data*."""
        ...


def mode_of(framing: Framing) -> Mode:
    """Tell how *framing* is used; raises `SetupError` if it is none."""
    if type(framing) in STOCK:
        return "cut"
    if type(framing) in _COMBINED:
        return cast("FirstOf | Checked | Resync", framing).mode
    if callable(getattr(framing, "split", None)):
        return "split"
    if callable(getattr(framing, "decode", None)):
        return "decode"
    raise SetupError(f"{framing!r} is no framing, it has neither split nor decode")


def _generator(framing: Framing, reader: Reader) -> Decoding:
    """Return what reads frames of *framing* one by one."""
    if mode_of(framing) == "cut":
        return _read(cast("Stock", framing), reader)
    return cast("StreamFraming", framing).decode(reader)


def _read(framing: Stock, reader: Reader) -> Decoding:
    """Read a framing of this package, where one of a user's own stands beside it."""
    while True:
        data, start = reader.window
        found = framing.first(data, start) if start < len(data) else Wait(1)
        if type(found) is tuple:
            item, end = found
            reader.move(end)
            if item is not None:
                yield item
        elif type(found) is Wait:
            ended = yield from reader.wait(found.size, found.ends or None)
            if ended:
                data, start = reader.window
                buffer = bytearray(data[start:])
                items = framing.finish(buffer)
                reader.move(len(data) - len(buffer))
                yield from items
        elif type(found) is Wrong:
            if not found.size:
                reader.refuse(found.reason)
            reader.pass_over(start + found.size, found.reason, may_hold=bool(found.excess))


def _readable(where: str, framing: Framing) -> None:
    """Refuse a framing that can't be read frame by frame."""
    if mode_of(framing) == "split" and not callable(getattr(framing, "decode", None)):
        raise SetupError(
            f"{where}: {framing!r} has split alone, it needs decode to be one of several framings"
        )


def _starts(framing: Framing) -> tuple[bytes, ...]:
    starts: tuple[bytes, ...] = getattr(framing, "starts", ())
    return starts


def _limit(framing: Framing) -> int:
    limit: int = getattr(framing, "limit", FRAME_LIMIT)
    return limit


Predicate: TypeAlias = Callable[[bytes], "bool | None"]


@attrs.frozen(eq=False)
class _Branch:
    """One of several framings, and what chooses it: its first bytes are *prefixes*, or *test* says so."""

    framing: Framing
    prefixes: tuple[bytes, ...]
    test: Predicate | None
    first: Callable[[bytes, int], Found] | None  # None where the framing is a user's own
    run: Callable[[bytes, int], tuple[Items, int, bool]] | None  # where it knows its frames by their start

    def takes(self, data: bytes, start: int, *, final: bool) -> bool | None:
        """Tell whether this framing takes what begins at *start*; None where more bytes have to tell."""
        if self.test is None:
            if data.startswith(self.prefixes, start):
                return True
            return None if not final and partial(data, start, self.prefixes) else False
        verdict = _verdict(self.test, data, start)
        return verdict if verdict is not None or not final else False


def _verdict(test: Predicate, data: bytes, start: int) -> bool | None:
    """Return what *test* says of what begins at *start*; None where more bytes have to tell."""
    # Byte by byte: what it says must not depend on how the network cuts the stream.
    for size in range(1, min(len(data) - start, _SNIFF) + 1):
        verdict = test(data[start : start + size])
        if verdict is not None:
            return bool(verdict)
    return None if len(data) - start < _SNIFF else False


def _branch(choice: object, *, last: bool) -> _Branch:
    pair = choice if isinstance(choice, tuple) and len(choice) == 2 else (None, choice)
    start, framing = pair
    _readable("FirstOf", cast("Framing", framing))
    if isinstance(framing, Resync):
        raise SetupError("FirstOf: Resync goes around it, Resync(FirstOf(…)), not into it")
    first = cast("Stock", framing).first if mode_of(cast("Framing", framing)) == "cut" else None
    if callable(start):
        return _Branch(cast("Framing", framing), (b"",), cast("Predicate", start), first, None)
    prefixes = _starts(cast("Framing", framing)) if start is None else (start,)
    if not prefixes and last:
        prefixes = (b"",)
    elif not prefixes:
        raise SetupError(
            f"FirstOf: {framing!r} may start with any bytes, so it comes last, "
            "or in a pair with its first bytes: (b'…', framing)"
        )
    elif not all(isinstance(prefix, bytes) and prefix for prefix in prefixes):
        raise SetupError(f"FirstOf: {start!r} has to be the first bytes of a frame, or a function of them")
    run = cast("Stock", framing).run if first and start is None and cast("Stock", framing).runs else None
    return _Branch(cast("Framing", framing), cast("tuple[bytes, ...]", prefixes), None, first, run)


def _at(branch: _Branch, byte: bytes) -> _Branch | None:
    """Return *branch* as it is for frames that begin with *byte*; None if it takes none of them."""
    if branch.test is None:
        return branch if any(prefix[:1] in (b"", byte) for prefix in branch.prefixes) else None
    try:
        verdict = branch.test(byte)
    except Exception:  # noqa: BLE001 - it will tell when a frame comes
        verdict = None
    if verdict is None:
        return branch
    return _Branch(branch.framing, (byte,), None, branch.first, None) if verdict else None


def _sure(branches: tuple[_Branch, ...]) -> tuple[Any, Any] | None:
    """Return `first` and `run` of who takes whatever begins with the byte of *branches*, if that is sure."""
    branch = branches[0] if branches else None
    if branch is None or branch.test is not None:
        return None
    # Who runs looks at the whole start by itself.
    alone = len(branches) == 1 and branch.run is not None
    if alone or all(len(prefix) <= 1 for prefix in branch.prefixes):
        return branch.first, branch.run
    return None


_Way: TypeAlias = tuple[
    tuple[bytes, ...],
    "Predicate | None",
    "Callable[[bytes, int], Found] | None",
    "Callable[[bytes, int], tuple[Items, int, bool]] | None",
]


def _ways(branches: tuple[_Branch, ...]) -> tuple[_Way, ...]:
    """Return what `cut` has to ask where the first byte alone doesn't tell: a run is for who stands alone."""
    ways: list[_Way] = []
    before: tuple[bytes, ...] = ()
    for branch in branches:
        alone = not any(other.startswith(branch.prefixes) or _within(branch, other) for other in before)
        ways.append((branch.prefixes, branch.test, branch.first, branch.run if alone else None))
        before += branch.prefixes
    return tuple(ways)


def _within(branch: _Branch, other: bytes) -> bool:
    return any(prefix.startswith(other) for prefix in branch.prefixes)


@attrs.frozen(init=False, repr=False)
class FirstOf(Stock):
    r"""Several framings in one stream: of each frame, the first bytes decide which of them takes it.

    Each of *choices* is a framing that knows how its frames start (`StartEnd`, `OctetCounting`,
    `LengthPrefix(…, start=…)`, `Checked` around them, or a user's own with the attribute `starts`, a tuple of
    bytes), or a pair of the first bytes and a framing. They stay in the frame unless the framing strips them.
    The first choice that fits takes the frame; the last may be a framing alone, which takes the rest::

        FirstOf((b"\x00\x0f", LengthPrefix(2)), LengthPrefix(4, start=bytes(4)), Line())

    Instead of bytes there may be a function: it gets the first byte, then the first two and so on, up to 64,
    until it returns True or False; None asks for more. It has to be a function of these bytes alone, for what
    it says to each first byte is asked beforehand. A frame that nobody takes is a `FramingError`.
    `encode` uses the first choice that can frame it so that it comes back as it is.
    """

    choices: tuple[Any, ...]
    mode: Mode = attrs.field(init=False, eq=False)
    limit: int = attrs.field(init=False, eq=False)
    _branches: tuple[_Branch, ...] = attrs.field(init=False, eq=False)
    _table: tuple[tuple[_Branch, ...], ...] = attrs.field(init=False, eq=False)  # by the first byte
    # Likewise: who takes it for sure, or else what is to be asked.
    _sure: tuple[tuple[Any, Any] | None, ...] = attrs.field(init=False, eq=False)
    _ways: tuple[tuple[_Way, ...], ...] = attrs.field(init=False, eq=False)
    _longest: int = attrs.field(init=False, eq=False)  # bytes of a prefix

    def __init__(self, *choices: Framing | tuple[bytes | Predicate, Framing]) -> None:
        self.__attrs_init__(choices)
        if not choices:
            raise SetupError("FirstOf: no framing is given")
        branches = tuple(_branch(choice, last=choice is choices[-1]) for choice in choices)
        table = tuple(
            tuple(found for branch in branches if (found := _at(branch, bytes([byte]))) is not None)
            for byte in range(256)
        )
        fields = {
            "mode": "cut" if all(branch.first for branch in branches) else "decode",
            "limit": max(_limit(branch.framing) for branch in branches),
            "_branches": branches,
            "_table": table,
            "_sure": tuple(map(_sure, table)),
            "_ways": tuple(map(_ways, table)),
            "_longest": max(len(prefix) for branch in branches for prefix in branch.prefixes),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"FirstOf({', '.join(map(repr, self.choices))})"

    @property
    def starts(self) -> tuple[bytes, ...]:
        """How the frames of all choices may start; none where one of them may start with any bytes."""
        starts = tuple(prefix for branch in self._branches for prefix in branch.prefixes)
        return starts if all(starts) else ()

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* as the first choice frames it; raises its `FramingError` if none can."""
        wrong: FramingError | None = None
        for branch in self._branches:
            try:
                data = branch.framing.encode(frame)
            except FramingError as error:
                wrong = wrong or error
                continue
            chosen = self._chosen(data, 0) if data else branch
            if isinstance(chosen, _Branch) and chosen.framing is branch.framing:
                return data
        raise wrong or FramingError(f"frame would be taken for one of another framing: {shown(frame)}")

    def _choose(self, data: bytes, start: int, *, final: bool) -> _Branch | None:
        """Return who takes what begins at *start*, None where more bytes have to tell.

        Raises `FramingError` if it is nobody's.
        """
        for branch in self._table[data[start]]:
            taken = branch.takes(data, start, final=final)
            if taken:
                return branch
            if taken is None:
                return None
        raise FramingError(f"no framing starts with {shown(data[start : start + 8])}")

    def _chosen(self, data: bytes, start: int) -> _Branch | Wait | Wrong:
        try:
            branch = self._choose(data, start, final=False)
        except FramingError as error:
            return Wrong(str(error), 0)
        except Exception as error:  # noqa: BLE001 - a user's predicate may raise anything
            return Wrong(f"{self!r}: a predicate failed: {error!r}", 0)
        return branch or Wait(len(data) - start + 1)

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        branch = self._chosen(data, start)
        if not isinstance(branch, _Branch):
            return branch
        found = branch.first(data, start)  # type: ignore[misc] # in this mode every branch has it
        if type(found) is Wrong and found.excess:
            return attrs.evolve(found, excess=1)  # frames of another framing may be in it
        return found

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is left behind them."""
        items: Items = []
        append = items.append
        sure, choose = self._sure, self._way
        wrong: Wrong | None = None
        before: Any = None  # whose frame was the last one: in mixed streams one by one is faster than runs
        start, size = 0, len(data)
        while start < size:
            first, run = sure[data[start]] or choose(data, start)
            if run is not None and run is before:
                more, start, mixed = run(data, start)
                items += more
                if mixed:
                    wrong = MIXED
                before = None
                continue
            found = first(data, start)
            before = run
            if type(found) is not tuple:
                if type(found) is Wrong:
                    wrong = found
                break
            item, start = found
            if type(item) is bytes:
                append(item)
            elif item is not None:
                append(item)
                wrong = MIXED
        return items, data[start:], wrong

    def _way(self, data: bytes, start: int) -> tuple[Any, Any]:
        """Return how to take what begins at *start*: one frame, and, where there is such, a run of them."""
        far = len(data) - start >= self._longest
        for prefixes, test, first, run in self._ways[data[start]]:
            if test is not None:
                try:
                    taken = _verdict(test, data, start)
                except Exception:  # noqa: BLE001 - `first` asks again, and tells
                    break
            else:
                taken = data.startswith(prefixes, start)
            if taken:
                return first, run
            if taken is None or not far:
                break
        return self.first, None

    def waits(self, data: bytes) -> Wait:
        """Tell what *data*, which `cut` left, waits for."""
        branch = self._chosen(data, 0)
        if isinstance(branch, _Branch):
            return cast("Stock", branch.framing).waits(data)
        return Wait(len(data) + 1)

    def finish(self, buffer: bytearray) -> Items:
        """Remove and return the frames that the end of a datagram ends."""
        branch = self._choose(bytes(buffer), 0, final=True)
        return [] if branch is None else cast("Stock", branch.framing).finish(buffer)

    def decode(self, reader: Reader) -> Decoding:
        """Yield the frames, where one of the framings is a user's own."""
        running: dict[int, Decoding] = {}  # by the framing, which may be unhashable
        try:
            while True:
                branch = yield from self._next(reader)
                key = id(branch.framing)
                frames = running.get(key)
                if frames is None:
                    frames = running[key] = _generator(branch.framing, reader)
                for item in frames:
                    if type(item) is bytes and len(item) > _limit(branch.framing):
                        raise FramingError(over(len(item), _limit(branch.framing)))
                    yield item
                    if item is not NEED:
                        break
                else:
                    del running[key]
        finally:
            for frames in running.values():
                frames.close()

    def _next(self, reader: Reader) -> Generator[Need, None, _Branch]:
        """Return who takes the next frame."""
        yield from reader.peek(1)
        final = False
        while True:
            data, start = reader.window
            branch = self._choose(data, start, final=final)
            if branch is not None:
                return branch
            final = yield from reader.wait(len(data) - start + 1, b"", keep=True)


def _packer(size: int, order: Literal["big", "little"], mark: bytes, *, text: bool) -> Callable[[int], bytes]:
    """Return what writes a checksum as it stands behind a frame."""
    if text:
        return (mark.replace(b"%", b"%%") + b"%%0%dX" % size).__mod__
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(size)
    if code is not None and not mark:
        return struct.Struct((">" if order == "big" else "<") + code).pack
    return lambda value: mark + value.to_bytes(size, order)


@attrs.frozen
class Checked(Stock):
    r"""Frames of *framing* that end with a *checksum*, which is checked, dropped, and put on what is sent.

    *checksum* is one of `exproto_app.checksums`, or any function of bytes that returns a number. It covers
    the frame from byte *start* on, up to itself. A negative *start* has it cover that many bytes before the
    frame too, of those that a `LengthPrefix` strips, such as the length field. It has *size* bytes (None: as
    many as the checksum makes) in *byteorder*, or, as *text*, that many bytes in hex, two digits each; *mark*
    stands before it and is not covered. NMEA's is `Checked(…, XOR, text=True, mark=b"*")`.

    A frame whose checksum is wrong is dropped, logged and counted (`frames_bad`), the device stays and its
    next frames go on. With *bad* `error` it is a `FramingError`, which closes the device unless `on_error`
    keeps it. The *limit* is that of *framing*, with the checksum.
    """

    framing: Framing
    checksum: Checksum | Callable[[bytes], int]
    start: int = attrs.field(default=0, kw_only=True)
    size: int = attrs.field(default=None, kw_only=True)
    byteorder: Literal["big", "little"] = attrs.field(default="big", kw_only=True, validator=check_order)
    text: bool = attrs.field(default=False, kw_only=True)
    mark: bytes = attrs.field(default=b"", kw_only=True)
    bad: Literal["drop", "error"] = attrs.field(default="drop", kw_only=True)
    mode: Mode = attrs.field(init=False, repr=False, eq=False)
    _inner: Any = attrs.field(init=False, repr=False, eq=False)  # gives what is covered before the frame too
    _function: Callable[[bytes], int] = attrs.field(init=False, repr=False, eq=False)
    _pack: Callable[[int], bytes] = attrs.field(init=False, repr=False, eq=False)
    _tail: int = attrs.field(init=False, repr=False, eq=False)  # bytes behind what is covered

    def __attrs_post_init__(self) -> None:
        size = _checked_size(self)
        inner: Framing = self.framing
        if self.start < 0:
            inner = _with_header(self)
        digits = 2 * size if self.text else size
        fields = {
            "size": size,
            "mode": mode_of(self.framing),
            "_inner": inner,
            "_function": getattr(self.checksum, "function", self.checksum),
            "_pack": _packer(digits, self.byteorder, self.mark, text=self.text),
            "_tail": len(self.mark) + digits,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def limit(self) -> int:
        """That of the framing."""
        return _limit(self.framing)

    @property
    def starts(self) -> tuple[bytes, ...]:
        """Those of the framing."""
        return _starts(self.framing)

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* with its checksum, framed; raises `FramingError` as the framing does."""
        if self.start >= 0:
            return self.framing.encode(frame + self._pack(self._function(frame[self.start :])))
        # The length field is covered too, so it has to be there first.
        data = self.framing.encode(frame + self._pack(0))
        header = cast("LengthPrefix", self.framing).header
        place = header + len(frame)
        tail = self._pack(self._function(data[header + self.start : place]))
        return data[:place] + tail + data[place + len(tail) :]

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        found: Found = self._inner.first(data, start)
        if type(found) is tuple:
            return self._checked(found[0]), found[1]
        return found

    @property
    def runs(self) -> bool:
        """Whether `run` may be used, as with the framing."""
        return self.mode == "cut" and cast("Stock", self._inner).runs

    def run(self, data: bytes, start: int) -> tuple[Items, int, bool]:
        """Return the frames from *start* on, up to anything else, where they end, and whether one is bad."""
        items, end, _ = cast("Stock", self._inner).run(data, start)
        items, mixed = self.check(items)
        return items, end, mixed

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* that are right, `Bad` for the others, and what is left behind."""
        items, rest, wrong = cast("Stock", self._inner).cut(data)
        items, mixed = self.check(items)
        return items, rest, MIXED if mixed and wrong is None else wrong

    def check(self, items: Items) -> tuple[Items, bool]:
        """Return *items* without their checksums, `Bad` where that is wrong, and whether there is such."""
        frames: Items = []
        append = frames.append
        function, pack, tail = self._function, self._pack, -self._tail
        begin = max(self.start, 0)
        front = max(-self.start, 0)
        mixed = False
        for item in items:
            try:
                body = item[:tail]
                good = pack(function(body[begin:] if begin else body)) == item[tail:]
            except Exception:  # noqa: BLE001 - a user's checksum may raise anything
                good = False
            if good:
                append(body[front:] if front else body)
                continue
            checked = self._checked(item)
            append(checked)
            mixed = mixed or type(checked) is not bytes
        return frames, mixed

    def _checked(self, item: bytes | Bad | None) -> bytes | Bad | None:
        """Return *item* without its checksum if that is right, `Bad` if it is wrong."""
        if type(item) is not bytes:
            return item
        start, tail = self.start, -self._tail
        body, found = item[:tail], item[tail:]
        try:
            expected = self._pack(self._function(body[start:] if start > 0 else body))
        except Exception as error:  # noqa: BLE001 - a user's checksum may raise anything
            return self._refused(item, f"checksum failed: {error!r}")
        # Hex may come in small letters too.
        if found == expected or (self.text and found.upper() == expected.upper()):
            return body[-start:] if start < 0 else body
        if len(found) < self._tail:
            return self._refused(item, f"frame has {len(item)} bytes, its checksum alone {self._tail}")
        shows = [repr(text)[1:] if self.text else text.hex() for text in (found, expected)]
        return self._refused(item, f"checksum is {shows[0]}, it has to be {shows[1]}")

    def _refused(self, frame: bytes, reason: str) -> Bad:
        return Bad(frame, reason) if self.bad == "drop" else Fatal(frame, reason)

    def waits(self, data: bytes) -> Wait:
        """Tell what *data*, which `cut` left, waits for."""
        wait: Wait = self._inner.waits(data)
        return wait

    def finish(self, buffer: bytearray) -> Items:
        """Remove and return the frames that the end of a datagram ends."""
        finish = getattr(self._inner, "finish", None)
        return [] if finish is None else [self._checked(item) for item in finish(buffer)]

    def split(self, buffer: bytearray) -> Items:
        """Remove whole frames from the front of *buffer* and return them."""
        if self.mode == "cut":
            return super().split(buffer)
        items = self._inner.split(buffer)
        return self.check(items)[0] if isinstance(items, list) else items

    def decode(self, reader: Reader) -> Decoding:
        """Yield the frames, where the framing is a user's own."""
        for item in _generator(self._inner, reader):
            yield cast("bytes | Bad", self._checked(item)) if type(item) is bytes else item


def _checked_size(framing: Checked) -> int:
    size: object = framing.size
    natural = getattr(framing.checksum, "size", None)
    if not callable(framing.checksum):
        raise SetupError(f"Checked: checksum is {framing.checksum!r}, it has to be a function of bytes")
    if size is None:
        size = natural
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SetupError(f"Checked: size is {size!r}, tell how many bytes {framing.checksum!r} makes")
    if natural is not None and size < natural:
        raise SetupError(f"Checked: size is {size}, {framing.checksum!r} makes {natural} bytes")
    if not isinstance(framing.mark, bytes):
        raise SetupError(f"Checked: mark is {framing.mark!r}, it has to be bytes")
    if framing.bad not in ("drop", "error"):
        raise SetupError(f"Checked: bad is {framing.bad!r}, it has to be 'drop' or 'error'")
    if isinstance(framing.framing, Resync):
        raise SetupError("Checked: Resync goes around it, Resync(Checked(…)), not into it")
    return size


def _with_header(checked: Checked) -> Framing:
    framing = checked.framing
    if type(framing) is not LengthPrefix or framing.strip != framing.header:
        raise SetupError(
            f"Checked: start is {checked.start}, but {framing!r} strips no header that could be covered"
        )
    if -checked.start > framing.header:
        raise SetupError(f"Checked: start is {checked.start}, the header has {framing.header} bytes")
    return framing.keeping(-checked.start)


def _start_tuple(start: bytes | Sequence[bytes] | None) -> tuple[bytes, ...]:
    starts = () if start is None else (start,) if isinstance(start, bytes) else tuple(start)
    if not all(isinstance(one, bytes) and one for one in starts):
        raise SetupError(f"Resync: start is {start!r}, it has to be bytes, or several of them")
    return starts


@attrs.frozen
class Resync(Stock):
    """Frames of *framing*, found again behind garbage: what is no frame is skipped up to the next *start*.

    *start* is how a frame begins, bytes or several of them; without it *framing* has to know
    (`LengthPrefix(…, start=…)`, `StartEnd`, or `FirstOf` and `Checked` with such ones). What is skipped is
    logged and counted (`bytes_skipped`), and the device stays; one that sends nothing else is closed by the
    limit *first_frame*. A start within garbage may be a false one, so a wrong length can take what comes
    behind it: an *end* or a checksum tells soonest.
    """

    framing: Framing
    start: tuple[bytes, ...] = attrs.field(default=None, converter=_start_tuple)
    mode: Mode = attrs.field(init=False, repr=False, eq=False)
    limit: int = attrs.field(init=False, repr=False, eq=False)
    _starts: tuple[bytes, ...] = attrs.field(init=False, repr=False, eq=False)
    _pattern: re.Pattern[bytes] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        _readable("Resync", self.framing)
        starts = self.start or _starts(self.framing)
        if isinstance(self.framing, StartEnd) and self.framing.shared:
            raise SetupError(
                "Resync: a frame may begin anywhere in StartEnd(…, shared=True), also in garbage"
            )
        if not starts:
            raise SetupError(f"Resync: {self.framing!r} may start with any bytes; tell with which, by start=")
        fields = {
            "mode": "cut" if mode_of(self.framing) == "cut" else "decode",
            "limit": _limit(self.framing),
            "_starts": starts,
            "_pattern": re.compile(b"|".join(map(re.escape, starts))),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def starts(self) -> tuple[bytes, ...]:
        """How a frame begins."""
        return self._starts

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* as the framing sends it; raises `FramingError` if it would be skipped."""
        data = self.framing.encode(frame)
        if not data.startswith(self._starts):
            raise FramingError(f"frame would be skipped, it doesn't begin with its start: {shown(data)}")
        return data

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data*, `Bad` for what is skipped, and what is left behind."""
        if self.start:
            return self._hunt(data)
        items, rest, wrong = cast("Stock", self.framing).cut(data)
        if wrong is None or wrong is MIXED:
            return items, rest, wrong
        more, rest, _ = self._hunt(rest)
        return items + more, rest, MIXED

    def _hunt(self, data: bytes) -> Cut:
        """Do so frame by frame."""
        items: Items = []
        wrong: Wrong | None = None
        gap, reason = -1, ""
        start, size = 0, len(data)
        while start < size:
            found = self._first(data, start)
            if type(found) is Wait:
                break
            if type(found) is Wrong:
                if gap < 0:
                    gap, reason = start, found.reason
                start = self._next(data, start, found)
                continue
            item, end = cast("tuple[bytes | Bad | None, int]", found)
            if gap >= 0:
                items.append(Bad(data[gap:start], reason, frame=False))
                gap, wrong = -1, MIXED
            if item is not None:
                items.append(item)
                if type(item) is not bytes:
                    wrong = MIXED
            start = end
        if gap >= 0:
            items.append(Bad(data[gap:start], reason, frame=False))
            wrong = MIXED
        return items, data[start:], wrong

    def _first(self, data: bytes, start: int) -> Found:
        if self.start and not data.startswith(self._starts, start):
            if partial(data, start, self._starts):
                return Wait(len(data) - start + 1)
            return Wrong(self._lost(data, start), 0)
        return cast("Stock", self.framing).first(data, start)

    def _lost(self, data: bytes, start: int) -> str:
        return f"no frame starts with {shown(data[start : start + max(map(len, self._starts))])}"

    def _next(self, data: bytes, start: int, wrong: Wrong) -> int:
        """Return where to look for a frame next."""
        if wrong.size and not wrong.excess:
            return start + wrong.size
        begin = start + max(1, wrong.excess)
        found = self._pattern.search(data, begin)
        return found.start() if found else max(begin, len(data) - half(data, self._starts))

    def waits(self, data: bytes) -> Wait:
        """Tell what *data*, which `cut` left, waits for."""
        found = self._first(data, 0)
        return found if type(found) is Wait else Wait(len(data) + 1)

    def finish(self, buffer: bytearray) -> Items:
        """Remove and return the frames that the end of a datagram ends."""
        return cast("Stock", self.framing).finish(buffer)

    def decode(self, reader: Reader) -> Decoding:
        """Yield the frames, where the framing is a user's own, or holds one."""
        frames: Decoding | None = None
        try:
            while True:
                yield from self._align(reader)
                begin = reader.place
                if frames is None:
                    frames = _generator(self.framing, reader)
                try:
                    for item in frames:
                        yield item
                        if item is not NEED:
                            break
                    else:
                        frames = None
                except FramingError as error:
                    frames = None
                    reader.go_back()
                    if reader.place == begin:
                        yield self._skipped(reader, str(error))
                    else:
                        yield Bad(b"", str(error))
        finally:
            if frames is not None:
                frames.close()

    def _align(self, reader: Reader) -> Decoding:
        """Skip to the start of a frame."""
        while True:
            yield from reader.peek(1)
            data, start = reader.window
            if data.startswith(self._starts, start):
                return
            if partial(data, start, self._starts):
                yield from reader.peek(len(data) - start + 1)
                continue
            yield self._skipped(reader, self._lost(data, start))

    def _skipped(self, reader: Reader, reason: str) -> Bad:
        """Have read up to where a frame may begin."""
        data, start = reader.window
        end = self._next(data, start, Wrong("", 0))
        reader.move(end)
        return Bad(data[start:end], reason, frame=False)


_COMBINED: Final = frozenset({FirstOf, Checked, Resync})
