"""Where a checksum stands in a frame, and what it covers, other than all that is before it."""

from __future__ import annotations

import string
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import attrs

from ..errors import SetupError
from .base import Framing, is_count
from .behind import Behind, behind
from .enclosed import StartEnd
from .reader import shown
from .sized import LengthPrefix

__all__ = ["Options", "Place", "Text", "kept_end", "place_of"]

Text: TypeAlias = bool | Literal["short", "decimal"]
"""Whether a checksum is written as text: all hex digits, or as few as it needs, or a decimal number."""

BASES: Final = {"short": 16, "decimal": 10}
"""Of checksums in text whose number of digits varies."""


class Options(Protocol):
    """What `Checked` was told; its docstring explains each."""

    @property
    def framing(self) -> Framing: ...  # noqa: D102 - see above
    @property
    def start(self) -> int: ...  # noqa: D102 - see above
    @property
    def stop(self) -> int | None: ...  # noqa: D102 - see above
    @property
    def size(self) -> int: ...  # noqa: D102 - see above
    @property
    def text(self) -> Text: ...  # noqa: D102 - see above
    @property
    def mark(self) -> bytes: ...  # noqa: D102 - see above
    @property
    def covers_mark(self) -> bool: ...  # noqa: D102 - see above
    @property
    def at(self) -> Literal["end", "behind"] | int: ...  # noqa: D102 - see above
    @property
    def end(self) -> bytes: ...  # noqa: D102 - see above


@attrs.frozen(eq=False)
class Place:
    """How an item of *inner* comes apart into its frame and its checksum.

    Before the frame, *front* bytes of the item are covered and dropped, and so is *prefix*, which isn't in
    it. *drop* bytes at the end of what is covered are an end mark.
    """

    inner: Any
    tail: int
    at: int | None
    end: bytes
    mark: bytes
    base: int
    digits: int
    prefix: bytes
    front: int
    extra: bytes
    begin: int
    stop: int | None
    drop: int

    def apart(self, item: bytes) -> tuple[bytes, bytes] | str:
        """Return what *item* is without its checksum, and that with its mark; or why it has none."""
        end, size = self.end, len(item)
        if end:
            if not item.endswith(end):
                return f"frame ends with {shown(item[-len(end) :])}, not with {shown(end)}"
            item = item[: -len(end)]
        if self.base:
            place = item.rfind(self.mark)
            if place < 0:
                return f"frame has no {self.mark!r} before a checksum: {shown(item)}"
            return item[:place], item[place:]
        place = len(item) - self.tail if self.at is None else self.at
        behind = place + self.tail
        if not 0 <= place <= behind <= len(item):
            return f"frame has {size} bytes, with its checksum it has at least {size + behind - len(item)}"
        return item[:place] + item[behind:], item[place:behind]

    def covered(self, body: bytes) -> bytes:
        """Return what the checksum covers, if *body* is the rest of the item."""
        return (self.prefix + body + self.extra)[self.begin : self.stop]

    def frame(self, body: bytes) -> bytes:
        """Return the frame in *body*."""
        return body[self.front : len(body) - self.drop]

    def same(self, found: bytes, value: int) -> bool:
        """Return whether *found* is *value* as a text of as many digits as there are."""
        digits = found[len(self.mark) :]
        fits = 0 < len(digits) <= self.digits and digits.isalnum()
        try:
            return fits and int(digits, self.base) == value
        except ValueError:
            return False

    def encode(self, framing: Framing, frame: bytes, function: Any, pack: Any) -> bytes:
        """Return *frame* with its checksum, framed."""
        header = cast("LengthPrefix", framing).header if self.front else 0
        if isinstance(self.inner, Behind):
            data = framing.encode(frame)
            body = data[header - self.front : header] + frame + self.inner.end
            return data + bytes(pack(function(self.covered(body))))
        front = b""
        if self.front:
            # The length field is covered too, so it has to be there first.
            front = framing.encode(self._joined(frame, pack(0)))[header - self.front : header]
        return framing.encode(self._joined(frame, pack(function(self.covered(front + frame)))))

    def _joined(self, frame: bytes, tail: bytes) -> bytes:
        place = len(frame) if self.at is None else self.at - self.front
        return frame[:place] + tail + frame[place:] + self.end


def kept_end(framing: Framing) -> bytes:
    """Return the end mark that *framing* leaves in its frames."""
    if type(framing) is LengthPrefix and framing.strip == 0:
        return framing.end
    return b""


def place_of(options: Options, tail: int) -> tuple[Any, Place | None]:
    """Return what gives the items, and the place of a checksum of *tail* bytes in them.

    That is None where it is the end, and all before it is covered, as is most common. Raises `SetupError`.
    """
    _check(options)
    front, prefix = _front(options)
    plain = options.at == "end" and options.stop is None and not options.covers_mark
    inner: Any = options.framing
    if front:
        inner = cast("LengthPrefix", inner).keeping(front)
    if plain and not prefix and options.text in (False, True):
        return inner, None
    end = options.end
    drop = 0
    if options.at == "behind":
        inner, end = behind(options.framing, inner, tail), b""
        drop = len(inner.end)
    return inner, Place(
        inner=inner,
        tail=tail,
        at=options.at + front if isinstance(options.at, int) else None,
        end=end,
        mark=options.mark,
        base=BASES.get(cast("str", options.text), 0),
        digits=2 * options.size if options.text == "short" else len(str(256**options.size - 1)),
        prefix=prefix,
        front=front,
        extra=options.mark if options.covers_mark else b"",
        begin=max(options.start, 0),
        stop=options.stop,
        drop=drop,
    )


def _front(options: Options) -> tuple[int, bytes]:
    """Return how many bytes of a header are covered, and what of a start marker."""
    framing, size = options.framing, -options.start
    if size <= 0:
        return 0, b""
    if type(framing) is StartEnd and not framing.shared:
        if size > len(framing.start):
            marker = f"the start marker {framing.start!r} has {len(framing.start)} bytes"
            raise SetupError(f"Checked: start is {-size}, {marker}")
        return 0, framing.start[-size:]
    if type(framing) is not LengthPrefix or framing.strip != framing.header:
        raise SetupError(f"Checked: start is {-size}, but {framing!r} strips no header that could be covered")
    if size > framing.header:
        raise SetupError(f"Checked: start is {-size}, the header has {framing.header} bytes")
    return size, b""


def _check(options: Options) -> None:
    at = options.at
    if isinstance(at, bool) or (at not in ("end", "behind", 0) and not is_count(at)):
        raise SetupError(f"Checked: at is {at!r}; it must be 'end', 'behind', or the number of a byte")
    if options.stop is not None and (isinstance(options.stop, bool) or not isinstance(options.stop, int)):
        raise SetupError(f"Checked: stop is {options.stop!r}; it must be a whole number, as in a slice")
    for name in ("mark", "end"):
        if not isinstance(getattr(options, name), bytes):
            raise SetupError(f"Checked: {name} is {getattr(options, name)!r}; it must be bytes")
    if options.end and at != "end":
        raise SetupError(f"Checked: at is {at!r}, so no end={options.end!r} stands behind the checksum")
    if options.covers_mark and not options.mark:
        raise SetupError("Checked: covers_mark is True, but there is no mark=")
    _check_text(options)


def _check_text(options: Options) -> None:
    text, mark = options.text, options.mark
    if text in (False, True):
        return
    if text not in BASES:
        raise SetupError(f"Checked: text is {text!r}; it must be True, False, 'short' or 'decimal'")
    if not mark or set(mark) <= set(string.hexdigits.encode()):
        raise SetupError(
            f"Checked: text is {text!r}, so the number of digits varies; mark= has to say where they begin"
        )
    if options.at != "end" or (options.start < 0 and type(options.framing) is LengthPrefix):
        raise SetupError(
            f"Checked: text is {text!r}, so it has to be at the end, and can't cover a length field"
        )
