"""Checks of the addresses that are to be listened on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from ...errors import ExprotoError, SetupError
from ...hosts.gateway import Listen
from ...hosts.gateway.sockets import bind, release
from ...models import Address, Limits, is_loopback
from ...ops.certificates import validity
from .finding import Finding, failed, ok, skipped
from .setup import Setup

__all__ = ["is_free", "owner", "ports"]

SOON: Final = 30
"""Days before a certificate's end from which on the doctor tells of it."""

RENEW: Final = "renew it; run reads it again when it has changed"

STREAM: Final = ("tcp", "tcp6")
DATAGRAM: Final = ("udp", "udp6")
TABLES: Final = {
    **dict.fromkeys(("tcp", "tls", "ws", "wss"), STREAM),
    **dict.fromkeys(("udp", "dtls"), DATAGRAM),
}
LISTENS: Final = {scheme: "0A" if tables is STREAM else "07" for scheme, tables in TABLES.items()}
"""States of a socket that others can reach, in the kernel's tables (include/net/tcp_states.h)."""


def ports(setup: Setup) -> Iterator[Finding]:
    """See whether each listener, and the service's address, could be opened, and who has it if not."""
    if not setup.listens and not setup.targets and setup.gateway is None:
        yield skipped("ports", "nothing to listen on: no --listen, no --serve")
    for listen in setup.listens:
        yield _listener(setup, listen)
    if setup.gateway is not None:
        address = setup.gateway.bind
        problem = is_free(address)
        advice = "EMQX can't reach 127.0.0.1 in this container; use --bind 0.0.0.0:9001"
        shown = advice if setup.container and is_loopback(address.host) else ""
        trouble, soon = _certificate(setup.gateway.tls.cert if setup.gateway.tls else None)
        if problem:
            yield failed("ports.bind", problem, _who("tcp", address.port))
        elif trouble:
            yield failed("ports.bind", f"--bind {address}: {trouble}", RENEW)
        else:
            yield ok("ports.bind", f"{address} is free", "; ".join(filter(None, (soon, shown))))
    if setup.uplink is not None and setup.uplink.cert and Path(setup.uplink.cert).is_file():
        trouble, soon = _certificate(setup.uplink.cert)
        if trouble:
            yield failed("ports.mqtt-cert", f"--mqtt-cert: {trouble}", RENEW)
        else:
            yield ok("ports.mqtt-cert", f"--mqtt-cert {setup.uplink.cert} is valid", soon)


def _listener(setup: Setup, listen: Listen) -> Finding:
    try:
        if setup.app is not None:
            listen.routers(setup.app)
        listen.tls()
        if listen.kind.kind is None:
            listen.kind.probe(listen)
        for sock in bind(listen):
            release(listen)
            sock.close()
    except ExprotoError as error:
        who = _who(listen.scheme, listen.port) if "another program" in str(error) else ""
        return failed("ports.listen", str(error), who)
    trouble, soon = _certificate(listen.cert if listen.kind.tls else None)
    if trouble:
        return failed("ports.listen", f"{listen}: {trouble}", RENEW)
    advice = [soon] if soon else []
    if setup.container and is_loopback(listen.host):
        advice.append(f"devices can't reach {listen.host} in this container; listen on 0.0.0.0")
    if listen.kind.datagrams and setup.app is not None:
        advice.append(_idle(setup.app.limits))
    found = "can be opened" if listen.kind.kind is None else "is free"
    return ok("ports.listen", f"{listen} {found}", "; ".join(advice))


def _certificate(cert: str | None) -> tuple[str, str]:
    """Return what is wrong with the certificates in *cert*, and what is soon going to be."""
    now = datetime.now(timezone.utc)
    soon = ""
    for each in validity(cert) if cert else ():
        if trouble := each.trouble(now):
            return f"the certificate {cert}: {trouble}", ""
        if each.days(now) < SOON and not soon:
            soon = (
                f"the certificate {cert} expires in {each.days(now)} days, on {each.ends:%Y-%m-%d}; renew it"
            )
    return "", soon


def _idle(limits: Limits) -> str:
    return (
        f"on UDP a device that is silent for {limits.datagram_idle:g} s counts as gone, unless a handler "
        "calls conn.start_timer or --datagram-idle says more"
    )


def is_free(address: Address) -> str:
    """Return why *address* can't be opened for TCP, nothing if it can."""
    listen = Listen(scheme="tcp", host=address.host, port=address.port)
    try:
        for sock in bind(listen, "--bind"):
            sock.close()
    except SetupError as error:
        return str(error).replace(str(listen), str(address))
    return ""


def _who(scheme: str, port: int) -> str:
    found = owner(scheme, port)
    return f"it is {found}" if found else ""


def owner(scheme: str, port: int, proc: Path = Path("/proc")) -> str:
    """Return which program has *port*, as far as this user may know; nothing where that isn't told."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(scheme, port, proc)}
    if not inodes:
        return ""
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(handle.readlink()) in inodes:
                        return f"{(process / 'comm').read_text().strip()}, process {process.name}"
    return "a program of another user, or of another container"


def _inodes(scheme: str, port: int, proc: Path) -> Iterator[str]:
    for table in TABLES.get(scheme, ()):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS[scheme] and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]
