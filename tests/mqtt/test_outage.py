"""A real broker that goes, comes back, or hangs: devices stay, and what they have said arrives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.devices import TELTONIKA

from .broker import Broker, free_port
from .client import Client
from .process import PATIENCE
from .site import Site

pytestmark = pytest.mark.system

Start = Callable[..., Broker]

DEVICES = 200
LINES = 25
OUTAGE = 2.0


class TestKilled:
    """The broker is killed and comes back on its port."""

    def test_in_the_midst_of_traffic_every_message_arrives(self, start: Start) -> None:
        broker = start("queue_qos0_messages true", persistent=True)
        sent = {f"{device} {line}".encode() for device in range(DEVICES) for line in range(LINES)}
        arrived: set[bytes] = set()
        with Client(broker.port, "counter", session_expiry=3600, reconnects=True) as counter:
            counter.subscribe("up/#")
            broker.save()  # the subscription is there again before any device is
            with Site(broker.url) as site:
                fleet = threading.Thread(target=asyncio.run, args=(talk(site.port),))
                fleet.start()
                while len(arrived) < len(sent) // 3:
                    arrived.add(counter.next().payload)
                broker.kill()
                time.sleep(OUTAGE)  # it is what is tested, nothing is waited for
                broker.start()
                while arrived != sent:
                    arrived.add(counter.next().payload)
                fleet.join(PATIENCE)
                assert not fleet.is_alive(), "no device is stuck"
                assert site.device().ask("count sessions_interrupted") != "0"

    def test_a_device_that_waits_is_read_again(self, start: Start) -> None:
        broker = start()
        with Site(broker.url, "--mqtt-queue", 10) as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            device.say(*(f"say up {number}" for number in range(500)), "ask up 1 last")
            broker.start()
            with Client(broker.port) as other:
                other.subscribe("late")
                assert device.line() == "ok"
                assert device.ask("ask late 1 hello") == "ok"
                assert other.next("late").payload == b"hello"
                assert device.ask("count publishes_dropped") == "0"

    def test_what_a_tracker_has_recorded_is_acknowledged_when_the_broker_has_it(self, start: Start) -> None:
        """Not before: the tracker forgets it then."""
        broker = start()
        step = TELTONIKA.steps[0]
        with Site(broker.url, app=Path(TELTONIKA.path), protocol=TELTONIKA.protocol) as site:
            tracker = site.device()
            tracker.send(TELTONIKA.login.sends)
            tracker.expect(TELTONIKA.login.answer)
            broker.kill()
            site.wait_for("can't be reached")
            tracker.send(step.sends)
            tracker.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                tracker.sock.recv(1)
            tracker.sock.settimeout(PATIENCE)
            broker.start()
            tracker.expect(step.answer)

    def test_the_oldest_are_dropped_where_that_is_asked_for(self, start: Start) -> None:
        broker = start(persistent=True)
        with Client(broker.port, "counter", session_expiry=60) as counter:
            counter.subscribe("up", qos=1)
        broker.save()
        with Site(broker.url, "--mqtt-queue", 10, "--mqtt-when-full", "drop-oldest") as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            device.say(*(f"say up {number}" for number in range(100)))
            assert device.ask("count publishes_dropped") == "90"
            site.wait_for("the queue is full: drop-oldest")
            broker.start()
            with Client(broker.port, "counter", session_expiry=60) as counter:
                assert [counter.next().payload for _ in range(10)] == [b"%d" % n for n in range(90, 100)]

    def test_a_device_is_disconnected_where_that_is_asked_for(self, start: Start) -> None:
        broker = start()
        with Site(broker.url, "--mqtt-queue", 10, "--mqtt-when-full", "disconnect") as site:
            device, other = site.client("d"), site.client("o")
            broker.kill()
            site.wait_for("can't be reached")
            device.say(*(f"say up {number}" for number in range(11)))
            device.expect_end()
            assert other.ask("count publishes_dropped") == "0"

    def test_subscriptions_are_restored(self, start: Start) -> None:
        broker = start()
        with Site(broker.url) as site:
            device, stranger = site.client("d"), site.device()
            assert [device.ask("sub down/# 1"), stranger.ask("sub strange/# 1")] == ["ok 1", "ok 1"]
            broker.restart()
            assert [device.ask("ask down/d 1 hi"), device.line()] == ["ok", "down/d qos 1: hi"]
            assert stranger.ask("ask up 1 hi") == "ok"
            assert device.ask("ask strange/s 1 hello") == "ok"
            assert stranger.line() == "strange/s qos 1: hello"

    def test_again_and_again_it_is_no_takeover(self, start: Start) -> None:
        broker = start()
        with Site(broker.url) as site:
            device = site.client("d")
            for number in range(3):
                broker.restart()
                assert device.ask(f"ask up 1 {number}") == "ok"

    def test_a_device_that_may_no_longer_come_back_is_closed(self, start: Start) -> None:
        broker = start(users={"gate": "g", "d": "pass", "o": "word"}, persistent=True)
        counting = partial(Client, broker.port, "counter", username="gate", password="g", session_expiry=60)
        with counting() as counter:
            counter.subscribe("end/#", qos=1)
        broker.save()
        with Site(broker.url.replace("//", "//gate:g@")) as site:
            device, other = site.device(), site.device()
            assert [device.ask("login d pass"), other.ask("login o word")] == ["ok", "ok"]
            broker.kill()
            broker.users = {**broker.users, "d": "changed"}
            broker.start()
            device.expect_end()
            assert other.ask("ask up 1 still here") == "ok"
            with counting() as counter:
                words = b"kicked: the broker refused 'd': not authorized (0x87)"
                assert counter.next("end/d").payload == words


class TestHanging:
    """The broker takes connections and answers nothing, as behind half-open TCP."""

    def test_it_is_noticed_and_nothing_is_lost(self, start: Start) -> None:
        broker = start()
        with Site(broker.url, "--mqtt-timeout", 0.5) as site:
            device = site.client("d")
            broker.pause()
            device.say("ask up 1 hello")
            site.wait_for("can't be reached: no CONNACK within 0.5 s")
            other = site.device()
            assert other.ask("login o").startswith(
                "UnavailableError: no session with the broker within 0.5 s"
            )
            broker.resume()
            assert device.line() == "ok"
            assert other.ask("login o") == "ok"

    def test_at_the_start_it_is_waited_for(self, start: Start) -> None:
        broker = start()
        broker.pause()
        with Site(broker.url, "--mqtt-timeout", 0.3) as site:
            site.wait_for("can't be reached: no CONNACK within 0.3 s")
            device = site.device()
            assert device.ask("login d").startswith(
                "UnavailableError: no session with the broker within 0.3 s"
            )
            broker.resume()
            site.wait_for("connected to")
            assert device.ask("login d") == "ok"

    def test_at_the_start_it_is_the_end_where_it_is_required(self, start: Start) -> None:
        broker = start()
        broker.pause()
        site = Site(broker.url, "--mqtt-timeout", 0.3, "--mqtt-required")
        assert site.wait() == 1
        assert site.lines[-1].endswith("is required and can't be used: no CONNACK within 0.3 s")

    def test_a_gateway_that_stops_meanwhile_says_what_is_lost(self, start: Start) -> None:
        broker = start()
        with Site(broker.url) as site:
            device = site.client("d")
            broker.pause()
            device.say("say up 1", "say up 2", "count frames_received")
            assert device.line() == "4"
            site.end()
            site.wait_for("messages dropped: the gateway stops, and the broker hasn't taken them")


class TestAbsent:
    """The broker isn't there when the gateway starts."""

    def test_devices_are_served_meanwhile(self, start: Start) -> None:
        with free_port() as port, Site(f"mqtt://127.0.0.1:{port}") as site:
            site.wait_for("can't be reached: connection refused; trying again")
            device = site.device()
            assert device.ask("count frames_received") == "1"
            device.say("ask up 1 early")
            broker = Broker(start().folder, port)
            with broker:
                assert device.line() == "ok"
                site.wait_for("is back after")


def test_wills_of_a_gateway_that_is_killed(start: Start) -> None:
    broker = start()
    with Client(broker.port) as other, Site(broker.url) as site:
        other.subscribe("will/#", qos=1)
        assert site.device().ask("will d") == "ok"
        site.end(SIGKILL)
        assert other.next("will/d").payload == b"gone"


async def talk(port: int) -> None:
    """Have devices log in and say their lines, each after the last one's acknowledgement."""

    async def device(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [f"login d{number}", *(f"ask up/{number} 1 {number} {line}" for line in range(LINES))]
        for line in lines:
            writer.write(f"{line}\n".encode())
            answer = await asyncio.wait_for(reader.readline(), PATIENCE)
            assert answer == b"ok\n", answer
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(device(number) for number in range(DEVICES)))
