"""The test client's broker: away, slow, unkind, full; on it, what `send(after=…)` promises."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.errors import DeniedError, SetupError, UnavailableError
from exproto_app.framing import Line
from exproto_app.testing import Broker, TestClient


def stored() -> App[Any, Any]:
    """Return an app that acknowledges a record when the broker has it."""
    app: App[Any, Any] = App(framing=Line())

    @app.on_connect
    def connect(conn: Connection) -> None:
        conn.register(f"d{conn.id}")
        conn.subscribe(f"d{conn.id}/command", qos=1)

    @app.on_received
    def record(conn: Connection, frame: bytes) -> None:
        conn.send(b"ack " + frame, after=conn.publish("records", frame, qos=1))

    @app.on_received(b"await ")
    async def awaits(conn: Connection, frame: bytes) -> bytes:
        try:
            await conn.publish("records", frame[6:], qos=1)
        except DeniedError as error:
            return str(error).encode()
        return b"stored"

    @app.on_received(b"fast ")
    def fast(conn: Connection, frame: bytes) -> bytes:
        conn.publish("fast", frame[5:])
        return b"done"

    @app.on_received(b"ping")
    def ping(conn: Connection, frame: bytes) -> bytes:
        return b"pong"

    @app.on_deliver
    def command(conn: Connection, message: Message) -> bytes:
        return message.payload

    return app


def record(payload: bytes) -> Message:
    return Message("records", payload, 1)


def test_by_default_it_takes_everything_at_once() -> None:
    with TestClient(stored()) as device:
        device.send(b"1\n")
        assert device.recv() == b"ack 1\n"
        assert device.broker.unacknowledged == []
        assert not device.broker.away


def test_verbs_wait_while_it_is_away() -> None:
    with TestClient(stored()) as device:
        device.broker.go_away()
        device.send(b"1\nfast 2\n3\nping\n")
        device.advance(86_400)
        assert device.recv() == b"done\npong\n"
        assert device.published == []
        assert device.broker.unacknowledged == [record(b"1"), Message("fast", b"2"), record(b"3")]
        assert repr(device.broker) == "<Broker away, 3 unacknowledged>"
        device.broker.come_back()
        assert device.recv() == b"ack 1\nack 3\n"
        assert [message.payload for message in device.published] == [b"1", b"2", b"3"]


def test_a_register_waits_for_ten_seconds() -> None:
    app = stored()
    with TestClient(app, broker="away") as device:
        device.advance(9)
        device.broker.come_back()
        assert list(app.connections) == ["d1"]
    with TestClient(app, broker="away") as device:
        device.advance(10)
        assert device.close_detail == (
            "register failed: no session with the broker within 10 s: the broker is away"
        )


def test_what_others_publish_meanwhile_comes_when_it_is_back() -> None:
    with TestClient(stored()) as device:
        device.broker.go_away()
        device.publish("d1/command", b"reboot")
        device.deliver("d1/command", b"report")
        assert device.recv() == b""
        device.broker.come_back()
        assert device.recv() == b"reboot\nreport\n"


def test_what_expires_while_it_is_away_never_comes() -> None:
    with TestClient(stored()) as device:
        device.broker.go_away()
        device.publish("d1/command", b"late", expiry=10)
        device.deliver("d1/command", b"late too", expiry=10)
        device.advance(10)
        device.publish("d1/command", b"in time", expiry=10)
        device.advance(9)
        device.broker.come_back()
        assert device.recv() == b"in time\n"


def test_what_a_device_publishes_meanwhile_may_expire_too() -> None:
    app: App[Any, Any] = App(framing=Line())

    @app.on_received
    async def record(conn: Connection, frame: bytes) -> bytes:
        try:
            await conn.publish("records", frame, qos=1, expiry=int(frame))
        except UnavailableError as error:
            return str(error).encode()
        return b"stored"

    with TestClient(app, broker="away") as device:
        other = device.another()
        device.send(b"5\n")
        other.send(b"60\n")
        device.advance(6)
        assert device.recv() == b"the message expired while it waited for the broker\n"
        assert app.stats["messages_expired"] == 1
        device.broker.come_back()
        assert other.recv() == b"stored\n"
        assert other.published == [Message("records", b"60", 1, expiry=54)]


def test_acknowledgements_are_released_one_by_one() -> None:
    with TestClient(stored(), broker="holds") as device:
        device.send(b"1\n2\n3\nfast 4\n")
        assert device.recv() == b"done\n"
        assert device.broker.unacknowledged == [record(b"1"), record(b"2"), record(b"3")]
        device.broker.acknowledge()
        assert device.recv() == b"ack 1\n"
        device.broker.acknowledge(record(b"3"))
        assert device.recv() == b""
        device.broker.acknowledge()
        assert device.recv() == b"ack 2\nack 3\n"
        with pytest.raises(AssertionError, match="no message waits for an acknowledgement"):
            device.broker.acknowledge()
        device.send(b"5\n")
        device.broker.release()
        device.send(b"6\n")
        assert device.recv() == b"ack 5\nack 6\n"
        device.broker.hold()
        device.send(b"7\n")
        assert device.broker.unacknowledged == [record(b"7")]


def test_one_message_may_be_refused() -> None:
    with TestClient(stored(), broker="holds", raise_errors=False) as device:
        device.send(b"await 1\n")
        device.broker.refuse("quota exceeded")
        assert device.recv() == b"quota exceeded\n"
        device.send(b"2\n3\n4\n")
        device.broker.refuse("quota exceeded", record(b"3"))
        device.broker.acknowledge(record(b"2"))
        assert device.recv() == b"ack 2\n"
        assert device.close_reason == "error"
        assert [str(error) for error in device.errors] == ["quota exceeded"]


def test_it_refuses_topics() -> None:
    with TestClient(stored(), refuse={"records": "not authorized", "d1/+": "no commands"}) as device:
        device.send(b"await 1\nfast 2\n")
        assert device.recv() == b"not authorized\ndone\n"
        assert device.published == [Message("fast", b"2")]
        with pytest.raises(AssertionError, match="isn't subscribed"):
            device.deliver("d1/command", b"")


def test_it_refuses_every_second_message() -> None:
    answers = iter([None, "no", None, "no"])
    refuse = lambda message: next(answers) if message.topic == "records" else None  # noqa: E731 - as users write it
    with TestClient(stored(), refuse=refuse, raise_errors=False) as device:
        device.send(b"await 1\nawait 2\n3\n4\n")
        assert device.recv() == b"stored\nno\nack 3\n"
        assert device.close_reason == "error"


def test_beyond_its_queue_turns_wait() -> None:
    app = stored()
    with TestClient(app, broker=Broker(queue=2)) as device:
        device.broker.go_away()
        device.send(b"1\n2\n3\nping\n")
        assert device.recv() == b""
        device.broker.come_back()
        assert device.recv() == b"ack 1\nack 2\nack 3\npong\n"


def test_much_more_than_its_queue_goes_through_when_it_is_back() -> None:
    with TestClient(stored(), broker="away") as device:
        device.send(b"".join(b"%d\n" % number for number in range(2_000)))
        device.broker.come_back()
        assert device.recv() == b"".join(b"ack %d\n" % number for number in range(2_000))
        assert device.broker.unacknowledged == []


def test_all_devices_share_it() -> None:
    with TestClient(stored()) as device:
        other = device.another()
        device.broker.hold()
        device.send(b"1\n")
        other.send(b"2\n")
        assert other.broker.unacknowledged == [record(b"1"), record(b"2")]
        other.broker.release()
        assert (device.recv(), other.recv()) == (b"ack 1\n", b"ack 2\n")


def test_the_app_itself_waits_too() -> None:
    app = stored()
    seen: list[Any] = []

    @app.on_received(b"app")
    async def publish(conn: Connection, frame: bytes) -> None:
        await app.publish("app", b"1", qos=1)
        seen.append(frame)

    with TestClient(app, broker="holds") as device:
        device.send(b"app\n")
        assert (seen, device.app_published) == ([], [])
        device.broker.acknowledge()
        assert (seen, device.app_published) == ([b"app"], [Message("app", b"1", 1)])


def test_what_a_device_said_before_it_hung_up_still_goes() -> None:
    with TestClient(stored()) as device:
        other = device.another()
        device.broker.go_away()
        other.send(b"1\n")
        other.close()
        device.broker.come_back()
        assert other.published == [record(b"1")]


def test_a_broker_that_never_answers_costs_a_bounded_wait_at_the_end() -> None:
    with TestClient(stored(), broker="holds") as device:
        device.send(b"1\n")
        device.connection.terminate()
        device.advance(4)
        assert not device.closed
        device.advance(2)
        assert (device.recv(), device.close_reason) == (b"", "terminated")


def test_wrong_use_is_told() -> None:
    with pytest.raises(SetupError, match="broker is 'gone'; it is 'away', 'holds' or a Broker"):
        TestClient(stored(), broker="gone")  # type: ignore[arg-type] # the mistake that is tried
    with pytest.raises(SetupError, match="belongs to the broker"):
        TestClient(stored(), broker=Broker(), refuse={"a": "no"})
    with pytest.raises(SetupError, match="queue is 0"):
        Broker(queue=0)
    with pytest.raises(SetupError, match="has no device"):
        Broker().come_back()
    broker = Broker()
    with TestClient(stored(), broker=broker) as device:
        device.broker.go_away()
        device.send(b"1\n")
        with pytest.raises(AssertionError, match="come_back"):
            device.broker.acknowledge()
    with pytest.raises(SetupError, match="another TestClient"), TestClient(stored(), broker=broker):
        pass


def test_a_login_is_refused_by_the_rule_as_ever() -> None:
    with TestClient(stored(), login=lambda client, password: False) as device:
        assert device.close_reason == "error"


def test_verbs_of_a_device_that_has_gone_are_forgotten() -> None:
    app = stored()
    outcomes: list[Any] = []

    @app.on_received(b"more")
    async def more(conn: Connection, frame: bytes) -> None:
        outcomes.append(conn.subscribe("more"))

    with TestClient(app) as device:
        other = device.another()
        device.broker.go_away()
        other.send(b"more\n")
        other.close()
        device.broker.come_back()
        assert outcomes[0].error is not None
        assert not isinstance(outcomes[0].error, UnavailableError)
