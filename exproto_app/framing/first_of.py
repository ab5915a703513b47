"""Several framings in one stream, told apart by the first bytes of each frame."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, TypeAlias, cast

import attrs

from ..errors import FramingError, SetupError
from .base import MIXED, Cut, Found, Framing, Items, Stock, Wait, Wrong, partial
from .modes import Mode, frames_of, limit_of, mode_of, refuse_gap, refuse_unreadable, starts_of
from .reader import NEED, Decoding, Need, Reader, over, shown
from .resync import Resync

__all__ = ["FirstOf"]

_SNIFF: Final = 64
"""Bytes that a predicate may look at."""

_RUN: Final = 128
"""Bytes from which on a run of frames is faster than one by one."""

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
        """Return whether this framing takes what begins at *start*; None where more bytes have to tell."""
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
    refuse_unreadable("FirstOf", cast("Framing", framing))
    refuse_gap("FirstOf", cast("Framing", framing))
    if isinstance(framing, Resync):
        raise SetupError("FirstOf: put Resync around it, as in Resync(FirstOf(…))")
    first = None
    if mode_of(cast("Framing", framing)) == "cut":
        framing = cast("Stock", framing).closed()
        first = framing.quick
    if callable(start):
        return _Branch(cast("Framing", framing), (b"",), cast("Predicate", start), first, None)
    prefixes = starts_of(cast("Framing", framing)) if start is None else (start,)
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
            "limit": max(limit_of(branch.framing) for branch in branches),
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

    def branches(self) -> list[tuple[tuple[bytes, ...] | Predicate, Framing]]:
        """Return each choice as it is used: how its frames begin, or what tells, and its framing."""
        return [
            (branch.prefixes if branch.test is None else branch.test, branch.framing)
            for branch in self._branches
        ]

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
        raise wrong or FramingError(f"frame would be read as one of another framing: {shown(frame)}")

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
            if run is before and run is not None and size - start > _RUN:
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
        """Return what *data*, which `cut` left, waits for."""
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
                    frames = running[key] = frames_of(branch.framing, reader)
                for item in frames:
                    if type(item) is bytes and len(item) > limit_of(branch.framing):
                        raise FramingError(over(len(item), limit_of(branch.framing)))
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
