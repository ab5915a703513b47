"""The embedded hub's retained messages, as devices see them."""

from __future__ import annotations

from exproto_app import App, Connection, Message, UnavailableError
from exproto_app.framing import Line
from exproto_app.hub import MemoryHub
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
        assert isinstance(world.hub, MemoryHub)
        world.hub._most = 2, 12
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
        assert world.hub.gauges() == {"retained_messages": 2, "retained_bytes": 4, "subscriptions": 1}
