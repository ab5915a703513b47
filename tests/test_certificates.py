"""Certificates and keys: encrypted ones, those that don't fit, and until when they are good."""

from __future__ import annotations

import datetime as dt
import os
import pty
import re
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from exproto_app.cli.secrets import MQTT_PASSWORD, read_secret, with_password
from exproto_app.errors import SetupError
from exproto_app.ops.certificates import KEY_PASSWORD, load_identity, validity

from .certificates import Authority, trusting
from .test_cli import COMMAND, ECHO, gateway, port_of, run

NOW = dt.datetime.now(dt.timezone.utc)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def encrypted(path: Path, password: bytes) -> Path:
    """Write the key in *path* anew, encrypted; return where."""
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    found = path.with_suffix(".key")
    found.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
    )
    return found


def load(cert: Path, key: Path) -> None:
    load_identity(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), str(cert), str(key), "tls://:1")


def test_an_encrypted_key_needs_its_password_and_asks_no_terminal(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert = authority.issue("server")
    key = encrypted(cert, b"s3cret")
    monkeypatch.delenv(KEY_PASSWORD, raising=False)
    with pytest.raises(
        SetupError, match=r"\.key is encrypted; give --key-password-file FILE, or EXPROTO_KEY"
    ):
        load(cert, key)
    monkeypatch.setenv(KEY_PASSWORD, "wrong")
    with pytest.raises(SetupError, match="doesn't open the key in"):
        load(cert, key)
    monkeypatch.setenv(KEY_PASSWORD, "")
    with pytest.raises(SetupError, match="doesn't open the key in"):
        load(cert, key)
    monkeypatch.setenv(KEY_PASSWORD, "s3cret")
    load(cert, key)


def test_a_key_that_does_not_fit_is_told(authority: Authority) -> None:
    with pytest.raises(SetupError, match="isn't that of the certificate"):
        load(authority.issue("one"), authority.issue("other"))


def test_a_file_that_is_none_is_told(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(SetupError, match=r"empty\.pem and its key can't be used"):
        load(tmp_path / "empty.pem", authority.issue("one"))


@pytest.mark.parametrize("expired", [False, True])
def test_the_validity_is_what_the_certificate_says(authority: Authority, *, expired: bool) -> None:
    path = authority.issue("server", expired=expired)
    certificate = x509.load_pem_x509_certificate(
        path.read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2]
    )
    (found,) = validity(path)
    assert found.begins == certificate.not_valid_before_utc
    assert found.ends == certificate.not_valid_after_utc
    assert bool(found.trouble(NOW)) is expired
    assert "isn't valid before" in found.trouble(found.begins - dt.timedelta(days=1))
    assert found.days(found.ends - dt.timedelta(days=9, hours=1)) == 9


@pytest.mark.parametrize("text", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_has_no_validity(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(text)
    assert validity(path) == []


def test_a_secret_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret: ü\r\nmore\n", encoding="utf-8", newline="")
    assert read_secret(str(path), "--x-file") == "s3cret: ü"
    path.write_text("\ns3cret")
    with pytest.raises(SetupError, match=r"--x-file: the first line of .* is empty"):
        read_secret(str(path), "--x-file")
    with pytest.raises(SetupError, match=r"--x-file: .* can't be read: is a directory"):
        read_secret(str(tmp_path), "--x-file")


def test_the_brokers_password_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text("a/b@c:d")
    monkeypatch.delenv(MQTT_PASSWORD, raising=False)
    assert with_password("mqtt://me@host:1", str(path)) == "mqtt://me:a%2Fb%40c%3Ad@host:1"
    assert with_password("mqtt://me@host:1", None) == "mqtt://me@host:1"
    with pytest.raises(SetupError, match="already has a password"):
        with_password("mqtt://me:pw@host", str(path))
    with pytest.raises(SetupError, match=r"--mqtt-password-file needs a user; write .* mqtt://USER@HOST"):
        with_password("mqtt://host", str(path))
    monkeypatch.setenv(MQTT_PASSWORD, "pw")
    assert with_password("mqtt://me@host", None) == "mqtt://me:pw@host"
    assert with_password("mqtt://me:own@host", None) == "mqtt://me:own@host"
    assert with_password(None, None) is None


@pytest.mark.live
def test_run_with_an_encrypted_key(authority: Authority, tmp_path: Path) -> None:
    cert = authority.issue("server")
    key = encrypted(cert, b"s3cret")
    (tmp_path / "password").write_text("s3cret\n")
    options = ("--listen", "tls://127.0.0.1:0", "--cert", cert, "--key", key)
    code, _, errors = run("run", ECHO, *options)
    assert code == 2
    assert "is encrypted; give --key-password-file FILE" in errors
    with gateway(ECHO, *options, "--key-password-file", tmp_path / "password") as (_, lines):
        assert port_of(lines)


@pytest.mark.live
def test_sighup_has_certificates_read_again_and_cuts_nobody(authority: Authority, tmp_path: Path) -> None:
    cert = tmp_path / "server.pem"
    cert.write_bytes(authority.issue("server", expired=True).read_bytes())
    with gateway(ECHO, "--listen", "tls://127.0.0.1:0", "--cert", cert) as (process, lines):
        assert re.search("certificate .* of tls://127.0.0.1:0: it expired on", "".join(lines))
        assert process.stdout is not None
        port = port_of(lines)
        unchecked = ssl._create_unverified_context()
        with _connect(port, unchecked) as old:
            old.sendall(b"a\n")
            assert old.recv(100)
            for text, words in ((authority.issue("new").read_bytes(), "read again"), (b"", "not renewed")):
                cert.write_bytes(text)
                process.send_signal(signal.SIGHUP)
                assert any(words in line for line in process.stdout)
            with _connect(port, trusting(authority)) as new:
                new.sendall(b"b\n")
                assert new.recv(100)
            old.sendall(b"c\n")
            assert old.recv(100)
        process.terminate()
        assert process.wait(20) == 0


def _connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="127.0.0.1")


@pytest.mark.live
@pytest.mark.parametrize("command", ["run", "serve"])
def test_sighup_of_a_terminal_that_has_gone_is_a_stop(tmp_path: Path, command: str) -> None:
    """A pseudo-terminal stands for the ssh session that ends."""
    ours, theirs = pty.openpty()
    listen = ("--listen", "tcp://127.0.0.1:0") if command == "run" else ("--bind", "127.0.0.1:0")
    process = subprocess.Popen(
        [*COMMAND, command, str(ECHO), *listen],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONUNBUFFERED": "1", "EXPROTO_MQTT_LISTEN": "off"},
    )
    os.close(theirs)
    assert process.stdout is not None
    with process.stdout:
        assert any("Ctrl-C stops it" in line for line in process.stdout)
        process.send_signal(signal.SIGHUP)
        rest = process.stdout.read()
    os.close(ours)
    assert process.wait(20) == 0, rest
    assert "= stopped" in rest


@pytest.mark.live
def test_the_doctor_tells_of_certificates(authority: Authority) -> None:
    listen = ("--listen", "tls://127.0.0.1:0")
    code, out, _ = run("doctor", ECHO, *listen, "--cert", authority.issue("server", expired=True))
    assert code == 1
    assert re.search(r"✗ tls://127.0.0.1:0: the certificate .* it expired on .* UTC; renew it", out)
    _, out, _ = run("doctor", ECHO, *listen, "--cert", authority.issue("server"))
    assert re.search(r"✓ tls://127.0.0.1:0 is free; the certificate .* expires in 0 days, on ", out)
    mismatch = ("--cert", authority.issue("one"), "--key", authority.issue("other"))
    assert "isn't that of the certificate" in run("doctor", ECHO, *listen, *mismatch)[1]
