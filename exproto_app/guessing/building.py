"""From what was found to a framing that runs, and to the line of code that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from .. import checksums
from ..framing import (
    JT808,
    RAW,
    SLIP,
    Checked,
    Delimiter,
    FirstOf,
    FixedSize,
    Framing,
    LengthPrefix,
    Line,
    Skip,
    StartEnd,
)
from .streams import Fit
from .sums import Sum

__all__ = ["Built", "built", "first_of", "sum_bodies", "waking", "with_sum"]


@attrs.frozen
class Built:
    """A *framing*, the *code* that makes it, and what that imports, by module."""

    framing: Framing
    code: str
    imports: frozenset[tuple[str, str]]

    def lines(self) -> list[str]:
        """Return the imports, as a script has them."""
        modules: dict[str, set[str]] = {}
        for module, name in self.imports:
            modules.setdefault(module, set()).add(name)
        return [
            f"from {module} import {', '.join(sorted(names, key=lambda name: (not name.isupper(), name)))}"
            for module, names in sorted(modules.items())
        ]


READY: Final[Mapping[Any, str]] = {JT808: "JT808", SLIP: "SLIP", RAW: "RAW"}
FRAMING: Final = "exproto_app.framing"


def built(framing: Framing) -> Built:
    """Return *framing*, one without a checksum, with its code."""
    if framing in READY:
        return Built(framing, READY[framing], frozenset({(FRAMING, READY[framing])}))
    name = type(framing).__name__
    return Built(framing, f"{name}({', '.join(_arguments(framing))})", frozenset({(FRAMING, name)}))


def _arguments(framing: Any) -> list[str]:
    if isinstance(framing, LengthPrefix):
        return _length_arguments(framing)
    if isinstance(framing, StartEnd):
        escapes = [repr(framing.escapes)] if framing.escapes else []
        return [repr(framing.start), repr(framing.end), *escapes]
    if isinstance(framing, Delimiter):
        return [*map(repr, (framing.delimiter, *framing.others))]
    if isinstance(framing, FixedSize):
        return [str(framing.size)]
    if isinstance(framing, Line):
        return [] if framing.ending == b"\n" else [f"ending={framing.ending!r}"]
    return []


def _length_arguments(framing: LengthPrefix) -> list[str]:
    plain = LengthPrefix(
        framing.size, start=framing.start, offset=framing.offset, adjustment=framing.adjustment
    )
    options = {
        "byteorder": framing.byteorder if framing.size > 1 else "big",
        "start": framing.start,
        "offset": framing.offset if framing.offset != len(framing.start) else None,
        "adjustment": framing.adjustment or None,
        "strip": framing.strip if framing.strip != plain.strip else None,
        "end": framing.end,
    }
    skipped = (None, b"", "big")
    return [
        str(framing.size),
        *(f"{name}={value!r}" for name, value in options.items() if value not in skipped),
    ]


def sum_bodies(framing: Any, found: Fit) -> tuple[list[bytes], int]:
    """Return frames up to their end marks, as checksums cover them, and how many bytes are before a frame."""
    if isinstance(framing, LengthPrefix):
        end = len(framing.end)
        return [wire[: len(wire) - end] for wire in found.wires], framing.strip
    if isinstance(framing, StartEnd):
        return [framing.start + frame for frame in found.frames], len(framing.start)
    return found.frames, 0


def with_sum(inner: Built, found: Sum, before: int, **more: Any) -> Built:
    """Return *inner* in `Checked`; *before* bytes stand before a frame, *more* are further options."""
    kind = found.kind
    options: dict[str, Any] = {}
    if found.start != before:
        options["start"] = found.start - before
    options.update({name: value for name, value in more.items() if value is not None})
    natural = kind.size if kind.imports else None
    if found.width != natural:
        options["size"] = found.width
    if found.order == "little" and found.width > 1:
        options["byteorder"] = "little"
    if found.text:
        options.update({"text": True, **({"mark": found.mark} if found.mark else {})})
        if found.covers_mark:
            options["covers_mark"] = True
    checksum: Any = kind.function
    if kind.imports == "crc":
        checksum = checksums.Checksum(kind.name, kind.size, kind.function)
    elif kind.imports:
        checksum = getattr(checksums, kind.imports)
    framing = Checked(inner.framing, checksum, **options)
    texts = [inner.code, kind.code, *(f"{name}={value!r}" for name, value in options.items())]
    imports = {(FRAMING, "Checked")} | ({("exproto_app.checksums", kind.imports)} if kind.imports else set())
    return Built(framing, f"Checked({', '.join(texts)})", inner.imports | imports)


def waking(inner: Built, fill: bytes) -> Built:
    """Return *inner* behind wake-up bytes."""
    code = f"Skip({inner.code}, {fill!r})"
    return Built(Skip(inner.framing, fill), code, inner.imports | {(FRAMING, "Skip")})


def first_of(choices: Sequence[tuple[bytes, Built]]) -> Built:
    """Return several framings, each for frames that begin with such bytes."""
    pairs = [
        (start, one.framing) if not getattr(one.framing, "starts", ()) else one.framing
        for start, one in choices
    ]
    codes = [
        f"({start!r}, {one.code})" if isinstance(pair, tuple) else one.code
        for (start, one), pair in zip(choices, pairs, strict=True)
    ]
    imports = frozenset({(FRAMING, "FirstOf")}).union(*(one.imports for _, one in choices))
    return Built(FirstOf(*pairs), f"FirstOf({', '.join(codes)})", imports)
