"""The sockets of a listener, bound before anybody serves them."""

from __future__ import annotations

import contextlib
import importlib
import socket
import stat
import sys
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import SetupError, not_opened
from .listeners import Listen

__all__ = ["bind", "files_left", "release", "share", "share_again", "why_not"]

Bound: TypeAlias = tuple[int, Any]
"""A family of addresses, and an address as its sockets have it."""


def bind(listen: Listen, option: str = "--listen") -> list[socket.socket]:
    """Return a socket, bound and not yet listening, for each address that *listen*, given by *option*, means.

    Raises `SetupError` for what can't be opened.
    """
    if listen.kind.unix:
        return [_bind_file(listen, option)]
    return _bind(listen, _addresses(listen), shared=False, option=option)


def release(listen: Listen) -> None:
    """Remove the file of a Unix socket, while it is still open, so that nobody else's is removed."""
    if listen.kind.unix:
        with contextlib.suppress(OSError):
            Path(listen.path).unlink()


def share(listen: Listen, count: int) -> list[list[socket.socket]]:
    """Bind *listen* *count* times over; the kernel spreads the devices over the sockets (`SO_REUSEPORT`).

    A port 0 is chosen once. Raises `SetupError`, for a port that somebody else shares too.
    """
    if listen.kind.unix:  # it has one queue, from which each takes
        sock = _bind_file(listen, "--listen")
        return [[sock], *([sock.dup()] for _ in range(count - 1))]
    # Sockets that share don't see others that do so, of a gateway that is already running for example.
    probes = bind(listen)
    addresses: list[Bound] = [(probe.family, probe.getsockname()) for probe in probes]
    for probe in probes:
        probe.close()
    return [_bind(listen, addresses, shared=True) for _ in range(count)]


def share_again(family: int, kind: int, address: Any) -> socket.socket:
    """Open a socket for an *address* that others share once more. Raises `OSError`.

    One for datagrams gets its part of them as soon as it is bound, so that is for whoever reads them to do.
    """
    sock = socket.socket(family, kind)
    try:
        _set_up(sock, shared=True)
        if kind != socket.SOCK_DGRAM:
            sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _addresses(listen: Listen) -> list[Bound]:
    kind = listen.kind.kind
    if kind is None:
        return []
    try:
        infos = socket.getaddrinfo(listen.host or None, listen.port, type=kind, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise SetupError(
            f"{listen} can't be opened: the host name {listen.host!r} can't be resolved"
        ) from None
    addresses: list[Bound] = list(dict.fromkeys((int(info[0]), info[4]) for info in infos))
    # A datagram is answered from one address; a name may stand for several.
    return addresses[:1] if listen.kind.datagrams and listen.host else addresses


def _bind(
    listen: Listen, addresses: list[Bound], *, shared: bool, option: str = "--listen"
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            try:
                sock = socket.socket(family, listen.kind.kind or socket.SOCK_STREAM)
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


def _bind_file(listen: Listen, option: str) -> socket.socket:
    """Return a Unix socket, bound in place of one that a process has left behind."""
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise SetupError(f"{listen} can't be opened: this system has no Unix sockets")
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        _clear(sock, listen, option)
        sock.bind(listen.path)
        if listen.mode is not None:  # nobody can connect before it listens
            Path(listen.path).chmod(listen.mode)
    except OSError as error:
        sock.close()
        raise why_not(listen, error, option) from None
    except SetupError:
        sock.close()
        raise
    return sock


def _clear(sock: socket.socket, listen: Listen, option: str) -> None:
    """Remove the file of a Unix socket on which nobody listens any more."""
    path = Path(listen.path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        words = f"{path} exists and isn't a socket; remove it, or choose another with {option}"
        raise SetupError(f"{listen} can't be opened: {words}")
    with contextlib.closing(socket.socket(sock.family, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(listen.path)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full
            pass
    words = f"another program listens there; stop it or choose another with {option}"
    raise SetupError(f"{listen} can't be opened: {words}")


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
