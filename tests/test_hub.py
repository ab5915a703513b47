"""The embedded hub, as devices see it: retained messages, and devices that are slower than publishers."""

from __future__ import annotations

import asyncio

import pytest

from exproto_app import App, Connection, Limits, Message, UnavailableError
from exproto_app.framing import Line
from exproto_app.testing import TestClient


def subscriber() -> App:
    app = App(framing=Line())

    @app.on_received
    def subscribe(conn: Connection, frame: bytes) -> None:
        conn.subscribe(frame.decode(), qos=1)

    @app.on_deliver
    def deliver(conn: Connection, message: Message) -> bytes:
        kept = b"kept " if message.retain else b""
        return b"%s%s qos %d" % (kept, message.payload, message.qos)

    return app


def test_only_what_was_kept_says_that_it_was() -> None:
    with TestClient(subscriber()) as device:
        device.publish("a", b"1", qos=2, retain=True)
        device.send(b"a\n")
        assert device.recv() == b"kept 1 qos 1\n"
        device.publish("a", b"2", retain=True)
        assert device.recv() == b"2 qos 0\n"
        device.send(b"a\n")
        assert device.recv() == b"kept 2 qos 0\n"


def test_an_empty_message_clears_and_one_that_isnt_retained_doesnt() -> None:
    with TestClient(subscriber()) as device:
        device.publish("a", b"1", retain=True)
        device.publish("a", b"")
        device.send(b"a\n")
        assert device.recv() == b"kept 1 qos 0\n"
        device.publish("a", b"", retain=True)
        assert device.recv() == b" qos 0\n"
        device.another().send(b"a\n")
        device.send(b"a\n")
        assert device.recv() == b""


def test_a_group_gets_no_retained_messages() -> None:
    with TestClient(subscriber()) as device:
        device.publish("a", b"1", retain=True)
        device.send(b"$share/g/a\n")
        assert device.recv() == b""


def test_wildcards_find_them_and_leave_the_brokers_own_alone() -> None:
    with TestClient(subscriber()) as device:
        for topic in ("a", "a/b", "a/b/c", "$x/b"):
            device.publish(topic, topic.encode(), retain=True)
        for topic_filter, found in {b"#": 3, b"+/b": 1, b"a/#": 3, b"$x/+": 1, b"a/+/+/+": 0}.items():
            other = device.another()
            other.send(topic_filter + b"\n")
            assert other.recv().count(b"kept") == found


def test_what_a_hub_keeps_is_bounded_and_what_it_doesnt_keep_is_told() -> None:
    app = subscriber()
    outcomes = []

    async def publish(topic: str, payload: bytes) -> None:
        try:
            await app.publish(topic, payload, retain=True)
            outcomes.append("")
        except UnavailableError as error:
            outcomes.append(str(error))

    with TestClient(app) as device:
        world, _ = device._connected()
        retained = world.memory._retained
        retained.most, retained.most_bytes = 2, 12
        device.send(b"#\n")
        topics = [
            ("a", b"1"),
            ("b", b"2"),
            ("c", b"3"),
            ("a", b"x" * 20),
            ("a", b"4"),
            ("b", b""),
            ("c", b"5"),
        ]
        for topic, payload in topics:
            world.loop.complete(publish(topic, payload))
        device.advance(0)
        assert device.recv().count(b"\n") == len(topics)
        limits = "limits are 2 and 12"
        assert [limits in text for text in outcomes] == [False, False, True, True, False, False, False]
        gauges = world.memory.gauges()
        assert (gauges["retained_messages"], gauges["retained_bytes"]) == (2, 4)
        assert (gauges["subscriptions"], gauges["device_sessions"]) == (1, 0)


class TestASlowDevice:
    """Whoever publishes more than a device on the hub takes."""

    def app(self, **limits: int) -> App:
        app = App(framing=Line(), limits=Limits(**limits))

        @app.on_received(b"sub ")
        def subscribe(conn: Connection, frame: bytes) -> None:
            conn.subscribe("slow", qos=int(frame[4:]))

        @app.on_deliver
        async def deliver(conn: Connection, message: Message) -> bytes:
            await asyncio.sleep(0.01)
            return message.payload

        @app.on_received(b"start ")
        async def start_all(conn: Connection, frame: bytes) -> bytes:
            outcomes = [conn.publish("slow", b"%d" % number, qos=1) for number in range(int(frame[6:]))]
            for outcome in outcomes:
                await outcome
            return b"all"

        @app.on_received(b"each ")
        async def each(conn: Connection, frame: bytes) -> bytes:
            for number in range(int(frame[5:])):
                await conn.publish("slow", b"%d" % number, qos=1)
            return b"all"

        @app.on_received(b"none ")
        def none(conn: Connection, frame: bytes) -> bytes:
            for number in range(int(frame[5:])):
                conn.publish("slow", b"%d" % number, qos=1)
            return b"all"

        return app

    @pytest.mark.parametrize("how", [b"start", b"each", b"none"])
    def test_waits_for_room(self, how: bytes) -> None:
        with TestClient(self.app()) as device:
            device.send(b"sub 1\n")
            other = device.another()
            other.send(how + b" 3000\n")
            device.advance(31)
            assert device.recv() == b"".join(b"%d\n" % number for number in range(3000))
            assert other.recv() == b"all\n"
            assert device.app.stats["deliveries_dropped"] == 0

    def test_is_told_where_more_publish_than_there_is_room_for(self) -> None:
        with TestClient(self.app(deliveries=4), raise_errors=False) as device:
            device.send(b"sub 1\n")
            other = device.another()
            other.send(b"start 10\n")
            device.advance(1)
            assert (device.recv().count(b"\n"), other.recv()) == (4, b"")
            assert device.app.stats["deliveries_dropped.queue_full"] == 6

    def test_does_not_wait_for_itself(self) -> None:
        with TestClient(self.app(deliveries=4)) as device:
            device.send(b"sub 1\neach 4\n")
            device.advance(1)
            assert device.recv() == b"all\n0\n1\n2\n3\n"

    def test_with_qos_0_nobody_waits(self) -> None:
        with TestClient(self.app(deliveries=4)) as device:
            device.send(b"sub 0\n")
            other = device.another()
            other.send(b"each 10\n")
            assert other.recv() == b"all\n"
            assert device.app.stats["deliveries_dropped.queue_full"] == 6

    def test_that_leaves_is_waited_for_no_more(self) -> None:
        with TestClient(self.app()) as device:
            device.send(b"sub 1\n")
            other = device.another()
            other.send(b"each 3000\n")
            device.close()
            other.advance(10)  # what it has is handled first
            assert other.recv() == b"all\n"
