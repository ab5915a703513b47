"""The kinds of listeners and of targets to dial: another one is another row here, and its module.

A module of a listener has `async def serve(endpoint, sock)`, which returns a `Server`; *sock* is bound,
None where there is nothing to bind. Where there isn't, it has `probe(listen)` too, for the doctor.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import attrs

from ...models import SockType
from .datagram_line import DTLS_OPTIONS, UDP_OPTIONS, DatagramLine
from .modem_line import OPTIONS as MODEM_OPTIONS
from .modem_line import ModemLine
from .serial_line import OPTIONS, SerialLine
from .websocket_line import OPTIONS as WEB_OPTIONS
from .websocket_line import WebSocketLine

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .listeners import Listen, Url

__all__ = ["LISTENED", "TARGETS", "Scheme", "Server"]

Place: TypeAlias = Literal["port", "file", "web", "broker"]
"""What stands behind `://`: `port` is HOST:PORT, `file` an absolute path, `web` HOST:PORT and a path,
`broker` [USER:PASSWORD@][HOST[:PORT]] and a path."""

FILES: Final = frozenset({"cert", "key"})
AGREED: Final = FILES | {"client-ca", "ciphers", "tls-min"}
SECURE: Final = AGREED | {"psk"}


class Server(Protocol):
    """What serves one listener, or the targets that are dialled."""

    def stop(self) -> None:
        """Begin no new connections; those that are open go on."""
        ...

    async def close(self) -> None:
        """Let go of what is left, when every connection has ended."""
        ...


Serve: TypeAlias = "Callable[[Endpoint, socket.socket | None], Coroutine[Any, Any, Server]]"


@attrs.frozen(kw_only=True)
class Scheme:
    """One kind of listener, or of target.

    *module* of this package serves it. *kind*: of the sockets that are bound for it, None without; *socktype*
    is what handlers are told. *options*: those that its URL takes, of which *settings* reads
    what is its alone. *tls*: it needs a certificate, or looks at one. *dialled*: we open the line, not the
    device. *judged*: its peers have addresses, by which they may be refused and banned. *extra*: of the
    package's, the one that it needs.
    """

    name: str
    module: str
    socktype: SockType
    kind: int | None
    place: Place = "port"
    options: frozenset[str] = frozenset()
    tls: bool = False
    dialled: bool = False
    judged: bool = True
    settings: Callable[[Url], Any] | None = None
    extra: str = ""

    @property
    def datagrams(self) -> bool:
        """Whether its lines carry datagrams."""
        return self.kind == socket.SOCK_DGRAM

    @property
    def unix(self) -> bool:
        """Whether it is served on Unix sockets."""
        return self.place == "file" and self.kind is not None

    def load(self) -> Serve:
        """Return what serves it."""
        serve: Serve = self._module.serve
        return serve

    def probe(self, listen: Listen) -> None:
        """See whether *listen*, where nothing is bound, could be opened. Raises `ExprotoError`."""
        self._module.probe(listen)

    @property
    def _module(self) -> Any:
        return importlib.import_module(f".{self.module}", __package__)


def _table(*schemes: Scheme) -> Mapping[str, Scheme]:
    return {scheme.name: scheme for scheme in schemes}


SERIAL: Final = Scheme(
    name="serial",
    module="serial_port",
    socktype="serial",
    kind=None,
    place="file",
    options=OPTIONS,
    dialled=True,
    judged=False,
    settings=SerialLine.read,
    extra="serial",
)

LISTENED: Final = _table(
    Scheme(
        name="tcp",
        module="acceptor",
        socktype="tcp",
        kind=socket.SOCK_STREAM,
        options=frozenset({"max-connections", "proxy-protocol"}),
    ),
    Scheme(
        name="tls",
        module="acceptor",
        socktype="ssl",
        kind=socket.SOCK_STREAM,
        options=SECURE | {"max-connections", "proxy-protocol"},
        tls=True,
    ),
    Scheme(
        name="udp",
        module="udp",
        socktype="udp",
        kind=socket.SOCK_DGRAM,
        options=UDP_OPTIONS | {"max-connections"},
        settings=DatagramLine.read,
    ),
    Scheme(
        name="dtls",
        module="dtls",
        socktype="dtls",
        kind=socket.SOCK_DGRAM,
        options=AGREED | DTLS_OPTIONS | {"max-connections"},
        tls=True,
        settings=DatagramLine.read,
        extra="dtls",
    ),
    Scheme(
        name="unix",
        module="acceptor",
        socktype="unix",
        kind=socket.SOCK_STREAM,
        place="file",
        options=frozenset({"max-connections", "mode"}),
        judged=False,
    ),
    SERIAL,
    Scheme(
        name="ws",
        module="websocket",
        socktype="ws",
        kind=socket.SOCK_STREAM,
        place="web",
        options=WEB_OPTIONS | {"max-connections", "proxy-protocol"},
        settings=WebSocketLine.read,
        extra="ws",
    ),
    Scheme(
        name="wss",
        module="websocket",
        socktype="wss",
        kind=socket.SOCK_STREAM,
        place="web",
        options=WEB_OPTIONS | SECURE | {"max-connections", "proxy-protocol"},
        tls=True,
        settings=WebSocketLine.read,
        extra="ws",
    ),
    Scheme(
        name="mqtt-bytes",
        module="modems",
        socktype="mqtt",
        kind=None,
        place="broker",
        options=MODEM_OPTIONS,
        dialled=True,
        judged=False,
        settings=ModemLine.read,
        extra="mqtt",
    ),
    Scheme(
        name="mqtts-bytes",
        module="modems",
        socktype="mqtt",
        kind=None,
        place="broker",
        options=MODEM_OPTIONS | FILES | {"ca"},
        tls=True,
        dialled=True,
        judged=False,
        settings=ModemLine.read,
        extra="mqtt",
    ),
)
"""What `--listen` takes."""

NAMED: Final = frozenset({"name"})
TRUST: Final = FILES | {"ca", "ciphers", "server-name", "tls-min", "verify"}

TARGETS: Final = _table(
    Scheme(
        name="tcp",
        module="dialling",
        socktype="tcp",
        kind=socket.SOCK_STREAM,
        options=NAMED,
        dialled=True,
        judged=False,
    ),
    Scheme(
        name="tls",
        module="dialling",
        socktype="ssl",
        kind=socket.SOCK_STREAM,
        options=NAMED | TRUST,
        tls=True,
        dialled=True,
        judged=False,
    ),
    Scheme(
        name="udp",
        module="dialling",
        socktype="udp",
        kind=socket.SOCK_DGRAM,
        options=NAMED,
        dialled=True,
        judged=False,
    ),
    SERIAL,
)
"""What `--dial` takes."""
