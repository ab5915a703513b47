"""The store on the disk, with a real broker: what a device was told is safe arrives, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from .broker import Broker
from .client import Client
from .site import LineDevice, Site

pytestmark = pytest.mark.system

Start = Callable[..., Broker]


def waiting(folder: Path) -> dict[str, Any]:
    """What `exproto-app store --json` tells."""
    command = [sys.executable, "-m", "exproto_app", "store", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counts(folder: Path) -> dict[str, int]:
    """How many messages wait, by client."""
    return {client["clientid"]: client["messages"] for client in waiting(folder)["clients"]}


def subscribed(broker: Broker) -> None:
    """Have the broker keep what comes for `counter`, also while it is killed."""
    with Client(broker.port, "counter", session_expiry=3600) as counter:
        counter.subscribe("up/#", qos=2)
    broker.save()


def arrived(broker: Broker, count: int) -> list[bytes]:
    with Client(broker.port, "counter", session_expiry=3600) as counter:
        return [counter.next().payload for _ in range(count)]


def unrepeated(broker: Broker, count: int) -> list[bytes]:
    """Read until *count* different ones have come; return them in the order in which they came first."""
    came: dict[bytes, None] = {}
    with Client(broker.port, "counter", session_expiry=3600) as counter:
        while len(came) < count:
            came[counter.next().payload] = None
    return list(came)


class TestAway:
    """The broker is away."""

    def test_a_message_counts_as_published_once_it_is_on_the_disk(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path / "store") as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            assert [device.ask(f"ask up/d {qos} {qos}") for qos in (1, 2)] == ["ok"] * 2
            assert counts(tmp_path / "store") == {"d": 2}
            broker.start()
            assert sorted(arrived(broker, 2)) == [b"1", b"2"]  # of two levels, MQTT keeps no order
            assert device.ask("ask up/d 1 after") == "ok"
            assert arrived(broker, 1) == [b"after"]
            assert counts(tmp_path / "store") == {}

    def test_it_outlives_the_gateway_and_is_sent_without_the_device(
        self, start: Start, tmp_path: Path
    ) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path) as site:
            devices = [site.client("a"), site.client("b")]
            broker.kill()
            site.wait_for("can't be reached")
            for number in range(100):
                for device, name in zip(devices, "ab", strict=True):
                    assert device.ask(f"ask up/{name} 1 {name}{number}") == "ok"
            site.end(SIGKILL)
        assert counts(tmp_path) == {"a": 100, "b": 100}
        broker.start()
        with Site(broker.url, "--store", tmp_path) as site:
            site.wait_for("200 messages of 2 clients wait")
            came = arrived(broker, 200)
            for client in (b"a", b"b"):
                assert [payload for payload in came if payload.startswith(client)] == [
                    b"%b%d" % (client, number) for number in range(100)
                ]
            assert counts(tmp_path) == {}

    def test_what_was_on_its_way_is_stored_too(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path, "--mqtt-timeout", 0.5) as site:
            device = site.client("d")
            broker.pause()
            device.say("ask up/d 1 1")
            assert device.line() == "ok"
            assert counts(tmp_path) == {"d": 1}
            broker.resume()
            assert device.ask("ask up/d 1 2") == "ok"
            assert unrepeated(broker, 2) == [b"1", b"2"]

    def test_the_order_of_stored_and_new_messages_holds(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            device.say(*(f"say up/d {number}" for number in range(3000)), "ask up/d 1 3000")
            assert device.line() == "ok"
            site.end(SIGKILL)
        broker.start()
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.client("d")
            device.say(*(f"say up/d {number}" for number in range(3001, 4000)))
            came = arrived(broker, 4000)
            assert came == [b"%d" % number for number in range(4000)]

    def test_a_command_for_the_device_and_a_message_of_qos_0_go_as_ever(
        self, start: Start, tmp_path: Path
    ) -> None:
        broker = start()
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.client("d")
            assert device.ask("sub down/d 1") == "ok 1"
            broker.restart()
            assert [device.ask("ask down/d 1 hi"), device.line()] == ["ok", "down/d qos 1: hi"]
            assert device.ask("ask down/d 0 ho") == "ok"
            assert device.line() == "down/d qos 0: ho"

    def test_the_app_and_who_has_not_registered_are_stored_too(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.device()
            broker.kill()
            site.wait_for("can't be reached")
            assert [device.ask("app up/app 1"), device.ask("ask up/it 1 2")] == ["ok", "ok"]
            assert counts(tmp_path) == {"": 2}
            broker.start()
            assert arrived(broker, 2) == [b"1", b"2"]

    def test_a_device_that_left_meanwhile_has_all_it_said_sent(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            for number in range(50):
                assert device.ask(f"ask up/d 1 {number}") == "ok"
            device.hang_up()
            broker.start()
            assert arrived(broker, 50) == [b"%d" % number for number in range(50)]

    def test_a_stop_leaves_on_the_disk_what_the_broker_has_not(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.client("d")
            broker.pause()
            device.say(*(f"say up/d {number}" for number in range(20)), "count frames_received")
            assert device.line() == "22"
            site.end()
            assert not any("dropped" in line for line in site.lines)
        assert counts(tmp_path) == {"d": 21}, "with what on_terminated published"
        broker.resume()
        with Site(broker.url, "--store", tmp_path):
            assert unrepeated(broker, 20) == [b"%d" % number for number in range(20)]


class TestFull:
    """The store is full."""

    def test_it_waits_in_memory_and_then_the_device_does(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        options = ("--store", tmp_path, "--store-bytes", 65_536, "--mqtt-queue", 10)
        with Site(broker.url, *options) as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            device.say(*(f"say up/d {number:01000}" for number in range(100)))
            site.wait_for("the store is full")
            device.say("ask up/d 1 last")
            broker.start()
            assert device.line() == "ok"
            came = unrepeated(broker, 101)
            assert came == [*(b"%01000d" % number for number in range(100)), b"last"]
            assert device.ask("count store_refusals") != "0"

    def test_the_oldest_are_dropped_where_that_is_asked_for(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        options = ("--store", tmp_path, "--store-bytes", 65_536, "--store-when-full", "drop-oldest")
        with Site(broker.url, *options) as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            for number in range(100):
                assert device.ask(f"ask up/d 1 {number:01000}") == "ok"
            dropped = int(device.ask("count publishes_dropped"))
            assert 30 < dropped < 60
            assert counts(tmp_path) == {"d": 100 - dropped}
            broker.start()
            assert arrived(broker, 100 - dropped) == [b"%01000d" % n for n in range(dropped, 100)]


class TestAlways:
    """Every message is written."""

    def test_a_message_counts_while_the_broker_hangs(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path, "--store-when", "always") as site:
            device = site.client("d")
            assert device.ask("ask up/d 1 0") == "ok"
            broker.pause()
            for number in range(1, 400):
                assert device.ask(f"ask up/d 1 {number}") == "ok"
            broker.resume()
            assert unrepeated(broker, 400) == [b"%d" % number for number in range(400)]
            assert counts(tmp_path) == {}


class TestDenied:
    """The broker refuses what is stored."""

    def test_what_the_gateway_may_not_publish_waits_for_the_device(
        self, start: Start, tmp_path: Path
    ) -> None:
        acl = (
            "user d",
            "topic write up/d",
            "user counter",
            "topic readwrite #",
            "user gate",
            "topic write x",
        )
        users = {"gate": "g", "d": "d", "counter": "c"}
        broker = start(users=users, acl=acl, persistent=True)
        reading = partial(
            Client, broker.port, "counter", username="counter", password="c", session_expiry=3600
        )
        with reading() as counter:
            counter.subscribe("up/#", qos=2)
        broker.save()
        url = broker.url.replace("//", "//gate:g@")
        with Site(url, "--store", tmp_path) as site:
            device = site.device()
            assert device.ask("login d d") == "ok"
            broker.kill()
            site.wait_for("can't be reached")
            assert [device.ask(f"ask up/d 1 {number}") for number in range(3)] == ["ok"] * 3
            assert device.ask("ask elsewhere 1 no") == "ok"
            site.end(SIGKILL)
        broker.start()
        with Site(url, "--store", tmp_path) as site:
            site.wait_for("messages of 'd' wait for the device")
            device = site.device()
            assert device.ask("login d d") == "ok"
            with reading() as counter:
                assert [counter.next().payload for _ in range(3)] == [b"0", b"1", b"2"]
            site.wait_for("of 'd', stored: the broker refused the message to 'elsewhere'")
            assert counts(tmp_path) == {}


class TestTooLarge:
    """A message is stored that the broker doesn't take, and nobody could know."""

    def test_it_is_dropped_with_a_line_and_those_behind_it_are_sent(
        self, start: Start, tmp_path: Path
    ) -> None:
        broker = start("max_packet_size 2000", persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path) as site:
            device = site.client("d")
            broker.kill()
            site.wait_for("can't be reached")
            assert [device.ask(f"fill up/d 1 {size}") for size in (10, 5000, 20)] == ["ok"] * 3
            broker.start()
            assert arrived(broker, 2) == [bytes(10), bytes(20)]
            site.wait_for("of 'd', stored: the packet has 50")
            assert device.ask("count publishes_dropped") == "1"
            assert counts(tmp_path) == {}


class TestFolder:
    """Who may have the folder."""

    def test_a_second_gateway_is_refused(self, start: Start, tmp_path: Path) -> None:
        broker = start()
        with Site(broker.url, "--store", tmp_path):
            second = Site(broker.url, "--store", tmp_path)
            assert second.wait() == 2
            assert second.lines == [
                f"exproto-app: --store {tmp_path}: another gateway uses this folder; give each one of its own"
            ]

    def test_a_folder_that_can_not_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "store"
        site = Site("mqtt://127.0.0.1:1", "--store", folder)
        assert site.wait() == 2
        words = f"{folder} can't be used: Not a directory; name a folder that this user may write to"
        assert site.lines == [f"exproto-app: --store {folder}: {words}"]

    def test_what_a_worker_has_left_is_sent_by_another(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        options = ("--store", tmp_path, "--workers", 2)
        with Site(broker.url, *options) as site:
            devices = [site.client(f"d{number}") for number in range(20)]
            broker.kill()
            site.wait_for("can't be reached")
            for device in devices:
                assert device.ask("ask up/d 1 hello") == "ok"
            assert len([path for path in tmp_path.iterdir() if list(path.glob("*.log"))]) == 2
            site.wait_for("worker 1 = serves, process")
            line = next(line for line in site.lines if "worker 1 = serves, process" in line)
            os.kill(int(line.split()[-1]), SIGKILL)
            broker.start()
            assert arrived(broker, 20) == [b"hello"] * 20
            while counts(tmp_path):
                time.sleep(0.05)  # the last acknowledgements are noted soon


class TestWorkers:
    """A device leaves one worker and comes back to another, each of which has its own part of the store."""

    WORKERS = ("--workers", 2, "--mqtt-mode", "shared")

    def test_its_order_holds(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path, *self.WORKERS) as site:
            broker.kill()
            site.wait_for("can't be reached")
            device, said, _ = travel(site, changes=4)
            broker.start()
            device.say(*(f"say up/d {number}" for number in range(said, said + 500)))
            assert unrepeated(broker, said + 500) == [b"%d" % number for number in range(said + 500)]
            assert device.ask("count store_overtakes") == "0"

    def test_its_order_holds_although_the_first_one_is_killed(self, start: Start, tmp_path: Path) -> None:
        broker = start(persistent=True)
        subscribed(broker)
        with Site(broker.url, "--store", tmp_path, *self.WORKERS) as site:
            broker.kill()
            site.wait_for("can't be reached")
            device, said, processes = travel(site, changes=1)
            os.kill(processes[0], SIGKILL)
            broker.start()
            device.say(*(f"say up/d {number}" for number in range(said, said + 500)))
            assert unrepeated(broker, said + 500) == [b"%d" % number for number in range(said + 500)]
            assert device.ask("count store_overtakes") == "0"


def travel(site: Site, *, changes: int) -> tuple[LineDevice, int, list[int]]:
    """Have a device come back until it has changed workers so often, with 50 messages each time.

    Return its last connection, the number of its messages, and the processes that served it.
    """
    said, processes = 0, list[int]()
    while True:
        device = site.client("d")
        process = int(device.ask("pid"))
        if not processes or processes[-1] != process:
            processes.append(process)
        device.say(*(f"say up/d {number}" for number in range(said, said + 49)), f"ask up/d 1 {said + 49}")
        assert device.line() == "ok"
        said += 50
        if len(processes) > changes:
            return device, said, processes
        device.hang_up()


def test_the_command_tells_what_waits(start: Start, tmp_path: Path) -> None:
    broker = start()
    with Site(broker.url, "--store", tmp_path) as site:
        device = site.client("d")
        broker.kill()
        site.wait_for("can't be reached")
        assert device.ask("ask up/d 1 hello") == "ok"
        command = [sys.executable, "-m", "exproto_app", "store"]
        done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=True, timeout=60)
        head, row, total = done.stdout.splitlines()
        assert head.split() == ["client", "messages", "bytes", "oldest"]
        assert row.split()[:3] == ["d", "1", "36"]
        assert total == "1 message of 1 client waits, 36 bytes"
        missing = subprocess.run(
            [*command, tmp_path / "no"], capture_output=True, text=True, check=False, timeout=60
        )
        assert missing.returncode == 2
        assert "there is no folder" in missing.stderr
