"""The PROXY protocol: the header by itself, and devices behind a load balancer on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import App, Connection
from exproto_app.addresses import AddressLimits, networks
from exproto_app.errors import FramingError, SetupError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Listen, Options
from exproto_app.hosts.gateway.proxy import LIMIT, Proxied, header
from exproto_app.models import Address

from .certificates import Authority, trusting
from .loops import LOOPS, PATIENCE, Run, run_in
from .test_gateway import unclosed_by_old_asyncio

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

DEVICE = Proxied(Address("203.0.113.7", 40000), Address("198.51.100.1", 7993))
DEVICE_6 = Proxied(Address("2001:db8::7", 40000), Address("2001:db8::1", 7993))
V1 = b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 7993\r\n"
V1_6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 7993\r\n"


def v2(device: Proxied, *, tlvs: bytes = b"", command: int = 0x21, family: int | None = None) -> bytes:
    """The header of version 2, as HAProxy writes it."""
    source, destination = (ipaddress.ip_address(end.host) for end in (device.source, device.destination))
    ports = struct.pack("!HH", device.source.port, device.destination.port)
    body = source.packed + destination.packed + ports + tlvs
    kind = (0x11 if source.version == 4 else 0x21) if family is None else family
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def read(data: bytes) -> tuple[Proxied | None, bytes, int]:
    """What the header at the start of *data* tells, the bytes behind it, and how many reads it took."""
    parser = header()
    wanted, taken, reads = next(parser), 0, 0
    while True:
        assert wanted > 0
        if taken + wanted > len(data):
            raise EOFError
        piece, taken, reads = data[taken : taken + wanted], taken + wanted, reads + 1
        assert taken <= LIMIT
        try:
            wanted = parser.send(piece)
        except StopIteration as done:
            return done.value, data[taken:], reads


def addresses(version: int) -> st.SearchStrategy[Address]:
    ips: st.SearchStrategy[Any] = st.ip_addresses(v=4) if version == 4 else st.ip_addresses(v=6)
    plain = ips.filter(lambda ip: version == 4 or ip.ipv4_mapped is None)
    return st.builds(lambda ip, port: Address(str(ip), port), plain, st.integers(0, 65_535))


devices = st.sampled_from((4, 6)).flatmap(
    lambda version: st.builds(Proxied, addresses(version), addresses(version))
)


@given(device=devices, rest=st.binary(max_size=50))
def test_version_1_tells_the_device_in_few_reads_and_leaves_the_rest(device: Proxied, rest: bytes) -> None:
    kind = "TCP6" if ":" in device.source.host else "TCP4"
    ends = f"{device.source.host} {device.destination.host} {device.source.port} {device.destination.port}"
    found, left, reads = read(f"PROXY {kind} {ends}\r\n".encode() + rest)
    assert (found, left) == (device, rest)
    assert reads < 50


@given(device=devices, tlvs=st.binary(max_size=200), rest=st.binary(max_size=50))
def test_version_2_tells_the_device_skips_extensions_and_leaves_the_rest(
    device: Proxied, tlvs: bytes, rest: bytes
) -> None:
    assert read(v2(device, tlvs=tlvs) + rest) == (device, rest, 3)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=120).map(lambda data: b"PROXY TCP4 " + data)))
def test_whatever_comes_is_a_header_an_error_or_unfinished(data: bytes) -> None:
    with contextlib.suppress(FramingError, EOFError):
        read(data)


@given(st.binary(max_size=60).map(lambda data: SIGNATURE + data))
def test_whatever_comes_behind_the_signature_is_a_header_an_error_or_unfinished(data: bytes) -> None:
    with contextlib.suppress(FramingError, EOFError):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 whatever it says 1 2\r\n",
        v2(DEVICE, command=0x20),
        v2(DEVICE, command=0x20, family=0xFF),
        v2(DEVICE, family=0x00),
        SIGNATURE + b"\x20\x00\x00\x00",
        SIGNATURE + b"\x21\x31" + struct.pack("!H", 216) + bytes(216),
    ],
)
def test_a_load_balancer_that_speaks_for_itself(data: bytes) -> None:
    assert read(data + b"hi")[:2] == (None, b"hi")


def test_an_ipv4_address_inside_an_ipv6_one_is_told_as_the_device_has_it() -> None:
    line = b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:198.51.100.1 40000 7993\r\n"
    assert read(line) == (DEVICE, b"", read(line)[2])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "didn't begin with a PROXY header"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n" + bytes(100), "line end in the middle|has more than 107 bytes"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "isn't TCP4, TCP6 or UNKNOWN"),
        (b"PROXY TCP4 1.2.3.4  1.2.3.4 1\r\n", "an invalid address"),
        (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "isn't TCP4, TCP6 or UNKNOWN"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "an invalid address"),
        (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "an invalid address"),
        (b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", "an invalid address"),
        (b"PROXY TCP4 \xff.2.3.4 1.2.3.4 1 2\r\n", "an invalid address"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", "an invalid port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "an invalid port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 x\r\n", "an invalid port"),
        (b"PROXY UNKNOWN\n" + bytes(100), "has more than 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 200, "has more than 107 bytes"),
        (v2(DEVICE, command=0x31), "version and command 0x31"),
        (v2(DEVICE, command=0x22), "version and command 0x22"),
        (v2(DEVICE, family=0x41), "unknown address family 0x41"),
        (v2(DEVICE, family=0x13), "unknown address family 0x13"),
        (v2(DEVICE, family=0x21), "12 bytes of addresses, they need 36"),
        (v2(DEVICE, tlvs=bytes(LIMIT)), f"4124 bytes, limit is {LIMIT}"),
    ],
)
def test_what_is_no_header(data: bytes, words: str) -> None:
    with pytest.raises(FramingError, match=words):
        read(data)


# --- on real sockets


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.live) for name in LOOPS])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test in each kind of loop."""
    return partial(run_in, request.param)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def whoami() -> App:
    """An app that tells how a device is connected."""
    app = App(framing=Line())

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return f"{conn.info.socktype} {conn.info.peername} {conn.info.sockname} ".encode() + frame

    return app


@contextlib.asynccontextmanager
async def behind(
    url: str = "tcp://127.0.0.1:0?proxy-protocol=1", **options: Any
) -> AsyncIterator[tuple[Gateway, Address]]:
    """The gateway behind a load balancer, which is the test."""
    async with Gateway(whoami(), [url], options=Options(**options)) as gateway:
        yield gateway, gateway.addresses[0][2]


async def ask(address: Address, data: bytes) -> bytes:
    """Send *data* in one piece; return the first line of the answer, empty where it is closed."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("head", "ends"),
    [
        (V1, b"203.0.113.7:40000 198.51.100.1:7993"),
        (V1_6, b"[2001:db8::7]:40000 [2001:db8::1]:7993"),
        (v2(DEVICE, tlvs=b"\x04\x00\x01\x00"), b"203.0.113.7:40000 198.51.100.1:7993"),
        (v2(DEVICE_6), b"[2001:db8::7]:40000 [2001:db8::1]:7993"),
    ],
)
def test_a_device_is_told_by_its_own_address(run: Run, head: bytes, ends: bytes) -> None:
    async def test() -> None:
        async with behind() as (_, address):
            assert await ask(address, head + b"hi\n") == b"tcp " + ends + b" hi\n"

    run(test)


def test_a_load_balancer_that_speaks_for_itself_is_told_by_its_address(run: Run) -> None:
    async def test() -> None:
        async with behind() as (_, address):
            for head in (b"PROXY UNKNOWN\r\n", v2(DEVICE, command=0x20)):
                answer = await ask(address, head + b"hi\n")
                assert answer.startswith(b"tcp 127.0.0.1:")
                assert answer.endswith(f" {address} hi\n".encode())

    run(test)


@pytest.mark.parametrize("head", [V1, v2(DEVICE)])
def test_a_header_may_come_cut_anywhere_and_nothing_behind_it_is_lost(run: Run, head: bytes) -> None:
    data = head + b"one\ntwo\n"

    async def device(address: Address, cut: int) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(data[:cut])
        for _ in range(3):
            await asyncio.sleep(0)
        writer.write(data[cut:])
        answers = [await reader.readline(), await reader.readline()]
        assert [line.split()[-1] for line in answers] == [b"one", b"two"]
        writer.close()
        await writer.wait_closed()

    async def test() -> None:
        async with behind() as (_, address):
            for cut in range(1, len(data)):
                await device(address, cut)

    run(test)


def test_a_header_that_comes_byte_by_byte(run: Run) -> None:
    async def test() -> None:
        async with behind() as (_, address):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            for byte in V1 + b"hi\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert await reader.readline() == b"tcp 203.0.113.7:40000 198.51.100.1:7993 hi\n"
            writer.close()
            await writer.wait_closed()

    run(test)


def test_over_ipv6(run: Run) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")

    async def test() -> None:
        async with behind("tcp://[::1]:0?proxy-protocol=1") as (_, address):
            assert (await ask(address, V1_6 + b"hi\n")).startswith(b"tcp [2001:db8::7]:40000 ")
            assert (await ask(address, b"PROXY UNKNOWN\r\nhi\n")).startswith(b"tcp [::1]:")

    run(test)


def dial(address: Address, head: bytes, context: ssl.SSLContext, said: bytes) -> bytes:
    """Connect as a load balancer that passes TLS through: the header in front of the handshake."""
    with socket.create_connection((address.host, address.port), timeout=PATIENCE) as plain:
        plain.sendall(head)
        with context.wrap_socket(plain, server_hostname=address.host) as secure:
            secure.sendall(said)
            return secure.makefile("rb").readline()


@unclosed_by_old_asyncio
@pytest.mark.parametrize("head", [V1, v2(DEVICE)])
def test_the_tls_handshake_comes_after_the_header(run: Run, authority: Authority, head: bytes) -> None:
    url = f"tls://127.0.0.1:0?proxy-protocol=1&cert={authority.issue('server')}"

    async def test() -> None:
        async with behind(url) as (gateway, address):
            answer = await asyncio.to_thread(dial, address, head, trusting(authority), b"hi\n")
            assert answer == b"ssl 203.0.113.7:40000 198.51.100.1:7993 hi\n"
            while gateway.open:  # noqa: ASYNC110 - the gateway tells nobody, and needs no event for it
                await asyncio.sleep(0)

    run(test)


@unclosed_by_old_asyncio
def test_header_and_handshake_and_first_line_in_as_few_packets_as_can_be(
    run: Run, authority: Authority
) -> None:
    """The client's side of TLS is in memory, so that its last flight and its first line are one write."""
    url = f"tls://127.0.0.1:0?proxy-protocol=1&cert={authority.issue('server')}"

    async def test() -> None:
        async with behind(url) as (_, address):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            reader, writer = await asyncio.open_connection(address.host, address.port)
            pending = V1
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(pending + outgoing.read())
                    pending = b""
                    incoming.write(await reader.read(65_536))
            tls.write(b"hi\n")
            writer.write(outgoing.read())
            answer = b""
            while not answer:
                incoming.write(await reader.read(65_536))
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer = tls.read()
            assert answer == b"ssl 203.0.113.7:40000 198.51.100.1:7993 hi\n"
            writer.close()
            await writer.wait_closed()

    run(test)


@unclosed_by_old_asyncio
def test_a_failed_handshake_behind_a_header_costs_nobody_else_anything(
    run: Run, authority: Authority
) -> None:
    url = f"tls://127.0.0.1:0?proxy-protocol=1&cert={authority.issue('server')}&max-connections=1"

    async def test() -> None:
        async with behind(url) as (gateway, address):
            for head in (V1, V1 + b"GET / HTTP/1.0\r\n\r\n", v2(DEVICE) + b"\x16\x03\x01"):
                _, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(head)
                if writer.can_write_eof():
                    writer.write_eof()
                while not gateway.open:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0)
                while gateway.open:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            answer = await asyncio.to_thread(dial, address, V1, trusting(authority), b"hi\n")
            assert answer.startswith(b"ssl 203.0.113.7:40000 ")
            assert gateway.app.stats["connections_opened"] == 1

    run(test)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, it's me, your device\n", "didn't begin with a PROXY header; 12 bytes came: 68 65 6c 6c 6f"),
        (b"PROXY TCP4 x y 1 2\r\nhi\n", "invalid address"),
        (b"PROXY UNKNOWN " + b"x" * 200, "more than 107 bytes"),
        (v2(DEVICE, tlvs=bytes(LIMIT)), "4124 bytes, limit is 4096"),
    ],
)
def test_a_bad_header_is_closed_logged_and_counted(
    run: Run, caplog: pytest.LogCaptureFixture, data: bytes, words: str
) -> None:
    async def test() -> None:
        async with behind() as (gateway, address):
            assert await ask(address, data) == b""
            assert gateway.app.stats["proxy_headers_refused"] == 1
            assert gateway.open == 0
            assert await ask(address, V1 + b"hi\n") != b""
            assert gateway.app.stats["connections_opened"] == 1

    with caplog.at_level(logging.WARNING, "exproto_app"):
        run(test)
    assert words in caplog.text


def test_a_header_that_comes_late_or_never(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with behind(handshake_timeout=0.05) as (gateway, address):
            assert await ask(address, b"PROXY TCP4 1.2") == b""
            assert await ask(address, b"") == b""
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"PRO")
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert gateway.app.stats["proxy_headers_refused"] == 3
            assert gateway.open == 0

    run(test)
    assert "no PROXY header within 0.05 s; 14 bytes came: 50 52 4f 58 59" in caplog.text
    assert "no PROXY header within 0.05 s; 0 bytes came" in caplog.text


def test_a_probe_that_sends_nothing_is_counted_and_no_warning(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with behind() as (gateway, address):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert gateway.app.stats["connections_probed"] == 1
            assert "proxy_headers_refused" not in gateway.app.stats
            assert gateway.open == 0

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)
    assert " ! " not in caplog.text


def test_addresses_are_judged_by_what_the_header_tells(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        limits = AddressLimits(deny=networks(["203.0.113.0/24"], "--deny"), connections=1)
        async with behind(addresses=limits) as (gateway, address):
            assert await ask(address, V1 + b"hi\n") == b""
            assert gateway.app.stats["connections_refused.denied"] == 1
            assert gateway.open == 0
            for _ in range(2):  # one after the other: the place is given back
                assert await ask(address, V1_6 + b"hi\n") != b""

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)
    assert "203.0.113.7:40000 ! connection refused: its network is not allowed" in caplog.text


def test_connections_count_from_the_start_and_the_stop_doesnt_wait_for_a_header(run: Run) -> None:
    async def test() -> None:
        async with behind(max_connections=1) as (gateway, address):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            while not gateway.open:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            assert await ask(address, V1 + b"hi\n") == b""
            assert gateway.app.stats["connections_refused"] == 1
            await gateway.stop()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert gateway.open == 0

    run(test)


def test_which_listeners_demand_it() -> None:
    def demands(url: str, *, everywhere: bool = False) -> bool:
        return Listen.parse(url, proxy_protocol=everywhere).proxy_protocol

    assert demands("tcp://:1?proxy-protocol=1")
    assert demands("tls://:1", everywhere=True)
    assert not demands("tcp://:1")
    assert not demands("tcp://:1?proxy-protocol=0", everywhere=True)
    assert not demands("udp://:1", everywhere=True)
    with pytest.raises(SetupError, match="proxy-protocol is 'yes'; it must be 0 or 1"):
        demands("tcp://:1?proxy-protocol=yes")
    with pytest.raises(SetupError, match="unknown option 'proxy-protocol'"):
        demands("udp://:1?proxy-protocol=1")
