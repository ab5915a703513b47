"""Devices that the gateway connects to: when, how often, and what is said of those that can't be reached."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exproto_app import App, Connection, SetupError
from exproto_app.cli import main
from exproto_app.framing import Line
from exproto_app.hosts.gateway import DialOptions, Gateway, Options, Share, Target
from exproto_app.hosts.gateway.targets import read_targets
from exproto_app.hub import MemoryHub
from exproto_app.ops.backoff import Backoff, Pace
from exproto_app.testing import TestClient

from .certificates import Authority

PATIENCE = 60

QUICK = DialOptions(timeout=0.3, rate=1_000, first=0.001, longest=0.01, steady=60)
"""Tries often."""

# --- how long to wait


def test_waits_double_up_to_the_longest_each_cut_by_up_to_a_half_by_chance() -> None:
    backoff = Backoff(1, 10, 30, chance=lambda: 0)
    assert [backoff.wait() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert Backoff(1, 10, 30, chance=lambda: 1).wait() == 0.5


def test_waits_begin_anew_after_something_has_lasted_for_a_while() -> None:
    backoff = Backoff(1, 100, 30, chance=lambda: 0)
    assert [backoff.wait(lasted) for lasted in (0, 29, 5, 30, 0)] == [1, 2, 4, 1, 2]


def test_a_thousand_failures_are_waited_for_as_long_as_a_hundred() -> None:
    backoff = Backoff(0.5, 60, 30, chance=lambda: 0)
    assert [backoff.wait() for _ in range(1_000)][-1] == 60


def test_beginnings_are_spread_evenly() -> None:
    pace = Pace(10)
    assert [round(pace.wait(5.0), 3) for _ in range(3)] == [0, 0.1, 0.2]
    assert pace.wait(9.0) == 0


# --- what a target says


def test_a_target_is_named_by_its_host_unless_it_says_more() -> None:
    assert Target.parse("tcp://192.0.2.7:502").name == "192.0.2.7"
    target = Target.parse("meter=tls://[2001:db8::7]:502?name=pump&verify=0")
    assert (target.name, target.host, target.protocol, target.verify) == (
        "pump",
        "2001:db8::7",
        "meter",
        False,
    )
    assert str(target) == "tls://[2001:db8::7]:502"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.7:502", "has to begin with tcp://, tls://, udp://"),
        ("http://192.0.2.7:502", "has to begin with tcp://, tls://, udp://"),
        ("tcp://192.0.2.7", "has no port"),
        ("tcp://:502", "has no host or no port"),
        ("tcp://192.0.2.7:0", "has no host or no port"),
        ("tcp://192.0.2.7:70000", "a number from 0 to 65535"),
        ("tcp://192.0.2.7:502/x", "has extra text after its port"),
        ("=tcp://192.0.2.7:502", "no protocol before '='"),
        ("tcp://192.0.2.7:502?ca=x", "unknown option 'ca'; it knows name"),
        ("tls://192.0.2.7:502?verify=no", "verify is 'no'; it must be 0 or 1"),
        ("tcp://[::1:502", "is not a valid URL"),
        ("tcp://192.0.2.7 :502", "has a space in its host"),
        ("tcp://192.0.2.7:502?name=a%0ab", "has a control or invisible character"),
        ("tcp://192.0.2.7:502?name=a&name=b", "has an option twice"),
        (f"tcp://{'x' * 5_000}:1", "limit is 4096"),
    ],
)
def test_a_target_that_is_none_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(SetupError, match=re.escape(words)):
        Target.parse(text)


def test_a_file_has_a_target_in_each_line_and_tells_which_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "targets"
    file.write_text("# pumps\n\ntcp://192.0.2.7:502\nmeter=udp://192.0.2.8:9\n")
    assert [str(target) for target in read_targets(file)] == ["tcp://192.0.2.7:502", "udp://192.0.2.8:9"]
    file.write_text("tcp://192.0.2.7:502\npump 7\n")
    with pytest.raises(SetupError, match="line 2: target 'pump 7' has to begin with"):
        read_targets(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SetupError, match="not a text file"):
        read_targets(file)
    with pytest.raises(SetupError, match="can't be read: no such file"):
        read_targets(tmp_path / "none")


def test_workers_share_the_targets() -> None:
    names = [f"tcp://192.0.2.{number}:502" for number in range(100)]
    parts = [{name for name in names if Share(number, 3).has(name)} for number in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(parts)
    assert all(Share().has(name) for name in names)


def test_a_dial_function_takes_no_arguments() -> None:
    app = App()
    with pytest.raises(SetupError, match="takes too many arguments: dial calls it with"):
        app.dial(lambda conn: [])  # type: ignore[misc, arg-type] # the mistake that is tried


def test_elsewhere_a_dial_function_is_of_no_use_in_a_test_it_is_left_alone() -> None:
    app = polled()
    app.dial(lambda: ["tcp://192.0.2.7:502"])
    with TestClient(app) as client:
        assert client.recv() == b"who are you?\n"


# --- on the line


def polled(**options: Any) -> App:
    """An app that asks who has picked up, and publishes what it hears, and why the line has ended."""
    app = App(framing=Line(), **options)

    @app.on_connect
    def ask(conn: Connection) -> bytes:
        conn.publish(f"up/{conn.info.name}", f"{conn.info.socktype} {conn.info.target}".encode())
        return b"who are you?"

    @app.on_received
    def heard(conn: Connection, frame: bytes) -> bytes | None:
        conn.publish(f"heard/{conn.info.name}", frame)
        return b"bye" if frame == b"bye" else None

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        conn.publish(f"end/{conn.info.name}", reason.encode())

    return app


class Dialling:
    """A gateway that dials, and what its app has published."""

    def __init__(self, gateway: Gateway, published: asyncio.Queue[tuple[str, bytes]]) -> None:
        self.gateway = gateway
        self.published = published
        self._seen: list[tuple[str, bytes]] = []

    async def until(self, topic: str, payload: bytes | None = None) -> bytes:
        """Wait until something is published to *topic*, unless that has been already."""
        while True:
            for at, (where, what) in enumerate(self._seen):
                if where == topic and payload in (None, what):
                    del self._seen[at]
                    return what
            self._seen.append(await self.published.get())

    async def until_counted(self, name: str, least: int) -> None:
        """Wait until *name* has been counted *least* times."""
        while self.gateway.app.stats.get(name, 0) < least:  # noqa: ASYNC110 - counters wake nobody
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def dialling(
    *targets: str, app: App | None = None, dial: DialOptions = QUICK, **options: Any
) -> AsyncIterator[Dialling]:
    published: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    hub = MemoryHub(watch=lambda _, message: published.put_nowait((message.topic, message.payload)))
    gateway = Gateway(
        app or polled(), [], hub=hub, dial=targets, options=Options(dial=dial, stop_timeout=2), **options
    )
    async with gateway:
        yield Dialling(gateway, published)


Device = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def waiting(device: Device, port: int = 0, **options: Any) -> AsyncIterator[int]:
    """Have *device* take calls; give the port."""
    writers: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            await device(reader, writer)
        writer.close()

    server = await asyncio.start_server(take, options.pop("host", "127.0.0.1"), port, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def meter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say who it is when it is asked, and hang up when the other side does."""
    assert await reader.readline() == b"who are you?\n"
    writer.write(b"meter\n")
    await reader.read()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE)

    asyncio.run(bounded())


@pytest.fixture
def free() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def lines(caplog: pytest.LogCaptureFixture, sign: str = "line !") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(sign)]


@pytest.mark.live
def test_a_target_is_connected_and_its_handlers_know_which_it_is() -> None:
    async def test() -> None:
        async with waiting(meter) as port:
            async with dialling(f"tcp://127.0.0.1:{port}?name=pump") as line:
                assert await line.until("up/pump") == f"tcp tcp://127.0.0.1:{port}".encode()
                assert await line.until("heard/pump") == b"meter"
                assert line.gateway.gauges() == {"dial_targets": 1, "dial_targets_up": 1}
                assert line.gateway.serving
            assert await line.until("end/pump") == b"shutdown"

    run(test)


@pytest.mark.live
def test_a_target_that_hangs_up_is_dialled_again(caplog: pytest.LogCaptureFixture) -> None:
    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye\n")
        await reader.readline()

    async def test() -> None:
        async with waiting(device) as port, dialling(f"tcp://127.0.0.1:{port}?name=pump") as line:
            for _ in range(3):
                await line.until("heard/pump", b"bye")
                await line.until("end/pump", b"device closed")

    run(test)
    assert len(lines(caplog)) == 1
    assert "ended at once: device closed" in lines(caplog)[0]


@pytest.mark.live
def test_a_target_that_refuses_is_told_once_and_connected_when_it_is_there(
    free: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with dialling(f"tcp://127.0.0.1:{free}?name=pump") as line:
            await line.until_counted("dials_failed.refused", 5)
            async with waiting(meter, free):
                await line.until("heard/pump")

    run(test)
    (said,) = [text for text in lines(caplog) if "refuses the connection" in text]
    assert said.startswith(
        f"line ! tcp://127.0.0.1:{free} can't be reached: it refuses the connection; tried"
    )


@pytest.mark.live
def test_a_target_that_hangs_is_given_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """It takes the connection, and never answers the TLS handshake."""

    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 20)
        await reader.read(1 << 20)

    async def test() -> None:
        dial = DialOptions(timeout=0.05, rate=1_000, first=0.001, longest=0.01)
        async with waiting(device) as port, dialling(f"tls://127.0.0.1:{port}", dial=dial) as line:
            await line.until_counted("dials_failed.timeout", 2)
            assert line.gateway.app.stats["connections_opened"] == 0
            assert line.gateway.open <= 1

    run(test)
    assert len(lines(caplog)) == 1


@pytest.mark.live
def test_a_target_that_resets_after_a_byte_costs_a_connection_each_time_and_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await writer.drain()
        writer.transport.abort()

    async def test() -> None:
        async with waiting(device) as port, dialling(f"tcp://127.0.0.1:{port}?name=pump") as line:
            for _ in range(5):
                await line.until("end/pump")
            await line.until_counted("dials", 6)

    run(test)
    assert len(lines(caplog)) == 1


@pytest.mark.live
def test_a_name_is_looked_up_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a dynamic address changes."""
    where = ["127.0.0.1"]
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("flags", 0) & socket.AI_NUMERICHOST and host == "pump.example":
            raise socket.gaierror
        return original(where[0] if host == "pump.example" else host, *args, **kwargs)

    async def device(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(writer.get_extra_info("sockname")[0].encode() + b"\n")
        where[0] = "127.0.0.2"

    async def test() -> None:
        async with waiting(device) as port, waiting(device, port, host="127.0.0.2"):
            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            async with dialling(f"tcp://pump.example:{port}") as line:
                assert await line.until("heard/pump.example") == b"127.0.0.1"
                await line.until("heard/pump.example", b"127.0.0.2")

    run(test)


@pytest.mark.live
def test_a_host_that_there_is_not_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        dial = DialOptions(timeout=PATIENCE, rate=1_000, first=0.001, longest=0.01)
        async with dialling("tcp://no-such-host.invalid:502", dial=dial) as line:
            await line.until_counted("dials_failed.dns", 2)

    run(test)
    assert "the host name 'no-such-host.invalid' can't be resolved" in lines(caplog)[0]


class Meter(asyncio.DatagramProtocol):
    """A device on UDP."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert data == b"who are you?\n"
        self.transport.sendto(b"meter\n", addr)


@pytest.mark.live
def test_a_target_on_udp_is_refused_until_it_is_there(free: int, caplog: pytest.LogCaptureFixture) -> None:
    """What nothing listens for is refused by ICMP."""

    async def test() -> None:
        async with dialling(f"udp://127.0.0.1:{free}?name=pump") as line:
            await line.until("end/pump", b"device closed")
            await line.until("end/pump", b"device closed")
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Meter, local_addr=("127.0.0.1", free))
            assert await line.until("heard/pump") == b"meter"
            transport.close()
        assert await line.until("end/pump", b"shutdown")

    run(test)
    assert any("refused" in text for text in lines(caplog))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# A handshake that fails leaves its transport unclosed there.
unclosed_by_old_asyncio = pytest.mark.filterwarnings(
    *(["ignore::pytest.PytestUnraisableExceptionWarning"] if sys.version_info < (3, 11) else ["error"])
)


@pytest.mark.live
@unclosed_by_old_asyncio
def test_tls_tells_who_picks_up(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    server.load_cert_chain(authority.issue("meter-7"))
    server.verify_mode = ssl.CERT_REQUIRED
    ours = authority.issue("gateway")

    async def test() -> None:
        async with waiting(meter, ssl=server) as port:
            url = f"tls://127.0.0.1:{port}?cert={ours}"
            async with dialling(f"{url}&ca={authority.file}&name=a", f"{url}&verify=0&name=b") as line:
                # Both are one target, and the first one counts.
                assert await line.until("up/a") == f"ssl tls://127.0.0.1:{port}".encode()
                await line.until("heard/a")
            async with dialling(url) as line:
                await line.until_counted("dials_failed.tls", 1)

    run(test)
    assert "its certificate can't be trusted" in lines(caplog)[0]


@pytest.mark.live
@pytest.mark.parametrize("kind", ["list", "generator", "async generator", "coroutine"])
def test_the_app_tells_whom_to_dial(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is no target is logged and counted, and the others are dialled."""
    app, targets = polled(), list[Any]()

    async def generator() -> AsyncIterator[str]:
        for target in targets:
            yield target

    async def coroutine() -> list[str]:
        return targets

    functions: dict[str, Callable[[], Any]] = {
        "list": lambda: targets,
        "generator": lambda: (target for target in targets),
        "async generator": generator,
        "coroutine": coroutine,
    }
    app.dial(functions[kind])

    async def test() -> None:
        async with waiting(meter) as port, waiting(meter) as other:
            targets[:] = ["pump 7", 7, f"tcp://127.0.0.1:{port}?name=a"]
            async with dialling(app=app) as line:
                await line.until("heard/a")
                assert app.stats["targets_refused"] == 2
                targets[:] = [f"tcp://127.0.0.1:{other}?name=b"]
                line.gateway.renew()
                await line.until("heard/b")
                await line.until("end/a", b"terminated")
                assert [str(target) for target in line.gateway.dials.targets] == [f"tcp://127.0.0.1:{other}"]

    run(test)
    assert "target 'pump 7' has to begin with" in lines(caplog)[0]
    assert "7 is not a target" in lines(caplog)[1]


@pytest.mark.live
def test_a_dial_function_that_fails_leaves_the_targets_from_before(caplog: pytest.LogCaptureFixture) -> None:
    app, trouble = polled(), list[Exception]()

    async def test() -> None:
        async with waiting(meter) as port:

            @app.dial
            def targets() -> Iterator[str]:
                if trouble:
                    raise trouble[0]
                yield f"tcp://127.0.0.1:{port}?name=a"

            async with dialling(app=app) as line:
                await line.until("heard/a")
                trouble.append(ValueError("no table"))
                line.gateway.renew()
                while not lines(caplog):  # noqa: ASYNC110 - a log line wakes nobody
                    await asyncio.sleep(0.005)
                assert line.gateway.dials.up == 1

    run(test)
    assert lines(caplog)[0].endswith("targets failed; the targets from before stay")


@pytest.mark.live
def test_a_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "targets"

    async def test() -> None:
        async with waiting(meter) as port, waiting(meter) as other:
            file.write_text(f"tcp://127.0.0.1:{port}?name=a\n")
            async with dialling(dial_file=file) as line:
                await line.until("heard/a")
                file.write_text("pump 7\n")
                line.gateway.renew()
                while not lines(caplog):  # noqa: ASYNC110 - a log line wakes nobody
                    await asyncio.sleep(0.005)
                assert line.gateway.dials.up == 1
                file.write_text(f"tcp://127.0.0.1:{other}?name=b\n")
                line.gateway.renew()
                await line.until("heard/b")
                await line.until("end/a", b"terminated")

    run(test)
    assert "line 1: target 'pump 7'" in lines(caplog)[0]


@pytest.mark.live
def test_hundreds_are_dialled_one_after_another() -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(waiting(meter)) for _ in range(100)]
            targets = [f"tcp://127.0.0.1:{port}" for port in ports]
            line = await stack.enter_async_context(
                dialling(*targets, dial=DialOptions(timeout=PATIENCE, rate=1_000))
            )
            while line.gateway.dials.up < 100:  # noqa: ASYNC110 - a connection wakes nobody else
                await asyncio.sleep(0.005)
            assert line.gateway.app.stats["dials"] == 100

    run(test)


@pytest.mark.live
def test_what_has_no_room_is_dialled_when_there_is_some(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        published: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        hub = MemoryHub(watch=lambda _, message: published.put_nowait((message.topic, message.payload)))
        async with waiting(meter) as port, waiting(meter) as other:
            targets = [f"tcp://127.0.0.1:{port}?name=a", f"tcp://127.0.0.1:{other}?name=b"]
            options = Options(max_connections=1, dial=QUICK)
            async with Gateway(polled(), [], hub=hub, dial=targets, options=options) as gateway:
                line = Dialling(gateway, published)
                await line.until_counted("dials_failed.room", 3)
                assert gateway.open == 1
                (one,) = gateway.runner.engine.connections()
                first = one.conn.info.name if one.conn is not None else ""
                one.end("terminated")
                await line.until(f"end/{first}")
                await line.until_counted("connections_opened", 2)

    run(test)


# --- the command line


def cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_run_refuses_targets_that_are_none_in_a_sentence(tmp_path: Path) -> None:
    code, said = cli("run", "examples/echo.py", "--dial", "pump7:502")
    assert code == 2
    assert "target 'pump7:502' has to begin with tcp://, tls://, udp://" in said
    code, said = cli("run", "examples/echo.py", "--dial", "meter=tcp://127.0.0.1:502")
    assert code == 2
    assert "the app serves no protocol 'meter'" in said
    code, said = cli("run", "examples/echo.py", "--dial", "tcp://127.0.0.1:502", "--dial-timeout", "nan")
    assert code == 2
    assert "'nan' is not a finite number; give seconds such as 2.5" in said


@pytest.mark.live
def test_the_doctor_tries_the_targets(free: int, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        code, said = cli(
            *("doctor", "examples/modbus_rtu.py", "--wait", "0.2"),
            *("--dial", f"tcp://127.0.0.1:{port}", "--dial", f"tcp://127.0.0.1:{free}"),
            *("--dial", f"tls://127.0.0.1:{port}", "--dial", "udp://127.0.0.1:9"),
            *("--dial", f"meter=tcp://127.0.0.1:{port}"),
        )
    assert code == 1
    assert f"✓ 127.0.0.1:{port} accepts connections" in said
    assert f"✗ 127.0.0.1:{free} can't be reached: connection refused" in said
    assert f"✗ tls://127.0.0.1:{port}: no answer within 0.2 s" in said
    assert "on UDP only its answers could show more" in said
    assert "✗ the app serves no protocol 'meter'" in said
    assert "ports" not in said
