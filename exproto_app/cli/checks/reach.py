"""What checks over the network have in common: names and connections, bounded in time."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from ...asyncio_host.resolving import Found, Resolver
from ...models import Address, is_loopback
from .finding import Finding, failed, ok
from .setup import Setup

__all__ = ["look_up", "reach"]


async def reach(
    setup: Setup, check: str, host: str, port: int, option: str
) -> tuple[list[Finding], socket.socket | None]:
    """Look *host* up and connect; return what was found, and the socket if it came to that."""
    where = Address(host, port)
    addresses, finding = await look_up(setup, check, host, port, option)
    findings = [finding]
    if not addresses:
        return findings, None
    loop = asyncio.get_running_loop()
    began = loop.time()
    sock, why = await _connect(addresses, setup.wait)
    if sock is None:
        advice = _advice(setup, host, option, why)
        findings.append(failed(f"{check}.tcp", f"{where} can't be reached: {why}", advice))
    else:
        findings.append(ok(f"{check}.tcp", f"{where} accepts connections", seconds=loop.time() - began))
    return findings, sock


async def look_up(setup: Setup, check: str, host: str, port: int, option: str) -> tuple[list[Found], Finding]:
    """Look *host* up; return its addresses, and what was found."""
    try:
        addresses = await asyncio.wait_for(Resolver().resolve(host, port), setup.wait)
    except OSError:
        return [], failed(f"{check}.dns", f"unknown host {host!r}", f"correct its name in {option}")
    except asyncio.TimeoutError:
        words = f"looking up {host!r} gives no answer within {setup.wait:g} s"
        remedy = f"check this machine's DNS, or give {option} an IP address"
        return [], failed(f"{check}.dns", words, remedy)
    found = ", ".join(dict.fromkeys(str(address[0]) for _, address in addresses))
    return addresses, ok(f"{check}.dns", f"{host} is {'an address' if found == host else found}")


async def _connect(addresses: list[tuple[int, Any]], wait: float) -> tuple[socket.socket | None, str]:
    """Connect to the first of *addresses* that takes it, within *wait* seconds; else tell why not."""
    loop = asyncio.get_running_loop()
    until, why = loop.time() + wait, ""
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.wait_for(loop.sock_connect(sock, address), max(0.0, until - loop.time()))
        except asyncio.TimeoutError:
            why = f"no answer within {wait:g} s"
        except OSError as error:
            why = os.strerror(error.errno).lower() if error.errno else str(error)
        else:
            return sock, ""
        sock.close()
    return None, why


def _advice(setup: Setup, host: str, option: str, why: str) -> str:
    if setup.container and is_loopback(host):
        return f"{host} is this container itself; give {option} the other container's or the host's name"
    if "no answer" in why:
        return f"the host is down, a firewall drops what comes, or the program hangs; else correct {option}"
    return f"start it, or correct {option}"
