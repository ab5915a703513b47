"""The gateway's own transport of plain sockets: what a protocol may rely on."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, cast

import attrs
import pytest

from exproto_app.hosts.gateway.plain import SocketTransport, serves

pytestmark = pytest.mark.live

PATIENCE = 60
MUCH = bytes(range(256)) * 8_192


@attrs.define(eq=False)
class Link:
    """A protocol that writes down what it is told; *answer* is what it does with data."""

    answer: Callable[[bytes], object] = lambda _: None
    keeps: bool = False
    told: list[str] = attrs.Factory(list)
    data: bytearray = attrs.Factory(bytearray)
    error: BaseException | None = None
    ended: asyncio.Event = attrs.Factory(asyncio.Event)
    changed: asyncio.Event = attrs.Factory(asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tell("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.answer(data)
        self.changed.set()

    def eof_received(self) -> bool:
        self._tell("hung up")
        return self.keeps

    def pause_writing(self) -> None:
        self._tell("pause")

    def resume_writing(self) -> None:
        self._tell("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.error = exc
        self._tell("lost")
        self.ended.set()

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self.changed.set()

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            self.changed.clear()
            await self.changed.wait()


def pair(link: Link) -> tuple[SocketTransport, socket.socket]:
    """Return a transport for *link*, and the device's socket."""
    ours, device = socket.socketpair()
    for sock in (ours, device):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    transport = SocketTransport(asyncio.get_running_loop(), ours, cast("Any", link))
    transport.set_write_buffer_limits(high=65_536)
    transport.start()
    return transport, device


async def read(device: socket.socket, size: int) -> bytes:
    """Return *size* bytes, or those up to the end of the stream."""
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(device, 65_536)
        if not piece:
            break
        data += piece
    return data


def run(test: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.SelectorEventLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(test(), PATIENCE))
    finally:
        loop.close()


def test_bytes_go_both_ways_and_the_end_is_told_once() -> None:
    async def test() -> None:
        link = Link()
        transport, device = pair(link)
        link.answer = transport.write
        device.send(b"hello")
        assert await read(device, 5) == b"hello"
        device.close()
        await link.ended.wait()
        assert (link.told, link.error, bytes(link.data)) == (["made", "hung up", "lost"], None, b"hello")
        transport.close()
        transport.abort()
        transport.write(b"nobody is there any more")
        await asyncio.sleep(0)
        assert link.told.count("lost") == 1

    run(test)


def test_what_the_kernel_has_no_room_for_follows_in_order_and_the_link_pauses_meanwhile() -> None:
    async def test() -> None:
        link = Link()
        transport, device = pair(link)
        for start in range(0, len(MUCH), 10_000):
            transport.write(MUCH[start : start + 10_000])
        assert link.told == ["made", "pause"]
        assert transport.get_write_buffer_size() > 65_536
        assert await read(device, len(MUCH)) == MUCH
        await link.until(lambda: "resume" in link.told)
        assert link.told == ["made", "pause", "resume"]
        transport.write(b"and on")
        assert await read(device, 6) == b"and on"
        assert transport.get_write_buffer_size() == 0
        transport.abort()
        await link.ended.wait()
        device.close()

    run(test)


def test_close_lets_out_what_was_written_and_abort_does_not() -> None:
    async def test() -> None:
        link = Link()
        transport, device = pair(link)
        transport.write(MUCH)
        transport.close()
        assert transport.is_closing()
        assert await read(device, len(MUCH) + 1) == MUCH
        await link.ended.wait()
        device.close()

        link = Link()
        transport, device = pair(link)
        transport.write(MUCH)
        transport.abort()
        assert len(await read(device, len(MUCH))) < len(MUCH)
        await link.ended.wait()
        assert link.told == ["made", "pause", "lost"]
        device.close()

    run(test)


def test_a_device_that_has_closed_its_half_still_gets_what_is_written() -> None:
    async def test() -> None:
        link = Link(keeps=True)
        transport, device = pair(link)
        device.send(b"last words")
        device.shutdown(socket.SHUT_WR)
        await link.until(lambda: "hung up" in link.told)
        transport.pause_reading()
        transport.resume_reading()
        transport.write(b"goodbye")
        assert await read(device, 7) == b"goodbye"
        assert link.told == ["made", "hung up"]
        transport.close()
        await link.ended.wait()
        device.close()

    run(test)


def test_a_paused_transport_reads_nothing_until_it_resumes() -> None:
    async def test() -> None:
        link = Link()
        transport, device = pair(link)
        transport.pause_reading()
        transport.pause_reading()
        device.send(b"later")
        other = Link()
        other_transport, other_device = pair(other)
        other_device.send(b"now")
        await other.until(lambda: other.data)  # a round of the loop in which both were readable
        assert not link.data
        transport.resume_reading()
        await link.until(lambda: link.data)
        assert link.data == b"later"
        for one in (transport, other_transport):
            one.abort()
        await link.ended.wait()
        await other.ended.wait()
        device.close()
        other_device.close()

    run(test)


def test_an_error_of_the_link_costs_only_its_connection() -> None:
    async def test() -> None:
        seen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

        def fail(data: bytes) -> None:
            raise ValueError("ours")

        link = Link(answer=fail)
        _, device = pair(link)
        device.send(b"x")
        await link.ended.wait()
        assert await read(device, 1) == b""
        assert isinstance(link.error, ValueError)
        assert [context["message"] for context in seen] == ["data_received failed"]
        device.close()

    run(test)


@pytest.mark.parametrize("writes", [False, True], ids=["while it reads", "while it writes"])
def test_a_reset_is_told_with_its_error(writes: bool) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        link = Link()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            device = socket.create_connection(server.getsockname())
            ours, _ = await loop.sock_accept(server)
        transport = SocketTransport(loop, ours, cast("Any", link))
        transport.start()
        assert transport.get_extra_info("sockname") == device.getpeername()
        assert transport.get_extra_info("peername") == device.getsockname()
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert transport.get_extra_info("cipher", "none") == "none"
        if writes:
            transport.pause_reading()
            transport.write(MUCH * 4)
        device.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        device.close()
        await link.ended.wait()
        assert isinstance(link.error, ConnectionError)

    run(test)


def test_only_loops_of_asyncio_itself_are_served() -> None:
    loop = asyncio.SelectorEventLoop()
    assert serves(loop)
    loop.close()
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    assert not serves(loop)
    loop.close()
