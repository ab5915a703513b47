"""`exproto-app replay`: a recording, fed to the app in memory."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

import click

from ..names import escaped, escaped_lines
from ..target import load
from ..testing import replay
from ..traffic.capture import read
from ..traffic.recording import connections
from .numbers import POSITIVE

__all__ = ["command"]


@click.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("target")
@click.option(
    "--protocol",
    metavar="NAME[,NAME…]",
    help="The protocol, or several told apart by their first bytes, if the recording's is not the right one.",
)
@click.option("--port", type=click.IntRange(1, 65_535), help="The server's port, in a capture of packets.")
@click.option(
    "--speed",
    type=POSITIVE,
    metavar="X",
    help="X times as fast as recorded; default: as fast as possible, in virtual time.",
)
@click.option("--chunk", type=click.IntRange(1), metavar="N", help="Cut what was received every N bytes.")
@click.option(
    "--ignore",
    multiple=True,
    metavar="REGEX",
    help="What matches (or its groups, if any) may differ in bytes sent and payloads; may be repeated.",
)
def command(
    files: tuple[Path, ...],
    target: str,
    *,
    protocol: str | None,
    port: int | None,
    speed: float | None,
    chunk: int | None,
    ignore: tuple[str, ...],
) -> None:
    """Feed the recording in FILE to TARGET in memory; show each difference in what it sends and publishes.

    FILE was made by run, serve or gen-driver with --record, or is a capture of packets (pcap, pcapng), of
    which only the bytes sent are compared. Give all files of a recording that rotated. Exit code
    1: something differs.
    """
    logging.basicConfig(level=logging.CRITICAL)  # what fails is shown with what differs
    first, *others = sorted((read(file, port=port) for file in files), key=lambda it: (it.started, it.part))
    for other in others:
        first.join(other)
    for note in first.notes:
        click.echo(f"note: {escaped(note)}", err=True)
    app = load(target)
    with contextlib.redirect_stdout(sys.stderr):  # what the app itself prints
        differences = replay(app, first, speed=speed, chunk=chunk, ignore=ignore, protocol=protocol)
    for difference in differences:
        click.echo(f"{escaped_lines(repr(difference))}\n")
    count = len(tuple(connections(first.entries)))
    what = f"{count} connection{'' if count == 1 else 's'}, {len(first.entries)} events"
    if differences:
        differing = sum(bool(difference.conn) for difference in differences)
        click.echo(f"{what}: {differing} of {count} differ")
        sys.exit(1)
    click.echo(f"{what}: no difference")
