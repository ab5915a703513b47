"""What only real sockets show: TLS, IPv6, limits, storms, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from exproto_app import App, Connection, Limits
from exproto_app.core.calls import Call
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Listen, Options
from exproto_app.hub import MemoryHub

from .certificates import Authority, trusting

pytestmark = pytest.mark.live

PATIENCE = 60


def whoami(**options: Any) -> App:
    """An app that tells how a device is connected, and remembers the ends."""
    app = App(framing=Line(), **options)

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        cert = conn.info.peercert
        words = [conn.info.socktype, conn.info.peername.host, f"{cert.cn} {cert.dn}" if cert else "-"]
        return " ".join(words).encode() + b" " + frame

    return app


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def connected(
    gateway: Gateway, number: int = 0, **options: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = gateway.addresses[number][2]
    reader, writer = await asyncio.open_connection(address.host, address.port, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# A handshake that fails, or a device that hangs up, leaves its transport unclosed there.
unclosed_by_old_asyncio = pytest.mark.filterwarnings(
    *(["ignore::pytest.PytestUnraisableExceptionWarning"] if sys.version_info < (3, 11) else ["error"])
)


@unclosed_by_old_asyncio
def test_tls(authority: Authority) -> None:
    server = str(authority.issue("server"))
    listen = Listen.parse("tls://127.0.0.1:0", cert=server)

    async def test() -> None:
        async with Gateway(whoami(), [listen]) as gateway:
            async with connected(gateway, ssl=trusting(authority)) as (reader, writer):
                writer.write(b"hi\n")
                assert await reader.readline() == b"ssl 127.0.0.1 - hi\n"
            # Somebody who speaks no TLS costs nobody else anything.
            async with connected(gateway) as (reader, writer):
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                assert await reader.read() in (b"", b"\x15\x03\x01\x00\x02\x02\x46")
            async with connected(gateway, ssl=trusting(authority)) as (reader, writer):
                writer.write(b"again\n")
                assert await reader.readline() == b"ssl 127.0.0.1 - again\n"

    run(test)


@unclosed_by_old_asyncio
def test_the_first_bytes_tell_the_protocol_through_tls_too(authority: Authority) -> None:
    app = App()
    app.protocol("long", sniff=b"ab").on_received(lambda conn, frame: b"long " + frame)
    app.protocol("rest").on_received(lambda conn, frame: conn.publish("rest", frame))
    published: asyncio.Queue[bytes] = asyncio.Queue()
    hub = MemoryHub(watch=lambda channel, message: published.put_nowait(message.payload))
    listen = Listen.parse("long,rest=tls://127.0.0.1:0", cert=str(authority.issue("server")))

    async def test() -> None:
        async with Gateway(app, [listen], hub=hub) as gateway:
            async with connected(gateway, ssl=trusting(authority)) as (reader, writer):
                writer.write(b"a")
                writer.write(b"b")
                assert await reader.readexactly(7) == b"long ab"
            async with connected(gateway, ssl=trusting(authority)) as (reader, writer):
                writer.write(b"a")  # and a hang-up, which decides: TLS knows no half-closed connections
            assert await published.get() == b"a"

    run(test)


@unclosed_by_old_asyncio
def test_certificates_of_devices(authority: Authority) -> None:
    server, device = authority.issue("server"), authority.issue("meter-7")
    listen = Listen.parse(f"tls://127.0.0.1:0?cert={server}&client-ca={authority.file}")

    async def test() -> None:
        async with Gateway(whoami(), [listen]) as gateway:
            async with connected(gateway, ssl=trusting(authority, device)) as (reader, writer):
                writer.write(b"hi\n")
                assert await reader.readline() == b"ssl 127.0.0.1 meter-7 CN=meter-7,O=ACME hi\n"
            async with connected(gateway, ssl=trusting(authority)) as (reader, writer):
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    writer.write(b"hi\n")
                    assert await reader.read() == b""
            assert gateway.app.stats["connections_opened"] == 1

    run(test)


def test_a_handshake_that_never_comes_is_ended(authority: Authority) -> None:
    listen = Listen.parse("tls://127.0.0.1:0", cert=str(authority.issue("server")))

    async def test() -> None:
        options = Options(handshake_timeout=0.05)
        async with (
            Gateway(whoami(), [listen], options=options) as gateway,
            connected(gateway) as (reader, _),
        ):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""

    run(test)


def test_ipv6() -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")

    async def test() -> None:
        async with Gateway(whoami(), ["tcp://[::1]:0", "udp://[::1]:0"]) as gateway:
            async with connected(gateway) as (reader, writer):
                writer.write(b"hi\n")
                assert await reader.readline() == b"tcp ::1 - hi\n"
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[bytes] = loop.create_future()
            peer = gateway.addresses[1][2]
            transport, _ = await loop.create_datagram_endpoint(
                lambda: Datagrams(answer), remote_addr=(peer.host, peer.port)
            )
            transport.sendto(b"hi")
            assert await answer == b"udp ::1 - hi\n"
            transport.close()

    run(test)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answer.done():
            self._answer.set_result(data)


def test_connections_beyond_the_limits_are_refused_and_counted() -> None:
    async def test() -> None:
        listens = ["tcp://127.0.0.1:0?max-connections=1", "tcp://127.0.0.1:0"]
        async with Gateway(whoami(), listens, options=Options(max_connections=2)) as gateway:
            async with connected(gateway, 0) as (reader, writer):
                writer.write(b"a\n")
                await reader.readline()
                async with connected(gateway, 0) as (refused, _):
                    assert await refused.read() == b""
                async with connected(gateway, 1) as (second, other):
                    other.write(b"b\n")
                    await second.readline()
                    async with connected(gateway, 1) as (refused, _):
                        assert await refused.read() == b""
                writer.write(b"c\n")
                assert await reader.readline() == b"tcp 127.0.0.1 - c\n"
            assert gateway.app.stats["connections_refused"] == 2

    run(test)


def test_a_place_that_is_free_again_is_given_away() -> None:
    async def test() -> None:
        async with Gateway(whoami(), ["tcp://127.0.0.1:0"], options=Options(max_connections=1)) as gateway:
            for _ in range(3):
                async with connected(gateway) as (reader, writer):
                    writer.write(b"a\n")
                    assert await reader.readline() == b"tcp 127.0.0.1 - a\n"
                    writer.write_eof()
                    assert await reader.read() == b""
                while gateway.open:  # noqa: ASYNC110 - the gateway tells nobody, and needs no event for it
                    await asyncio.sleep(0)

    run(test)


def test_a_half_closed_connection_gets_its_answers() -> None:
    async def test() -> None:
        async with (
            Gateway(whoami(), ["tcp://127.0.0.1:0"]) as gateway,
            connected(gateway) as (reader, writer),
        ):
            writer.write(b"a\nb\nhalf")
            writer.write_eof()
            assert await reader.read() == b"tcp 127.0.0.1 - a\ntcp 127.0.0.1 - b\n"

    run(test)


def test_a_storm_of_connects() -> None:
    async def one(gateway: Gateway) -> bytes:
        async with connected(gateway) as (reader, writer):
            writer.write(b"hi\n")
            return await reader.readline()

    async def test() -> None:
        async with Gateway(whoami(), ["tcp://127.0.0.1:0"]) as gateway:
            answers = await asyncio.gather(*(one(gateway) for _ in range(STORM)))
            assert set(answers) == {b"tcp 127.0.0.1 - hi\n"}
            assert gateway.app.stats["connections_opened"] == STORM

    run(test)


STORM = 2000


@pytest.fixture(autouse=True, scope="module")
def files() -> None:
    """Let a storm have its sockets, both ends of each being ours."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * STORM + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"the system allows {hard} open files, a storm needs {wanted}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def test_a_graceful_stop_handles_what_has_come_and_says_goodbye() -> None:
    app = App(framing=Line())
    ends: list[str] = []

    @app.on_received
    async def slow(conn: Connection, frame: bytes) -> bytes:
        started.set()
        await asyncio.sleep(0.05)
        return b"done " + frame

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        ends.append(reason)

    @app.on_shutdown
    async def down() -> None:
        ends.append("down")

    started = asyncio.Event()

    async def test() -> None:
        async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway, connected(gateway) as (reader, writer):
            writer.write(b"a\nb\n")
            await started.wait()
            await gateway.stop()
            assert await reader.read() == b"done a\ndone b\n"
            assert ends == ["shutdown", "down"]

    run(test)


def test_a_handler_that_never_ends_doesnt_stop_the_stop() -> None:
    app = App(framing=Line(), limits=Limits(end_timeout=0.05))
    started = asyncio.Event()

    @app.on_received
    async def stubborn(conn: Connection, frame: bytes) -> None:
        started.set()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            if conn.closed:
                return

    async def test() -> None:
        async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway, connected(gateway) as (reader, writer):
            writer.write(b"a\n")
            await started.wait()
            await gateway.stop()
            assert await reader.read() == b""

    run(test)


def test_a_connection_that_has_ended_leaves_nothing_behind() -> None:
    app: App[dict[str, str]] = App(framing=Line(), state=dict)
    refs: list[weakref.ref[Any]] = []

    @app.on_received
    def received(conn: Connection[dict[str, str]], frame: bytes) -> bytes:
        refs.append(weakref.ref(conn))
        conn.register("me")
        conn.subscribe("a/b")
        conn.start_timer(1000)
        return frame

    async def test() -> None:
        async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway:
            async with connected(gateway) as (reader, writer):
                writer.write(b"a\n")
                assert await reader.readline() == b"a\n"
            while not app.stats["connections_closed"]:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            gc.disable()
            try:
                await asyncio.sleep(0)
                assert [ref() for ref in refs] == [None], "it is freed at once, without the garbage collector"
            finally:
                gc.enable()
            assert not app.connections

    run(test)


def test_what_a_busy_connection_has_done_is_freed() -> None:
    """Turns know the context that they began in, which knows the turn before: that chain has to break."""

    async def test() -> None:
        app = App(framing=Line())

        @app.on_received
        async def slow(conn: Connection, frame: bytes) -> bytes:
            await asyncio.sleep(0)
            return frame

        async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway, connected(gateway) as (reader, writer):
            # asyncio keeps cancelled timers, each with its context, behind one that waits, as renewal's does.
            gateway.renewal.stop()
            before = calls()
            writer.write(b"hello\n" * 500)
            for _ in range(500):
                await reader.readline()
            assert calls() - before < 10

    def calls() -> int:
        gc.collect()
        return sum(type(thing) is Call for thing in gc.get_objects())

    run(test)
