"""Hostile peers on WebSocket, and targets that the gateway dials."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .base import FLOOD, Attacker, Target, again_and_again, hear, one_by_one, send

__all__ = ["LINES"]

REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(first: int, payload: bytes = b"", size: int | None = None) -> bytes:
    """Return a frame of a client, whose mask is zero; *size* is what it says."""
    length = len(payload) if size is None else size
    if length < 126:
        head = bytes((first, 0x80 | length))
    elif length < 65_536:
        head = bytes((first, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


def websocket(data: bytes) -> Attacker:
    """Return who opens a WebSocket, and sends *data* again and again, reading nothing."""

    async def attack(target: Target) -> None:
        async def one(sock: socket.socket) -> None:
            await send(sock, REQUEST)
            await hear(sock)
            for _ in range(FLOOD // len(data) + 1):
                await send(sock, data, 10)

        await again_and_again(target.ws, one)

    return attack


async def ws_slow(target: Target) -> None:
    """Ask for WebSockets a byte a second, on 300 connections."""

    async def one(sock: socket.socket) -> None:
        for byte in REQUEST:
            sock.send(bytes([byte]))
            await asyncio.sleep(1)

    await asyncio.gather(*(again_and_again(target.ws, one) for _ in range(300)))


async def ws_unfinished(target: Target) -> None:
    """Hold 100 WebSockets, each with 1 MB of a message that never ends, one more each 50 ms."""

    async def one(sock: socket.socket) -> None:
        await send(sock, REQUEST)
        await hear(sock)
        await send(sock, frame(0x02, bytes(60_000)) + frame(0, bytes(60_000)) * 15, 20)
        await hear(sock, 3_600)

    await one_by_one(target.ws, one)


def listener(act: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> Attacker:
    """Return a device that waits to be called, and acts."""

    async def serve(called: socket.socket) -> None:
        with called, contextlib.suppress(OSError, asyncio.TimeoutError):
            called.setblocking(False)
            await act(called)

    async def attack(target: Target) -> None:
        loop = asyncio.get_running_loop()
        tasks = set()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("", target.dialled))
            sock.listen(100)
            sock.setblocking(False)
            while True:
                called, _ = await loop.sock_accept(sock)
                task = loop.create_task(serve(called))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    return attack


@listener
async def dialled_flood(sock: socket.socket) -> None:
    """Flood whoever calls."""
    while True:
        await send(sock, b"\n" * 65_536, 10)


@listener
async def dialled_hang_up(sock: socket.socket) -> None:
    """Hang up on whoever calls."""


@listener
async def dialled_garbage(sock: socket.socket) -> None:
    """Say what is no frame to whoever calls, for ever."""
    while True:
        await send(sock, b"x" * 65_536, 10)


LINES: Final[dict[str, Attacker]] = {
    "ws_pings": websocket(frame(0x89) * 5_000),
    "ws_large_pings": websocket(frame(0x89, bytes(125)) * 500),
    "ws_pongs": websocket(frame(0x8A) * 5_000),
    "ws_fragments": websocket(frame(0x02, b"x") + frame(0x00, b"x") * 5_000 + frame(0x80, b"\n")),
    "ws_empty_fragments": websocket(frame(0x02) + frame(0x00) * 5_000 + frame(0x80)),
    "ws_messages": websocket(frame(0x82, b"\n") * 5_000),
    "ws_huge": websocket(frame(0x82, b"x" * 65_536, 1 << 62)),
    "ws_text": websocket(frame(0x81, "\u00e9".encode() * 30_000 + b"\n")),
    "ws_slow": ws_slow,
    "ws_unfinished": ws_unfinished,
    "dialled_flood": dialled_flood,
    "dialled_hang_up": dialled_hang_up,
    "dialled_garbage": dialled_garbage,
}
