"""The options of `exproto-app run` about devices that the gateway connects to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from ..hosts.gateway import DialOptions, Gateway, Target
from ..hosts.gateway.targets import EXAMPLE
from .numbers import POSITIVE

__all__ = ["dial_options", "dial_target_options", "shown_targets", "take_dial_options", "take_targets"]

SHOWN: Final = 5
"""Targets that are named when the gateway starts."""

TARGETS: Final = (
    click.option(
        "--dial",
        "dials",
        multiple=True,
        metavar="[PROTOCOL=]URL",
        help="Connect to a device that waits to be called, and again whenever that ends: "
        f"{EXAMPLE}, tls://…, udp://… or serial:///DEVICE; may be repeated. Without --listen, "
        "nothing is listened on then.",
    ),
    click.option(
        "--dial-file",
        metavar="FILE",
        help="More of them, one a line; # begins a comment. It is read again when it has changed.",
    ),
)

TIMES: Final = (
    click.option(
        "--dial-timeout",
        type=POSITIVE,
        metavar="SECONDS",
        help=f"How long connecting may take (default: {DialOptions().timeout:g}).",
    ),
    click.option(
        "--dial-rate",
        type=POSITIVE,
        metavar="N",
        help=f"Attempts per second, of all targets together (default: {DialOptions().rate:g}).",
    ),
    click.option(
        "--dial-wait",
        type=POSITIVE,
        metavar="SECONDS",
        help=f"The longest wait before a failed target is tried again (default: {DialOptions().longest:g}).",
    ),
)


def dial_target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* those that name targets."""
    for option in reversed(TARGETS):
        command = option(command)
    return command


def dial_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* all of them."""
    for option in reversed(TIMES):
        command = option(command)
    return dial_target_options(command)


def take_targets(given: dict[str, Any]) -> tuple[list[Target], str | None]:
    """Take the targets out of *given*, and the file with more of them. Raises `SetupError`."""
    return [Target.parse(text) for text in given.pop("dials")], given.pop("dial_file")


def take_dial_options(given: dict[str, Any]) -> DialOptions:
    """Take the rest out of *given*."""
    names = {"timeout": "dial_timeout", "rate": "dial_rate", "longest": "dial_wait"}
    taken = {name: given.pop(option) for name, option in names.items()}
    return DialOptions(**{name: value for name, value in taken.items() if value is not None})


def shown_targets(gateway: Gateway) -> list[str]:
    """Return the lines that tell the user what is dialled."""
    targets = gateway.dials.targets
    if not targets and gateway.dials.file and not gateway.app.dialled:
        return [f"{gateway.dials.file} names no targets, so nothing is dialled until it changes"]
    lines = [
        f"{','.join(router.name for router in target.routers(gateway.app))} dials {target}"
        for target in targets[:SHOWN]
    ]
    more = len(targets) - SHOWN
    return [*lines, f"… and {more} more targets"] if more > 0 else lines
