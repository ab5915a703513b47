"""Hostile and broken peers at the gateway's listeners: what they cost others, and what is said of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exproto_app import App, Connection, Login
from exproto_app.addresses import AddressLimits, networks
from exproto_app.commands import Command, Outcome
from exproto_app.core import Channel, Engine
from exproto_app.core.login_queue import EACH
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Listen, Options
from exproto_app.hosts.gateway.users import CHECKS, Users, hash_password
from exproto_app.hub import MemoryHub

from .certificates import Authority, trusting
from .loops import LOOPS, Run, run_in
from .test_gateway import unclosed_by_old_asyncio

pytestmark = pytest.mark.live


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test in each kind of loop."""
    return partial(run_in, request.param)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def echo(limit: int = 1_000) -> App:
    """An app that answers, and registers who logs in as `login NAME PASSWORD`."""
    app = App(framing=Line(limit=limit))

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return frame

    @app.on_received(b"login ")
    async def login(conn: Connection, frame: bytes) -> bytes:
        name, password = frame.decode().split()[1:]
        await conn.register(name, password=password)
        return b"welcome"

    return app


async def ask(gateway: Gateway, line: bytes, number: int = 0, **options: Any) -> bytes:
    """Connect, send *line* and return the line that answers, empty where the connection is closed."""
    address = gateway.addresses[number][2]
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port, **options)
    except OSError:
        return b""
    try:
        writer.write(line + b"\n")
        return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other sockets have to bring about."""
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.005)


async def ended(sock: socket.socket) -> bool:
    """Wait until the other side has closed."""
    sock.setblocking(False)
    try:
        while await asyncio.get_running_loop().sock_recv(sock, 4_096):
            pass
    except ConnectionError:
        pass
    return True


# --- TLS: what fails before our code has the connection


@unclosed_by_old_asyncio
def test_a_failed_handshake_is_told_with_address_and_reason_and_counted(
    authority: Authority, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    server = authority.issue("server")
    listen = Listen.parse(f"tls://127.0.0.1:0?cert={server}&client-ca={authority.file}")

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway:
            assert await ask(gateway, b"GET / HTTP/1.0\r\n") in (b"", b"\x15\x03\x01\x00\x02\x02\x46")
            await until(lambda: gateway.app.stats.get("tls_handshakes_failed") == 1)
            assert await ask(gateway, b"hi", ssl=trusting(authority)) == b""
            await until(lambda: gateway.app.stats.get("tls_handshakes_failed") == 2)
            assert gateway.open == 0
            device = trusting(authority, authority.issue("device"))
            assert await ask(gateway, b"hi", ssl=device) == b"hi\n"

    with caplog.at_level(logging.WARNING, "exproto_app"):
        run(test)
    assert re.search(
        r"127\.0\.0\.1:\d+ ! TLS handshake failed on tls://127\.0\.0\.1:0: \w*http request", caplog.text
    )
    assert "peer did not return a certificate" in caplog.text


@unclosed_by_old_asyncio
def test_handshakes_that_never_go_on_count_and_end(
    authority: Authority, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    listen = Listen.parse("tls://127.0.0.1:0", cert=str(authority.issue("server")))

    async def test() -> None:
        async with Gateway(echo(), [listen], options=Options(handshake_timeout=0.2)) as gateway:
            address = gateway.addresses[0][2]
            with contextlib.ExitStack() as stack:
                silent, begun = (
                    stack.enter_context(socket.create_connection((address.host, address.port)))
                    for _ in range(2)
                )
                begun.sendall(b"\x16\x03\x01\x02\x00")
                await until(lambda: gateway.open == 2)
                await until(lambda: gateway.open == 0)
                assert gateway.app.stats["tls_handshakes_failed"] == 2
                assert await ended(silent)
                assert await ended(begun)

    with caplog.at_level(logging.WARNING, "exproto_app"):
        run(test)
    assert "nothing came within 0.2 s" in caplog.text
    assert "it wasn't complete within 0.2 s" in caplog.text


@unclosed_by_old_asyncio
def test_half_open_handshakes_keep_nobody_out(
    authority: Authority, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exproto_app.hosts.gateway.handshakes.MOST", 5)
    listen = Listen.parse("tls://127.0.0.1:0", cert=str(authority.issue("server")))

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway:
            address = gateway.addresses[0][2]
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    sock = stack.enter_context(socket.create_connection((address.host, address.port)))
                    sock.sendall(b"\x16\x03\x01\x00\x06\x01\x00\x02\x00\x03\x03")
                await until(lambda: gateway.app.stats.get("tls_handshakes_failed") == 15)
                assert gateway.open == 5
                assert await ask(gateway, b"hi", ssl=trusting(authority)) == b"hi\n"
            await until(lambda: gateway.open == 0)

    run(test)


@unclosed_by_old_asyncio
def test_a_probe_of_a_tls_listener_is_counted_and_no_warning(
    authority: Authority, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    listen = Listen.parse("tls://127.0.0.1:0", cert=str(authority.issue("server")))

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway:
            address = gateway.addresses[0][2]
            socket.create_connection((address.host, address.port)).close()
            await until(lambda: gateway.app.stats.get("connections_probed") == 1)
            assert gateway.open == 0

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)
    assert "127.0.0.1:" not in caplog.text.replace("tls://127.0.0.1:", "")


@unclosed_by_old_asyncio
def test_a_stop_waits_for_no_handshake(authority: Authority, run: Run) -> None:
    listen = Listen.parse("tls://127.0.0.1:0", cert=str(authority.issue("server")))

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway:
            address = gateway.addresses[0][2]
            silent, begun = (socket.create_connection((address.host, address.port)) for _ in range(2))
            begun.sendall(b"\x16\x03\x01\x02\x00")
            await until(lambda: gateway.open == 2)
        assert gateway.open == 0
        for sock in (silent, begun):
            with sock:
                assert await ended(sock)

    run(test)


# --- room


def test_udp_peers_of_one_datagram_keep_no_device_out(run: Run) -> None:
    async def test() -> None:
        listens = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
        async with Gateway(echo(), listens, options=Options(max_connections=20)) as gateway:
            port = gateway.addresses[1][2].port
            for _ in range(100):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x\n", ("127.0.0.1", port))
            await until(lambda: gateway.app.stats.get("connections_evicted.udp", 0) > 0)
            assert await ask(gateway, b"hi") == b"hi\n"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(("127.0.0.1", port))
                answer = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(sock, 100))
                while not answer.done():  # as devices do that have no answer
                    sock.send(b"device\n")
                    await asyncio.wait([answer], timeout=0.1)
                assert await answer == b"device\n"
            assert gateway.open <= 20

    run(test)


# --- addresses


def test_a_refusal_by_the_app_itself_counts_and_bans(run: Run) -> None:
    async def test() -> None:
        app = echo()

        @app.on_login
        def judge(login: Login) -> bool:
            return login.password == "right"

        limits = AddressLimits(failed_logins=2)
        async with Gateway(app, ["tcp://127.0.0.1:0"], options=Options(addresses=limits)) as gateway:
            for _ in range(3):
                assert await ask(gateway, b"login dev wrong") == b""
            assert (app.stats["logins_failed"], app.stats["addresses_banned"]) == (3, 1)
            assert await ask(gateway, b"login dev right") == b""

    run(test)


def test_an_address_has_its_limits_and_what_it_opened_before_is_given_back(run: Run) -> None:
    async def test() -> None:
        limits = AddressLimits(connections=1)
        async with Gateway(echo(), ["tcp://127.0.0.1:0"], options=Options(addresses=limits)) as gateway:
            address = gateway.addresses[0][2]
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"first\n")
            assert await reader.readline() == b"first\n"
            assert await ask(gateway, b"second") == b""
            assert gateway.app.stats["connections_refused.address"] == 1
            writer.close()
            await until(lambda: gateway.open == 0)
            assert await ask(gateway, b"third") == b"third\n"

    run(test)


def test_a_denied_network_is_not_served_on_udp_either(run: Run) -> None:
    async def test() -> None:
        limits = AddressLimits(deny=networks(["127.0.0.0/8"], "--deny"))
        listens = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
        async with Gateway(echo(), listens, options=Options(addresses=limits)) as gateway:
            assert await ask(gateway, b"hi") == b""
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x\n", ("127.0.0.1", gateway.addresses[1][2].port))
            await until(lambda: gateway.app.stats.get("connections_refused.denied") == 2)
            assert gateway.app.stats["connections_opened"] == 0

    run(test)


@pytest.mark.parametrize("line", [b"login dev wrong", b"x" * 100])
def test_too_many_faults_ban_an_address_for_a_while(
    run: Run, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    async def test() -> None:
        limits = AddressLimits(failed_logins=2, bad_frames=2, ban=0.3)
        hub = MemoryHub(lambda client, password: password == "right")
        async with Gateway(
            echo(50), ["tcp://127.0.0.1:0"], hub=hub, options=Options(addresses=limits)
        ) as gateway:
            for _ in range(3):
                assert await ask(gateway, line) == b""
            assert await ask(gateway, b"login dev right") == b""
            assert gateway.app.stats["addresses_banned"] == 1
            assert gateway.app.stats["connections_refused.banned"] == 1
            await asyncio.sleep(0.3)
            assert await ask(gateway, b"login dev right") == b"welcome\n"

    with caplog.at_level(logging.INFO, "exproto_app"):
        run(test)
    assert re.search(r"127\.0\.0\.1:\d+ ! banned for 0\.3 s: too many", caplog.text)


# --- logins


def test_a_flood_of_wrong_passwords_keeps_no_right_one_waiting(run: Run, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("".join(f"dev{number}:{hash_password('right')}\n" for number in range(3)))

    async def test() -> None:
        async with Gateway(echo(), ["tcp://127.0.0.1:0"], hub=MemoryHub(Users(users))) as gateway:
            address = gateway.addresses[0][2]
            assert await ask(gateway, b"login dev2 right") == b"welcome\n"
            for number in range(200):  # hung up at once, by a name that has not been right yet
                with socket.create_connection((address.host, address.port)) as sock:
                    sock.sendall(b"login dev0 wrong%d\n" % number)
                await asyncio.sleep(0)
            answers = [asyncio.ensure_future(ask(gateway, b"login dev0 bad%d" % one)) for one in range(40)]
            assert await ask(gateway, b"login dev2 right") == b"welcome\n"
            assert await ask(gateway, b"login dev1 right") == b"welcome\n"
            waiting = sum(not answer.done() for answer in answers)
            assert waiting > 20, "the right one had to wait for the wrong ones"
            assert set(await asyncio.gather(*answers)) == {b""}
            await until(lambda: gateway.open == 0)
            assert gateway.app.stats["logins_failed"] <= 40 + EACH + CHECKS

    run(test)


# --- a system resource runs out

ECHO = Path(__file__).parent.parent / "examples" / "echo.py"


@contextlib.contextmanager
def limited(loop: str, files: int) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run a gateway that may open so many files; give it, its port, and that of its metrics."""
    command = [sys.executable, "-m", "exproto_app", "run", str(ECHO), "--listen", "tcp://127.0.0.1:0"]
    command += ["--metrics", "127.0.0.1:0", "--mqtt-listen", "off", "--loop", loop]
    process = subprocess.Popen(
        ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        text = ""
        for line in process.stdout:
            text += line
            if "Ctrl-C" in line:
                break
        ports = dict(re.findall(r"(tcp|http)://127\.0\.0\.1:(\d+)", text))
        assert "ulimit -n" in text
        yield process, int(ports["tcp"]), int(ports["http"])
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("loop", LOOPS)
def test_where_open_files_are_few_probes_are_answered_and_the_log_stays_short(loop: str) -> None:
    with limited(loop, 100) as (process, port, health), contextlib.ExitStack() as stack:
        devices = []
        for _ in range(200):
            device = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            devices.append(device)
        for _ in range(10):
            with urllib.request.urlopen(f"http://127.0.0.1:{health}/healthz", timeout=20) as answer:
                assert answer.status == 200
        devices[0].sendall(b"hi\n")
        assert devices[0].recv(100)
        assert devices[-1].recv(100) == b"", "one too many is refused, it doesn't hang"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        rest = [line for line in process.stdout if " ! " in line]
        assert process.wait(20) == 0
        assert len(rest) < 10
        assert "sockets are open, the system allows no more open files" in rest[0]


def test_accepting_pauses_where_there_are_no_more_files_and_goes_on_by_itself(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exproto_app.asyncio_host.accepting.PAUSE", 0.02)

    async def test() -> None:
        async with Gateway(echo(), ["tcp://127.0.0.1:0"]) as gateway:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            address = gateway.addresses[0][2]
            device = socket.socket()
            device.setblocking(False)
            spare = os.open(os.devnull, os.O_RDONLY)  # the number of the next file that is opened
            os.close(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
            try:
                await asyncio.get_running_loop().sock_connect(device, (address.host, address.port))
                await until(lambda: gateway.app.stats.get("accepts_paused", 0) > 5)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with device:
                device.send(b"hi\n")
                assert await asyncio.get_running_loop().sock_recv(device, 100) == b"hi\n"

    with caplog.at_level(logging.WARNING):
        run(test)
    assert caplog.text.count("accepts no connections until others have ended: too many open files") == 1
    assert len(caplog.records) == 1


# --- the end


class Mute(MemoryHub):
    """A broker that never answers, and never lets go."""

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        return Outcome(channel.engine.runtime.waiter)

    async def start(self, engine: Engine) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        await asyncio.get_running_loop().create_future()


def test_a_stop_gives_up_what_a_mute_broker_holds_and_says_what(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        app = App(framing=Line())

        @app.on_received
        async def received(conn: Connection, frame: bytes) -> None:
            conn.publish("up", frame)
            await conn.publish("up", frame)

        options = Options(stop_timeout=0.1)
        async with Gateway(app, ["tcp://127.0.0.1:0"], hub=Mute(), options=options) as gateway:
            address = gateway.addresses[0][2]
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"x\n")
            await until(lambda: app.stats["messages_published"] > 0)
        writer.close()
        assert gateway.open == 0

    run(test)
    assert re.search(r"gave up after 0\.1 s: 1 connections had not ended, \d verbs waited", caplog.text)
    assert "gave up after 0.5 s: the embedded hub did not end" in caplog.text
