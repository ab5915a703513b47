"""The option that tells which protocol the devices of which of EMQX's listeners speak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from ..app import App
from ..errors import SetupError

__all__ = ["LISTENER_PORT", "choose_ports", "protocol_option"]

LISTENER_PORT: Final = 7993
"""Of EMQX's first listener, where no --protocol tells a port."""

protocol_option: Callable[[Any], Any] = click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME[,NAME…]=:PORT",
    help="Which protocol the devices of EMQX's listener on PORT speak, for several protocols; or which "
    "protocols, told apart by their first bytes.",
)


def choose_ports(app: App[Any], texts: Sequence[str]) -> dict[int, str]:
    """Read the option; return the protocol of each port. Raises `SetupError`."""
    ports = dict(_protocol(app, text) for text in texts)
    if len(ports) != len(texts):
        raise SetupError("two --protocol name the same port; EMQX can have only one listener there")
    if not ports and len(app.protocols) > 1:
        example = " ".join(f"--protocol {name}=:{LISTENER_PORT + n}" for n, name in enumerate(app.protocols))
        raise SetupError(
            f"the app serves several protocols ({', '.join(app.protocols)}); say which is on which of EMQX's "
            f"listeners, such as {example}"
        )
    return ports


def _protocol(app: App[Any], text: str) -> tuple[int, str]:
    name, _, port = text.rpartition("=")
    if not name or not port.startswith(":") or not port[1:].isdigit() or not 0 < int(port[1:]) < 65_536:
        raise SetupError(f"--protocol {text} should be NAME=:PORT, such as {next(iter(app.protocols))}=:7993")
    return int(port[1:]), ",".join(router.name for router in app.find_protocols(name))
