"""`exproto-app store`: what waits in the folder of `run --store`."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import attrs
import click

from ..errors import ExprotoError, SetupError
from ..names import escaped
from ..store import look

__all__ = ["command"]

WIDTH: Final = 128
"""Characters of a clientid that the table shows."""

OWN: Final = "(no client)"
"""Stands for the app, and for connections that hadn't registered."""


@attrs.frozen
class ClientMessages:
    """What waits of one client."""

    clientid: str
    messages: int
    bytes: int
    oldest: datetime


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: Path, *, as_json: bool) -> None:
    """Show what waits in DIR for the broker, by client; the gateway may be running."""
    if not folder.is_dir():
        raise SetupError(f"there is no folder {folder}; give the one that run --store uses")
    try:
        found = look(folder)
    except OSError as error:
        raise ExprotoError(f"{error.filename or folder} can't be read: {error.strerror}") from None
    clients = [
        ClientMessages(clientid, len(entries), sum(entry[3] for entry in entries), _time(entries[0][0]))
        for clientid, entries in sorted(found.waiting.items())
    ]
    if as_json:
        click.echo(json.dumps(_facts(clients, found.notes)))
        return
    for note in found.notes:
        click.echo(f"exproto-app: {note}", err=True)
    for line in _table(clients):
        click.echo(line)
    messages, size = sum(one.messages for one in clients), sum(one.bytes for one in clients)
    total = (
        f"{messages:,} message{'s' * (messages != 1)} of {len(clients):,} client{'s' * (len(clients) != 1)}"
    )
    click.echo(f"{total} {'waits' if messages == 1 else 'wait'}, {size:,} bytes")


def _time(number: int) -> datetime:
    return datetime.fromtimestamp((number >> 8) / 1_000_000, timezone.utc)


def _table(clients: list[ClientMessages]) -> list[str]:
    if not clients:
        return []
    rows = [("client", "messages", "bytes", "oldest")]
    for one in clients:
        oldest = one.oldest.astimezone().isoformat(" ", "seconds")
        rows.append((_cut(escaped(one.clientid)) or OWN, f"{one.messages:,}", f"{one.bytes:,}", oldest))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"{name:<{widths[0]}}  {count:>{widths[1]}}  {size:>{widths[2]}}  {oldest}"
        for name, count, size, oldest in rows
    ]


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


def _facts(clients: list[ClientMessages], notes: list[str]) -> dict[str, Any]:
    return {
        "messages": sum(one.messages for one in clients),
        "bytes": sum(one.bytes for one in clients),
        "clients": [attrs.asdict(one) | {"oldest": one.oldest.isoformat()} for one in clients],
        "unreadable": notes,
    }
