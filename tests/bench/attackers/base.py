"""What attackers have in common: where their target listens, connecting, sending, coming again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

import attrs

__all__ = ["FLOOD", "Attacker", "Target", "again_and_again", "connect", "flood", "hear", "one_by_one", "send"]

FLOOD: Final = 6_000_000
"""Bytes that a flood sends before it hangs up."""


@attrs.frozen
class Target:
    """Where a server listens: its ports, 0 where it doesn't. *dialled*: where it looks for a device."""

    tcp: int = 0
    udp: int = 0
    tls: int = 0
    health: int = 0
    inspector: int = 0
    mqtt: int = 0
    jt808: int = 0
    gt06: int = 0
    nmea: int = 0
    modbus: int = 0
    kept: int = 0
    gt06_udp: int = 0
    json: int = 0
    skip: int = 0
    several: int = 0
    behind: int = 0
    counted: int = 0
    judged: int = 0
    lines: int = 0
    errors: int = 0
    fatal: int = 0
    deaf: int = 0
    after: int = 0
    ws: int = 0
    proxied: int = 0
    proxied_tls: int = 0
    slow: int = 0
    slow_udp: int = 0
    dtls_udp: int = 0
    unix: int = 0
    dialled: int = 0
    grpc: int = 0

    @property
    def unix_path(self) -> str:
        """The path of the Unix socket, which has a number like the others."""
        return f"/tmp/exproto-app-bench-{self.unix}.sock"


Attacker = Callable[[Target], Coroutine[Any, Any, None]]


async def connect(where: int | str) -> socket.socket | None:
    """Return a connection to *where*, a port or a path; None where there is none, or no file left for it."""
    address = where if isinstance(where, str) else ("127.0.0.1", where)
    try:
        sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    except OSError:
        await asyncio.sleep(0.01)
        return None
    sock.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # it is the target that is measured, not the kernel
        sock.setsockopt(socket.SOL_SOCKET, option, 65_536)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, address), 5)
    except (OSError, asyncio.TimeoutError):
        sock.close()
        return None
    return sock


async def send(sock: socket.socket, data: bytes, seconds: float = 2.0) -> None:
    """Send *data*. Raises `OSError` or `asyncio.TimeoutError`."""
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), seconds)


async def again_and_again(
    where: int | str, act: Callable[[socket.socket], Coroutine[Any, Any, None]]
) -> None:
    """Connect, *act*, hang up, and come again."""
    while True:
        sock = await connect(where)
        if sock is None:
            await asyncio.sleep(0.1)
            continue
        with sock, contextlib.suppress(OSError, asyncio.TimeoutError):
            await act(sock)
        await asyncio.sleep(0.01)


async def one_by_one(where: int | str, act: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
    """Do so on 100 connections, of which one more begins each 50 ms."""
    tasks = []
    for _ in range(100):
        tasks.append(asyncio.ensure_future(again_and_again(where, act)))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)


async def hear(sock: socket.socket, seconds: float = 5.0) -> bytes:
    """Return what comes next. Raises `OSError` or `asyncio.TimeoutError`."""
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 65_536), seconds)


def flood(name: str, unit: bytes, *, chunk: int = 65_536) -> Attacker:
    """Return who sends 6 MB of *unit* in two seconds at most, hangs up, and comes again."""

    async def attack(target: Target) -> None:
        piece = unit * (chunk // len(unit))

        async def one(sock: socket.socket) -> None:
            for _ in range(FLOOD // len(piece)):
                await send(sock, piece)

        await again_and_again(target.unix_path if name == "unix" else getattr(target, name), one)

    return attack
