"""What commands that serve have in common for whoever looks at them: the log, the metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..logs import FORMATS, LEVELS

__all__ = ["log_options"]


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the log."""
    form = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        envvar="EXPROTO_LOG_FORMAT",
        help="json writes an object a line.",
    )
    level = click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        envvar="EXPROTO_LOG_LEVEL",
    )
    decorated: Callable[..., Any] = level(form(command))
    return decorated
