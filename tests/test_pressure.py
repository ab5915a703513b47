"""What a hub with a broker behind it asks of the engine: acknowledgements, and turns that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from exproto_app import App, Connection, Limits, Message
from exproto_app.commands import Command, Outcome, Publish
from exproto_app.core import Channel
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.hub import MemoryHub

from .test_gateway import connected, run

pytestmark = pytest.mark.live


class Broker(MemoryHub):
    """A hub that wants to know when messages are handled, and takes only so many at a time."""

    def __init__(self, room: int = 1_000_000) -> None:
        super().__init__()
        self.room = room
        self.published: list[bytes] = []
        self.taken: list[bytes] = []
        self.channels: list[Channel] = []
        self.full = asyncio.Event()

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        if channel not in self.channels:
            self.channels.append(channel)
        if isinstance(command, Publish):
            self.published.append(command.payload)
            if len(self.published) >= self.room:
                self.full.set()
                channel.congested()
        return super().execute(channel, command)

    def deliver(self, number: int, *payloads: bytes) -> None:
        for payload in payloads:
            message = Message("down", payload, 1)
            self.channels[number].delivered((message,), partial(self.taken.append, payload))


@contextlib.asynccontextmanager
async def device_of(
    app: App, hub: Broker
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve *app* on *hub*, with one device."""
    async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as gateway, connected(gateway) as streams:
        yield streams


def commands() -> App:
    """An app whose handlers of messages take as long as the message says."""
    app = App(framing=Line(), limits=Limits(deliveries=2, inbox=64))
    app.gate = asyncio.Event()  # type: ignore[attr-defined] # of this test alone

    @app.on_received(b"up ")
    def up(conn: Connection, frame: bytes) -> bytes:
        conn.publish("up", frame[3:])
        return b"got " + frame[3:]

    @app.on_received(b"timer ")
    def timer(conn: Connection, frame: bytes) -> bytes:
        conn.start_timer(float(frame[6:]))
        return b"started"

    @app.on_deliver
    async def down(conn: Connection, message: Message) -> bytes:
        if message.payload == b"wait":
            await app.gate.wait()  # type: ignore[attr-defined] # see above
        if message.payload == b"fail":
            conn.send(b"failing")
            raise ValueError
        return message.payload

    @app.on_error
    def mend(conn: Connection, error: Exception) -> None:
        conn.keep()

    return app


def test_a_message_counts_as_taken_when_its_turn_has_ended() -> None:
    async def test() -> None:
        app, hub = commands(), Broker()
        async with device_of(app, hub) as (reader, writer):
            writer.write(b"up hello\n")
            assert await reader.readline() == b"got hello\n"
            hub.deliver(0, b"one", b"wait", b"fail", b"two")
            assert await reader.readline() == b"one\n"
            await asyncio.sleep(0)
            assert hub.taken == [b"one"]
            app.gate.set()  # type: ignore[attr-defined] # see above
            assert await reader.readline() == b"wait\n"
            assert await reader.readline() == b"failing\n"
            assert await reader.readline() == b"two\n"
            await asyncio.sleep(0)
            assert hub.taken == [b"one", b"wait", b"fail", b"two"]
            assert app.stats["deliveries_dropped"] == 0  # four waited, where the limit is two for others

    run(test)


def test_a_message_is_not_taken_if_the_device_leaves_in_the_middle_of_it() -> None:
    async def test() -> None:
        app, hub = commands(), Broker()
        async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as gateway:
            async with connected(gateway) as (reader, writer):
                writer.write(b"up hello\n")
                assert await reader.readline() == b"got hello\n"
                hub.deliver(0, b"wait", b"behind")
            app.gate.set()  # type: ignore[attr-defined] # see above
        assert hub.taken == []

    run(test)


def test_messages_for_a_batch_are_taken_together() -> None:
    async def test() -> None:
        app, hub = App(framing=Line()), Broker()

        @app.on_received
        def up(conn: Connection, frame: bytes) -> bytes:
            conn.publish("up", frame)
            hub.deliver(0, b"a", b"b", b"c")
            return b"ok"

        @app.on_deliver(batch=True)
        def down(conn: Connection, messages: list[Message]) -> bytes:
            return b" ".join(message.payload for message in messages)

        async with device_of(app, hub) as (reader, writer):
            writer.write(b"go\n")
            assert await reader.readline() == b"ok\n"
            assert await reader.readline() == b"a b c\n"
            assert hub.taken == [b"a", b"b", b"c"]

    run(test)


def test_while_the_broker_is_congested_no_turn_begins_and_nothing_is_lost() -> None:
    async def test() -> None:
        app, hub = commands(), Broker(room=3)
        async with device_of(app, hub) as (reader, writer):
            writer.write(b"timer 0.05\n" + b"".join(b"up %d\n" % number for number in range(100)))
            assert await reader.readline() == b"started\n"
            for number in range(3):
                assert await reader.readline() == b"got %d\n" % number
            # Its silence isn't the device's fault, so the timer doesn't end it.
            done, _ = await asyncio.wait([asyncio.ensure_future(reader.readline())], timeout=0.2)
            assert not done
            assert hub.published == [b"0", b"1", b"2"]
            hub.room, hub.full = 100, asyncio.Event()
            for channel in hub.channels:
                channel.start_timer(20)
                channel.relieved()
            await hub.full.wait()
            assert hub.published == [b"%d" % number for number in range(100)]

    run(test)


def test_a_congested_connection_ends_as_others_do() -> None:
    async def test() -> None:
        app, hub = commands(), Broker(room=1)
        ends: list[str] = []

        @app.on_terminated
        def gone(conn: Connection, reason: str) -> None:
            ends.append(reason)

        async with device_of(app, hub) as (reader, writer):
            writer.write(b"up 1\nup 2\n")
            assert await reader.readline() == b"got 1\n"
            hub.channels[0].terminate()
            assert await reader.read() == b""
        assert ends == ["terminated"]
        assert hub.published == [b"1"]

    run(test)
