"""`exproto-app decode`: what an app makes of bytes."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from ..app import App
from ..capture import is_capture, read
from ..channel import Channel
from ..errors import SetupError
from ..hexdump import shown, undump
from ..models import Address, ConnectionInfo
from ..recording import Entry, Recording, line
from ..router import Router
from ..sniff import Sniffer
from ..tap import Event, Failed, Opened, Received, Tap
from ..target import load
from ..testing.client import Link, World

__all__ = ["command"]

SETTLE = 1.5
"""Virtual seconds that async handlers may take."""


@click.command()
@click.argument("target")
@click.argument("hexes", metavar="[HEX | FILE]…", nargs=-1)
@click.option(
    "--protocol",
    metavar="NAME[,NAME…]",
    help="The protocol, where the app has several; or those that the first bytes tell apart.",
)
@click.option("--udp", is_flag=True, help="Each HEX is a datagram.")
@click.option("--chunk", type=click.IntRange(1), metavar="N", help="Have N bytes come at a time.")
@click.option("--port", type=click.IntRange(1, 65_535), help="The server's port, in a capture of packets.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, as in a recording, with the frames.")
def command(
    target: str,
    *,
    hexes: tuple[str, ...],
    protocol: str | None,
    udp: bool,
    chunk: int | None,
    port: int | None,
    as_json: bool,
) -> None:
    """Show what TARGET makes of bytes: the frames, their handlers, what these send and publish, errors.

    HEX is written as you have it: 7878 0d01, 78:78, 0x78, a C array, the output of xxd or hexdump. Without
    any it is read from the standard input. FILE is a text of hex, or a capture of packets (pcap, pcapng).
    Anybody may register. Exit code 1: bytes were no frame, or a handler failed.
    """
    logging.basicConfig(level=logging.CRITICAL)  # it is shown among the other lines
    app = load(target)
    routers = app.find_protocols(protocol)
    recording = _input(hexes, port=port, udp=udp)
    for note in recording.notes:
        click.echo(f"note: {note}", err=True)
    shows = _Shows(as_json=as_json, several=len({entry.conn for entry in recording.entries}) > 1)
    with contextlib.redirect_stdout(sys.stderr):  # what the app itself prints
        left = _feed(app, routers, recording, shows, chunk)
    for conn, (name, size) in left.items():
        shows.left(conn, name, size)
    sys.exit(1 if shows.failed else 0)


def _input(hexes: tuple[str, ...], *, port: int | None, udp: bool) -> Recording:
    """Return what devices send, by the arguments or the standard input."""
    if len(hexes) == 1 and Path(hexes[0]).is_file():
        path = Path(hexes[0])
        if is_capture(path):
            recording = read(path, port=port)
            wanted = (Opened, Received)
            return attrs.evolve(
                recording, entries=[entry for entry in recording.entries if isinstance(entry.event, wanted)]
            )
        texts = [path.read_text(errors="replace")]
    else:
        texts = list(hexes) or [sys.stdin.read()]
    data = [undump(text) for text in texts] if udp else [undump("\n".join(texts))]
    if not any(data):
        raise SetupError("there are no bytes; give them in hex, such as 78780d01")
    info = ConnectionInfo("udp" if udp else "tcp", Address("127.0.0.1", 50_001), Address("127.0.0.1", 7_993))
    events: list[Event] = [Opened(info), *map(Received, data)]
    return Recording([Entry(0.0, "1", "", event) for event in events])


class _Shows:
    """The watcher: prints each event, and remembers whether anything failed."""

    def __init__(self, *, as_json: bool, several: bool) -> None:
        self.failed = False
        self._as_json = as_json
        self._several = several
        self._began: float | None = None
        self._out = sys.stdout

    def __call__(self, tap: Tap, now: float, event: Event) -> None:
        """Print *event*."""
        self._began = now if self._began is None else self._began
        self.failed = self.failed or isinstance(event, Failed)
        if self._as_json:
            self._print(line(Entry(now - self._began, tap.id, tap.protocol, event)))
            return
        head = f"{tap.id} " if self._several else ""
        for text in shown(event):
            self._print(f"{head}{text}")

    def left(self, conn: str, protocol: str, size: int) -> None:
        """Tell that *size* bytes are left, which are no whole frame."""
        self.failed = True
        if self._as_json:
            facts: dict[str, Any] = {"conn": conn, "protocol": protocol, "event": "left", "count": size}
            self._print(json.dumps(facts, separators=(",", ":")))
        else:
            head = f"{conn} " if self._several else ""
            self._print(f"{head}! {size} byte{'' if size == 1 else 's'} left that are no whole frame")

    def _print(self, text: str) -> None:
        click.echo(text, file=self._out)


def _feed(
    app: App[Any],
    routers: Sequence[Router[Any]],
    recording: Recording,
    shows: _Shows,
    chunk: int | None,
) -> dict[str, tuple[str, int]]:
    """Have devices send to *app*; return the protocol of each that has bytes left over, and how many."""
    app.watch(shows)
    left: dict[str, tuple[str, int]] = {}
    world = World(app)
    links: dict[str, Link] = {}
    try:
        for entry in recording.entries:
            event = entry.event
            if isinstance(event, Opened):
                link = links[entry.conn] = Link(world)
                connect = partial(world.runner.engine.connected, conn_id=entry.conn)
                world.loop.call_soon(connect, link, event.info, routers)
            elif isinstance(event, Received):
                data = event.data
                for start in range(0, len(data), chunk or len(data) or 1):
                    piece = data[start : start + chunk] if chunk else data
                    world.loop.call_soon(links[entry.conn].arrive, piece)
                    world.run()
        world.run(SETTLE)
        for conn, link in links.items():
            channel = link.channel
            if isinstance(channel, Channel) and not channel.gone and channel.decoder.buffered:
                left[conn] = channel.protocol.router.name, channel.decoder.buffered
            elif isinstance(channel, Sniffer) and not channel.gone and channel.data:
                left[conn] = channel.rules.name, len(channel.data)
    finally:
        app.unwatch(shows)
        world.close()
    return left
