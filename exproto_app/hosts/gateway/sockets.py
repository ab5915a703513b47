"""The sockets of a listener, bound before anybody serves them."""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import SetupError, not_opened
from .listeners import Listen

__all__ = ["bind", "files_left", "share", "share_again", "why_not"]

Bound: TypeAlias = tuple[int, Any]
"""A family of addresses, and an address as its sockets have it."""


def bind(listen: Listen, option: str = "--listen") -> list[socket.socket]:
    """Return a socket, bound and not yet listening, for each address that *listen*, given by *option*, means.

    Raises `SetupError` for what can't be opened.
    """
    return _bind(listen, _addresses(listen), shared=False, option=option)


def share(listen: Listen, count: int) -> list[list[socket.socket]]:
    """Bind *listen* *count* times over; the kernel spreads the devices over the sockets (`SO_REUSEPORT`).

    A port 0 is chosen once. Raises `SetupError`, for a port that somebody else shares too.
    """
    # Sockets that share don't see others that do so, of a gateway that is already running for example.
    probes = bind(listen)
    addresses: list[Bound] = [(probe.family, probe.getsockname()) for probe in probes]
    for probe in probes:
        probe.close()
    return [_bind(listen, addresses, shared=True) for _ in range(count)]


def share_again(family: int, kind: int, address: Any) -> socket.socket:
    """Bind an *address* that others share once more. Raises `OSError`."""
    sock = socket.socket(family, kind)
    try:
        _set_up(sock, shared=True)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _addresses(listen: Listen) -> list[Bound]:
    kind = socket.SOCK_DGRAM if listen.scheme == "udp" else socket.SOCK_STREAM
    host = listen.host or ("0.0.0.0" if listen.scheme == "udp" else None)  # noqa: S104 - asked for by leaving the host out
    try:
        infos = socket.getaddrinfo(host, listen.port, type=kind, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise SetupError(f"{listen} can't be opened: there is no host {listen.host!r} here") from None
    addresses: list[Bound] = list(dict.fromkeys((int(info[0]), info[4]) for info in infos))
    # A datagram is answered from one address; a name may stand for several.
    return addresses[:1] if listen.scheme == "udp" else addresses


def _bind(
    listen: Listen, addresses: list[Bound], *, shared: bool, option: str = "--listen"
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            kind = socket.SOCK_DGRAM if listen.scheme == "udp" else socket.SOCK_STREAM
            try:
                sock = socket.socket(family, kind)
            except OSError:
                if len(addresses) > 1:  # a system without IPv6
                    continue
                raise
            sockets.append(sock)
            _set_up(sock, shared=shared)
            sock.bind(address)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise why_not(listen, error, option) from None
    return sockets


def _set_up(sock: socket.socket, *, shared: bool) -> None:
    sock.setblocking(False)
    if sock.type == socket.SOCK_STREAM and sys.platform != "win32":  # there it would steal a port in use
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def why_not(listen: Listen, error: OSError, option: str = "--listen") -> SetupError:
    """Return the error that tells why *listen*, given by *option*, can't be opened."""
    return not_opened(listen, error, f"stop it or choose another with {option}")


def files_left() -> int | None:
    """Return how many more files this process may open; None where there is no limit, or nobody tells."""
    try:
        resource = importlib.import_module("resource")
        opened = sum(1 for _ in Path("/dev/fd").iterdir())
    except (ImportError, OSError):  # Windows has no such limit
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else max(0, soft - opened)
