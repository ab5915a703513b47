"""What commands have in common that let their user look at the traffic: recordings and hex dumps."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from ..app import App
from ..ops.incidents import Incidents, keep_incidents
from ..ops.recorder import KEEP, SIZE, HexDump, Recorder, record
from ..tap import masking
from ..target import absolute
from .numbers import POSITIVE

__all__ = ["mask_option", "record_options", "watching", "watching_options"]

log = logging.getLogger("exproto_app")

MEGABYTE: Final = 1_000_000

_CHOSEN: Final = "exproto_app.watching"


def _option(*names: str, **options: Any) -> Callable[[Any], Any]:
    """Return an option whose value is kept for `watching`, so that commands need not pass it on."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        ctx.meta.setdefault(_CHOSEN, {})[param.name] = value

    return click.option(*names, expose_value=False, callback=keep, **options)


mask_option: Callable[[Any], Any] = _option(
    "--mask",
    "masks",
    multiple=True,
    metavar="REGEX",
    help="Show matching bytes, or the groups' if it has any, as asterisks; may be repeated. "
    "Passwords given to register are never shown.",
)
hex_option: Callable[[Any], Any] = _option(
    "--hex", "hexdump", is_flag=True, help="Print the traffic: bytes, frames, handlers, messages, errors."
)

incidents_option: Callable[[Any], Any] = _option(
    "--incidents",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="When a handler or a framing fails, or a connection is lost, keep its last events there: "
    "a recording, and a test that fails as long as the app does.",
)


def record_options(command: Any) -> Any:
    """Add the options that say where a recording goes."""
    options = (
        _option(
            "--record",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Record the traffic as JSON lines, for replay; an existing file becomes FILE.1.",
        ),
        _option(
            "--record-size",
            type=POSITIVE,
            default=SIZE / MEGABYTE,
            metavar="MB",
            help=f"Megabytes after which a new file is started (default: {SIZE / MEGABYTE:.1f}).",
        ),
        _option(
            "--record-keep",
            type=click.IntRange(0, 1_000),
            default=KEEP,
            show_default=True,
            metavar="N",
            help="Older files to keep.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def watching_options(command: Any) -> Any:
    """Add all options of this module."""
    return record_options(incidents_option(hex_option(mask_option(command))))


def chosen() -> dict[str, Any]:
    """Return what was given for the options of this module."""
    values: dict[str, Any] = click.get_current_context().meta.get(_CHOSEN, {})
    return values


@contextlib.contextmanager
def watching(app: App[Any], target: str, *, worker: int | None = None) -> Iterator[None]:
    """Have *app*, which *target* names, watched in the block, as the options of the present command say.

    A *worker*, of several processes, records into a file of its own: `traffic.jsonl` is `traffic-2.jsonl`.
    """
    values = chosen()
    app.masks += [masking(pattern) for pattern in values["masks"]]
    watchers: list[Recorder | HexDump | Incidents] = []
    if values["record"] is not None:
        size = int(values["record_size"] * MEGABYTE)
        path: Path = values["record"]
        if worker is not None:
            path = path.with_name(f"{path.stem}-{worker}{path.suffix}")
        watchers.append(record(app, path, size=size, keep=values["record_keep"]))
        log.info("record = into %s", path)
    if values["incidents"] is not None:
        watchers.append(keep_incidents(app, values["incidents"], absolute(target)[0]))
        log.info("incidents = into %s", values["incidents"])
    if values["hexdump"]:
        watchers.append(HexDump(sys.stdout))
        app.watch(watchers[-1])
    try:
        yield
    finally:
        for watcher in watchers:
            app.unwatch(watcher)
            watcher.close()
