"""TLS for old and small devices: pre-shared keys, ciphers, the lowest version."""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from exproto_app import App, Connection, SetupError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Listen
from exproto_app.hosts.gateway.keys import read_keys

from .certificates import Authority, trusting

PATIENCE = 60

new = pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has pre-shared keys from 3.13 on")


def test_a_file_has_a_key_in_each_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# meters\n\nmeter-7:00ff\nurn:dev:8:AB\n")
    assert read_keys(str(file), "tls") == {"meter-7": b"\0\xff", "urn:dev:8": b"\xab"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:00\nmeter-7", "line 2 is not IDENTITY:HEXKEY"),
        (":00", "line 1 is not IDENTITY:HEXKEY"),
        ("a:", "line 1 is not IDENTITY:HEXKEY"),
        ("a:s3cret", "line 1 is not IDENTITY:HEXKEY"),
        (f"a:{'00' * 257}", "line 1 is not IDENTITY:HEXKEY"),
        (f"{'a' * 257}:00", "line 1 is not IDENTITY:HEXKEY"),
        ("a:00\na:01", "line 2 has the identity 'a' a second time"),
    ],
)
def test_a_file_that_has_something_else_is_refused_and_not_shown(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SetupError, match=re.escape(words)) as caught:
        read_keys(str(file), "tls://:1")
    assert "s3cret" not in str(caught.value)


def test_options_that_cannot_be_are_refused_in_a_sentence(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert = str(authority.issue("server"))
    with pytest.raises(SetupError, match="needs a certificate, or pre-shared keys: give"):
        Listen.parse("tls://:1").tls()
    with pytest.raises(SetupError, match=r"tls-min is '2'; it must be one of 1\.0, 1\.1, 1\.2, 1\.3"):
        Listen.parse("tls://:1?tls-min=2", cert=cert)
    with pytest.raises(SetupError, match="OpenSSL knows none of the ciphers 'ROT13'"):
        Listen.parse("tls://:1?ciphers=ROT13", cert=cert).tls()
    with pytest.raises(SetupError, match="there is no file"):
        Listen.parse(f"tls://:1?psk={tmp_path}/none").tls()
    if sys.version_info < (3, 13):
        (tmp_path / "keys").write_text("a:00\n")
        with pytest.raises(SetupError, match=r"pre-shared keys need Python 3\.13 or newer; this is 3\."):
            Listen.parse(f"tls://:1?psk={tmp_path}/keys").tls()


def test_the_lowest_version_and_the_ciphers_are_as_asked(tmp_path: Path) -> None:
    cert = str(Authority(tmp_path).issue("server"))
    context = Listen.parse("tls://:1", cert=cert, tls_min="1.3").tls()
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    context = Listen.parse("wss://:1?ciphers=ECDHE-ECDSA-AES128-SHA256", cert=cert).tls()
    assert context is not None
    old = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert old == {"ECDHE-ECDSA-AES128-SHA256"}


def whoami() -> App:
    app = App(framing=Line())

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return conn.info.socktype.encode() + b" " + frame

    return app


async def spoken(gateway: Gateway, context: ssl.SSLContext) -> bytes:
    """Say hi with *context*; return the answer."""
    address = gateway.addresses[0][2]
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    writer.write(b"hi\n")
    line = await reader.readline()
    writer.close()
    return line


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


@pytest.mark.live
def test_an_old_device_is_taken_where_it_may_be(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert = str(authority.issue("server"))

    async def test() -> None:
        old = trusting(authority)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        async with Gateway(whoami(), [Listen.parse("tls://127.0.0.1:0?tls-min=1.0", cert=cert)]) as gateway:
            assert await spoken(gateway, old) == b"ssl hi\n"

    with pytest.warns(DeprecationWarning, match=r"TLSv1"):
        run(test())


@new
@pytest.mark.live
def test_a_device_that_knows_its_key_is_taken_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("meter-7:c0ffee00c0ffee00\n")

    def device(identity: str, key: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("PSK")
        psk: Any = context  # typed for 3.10
        psk.set_psk_client_callback(lambda hint: (identity, bytes.fromhex(key)))
        return context

    async def test() -> None:
        async with Gateway(whoami(), [f"tls://127.0.0.1:0?psk={tmp_path}/keys"]) as gateway:
            assert await spoken(gateway, device("meter-7", "c0ffee00c0ffee00")) == b"ssl hi\n"
            for identity, key in (("meter-7", "00"), ("meter-8", "c0ffee00c0ffee00")):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await spoken(gateway, device(identity, key))
            assert gateway.app.stats["tls_handshakes_failed"] == 2
            assert gateway.app.stats["connections_opened"] == 1

    run(test())
