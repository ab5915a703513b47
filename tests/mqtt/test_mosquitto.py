"""The uplink against a real Mosquitto: TLS, users, outages, and what the broker keeps for absent devices."""

from __future__ import annotations

import datetime as dt
import ipaddress
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.behaviour.hosts import PATIENCE, SocketDevice

from .broker import MISSING, Broker, Tls, free_port
from .client import Client

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"Mosquitto isn't installed: no {MISSING}"),
]

APP = """
from exproto_app import App, CommandError, Message
from exproto_app.framing import Line

app = App(framing=Line())

@app.on_received(b"login ")
async def login(conn, frame):
    name, _, password = frame[6:].decode().partition(" ")
    try:
        will = Message("gone", name.encode())
        await conn.register(name, username=name, password=password or None, session_expiry=60, will=will)
        await conn.subscribe(f"to/{name}", qos=1)
    except CommandError as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"in"

@app.on_received(b"say ")
async def say(conn, frame):
    topic, _, text = frame[4:].decode().partition(" ")
    try:
        await conn.publish(topic, text.encode(), qos=1)
    except CommandError as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"safe"

@app.on_received(b"bye")
def bye(conn, frame):
    conn.terminate()

@app.on_deliver
def deliver(conn, message):
    return message.payload
"""


class Server:
    """`exproto-app run` in a process of its own; *lines* is what it prints."""

    def __init__(self, folder: Path, *options: str) -> None:
        script = folder / "app.py"
        script.write_text(APP)
        command = [sys.executable, "-m", "exproto_app", "run", str(script), "--listen", "tcp://127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.put(line.rstrip())
        self.lines.put("")

    def wait_for(self, text: str) -> str:
        """Wait for a line with *text* in it."""
        while True:
            line = self.lines.get(timeout=PATIENCE)
            self.seen.append(line)
            if text in line:
                return line
            assert line, f"it ended without {text!r}: {self.seen}"

    def device(self) -> SocketDevice:
        """Connect a device."""
        port = next(line for line in self.seen if line.startswith("default on tcp://")).split()[2]
        return SocketDevice(("127.0.0.1", int(port.rpartition(":")[2])), udp=False)

    def end(self) -> int:
        """Stop it, and return its exit code."""
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        server.wait_for("Ctrl-C ends it")
        yield server
    finally:
        server.end()


@contextmanager
def logged_in(server: Server, name: str, password: str = "") -> Iterator[SocketDevice]:
    device = server.device()
    try:
        device.send(f"login {name} {password}\n".encode())
        device.expect(b"in\n")
        yield device
    finally:
        device.hang_up()


class Authority:
    """Signs certificates, as a broker's operator does."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = self._write(name, self._sign(self.name, self.key, ca=True, days=1), None)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, days: int
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, name: str, *, days: int = 1) -> Path:
        """Return the file of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._write(name, self._sign(subject, key, ca=False, days=days), key)

    def _write(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None
    ) -> Path:
        data = certificate.public_bytes(serialization.Encoding.PEM)
        if key is not None:
            data += key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        path = self.folder / f"{name}.pem"
        path.write_bytes(data)
        return path


class TestTls:
    """mqtts: the broker's certificate is checked, and ours is shown."""

    def test_a_broker_with_a_certificate_of_the_right_authority(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        with free_port() as port, Broker(tmp_path / "b", port, tls=Tls(authority.issue("broker"))):
            options = (
                "--mqtt",
                f"mqtts://127.0.0.1:{port}",
                "--mqtt-ca",
                str(authority.path),
                "--mqtt-required",
            )
            with serving(tmp_path, *options) as server, logged_in(server, "a") as device:
                device.send(b"say up/a hello\n")
                device.expect(b"safe\n")

    @pytest.mark.parametrize(
        ("days", "ours", "words"),
        [
            (1, "other", "unable to get local issuer certificate"),
            (-1, "authority", "certificate has expired"),
        ],
    )
    def test_a_certificate_that_cant_be_trusted_is_told_in_words(
        self, tmp_path: Path, days: int, ours: str, words: str
    ) -> None:
        authority = Authority(tmp_path)
        Authority(tmp_path, "other")
        certificate = authority.issue("broker", days=days)
        with free_port() as port, Broker(tmp_path / "b", port, tls=Tls(certificate)):
            url, ca = f"mqtts://127.0.0.1:{port}", str(tmp_path / f"{ours}.pem")
            with serving(tmp_path, "--mqtt", url, "--mqtt-ca", ca) as server:
                # It says so, and goes on trying: somebody may mend the broker.
                if not any("can't be trusted" in line for line in server.seen):
                    server.wait_for("can't be trusted")
                assert any(words in line for line in server.seen)
            required = Server(tmp_path, "--mqtt", url, "--mqtt-ca", ca, "--mqtt-required")
            line = required.wait_for("is required and can't be used")
            assert words in line
            assert required.process.wait(PATIENCE) == 1

    def test_a_broker_that_demands_a_certificate(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        tls = Tls(authority.issue("broker"), authority.path)
        with free_port() as port, Broker(tmp_path / "b", port, tls=tls):
            options = (
                "--mqtt",
                f"mqtts://127.0.0.1:{port}",
                "--mqtt-ca",
                str(authority.path),
                "--mqtt-required",
            )
            certificate = str(authority.issue("gateway"))
            with serving(tmp_path, *options, "--mqtt-cert", certificate) as server, logged_in(server, "a"):
                pass
            without = Server(tmp_path, *options)
            without.wait_for("is required and can't be used")
            assert without.process.wait(PATIENCE) == 1


class TestUsers:
    """The broker decides who a device is and what it may do."""

    def test_wrong_passwords_and_topics_are_refused_in_words(self, tmp_path: Path) -> None:
        users = {"gateway": "g", "a": "right"}
        acl = ("user gateway", "topic readwrite #", "user a", "topic readwrite to/a", "topic write up/a")
        with free_port() as port, Broker(tmp_path / "b", port, users=users, acl=acl):
            url = f"mqtt://gateway:g@127.0.0.1:{port}"
            with serving(tmp_path, "--mqtt", url, "--mqtt-required") as server:
                stranger = server.device()
                stranger.send(b"login a wrong\n")
                answer = stranger.read(len(b"DeniedError: the broker refused 'a': not authorized"))
                assert answer == b"DeniedError: the broker refused 'a': not authorized"
                stranger.hang_up()
                with logged_in(server, "a", "right") as device:
                    device.send(b"say up/a mine\nsay up/b theirs\n")
                    device.expect(b"safe\nDeniedError: the broker refused the message: not authorized")

    def test_the_gateways_own_password_is_wrong(self, tmp_path: Path) -> None:
        with free_port() as port, Broker(tmp_path / "b", port, users={"gateway": "g"}):
            server = Server(tmp_path, "--mqtt", f"mqtt://gateway:no@127.0.0.1:{port}", "--mqtt-required")
            line = server.wait_for("is required and can't be used")
            assert "not authorized" in line
            assert ":no@" not in line
            assert server.process.wait(PATIENCE) == 1


class TestOutages:
    """What is accepted is kept through an outage; devices stay connected."""

    def test_a_broker_that_is_killed_and_comes_back(self, tmp_path: Path) -> None:
        with free_port() as port, Broker(tmp_path / "b", port) as broker:
            url = f"mqtt://127.0.0.1:{port}"
            with serving(tmp_path, "--mqtt", url) as server, logged_in(server, "a") as device:
                broker.kill()
                device.send(b"say up/a meanwhile\n")
                server.wait_for("can't be reached")
                broker.start()
                device.expect(b"safe\n")
                with Client(port, "other") as other:
                    other.subscribe("up/a", 1)
                    device.send(b"say up/a afterwards\n")
                    device.expect(b"safe\n")
                    assert other.next("up/a").payload == b"afterwards"
                    # The subscription is there again too.
                    other.publish("to/a", b"command", 1)
                    device.expect(b"command\n")

    def test_a_broker_that_falls_silent_counts_as_away(self, tmp_path: Path) -> None:
        with free_port() as port, Broker(tmp_path / "b", port) as broker:
            url = f"mqtt://127.0.0.1:{port}"
            options = "--mqtt", url, "--mqtt-timeout", "1"
            with serving(tmp_path, *options) as server, logged_in(server, "a") as device:
                broker.pause()
                late = server.device()
                late.send(b"login b\n")
                words = b"UnavailableError: no session with the broker within 1 s"
                assert late.read(len(words)) == words
                late.hang_up()
                device.send(b"say up/a meanwhile\n")
                broker.resume()
                device.expect(b"safe\n")


class TestSessions:
    """What the broker keeps of a device that has gone."""

    def test_commands_wait_for_an_absent_device(self, tmp_path: Path) -> None:
        with free_port() as port, Broker(tmp_path / "b", port), Client(port, "other") as other:
            other.subscribe("gone", 1)
            with serving(tmp_path, "--mqtt", f"mqtt://127.0.0.1:{port}") as server:
                with logged_in(server, "a"):
                    pass
                assert other.next("gone").payload == b"a"  # its will: it has left
                other.publish("to/a", b"one", 1)
                other.publish("to/a", b"two", 1)
                device = server.device()
                device.send(b"login a\n")
                assert sorted(device.read(len(b"in\none\ntwo\n")).split()) == [b"in", b"one", b"two"]
                device.send(b"bye\n")
                device.expect_end()
                device.hang_up()
                with logged_in(server, "b"):
                    pass
                assert other.next("gone").payload == b"b"  # and nothing of the one that said goodbye

    def test_another_client_takes_the_name(self, tmp_path: Path) -> None:
        with (
            free_port() as port,
            Broker(tmp_path / "b", port),
            serving(tmp_path, "--mqtt", f"mqtt://127.0.0.1:{port}") as server,
            logged_in(server, "a") as device,
            Client(port, "a", reconnects=True) as other,
        ):
            device.expect_end()
            other.wait_connected()

    def test_two_gateways(self, tmp_path: Path) -> None:
        with free_port() as port, Broker(tmp_path / "b", port):
            url = f"mqtt://127.0.0.1:{port}"
            with (
                serving(tmp_path, "--mqtt", url) as one,
                serving(tmp_path, "--mqtt", url) as two,
                logged_in(one, "a") as older,
                logged_in(two, "a") as newer,
            ):
                older.expect_end()
                newer.send(b"say up/a here\n")
                newer.expect(b"safe\n")
