"""Files that are read again while a service runs: when they are whole, and only if they can be used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.addresses import AddressLimits, networks
from exproto_app.asyncio_host import renewal
from exproto_app.asyncio_host.renewal import RESTLESS, Renewal, Source
from exproto_app.errors import SetupError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Listen, Lists, Options
from exproto_app.hosts.gateway.renewing import read_networks
from exproto_app.hosts.gateway.users import Users, hash_password
from exproto_app.hub import MemoryHub

from .certificates import Authority, trusting

PATIENCE = 60.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "LOOK", 0.01)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), PATIENCE))


class Reader:
    """What is read from *path*; empty lines are a mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used: list[str] = []
        self.source = Source("test", "words", lambda: (path, None), self.read, self.used.append)

    def read(self) -> str:
        text = self.path.read_text() if self.path.exists() else ""
        if not text:
            raise SetupError(f"{self.path} is empty")
        return text


def looks(*versions: int) -> list[bool]:
    """Return at which looks a file is read that has these versions, one after the other."""
    source = Source("test", "words", lambda: (), lambda: None, lambda _: None)
    followed = renewal._Followed(source)
    followed._used = followed._last = {"file": (0, 0, 0, 0)}
    return [followed.look({"file": (version, 0, 0, 0)}) for version in versions]


def test_a_file_is_read_when_two_looks_have_found_it_the_same() -> None:
    assert looks(0, 0) == [False, False]
    assert looks(1, 1, 1) == [False, True, False]
    assert looks(1, 2, 3, 3, 3) == [False, False, False, True, False]
    assert looks(1, 0, 0) == [False, False, False]  # it is what it was


def test_a_file_that_never_stays_the_same_is_read_nevertheless() -> None:
    assert looks(*range(1, RESTLESS + 2)).index(True) == RESTLESS - 1


def test_who_asks_gets_it_at_once_unless_it_is_being_written() -> None:
    source = Source("test", "words", lambda: (), lambda: None, lambda _: None)
    followed = renewal._Followed(source)
    followed.asked = True
    assert followed.look({})
    assert not followed.look({})
    followed.asked = True
    assert not followed.look({"file": (1, 0, 0, 0)})
    assert followed.look({"file": (1, 0, 0, 0)})


def test_what_is_wrong_is_told_and_what_was_read_before_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader(tmp_path / "words")
    reader.path.write_text("one")

    async def until(done: Callable[[], bool]) -> None:
        while not done():  # noqa: ASYNC110 - files tell nobody
            await asyncio.sleep(0.005)

    async def test() -> None:
        followed = Renewal()
        followed.add(reader.source)
        followed.start()
        reader.path.write_text("two")
        await until(lambda: reader.used == ["two"])
        reader.path.write_text("")
        await until(lambda: "words is empty" in caplog.text)
        reader.path.unlink()
        await until(lambda: caplog.text.count("words is empty") == 2)
        other = tmp_path / "other"
        other.write_text("two")
        shutil.copystat(reader.path.parent, other)  # an old time and the same size, as `cp -p` has it
        other.rename(reader.path)
        await until(lambda: reader.used == ["two", "two"])
        followed.ask()
        await until(lambda: reader.used == ["two", "two", "two"])
        followed.stop()

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)
    assert "test ! not renewed:" in caplog.text
    assert "what was read before stays in force" in caplog.text
    assert "test = words read again" in caplog.text


def test_an_exception_of_ours_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    used: list[int] = []

    def read() -> int:
        if len(caplog.records) == 0:
            raise ZeroDivisionError
        return 1

    async def test() -> None:
        followed = Renewal()
        followed.add(Source("test", "", lambda: (), read, used.append))
        followed.start()
        while not used:
            followed.ask()
            await asyncio.sleep(0.005)
        followed.stop()

    run(test)
    assert "ZeroDivisionError" in caplog.text


# --- what a gateway reads again


def echoing() -> App:
    app = App(framing=Line())

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return frame

    return app


async def connected(port: int, context: ssl.SSLContext | None = None) -> Echo:
    name = "127.0.0.1" if context else None
    return Echo(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))


class Echo:
    """A device that says a word and is answered it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def certificate(self) -> bytes:
        found: bytes = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found

    async def works(self) -> bool:
        self.writer.write(b"word\n")
        try:
            return await self.reader.readline() == b"word\n"
        except ConnectionError:
            return False

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


async def logged(caplog: pytest.LogCaptureFixture, words: str, times: int = 1) -> None:
    while caplog.text.count(words) < times:  # noqa: ASYNC110 - a log line wakes nobody
        await asyncio.sleep(0.005)


@pytest.mark.live
@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_new_certificates_are_for_new_handshakes_and_cut_nobody(
    authority: Authority, tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight devices stay connected while the certificate is renewed five times, in place and by renaming."""
    if scheme == "wss":
        pytest.importorskip("wsproto")
    cert = tmp_path / "server.pem"
    shutil.copy(authority.issue("server-0"), cert)

    async def test() -> None:
        path = "/devices" if scheme == "wss" else ""
        listeners = [
            Listen.parse(f"{scheme}://127.0.0.1:0{path}", cert=str(cert)),
            Listen.parse("tls://127.0.0.1:0", cert=str(cert)),
        ]
        async with Gateway(echoing(), listeners) as gateway:
            first, second = (address.port for _, _, address in gateway.addresses)
            devices = [await connected(second, trusting(authority)) for _ in range(8)]
            seen = set()
            for number in range(1, 6):
                new = authority.issue(f"server-{number}")
                if number % 2:
                    cert.write_bytes(new.read_bytes())
                else:
                    shutil.copy(new, tmp_path / "new")
                    (tmp_path / "new").rename(cert)
                await logged(caplog, "certificate and keys of", 2 * number)
                for port in (first, second):
                    other = await connected(port, trusting(authority))
                    seen.add(other.certificate)
                    await other.close()
            assert len(seen) == 5
            assert [await device.works() for device in devices] == [True] * 8
            for device in devices:
                await device.close()

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)


def half(path: Path) -> bytes:
    return path.read_bytes()[:-200]


@pytest.mark.live
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda authority: authority.issue("x", expired=True).read_bytes(), "it expired on"),
        (lambda authority: half(authority.issue("x")), "can't be used"),
        (lambda authority: b"", "can't be used"),
        (lambda authority: authority.file.read_bytes(), "can't be used"),
    ],
    ids=["expired", "half", "empty", "no key"],
)
def test_a_certificate_that_cannot_be_used_is_told_and_the_old_one_stays(
    authority: Authority,
    tmp_path: Path,
    bad: Callable[[Authority], bytes],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cert = tmp_path / "server.pem"
    shutil.copy(authority.issue("server"), cert)

    async def test() -> None:
        listen = Listen.parse("tls://127.0.0.1:0", cert=str(cert))
        async with Gateway(echoing(), [listen]) as gateway:
            port = gateway.addresses[0][2].port
            before = await connected(port, trusting(authority))
            cert.write_bytes(bad(authority))
            await logged(caplog, "not renewed")
            assert words in caplog.text
            after = await connected(port, trusting(authority))
            assert after.certificate == before.certificate
            cert.write_bytes(authority.issue("mended").read_bytes())
            await logged(caplog, "read again")
            mended = await connected(port, trusting(authority))
            assert mended.certificate != before.certificate
            assert await before.works()
            for device in (before, after, mended):
                await device.close()

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)


@pytest.mark.live
def test_a_certificate_and_its_key_may_be_replaced_one_after_the_other(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    old, new = authority.issue("old"), authority.issue("new")
    for path in (cert, key):
        shutil.copy(old, path)

    async def test() -> None:
        listen = Listen.parse("tls://127.0.0.1:0", cert=str(cert), key=str(key))
        async with Gateway(echoing(), [listen]) as gateway:
            shutil.copy(new, cert)
            await logged(caplog, f"the key in {key} isn't that of the certificate {cert}")
            shutil.copy(new, key)
            await logged(caplog, "read again")
            device = await connected(gateway.addresses[0][2].port, trusting(authority))
            assert await device.works()
            await device.close()

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)


@pytest.mark.live
@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")
def test_pre_shared_keys_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a:00ff\n")

    def knowing(key: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("PSK")
        context.set_psk_client_callback(lambda _: ("a", key))  # type: ignore[attr-defined]
        return context

    async def test() -> None:
        async with Gateway(echoing(), [Listen.parse("tls://127.0.0.1:0", psk=str(keys))]) as gateway:
            port = gateway.addresses[0][2].port
            device = await connected(port, knowing(b"\x00\xff"))
            keys.write_text("a:not hex\n")
            await logged(caplog, "line 1 is not IDENTITY:HEXKEY")
            keys.write_text("a:11\n")
            await logged(caplog, "read again")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connected(port, knowing(b"\x00\xff"))
            newer = await connected(port, knowing(b"\x11"))
            assert await device.works()
            assert await newer.works()
            for one in (device, newer):
                await one.close()

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)


@pytest.mark.live
def test_a_network_that_is_denied_has_its_connections_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deny, allow = tmp_path / "deny", tmp_path / "allow"
    deny.write_text("# nobody yet\n")
    allow.write_text("127.0.0.0/8  # us\n::1\n")
    options = Options(
        lists=Lists(str(allow), str(deny)),
        addresses=AddressLimits(deny=networks(["192.0.2.0/24"], "--deny")),
    )

    async def test() -> None:
        async with Gateway(echoing(), ["tcp://127.0.0.1:0"], options=options) as gateway:
            port = gateway.addresses[0][2].port
            device = await connected(port)
            assert await device.works()
            allow.write_text("")
            await logged(caplog, "names no network, so nobody could connect")
            deny.write_text("127.0.0\n")
            await logged(caplog, "deny, line 1:")
            assert await device.works()
            allow.write_text("127.0.0.0/8\n")
            deny.write_text("127.0.0.1\n")
            assert await device.reader.read() == b""
            refused = await connected(port)
            assert not await refused.works()
            assert gateway.guard.denies("192.0.2.1")
            deny.write_text("")
            await logged(caplog, f"networks in {deny} read again", 2)
            again = await connected(port)
            assert await again.works()
            for one in (device, refused, again):
                await one.close()

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff", "is not a text file in UTF-8"),
        (b"\n10.0.0.1/8\n", "line 2: 10.0.0.1/8"),
        (None, "can't be read"),
    ],
)
def test_a_list_of_networks_that_cannot_be_read_is_told(
    tmp_path: Path, text: bytes | None, words: str
) -> None:
    path = tmp_path / "deny"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SetupError, match=words):
        read_networks(str(path), "--deny-file")


@pytest.mark.live
def test_users_are_read_again_when_their_file_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users"
    path.write_text(f"a:{hash_password('x')}\n")
    users = Users(path)
    app = App(framing=Line())

    @app.on_received
    async def login(conn: Connection, frame: bytes) -> bytes:
        await conn.register("a", password=frame.decode())
        return b"in"

    async def logged_in(port: int, password: bytes) -> bytes:
        device = await connected(port)
        device.writer.write(password + b"\n")
        line = await device.reader.readline()
        await device.close()
        return line

    async def test() -> None:
        gateway = Gateway(app, ["tcp://127.0.0.1:0"], hub=MemoryHub(users))
        gateway.renewal.add(users.follow())
        async with gateway:
            port = gateway.addresses[0][2].port
            assert await logged_in(port, b"x") == b"in\n"
            path.write_text("a\n")
            await logged(caplog, "line 1 has no ':'")
            assert await logged_in(port, b"x") == b"in\n"
            path.write_text(f"a:{hash_password('y')}\n")
            await logged(caplog, "read again")
            assert await logged_in(port, b"x") == b""
            assert await logged_in(port, b"y") == b"in\n"

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("EXPROTO_KEY_PASSWORD", "EXPROTO_KEY_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop("EXPROTO_KEY_PASSWORD_FILE", None)
