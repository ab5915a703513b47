"""`exproto-app simulate`: a recording becomes a fleet, against any server."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import re
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from ..errors import SetupError
from ..masking import masking
from ..names import escaped
from ..simulating import Plan, Summary, play, scripts
from ..target import load
from ..traffic.capture import is_capture, read
from ..traffic.recording import Recording, parse
from .numbers import POSITIVE
from .process import find_uvloop

__all__ = ["command"]

CONNECTIONS: Final = 1_000
FILES: Final = 100
"""Open files beside the devices' sockets."""

CONN: Final = re.compile(r'"conn":"((?:[^"\\]|\\.)*)"')


class Speed(click.ParamType):  # type: ignore[type-arg] # which older versions of click know no arguments of
    """A factor, or `max`."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the factor, None for `max`."""
        if value == "max":
            return None
        factor: float = POSITIVE.convert(value, param, ctx)
        return factor


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", "server", required=True, metavar="URL", help="tcp://HOST:PORT, tls://… or udp://….")
@click.option("--devices", type=click.IntRange(1, 1_000_000), default=1, show_default=True, metavar="N")
@click.option(
    "--app", "target", metavar="TARGET", help="The app whose framings make checksums of new identities right."
)
@click.option(
    "--protocol", metavar="NAME", help="The app's protocol, if the recording's is not the right one."
)
@click.option(
    "--identity",
    metavar="REGEX",
    help="What tells who a device is in what it sends (the groups, if any); default: registered clientids.",
)
@click.option(
    "--speed",
    type=Speed(),
    default="1",
    show_default=True,
    metavar="X|max",
    help="X times as fast as recorded; max: each device as fast as it is answered.",
)
@click.option(
    "--ramp", type=click.FloatRange(0), metavar="SECONDS", help="Time to start all; default: 1,000 a second."
)
@click.option(
    "--timeout", type=POSITIVE, default=10.0, show_default=True, metavar="SECONDS", help="For an answer."
)
@click.option("--ignore", multiple=True, metavar="REGEX", help="What may differ in answers; repeatable.")
@click.option(
    "--connections",
    type=click.IntRange(1),
    default=CONNECTIONS,
    show_default=True,
    metavar="N",
    help="Recorded connections that are used, the first ones.",
)
@click.option("--port", type=click.IntRange(1, 65_535), help="The server's port, in a capture of packets.")
@click.option("--insecure", is_flag=True, help="With tls://: accept any certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    file: Path,
    *,
    server: str,
    devices: int,
    target: str | None,
    protocol: str | None,
    identity: str | None,
    speed: float | None,
    ramp: float | None,
    timeout: float,
    ignore: tuple[str, ...],
    connections: int,
    port: int | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """Play the devices in the recording FILE against a server, many times over; compare its answers.

    Each device has an identity of its own: the recorded one, with the device's number at its end, as text, in
    BCD or hex, or as a number of eight bytes. Exit code 1: a device couldn't connect, or was answered
    otherwise.
    """
    logging.basicConfig(level=logging.ERROR)
    kind, host, to_port = _server(server)
    recording = _read(file, connections, port)
    for note in recording.notes:
        click.echo(f"note: {escaped(note)}", err=True)
    app = None if target is None else load(target)
    made, notes = scripts(recording, devices, app=app, protocol=protocol, identity=_pattern(identity))
    for note in notes[:10]:
        click.echo(f"note: {escaped(note)}", err=True)
    _allow_files(devices)
    plan = Plan(
        kind=kind,  # type: ignore[arg-type] # checked by _server
        host=host,
        port=to_port,
        devices=devices,
        ramp=devices / 1_000 if ramp is None else ramp,
        speed=speed,
        timeout=timeout,
        ssl=_context(insecure=insecure) if kind == "tls" else None,
        ignore=[masking(pattern, same_length=False) for pattern in ignore],
    )
    progress = _Progress() if sys.stderr.isatty() else None
    uvloop = find_uvloop("auto")
    loop = asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()
    try:
        summary = loop.run_until_complete(play(made, plan, progress))
    finally:
        loop.close()
    if progress is not None:
        progress.clear()
    click.echo(json.dumps(_facts(summary)) if as_json else "\n".join(_lines(summary)))
    sys.exit(0 if summary.good else 1)


def _allow_files(devices: int) -> None:
    """Have this process open as many sockets as there are devices. Raises `SetupError`."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return  # Windows has no such limit
    needed = devices + FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise SetupError(
                f"{devices:,} devices need {needed:,} open files, {hard:,} are allowed; see ulimit -Hn"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _server(text: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(text)
        kind, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        kind, host, port = "", None, None
    if kind not in ("tcp", "tls", "udp") or not host or not port or parts.path:
        raise SetupError(
            f"--to {text} is not a server; write tcp://HOST:PORT, tls://HOST:PORT or udp://HOST:PORT"
        )
    return kind, host, port


def _pattern(text: str | None) -> re.Pattern[bytes] | None:
    try:
        return None if text is None else re.compile(text.encode("latin-1", "backslashreplace"), re.DOTALL)
    except re.error as error:
        raise SetupError(f"--identity {text} is not a regular expression: {error}") from None


def _read(path: Path, most: int, port: int | None) -> Recording:
    """Return what *path* tells of its first *most* connections."""
    try:
        if is_capture(path):
            return read(path, port=port)
        with path.open(encoding="utf-8") as file:
            return parse(_of_the_first(file, most), path.name)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{path} is neither a recording nor a packet capture") from None


def _of_the_first(lines: Iterator[str], most: int) -> Iterator[str]:
    """Yield the lines of the first *most* connections, and of their children; the others as empty lines."""
    known: set[str] = set()
    for line in lines:
        match = CONN.search(line)
        if match is None:
            yield line
            continue
        conn = match[1]
        if conn not in known and conn.rpartition(".")[0] not in known:
            if len(known) >= most:
                yield "\n"
                continue
            known.add(conn)
        yield line


def _context(*, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Progress:
    """One line on the terminal, written anew each second."""

    def __init__(self) -> None:
        self._frames = 0

    def __call__(self, summary: Summary) -> None:
        frames, self._frames = summary.frames - self._frames, summary.frames
        words = f"{summary.connected:,} of {summary.devices:,} connected"
        words += f", {frames:,} frames/s, {summary.differing:,} differ"
        click.echo(f"\r\x1b[K{words}", nl=False, err=True)

    def clear(self) -> None:
        click.echo("\r\x1b[K", nl=False, err=True)


def _facts(summary: Summary) -> dict[str, Any]:
    late = summary.latencies
    return {
        "devices": summary.devices,
        "connected": summary.connected,
        "finished": summary.finished,
        "differing": summary.differing,
        "failed": dict(summary.failed),
        "frames": summary.frames,
        "bytes_sent": summary.bytes_sent,
        "bytes_received": summary.bytes_received,
        "seconds": round(summary.seconds, 3),
        "frames_per_second": round(summary.frames / summary.seconds, 1) if summary.seconds else 0.0,
        "latency_ms": {
            "count": late.count,
            **{f"p{percent}": round(late.percentile(percent) * 1e3, 3) for percent in (50, 90, 99)},
            "max": round(late.most * 1e3, 3),
        },
        "examples": summary.examples,
    }


def _lines(summary: Summary) -> Iterator[str]:
    facts = _facts(summary)
    yield (
        f"{summary.devices:,} devices: {summary.connected:,} connected, "
        f"{summary.finished:,} answered as recorded, {summary.differing:,} otherwise"
    )
    for reason, count in summary.failed.most_common():
        yield f"{count:,} couldn't connect: {escaped(reason)}"
    yield (
        f"{summary.frames:,} frames in {summary.seconds:.1f} s, {facts['frames_per_second']:,.0f}/s; "
        f"{summary.bytes_sent:,} bytes sent, {summary.bytes_received:,} received"
    )
    latency = facts["latency_ms"]
    if latency["count"]:
        words = ", ".join(f"{name} {latency[name]:,.1f} ms" for name in ("p50", "p90", "p99", "max"))
        yield f"{latency['count']:,} answers: {words}"
    for example in summary.examples:
        yield f"- {escaped(example)}"
