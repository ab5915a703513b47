"""How it is drawn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..names import escaped
from .rates import SHOWN, Look, Rates

__all__ = ["SORTS", "Screen"]

SORTS: Final = {
    "rate": "frames",
    "bytes": "bytes",
    "queue": "waiting",
    "since": "newest",
    "last": "last heard",
}
"""What connections may be sorted by, as the inspector calls it, and what a person reads."""

NOTHING: Final = "-"
"""Stands where nothing is known."""

HANDLERS: Final = 5
TROUBLES: Final = 5
"""Rows of each at most."""


class Screen:
    """Draws looks, as wide as the console; *rows*: connections that are shown at most."""

    def __init__(self, console: Console, *, rows: int | None = None) -> None:
        self.console = console
        self._rows = rows

    @property
    def rows(self) -> int:
        """Connections that fit."""
        return self._rows or max(self.console.height - 14, 3)

    def draw(self, look: Look, rates: Rates, *, sort: str, keys: bool = False, note: str = "") -> Group:
        """Return what is to be shown. *keys*: tell which ones may be pressed."""
        parts: list[RenderableType] = [self._head(look), self._totals(look, rates)]
        trouble = rates.trouble(look.counters)[:TROUBLES]
        if trouble:
            parts.append(_line("went wrong", [_troubled(*row) for row in trouble]))
        if note:
            parts.append(Text(escaped(note), style="bold red"))
        if rates.handlers:
            parts += [Text(), _handlers(rates)]
        parts += [Text(), self._connections(look, sort)]
        if keys:
            pressed = "  ".join(f"{key[0]} {what}" for key, what in SORTS.items())
            parts.append(Text(f"q quit   sort by: {pressed}", style="dim"))
        return Group(*parts)

    def _head(self, look: Look) -> Text:
        state = look.states[0]
        parts = [f"exproto-app {state['version']}", state["hub"]]
        if len(look.states) > 1:
            parts.append(f"{len(look.states)} processes")
        head = Text(" · ".join(map(escaped, parts)), style="bold")
        ready = [one["ready"] for one in look.states if one["ready"] is not None]
        if ready:
            up = all(ready)
            head.append(
                "  the broker is reachable" if up else "  the broker isn't reachable",
                "green" if up else "red",
            )
        return head.append(f"  {time.strftime('%H:%M:%S')}", "dim")

    def _totals(self, look: Look, rates: Rates) -> Text:
        cells = [f"{look.connections:,} connections"]
        cells += [f"{_rate(rates.counted.get(name))} {_words(name)}/s" for name in SHOWN]
        cells += [
            f"{_size(rates.counted.get('bytes_received'))}/s in",
            f"{_size(rates.counted.get('bytes_sent'))}/s out",
        ]
        return Text(" · ".join(cells))

    def _connections(self, look: Look, sort: str) -> Table:
        table = _table()
        several = len(look.states) > 1
        shown = _sorted(look.rows, sort)[: self.rows]
        table.title = f"{look.found:,} connections by {SORTS.get(sort, sort)}"
        table.title_justify, table.title_style = "left", "bold"
        for name in ("id", "protocol", "client", "peer", "state"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for name in ("frames/s", "in/s", "out/s", "waiting", "last"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in shown:
            conn_id = f"{row['process']}:{row['id']}" if several else str(row["id"])
            table.add_row(
                *(
                    Text(escaped(text))
                    for text in (conn_id, row["protocol"], row["clientid"] or NOTHING, row["peer"])
                ),
                Text(escaped(row["state"]), _style(row["state"])),
                _rate(row["frame_rate"]),
                _size(row["rate_in"]),
                _size(row["rate_out"]),
                f"{row['queue']:,}" if row["queue"] else NOTHING,
                NOTHING if row["last"] is None else _age(time.time() - row["last"]),
            )
        return table


def _sorted(rows: Sequence[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Merge what several processes sorted, each for itself."""
    keys = {
        "rate": lambda row: row["frame_rate"],
        "bytes": lambda row: row["rate_in"] + row["rate_out"],
        "queue": lambda row: row["queue"],
        "since": lambda row: row["since"],
        "last": lambda row: row["last"] or 0.0,
    }
    return sorted(rows, key=keys[sort], reverse=True)


def _handlers(rates: Rates) -> Table:
    table = _table()
    table.title, table.title_justify, table.title_style = (
        "handlers that take most of the time",
        "left",
        "bold",
    )
    table.add_column("handler", no_wrap=True, overflow="ellipsis")
    table.add_column("event", no_wrap=True, overflow="ellipsis")
    for name in ("calls/s", "a call", "of the time"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rates.handlers[:HANDLERS]:
        name = one.name if one.protocol == "default" else f"{one.protocol}: {one.name}"
        table.add_row(
            Text(escaped(name)),
            Text(escaped(one.event)),
            _rate(one.rate),
            _seconds(one.mean),
            f"{one.share:.1%}",
        )
    return table


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)


def _line(title: str, cells: list[Text]) -> Text:
    return Text(f"{title}: ").append_text(Text(" · ").join(cells))


def _troubled(name: str, total: int, rate: float) -> Text:
    text = f"{total:,} {_words(name)}"
    return Text(f"{text} ({_rate(rate)}/s)", style="red") if rate > 0 else Text(text, style="yellow")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _style(state: str) -> str:
    return {"stalled": "red", "paused": "yellow", "registered": "green", "closing": "dim"}.get(state, "")


def _rate(number: float | None) -> str:
    if number is None:
        return NOTHING
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.1f}"


def _size(number: float | None) -> str:
    if number is None:
        return NOTHING
    for unit in ("B", "kB", "MB"):
        if number < 1_000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1_000
    return f"{number:.1f} GB"


def _seconds(number: float) -> str:
    if number < 0.001:
        return f"{number * 1_000_000:.0f} µs"
    return f"{number * 1_000:.1f} ms" if number < 1 else f"{number:.1f} s"


def _age(seconds: float) -> str:
    number = max(int(seconds), 0)
    for unit, size in (("s", 60), ("m", 60), ("h", 24)):
        if number < size:
            return f"{number} {unit}"
        number //= size
    return f"{number} d"
