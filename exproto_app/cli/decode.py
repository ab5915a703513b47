"""`exproto-app decode`: what an app makes of bytes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from ..app import App
from ..core import Channel, Sniffer
from ..errors import SetupError
from ..models import Address, ConnectionInfo
from ..names import escaped
from ..router import Router
from ..tap import Event, Failed, Opened, Received, Tap
from ..target import load
from ..testing.world import MemoryLink, World
from ..traffic.capture import is_capture, read
from ..traffic.hexdump import shown, undump
from ..traffic.recording import Entry, Recording, line

__all__ = ["command"]

LONGEST_NAME = 60
"""Characters of what may have been meant as a file's name."""

SETTLE = 1.5
"""Virtual seconds that async handlers may take."""


@click.command()
@click.argument("target")
@click.argument("hexes", metavar="[HEX | FILE]…", nargs=-1)
@click.option(
    "--protocol",
    metavar="NAME[,NAME…]",
    help="The protocol, if the app has several; or several, told apart by their first bytes.",
)
@click.option("--udp", is_flag=True, help="Each HEX is a datagram.")
@click.option("--chunk", type=click.IntRange(1), metavar="N", help="Feed N bytes at a time.")
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
    """Show what TARGET does with bytes: frames, handlers, what these send and publish, and errors.

    HEX is written as you have it: 7878 0d01, 78:78, 0x78, a C array, the output of xxd or hexdump. Without
    any it is read from the standard input. FILE is a text of hex, or a capture of packets (pcap, pcapng).
    Every registration succeeds. Exit code 1: bytes weren't a frame, or a handler failed.
    """
    logging.basicConfig(level=logging.CRITICAL)  # it is shown among the other lines
    app = load(target)
    routers = app.find_protocols(protocol, how=": --protocol NAME")
    recording = _input(hexes, port=port, udp=udp)
    for note in recording.notes:
        click.echo(f"note: {escaped(note)}", err=True)
    shows = _Shows(as_json=as_json, several=len({entry.conn for entry in recording.entries}) > 1)
    with contextlib.redirect_stdout(sys.stderr):  # what the app itself prints
        left = _feed(app, routers, recording, shows, chunk)
    for conn, (name, size) in left.items():
        shows.left(conn, name, size)
    if shows.unwritten is not None:
        raise shows.unwritten
    sys.exit(1 if shows.failed else 0)


def _input(hexes: tuple[str, ...], *, port: int | None, udp: bool) -> Recording:
    """Return what devices send, by the arguments or the standard input."""
    path = hexes[0] if len(hexes) == 1 else ""
    if os.path.isfile(path):  # noqa: PTH113 - Path raises for hex that is too long for a name
        found = _read_file(Path(path), port)
        if isinstance(found, Recording):
            return found
        texts = [found]
    else:
        texts = list(hexes) or [_standard_input()]
    try:
        data = [undump(text) for text in texts] if udp else [undump("\n".join(texts))]
    except SetupError as error:
        if texts != [path] or len(path) > LONGEST_NAME:
            raise
        raise SetupError(f"{error}; there is no file {path!r} either") from None
    if not any(data):
        raise SetupError("no bytes given; write them in hex, such as 78780d01")
    info = ConnectionInfo("udp" if udp else "tcp", Address("127.0.0.1", 50_001), Address("127.0.0.1", 7_993))
    events: list[Event] = [Opened(info), *map(Received, data)]
    return Recording([Entry(0.0, "1", "", event) for event in events])


def _read_file(path: Path, port: int | None) -> Recording | str:
    """Return what devices sent in the capture *path*, or its text. Raises `SetupError`."""
    try:
        if not is_capture(path):
            return path.read_text(errors="replace")
    except OSError as error:
        raise SetupError(f"{path} can't be read: {(error.strerror or str(error)).lower()}") from None
    recording = read(path, port=port)
    wanted = (Opened, Received)
    return attrs.evolve(
        recording, entries=[entry for entry in recording.entries if isinstance(entry.event, wanted)]
    )


def _standard_input() -> str:
    return sys.stdin.buffer.read().decode(errors="replace") if sys.stdin is not None else ""


class _Shows:
    """The watcher: prints each event, and remembers whether anything failed."""

    def __init__(self, *, as_json: bool, several: bool) -> None:
        self.failed = False
        self._as_json = as_json
        self._several = several
        self.unwritten: OSError | None = None
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
            self._print(f"{head}! {size} byte{'' if size == 1 else 's'} left, not a whole frame")

    def _print(self, text: str) -> None:
        try:
            click.echo(escaped(text), file=self._out)
        except OSError as error:  # what a watcher raises would only be logged
            self.unwritten = error


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
    links: dict[str, MemoryLink] = {}
    try:
        for entry in recording.entries:
            event = entry.event
            if isinstance(event, Opened):
                link = links[entry.conn] = MemoryLink(world)
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
            if isinstance(channel, Channel) and not channel.gone and channel.inbound.decoder.buffered:
                left[conn] = channel.protocol.router.name, channel.inbound.decoder.buffered
            elif isinstance(channel, Sniffer) and not channel.gone and channel.data:
                left[conn] = channel.rules.name, len(channel.data)
    finally:
        app.unwatch(shows)
        world.close()
    return left
