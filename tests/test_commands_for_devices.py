"""Commands for devices: they wait for an absent one, expire, are answered, and come to exactly one end."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app import App, Connection, Message, Router, SetupError
from exproto_app.core.sessions import SessionBounds
from exproto_app.framing import Line
from exproto_app.hub import MemoryHub
from exproto_app.testing import TestClient


def app_of() -> App[None, bytes]:
    """Return an app whose devices have sessions, and are told what is wanted of them."""
    app = App(framing=Line())

    @app.on_received(b"login ")
    def login(conn: Connection, frame: bytes) -> None:
        name, _, expiry = frame[6:].decode().partition(" ")
        conn.register(name, session_expiry=int(expiry or 600))
        conn.subscribe(f"devices/{name}/command", qos=1)
        conn.subscribe(f"devices/{name}/later", qos=1)
        conn.subscribe(f"devices/{name}/ask", qos=1)

    @app.on_received
    def data(conn: Connection, frame: bytes) -> bytes:
        return b"got " + frame

    @app.on_deliver("devices/+/command")
    def command(conn: Connection, message: Message) -> bytes:
        return message.payload

    @app.on_deliver("devices/+/later", when="uplink")
    def later(conn: Connection, message: Message) -> bytes:
        return message.payload

    @app.on_deliver("devices/+/ask", reply=True)
    async def ask(conn: Connection, message: Message) -> bytes:
        return await conn.request(message.payload, match=lambda frame: frame.startswith(b"="), timeout=10)

    return app


@pytest.fixture
def device() -> Iterator[TestClient]:
    """Return a device that is connected, and not logged in."""
    with TestClient(app_of()) as device:
        yield device


def ask(device: TestClient, payload: bytes, expiry: int | None = None) -> None:
    """Ask the device something, as a back office does."""
    device.publish(
        "devices/d/ask",
        payload,
        qos=1,
        expiry=expiry,
        response_topic="answers",
        correlation_data=payload,
    )


class TestAbsent:
    """`session_expiry` on the embedded hub."""

    def test_commands_wait_and_come_in_order(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.close()
        for number in range(100):
            device.publish("devices/d/command", b"%d" % number, qos=1)
        device.publish("devices/d/command", b"of qos 0, so for who is there")
        device.advance(599)
        back = device.another()
        back.send(b"login d\n")
        assert back.recv() == b"".join(b"%d\n" % number for number in range(100))

    def test_not_for_longer_than_asked_for(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.close()
        device.publish("devices/d/command", b"work", qos=1)
        device.advance(601)
        back = device.another()
        back.send(b"login d\n")
        assert back.recv() == b""
        assert device.app.stats["deliveries_dropped.session_ended"] == 1

    def test_a_device_that_wants_no_session_any_more_has_none(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.close()
        device.publish("devices/d/command", b"work", qos=1)
        back = device.another()
        back.send(b"login d 0\n")
        assert back.recv() == b""
        back.close()
        device.publish("devices/d/command", b"work", qos=1)
        assert device.app.stats["deliveries_dropped"] == 1

    def test_one_whose_handler_was_at_it_comes_again(self, device: TestClient) -> None:
        device.send(b"login d\n")
        ask(device, b"how warm?")
        assert device.recv() == b"how warm?\n"
        device.close()
        back = device.another()
        back.send(b"login d\n")
        assert back.recv() == b"how warm?\n"
        back.send(b"=21\n")
        assert back.published == [Message("answers", b"=21", 1, correlation_data=b"how warm?")]
        back.close()
        again = device.another()
        again.send(b"login d\n")
        assert again.recv() == b""

    def test_a_takeover_continues_it(self, device: TestClient) -> None:
        device.send(b"login d\n")
        ask(device, b"how warm?")
        newer = device.another()
        newer.send(b"login d\n")
        newer.advance(6)
        assert newer.recv() == b"how warm?\n"
        newer.publish("devices/d/command", b"work", qos=1)
        newer.send(b"=21\n")
        assert newer.recv() == b"work\n"
        assert [message.payload for message in newer.published] == [b"=21"]

    def test_what_is_too_much_is_refused_and_counted(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.close()
        for number in range(1_010):
            device.publish("devices/d/command", b"%d" % number, qos=1)
        back = device.another()
        back.send(b"login d\n")
        assert back.recv() == b"".join(b"%d\n" % number for number in range(1_000))
        assert device.app.stats["deliveries_dropped.queue_full"] == 10

    def test_the_session_belongs_to_its_user(self) -> None:
        passwords = {"alice": "a", "bob": "b"}
        app: App[None, bytes] = App(framing=Line())

        @app.on_received
        def login(conn: Connection, frame: bytes) -> None:
            user, password = frame.decode().split()
            conn.register("d", username=user, password=password, session_expiry=60)

        rule = lambda client, password: passwords[client.username] == password  # noqa: E731 - as users write it
        with TestClient(app, login=rule) as device:
            device.send(b"alice a\n")
            device.close()
            thief, back = device.another(), device.another()
            thief.send(b"bob b\n")
            assert "belongs to the user 'alice'" in thief.close_detail
            back.send(b"alice a\n")
            assert back.connection.client is not None


class TestExpiry:
    """What has expired isn't sent."""

    def test_while_its_device_is_absent(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.close()
        device.publish("devices/d/command", b"soon", qos=1, expiry=10)
        device.publish("devices/d/command", b"some day", qos=1, expiry=100)
        device.advance(20)
        back = device.another()
        back.send(b"login d\n")
        assert back.recv() == b"some day\n"
        assert device.app.stats["deliveries_dropped.expired"] == 1

    def test_while_it_waits_for_its_turn(self, device: TestClient) -> None:
        device.send(b"login d\n")
        ask(device, b"how warm?")
        device.stop_reading()
        for _ in range(3):
            device.send(b"x" * 30_000 + b"\n")
        device.publish("devices/d/command", b"soon", qos=1, expiry=3)
        device.publish("devices/d/command", b"some day", qos=1, expiry=100)
        device.advance(5)
        device.start_reading()
        assert device.recv().endswith(b"x\nsome day\n")
        assert device.app.stats["deliveries_dropped.expired"] == 1
        device.send(b"=\n")

    def test_the_handler_sees_what_is_left(self) -> None:
        app: App[None, bytes] = App(framing=Line())
        seen: list[int | None] = []

        @app.on_received
        def login(conn: Connection, frame: bytes) -> None:
            conn.register("d", session_expiry=60)
            conn.subscribe("t", qos=1)

        @app.on_deliver
        def command(conn: Connection, message: Message) -> None:
            seen.append(message.expiry)

        with TestClient(app) as device:
            device.send(b"\n")
            device.close()
            device.publish("t", b"", qos=1, expiry=50)
            device.advance(20)
            device.another().send(b"\n")
        assert seen == [30]

    def test_a_retained_message_too(self, device: TestClient) -> None:
        device.publish("devices/d/command", b"old", qos=1, retain=True, expiry=10)
        device.advance(5)
        device.send(b"login d\n")
        assert device.recv() == b"old\n"
        device.advance(6)
        other = device.another()
        other.send(b"login d\n")
        assert other.recv() == b""


class TestWhenItSpeaks:
    """`when="uplink"`."""

    def test_it_is_handled_behind_the_next_frame(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.publish("devices/d/later", b"work", qos=1)
        device.publish("devices/d/later", b"more", qos=0)
        device.advance(60)
        assert device.recv() == b""
        device.send(b"half a")
        assert device.recv() == b""
        device.send(b" word\nand another\n")
        assert device.recv() == b"got half a word\ngot and another\nwork\nmore\n"
        device.send(b"x\n")
        assert device.recv() == b"got x\n"

    def test_one_that_expires_meanwhile_is_not(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.publish("devices/d/later", b"work", qos=1, expiry=10)
        device.advance(11)
        device.send(b"x\n")
        assert device.recv() == b"got x\n"
        assert device.app.stats["deliveries_dropped.expired"] == 1

    def test_one_of_a_device_that_leaves_waits_with_its_session(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.publish("devices/d/later", b"work", qos=1)
        device.close()
        back = device.another()
        back.send(b"login d\n")
        assert back.recv() == b""
        back.send(b"x\n")
        assert back.recv() == b"got x\nwork\n"

    def test_on_udp_too(self) -> None:
        with TestClient(app_of(), socktype="udp") as device:
            device.send(b"login d")
            device.publish("devices/d/later", b"work", qos=1)
            assert device.recv() == b""
            device.send(b"x")
            assert device.recv() == b"got x\nwork\n"


class TestReplies:
    """`reply=True`."""

    def test_the_answer_goes_where_it_is_wanted(self, device: TestClient) -> None:
        device.send(b"login d\n")
        ask(device, b"how warm?")
        device.send(b"=21\n")
        assert device.recv() == b"how warm?\n"
        assert device.published == [Message("answers", b"=21", 1, correlation_data=b"how warm?")]

    def test_without_a_response_topic_it_is_dropped_and_counted(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.publish("devices/d/ask", b"how warm?", qos=1)
        device.send(b"=21\n")
        assert device.published == []
        assert device.app.stats["replies_dropped"] == 1

    @pytest.mark.parametrize("blocking", [False, True])
    def test_plain_and_blocking_handlers_may_answer_and_none_is_no_answer(self, blocking: bool) -> None:
        app: App[None, bytes] = App(framing=Line())

        @app.on_received
        def login(conn: Connection, frame: bytes) -> None:
            conn.register("d", mountpoint="plant/")
            conn.subscribe("t", qos=1)

        @app.on_deliver(reply=True, blocking=blocking)
        def command(conn: Connection, message: Message) -> bytes | None:
            return message.payload.upper() if message.payload else None

        with TestClient(app) as device:
            device.send(b"\n")
            device.publish("plant/t", b"", qos=1, response_topic="office/answers")
            device.publish("plant/t", b"a", qos=1, response_topic="office/answers")
            assert device.published == [Message("office/answers", b"A", 1)]

    def test_anything_but_bytes_is_the_handlers_error(self) -> None:
        app: App[None, bytes] = App(framing=Line())

        @app.on_received
        def login(conn: Connection, frame: bytes) -> None:
            conn.register("d")
            conn.subscribe("t")

        @app.on_deliver(reply=True)
        def command(conn: Connection, message: Message) -> bytes:
            return "text"  # type: ignore[return-value] # the mistake that is tried

        with TestClient(app, raise_errors=False) as device:
            device.send(b"\n")
            device.publish("t", b"", response_topic="answers")
            assert [str(error) for error in device.errors] == [
                f"{command.__qualname__} returned str, not bytes or None; encode it first"
            ]

    def test_what_makes_no_sense_is_said_at_import(self) -> None:
        router = Router("r")
        with pytest.raises(SetupError, match="answered one by one"):
            router.on_deliver(batch=True, reply=True)  # type: ignore[call-overload] # the mistake that is tried
        with pytest.raises(SetupError, match="use 'now' or 'uplink'"):
            router.on_deliver(when="later")  # type: ignore[call-overload] # the mistake that is tried


class TestProperties:
    """What a message has beside its payload."""

    def test_they_come_with_it(self, device: TestClient) -> None:
        device.send(b"login d\n")
        device.connection.publish(
            "up", b"{}", qos=1, expiry=60, content_type="application/json", user_properties={"unit": "C"}
        )
        (message,) = device.published
        assert message == Message(
            "up", b"{}", 1, expiry=60, content_type="application/json", user_properties=[("unit", "C")]
        )
        assert (message.expiry, message.content_type) == (60, "application/json")
        assert message.user_properties == (("unit", "C"),)
        assert message != Message("up", b"{}", 1)

    def test_evolve_keeps_and_replaces_them(self) -> None:
        message = Message("t", b"", expiry=60, response_topic="r", correlation_data=b"1")
        other = attrs.evolve(message, topic="u", expiry=30)
        assert other == Message("u", b"", expiry=30, response_topic="r", correlation_data=b"1")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"expiry": 0}, "expiry is 0; it must be from 1 to 4294967295 seconds"),
            ({"expiry": 1.5}, "expiry is float, not int"),
            ({"content_type": b"x"}, "content_type is bytes, not str"),
            ({"response_topic": "a/+"}, "wildcard"),
            ({"correlation_data": "x"}, "correlation_data is str, not bytes"),
            ({"correlation_data": bytes(65_536)}, "correlation_data has 65536 bytes, limit is 65535"),
            ({"user_properties": {"a": 1}}, "a text of user_properties is int, not str"),
            ({"user_properties": ["ab"]}, "user_properties has 'ab', it takes a dict or pairs of text"),
            ({"user_properties": [("a", "b")] * 257}, "there are 257 user_properties, limit is 256"),
        ],
    )
    def test_wrong_ones_are_refused_at_once(
        self, device: TestClient, options: dict[str, object], words: str
    ) -> None:
        with pytest.raises((TypeError, ValueError), match=words):
            device.connection.publish("up", b"", **options)  # type: ignore[arg-type] # the mistakes that are tried
        with pytest.raises((TypeError, ValueError), match=words):
            device.app.publish("up", b"", **options)  # type: ignore[arg-type] # as above


def test_sessions_of_absent_devices_make_room_the_oldest_first() -> None:
    app = app_of()
    hub = MemoryHub(sessions=SessionBounds(absent=2))
    with TestClient(app) as device:
        world = device._world
        assert world is not None
        world.memory._sessions.bounds = hub._sessions.bounds
        for name in (b"a", b"b", b"c"):
            one = device.another()
            one.send(b"login %s\n" % name)
            one.close()
        for letter in ("a", "b", "c"):
            device.publish(f"devices/{letter}/command", letter.encode(), qos=1)
        got = []
        for name in (b"a", b"b", b"c"):
            one = device.another()
            one.send(b"login %s\n" % name)
            got.append(one.recv())
        assert got == [b"", b"b\n", b"c\n"]


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["login", "answer", "hang up", "take over"]),
        st.tuples(st.just("ask"), st.sampled_from([None, 5, 30])),
        st.tuples(st.just("advance"), st.sampled_from([1, 6, 20, 40])),
    ),
    max_size=30,
)


@given(STEPS)
@settings(deadline=None)
def test_each_command_comes_to_exactly_one_end(steps: list[str | tuple[str, int | None]]) -> None:
    """It is answered, it has expired, or its handler has failed: whatever the device does meanwhile."""
    app = app_of()
    with TestClient(app, raise_errors=False) as first:
        first.send(b"login d\n")
        device, devices, asked = first, [first], 0
        for step in steps:
            what, value = step if isinstance(step, tuple) else (step, None)
            if what == "ask":
                asked += 1
                ask(first, b"%d?" % asked, value)
            elif what == "advance":
                first.advance(value or 0)
            elif what == "hang up":
                device.close()
            elif what == "answer" and not device.closed:
                device.send(b"=\n")
            elif what == "take over" or (what == "login" and device.closed):
                device = first.another()
                devices.append(device)
                device.send(b"login d\n")
        first.advance(25)  # for the longest delay of a takeover
        for _ in range(2 * asked + 2):  # a device that answers everything
            if device.closed:
                device = first.another()
                devices.append(device)
                device.send(b"login d\n")
            device.send(b"=\n")
            first.advance(1)
        answers = [
            message.correlation_data
            for one in devices
            for message in one.published
            if message.topic == "answers"
        ]
        failed = len(first.errors)
        expired = app.stats.get("deliveries_dropped.expired", 0)
        assert len(answers) == len(set(answers))
        assert len(answers) + expired + failed == asked
