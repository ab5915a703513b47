"""Options of commands that serve for the app's `Limits`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import click

from ..app import App
from ..models import Limits

__all__ = ["limit", "limit_option", "sniff_options"]


def limit_option(name: str, kind: type, meaning: str) -> Callable[[Any], Any]:
    """Declare the option for one of the app's `Limits`; without it the app decides."""
    default = getattr(Limits(), name)
    text = f"{meaning} (default: the app's, else {default:.12g})."
    flag = f"--{name.replace('_', '-')}"
    metavar = "N" if meaning.startswith("Messages") else meaning.split(" ", 1)[0].upper()
    return click.option(flag, name, type=kind, metavar=metavar, help=text)


def sniff_options(command: Any) -> Any:
    """Add those for protocols that share a listener."""
    of_bytes = limit_option(
        "sniff_bytes", int, "Bytes in which to recognize which of several protocols a device speaks"
    )
    of_time = limit_option("sniff_time", float, "Seconds in which to recognize it")
    return of_bytes(of_time(command))


def limit(app: App[Any], given: Mapping[str, Any]) -> None:
    """Have *app* obey the limits that were *given*; those that are None weren't."""
    app.limits = attrs.evolve(
        app.limits, **{name: value for name, value in given.items() if value is not None}
    )
