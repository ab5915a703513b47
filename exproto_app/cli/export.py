"""`exproto-app export`: what other tools can use of an app."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from ..errors import SetupError
from ..exporting import Seen, asyncapi, dissector
from ..models import ClientInfo
from ..names import escaped
from ..tap import Opened, Published, Registered
from ..target import load
from ..traffic.capture import read
from ..traffic.recording import Entry

__all__ = ["command"]

NOBODY: Final = ClientInfo("")
"""Who an app's own messages are for."""


@click.group()
def command() -> None:
    """Write what other tools can use of an app."""


@command.command()
@click.argument("target")
@click.option("--protocol", metavar="NAME", help="The protocol, if the app has several.")
@click.option(
    "--port",
    "ports",
    type=click.IntRange(1, 65_535),
    multiple=True,
    default=(7_993,),
    show_default=True,
    help="The server's port; repeatable.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it; else it is printed."
)
def wireshark(target: str, *, protocol: str | None, ports: tuple[int, ...], out: Path | None) -> None:
    """Write a dissector in Lua: the framing of TARGET, and the handlers that its frames go to.

    `tshark -X lua_script:FILE` uses it, and Wireshark if it is in its folder of Lua plugins.
    """
    router = load(target).find_protocol(protocol, how=": --protocol NAME")
    _write(dissector(router, ports), out)


@command.command("asyncapi")
@click.argument("target")
@click.argument("recordings", metavar="[RECORDING…]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--title", default="Devices", show_default=True, help="The title of the API.")
@click.option("--api-version", default="1.0.0", show_default=True, metavar="VERSION", help="Its version.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it; else it is printed."
)
def asyncapi_command(
    target: str, recordings: tuple[Path, ...], *, title: str, api_version: str, out: Path | None
) -> None:
    """Write the topics of TARGET, and what their messages hold, as an AsyncAPI 3.0 document in JSON.

    What it takes is known from its handlers, what it publishes from each RECORDING (`run --record`).
    """
    seen = [message for path in recordings for message in _published(read(path).entries)]
    document = asyncapi(load(target), title, api_version, seen)
    _write(json.dumps(document, indent=2, ensure_ascii=False) + "\n", out)


def _published(entries: Iterable[Entry]) -> Iterator[Seen]:
    """Yield what was published, with who it was for."""
    clients: dict[str, ClientInfo] = {}
    for entry in entries:
        match entry.event:
            case Registered(client):
                clients[entry.conn] = client
            case Opened(client=ClientInfo() as client):
                clients[entry.conn] = client
            case Published(message):
                client = clients.get(entry.conn, NOBODY)
                yield Seen(message.topic, message.payload, entry.protocol, client.clientid, client.username)


def _write(text: str, out: Path | None) -> None:
    """Print *text*, or write it into the file *out*."""
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{out} can't be written: {(error.strerror or str(error)).lower()}") from None
    click.echo(f"wrote {escaped(str(out))}")
