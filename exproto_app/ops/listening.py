"""The socket of what is served beside the devices: the metrics, the inspector."""

from __future__ import annotations

import socket

from ..errors import SetupError, not_opened
from ..models import Address

__all__ = ["listen"]


def listen(option: str, address: Address, *, shared: bool, backlog: int) -> socket.socket:
    """Return a socket that listens at the first that *address* means, which *option* has asked for.

    *shared*: for a while another process may listen there too. Raises `SetupError` for an address that can't
    be opened.
    """
    what = f"{option} {address}"
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind)
    except socket.gaierror:
        raise SetupError(
            f"{what} can't be opened: the host name {address.host!r} can't be resolved"
        ) from None
    except OSError as error:  # a system without IPv6
        raise not_opened(what, error, "stop it or choose another") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
        sock.listen(backlog)  # so that a port that is taken shows now
    except OSError as error:
        sock.close()
        raise not_opened(what, error, "stop it or choose another") from None
    return sock
