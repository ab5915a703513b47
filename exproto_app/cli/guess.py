"""`exproto-app guess`: which framing devices have, by what they have sent."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from ..errors import SetupError
from ..guessing import Guess, Stream, guess
from ..guessing.script import script_of
from ..names import escaped
from ..tap import Opened, Received
from ..traffic.capture import is_capture, read
from ..traffic.hexdump import undump
from ..traffic.recording import Recording

__all__ = ["command"]

MOST: Final = 4_000_000
"""Bytes of a file that are read."""

OFFSET: Final = re.compile(r"\s*(?:0x)?([0-9a-fA-F]{4,8})(?::|  ?)\s*(?:[0-9a-fA-F]{2,4}\b)")
"""How the lines of a dump begin that has offsets: they are pieces of one whole."""


@click.command()
@click.argument("files", metavar="[FILE]…", nargs=-1, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65_535), help="The server's port, in a capture of packets.")
@click.option(
    "--listen",
    metavar="tcp://HOST:PORT",
    help="Listen to devices instead (also udp://); nothing is answered.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 86_400),
    default=30.0,
    show_default=True,
    help="How long to listen.",
)
@click.option(
    "--script", type=click.Path(path_type=Path), metavar="FILE", help="Write a script to start with."
)
def command(
    files: Sequence[Path], *, port: int | None, listen: str | None, seconds: float, script: Path | None
) -> None:
    """Guess the framing of a protocol from what devices have sent, and say why.

    FILE is a recording, a capture of packets (pcap, pcapng), a text of hex in which each line is a message,
    the output of xxd or hexdump, or the bytes themselves; without any the standard input is read. Exit code
    1: nothing fits.
    """
    if listen is not None:
        if files:
            raise click.UsageError("give files or --listen, not both")
        from .listening import heard  # noqa: PLC0415 - asyncio is for this alone

        streams = heard(listen, seconds)
    else:
        streams = [stream for path in files for stream in _streams(path, port)] or list(
            _standard_input(files)
        )
    if not any(stream.data for stream in streams):
        raise SetupError("no bytes given; name a file, or give --listen")
    result = guess(streams)
    for line in _shown(result):
        click.echo(escaped(line))
    if script is not None:
        _write(script, result)
    sys.exit(0 if result.code or result.parts else 1)


def _standard_input(files: Sequence[Path]) -> Iterator[Stream]:
    if not files and sys.stdin is not None:
        yield from _of_bytes(sys.stdin.buffer.read(MOST), "standard input")


def _streams(path: Path, port: int | None) -> list[Stream]:
    """Return what devices sent, by the file *path*. Raises `SetupError`."""
    try:
        if is_capture(path):
            return list(_recorded(read(path, port=port)))
        with path.open("rb") as file:
            data = file.read(MOST)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {(error.strerror or str(error)).lower()}") from None
    if data.startswith(b'{"recording"'):
        return list(_recorded(read(path, port=port)))
    return list(_of_bytes(data, str(path)))


def _recorded(recording: Recording) -> Iterator[Stream]:
    datagrams: dict[str, bool] = {}
    reads: dict[str, list[bytes]] = {}
    for entry in recording.entries:
        if isinstance(entry.event, Opened):
            datagrams[entry.conn] = entry.event.info.socktype in ("udp", "dtls")
        elif isinstance(entry.event, Received):
            reads.setdefault(entry.conn, []).append(entry.event.data)
    for conn, data in reads.items():
        yield Stream(tuple(data), datagrams.get(conn, False), f"connection {conn}")


def _of_bytes(data: bytes, name: str) -> Iterator[Stream]:
    """Yield what a text of hex means, or *data* itself."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield Stream((data,), name=name)
        return
    lines = [line for line in text.splitlines() if line.strip()]
    pieces = sum(OFFSET.match(line) is not None for line in lines) >= 0.8 * len(lines)
    reads = _hex([text]) if pieces else _hex(lines) or _hex([text])
    # What is mostly no hex is a text itself, although undump takes it for comments.
    if 2 * sum(map(len, reads)) < 0.3 * sum(map(len, "".join(lines).split())):
        yield Stream((data,), name=name)
        return
    yield Stream(tuple(reads), whole=not pieces, name=name)


def _hex(texts: Sequence[str]) -> list[bytes]:
    """Return the bytes of each text; nothing if one of them is no hex."""
    try:
        return [data for text in texts if (data := undump(text))]
    except SetupError:
        return []


def _shown(result: Guess) -> Iterator[str]:
    for names, part in result.parts:
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"{few}:"
        yield from (f"  {line}" for line in _shown(part))
    if result.parts:
        return
    head = {"none": "no framing found", "unsure": "unsure, perhaps", "likely": "likely", "sure": "quite sure"}
    yield f"{head[result.certainty]}{':' if result.code else ''}"
    if result.code:
        yield ""
        yield from (f"  {line}" for line in result.imports)
        yield ""
        yield from (f"  {line}" for line in f"framing = {result.code}".splitlines())
        if result.key is not None:
            yield f"  key = {result.key.code}"
        yield ""
    yield from (f"- {text}" for text in result.evidence)
    yield from (f"- or: {code}" for code in result.others)


def _write(path: Path, result: Guess) -> None:
    part = next((part for _, part in result.parts if part.code), result)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(script_of(part))
    except FileExistsError:
        raise SetupError(f"{path} is there already; name another file for --script") from None
    except OSError as error:
        raise SetupError(f"{path} can't be written: {(error.strerror or str(error)).lower()}") from None
    click.echo(f"wrote {escaped(str(path))}; run it with: exproto-app run {escaped(str(path))} --hex")
