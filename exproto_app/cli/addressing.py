"""The options of `exproto-app run` about addresses: who may connect, and what each may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from ..addresses import AddressLimits, networks
from ..hosts.gateway import Lists
from .numbers import POSITIVE

__all__ = ["address_options", "take_address_limits", "take_lists"]

OPTIONS: Final = (
    click.option(
        "--allow",
        "allow",
        multiple=True,
        metavar="NETWORK",
        help="Accept devices only from there, such as 192.0.2.0/24 or 2001:db8::/32; may be repeated.",
    ),
    click.option(
        "--deny",
        "deny",
        multiple=True,
        metavar="NETWORK",
        help="Refuse devices from there, even if allowed; may be repeated.",
    ),
    click.option(
        "--allow-file",
        metavar="FILE",
        help="More networks to allow, one a line; # begins a comment. It is read again when it changes.",
    ),
    click.option(
        "--deny-file",
        metavar="FILE",
        help="More networks to deny; what is open from there ends when the file has changed.",
    ),
    click.option(
        "--address-connections",
        type=click.IntRange(1),
        metavar="N",
        help="Open connections per address. Behind a NAT many devices share an address, so this and "
        "the next four are off unless given.",
    ),
    click.option(
        "--address-rate",
        type=POSITIVE,
        metavar="N",
        help="New connections per address and second.",
    ),
    click.option(
        "--address-bad-frames",
        type=click.IntRange(0),
        metavar="N",
        help="Bad frames per address and minute; beyond that it is banned.",
    ),
    click.option(
        "--address-failed-logins",
        type=click.IntRange(0),
        metavar="N",
        help="Refused logins per address and minute; beyond that it is banned.",
    ),
    click.option(
        "--ban",
        type=POSITIVE,
        metavar="SECONDS",
        help="How long a ban lasts (default: 600).",
    ),
)


def address_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def take_lists(given: dict[str, Any]) -> Lists:
    """Take the options with files out of *given*."""
    return Lists(given.pop("allow_file"), given.pop("deny_file"))


def take_address_limits(given: dict[str, Any]) -> AddressLimits:
    """Take the options out of *given*. Raises `SetupError`, `click.UsageError`."""
    names = ("connections", "rate", "bad_frames", "failed_logins")
    limits = {name: given.pop(f"address_{name}") for name in names}
    ban = given.pop("ban")
    if ban is not None:
        if limits["bad_frames"] is None and limits["failed_logins"] is None:
            words = "--ban needs --address-bad-frames or --address-failed-logins."
            raise click.UsageError(words)
        limits["ban"] = ban
    allow, deny = (networks(given.pop(name), f"--{name}") for name in ("allow", "deny"))
    return AddressLimits(allow=allow, deny=deny, **limits)
