"""Devices on UDP: from where they are answered, and what is told of datagrams that are lost."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from exproto_app import App, Connection, SetupError
from exproto_app.asyncio_host.datagrams import Datagrams, local_address
from exproto_app.hosts.gateway import Gateway, Listen
from exproto_app.hosts.gateway.datagram_line import DatagramLine
from exproto_app.models import Address

from .loops import LOOPS, Run, run_in
from .test_hostile import until

if TYPE_CHECKING:
    from typing_extensions import Self

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell")


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test in each kind of loop."""
    return partial(run_in, request.param)


def echo() -> App:
    app = App()

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return f"{conn.info.sockname.host} {frame.decode()}".encode()

    return app


class Device:
    """A peer that may ask several addresses."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def ask(self, host: str, port: int, data: bytes = b"hi") -> tuple[bytes, str]:
        """Send *data*; return the answer, and who answers."""
        self.sock.sendto(data, (host, port))
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self.sock, answered.set_result, None)
        await answered
        asyncio.get_running_loop().remove_reader(self.sock)
        data, address = self.sock.recvfrom(65_536)
        return data, address[0]


def test_a_listener_is_set_up_by_its_url() -> None:
    assert Listen.parse("udp://:1?buffer=1000000").settings == DatagramLine(buffer=1_000_000)
    with pytest.raises(SetupError, match=re.escape("buffer is 2000000000, limit is 1073741824")):
        Listen.parse("udp://:1?buffer=2000000000")
    with pytest.raises(SetupError, match="unknown option 'mtu'; it knows buffer, max-connections"):
        Listen.parse("udp://:1?mtu=1000")


def test_what_nobody_tells_is_the_name_of_the_socket() -> None:
    name = Address("0.0.0.0", 7)
    assert local_address(name, ("192.0.2.1", 1)) == name
    assert local_address(name, ("192.0.2.1", 1, b"")) == name
    assert local_address(name, ("192.0.2.1", 1, b"\x7f\0\0\2")) == Address("127.0.0.2", 7)
    assert local_address(name, ("fe80::1", 1, 0, 2, bytes(15) + b"\1")) == Address("::1", 7)


@pytest.mark.live
@linux
def test_the_address_that_was_asked_answers(run: Run) -> None:
    """Each is a connection of its own, on a socket that is bound to all of them."""

    async def test() -> None:
        async with Gateway(echo(), ["udp://0.0.0.0:0"]) as gateway:
            port = gateway.addresses[0][2].port
            with Device() as device:
                for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
                    assert await device.ask(host, port) == (f"{host} hi".encode(), host)
            assert gateway.open == 2

    run(test)


@pytest.mark.live
def test_without_a_host_both_families_are_served(run: Run) -> None:
    async def test() -> None:
        async with Gateway(echo(), ["udp://:0"]) as gateway:
            hosts = {address.host: address.port for _, _, address in gateway.addresses}
            assert set(hosts) == {"0.0.0.0", "::"}
            with Device() as device:
                assert await device.ask("127.0.0.1", hosts["0.0.0.0"]) == (b"127.0.0.1 hi", "127.0.0.1")
            with Device(socket.AF_INET6) as device:
                assert await device.ask("::1", hosts["::"]) == (b"::1 hi", "::1")

    run(test)


@pytest.mark.live
@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_what_the_kernel_loses_is_counted_and_told(
    run: Run, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody reads meanwhile."""

    async def test() -> None:
        async with Gateway(echo(), [f"udp://{host}:0?buffer=4096"]) as gateway:
            stats = gateway.app.stats
            with Device() as device:
                for _ in range(500):
                    device.sock.sendto(b"x" * 100, ("127.0.0.1", gateway.addresses[0][2].port))
                await until(lambda: stats.get("datagrams_dropped.kernel", 0) > 0)
                assert stats["datagrams_dropped.kernel"] + stats["frames_received"] == 500
                assert stats["datagrams_dropped"] == stats["datagrams_dropped.kernel"]

    run(test)
    assert re.search(r"gateway ! udp://[\d.]+:0: \d+ datagrams lost", caplog.text)


@pytest.mark.live
@linux
def test_a_burst_that_the_buffer_holds_is_handled_whole(run: Run) -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
            try:
                trial.setsockopt(socket.SOL_SOCKET, 33, 4_000_000)
            except PermissionError:
                pytest.skip("only root has buffers of this size")
        async with Gateway(echo(), ["udp://127.0.0.1:0?buffer=4000000"]) as gateway:
            with Device() as device:
                for _ in range(3_000):
                    device.sock.sendto(b"x" * 100, ("127.0.0.1", gateway.addresses[0][2].port))
                await until(lambda: gateway.app.stats["frames_received"] == 3_000)

    run(test)


@pytest.mark.live
def test_a_buffer_that_the_kernel_does_not_give_is_told(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exproto_app.asyncio_host.datagrams.LINUX", False)  # as without the rights

    async def test() -> None:
        async with Gateway(echo(), ["udp://127.0.0.1:0?buffer=1000000000"]):
            pass

    run(test)
    assert re.search(r"the kernel buffers \d+ bytes, not 1000000000; raise net\.core\.rmem_max", caplog.text)


@pytest.mark.live
def test_a_datagram_that_is_too_large_is_told_and_counted(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        conn.send(b"x" * 66_000)
        return b"behind"

    async def test() -> None:
        async with Gateway(app, ["udp://127.0.0.1:0"]) as gateway:
            with Device() as device:
                answer = await device.ask("127.0.0.1", gateway.addresses[0][2].port)
                assert answer == (b"behind", "127.0.0.1")
            assert app.stats["datagrams_dropped.too_large"] == 1

    run(test)
    assert re.search(r"127\.0\.0\.1:\d+ ! datagram dropped: it has 66000 bytes", caplog.text)


class Taken:
    """Takes datagrams."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.dropped: list[str] = []

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.data.append(data)

    def drop(self, why: str, number: int = 1) -> None:
        self.dropped += [why] * number


class Full:
    """A socket whose kernel takes *room* datagrams, then none."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.room = 2
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, _: object) -> None:
        if not self.room:
            raise BlockingIOError
        self.room -= 1
        self.sent.append(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.mark.live
def test_what_the_kernel_does_not_take_waits_and_beyond_a_limit_is_dropped(run: Run) -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            full, taken = Full(sock), Taken()
            datagrams = Datagrams(full, taken)  # type: ignore[arg-type] # as good as one
            for number in range(5):
                datagrams.sendto(bytes([number]) * 30_000, ("127.0.0.1", 9))
            assert [data[0] for data in full.sent] == [0, 1]
            assert taken.dropped == ["socket_full"]
            full.room = 9
            await until(lambda: len(full.sent) == 4)
            assert [data[0] for data in full.sent] == [0, 1, 2, 3]
            datagrams.close()

    run(test)
