"""The command `serve`, and TLS."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exproto_app import Address
from exproto_app.cli.emqx_config import dns_names
from exproto_app.cli.emqx_ports import takes_shares
from exproto_app.hosts.grpc import AdapterMap, Service, Tls
from exproto_app.hosts.http2.frames import PREFACE
from tests.behaviour.hosts import PATIENCE
from tests.test_cli import ECHO, FLEET, run

from .host import LoopThread
from .test_service import echo_app, wait

pytestmark = pytest.mark.live


def test_serve_prints_what_emqx_has_to_know() -> None:
    code, out, _ = run("serve", ECHO, "--print-config", "--bind", "0.0.0.0:9002")
    assert code == 0
    assert 'address = "http://127.0.0.1:9002", service_name = "ConnectionUnaryHandler"' in out
    assert 'listeners.tcp.default { bind = "0.0.0.0:7993" }' in out
    options = ("--protocol", "tracker=:8001", "--protocol", "meter=:8002", "--adapter", "auto:9105")
    code, out, _ = run("serve", FLEET, "--print-config", "--emqx", "4", *options)
    assert code == 0
    assert "exproto.server.http.port = 9105" in out
    assert "exproto.listener.meter = tcp://0.0.0.0:8002" in out
    assert "exproto.listener.meter.connection_handler_url = http://127.0.0.1:9001" in out
    code, out, _ = run("serve", FLEET, "--print-config", "--protocol", "meter,tracker=:8001")
    assert (code, 'listeners.tcp.meter_tracker { bind = "0.0.0.0:8001" }' in out) == (0, True)
    assert "idle_timeout = 30s" in out
    assert "listeners.tcp.meter_tracker.max_connections = 1024000" in out


def test_serve_prints_each_kind_of_listener() -> None:
    kinds = [f"--protocol={'tracker' if '1' in where else 'meter'}={where}" for where in (
        "udp://:8001", "tcp://:8001", "tls://:8002", "dtls://:8003",
    )]  # fmt: skip
    code, out, _ = run("serve", FLEET, "--print-config", *kinds)
    assert code == 0
    assert 'listeners.udp.tracker { bind = "0.0.0.0:8001" }' in out
    assert 'listeners.tcp.tracker_8001 { bind = "0.0.0.0:8001" }' in out
    assert 'listeners.ssl.meter { bind = "0.0.0.0:8002", ssl_options {' in out
    assert 'listeners.dtls.meter_8003 { bind = "0.0.0.0:8003", dtls_options {' in out
    code, out, _ = run("serve", FLEET, "--print-config", "--emqx", "4.4.19", *kinds)
    assert code == 0
    assert "exproto.listener.tracker = udp://0.0.0.0:8001" in out


@pytest.mark.parametrize(
    ("bind", "emqx", "address", "warning"),
    [
        ("localhost:9001", "5", "http://127.0.0.1:9001", "before EMQX 5.8.5 a name such as localhost"),
        ("localhost:9001", "5.8.4", "http://127.0.0.1:9001", "before EMQX 5.8.5 a name such as localhost"),
        ("localhost:9001", "5.8.5", "http://localhost:9001", ""),
        ("localhost:9001", "6.1", "http://localhost:9001", ""),
        ("no.such.invalid:9001", "5.5.1", "http://no.such.invalid:9001", "--bind an IP address"),
        ("[::1]:9001", "5", "http://[::1]:9001", "can't call an IPv6 address"),
        ("0.0.0.0:9001", "5", "http://127.0.0.1:9001", ""),
    ],
)
def test_the_address_is_one_that_this_emqx_can_call(bind: str, emqx: str, address: str, warning: str) -> None:
    code, out, err = run("serve", ECHO, "--print-config", "--bind", bind, "--emqx", emqx)
    assert code == 0
    assert f'address = "{address}"' in out
    assert (warning in err) if warning else not err


@pytest.mark.parametrize(
    ("version", "words"),
    [("6.3", "no longer has ExProto"), ("4.2", "gen-driver"), ("five", "write 5 or 5.5.1"), ("7", "write 5")],
)
def test_a_version_that_calls_no_service(version: str, words: str) -> None:
    code, _, err = run("serve", ECHO, "--print-config", "--emqx", version)
    assert (code, words in err) == (2, True)


@pytest.mark.parametrize(
    ("version", "takes"),
    [("4", True), ("4.4.19", True), ("5", False), ("5.3.2", True), ("5.4", False), ("6", False)],
)
def test_which_versions_take_shared_subscriptions(version: str, takes: bool) -> None:
    assert takes_shares(tuple(map(int, version.split(".")))) == takes


def test_the_name_to_verify_is_one_of_the_certificate(tmp_path: Path) -> None:
    names = own_certificate(tmp_path, "localhost", "*.example.com")[0]
    code, out, err = run("serve", ECHO, "--print-config", "--cert", names)
    assert (code, err) == (0, "")
    assert 'server_name_indication = "localhost"' in out
    assert dns_names(str(names)) == ["localhost", "*.example.com"]
    code, out, err = run("serve", ECHO, "--print-config", "--cert", own_certificate(tmp_path)[0])
    assert (code, 'server_name_indication = "NAME"' in out) == (0, True)
    assert "verifies names only" in err


def test_serve_prints_the_files_of_tls() -> None:
    code, out, _ = run("serve", ECHO, "--print-config", "--cert", "c.pem")
    assert code == 0
    assert 'address = "https://127.0.0.1:9001"' in out
    assert 'ssl_options { enable = true, verify = verify_peer, cacertfile = "etc/certs/cacert.pem" }' in out
    code, out, _ = run("serve", ECHO, "--print-config", "--cert", "c", "--client-ca", "ca", "--emqx", "4")
    assert code == 0
    assert "connection_handler_url = https://127.0.0.1:9001" in out
    assert "connection_handler_keyfile = etc/certs/key.pem" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((FLEET,), "such as --protocol tracker=:7993 --protocol meter=:7994"),
        ((FLEET, "--protocol", "tracker=8001"), "should be NAME=:PORT, such as tracker=:7993"),
        ((FLEET, "--protocol", "boat=:8001"), "serves no protocol 'boat'"),
        ((FLEET, "--protocol", "tracker=:1", "--protocol", "meter=:1"), "the same port"),
        ((FLEET, "--protocol", "meter,boat=:1"), "serves no protocol 'boat'"),
        ((FLEET, "--protocol", "meter,meter=:1"), "'meter,meter' names a protocol twice"),
        ((FLEET, "--protocol", "tracker=udp://:1", "--protocol", "meter=:1"), "the same port"),
        ((FLEET, "--protocol", "tracker=ftp://:1"), "ftp:// should be tcp://"),
        ((FLEET, "--protocol", "meter=:1", "--sniff-time", "0"), "limit sniff_time is 0"),
        ((ECHO, "--adapter-calls", "0"), "0 is not in the range"),
        ((ECHO, "--adapter", "https://h:1"), "has no TLS"),
        ((ECHO, "--bind", "here"), "write HOST:PORT"),
        ((ECHO, "--key", "k"), "need --cert"),
        ((ECHO, "--cert", "nowhere.pem"), "--cert: there is no file nowhere.pem"),
    ],
)
def test_serve_called_wrongly(options: tuple[str, ...], words: str) -> None:
    code, _, err = run("serve", *options)
    assert code == 2
    assert words in err


def test_serve_starts_and_stops() -> None:
    command = [sys.executable, "-m", "exproto_app", "serve", str(ECHO), "--bind", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert "serving EMQX's ExProto gateway on 127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "grpc = stopped" in out


def own_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """Write a certificate that is its own CA, for 127.0.0.1 and *names*, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = dt.datetime.now(dt.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([*map(x509.DNSName, names), address]), critical=bool(names)
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


# Python 3.10 warns of what it has made for a connection whose handshake fails; there is nothing to be closed.
@pytest.mark.filterwarnings("ignore:(?s).*_SSLProtocolTransport:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("shows", [True, False])
def test_tls_with_certificates_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shows: bool
) -> None:
    cert, key = own_certificate(tmp_path)
    ours = LoopThread()

    async def begin() -> Service:
        tls = Tls(str(cert), str(key), str(cert))
        service = Service(echo_app(), Address("127.0.0.1", 0), AdapterMap(["auto:9100"]), tls=tls)
        await service.start()
        return service

    with contextlib.ExitStack() as stack:
        stack.callback(ours.stop)
        service = ours.run(begin())
        stack.callback(lambda: ours.run(service.stop()))
        mine = (key.read_bytes(), cert.read_bytes()) if shows else (None, None)
        credentials = grpc.ssl_channel_credentials(cert.read_bytes(), *mine)
        channel = grpc.secure_channel(str(service.address), credentials)
        stack.callback(channel.close)
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        if shows:
            assert check(b"", timeout=PATIENCE) == b"\x08\x01"
        else:
            with pytest.raises(grpc.RpcError) as caught:
                check(b"", timeout=PATIENCE)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            wait(lambda: "belongs into EMQX's ssl_options" in caplog.text)
        # A broker that wasn't told of TLS, and a device on the wrong port.
        for said, words in ((PREFACE, "so write https://"), (b"*HQ,imei,V1#" * 9, "so write https://")):
            caplog.clear()
            with socket.create_connection(("127.0.0.1", service.address.port)) as stranger:
                stranger.sendall(said)
                wait(lambda words=words: words in caplog.text)  # type: ignore[misc] # of this round
