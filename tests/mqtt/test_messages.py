"""What goes through a real broker, both ways, and what waits there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exproto_app import Message

from .broker import Broker
from .client import Client
from .site import Site

pytestmark = pytest.mark.system

Start = Callable[..., Broker]


class TestUp:
    """From devices to the broker."""

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_qos_arrives(self, start: Start, qos: int) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("up/#", qos=2)
            device = site.client("d")
            for number in range(3):
                assert device.ask(f"ask up/d {qos} {number}") == "ok"
            messages = [other.next() for _ in range(3)]
            assert [(message.payload, message.qos) for message in messages] == [
                (b"%d" % number, qos) for number in range(3)
            ]

    def test_who_publishes_is_the_device(self, start: Start) -> None:
        # The broker puts the client's name in the topic's place, as its ACL knows it.
        acl = ("pattern write from/%c", "user gate", "topic write own")
        broker = start(users={"gate": "g", "d": "d"}, acl=acl)
        with Site(broker.url.replace("//", "//gate:g@")) as site:
            device, stranger = site.device(), site.device()
            assert device.ask("login d d") == "ok"
            assert device.ask("ask from/d 1 hi") == "ok"
            assert device.ask("ask from/another 1 hi").endswith("not authorized (0x87)")
            assert [stranger.ask("ask own 1 hi"), stranger.ask("app own hi")] == ["ok", "ok"]

    def test_retained(self, start: Start) -> None:
        broker = start()
        with Site(broker.url) as site:
            device = site.client("d")
            assert device.ask("keep kept/d on") == "ok"
            with Client(broker.port) as other:
                other.subscribe("kept/#", qos=1)
                message = other.next()
                assert (message.payload, message.retain) == (b"on", True)
            for reader in (site.client("e"), site.device()):
                assert reader.ask("sub kept/# 1") in {"ok 1", "kept/d qos 1 retained: on"}
                assert reader.line() in {"ok 1", "kept/d qos 1 retained: on"}

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_a_packet_that_is_too_large_is_not_sent(self, start: Start, qos: int) -> None:
        broker = start("max_packet_size 2000")
        with Site(broker.url) as site:
            device = site.client("d")
            assert device.ask(f"fill up {qos} 1900") == "ok"
            answer = device.ask(f"fill up {qos} 2000")
            assert answer.startswith("DeniedError: the packet has 20")
            assert answer.endswith(" bytes, the broker takes 2000 at most")
            assert device.ask(f"fill up {qos} 1900") == "ok"

    @pytest.mark.parametrize("qos", [1, 2])
    def test_a_payload_that_the_broker_refuses(self, start: Start, qos: int) -> None:
        broker = start("message_size_limit 1000")
        with Site(broker.url) as site:
            device = site.client("d")
            answer = device.ask(f"fill up {qos} 1001")
            assert answer.startswith("DeniedError: ")
            assert answer.endswith("packet too large (0x95)")
            assert device.ask(f"fill up {qos} 1000") == "ok"
            assert device.ask("count sessions_interrupted") == "0"

    def test_retained_where_the_broker_keeps_none(self, start: Start) -> None:
        broker = start("retain_available false")
        with Site(broker.url) as site:
            device = site.client("d")
            assert device.ask("keep kept/d on") == "DeniedError: the broker keeps no retained messages"

    def test_a_qos_that_the_broker_does_not_have(self, start: Start) -> None:
        broker = start("max_qos 1")
        with Site(broker.url) as site:
            device = site.client("d")
            assert device.ask("ask up 2 hi") == "DeniedError: the broker takes QoS 1 at most, not 2"
            assert device.ask("sub down 2") == "ok 1"
            assert [device.ask("ask down 1 hi"), device.line()] in (
                ["ok", "down qos 1: hi"],
                ["down qos 1: hi", "ok"],
            )

    def test_more_than_the_broker_takes_at_a_time(self, start: Start) -> None:
        broker = start("max_inflight_messages 2")
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("up")
            device = site.client("d")
            device.say(*(f"say up {number}" for number in range(300)), "ask up 1 last")
            assert device.line() == "ok"
            wanted = [*(b"%d" % number for number in range(300)), b"last"]
            assert [other.next().payload for _ in wanted] == wanted


class TestDown:
    """From the broker to devices."""

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_qos_arrives(self, start: Start, qos: int) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            device = site.client("d")
            assert device.ask("sub down/# 2") == "ok 2"
            for number in range(3):
                other.publish("down/d", b"%d" % number, qos)
            device.expect(b"".join(b"down/d qos %d: %d\n" % (qos, number) for number in range(3)))

    def test_overlapping_subscriptions_of_strangers(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            one, two = site.device(), site.device()
            assert [one.ask("sub a/# 1"), one.ask("sub a/b 0"), two.ask("sub +/b 0")] == [
                "ok 1",
                "ok 0",
                "ok 0",
            ]
            other.publish("a/b", b"x", qos=1)
            other.publish("c/b", b"y", qos=1)
            other.publish("a/c", b"z", qos=1)
            two.expect(b"a/b qos 0: x\nc/b qos 0: y\n")
            seen = [one.line()]
            while seen[-1] != "a/c qos 1: z":
                seen.append(one.line())
            # A broker may send a message for each filter that it matches.
            assert set(seen[:-1]) <= {"a/b qos 1: x", "a/b qos 0: x"}
            assert 1 <= len(seen[:-1]) <= 2

    def test_commands_wait_for_an_absent_device(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("end/#")
            device = site.device()
            assert [device.ask("stay d"), device.ask("sub jobs/# 1")] == ["ok", "ok 1"]
            device.hang_up()
            other.next("end/d")
            for number in range(100):
                other.publish("jobs/d", b"%d" % number, qos=1)
            device = site.device()
            device.say("stay d")
            lines = sorted(device.line() for _ in range(101))
            assert lines == sorted(["ok", *(f"jobs/d qos 1: {number}" for number in range(100))])

    def test_and_for_one_that_comes_back_elsewhere(self, start: Start) -> None:
        broker = start(persistent=True)
        with Client(broker.port) as other, Site(broker.url) as site:
            device = site.device()
            assert [device.ask("stay d"), device.ask("sub jobs/# 2")] == ["ok", "ok 2"]
            site.end()
            other.publish("jobs/d", b"work", qos=2)
        broker.stop()
        broker.start()
        with Site(broker.url) as site:
            device = site.device()
            device.say("stay d")
            assert sorted([device.line(), device.line()]) == ["jobs/d qos 2: work", "ok"]

    @pytest.mark.parametrize("qos", [1, 2])
    def test_it_counts_as_delivered_only_when_its_handler_has_ended(self, start: Start, qos: int) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("end/#")
            device, opener = site.device(), site.device()
            assert [device.ask("stay d"), device.ask(f"sub jobs/# {qos}")] == ["ok", f"ok {qos}"]
            other.publish("jobs/d", b"hold", qos)
            assert device.line() == "holding"
            device.hang_up()  # in the middle of its handler
            other.next("end/d")
            assert opener.ask("open") == "opened"
            device = site.device()
            device.say("stay d")
            lines = sorted(device.line() for _ in range(3))
            assert lines == ["holding", f"jobs/d qos {qos}: hold", "ok"]
            # Now it is, and doesn't come once more.
            device.hang_up()
            other.next("end/d")
            device = site.device()
            assert [device.ask("stay d"), device.ask("ask up 1 hi")] == ["ok", "ok"]

    def test_a_flood_of_qos_0_is_dropped_and_counted(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url, "--deliveries", 100) as site:
            slow, quick = site.client("slow"), site.client("quick")
            assert [slow.ask("sub jobs/# 0"), quick.ask("sub jobs/last 1")] == ["ok 0", "ok 1"]
            other.publish("jobs/x", b"hold")
            assert slow.line() == "holding"
            for number in range(1000):
                other.post("jobs/x", b"%d" % number)
            other.publish("jobs/last", b"flooded", qos=1)
            assert quick.line() == "jobs/last qos 1: flooded"
            while int(quick.ask("count deliveries_dropped")) < 901:
                pass
            assert quick.ask("open") == "opened"
            slow.expect(b"jobs/x qos 0: hold\n")
            slow.expect(b"".join(b"jobs/x qos 0: %d\n" % number for number in range(100)))
            assert slow.ask("ask up 1 hi") == "ok"

    @pytest.mark.parametrize("qos", [1, 2])
    def test_a_flood_of_more_waits_at_the_broker(self, start: Start, qos: int) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url, "--deliveries", 20) as site:
            slow, quick = site.client("slow"), site.client("quick")
            assert [slow.ask(f"sub jobs/# {qos}"), quick.ask("sub last 2")] == [f"ok {qos}", "ok 2"]
            other.publish("jobs/x", b"hold", qos)
            assert slow.line() == "holding"
            for number in range(1000):
                other.post("jobs/x", b"%d" % number, qos)
            other.publish("last", b"flooded", qos)
            assert quick.line() == f"last qos {qos}: flooded"
            assert quick.ask("open") == "opened"
            slow.expect(b"jobs/x qos %d: hold\n" % qos)
            slow.expect(b"".join(b"jobs/x qos %d: %d\n" % (qos, number) for number in range(1000)))
            assert quick.ask("count deliveries_dropped") == "0"


class TestWills:
    """Last words of clients."""

    def test_of_a_device_that_hangs_up(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("#", qos=1)
            device = site.device()
            assert device.ask("will d") == "ok"
            device.hang_up()
            assert other.next("end/d").payload.startswith(b"device closed")
            assert other.next("will/d").payload == b"gone"

    def test_none_of_one_that_the_app_ended(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("#", qos=1)
            device = site.device()
            assert device.ask("will d") == "ok"
            device.say("end")
            device.expect_end()
            assert other.next("end/d").payload.startswith(b"terminated")
            assert site.client("d").ask("ask up 1 the session has ended") == "ok"
            other.next("up")
            assert other.none("will/d")


class TestShared:
    """`--mqtt-mode shared`: all devices are the gateway's own client to the broker."""

    def test_messages_both_ways(self, start: Start) -> None:
        broker = start(users={"gate": "g"})
        url = broker.url.replace("//", "//gate:g@")
        with (
            Client(broker.port, username="gate", password="g") as other,
            Site(url, "--mqtt-mode", "shared") as site,
        ):
            other.subscribe("up/#", qos=1)
            one, two = site.client("1"), site.client("2")
            assert [one.ask("sub down/1 1"), two.ask("sub down/2 1")] == ["ok 1", "ok 1"]
            for number, device in ((1, one), (2, two)):
                assert device.ask(f"ask up/{number} 1 hi") == "ok"
                assert other.next(f"up/{number}").payload == b"hi"
                other.publish(f"down/{number}", b"do", qos=1)
                assert device.line() == f"down/{number} qos 1: do"

    def test_a_slow_device_holds_up_nobodys_commands(self, start: Start) -> None:
        broker = start()
        options = ("--mqtt-mode", "shared", "--deliveries", 20)
        with Client(broker.port) as other, Site(broker.url, *options) as site:
            slow, quick = site.client("slow"), site.client("quick")
            assert [slow.ask("sub jobs/# 1"), quick.ask("sub jobs/last 1")] == ["ok 1", "ok 1"]
            other.publish("jobs/x", b"hold", qos=1)
            assert slow.line() == "holding"
            for number in range(500):
                other.post("jobs/x", b"%d" % number, qos=1)
            other.publish("jobs/last", b"flooded", qos=1)
            assert quick.line() == "jobs/last qos 1: flooded"


class TestProperties:
    """MQTT 5's properties pass both ways."""

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_up_and_down(self, start: Start, qos: int) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("up", qos=2)
            device = site.client("d")
            assert device.ask(f"rich up {qos} hello") == "ok"
            assert other.next("up") == Message(
                "up",
                b"hello",
                qos,
                expiry=60,
                content_type="text/plain",
                response_topic="answers",
                correlation_data=b"\0\1",
                user_properties=[("unit", "C")],
            )
            assert device.ask("sub rich/# 2") == "ok 2"
            other.post(
                "rich/d",
                b"hello",
                qos,
                MessageExpiryInterval=60,
                ContentType="text/plain",
                ResponseTopic="answers",
                CorrelationData=b"\0\1",
                UserProperty=("unit", "C"),
            )
            assert device.line() == (
                "Properties(expiry=60, content_type='text/plain', response_topic='answers', "
                "correlation_data=b'\\x00\\x01', user_properties=(('unit', 'C'),))"
            )

    def test_an_answer_goes_where_it_is_wanted(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("answers", qos=1)
            device = site.client("d")
            assert device.ask("sub questions/d 1") == "ok 1"
            other.post("questions/d", b"how warm?", 1, ResponseTopic="answers", CorrelationData=b"7")
            assert device.line() == "how warm?"
            device.say("=21")
            assert other.next("answers") == Message("answers", b"=21", 1, correlation_data=b"7")
