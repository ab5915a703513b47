"""Modems that publish what their serial port says: each is a connection, and none harms another."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from exproto_app import App, Connection, SetupError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Listen
from exproto_app.hosts.gateway.modem_line import Template
from tests.behaviour.hosts import PATIENCE
from tests.test_dialling import cli

from .broker import Broker, free_port
from .client import Client
from .host import ModemDevice, ModemHost

# --- what a listener says


def test_modems_are_told_apart_by_a_level_of_the_topic() -> None:
    listen = Listen.parse(
        "meter=mqtt-bytes://gw:s3cret@broker/dtu/{id}/up?down=dtu/{id}/down&will=dtu/{id}/status&idle=30s&qos=0"
    )
    assert str(listen) == "mqtt-bytes://broker:1883/dtu/{id}/up"
    assert "s3cret" not in repr(listen)
    assert (listen.settings.idle, listen.settings.qos) == (30, 0)
    up: Template = listen.settings.up
    assert up.filter == "dtu/+/up"
    assert up.find("dtu/7/up") == "7"
    assert [up.find(topic) for topic in ("dtu/7/down", "dtu/7/8/up", "dtu//up", f"dtu/{'x' * 300}/up")] == [
        ""
    ] * 4
    assert up.of("7") == "dtu/7/up"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mqtt-bytes://broker?down=a/{id}", "its path is missing; it must be a topic with {id}"),
        ("mqtt-bytes://broker/up?down=a/{id}", "its path is 'up'; it must be a topic with {id}"),
        ("mqtt-bytes://broker/x{id}/up?down=a/{id}", "its path is 'x{id}/up'"),
        ("mqtt-bytes://broker/{id}/up", "down is missing; it must be a topic with {id}"),
        ("mqtt-bytes://broker/{id}/+?down=a/{id}", "its path: "),
        ("mqtt-bytes://broker/{id}/up?down=a/{id}&qos=3", "qos is '3'; it must be 0, 1 or 2"),
        ("mqtt-bytes://broker/{id}/up?down=a/{id}&ca=x", "unknown option 'ca'"),
        ("mqtt-bytes://u:secret@broker/{id}?down=x", "mqtt-bytes://broker/{id}?down=x"),
    ],
)
def test_modems_that_are_none_are_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(SetupError, match=re.escape(words)) as caught:
        Listen.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.live
def test_without_a_broker_or_with_one_that_is_away_the_doctor_tells() -> None:
    with free_port() as port:
        where = f"mqtt-bytes://127.0.0.1:{port}/dtu/{{id}}/up?down=dtu/{{id}}/down"
        code, said = cli("doctor", "examples/echo.py", "--listen", where)
    assert code == 1
    assert "the broker can't be reached: connection refused" in said


# --- on the line

pytestmark = pytest.mark.system


def echo() -> App:
    app = App(framing=Line())

    @app.on_connect
    def connect(conn: Connection) -> None:
        conn.publish(f"up/{conn.info.name}", conn.info.target.encode())

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return f"{conn.info.socktype} {conn.info.name} ".encode() + frame

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        conn.publish(f"end/{conn.info.name}", reason.encode())

    return app


@contextlib.contextmanager
def modems(broker: Broker, options: str = "", app: App | None = None) -> Iterator[ModemHost]:
    with contextlib.ExitStack() as stack:
        yield ModemHost(app or echo(), stack, broker, options)


def dropped(host: ModemHost) -> int:
    return host._app.stats.get("modem_messages_dropped", 0)


@pytest.mark.live
def test_each_modem_is_a_connection_with_a_stream_of_its_own(mosquitto: Broker) -> None:
    with modems(mosquitto) as host:
        one, other = host.connect(), host.connect()
        assert host.published("up/m1").endswith(b"/m1/up")
        one.send(b"hel")
        other.send(b"he ")
        one.send(b"lo\n")
        other.send(b"too\n")
        one.expect(b"mqtt m1 hello\n")
        other.expect(b"mqtt m2 he too\n")
        one.hang_up()
        assert host.published("end/m1") == b"device closed"
        other.send(b"still\n")
        other.expect(b"mqtt m2 still\n")
        one.send(b"again\n")
        one.expect(b"mqtt m1 again\n")


@pytest.mark.live
def test_a_modem_that_is_silent_is_gone(mosquitto: Broker) -> None:
    with modems(mosquitto, "&idle=200ms") as host:
        host.connect()
        assert host.published("end/m1") == b"timeout"


@pytest.mark.live
def test_a_modem_that_publishes_a_megabyte_loses_its_connection_alone(mosquitto: Broker) -> None:
    with modems(mosquitto) as host:
        one, other = host.connect(), host.connect()
        one.client.publish(f"{one._topic}/up", bytes(1_000_000), qos=1)
        assert host.published("end/m1") == b"lost"
        other.send(b"hello\n")
        other.expect(b"mqtt m2 hello\n")
        assert dropped(host) == 1
        one.send(b"back\n")
        one.expect(b"mqtt m1 back\n")


@pytest.mark.live
def test_ids_are_bounded(mosquitto: Broker) -> None:
    with modems(mosquitto, "&max-connections=2") as host:
        one, other = host.connect(), host.connect()
        for number in range(50):
            one.client.publish(f"{host._prefix}-0/flood{number}/up", b"x\n", qos=1)
        one.client.publish(f"{host._prefix}-0/{'x' * 300}/up", b"x\n", qos=1)
        for device in (one, other):
            device.send(b"hello\n")
            device.expect(f"mqtt {device.name} hello\n".encode())
        assert dropped(host) == 51
        assert host._app.stats["connections_refused.listener"] == 50


@pytest.mark.live
def test_what_is_retained_is_old_and_not_taken_for_what_a_modem_says(mosquitto: Broker) -> None:
    """But a retained word that it is online begins its connection, as after a restart of the gateway."""
    with modems(mosquitto) as first:
        device = first.connect()
        device.client.publish(f"{device._topic}/up", b"old\n", qos=1, retain=True)
        device.expect(b"mqtt m1 old\n")
        device.client.publish(f"{device._topic}/status", b"online", qos=1, retain=True)
    with contextlib.ExitStack() as stack:
        host = Again(echo(), stack, mosquitto, first._prefix)
        assert host.published("up/m1")
        device = ModemDevice(host.client(), host, f"{first._prefix}-0", "m1")
        device.send(b"new\n")
        device.expect(b"mqtt m1 new\n")


class Again(ModemHost):
    """A gateway that is started anew."""

    def __init__(self, app: App, stack: contextlib.ExitStack, broker: Broker, prefix: str) -> None:
        self._again = prefix
        super().__init__(app, stack, broker)

    def _make(self) -> Any:
        self._prefix = self._again
        return super()._make()

    def client(self) -> Any:
        return self._stack.enter_context(Client(self._broker.port))


@pytest.mark.live
def test_the_broker_may_be_away_for_a_while(start: Any) -> None:
    """Connections stay, and go on when it is back."""
    broker: Broker = start()
    with modems(broker) as host:
        device = host.connect()
        device.send(b"before\n")
        device.expect(b"mqtt m1 before\n")
        device.client.close()
        broker.restart()
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(type(device.client)(broker.port))
            device = ModemDevice(client, host, f"{host._prefix}-0", "m1")
            for _ in range(int(PATIENCE / 0.5)):  # until the gateway has come back too
                device.send(b"after\n")
                device.seen += device.read(0)
                with contextlib.suppress(Exception):
                    device.seen += client.take(f"{host._prefix}-0/m1/down", 0.5).payload
                    break
            assert device.seen.startswith(b"mqtt m1 after\n")
