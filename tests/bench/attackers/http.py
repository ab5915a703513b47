"""Hostile clients of the inspector and of the probes."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from .base import Attacker, Target, again_and_again, hear, send

__all__ = ["HTTP"]


def slow_http(name: str, head: bytes) -> Attacker:
    """Return who asks a byte a second, from 16 connections; they come back at once where they are closed."""

    async def attack(target: Target) -> None:
        async def one(sock: socket.socket) -> None:
            for byte in head + b"x" * 1_000:
                sock.send(bytes([byte]))
                await asyncio.sleep(1)

        await asyncio.gather(*(again_and_again(getattr(target, name), one) for _ in range(16)))

    return attack


async def inspector_bodies(target: Target) -> None:
    """Post megabytes to the inspector."""
    head = b"POST /api/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000000\r\n\r\n"

    async def one(sock: socket.socket) -> None:
        await send(sock, head)
        for _ in range(100):
            await send(sock, b"/*a" * 20_000)

    await again_and_again(target.inspector, one)


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def requests(data: bytes) -> Attacker:
    """Return who asks the inspector for the same again and again."""

    async def attack(target: Target) -> None:
        async def one(sock: socket.socket) -> None:
            while True:
                await send(sock, data, 20)
                await hear(sock, 20)

        await again_and_again(target.inspector, one)

    return attack


def asked(path: str, number: int) -> Attacker:
    """Return who asks for *path*, so many times without waiting for an answer."""
    return requests(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() * number)


TEXT: Final = b'{"topic": "t", "text": "' + b"\\\\n" * 900_000 + b'"}'
ARRAY: Final = b'{"topic": "t", "text": [' + b"0," * 1_800_000 + b"0]}"
DEEP: Final = b'{"topic": ' + b"[" * 3_000_000 + b"}"
LOGIN: Final = b'{"token": [' + b"0," * 1_800_000 + b"0]}"
HEX: Final = b'{"topic": "t", "hex": "' + b"0x00, " * 600_000 + b'"}'

HTTP: Final[dict[str, Attacker]] = {
    "slow_health": slow_http("health", b"GET /healthz HTTP/1.1\r\n"),
    "slow_metrics": slow_http("health", b"GET /metrics HTTP/1.1\r\n"),
    "slow_inspector": slow_http("inspector", b"GET /api/state HTTP/1.1\r\n"),
    "inspector_bodies": inspector_bodies,
    "inspector_text": requests(post("/api/publish", TEXT)),
    "inspector_array": requests(post("/api/publish", ARRAY)),
    "inspector_deep": requests(post("/api/publish", DEEP)),
    "inspector_hex": requests(post("/api/publish", HEX)),
    "inspector_login": requests(post("/api/login", LOGIN)),
    "inspector_tables": asked("/api/connections?search=x", 20),
    "inspector_find": asked("/api/connections/none", 50),
}
