"""The options that tell about EMQX: its version, and which of its listeners speaks which protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import attrs
import click

from ..app import App
from ..errors import SetupError

__all__ = [
    "LISTENER_PORT",
    "NAMES_SINCE",
    "Listener",
    "Version",
    "choose_listeners",
    "emqx_option",
    "ports_of",
    "protocol_option",
    "split_listener",
    "takes_shares",
]

LISTENER_PORT: Final = 7993
"""Of EMQX's first listener, where no --protocol tells a port."""

SCHEMES: Final = {"tcp": "tcp", "tls": "ssl", "ssl": "ssl", "udp": "udp", "dtls": "dtls"}
"""What may stand before a port, and EMQX's name of such a listener."""

Version: TypeAlias = tuple[int, ...]

NAMES_SINCE: Final[Version] = (5, 8, 5)
"""The first EMQX 5 whose handler address may be a name."""

SHARES_UNTIL: Final[Version] = (5, 4)
"""The first EMQX whose connections die of a shared subscription."""


@attrs.frozen
class Listener:
    """A listener of EMQX's gateway: its *kind* as EMQX names it, and what its devices speak."""

    port: int
    kind: str
    protocols: str

    @property
    def datagrams(self) -> bool:
        """Whether its devices send datagrams."""
        return self.kind in ("udp", "dtls")


def _read_version(_context: object, _parameter: object, text: str) -> Version:
    if not re.fullmatch(r"[456](\.\d{1,2}){0,2}", text):
        raise click.BadParameter(f"{text!r} is not an EMQX version; write 5 or 5.5.1")
    version = tuple(int(part) for part in text.split("."))
    if version >= (6, 3):
        raise click.BadParameter("EMQX 6.3 no longer has ExProto; use exproto-app run instead")
    if version[0] == 4 and len(version) > 1 and version < (4, 3):
        raise click.BadParameter("EMQX before 4.3 can't call a gRPC service; use exproto-app gen-driver")
    return version


protocol_option: Callable[[Any], Any] = click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME[,NAME…]=[udp://]:PORT",
    help="Which protocol the devices of EMQX's listener on PORT speak, for several protocols; or which "
    "protocols, told apart by their first bytes. udp://, tls:// and dtls:// give the listener's kind, "
    "for --print-config and because EMQX reports DTLS as TLS.",
)

emqx_option: Callable[[Any], Any] = click.option(
    "--emqx",
    metavar="VERSION",
    default="5",
    show_default=True,
    callback=_read_version,
    help="EMQX's version, 4.3 to 6.2, such as 5.5.1: for --print-config, and for what it supports.",
)


def takes_shares(version: Version) -> bool:
    """Return whether an EMQX of *version* takes shared subscriptions of ExProto's devices."""
    return version < SHARES_UNTIL if len(version) > 1 else version < SHARES_UNTIL[:1]


def choose_listeners(app: App[Any], texts: Sequence[str]) -> list[Listener]:
    """Read `--protocol`; return EMQX's listeners, none where it tells of none. Raises `SetupError`."""
    listeners = [split_listener(app, text) for text in texts]
    for number, one in enumerate(listeners):
        for other in listeners[:number]:
            # EMQX tells only the port, so what is spoken there is the same by TCP and UDP.
            same = one.protocols == other.protocols and one.datagrams != other.datagrams
            if one.port == other.port and (not same or {one.kind, other.kind} == {"ssl", "dtls"}):
                raise SetupError("two --protocol name the same port; EMQX can have only one listener there")
    if not listeners and len(app.protocols) > 1:
        example = " ".join(f"--protocol {name}=:{LISTENER_PORT + n}" for n, name in enumerate(app.protocols))
        raise SetupError(
            f"the app serves several protocols ({', '.join(app.protocols)}); say which is on which of EMQX's "
            f"listeners, such as {example}"
        )
    return listeners


def ports_of(listeners: Sequence[Listener]) -> dict[int, str]:
    """Return the protocols of each port."""
    return {listener.port: listener.protocols for listener in listeners}


def split_listener(app: App[Any], text: str) -> Listener:
    """Read `NAME[,NAME…]=[KIND://]:PORT`. Raises `SetupError`."""
    name, _, where = text.rpartition("=")
    found = re.fullmatch(r"(?:([a-z]+)://)?:(\d{1,5})", where)
    if not name or found is None or not 0 < int(found[2]) < 65_536:
        raise SetupError(f"--protocol {text} should be NAME=:PORT, such as {next(iter(app.protocols))}=:7993")
    scheme = found[1] or "tcp"
    if scheme not in SCHEMES:
        raise SetupError(f"--protocol {text}: {scheme}:// should be tcp://, tls://, udp:// or dtls://")
    protocols = ",".join(router.name for router in app.find_protocols(name))
    return Listener(int(found[2]), SCHEMES[scheme], protocols)
