"""Checks of the devices that are to be dialled."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from ...errors import ExprotoError
from ...hosts.gateway import Target
from ...hosts.gateway.dialling import failure
from .finding import Finding, failed, ok
from .reach import look_up, reach
from .setup import Setup

__all__ = ["dials"]

AT_ONCE: Final = 50
"""Targets that are tried at the same time."""


def dials(setup: Setup) -> Iterator[Finding]:
    """See whether each target can be reached as `run --dial` would; nothing is sent to it."""
    if setup.targets:
        yield from asyncio.run(_all(setup))


async def _all(setup: Setup) -> list[Finding]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(target: Target) -> list[Finding]:
        async with places:
            return await _target(setup, target)

    return [finding for each in await asyncio.gather(*map(one, setup.targets)) for finding in each]


async def _target(setup: Setup, target: Target) -> list[Finding]:
    try:
        if setup.app is not None:
            target.routers(setup.app)
        context = target.tls()
        if target.kind.kind is None:
            target.kind.probe(target)
            return [ok("dial.target", f"{target} can be opened")]
    except ExprotoError as error:
        return [failed("dial.target", str(error))]
    if target.kind.kind == socket.SOCK_DGRAM:
        _, finding = await look_up(setup, "dial", target.host, target.port, "--dial")
        found = f"{finding.text}; on UDP only its answers could show more"
        return [finding if finding.outcome == "failed" else ok("dial.dns", f"{target}: {found}")]
    findings, sock = await reach(setup, "dial", target.host, target.port, "--dial")
    if sock is None:
        return findings
    with sock:
        if context is not None:
            findings.append(await _handshake(setup, target, context, sock))
    return findings


async def _handshake(setup: Setup, target: Target, context: ssl.SSLContext, sock: socket.socket) -> Finding:
    name = target.server_name or target.host
    loop = asyncio.get_running_loop()
    made = loop.create_connection(asyncio.Protocol, sock=sock, ssl=context, server_hostname=name)
    try:
        transport, _ = await asyncio.wait_for(made, setup.wait)
    except (OSError, asyncio.TimeoutError) as error:
        remedy = "give ?ca=FILE, ?server-name=NAME or ?verify=0 in its URL, or correct its certificate"
        return failed("dial.tls", f"{target}: {failure(error, setup.wait)[1]}", remedy)
    transport.abort()
    return ok("dial.tls", f"{target}: the TLS handshake succeeds")
