"""Framings as expressions in Lua, of what `dissector.lua` has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..checksums import SUM8, XOR
from ..errors import SetupError
from ..framing import (
    Checked,
    Delimiter,
    FirstOf,
    FixedSize,
    JsonObjects,
    LengthPrefix,
    Line,
    OctetCounting,
    Raw,
    Resync,
    Skip,
    StartEnd,
    Varint,
)

__all__ = ["expression", "literal"]


def literal(data: bytes) -> str:
    """Return *data* as a string in Lua."""
    return '"' + "".join(f"\\{byte:03d}" for byte in data) + '"'


def expression(framing: Any) -> str:
    """Return the Lua for *framing*. Raises `SetupError` for one that can't be said in it."""
    write = WRITERS.get(type(framing))
    if write is None:
        raise SetupError(
            f"{framing!r} can't be exported: only the framings of exproto_app.framing can, other than Gap"
        )
    return write(framing)


def _strings(items: Sequence[bytes]) -> str:
    return "{" + ", ".join(map(literal, items)) + "}"


def _truth(value: object) -> str:
    return "true" if value else "false"


def _line(framing: Line) -> str:
    marks = _strings([b"\r\n", b"\n", b"\r"] if framing.universal else [b"\n"])
    return f"marked({marks}, {_truth(not framing.universal)}, {_truth(framing.universal)}, true)"


def _delimiter(framing: Delimiter) -> str:
    return f"marked({_strings([framing.delimiter, *framing.others])}, false, {_truth(framing.others)}, true)"


def _length(framing: LengthPrefix, front: int = 0) -> str:
    options = {
        "size": framing.size,
        "little": _truth(framing.byteorder == "little"),
        "offset": framing.offset,
        "adjustment": framing.adjustment,
        "strip": framing.strip,
        "start": literal(framing.start),
        "stop": literal(framing.end),
        "limit": framing.limit,
        "front": framing.strip - front,
    }
    return f"length{_table(options)}"


def _table(options: dict[str, object]) -> str:
    return "{" + ", ".join(f"{name} = {value}" for name, value in options.items()) + "}"


def _start_end(framing: StartEnd) -> str:
    behind = 0 if framing.flag is not None else len(framing.end)
    options: dict[str, object] = {
        "start": literal(framing.start),
        "stop": literal(framing.end),
        "shared": _truth(framing.shared),
        "behind": behind,
    }
    if framing.escapes:
        lead = next(iter(framing.escapes.values()))[:1]
        pairs = [f"[{literal(escape)}] = {literal(raw)}" for raw, escape in framing.escapes.items()]
        options["lead"] = literal(lead)
        # A sign that means something in Lua's patterns has a percent sign before it.
        sign = lead if lead.isalnum() or lead[0] > 126 or lead[0] < 33 else b"%" + lead
        options["pattern"] = literal(sign + b".?")
        options["escapes"] = "{" + ", ".join(pairs) + "}"
    return f"start_end{_table(options)}"


def _checked(framing: Checked) -> str:
    plain = framing.at == "end" and framing.stop is None and not framing.covers_mark
    marker = framing.start < 0 and type(framing.framing) is not LengthPrefix
    if not plain or marker or framing.text not in (False, True):
        raise SetupError(
            f"{framing!r} can't be exported: in Lua a checksum stands at the end, and covers all before it"
        )
    front = max(-framing.start, 0)
    inner = _length(framing.framing, front) if front else expression(framing.framing)  # type: ignore[arg-type] # see above
    digits = 2 * framing.size if framing.text else framing.size
    options: dict[str, object] = {
        "sum": _sum(framing.checksum),
        "size": framing.size,
        "tail": len(framing.mark) + digits + len(framing.end),
        "begin": max(framing.start, 0),
        "front": front,
        "little": _truth(framing.byteorder == "little"),
        "text": _truth(framing.text),
        "mark": literal(framing.mark),
        "stop": literal(framing.end),
    }
    return f"checked({inner}, {_table(options)})"


def _sum(checksum: Any) -> str:
    """Return the function that computes *checksum*; nil where Lua knows none: it isn't checked then."""
    if checksum == XOR:
        return "xor8"
    if checksum == SUM8:
        return "sum8"
    parameters = getattr(checksum, "parameters", None)
    if parameters is None or parameters[0] > 32:
        return "nil"
    width, poly, init, reflected, xorout = parameters
    return f"crc({width}, {poly}, {init}, {_truth(reflected)}, {xorout})"


def _first_of(framing: FirstOf) -> str:
    choices = []
    for start, inner in framing.branches():
        if callable(start):
            raise SetupError(f"{framing!r} can't be exported: it tells frames apart by a Python function")
        choices.append(f"{{starts = {_strings(start)}, framing = {expression(inner)}}}")
    return "first_of{" + ", ".join(choices) + "}"


WRITERS: Final[dict[type, Callable[[Any], str]]] = {
    Raw: lambda _: "raw()",
    Line: _line,
    Delimiter: _delimiter,
    FixedSize: lambda framing: f"fixed({framing.size})",
    LengthPrefix: _length,
    Varint: lambda _: "varint()",
    OctetCounting: lambda _: "octets()",
    StartEnd: _start_end,
    JsonObjects: lambda _: "json()",
    Checked: _checked,
    FirstOf: _first_of,
    Resync: lambda framing: f"resync({expression(framing.framing)}, {_strings(framing.starts)})",
    Skip: lambda framing: f"skip({expression(framing.framing)}, {_strings(framing.fill)})",
}
