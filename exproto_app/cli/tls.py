"""The options of TLS listeners that old or small devices need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from ..hosts.gateway.keys import VERSIONS

__all__ = ["TLS", "tls_options"]

TLS: Final = ("psk", "ciphers", "tls_min")
"""Their names."""

OPTIONS: Final = (
    click.option(
        "--psk",
        metavar="FILE",
        help="Pre-shared keys that devices may know instead of a certificate, IDENTITY:HEXKEY in each line; "
        "needs Python 3.13. Without --cert, tls listeners take these devices alone; dtls listeners can't.",
    ),
    click.option(
        "--ciphers",
        metavar="LIST",
        help="Ciphers of tls and dtls listeners up to TLS 1.2, as OpenSSL has them.",
    ),
    click.option(
        "--tls-min",
        type=click.Choice(list(VERSIONS)),
        help="The lowest version of tls and dtls listeners; by default the system's, mostly 1.2.",
    ),
)


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
