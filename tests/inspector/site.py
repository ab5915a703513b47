"""A gateway with an inspector, in the test's own loop, and devices on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs

from exproto_app import App, Connection, Message
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.inspector import Inspector
from exproto_app.models import Address

MARKUP = "<img_src=x_onerror=\"document.title='pwned'\">"
"""A name that a page might run."""

HOSTILE = "<img src=x onerror=\"document.title='pwned'\">\x1b[31m\u202e"
"""Text that would run in a page and act on a terminal; no name or topic may hold all of it."""


def fleet() -> App:
    """Return an app with two protocols; `login NAME [PASSWORD]` registers, `break` raises."""
    app = App(framing=Line())

    @app.on_received(b"login ")
    async def login(conn: Connection, frame: bytes) -> bytes:
        name, _, password = frame.decode().removeprefix("login ").partition(" ")
        await conn.register(name, password=password or None)
        await conn.subscribe("down/#")
        return b"welcome"

    @app.on_received(b"break")
    def broken(conn: Connection, frame: bytes) -> bytes:
        secret = frame.decode()
        raise RuntimeError(f"this broke: {secret}")

    @app.on_received
    def other(conn: Connection, frame: bytes) -> bytes:
        conn.publish("up/" + (conn.client.clientid if conn.client else "nobody"), frame)
        return b"ok " + frame

    @app.on_deliver
    def down(conn: Connection, message: Message) -> bytes:
        return b"down " + message.payload

    @app.on_error
    def stay(conn: Connection, error: Exception) -> None:
        conn.keep()

    meter = app.protocol("meter")

    @meter.on_received
    def reading(conn: Connection, frame: bytes) -> None:
        pass

    return app


@attrs.define(eq=False)
class Device:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, line: str) -> str:
        self.writer.write(line.encode() + b"\n")
        return await self.line()

    async def line(self) -> str:
        return (await asyncio.wait_for(self.reader.readline(), 20)).decode().rstrip("\n")

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@attrs.define(eq=False)
class Page:
    """The WebSocket of a page."""

    socket: aiohttp.ClientWebSocketResponse[Any]

    async def say(self, kind: str, **facts: Any) -> None:
        await self.socket.send_json({"type": kind, **facts})

    async def hear(self, kind: str) -> dict[str, Any]:
        """Return the next message of that type."""
        while True:
            message = await self.socket.receive(timeout=20)
            assert message.type is aiohttp.WSMsgType.TEXT, message
            facts: dict[str, Any] = json.loads(message.data)
            if facts["type"] == kind:
                return facts

    async def events_until(self, last: str) -> list[dict[str, Any]]:
        """Return the events up to the first of that name."""
        events: list[dict[str, Any]] = []
        while not any(event["event"] == last for event in events):
            events += (await self.hear("events"))["events"]
        return events


@attrs.define(eq=False)
class Site:
    app: App
    gateway: Gateway
    inspector: Inspector
    http: aiohttp.ClientSession
    devices: list[Device] = attrs.field(factory=list)

    def address_of(self, protocol: str) -> Address:
        for _, routers, address in self.gateway.addresses:
            if protocol in [router.name for router in routers]:
                return address
        raise AssertionError(f"nobody listens for {protocol}")

    async def device(self, protocol: str = "default", login: str = "") -> Device:
        address = self.address_of(protocol)
        device = Device(*await asyncio.open_connection(address.host, address.port))
        self.devices.append(device)
        if login:
            assert await device.ask(f"login {login}") == "welcome"
        return device

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.http.get(path, headers=headers) as response:
            return response.status, await response.json()

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        async with self.http.post(path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def rows(self, **query: str | int) -> list[dict[str, Any]]:
        async with self.http.get("/api/connections", params=query) as response:
            assert response.status == 200, await response.text()
            rows: list[dict[str, Any]] = (await response.json())["rows"]
            return rows

    async def id_of(self, clientid: str) -> str:
        (row,) = await self.rows(search=clientid)
        found: str = row["id"]
        return found

    @asynccontextmanager
    async def page(self, **headers: str) -> AsyncIterator[Page]:
        async with self.http.ws_connect("/api/live", headers=headers) as socket:
            yield Page(socket)


@asynccontextmanager
async def site(
    app: App | None = None,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
    listens: Sequence[str] = ("default=tcp://127.0.0.1:0", "meter=udp://127.0.0.1:0"),
) -> AsyncIterator[Site]:
    app = app or fleet()
    inspector = Inspector(app, Address(host, 0), token=token)
    async with Gateway(app, listens) as gateway:
        await inspector.start(gateway)
        url = f"http://127.0.0.1:{inspector.address.port}"
        try:
            async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(20)) as http:
                site = Site(app, gateway, inspector, http)
                yield site
                for device in site.devices:
                    await device.close()
        finally:
            await inspector.stop()


def on_site(test: Callable[[Site], Awaitable[None]], **options: Any) -> None:
    """Run *test* on a site of its own."""

    async def main() -> None:
        async with site(**options) as here:
            await test(here)

    asyncio.run(main())
