"""Sessions of devices on the embedded hub: what waits there is bounded, counted, and comes once."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.commands import Outcome, Publish
from exproto_app.core import Channel, Engine
from exproto_app.core.hub import MemoryHub
from exproto_app.core.sessions import SessionBounds
from exproto_app.errors import UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Address, ConnectionInfo, Limits

from .world import FakeLink, FakeRuntime, FakeWaiter


class Post:
    """An app whose devices log in as `NAME [EXPIRY [MOUNTPOINT]]`, on an embedded hub."""

    def __init__(self, **bounds: int) -> None:
        self.app: App[Any, Any] = App(framing=Line(), limits=Limits())
        self.got: list[bytes] = []
        self.waiters: list[FakeWaiter] = []

        @self.app.on_received
        def login(conn: Connection[Any, Any], frame: bytes) -> None:
            words = frame.decode().split()
            name, expiry, mountpoint = (*words, *("60", "")[len(words) - 1 :])
            conn.register(name, session_expiry=int(expiry), mountpoint=mountpoint)
            conn.subscribe("to/" + name, qos=1)

        @self.app.on_deliver
        async def deliver(conn: Connection[Any, Any], message: Message) -> None:
            self.got.append(message.payload)
            if message.payload.startswith(b"wait"):
                waiter = FakeWaiter()
                self.waiters.append(waiter)
                await waiter

        self.runtime = FakeRuntime()
        self.hub = MemoryHub(sessions=SessionBounds(**bounds))
        self.engine = Engine(self.app, self.runtime, self.hub)
        self.engine.start()

    def login(self, words: str) -> Channel:
        """Connect a device, and log it in."""
        link = FakeLink()
        info = ConnectionInfo("tcp", Address("192.0.2.1", 5000), Address("192.0.2.2", 7993))
        self.engine.connected(link, info, (self.app,))
        assert isinstance(link.channel, Channel)
        link.channel.received(words.encode() + b"\n")
        self.runtime.settle()
        return link.channel

    def leave(self, channel: Channel) -> None:
        """Have the device hang up."""
        channel.terminated()
        self.runtime.settle()

    def publish(self, payload: bytes, *, to: str = "to/a", qos: int = 1, **options: Any) -> Outcome[None]:
        """Publish for the app."""
        outcome: Outcome[None] = self.app.publish(to, payload, qos=qos, **options)
        self.runtime.settle()
        return outcome

    def dropped(self, why: str) -> int:
        """Return how many messages were dropped for *why*."""
        return self.app.stats.get(f"deliveries_dropped.{why}", 0)


def test_a_message_of_an_absent_device_waits_and_one_of_qos_0_does_not() -> None:
    post = Post()
    post.leave(post.login("a"))
    post.publish(b"1")
    post.publish(b"0", qos=0)
    assert post.hub.gauges()["device_session_bytes"] > 0
    post.login("a")
    assert post.got == [b"1"]
    assert post.hub.gauges()["device_session_bytes"] == 0
    assert post.app.stats["deliveries_dropped"] == 0


def test_what_has_expired_makes_room_for_what_comes() -> None:
    post = Post(messages=2)
    post.leave(post.login("a"))
    post.publish(b"short", expiry=5)
    post.publish(b"long", expiry=50)
    assert isinstance(post.publish(b"too much").error, UnavailableError)
    post.runtime.advance(6)
    assert post.publish(b"fits now").error is None
    post.login("a")
    assert post.got == [b"long", b"fits now"]
    assert (post.dropped("queue_full"), post.dropped("expired")) == (1, 1)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"queue": 1_500}, "1 messages (1168 bytes) wait for it, limits are 1000 and 1500"),
        ({"total": 1_500}, "1168 bytes wait for all devices, limit is 1500"),
    ],
    ids=["of one", "of all"],
)
def test_bytes_are_bounded_and_the_publisher_is_told(bounds: dict[str, int], words: str) -> None:
    post = Post(**bounds)
    post.leave(post.login("a"))
    post.publish(b"x" * 1_000)
    assert words in str(post.publish(b"x" * 1_000).error)
    assert post.dropped("queue_full") == 1


def test_whoever_publishes_waits_while_much_waits_for_a_device_that_is_there() -> None:
    post = Post(messages=4)
    channel = post.login("a")
    assert post.publish(b"wait").done
    assert post.publish(b"2").done
    third = post.publish(b"3")
    fourth = post.publish(b"4")
    assert (third.done, fourth.done) == (False, False)
    post.waiters[0].set_result(None)
    post.runtime.settle()
    assert (third.done, fourth.done) == (True, True)
    assert post.got == [b"wait", b"2", b"3", b"4"]
    assert not channel.gone


def test_whoever_waits_for_room_goes_on_when_the_device_leaves() -> None:
    post = Post(messages=2)
    channel = post.login("a")
    post.publish(b"wait")
    waiting = post.publish(b"2")
    assert not waiting.done
    channel.terminated()
    post.runtime.advance(11)  # the handler keeps running for as long as it may
    assert (waiting.done, waiting.error) == (True, None)
    post.login("a")
    assert post.got == [b"wait", b"wait"], "the first one was never handled to its end"
    assert post.app.stats["deliveries_dropped"] == 0, "nothing is lost: all of it comes again"


def test_what_the_end_of_a_connection_overtakes_is_lost_only_where_no_session_keeps_it() -> None:
    post = Post()
    channel = post.login("a")
    post.publish(b"wait")
    post.publish(b"kept")
    post.publish(b"for who is there", qos=0)
    channel.end("kicked")
    post.publish(b"behind the end")
    post.leave(channel)
    post.runtime.advance(11)
    assert (post.app.stats["deliveries_dropped"], post.dropped("closing")) == (1, 1)
    back = post.login("a")
    post.waiters[-1].set_result(None)
    post.runtime.settle()
    assert post.got == [b"wait", b"wait", b"kept", b"behind the end"]
    assert not back.gone


def test_a_session_that_is_mounted_elsewhere_ends() -> None:
    post = Post()
    post.leave(post.login("a"))
    post.publish(b"old")
    post.login("a 60 m/")
    assert (post.got, post.dropped("session_ended")) == ([], 1)
    post.publish(b"new", to="m/to/a")
    assert post.got == [b"new"]


def test_one_that_is_mounted_elsewhere_ends_the_session_of_a_device_that_is_there_too() -> None:
    post = Post()
    older = post.login("a")
    post.publish(b"wait")
    newer = post.login("a 60 m/")
    assert older.reason == "taken over"
    assert post.dropped("session_ended") == 1
    post.waiters[0].set_result(None)
    post.leave(older)
    assert post.hub.gauges()["device_session_bytes"] == 0
    post.publish(b"new", to="m/to/a")
    assert (post.got, newer.gone) == ([b"wait", b"new"], False)


def test_a_takeover_without_a_session_ends_it_with_the_connection() -> None:
    post = Post()
    older = post.login("a")
    newer = post.login("a 0")
    post.leave(older)
    post.publish(b"1")
    assert post.got == [b"1"]
    post.leave(newer)
    assert post.hub.gauges()["device_sessions"] == 0
    assert post.hub.gauges()["subscriptions"] == 0


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_so_many_absent_devices_have_sessions_and_the_oldest_goes_first(absent: int) -> None:
    post = Post(absent=absent)
    for name in ("a", "b", "c"):
        post.leave(post.login(name))
    gauges = post.hub.gauges()
    assert (gauges["device_sessions"], gauges["subscriptions"]) == (absent, absent)
    for name in ("a", "b", "c"):
        post.publish(name.encode(), to=f"to/{name}")
        post.login(name)
    assert post.got == [b"a", b"b", b"c"][3 - absent :]
    assert not post.hub._absent


def test_a_timer_that_fires_although_it_was_cancelled_ends_no_session() -> None:
    post = Post()
    post.leave(post.login("a 10"))
    (stale,) = [timer for timer in post.runtime.timers if timer.due == post.runtime.now + 10]
    post.runtime.advance(5)
    back = post.login("a 10")
    post.runtime.now = stale.due
    stale.call()
    post.leave(back)
    stale.call()
    post.publish(b"1")
    again = post.login("a 10")
    assert post.got == [b"1"]
    post.leave(again)
    post.leave(post.login("a 0"))
    newer = post.login("a 10")
    stale.call()
    post.publish(b"2")
    assert (post.got, newer.gone) == ([b"1", b"2"], False)


def test_a_message_that_was_handled_behind_the_end_of_its_session_harms_nobody() -> None:
    post = Post()
    older = post.login("a")
    post.publish(b"wait")
    newer = post.login("a 60 m/")  # which ends the session, whose message is in the works
    assert not newer.gone
    post.waiters[0].set_result(None)
    post.runtime.settle()
    assert older.reason == "taken over"
    assert post.hub.gauges()["device_session_bytes"] == 0


def test_subscriptions_go_with_the_client_where_no_session_is_kept() -> None:
    post = Post()
    older = post.login("a 0")
    newer = post.login("a 0")
    post.publish(b"1")
    assert post.got == [], "the older one still ends"
    post.leave(older)
    post.publish(b"2")
    assert post.got == [b"1", b"2"]
    post.leave(newer)
    assert post.hub.gauges()["subscriptions"] == 0


def test_a_group_leaves_its_absent_members_out_while_others_are_there() -> None:
    post = Post()
    first, second = post.login("a"), post.login("b")
    for channel in (first, second):
        channel.conn.subscribe("$share/g/work", qos=1)
    post.runtime.settle()
    post.leave(first)
    for number in range(4):
        post.publish(b"%d" % number, to="work")
    assert post.got == [b"0", b"1", b"2", b"3"]
    post.leave(second)
    post.publish(b"4", to="work")
    post.login("a")
    post.login("b")
    assert post.got[4:] == [b"4"], "all are absent, so one of them keeps it"


def test_the_hub_answers_a_publish_that_nobody_gets_at_once() -> None:
    post = Post()
    channel = post.login("a")
    assert post.hub.execute(channel, Publish("nowhere", b"")).done
    assert not post.hub.subscribed(channel, "nowhere")
    assert post.hub.subscribed(channel, "to/a")
