"""The MQTT server of the embedded hub, as MQTT clients and devices use it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import sys

import pytest
from paho.mqtt.client import MQTTv5, MQTTv311
from paho.mqtt.enums import MQTTProtocolVersion

from exproto_app import ClientInfo
from exproto_app.hosts.mqtt_server.packets import (
    Ack,
    Disconnect,
    Kind,
    Publish,
    SubAck,
    Subscribe,
    Subscription,
)
from exproto_app.hosts.mqtt_server.reasons import Reason

from ..test_cli import ECHO, gateway, port_of, run
from .site import PATIENCE, Client, Site, at_a_site, client

pytestmark = pytest.mark.live

mosquitto = pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="needs mosquitto-clients")


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_devices_and_mqtt_clients_reach_each_other_once(
    qos: int, protocol: MQTTProtocolVersion, uvloop: bool
) -> None:
    async def test(site: Site) -> None:
        async with site.device() as device, client(site, protocol=protocol) as mqtt:
            assert await mqtt.subscribe("#", qos) == [qos]
            assert await device.ask(b"subscribe down/#") == b"ok"
            device.writer.write(b"hello\n")
            assert await mqtt.message() == ("up", b"hello", min(qos, 1), False)
            mqtt.paho.publish("down/1", b"reboot", qos)
            assert await device.hear() == b"reboot qos %d" % min(qos, 1)
            # It is subscribed to all, so its own message comes back; but once only.
            assert await mqtt.message() == ("down/1", b"reboot", qos, False)
            device.writer.write(b"end\n")
            assert await mqtt.message() == ("up", b"end", min(qos, 1), False)

    at_a_site(test, uvloop=uvloop)


def test_a_device_waits_for_a_slow_client_instead_of_losing_what_it_awaited() -> None:
    async def test(site: Site) -> None:
        async with site.mqtt("slow") as slow, site.device() as device:
            slow.send(Subscribe(1, [Subscription("t", 1)]))
            assert await slow.packet() == SubAck(1, [1])
            device.writer.write(b"send 1200\n")
            session = site.server.broker.sessions["slow"]
            await site.until(lambda: session.held > site.server.bounds.soft)
            assert site.stat("messages_published") < 400
            for number in range(1_200):
                message = await slow.packet()
                assert isinstance(message, Publish)
                assert message.payload == b"%4d" % number * 256
                slow.send(Ack(Kind.PUBACK, message.packet_id))
            assert await device.hear() == b"safe"
            assert site.stat("door_messages_dropped") == 0

    at_a_site(test)


def test_messages_to_a_client_keep_their_order() -> None:
    async def test(site: Site) -> None:
        async with client(site) as mqtt:
            await mqtt.subscribe("#", 1)
            for number in range(300):
                site.gateway.app.publish("n", b"%d" % number, number % 2)
            got = [await mqtt.message() for _ in range(300)]
            assert [int(payload) for _, payload, _, _ in got] == list(range(300))

    at_a_site(test)


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_from_a_client_keep_their_order(qos: int) -> None:
    async def test(site: Site) -> None:
        async with client(site) as mqtt, site.device() as device:
            await device.ask(b"subscribe n")
            for number in range(300):
                mqtt.paho.publish("n", str(number), qos)
            got = [await device.hear() for _ in range(300)]
            assert [int(line.split()[0]) for line in got] == list(range(300))

    at_a_site(test)


@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5])
def test_retained_messages_of_both_sides(protocol: MQTTProtocolVersion) -> None:
    async def test(site: Site) -> None:
        async with client(site, protocol=protocol) as mqtt, site.device() as device:
            site.gateway.app.publish("kept/app", b"a", retain=True)
            mqtt.paho.publish("kept/mqtt", b"m", 1, retain=True)
            await mqtt.event("publish")
            assert await device.ask(b"subscribe kept/+") in (b"ok", b"a qos 0", b"m qos 1")
            assert {await device.hear(), await device.hear()} & {b"a qos 0", b"m qos 1"}
            await mqtt.subscribe("kept/#")
            got = {await mqtt.message(), await mqtt.message()}
            assert got == {("kept/app", b"a", 0, True), ("kept/mqtt", b"m", 0, True)}
            mqtt.paho.publish("kept/mqtt", b"", 1, retain=True)
            assert await mqtt.message() == ("kept/mqtt", b"", 0, False)
            async with client(site) as late:
                await late.subscribe("kept/#")
                assert await late.message() == ("kept/app", b"a", 0, True)

    at_a_site(test)


def test_unsubscribed_shared_and_refused_filters() -> None:
    async def test(site: Site) -> None:
        async with client(site) as one, client(site) as other:
            assert await one.subscribe("$share/g") == [0x80]
            assert await one.subscribe("$share/g/jobs", 1) == [1]
            assert await other.subscribe("$share/g/jobs", 1) == [1]
            for number in range(4):
                site.gateway.app.publish("jobs", b"%d" % number, 1)
            assert {(await one.message())[1], (await one.message())[1]} in ({b"0", b"2"}, {b"1", b"3"})
            await one.subscribe("x")
            one.paho.unsubscribe("x")
            one.paho.publish("x", b"not this")
            await one.subscribe("y")
            one.paho.publish("y", b"this")
            assert (await one.message())[1] == b"this"

    at_a_site(test)


def test_users_are_asked_for() -> None:
    async def login(info: ClientInfo, password: str | None) -> bool:
        await asyncio.sleep(0)
        return (info.username or info.clientid, password) == ("ops", "s3cret")

    async def test(site: Site) -> None:
        nobody = Client()
        assert not await nobody.connect(site)
        await nobody.stop()
        for password, right in (("wrong", False), ("s3cret", True)):
            someone = Client()
            someone.paho.username_pw_set("ops", password)
            assert await someone.connect(site) is right
            await someone.stop()
        assert site.stat("door_clients_denied") >= 2

    at_a_site(test, login)


def test_a_login_rule_that_breaks_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    def login(info: ClientInfo, password: str | None) -> bool:
        raise RuntimeError("no database")

    async def test(site: Site) -> None:
        someone = Client()
        assert not await someone.connect(site)
        await someone.stop()

    at_a_site(test, login)
    assert "the login rule failed: RuntimeError('no database')" in caplog.text


def test_a_clientid_is_one_client_and_a_will_is_published() -> None:
    async def test(site: Site) -> None:
        async with client(site) as watcher:
            await watcher.subscribe("will/#")
            first = Client("twin")
            first.paho.will_set("will/twin", b"gone", 1, retain=True)
            first.paho.reconnect_delay_set(60, 60)
            assert await first.connect(site)
            async with client(site, "twin"):
                assert await watcher.message() == ("will/twin", b"gone", 0, False)
                await first.event("disconnect")
            await first.stop()

    at_a_site(test)


def test_a_client_that_says_goodbye_leaves_no_will() -> None:
    async def test(site: Site) -> None:
        async with client(site) as watcher:
            await watcher.subscribe("#")
            polite = Client("polite")
            polite.paho.will_set("will/polite", b"gone")
            assert await polite.connect(site)
            await polite.stop()
            watcher.paho.publish("end", b"")
            assert (await watcher.message())[0] == "end"

    at_a_site(test)


CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x"
ACCEPTED = b"\x20\x02\x00\x00"


def publish(topic: bytes, payload: bytes) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + payload
    return bytes((0x30, len(body))) + body


def test_what_a_client_said_before_it_hung_up_is_published() -> None:
    async def test(site: Site) -> None:
        async with site.device() as device:
            await device.ask(b"subscribe #")
            packets = [publish(b"t", b"%d" % number) for number in range(20)]
            async with site.raw(CONNECT, *packets, b"\xe0\x00") as hasty:
                hasty.writer.write_eof()
                assert [await device.hear() for _ in range(20)] == [b"%d qos 0" % n for n in range(20)]

    at_a_site(test)


def test_another_version_of_mqtt_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    async def test(site: Site) -> None:
        async with site.raw(b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01x") as old:
            assert await old.rest() == b"\x20\x02\x00\x01"

    at_a_site(test)
    assert "it speaks MQTT 3.1; MQTT 3.1.1 and 5 are understood" in caplog.text


@pytest.mark.parametrize(
    "packets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\xff\xff\xff",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS handshake
        CONNECT + b"\x30\xff\xff\xff\x7f" + bytes(1000),  # a packet of 256 MiB
        CONNECT + publish(b"a/#", b"wild"),
        CONNECT + publish(b"", b"nameless"),
        CONNECT + publish(b"\xff\xfe", b"no UTF-8"),
        CONNECT + b"\xf0\x00",
        CONNECT + CONNECT,
    ],
)
def test_what_is_no_mqtt_costs_its_sender_the_connection_alone(packets: bytes) -> None:
    async def test(site: Site) -> None:
        async with client(site) as mqtt, site.raw(packets) as bad:
            with contextlib.suppress(ConnectionError):
                rest = await asyncio.wait_for(bad.reader.read(), PATIENCE)
                assert rest in (b"", ACCEPTED)
            await mqtt.subscribe("t")
            mqtt.paho.publish("t", b"still here")
            assert (await mqtt.message())[1] == b"still here"

    at_a_site(test)


def test_a_client_that_says_nothing_is_closed() -> None:
    async def test(site: Site) -> None:
        async with site.raw() as silent:
            assert await silent.rest() == b""

    at_a_site(test, connect_time=0.05)


def test_a_client_that_is_silent_beyond_its_keepalive_is_closed() -> None:
    async def test(site: Site) -> None:
        async with site.mqtt("silent", keepalive=1) as silent:
            assert await silent.packet() == Disconnect(Reason.SILENT)
            assert await silent.rest() == b""

    at_a_site(test)


def test_clients_beyond_the_limit_are_refused() -> None:
    async def test(site: Site) -> None:
        async with client(site), site.raw(CONNECT) as second:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(second.reader.read(), PATIENCE) == b""
            assert site.stat("door_clients_refused") == 1

    at_a_site(test, clients=1)


@pytest.mark.system
@mosquitto
@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquittos_programs(version: str) -> None:
    async def program(site: Site, name: str, *arguments: str) -> tuple[int | None, str]:
        address = site.server.address
        process = await asyncio.create_subprocess_exec(
            name,
            *("-h", address.host, "-p", str(address.port), "-V", version),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        return process.returncode, out.decode()

    async def test(site: Site) -> None:
        for qos in ("0", "1", "2"):
            arguments = ("-t", f"kept/{qos}", "-m", qos, "-r", "-q", qos)
            assert await program(site, "mosquitto_pub", *arguments) == (0, "")
        shown = ("-t", "kept/#", "-C", "3", "-F", "%t %p %q %r", "-q", "2")
        code, text = await program(site, "mosquitto_sub", *shown)
        assert code == 0
        assert sorted(text.splitlines()) == ["kept/0 0 0 1", "kept/1 1 1 1", "kept/2 2 2 1"]
        async with site.device() as device:
            await device.ask(b"subscribe down")
            assert await program(site, "mosquitto_pub", "-t", "down", "-m", "reboot", "-q", "1") == (0, "")
            assert await device.hear() == b"reboot qos 1"

    at_a_site(test)


@pytest.mark.system
@mosquitto
@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_sub_finds_what_came_while_it_was_away(version: str) -> None:
    async def subscribe(site: Site, *arguments: str) -> str:
        address = site.server.address
        options = ["-c", "-i", "worker", "-q", "1", "-t", "jobs", "-W", "10", "-V", version]
        options += ["-x", "3600"] if version == "5" else []
        process = await asyncio.create_subprocess_exec(
            "mosquitto_sub",
            *("-h", address.host, "-p", str(address.port)),
            *(*options, *arguments),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        return out.decode()

    async def test(site: Site) -> None:
        assert await subscribe(site, "-E") == ""  # it subscribes and goes
        for number in range(3):
            await site.gateway.app.publish("jobs", b"%d" % number, 1)
        await site.gateway.app.publish("jobs", b"not kept", 0)
        assert await subscribe(site, "-C", "3") == "0\n1\n2\n"

    at_a_site(test)


def test_the_command_opens_the_door_and_tells_how_to_enter() -> None:
    listen = ("--listen", "tcp://127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0")
    with gateway(ECHO, *listen) as (_, lines):
        match = re.search(r"MQTT clients on mqtt://127\.0\.0\.1:(\d+)  try: mosquitto_sub", "".join(lines))
        assert match
        with socket.create_connection(("127.0.0.1", int(match[1])), timeout=PATIENCE) as mqtt:
            mqtt.sendall(CONNECT)
            assert mqtt.recv(4) == ACCEPTED


def test_a_port_that_is_taken_closes_the_door_but_not_the_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = ("--listen", "tcp://127.0.0.1:0", "--mqtt-listen", where)
        with gateway(ECHO, *listen) as (_, lines):
            assert "another program has the port; choose another with --mqtt-listen" in "".join(lines)
            with socket.create_connection(("127.0.0.1", port_of(lines)), timeout=PATIENCE) as device:
                assert device.recv(6) == b"hello\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the uplink needs Python 3.11")
def test_the_door_is_no_option_of_the_uplink() -> None:
    code, _, err = run("run", ECHO, "--mqtt", "mqtt://127.0.0.1:9", "--mqtt-listen", "127.0.0.1:0")
    assert code == 2
    assert "--mqtt-listen opens the embedded hub; with --mqtt, clients go to the broker." in err
