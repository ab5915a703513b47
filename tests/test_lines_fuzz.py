"""Hostile structure for lines: URLs, WebSocket, DTLS, topics of modems, lists of networks, guesses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app import App, Connection
from exproto_app.errors import SetupError
from exproto_app.framing import Line
from exproto_app.guessing import Stream, guess
from exproto_app.hosts.gateway import Gateway, Listen
from exproto_app.hosts.gateway.dtls import HEADER, datagrams, random_of
from exproto_app.hosts.gateway.keys import read_keys
from exproto_app.hosts.gateway.modem_line import Template
from exproto_app.hosts.gateway.renewing import read_networks
from exproto_app.hosts.gateway.targets import Target

from .loops import run_in
from .test_linear import in_proportion, steps
from .test_structure_fuzz import in_one_sentence

# --- URLs

schemes = st.sampled_from(
    ["tcp", "tls", "udp", "dtls", "ws", "wss", "unix", "serial", "mqtt-bytes", "mqtts-bytes"]
)
hosts = st.sampled_from(["", "h:1", "[::1]:2", "u:p@h:3", "h", "h:99999", "h:-1", "[", "\u2603:1", "a b:1"])
paths = st.sampled_from(
    ["", "/", "/dev/ttyUSB0", "/dtu/{id}/up", "/{id}/{id}", "/%00", "/a%2Fb", "/#", "/+", "//"]
)
names = st.sampled_from(
    ["baud", "bits", "parity", "stop", "gap", "rs485", "down", "will", "idle", "qos", "max-message", "mtu",
     "buffer", "mode", "name", "cert", "max-connections", "ping", "text", "subprotocol", "x"]
)  # fmt: skip
values = st.one_of(
    st.sampled_from(
        ["", "0", "1", "-1", "1e9", "9600", "nan", "inf", "even", "{id}", "dtu/{id}/down", "\u0663"]
    ),
    st.text(max_size=4),
)
urls = st.builds(
    lambda protocol, scheme, host, path, options: (
        f"{protocol}{scheme}://{host}{path}"
        + ("?" + "&".join(f"{name}={value}" for name, value in options) if options else "")
    ),
    st.sampled_from(["", "default=", "a,b=", "="]),
    schemes,
    hosts,
    paths,
    st.lists(st.tuples(names, values), max_size=4),
)


@pytest.mark.parametrize("parse", [Listen.parse, Target.parse])
@given(st.one_of(urls, st.text(max_size=30)))
def test_a_url_is_a_line_or_a_sentence(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except SetupError as error:
        in_one_sentence(error)


# --- lists of networks, and keys

texts = st.lists(
    st.one_of(
        st.sampled_from(
            ["10.0.0.0/8", "::1", "#", "10.0.0.1/8", "a:00", "a:0", ":", "a:00\0", "\x0c", "\ufeff"]
        ),
        st.text(max_size=12),
    ),
    max_size=5,
)


@pytest.mark.parametrize("read", [read_networks, read_keys])
@given(st.one_of(texts.map(lambda each: "\n".join(each).encode(errors="replace")), st.binary(max_size=40)))
def test_a_list_is_read_or_a_sentence_tells_its_line(read: Callable[[str, str], object], data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list")
        path.write_bytes(data)
        try:
            read(str(path), "--option")
        except SetupError as error:
            in_one_sentence(error)


# --- modems

topics = st.lists(st.sampled_from(["dtu", "{id}", "up", "", "x/y", "+", "\0", "a" * 300]), max_size=5).map(
    "/".join
)


@given(topics, st.sampled_from(["dtu/{id}/up", "{id}", "{id}/a", "a/{id}"]))
def test_a_topic_is_of_one_modem_or_of_none(topic: str, text: str) -> None:
    template = Template(text)
    name = template.find(topic)
    assert not name or (template.of(name) == topic and "/" not in name)


# --- DTLS

records = st.builds(
    lambda kind, version, epoch, size, body: (
        bytes((kind, version, 0xFD))
        + epoch
        + bytes(6)
        + (len(body) if size is None else size).to_bytes(2, "big")
        + body
    ),
    st.sampled_from([20, 21, 22, 23, 0]),
    st.sampled_from([0xFE, 0x03]),
    st.sampled_from([b"\0\0", b"\0\1"]),
    st.one_of(st.none(), st.none(), st.sampled_from([0, 1, 0xFFFF])),
    st.one_of(st.binary(max_size=20), st.binary(min_size=60, max_size=90).map(lambda body: b"\1" + body)),
)


@given(st.lists(records, max_size=4).map(b"".join), st.integers(1, 2_000))
def test_datagrams_of_dtls_lose_nothing_and_a_hello_has_random_bytes(data: bytes, mtu: int) -> None:
    assert b"".join(datagrams(data, mtu)) == data
    assert len(random_of(data)) in (0, 32)
    if random_of(data):
        assert len(data) >= HEADER + 48


# --- guesses


@settings(deadline=None, max_examples=15)
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6), st.binary(max_size=4))
def test_a_guess_is_made_of_anything(frames: list[bytes], end: bytes) -> None:
    stream = Stream(tuple(frame + end for frame in frames))
    assert guess([stream]) is not None


@settings(deadline=None)
@given(st.sampled_from([b"\x7e", b"\0\1", b"$\n", b"{", b"\x68\x68", b"a,b;\r\n"]))
def test_a_guess_takes_steps_in_proportion(unit: bytes) -> None:
    def cost(size: int) -> int:
        data = (unit * size)[: 8 * size]
        return steps(lambda: guess([Stream((data,))]))

    assert in_proportion(cost)


# --- WebSocket

HELLO = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
frames = st.builds(
    lambda first, mask, size, body: (
        bytes((first, mask | min(125, len(body) if size is None else size)))
        + (bytes(4) if mask else b"")
        + body
    ),
    st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x88, 0x89, 0x8A, 0x83, 0xC1, 0xFF]),
    st.sampled_from([0x80, 0x80, 0x80, 0]),
    st.one_of(st.none(), st.none(), st.sampled_from([0, 125])),
    st.one_of(st.binary(max_size=8), st.just(b"\x03\xe8bye"), st.just(b"\xff\xff\n"), st.just(b"hi\n")),
)
requests = st.one_of(
    st.just(HELLO),
    st.just(HELLO),
    st.builds(
        HELLO.replace,
        st.sampled_from([b"Host: x", b"Upgrade: websocket", b"GET / HTTP/1.1", b"\r\n\r\n", b"13"]),
        st.sampled_from(
            [b"", b"Host: \xff\0", b"GET " + b"/" * 9_000 + b" HTTP/1.1", b"\n", b"X:\r\n\t y", b"12"]
        ),
    ),
    st.binary(max_size=60),
)


@pytest.mark.live
@settings(deadline=None, max_examples=25)
@given(request=requests, said=st.lists(frames, max_size=6), cut=st.integers(1, 200))
def test_a_websocket_may_say_anything_and_harms_nobody(request: bytes, said: list[bytes], cut: int) -> None:
    pytest.importorskip("wsproto")
    app = App(framing=Line())

    @app.on_received
    def echo(conn: Connection, frame: bytes) -> bytes:
        return frame

    async def test() -> None:
        async with Gateway(app, ["ws://127.0.0.1:0", "tcp://127.0.0.1:0"]) as gateway:
            loop = asyncio.get_running_loop()
            address = gateway.addresses[0][2]
            data = request + b"".join(said)
            with socket.socket() as sock, contextlib.suppress(OSError):
                sock.setblocking(False)
                await loop.sock_connect(sock, (address.host, address.port))
                for start in range(0, len(data), cut):
                    await loop.sock_sendall(sock, data[start : start + cut])
                sock.shutdown(socket.SHUT_WR)
                while await asyncio.wait_for(loop.sock_recv(sock, 65_536), 20):
                    pass
            where = gateway.addresses[1][2]
            reader, writer = await asyncio.open_connection(where.host, where.port)
            writer.write(b"good\n")
            assert await reader.readline() == b"good\n"
            writer.close()
            await writer.wait_closed()

    run_in("asyncio", test)
