"""Hostile devices: floods, logins, datagrams, half-open connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from typing import Any, Final

from .base import Attacker, Target, again_and_again, connect, flood, hear, one_by_one, send

__all__ = ["DEVICES"]


async def nobody(target: Target) -> None:
    """Attack nobody: what the machine itself costs."""
    await asyncio.sleep(3_600)


async def logins(target: Target) -> None:
    """Try wrong passwords of a name that is there, 370 a second, and hang up."""
    while True:
        sock = await connect(target.tcp)
        if sock is not None:
            with sock, contextlib.suppress(OSError):
                sock.send(b"login dev0 wrong%d\n" % random.getrandbits(64))
        await asyncio.sleep(1 / 370)


async def logins_held(target: Target) -> None:
    """The same, of many names, waiting for each answer."""

    async def one(sock: socket.socket) -> None:
        sock.send(b"login dev%d wrong%d\n" % (random.randrange(100), random.getrandbits(64)))
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 10)

    await asyncio.gather(*(again_and_again(target.tcp, one) for _ in range(50)))


async def udp_peers(target: Target) -> None:
    """Send a datagram each from ever new ports."""
    while True:
        for _ in range(50):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                sock.sendto(b"x\n", ("127.0.0.1", target.udp))
        await asyncio.sleep(0.01)


def udp_flood(unit: bytes, name: str) -> Attacker:
    """Return who sends large datagrams of *unit*, as fast as it goes."""

    async def attack(target: Target) -> None:
        data = (unit * 60_000)[:60_000]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            while True:
                for _ in range(10):
                    with contextlib.suppress(OSError):
                        sock.sendto(data, ("127.0.0.1", getattr(target, name)))
                await asyncio.sleep(0.005)

    return attack


async def half_open(target: Target) -> None:
    """Hold 3,000 connections: TCP without a word, TLS without and with the start of a handshake."""
    held = []
    for number in range(3_000):
        port = target.tls if number % 3 else target.tcp
        sock = await connect(port)
        if sock is not None:
            held.append(sock)
            if number % 3 == 1:
                with contextlib.suppress(OSError):
                    sock.send(b"\x16\x03\x01\x02\x00")
        if number % 20 == 0:
            await asyncio.sleep(0.005)
    await asyncio.sleep(3_600)


def client_hello() -> bytes:
    """Return how a TLS handshake begins."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


async def handshakes(target: Target) -> None:
    """Begin TLS handshakes that have the server sign, and end none; 50 at a time, each for a second."""
    hello = client_hello()

    async def one(sock: socket.socket) -> None:
        sock.send(hello)
        await asyncio.sleep(1)

    await asyncio.gather(*(again_and_again(target.tls, one) for _ in range(50)))


async def handshakes_whole(target: Target) -> None:
    """Have TLS handshakes from 50 connections, and hang up."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def again() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                opened = asyncio.open_connection("127.0.0.1", target.tls, ssl=context)
                _, writer = await asyncio.wait_for(opened, 10)
                writer.transport.abort()
            await asyncio.sleep(0.01)

    await asyncio.gather(*(again() for _ in range(50)))


def proxy_header(extensions: int) -> bytes:
    """Return a PROXY header, version 2, with so many bytes of extensions (TLVs)."""
    addresses = b"\xc0\0\2" + bytes([random.randrange(256)]) + b"\x7f\0\0\1" + b"\1\2\3\4"
    tlv = b"\xe0" + max(0, extensions - 3).to_bytes(2, "big") + bytes(max(0, extensions - 3))
    size = (len(addresses) + extensions).to_bytes(2, "big")
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + size + addresses + tlv[:extensions]


async def proxy_unfinished(target: Target) -> None:
    """Hold PROXY headers of 4 KB of which the last byte is missing, 200 of them at a time."""

    async def one(sock: socket.socket) -> None:
        await send(sock, proxy_header(4_000)[:-1])
        await hear(sock, 3_600)

    await asyncio.gather(*(again_and_again(target.proxied, one) for _ in range(200)))


async def proxy_headers(target: Target) -> None:
    """Claim an address in a long PROXY header, and hang up."""

    async def one(sock: socket.socket) -> None:
        await send(sock, proxy_header(4_000))

    await asyncio.gather(*(again_and_again(target.proxied, one) for _ in range(20)))


async def proxy_handshakes(target: Target) -> None:
    """Begin TLS handshakes behind PROXY headers of ever new addresses, and end none."""
    hello = client_hello()

    async def one(sock: socket.socket) -> None:
        await send(sock, proxy_header(0) + hello)
        await asyncio.sleep(1)

    await asyncio.gather(*(again_and_again(target.proxied_tls, one) for _ in range(50)))


async def single_bytes(target: Target) -> None:
    """Say a line that takes its time, and then byte after byte, on 100 connections."""

    async def one(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await send(sock, b"x\n")
        for _ in range(30_000):
            await send(sock, b"x")
            await asyncio.sleep(0)

    await asyncio.gather(*(again_and_again(target.slow, one) for _ in range(100)))


async def udp_empty(target: Target) -> None:
    """Have a UDP peer wait, and send empty datagrams meanwhile."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(20)]
        for sock in socks:
            sock.connect(("127.0.0.1", target.slow_udp))
            sock.setblocking(False)
            sock.send(b"x\n")
        while True:
            for sock in socks:
                for _ in range(20):
                    with contextlib.suppress(OSError):
                        sock.send(b"")
            await asyncio.sleep(0.005)


async def names_judged(target: Target) -> None:
    """Log in by ever new names, from 200 connections, at an `on_login` that takes 50 ms of a thread."""

    async def one(sock: socket.socket) -> None:
        sock.send(b"login n%d wrong\n" % random.getrandbits(40))
        await hear(sock, 10)

    await asyncio.gather(*(again_and_again(target.judged, one) for _ in range(200)))


def dtls_client(target: Target) -> tuple[socket.socket, Any] | None:
    """Return a socket and a session of pyOpenSSL; None where that isn't installed."""
    try:
        from OpenSSL import SSL  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect(("127.0.0.1", target.dtls_udp))
    tls = SSL.Connection(SSL.Context(SSL.DTLS_METHOD))
    tls.set_connect_state()
    tls.set_ciphertext_mtu(1_400)
    return sock, tls


def step(sock: socket.socket, tls: Any) -> None:
    """Have the handshake go on, and send what comes of it."""
    with contextlib.suppress(Exception):
        tls.do_handshake()
    with contextlib.suppress(Exception):
        sock.send(tls.bio_read(65_536))


async def dtls_hellos(target: Target) -> None:
    """Say how a DTLS handshake begins, and nothing more, as fast as it goes."""
    client = dtls_client(target)
    if client is None:
        return
    sock, tls = client
    with sock:
        with contextlib.suppress(Exception):
            tls.do_handshake()
        hello = tls.bio_read(65_536)
        while True:
            for _ in range(20):
                with contextlib.suppress(OSError):
                    sock.send(hello)
            await asyncio.sleep(0.005)


async def dtls_handshakes(target: Target) -> None:
    """Begin DTLS handshakes with their cookie, so that the server signs, and end none; 20 at a time."""

    async def again() -> None:
        while (client := dtls_client(target)) is not None:
            sock, tls = client
            with sock, contextlib.suppress(OSError, asyncio.TimeoutError):
                step(sock, tls)
                tls.bio_write(await hear(sock, 2))
                step(sock, tls)
                await hear(sock, 2)

    await asyncio.gather(*(again() for _ in range(20)))


async def connects(target: Target) -> None:
    """Connect and hang up, as fast as it goes."""
    while True:
        sock = await connect(target.tcp)
        if sock is not None:
            sock.close()


async def small_reads(target: Target) -> None:
    """Send a few lines a thousand times a second, reading the answers."""

    async def one(sock: socket.socket) -> None:
        while True:
            await send(sock, b"x\n" * 15)
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 65_536), 5)

    await asyncio.gather(*(again_and_again(target.tcp, one) for _ in range(5)))


async def half_frames(target: Target) -> None:
    """Hold 100 connections, each with 60 KB of a frame that never ends, one more each 50 ms."""

    async def one(sock: socket.socket) -> None:
        await send(sock, b"x" * 60_000, 10)
        await hear(sock, 3_600)

    await one_by_one(target.tcp, one)


async def logins_judged(target: Target) -> None:
    """Try wrong passwords of one name at an `on_login` that takes 50 ms of a thread, and wait for answers."""

    async def one(sock: socket.socket) -> None:
        sock.send(b"login dev0 wrong\n")
        await hear(sock, 10)

    await asyncio.gather(*(again_and_again(target.judged, one) for _ in range(50)))


async def children(target: Target) -> None:
    """Name 5,000 devices behind one line, and hang up."""

    async def one(sock: socket.socket) -> None:
        name = random.getrandbits(32)
        for start in range(0, 5_000, 500):
            await send(sock, b"".join(b"c%d-%d\n" % (name, start + number) for number in range(500)), 20)
        await send(sock, b"end\n")
        await hear(sock)

    await again_and_again(target.lines, one)


async def unread_answers(target: Target) -> None:
    """Hold 100 connections that have their lines answered and read nothing, one more each 50 ms."""

    async def one(sock: socket.socket) -> None:
        while True:
            await send(sock, (b"y" * 60_000 + b"\n") * 4, 3_600)

    await one_by_one(target.tcp, one)


DEVICES: Final[dict[str, Attacker]] = {
    "nobody": nobody,
    "logins": logins,
    "logins_held": logins_held,
    "logins_judged": logins_judged,
    "udp_peers": udp_peers,
    "udp_gt06": udp_flood(b"\x78", "gt06_udp"),
    "udp_lines": udp_flood(b"\n", "udp"),
    "half_open": half_open,
    "handshakes": handshakes,
    "handshakes_whole": handshakes_whole,
    "proxy_unfinished": proxy_unfinished,
    "proxy_headers": proxy_headers,
    "proxy_handshakes": proxy_handshakes,
    "single_bytes": single_bytes,
    "udp_empty": udp_empty,
    "names_judged": names_judged,
    "dtls_hellos": dtls_hellos,
    "dtls_handshakes": dtls_handshakes,
    "connects": connects,
    "small_reads": small_reads,
    "half_frames": half_frames,
    "unread_answers": unread_answers,
    "children": children,
    "flood_echo": flood("tcp", b"\n"),
    "flood_jt808": flood("jt808", b"\x7e\x00"),
    "flood_gt06": flood("gt06", b"\x78"),
    "flood_nmea": flood("nmea", b"$\n"),
    "flood_modbus": flood("modbus", b"\x05\x06"),
    "flood_kept": flood("kept", b"\x7e\x7d\x00\x7e"),
    "flood_no_end": flood("tcp", b"x", chunk=1_000),
    "flood_json_deep": flood("json", b"["),
    "flood_json_closing": flood("json", b"}"),
    "flood_json_quotes": flood("json", b'{"\\"'),
    "flood_skip": flood("skip", b"\xfe"),
    "flood_skip_starts": flood("skip", b"\xfe\x68"),
    "flood_several": flood("several", b";\r\n"),
    "flood_behind": flood("behind", b"\x02a\x03"),
    "flood_counted": flood("counted", b"\0\0"),
    "flood_errors": flood("errors", b"x\n"),
    "flood_fatal": flood("fatal", b"x\n"),
    "flood_unix": flood("unix", b"\n"),
}
