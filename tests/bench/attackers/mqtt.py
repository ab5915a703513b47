"""Hostile MQTT clients, and modems whose bytes come by MQTT."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .base import Attacker, Target, again_and_again, connect, hear, send

__all__ = ["MQTT", "half_open"]


def text(words: bytes) -> bytes:
    return len(words).to_bytes(2, "big") + words


def packet(first: int, body: bytes) -> bytes:
    size, length = len(body), b""
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | (0x80 if size else 0)])
        if not size:
            return bytes([first]) + length + body


def mqtt_connect(name: bytes, password: bytes = b"right", username: bytes = b"dev0") -> bytes:
    flags = b"\x04\xc2\x00\x00"
    return packet(0x10, text(b"MQTT") + flags + text(name) + text(username) + text(password))


def mqtt(act: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> Attacker:
    """Return who logs in at the MQTT listener as a client of any name, and acts."""

    async def attack(target: Target) -> None:
        async def one(sock: socket.socket) -> None:
            await send(sock, mqtt_connect(b"dev0-%d" % random.getrandbits(32)))
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 4), 10)
            await act(sock)

        await again_and_again(target.mqtt, one)

    return attack


async def mqtt_logins(target: Target) -> None:
    """Try wrong passwords, from 20 connections."""

    async def one(sock: socket.socket) -> None:
        await send(sock, mqtt_connect(b"dev0", b"wrong%d" % random.getrandbits(64)))
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 10)

    await asyncio.gather(*(again_and_again(target.mqtt, one) for _ in range(20)))


@mqtt
async def mqtt_deaf(sock: socket.socket) -> None:
    """Subscribe to everything, publish messages of 1 MB, read nothing."""
    await send(sock, packet(0x82, b"\0\1" + text(b"#") + b"\1"))
    while True:
        await send(sock, packet(0x32, text(b"t") + b"\0\2" + bytes(1_000_000)), 5)


@mqtt
async def mqtt_flood(sock: socket.socket) -> None:
    """Publish small messages, as fast as it goes."""
    data = packet(0x30, text(b"t/x") + b"x") * 5_000
    while True:
        await send(sock, data, 5)


@mqtt
async def mqtt_filters(sock: socket.socket) -> None:
    """Subscribe to a thousand filters in one packet, and take them back, again and again."""
    filters = [b"/".join([b"+"] * (number % 50 + 1)) + b"/%d" % number for number in range(1_000)]
    subscribe = packet(0x82, b"\0\1" + b"".join(text(one) + b"\1" for one in filters))
    unsubscribe = packet(0xA2, b"\0\2" + b"".join(map(text, filters)))
    while True:
        await send(sock, subscribe + unsubscribe, 5)


@mqtt
async def mqtt_retained(sock: socket.socket) -> None:
    """Retain many messages, and ask for all of them a thousand times over in one packet."""
    for number in range(2_000):
        await send(sock, packet(0x31, text(b"r/%d" % number) + b"x"))
    while True:
        await send(sock, packet(0x82, b"\0\1" + (text(b"#") + b"\1") * 1_000), 5)


async def half_open(target: Target) -> None:
    """Hold connections to the MQTT listener without a word."""
    held = []
    while True:
        sock = await connect(target.mqtt)
        if sock is not None:
            held.append(sock)
        held = held[-300:]
        await asyncio.sleep(0.005)


def publish(topic: bytes, payload: bytes, *, retain: bool = False) -> bytes:
    return packet(0x30 | retain, text(topic) + payload)


@mqtt
async def mqtt_retained_large(sock: socket.socket) -> None:
    """Retain messages of 1 MB, each of another topic."""
    while True:
        await send(sock, publish(b"large/%d" % random.getrandbits(32), bytes(1_000_000), retain=True), 5)


@mqtt
async def mqtt_levels(sock: socket.socket) -> None:
    """Publish to topics of many levels."""
    topic = b"/".join([b"x"] * 127)
    while True:
        await send(sock, publish(topic, b"") * 200, 10)


@mqtt
async def modems_many(sock: socket.socket) -> None:
    """Speak for ever new modems."""
    while True:
        names = [b"dtu/m%d/up" % random.getrandbits(40) for _ in range(500)]
        await send(sock, b"".join(publish(name, b"hi\n") for name in names), 10)


@mqtt
async def modems_large(sock: socket.socket) -> None:
    """Publish a megabyte for modems that may say 64 KB."""
    while True:
        await send(sock, publish(b"dtu/m%d/up" % random.randrange(100), bytes(1_000_000)), 10)


@mqtt
async def modems_unfinished(sock: socket.socket) -> None:
    """Speak for many modems, 60 KB of a frame each that never ends."""
    while True:
        await send(sock, publish(b"dtu/u%d/up" % random.randrange(5_000), b"x" * 60_000), 10)


@mqtt
async def modems_flood(sock: socket.socket) -> None:
    """Have one modem say 60 KB of lines at a time."""
    while True:
        await send(sock, publish(b"dtu/flood/up", b"\n" * 60_000), 10)


async def log_in(sock: socket.socket) -> None:
    await send(sock, mqtt_connect(b"dev0-%d" % random.getrandbits(32)))
    await hear(sock, 10)


async def deaf_devices(target: Target) -> None:
    """Be devices that ask for messages of 1 MB and read nothing, and who publishes them."""

    async def device(sock: socket.socket) -> None:
        await send(sock, b"subscribe\n")
        await asyncio.sleep(3_600)

    async def publisher(sock: socket.socket) -> None:
        await log_in(sock)
        while True:
            await send(sock, publish(b"deaf/x", random.randbytes(1_000_000)), 5)

    await asyncio.gather(
        again_and_again(target.mqtt, publisher), *(again_and_again(target.deaf, device) for _ in range(20))
    )


async def after(target: Target) -> None:
    """Have devices acknowledged when a subscriber has their records, who never acknowledges any."""

    async def mute(sock: socket.socket) -> None:
        await log_in(sock)
        await send(sock, packet(0x82, b"\0\1" + text(b"after/#") + b"\1"))
        await asyncio.sleep(3_600)

    async def device(sock: socket.socket) -> None:
        while True:
            await send(sock, (b"z" * 1_000 + b"\n") * 60, 3_600)

    await asyncio.gather(
        again_and_again(target.mqtt, mute), *(again_and_again(target.after, device) for _ in range(20))
    )


async def wills(target: Target) -> None:
    """Connect with a will of 60 KB, and break off."""

    async def one(sock: socket.socket) -> None:
        flags = b"\x04\xe6\x00\x00"
        name = b"dev0-w%d" % random.getrandbits(32)
        body = text(b"MQTT") + flags + text(name) + text(b"wills/" + name) + text(bytes(60_000))
        await send(sock, packet(0x10, body + text(b"dev0") + text(b"right")))
        await hear(sock, 5)

    await asyncio.gather(*(again_and_again(target.mqtt, one) for _ in range(20)))


async def takeovers(target: Target) -> None:
    """Take one clientid over again and again."""

    async def one(sock: socket.socket) -> None:
        await send(sock, mqtt_connect(b"dev0"))
        await hear(sock, 5)

    await asyncio.gather(*(again_and_again(target.mqtt, one) for _ in range(20)))


MQTT: Final[dict[str, Attacker]] = {
    "mqtt_logins": mqtt_logins,
    "mqtt_deaf": mqtt_deaf,
    "mqtt_flood": mqtt_flood,
    "mqtt_filters": mqtt_filters,
    "mqtt_retained": mqtt_retained,
    "mqtt_retained_large": mqtt_retained_large,
    "mqtt_half_open": half_open,
    "mqtt_levels": mqtt_levels,
    "mqtt_wills": wills,
    "mqtt_takeovers": takeovers,
    "mqtt_deaf_devices": deaf_devices,
    "mqtt_after": after,
    "modems_many": modems_many,
    "modems_large": modems_large,
    "modems_unfinished": modems_unfinished,
    "modems_flood": modems_flood,
}
