"""The MQTT door of the embedded hub, as MQTT clients and devices use it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from exproto_app import App, ClientInfo, Connection, Message
from exproto_app.drivers.gateway import Gateway, mqtt_door
from exproto_app.drivers.gateway.mqtt_door import MqttDoor
from exproto_app.framing import Line
from exproto_app.hub import MemoryHub
from exproto_app.models import Address

from .test_cli import ECHO, gateway, port_of, run

PATIENCE = 20.0

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:amqtt"),
]

mosquitto = pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="needs mosquitto-clients")


def echo() -> App:
    app = App(framing=Line())

    @app.on_received(b"subscribe ")
    def subscribe(conn: Connection, frame: bytes) -> bytes:
        conn.subscribe(frame[10:].decode(), qos=1)
        return b"ok"

    @app.on_received
    def up(conn: Connection, frame: bytes) -> None:
        conn.publish("up", frame, qos=1)

    @app.on_deliver
    def down(conn: Connection, message: Message) -> bytes:
        return b"%s qos %d" % (message.payload, message.qos)

    return app


@attrs.define
class Device:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line + b"\n")
        return await self.hear()

    async def hear(self) -> bytes:
        return (await asyncio.wait_for(self.reader.readline(), PATIENCE)).rstrip()


@attrs.define
class Site:
    """A gateway with a door."""

    gateway: Gateway
    door: MqttDoor

    @contextlib.asynccontextmanager
    async def device(self) -> AsyncIterator[Device]:
        address = self.gateway.addresses[0][2]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            yield Device(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def raw(self, *packets: bytes) -> AsyncIterator[Device]:
        """Connect without a library, and send what is no MQTT or an odd kind of it."""
        reader, writer = await asyncio.open_connection(self.door.address.host, self.door.address.port)
        writer.write(b"".join(packets))
        try:
            yield Device(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def stat(self, name: str) -> int:
        return self.gateway.app.stats.get(name, 0)


def at_a_site(test: Callable[[Site], Awaitable[None]], login: Any = None, uvloop: bool = False) -> None:
    async def main() -> None:
        async with Gateway(echo(), ["tcp://127.0.0.1:0"], hub=MemoryHub(login)) as host:
            assert isinstance(host.hub, MemoryHub)
            door = MqttDoor(host.hub, Address("127.0.0.1", 0))
            await door.start(host.runner.engine)
            try:
                await test(Site(host, door))
            finally:
                await door.stop()
                assert not door._open

    if uvloop:
        library = pytest.importorskip("uvloop")
        loop = library.new_event_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
    else:
        asyncio.run(main())


class Client:
    """A paho client in a thread of its own, whose messages can be awaited."""

    def __init__(self, clientid: str = "", **options: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        # Who is refused would wait a second to try again, and its thread with it.
        options = {"reconnect_on_failure": False, **options}
        self.paho = paho.Client(CallbackAPIVersion.VERSION2, clientid, **options)
        self.paho.on_connect = lambda *arguments: self._put(("connect", arguments[3].is_failure))
        self.paho.on_subscribe = lambda *arguments: self._put(
            ("subscribe", [code.value for code in arguments[3]])
        )
        self.paho.on_publish = lambda *arguments: self._put(("publish", None))
        self.paho.on_message = lambda *arguments: self._put(("message", arguments[2]))
        self.paho.on_disconnect = lambda *arguments: self._put(("disconnect", None))

    def _put(self, event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has gone
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def event(self, kind: str) -> Any:
        while True:
            found, value = await asyncio.wait_for(self._events.get(), PATIENCE)
            if found == kind:
                return value

    async def connect(self, site: Site, keepalive: int = 60) -> bool:
        self.paho.connect_async(site.door.address.host, site.door.address.port, keepalive)
        self.paho.loop_start()
        return not await self.event("connect")

    async def subscribe(self, topic: str, qos: int = 0) -> list[int]:
        self.paho.subscribe(topic, qos)
        return list(await self.event("subscribe"))

    async def message(self) -> tuple[str, bytes, int, bool]:
        message = await self.event("message")
        return message.topic, message.payload, message.qos, bool(message.retain)

    async def stop(self) -> None:
        self.paho.disconnect()
        await asyncio.to_thread(self.paho.loop_stop)


@contextlib.asynccontextmanager
async def client(site: Site, clientid: str = "", **options: Any) -> AsyncIterator[Client]:
    made = Client(clientid, **options)
    try:
        assert await made.connect(site)
        yield made
    finally:
        await made.stop()


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_devices_and_mqtt_clients_reach_each_other_once(qos: int, uvloop: bool) -> None:
    async def test(site: Site) -> None:
        async with site.device() as device, client(site) as mqtt:
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


def test_retained_messages_of_both_sides() -> None:
    async def test(site: Site) -> None:
        async with client(site) as mqtt, site.device() as device:
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


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        (b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00", b"\x20\x03\x00\x84\x00"),
        (b"\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01x", b"\x20\x02\x00\x01"),
    ],
)
def test_another_version_of_mqtt_is_told_so(
    version: bytes, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(site: Site) -> None:
        async with site.raw(bytes((0x10, len(version))) + version) as old:
            assert await asyncio.wait_for(old.reader.read(), PATIENCE) == answer

    at_a_site(test)
    assert "the door takes MQTT 3.1.1 only" in caplog.text


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


def test_a_client_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_door, "CONNECT_TIME", 0.05)

    async def test(site: Site) -> None:
        async with site.raw() as silent:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(silent.reader.read(), PATIENCE) == b""

    at_a_site(test)


def test_a_client_that_is_silent_beyond_its_keepalive_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_door, "SWEEP", 0.05)
    monkeypatch.setattr(mqtt_door, "KEEPALIVE_FACTOR", 0.05)

    async def test(site: Site) -> None:
        async with site.raw(CONNECT[:11] + b"\x01" + CONNECT[12:]) as silent:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(silent.reader.read(), PATIENCE) == ACCEPTED

    at_a_site(test)


def test_what_waits_for_a_client_that_doesnt_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_door, "OUTGOING", 10)
    monkeypatch.setattr(mqtt_door, "SWEEP", 0.05)
    monkeypatch.setattr(mqtt_door, "STALL", 0.1)
    subscribe = b"\x82\x06\x00\x01\x00\x01#\x00"

    async def test(site: Site) -> None:
        async with site.raw(CONNECT, subscribe) as slow:
            assert (
                await asyncio.wait_for(slow.reader.readexactly(9), PATIENCE)
                == ACCEPTED + b"\x90\x03\x00\x01\x00"
            )
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not site.stat("door_messages_dropped"):
                site.gateway.app.publish("big", bytes(100_000))
                await asyncio.sleep(0)
            ((task, member),) = site.door._open.items()
            assert len(member._queue) == 10
            await asyncio.wait_for(asyncio.wait([task]), PATIENCE)
            assert not site.door._open

    at_a_site(test)


def test_clients_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_door, "CLIENTS", 1)

    async def test(site: Site) -> None:
        async with client(site), site.raw(CONNECT) as second:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(second.reader.read(), PATIENCE) == b""
            assert site.stat("door_clients_refused") == 1

    at_a_site(test)


@pytest.mark.system
@mosquitto
def test_mosquittos_programs(tmp_path: Path) -> None:
    async def program(site: Site, name: str, *arguments: str) -> tuple[int | None, str]:
        address = site.door.address
        process = await asyncio.create_subprocess_exec(
            name,
            "-h",
            address.host,
            "-p",
            str(address.port),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        return process.returncode, out.decode()

    async def test(site: Site) -> None:
        for qos in ("0", "1", "2"):
            assert await program(site, "mosquitto_pub", "-t", f"kept/{qos}", "-m", qos, "-r", "-q", qos) == (
                0,
                "",
            )
        shown = ("-t", "kept/#", "-C", "3", "-F", "%t %p %q %r", "-q", "2")
        code, text = await program(site, "mosquitto_sub", *shown)
        assert code == 0
        assert sorted(text.splitlines()) == ["kept/0 0 0 1", "kept/1 1 1 1", "kept/2 2 2 1"]
        async with site.device() as device:
            await device.ask(b"subscribe down")
            assert await program(site, "mosquitto_pub", "-t", "down", "-m", "reboot", "-q", "1") == (0, "")
            assert await device.hear() == b"reboot qos 1"
        code, text = await program(site, "mosquitto_pub", "-V", "5", "-t", "t", "-m", "m")
        assert code
        assert "Unsupported Protocol Version" in text

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
            assert "another program has the port; choose with --mqtt-listen" in "".join(lines)
            with socket.create_connection(("127.0.0.1", port_of(lines)), timeout=PATIENCE) as device:
                assert device.recv(6) == b"hello\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the uplink needs Python 3.11")
def test_the_door_is_no_option_of_the_uplink() -> None:
    code, _, err = run("run", ECHO, "--mqtt", "mqtt://127.0.0.1:9", "--mqtt-listen", "127.0.0.1:0")
    assert code == 2
    assert "--mqtt-listen opens the embedded hub; with --mqtt, clients go to the broker." in err


def test_without_the_extra_it_is_one_line() -> None:
    code = (
        "import sys; sys.modules['amqtt'] = None\n"
        "import asyncio\n"
        "from exproto_app.cli.door import choose_door, opened\n"
        "from exproto_app.drivers.gateway import Gateway\n"
        "from exproto_app import App\n"
        "app = App(); app.on_connect(lambda conn: None)\n"
        "async def main():\n"
        "    async with Gateway(app, ['tcp://127.0.0.1:0']) as host:\n"
        "        async with opened(choose_door('127.0.0.1:0', host.hub), host) as lines: print(lines)\n"
        "asyncio.run(main())\n"
    )

    async def test() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert out.split() == [b"[]"]
        assert err.decode().strip() == (
            "gateway = no door for MQTT clients; pip install 'exproto-app[door]' makes one"
        )

    asyncio.run(test())
