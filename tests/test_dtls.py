"""Devices on DTLS: whom they meet, what a handshake costs, and what attackers can't do."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from exproto_app import App, Connection, ExprotoError, Limits, SetupError
from exproto_app.addresses import AddressLimits, networks
from exproto_app.hosts.gateway import Gateway, Listen, Options
from exproto_app.hosts.gateway.dtls import datagrams, random_of
from exproto_app.hosts.gateway.dtls_context import Cookies, peer_certificate
from exproto_app.models import Certificate
from exproto_app.ops.certificates import KEY_PASSWORD, KEY_PASSWORD_FILE

from .certificates import Authority
from .dtls_client import DtlsClient, client_context
from .test_dialling import run
from .test_hostile import until

_opened: list[DtlsClient] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the devices of a test."""
    yield
    while _opened:
        _opened.pop().close()


COOKIE_REQUEST = b"\x16\xfe\xff"
"""How the answer to a first ClientHello begins."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def cert(authority: Authority) -> str:
    return str(authority.issue("server"))


def echo(**options: Any) -> App:
    """An app without framing: each datagram is a frame."""
    app = App(**options)

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes | None:
        if frame == b"leave":
            conn.terminate()
            return b"left"
        if frame == b"who":
            return f"{conn.info.socktype} {conn.info.peername.host} {conn.info.peercert}".encode()
        return frame

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        app.publish("end", f"{reason}: {conn.close_detail}".encode())

    return app


async def within(call: Callable[..., Any], *arguments: Any) -> Any:
    """Have a device, which waits, do something in a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def connected(gateway: Gateway, context: Any = None, **options: Any) -> DtlsClient:
    """Return a device whose handshake is done."""
    device = opened(gateway, context, **options)
    await within(device.shake)
    return device


def opened(gateway: Gateway, context: Any = None, **options: Any) -> DtlsClient:
    """Return a device that has said nothing yet."""
    address = gateway.addresses[0][2]
    device = DtlsClient((address.host, address.port), context, **options)
    _opened.append(device)
    return device


async def asked(device: DtlsClient, data: bytes) -> bytes:
    """Send *data*; return the answer."""
    device.send(data)
    answer: bytes = await within(device.receive)
    return answer


# --- what a listener says


def test_a_listener_is_set_up_by_its_url(cert: str) -> None:
    listen = Listen.parse("meter=dtls://:7003?mtu=500", cert=cert)
    assert (str(listen), listen.settings.mtu) == ("dtls://:7003", 500)
    assert listen.tls() is not None


@pytest.mark.parametrize("variable", [KEY_PASSWORD, KEY_PASSWORD_FILE])
def test_an_encrypted_key_is_opened_by_the_password_of_all_keys(
    cert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    key, password = tmp_path / "key.pem", tmp_path / "password"
    key.write_bytes(
        load_pem_private_key(Path(cert).read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s3cret")
        )
    )
    password.write_text("s3cret\n")
    monkeypatch.setenv(variable, str(password) if variable == KEY_PASSWORD_FILE else "s3cret")
    assert Listen.parse("dtls://:7003", cert=cert, key=str(key)).tls() is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dtls://:1?mtu=100", "mtu is 100; it must be from 256 to 16384"),
        ("dtls://:1?psk=keys", "unknown option 'psk'"),
        ("dtls://:1?proxy-protocol=1", "unknown option 'proxy-protocol'"),
        ("dtls://:1", "needs a certificate: give --cert FILE and --key FILE"),
        ("dtls://:1?cert=none", "there is no file none"),
        ("dtls://:1?cert=CERT&tls-min=1.3", "tls-min is 1.3; DTLS has 1.0 and 1.2"),
        ("dtls://:1?cert=CERT&ciphers=ROT13", "OpenSSL knows none of the ciphers 'ROT13'"),
        ("dtls://:1?cert=CERT&client-ca=KEYS", "is not a CA file"),
    ],
)
def test_a_listener_that_cannot_be_is_refused_in_a_sentence(
    cert: str, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "keys").write_text("a:00\n")
    text = text.replace("CERT", cert).replace("KEYS", str(tmp_path / "keys"))
    with pytest.raises(SetupError, match=re.escape(words)):
        Listen.parse(text).tls()


def test_pre_shared_keys_are_refused_in_a_sentence(cert: str) -> None:
    with pytest.raises(SetupError, match="pyOpenSSL has no pre-shared keys for DTLS"):
        Listen.parse("dtls://:1", cert=cert, psk="keys").tls()


def test_without_the_library_the_remedy_is_told(cert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "OpenSSL", None)
    with pytest.raises(ExprotoError, match=re.escape("pip install 'exproto-app[dtls]'")):
        Listen.parse("dtls://:1", cert=cert).tls()


# --- cookies and records


def test_a_cookie_is_good_for_its_address_alone_and_not_for_long() -> None:
    cookies = Cookies(0)
    cookie = cookies.make(b"a", 1)
    assert cookies.check(b"a", cookie, 2)
    assert not cookies.check(b"b", cookie, 2)
    assert not cookies.check(b"a", cookie[:-1], 2)
    assert cookies.check(b"a", cookie, 31)
    assert not cookies.check(b"a", cookie, 61)
    cookie = cookies.make(b"a", 62)
    assert not cookies.check(b"a", cookie, 1_000)


def test_records_travel_together_as_far_as_the_mtu_allows() -> None:
    records = [bytes(11) + size.to_bytes(2, "big") + bytes(size) for size in (10, 20, 500, 30)]
    assert list(datagrams(b"".join(records), 100)) == [
        records[0] + records[1],
        records[2],
        records[3],
    ]


@pytest.mark.parametrize("cut", [0, 1, 13, 60])
def test_what_is_cut_short_is_no_hello(cut: int) -> None:
    hello = b"\x16\xfe\xff" + bytes(8) + (48).to_bytes(2, "big") + b"\x01" + bytes(13) + b"r" * 34
    assert random_of(hello) == b"r" * 32
    assert random_of(hello[:cut]) == b""
    assert random_of(hello + b"x") == b""


# --- a session


@pytest.mark.live
def test_a_device_is_answered_and_told_of(authority: Authority, cert: str) -> None:
    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway, client_context(authority.file))
            assert await asked(device, b"who") == b"dtls 127.0.0.1 None"
            assert device.tls.get_protocol_version_name() == "DTLSv1.2"
            assert await asked(device, b"x" * 10_000) == b"x" * 10_000
            device.close()
            await until(lambda: gateway.open == 0)

    run(test)


@pytest.mark.live
def test_the_certificate_of_a_device_is_told_as_on_tls(authority: Authority, cert: str) -> None:
    listen = Listen.parse("dtls://127.0.0.1:0", cert=cert, client_ca=str(authority.file))

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway:
            device = await connected(gateway, client_context(authority.file, authority.issue("meter")))
            shown = Certificate(dn="CN=meter,O=ACME", cn="meter")
            assert await asked(device, b"who") == f"dtls 127.0.0.1 {shown}".encode()
            device.close()

    run(test)


@pytest.mark.live
def test_a_device_without_its_certificate_is_refused_told_and_counted(
    authority: Authority, cert: str, caplog: pytest.LogCaptureFixture
) -> None:
    listen = Listen.parse("dtls://127.0.0.1:0", cert=cert, client_ca=str(authority.file))

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway:
            device = opened(gateway)

            def refused() -> None:
                device.shake()
                device.receive()

            with pytest.raises(SSL.Error):
                await within(refused)
            await until(lambda: gateway.app.stats.get("dtls_handshakes_failed") == 1)
            assert gateway.open == 0
            assert gateway.app.stats["connections_opened"] == 0

    run(test)
    assert re.search(
        r"127\.0\.0\.1:\d+ ! DTLS handshake failed on dtls://127\.0\.0\.1:0: peer did not return", caplog.text
    )


@pytest.mark.live
def test_both_sides_say_goodbye(cert: str) -> None:
    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway)
            assert await asked(device, b"leave") == b"left"
            assert await within(device.receive) == b""
            device, other = await connected(gateway), await connected(gateway)
            assert await asked(other, b"hi") == b"hi"
            device.close()
            await until(lambda: gateway.open == 1)
        assert await within(other.receive) == b""  # the gateway has stopped
        other.close()

    run(test)


@pytest.mark.live
def test_a_device_that_has_vanished_ends_by_silence(cert: str) -> None:
    async def test() -> None:
        app = echo(limits=Limits(datagram_idle=0.2))
        async with Gateway(app, [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway)
            assert await asked(device, b"hi") == b"hi"
            assert await within(device.receive) == b""
            await until(lambda: gateway.open == 0)
            device.close()

    run(test)


@pytest.mark.live
def test_a_device_that_was_restarted_begins_anew_from_its_address(cert: str) -> None:
    """Its older session ends when the cookie has shown that it is there; a first datagram ends nothing."""

    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway)
            assert await asked(device, b"hi") == b"hi"
            older = device.tls
            device.begin()
            device.step()
            newer, device.tls = device.tls, older
            assert (await within(device.sock.recv, 4_096)).startswith(COOKIE_REQUEST)
            assert await asked(device, b"still here") == b"still here"
            device.tls = newer
            device.begin()
            await within(device.shake)
            assert await asked(device, b"again") == b"again"
            assert gateway.open == 1
            device.close()

    run(test)


@pytest.mark.live
def test_lost_datagrams_are_sent_again(cert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each datagram of a handshake is lost once."""

    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0?mtu=300", cert=cert)]) as gateway:
            device = opened(gateway, patience=0.1)
            seen: set[bytes] = set()

            def take() -> None:
                try:
                    data = device.sock.recv(65_536)
                except TimeoutError:
                    device.tls.DTLSv1_handle_timeout()
                    return
                if data[13:25] in seen:  # the same part of the handshake, once more
                    device.tls.bio_write(data)
                seen.add(data[13:25])

            with monkeypatch.context() as bad_line:
                bad_line.setattr(device, "take", take)
                await within(device.shake)
            device.sock.settimeout(20)
            assert await asked(device, b"hi") == b"hi"
            device.close()

    run(test)


@pytest.mark.live
def test_renewed_certificates_are_for_new_handshakes(authority: Authority, cert: str) -> None:
    renewed = authority.issue("renewed").read_bytes()

    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            older = await connected(gateway)
            await within(Path(cert).write_bytes, renewed)
            before = gateway.endpoints[0].context
            gateway.renew()
            await until(lambda: gateway.endpoints[0].context is not before)
            newer = await connected(gateway)
            assert peer_certificate(newer.tls) == Certificate(dn="CN=renewed,O=ACME", cn="renewed")
            for device in (older, newer):
                assert await asked(device, b"hi") == b"hi"
                device.close()

    run(test)


# --- attackers


@pytest.mark.live
def test_a_hello_alone_costs_nothing(cert: str) -> None:
    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway)
            for _ in range(300):
                other = opened(gateway)
                other.step()
                answer: bytes = await within(other.sock.recv, 4_096)
                assert answer.startswith(COOKIE_REQUEST)
                assert len(answer) < 100  # no larger than the question, so of no use to others
                other.sock.close()
            assert gateway.open == 1
            assert gateway.app.stats["connections_opened"] == 1
            assert await asked(device, b"hi") == b"hi"
            device.close()

    run(test)


@pytest.mark.live
def test_half_handshakes_keep_nobody_out_and_end(cert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.hosts.gateway.handshakes.MOST", 5)

    async def test() -> None:
        options = Options(handshake_timeout=2)
        listen = Listen.parse("dtls://127.0.0.1:0", cert=cert)
        async with Gateway(echo(), [listen], options=options) as gateway:
            half = []
            for _ in range(12):
                other = opened(gateway)
                other.step()
                await within(other.take)
                other.step()
                await within(other.take)  # the certificate; it never goes on
                half.append(other)
            assert gateway.open == 5
            assert gateway.app.stats["dtls_handshakes_failed"] == 7
            device = await connected(gateway)
            assert await asked(device, b"hi") == b"hi"
            await until(lambda: gateway.open == 1)

    run(test)


@pytest.mark.live
@pytest.mark.parametrize("number", range(4))
def test_garbage_harms_nobody(cert: str, number: int) -> None:
    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway)
            stranger = opened(gateway)
            half = opened(gateway)
            half.step()
            await within(half.take)
            half.step()
            await within(half.take)
            for sock in (stranger.sock, half.sock, device.sock):
                for data in garbage(number):
                    sock.send(data)
            assert await asked(device, b"hi") == b"hi"
            other = await connected(gateway)
            assert await asked(other, b"hi") == b"hi"

    run(test)


def garbage(number: int) -> list[bytes]:
    """Return datagrams that are of no use."""
    record = b"\x16\xfe\xff" + bytes(8)
    hello = b"\x01" + bytes(13) + b"r" * 34
    return [
        [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 60_000],
        [record + b"\xff\xff", record + (48).to_bytes(2, "big") + hello, record + b"\0\0" * 700],
        [
            b"\x17\xfe\xfd\0\x01" + bytes(6) + b"\0\x40" + b"x" * 64,
            b"\x14\xfe\xfd" + bytes(8) + b"\0\x01\x01",
        ],
        [record + (len(hello) + 200).to_bytes(2, "big") + hello + b"\xff" * 200] * 50,
    ][number]


@pytest.mark.live
def test_what_others_change_on_the_way_harms_no_session(cert: str) -> None:
    """OpenSSL has one queue of errors for all: what is left there would be taken for another one's."""
    chance = random.Random(7)
    seen: list[bytes] = []

    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            watched = opened(gateway)
            send = watched.sock.send

            def wire(data: bytes) -> None:
                seen.append(data)
                send(data)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(watched, "wire", wire)
                await within(watched.shake)
                assert await asked(watched, b"hi") == b"hi"
            stranger, device = opened(gateway), await connected(gateway)
            for number in range(1_000):
                data = bytearray(chance.choice(seen))
                for _ in range(chance.randrange(4)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                chance.choice((stranger, watched, device)).sock.send(
                    data[: chance.randrange(len(data)) or None]
                )
                if number % 50 == 0:
                    for each in (watched, device):
                        assert await asked(each, b"hi") == b"hi"
            assert gateway.open == 2

    run(test)


@pytest.mark.live
def test_a_handshake_has_a_limit_of_bytes(cert: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            half = opened(gateway)
            half.step()
            await within(half.take)
            half.step()
            await within(half.take)
            for _ in range(3):
                half.sock.send(b"\x16" * 30_000)
            await until(lambda: gateway.app.stats.get("dtls_handshakes_failed") == 1)
            assert gateway.open == 0
            half.close()

    run(test)
    assert "it has sent more than 65536 bytes" in caplog.text


@pytest.mark.live
def test_a_denied_network_is_not_served(cert: str) -> None:
    async def test() -> None:
        limits = AddressLimits(deny=networks(["127.0.0.0/8"], "--deny"))
        listen = Listen.parse("dtls://127.0.0.1:0", cert=cert)
        async with Gateway(echo(), [listen], options=Options(addresses=limits)) as gateway:
            device = opened(gateway)
            device.step()
            await within(device.take)
            device.step()
            await until(lambda: gateway.app.stats.get("connections_refused.denied") == 1)
            assert gateway.open == 0
            device.close()

    run(test)


@pytest.mark.live
def test_udp_peers_displace_no_device_on_dtls(cert: str) -> None:
    """Addresses on UDP may be forged, those on DTLS can't."""

    async def test() -> None:
        listens = [Listen.parse("dtls://127.0.0.1:0", cert=cert), Listen.parse("udp://127.0.0.1:0")]
        async with Gateway(echo(), listens, options=Options(max_connections=5)) as gateway:
            device = await connected(gateway)
            port = gateway.addresses[1][2].port
            for _ in range(20):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x", ("127.0.0.1", port))
            await until(lambda: gateway.app.stats.get("connections_evicted.udp", 0) > 5)
            assert await asked(device, b"hi") == b"hi"
            device.close()

    run(test)


@pytest.mark.live
def test_a_stop_waits_for_no_handshake(cert: str) -> None:
    async def test() -> None:
        async with Gateway(echo(), [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            half = opened(gateway)
            half.step()
            await within(half.take)
            half.step()
            await within(half.take)
            assert gateway.open == 1
        assert gateway.open == 0
        half.close()

    run(test)


@pytest.mark.live
def test_a_datagram_that_is_too_large_is_told_and_counted(
    cert: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = echo()

    @app.on_connect
    def large(conn: Connection) -> None:
        conn.send(b"x" * 16_385)

    async def test() -> None:
        async with Gateway(app, [Listen.parse("dtls://127.0.0.1:0", cert=cert)]) as gateway:
            device = await connected(gateway)
            assert await asked(device, b"hi") == b"hi"
            assert app.stats["datagrams_dropped.too_large"] == 1
            device.close()

    with caplog.at_level(logging.WARNING, "exproto_app"):
        run(test)
    assert re.search(r"127\.0\.0\.1:\d+ ! datagram dropped: it has 16385 bytes, limit is 16384", caplog.text)
