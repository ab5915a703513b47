"""Who a device is to a real broker: logins, refusals, rights, takeover, kicks, TLS."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from exproto_app.hosts.mqtt.reasons import NO_MQTT5, NO_MQTT311

from ..certificates import Authority
from .broker import DYNAMIC_SECURITY, Broker, Tls
from .client import Client
from .process import PATIENCE
from .site import Site

pytestmark = pytest.mark.system

Start = Callable[..., Broker]

GATE = {"gate": "g@/#"}
"""The gateway's own user; its password needs escapes."""


def gate_at(broker: Broker) -> str:
    return broker.url.replace("//", "//gate:g%40%2F%23@")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class TestLogin:
    """The broker decides who may register."""

    def test_passwords(self, start: Start) -> None:
        broker = start(users={**GATE, "d": "pass"})
        with Site(gate_at(broker)) as site:
            device = site.device()
            refused = "DeniedError: the broker refused 'd': not authorized (0x87)"
            assert [device.ask("login d wrong"), device.ask("login d")] == [refused, refused]
            assert device.ask("login d pass") == "ok"
            assert not any("pass" in line or "g@/#" in line for line in site.lines)

    def test_a_clientid_that_the_broker_refuses(self, start: Start) -> None:
        broker = start("clientid_prefixes good-")
        with Site(broker.url, "--mqtt-client-id", "good-gate") as site:
            device = site.device()
            assert device.ask("login bad") == "DeniedError: the broker refused 'bad': not authorized (0x87)"
            assert device.ask("login good-1") == "ok"

    def test_the_gateways_own_client_is_refused(self, start: Start) -> None:
        broker = start(users={**GATE, "d": "pass"})
        with Site(broker.url) as site:
            site.wait_for("not authorized (0x87)")
            assert site.device().ask("login d pass") == "ok"
        required = Site(broker.url, "--mqtt-required")
        assert required.wait() == 1
        assert "is required and can't be used" in required.lines[-1]
        assert "not authorized (0x87)" in required.lines[-1]

    @pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""])
    @pytest.mark.parametrize(
        ("version", "words"), [("5", NO_MQTT5), ("3.1.1", NO_MQTT311), ("auto", "MQTT 5 nor 3.1.1")]
    )
    def test_a_broker_that_doesnt_speak_the_version(self, version: str, words: str, answer: bytes) -> None:
        options = ("--mqtt-timeout", "2", "--mqtt-version", version)
        with answering(answer) as port, Site(f"mqtt://127.0.0.1:{port}", *options) as site:
            site.wait_for(NO_MQTT311 if version == "auto" and answer else words)


class TestRights:
    """The broker's ACL holds for each device."""

    def test_publish(self, start: Start) -> None:
        acl = ("user d", "topic readwrite mine/#", "user gate", "topic readwrite own/#")
        broker = start(users={**GATE, "d": "pass"}, acl=acl)
        with Site(gate_at(broker)) as site:
            device, stranger = site.device(), site.device()
            assert device.ask("login d pass") == "ok"
            for qos in (1, 2):
                assert device.ask(f"ask mine/x {qos} hi") == "ok"
                assert device.ask(f"ask others/x {qos} hi").startswith("DeniedError: ")
                assert device.ask(f"ask others/x {qos} hi").endswith("not authorized (0x87)")
            # Who hasn't registered, and the app itself, have the rights of the gateway.
            assert stranger.ask("ask own/x 1 hi") == "ok"
            assert stranger.ask("ask mine/x 1 hi").endswith("not authorized (0x87)")
            assert device.ask("app own/x hi") == "ok"
            assert device.ask("app mine/x hi").endswith("not authorized (0x87)")
            device.say("say others/x hi")
            site.wait_for("app ! publish to 'mine/x' refused: ")

    def test_subscribe(self, start: Start, tmp_path: Path) -> None:
        with Site(guarded(start, tmp_path).url.replace("//", "//gate:g@")) as site:
            device = site.device()
            assert device.ask("login d d") == "ok"
            assert device.ask("sub mine/# 2") == "ok 2"
            answer = device.ask("sub forbidden/# 1")
            assert answer.startswith("DeniedError: ")
            assert answer.endswith("not authorized (0x87)")

    def test_a_kick(self, start: Start, tmp_path: Path) -> None:
        broker = guarded(start, tmp_path)
        with (
            Site(broker.url.replace("//", "//gate:g@")) as site,
            Client(broker.port, username="gate", password="g") as administrator,
        ):
            administrator.subscribe("end/#")
            device, other = site.device(), site.device()
            assert [device.ask("login d d"), other.ask("login o o")] == ["ok", "ok"]
            command = {"commands": [{"command": "disableClient", "username": "d"}]}
            administrator.post("$CONTROL/dynamic-security/v1", json.dumps(command).encode())
            device.expect_end()
            assert administrator.next("end/d").payload.startswith(b"kicked: ")
            assert other.ask("ask up 1 still here") == "ok"


class TestTakeover:
    """A clientid belongs to whom the broker let in last, wherever that is."""

    def test_by_another_gateway(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as first, Site(broker.url) as second:
            other.subscribe("end/#")
            older = first.client("d")
            newer = second.client("d")
            older.expect_end()
            assert other.next("end/d").payload.startswith(b"taken over: ")
            assert newer.ask("ask up 1 mine now") == "ok"
            assert first.device().ask("count connections_closed") == "1"

    def test_by_a_plain_client(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("end/#")
            device = site.client("d")
            with Client(broker.port, "d", reconnects=True) as client:
                device.expect_end()
                assert other.next("end/d").payload.startswith(b"taken over: ")
                # Mosquitto 2.0 tells nobody that another has taken over, so one learns it by coming back, and
                # this one has to come back for it; 2.1 tells.
                assert client.publish("up", b"mine now", qos=1) in {0, 16}
                assert site.device().ask("count connections_closed") == "1"

    def test_by_another_device_here(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("end/#")
            older, newer = site.client("d"), site.client("d")
            older.expect_end()
            assert other.next("end/d").payload.startswith(b"taken over: ")
            assert newer.ask("ask up 1 mine now") == "ok"

    def test_the_newer_one_continues_the_session_and_nobody_sees_an_offline(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            other.subscribe("#", qos=1)
            older, newer, another = site.device(), site.device(), site.device()
            assert [older.ask("will d"), older.ask("sub jobs/d 1")] == ["ok", "ok 1"]
            assert newer.ask("login d") == "ok"
            older.expect_end()
            assert other.next("end/d").payload.startswith(b"taken over: ")
            other.publish("jobs/d", b"work", qos=1)
            assert newer.line() == "jobs/d qos 1: work"
            assert another.ask("will e") == "ok"
            another.hang_up()
            assert other.next("will/e").payload == b"gone"  # which is delayed as long, from a later time on
            assert other.none("will/d")

    def test_what_its_handler_was_at_comes_again(self, start: Start) -> None:
        broker = start()
        with Client(broker.port) as other, Site(broker.url) as site:
            older, newer, opener = site.device(), site.device(), site.device()
            assert [older.ask("login d"), older.ask("sub jobs/d 1")] == ["ok", "ok 1"]
            other.publish("jobs/d", b"hold", qos=1)
            assert older.line() == "holding"
            assert [newer.ask("login d"), newer.line()] == ["ok", "holding"]
            assert opener.ask("open") == "opened"
            assert newer.line() == "jobs/d qos 1: hold"

    def test_two_that_fight_are_told_of_and_paced(self, start: Start) -> None:
        broker = start()
        with Site(broker.url) as site:
            for _ in range(6):
                assert site.device().ask("login d") == "ok"
            fighter = site.device()
            fighter.say("login d")
            assert site.device().ask("count connections_closed.taken_over") == "5"
            site.wait_for("clientid 'd' is taken over repeatedly, now from 127.0.0.1:")
            assert fighter.line() == "ok"  # ten seconds later

    def test_of_a_plain_client(self, start: Start) -> None:
        broker = start()
        with Client(broker.port, "d") as client, Site(broker.url) as site:
            device = site.client("d")
            assert client.ended.get(timeout=PATIENCE)
            assert device.ask("ask up 1 mine now") == "ok"


class TestTls:
    """`mqtts://`, in both directions."""

    def test_the_right_ca(self, start: Start, authority: Authority) -> None:
        broker = start(tls=Tls(authority.issue("broker")))
        with Site(broker.url, "--mqtt-ca", authority.file) as site:
            assert site.client("d").ask("ask up 1 hi") == "ok"

    def test_another_ca(self, start: Start, authority: Authority, tmp_path: Path) -> None:
        broker = start(tls=Tls(authority.issue("broker")))
        other = Authority(tmp_path)
        with Site(broker.url, "--mqtt-ca", other.file, "--mqtt-timeout", 1) as site:
            site.wait_for("can't be reached: its certificate can't be trusted: ")
            answer = site.device().ask("login d")
            assert answer.startswith(
                "UnavailableError: no session with the broker within 1 s: its certificate"
            )
        required = Site(broker.url, "--mqtt-ca", other.file, "--mqtt-required")
        assert required.wait() == 1
        assert "is required and can't be used: its certificate can't be trusted" in required.lines[-1]

    def test_an_expired_certificate(self, start: Start, authority: Authority) -> None:
        broker = start(tls=Tls(authority.issue("broker", expired=True)))
        with Site(broker.url, "--mqtt-ca", authority.file) as site:
            site.wait_for("its certificate can't be trusted: certificate has expired")

    def test_a_certificate_of_the_gateway(self, start: Start, authority: Authority) -> None:
        broker = start(tls=Tls(authority.issue("broker"), client_ca=authority.file))
        shown = ("--mqtt-cert", authority.issue("gate"))
        with Site(broker.url, "--mqtt-ca", authority.file, *shown) as site:
            assert site.client("d").ask("ask up 1 hi") == "ok"
        with Site(broker.url, "--mqtt-ca", authority.file) as site:
            site.wait_for("TLS failed: TLSV13_ALERT_CERTIFICATE_REQUIRED")
        required = Site(broker.url, "--mqtt-ca", authority.file, "--mqtt-required")
        assert required.wait() == 1
        assert "is required and can't be used: TLS failed" in required.lines[-1]

    def test_a_broker_that_speaks_no_tls(self, start: Start, authority: Authority) -> None:
        broker = start()
        with Site(broker.url.replace("mqtt:", "mqtts:"), "--mqtt-ca", authority.file) as site:
            site.wait_for("can't be reached: ")

    def test_a_broker_that_speaks_nothing_but_tls(self, start: Start, authority: Authority) -> None:
        broker = start(tls=Tls(authority.issue("broker")))
        with Site(broker.url.replace("mqtts:", "mqtt:")) as site:
            site.wait_for("the gateway's own client: ")


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Answer each CONNECT with *answer*, and close."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(PATIENCE)
                sock.recv(1024)
                sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def guarded(start: Start, folder: Path) -> Broker:
    """Start a broker with Mosquitto's plugin for rights, which knows subscriptions and kicks."""
    if DYNAMIC_SECURITY is None:
        pytest.skip("Mosquitto's plugin dynamic-security isn't installed")
    rights = [{"acltype": "subscribePattern", "topic": "forbidden/#", "allow": False}]
    control = [
        {"acltype": kind, "topic": "$CONTROL/dynamic-security/#", "allow": True}
        for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
    ]
    config = {
        "defaultACLAccess": dict.fromkeys(
            ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True
        ),
        "roles": [{"rolename": "device", "acls": rights}, {"rolename": "admin", "acls": control}],
        "clients": [user("gate", "g", "admin"), user("d", "d", "device"), user("o", "o", "device")],
    }
    path = folder / "dynamic-security.json"
    path.write_text(json.dumps(config))
    return start(f"plugin {DYNAMIC_SECURITY}", f"plugin_opt_config_file {path}", "allow_anonymous false")


def user(name: str, password: str, role: str) -> dict[str, Any]:
    salt = b"salt of 12 b"
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return {
        "username": name,
        "password": base64.b64encode(key).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": 101,
        "roles": [{"rolename": role}],
    }
