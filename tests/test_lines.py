"""Lines of other kinds than TCP and UDP: Unix sockets and serial ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app import App, Connection, SetupError
from exproto_app.addresses import AddressLimits, networks
from exproto_app.framing import RAW, Line
from exproto_app.hosts.gateway import DialOptions, Gateway, Listen, Options
from exproto_app.hosts.gateway.serial_line import SerialLine
from exproto_app.hosts.gateway.sockets import share
from exproto_app.hub import MemoryHub

from .test_dialling import QUICK, Dialling, cli, lines, polled, run

# --- what a listener says


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unix://run/x.sock", "has no absolute path; write it like unix:///run/devices.sock"),
        ("unix:///", "has no absolute path"),
        ("unix:///run/x?mode=8", "mode is '8'; it must be octal digits such as 660"),
        ("unix:///run/x?baud=9600", "unknown option 'baud'; it knows max-connections, mode"),
        ("serial://ttyUSB0", "has no absolute path; write it like serial:///dev/ttyUSB0"),
        ("serial:///dev/ttyUSB0?baud=fast", "baud is 'fast'; it must be a number above 0"),
        ("serial:///dev/ttyUSB0?baud=99999999", "baud is 99999999; 20000000 is the limit"),
        ("serial:///dev/ttyUSB0?parity=X", "parity is 'X'; it must be one of N, E, O, M, S"),
        ("serial:///dev/ttyUSB0?stop=3", "stop is '3'; it must be one of 1, 1.5, 2"),
        ("serial:///dev/ttyUSB0?bits=9", "bits is '9'; it must be one of 5, 6, 7, 8"),
        ("serial:///dev/ttyUSB0?gap=4", None),
        ("serial:///dev/ttyUSB0?gap=0ms", "gap is '0ms'; it must be a time such as 4ms or 1.5s"),
        ("serial:///dev/ttyUSB0?gap=soon", "gap is 'soon'; it must be a time such as 4ms or 1.5s"),
        ("serial:///dev/ttyUSB0?rs485=yes", "rs485 is 'yes'; it must be 0 or 1"),
    ],
)
def test_a_line_that_is_none_is_refused_in_a_sentence(text: str, words: str | None) -> None:
    if words is None:
        Listen.parse(text)
        return
    with pytest.raises(SetupError, match=re.escape(words)):
        Listen.parse(text)


def test_a_serial_line_is_set_up_by_its_url() -> None:
    listen = Listen.parse("meter=serial:///dev/ttyUSB0?baud=2400&parity=e&bits=7&stop=1.5&gap=4ms&rs485=1")
    assert listen.settings == SerialLine(baud=2400, parity="E", bits=7, stop=1.5, gap=0.004, rs485=True)
    assert str(listen) == "serial:///dev/ttyUSB0"
    assert listen.name == "ttyUSB0"


# --- Unix sockets


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a short path: those of Unix sockets have 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="exproto") as name:
        yield Path(name)


def whoami() -> App:
    app = App(framing=Line())

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return f"{conn.info.socktype} {conn.info.peername} ".encode() + frame

    return app


async def spoken(path: Path, data: bytes) -> bytes:
    """Say *data* on a Unix socket; return the line that comes back."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


@pytest.mark.live
def test_a_unix_socket_is_a_listener_and_removed_at_the_end(folder: Path) -> None:
    path = folder / "x.sock"

    async def test() -> None:
        async with Gateway(whoami(), [f"unix://{path}?mode=600"]) as gateway:
            number = os.getpid() if sys.platform == "linux" else 0
            assert await spoken(path, b"hi\n") == f"unix {path}:{number} hi\n".encode()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert gateway.listening == [("default", f"unix://{path}")]
        assert not path.exists()

    run(test)


@pytest.mark.live
def test_limits_for_addresses_do_not_apply_to_a_unix_socket(folder: Path) -> None:
    path = folder / "x.sock"

    async def test() -> None:
        limits = AddressLimits(allow=networks(["192.0.2.0/24"], "--allow"), connections=1, failed_logins=0)
        async with Gateway(whoami(), [f"unix://{path}"], options=Options(addresses=limits)):
            for _ in range(3):
                assert (await spoken(path, b"hi\n")).endswith(b"hi\n")

    run(test)


@pytest.mark.live
def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_refused(folder: Path) -> None:
    path = folder / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def test() -> None:
        async with Gateway(whoami(), [f"unix://{path}"]):
            with pytest.raises(SetupError, match="another program listens there"):
                await Gateway(whoami(), [f"unix://{path}"]).start()
            assert (await spoken(path, b"hi\n")).endswith(b"hi\n")
            code, said = cli("doctor", "examples/echo.py", "--listen", f"unix://{path}")
            assert code == 1
            assert "another program listens there" in said
            assert path.exists()

    run(test)
    code, said = cli("doctor", "examples/echo.py", "--listen", f"unix://{path}")
    assert code == 0
    assert f"unix://{path} is free" in said
    assert not path.exists()


@pytest.mark.live
def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "x.sock"
    path.write_text("precious")

    async def test() -> None:
        with pytest.raises(SetupError, match="exists and isn't a socket; remove it"):
            await Gateway(whoami(), [f"unix://{path}"]).start()
        with pytest.raises(SetupError, match="can't be opened: no such file"):
            await Gateway(whoami(), [f"unix://{folder}/none/x.sock"]).start()
        with pytest.raises(SetupError, match="can't be opened: "):
            await Gateway(whoami(), [f"unix://{folder}/{'x' * 200}"]).start()

    run(test)
    assert path.read_text() == "precious"


@pytest.mark.live
def test_workers_share_one_unix_socket(folder: Path) -> None:
    shares = share(Listen.parse(f"unix://{folder}/x.sock"), 3)
    try:
        assert [len(each) for each in shares] == [1, 1, 1]
        assert {sock.getsockname() for each in shares for sock in each} == {f"{folder}/x.sock"}
    finally:
        for each in shares:
            for sock in each:
                sock.close()


# --- serial ports, played by pseudo-terminals


class Bus:
    """A serial device: a pseudo-terminal, at *path* while it is plugged in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1
        self.seen = b""

    def plug_in(self) -> None:
        self.fd, theirs = os.openpty()
        os.set_blocking(self.fd, False)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(theirs))
        os.close(theirs)

    def unplug(self) -> None:
        if self.fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.fd)
            self.fd = -1

    async def read_line(self) -> bytes:
        """Wait for a line from the gateway."""
        ready, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self.fd, ready.set)
        try:
            while b"\n" not in self.seen:
                await ready.wait()
                ready.clear()
                with contextlib.suppress(OSError):  # nobody has opened it yet
                    self.seen += os.read(self.fd, 4_096)
        finally:
            loop.remove_reader(self.fd)
        line, _, self.seen = self.seen.partition(b"\n")
        return line + b"\n"


@pytest.fixture
def bus(folder: Path) -> Iterator[Bus]:
    bus = Bus(folder / "ttyUSB0")
    try:
        yield bus
    finally:
        bus.unplug()


@contextlib.asynccontextmanager
async def opened(url: str, app: App | None = None, **options: Any) -> AsyncIterator[Dialling]:
    published: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    hub = MemoryHub(watch=lambda _, message: published.put_nowait((message.topic, message.payload)))
    dial: DialOptions = options.pop("dial", QUICK)
    gateway = Gateway(app or polled(), [url], hub=hub, options=Options(dial=dial, stop_timeout=2))
    async with gateway:
        yield Dialling(gateway, published)


@pytest.mark.live
def test_a_serial_port_is_a_connection_that_comes_back_when_it_is_plugged_in_again(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with opened(f"serial://{bus.path}?parity=E&baud=19200") as line:
            await line.until_counted("dials_failed.absent", 2)
            for _ in range(2):
                bus.plug_in()
                assert await line.until("up/ttyUSB0") == f"serial serial://{bus.path}".encode()
                assert await bus.read_line() == b"who are you?\n"
                os.write(bus.fd, b"met")
                os.write(bus.fd, b"er\n")
                assert await line.until("heard/ttyUSB0") == b"meter"
                bus.unplug()
                await line.until("end/ttyUSB0")
            assert line.gateway.open == 0

    run(test)
    assert (
        f"line ! serial://{bus.path} isn't there: plug it in, or correct its path; tried again in"
        in lines(caplog)[0]
    )


@pytest.mark.live
def test_with_a_gap_what_comes_without_a_silence_is_one_frame(bus: Bus) -> None:
    app = App(framing=RAW)

    @app.on_received
    def received(conn: Connection, frame: bytes) -> None:
        conn.publish("frame", frame)

    async def test() -> None:
        bus.plug_in()
        async with opened(f"serial://{bus.path}?gap=50ms", app) as line:
            await line.until_counted("connections_opened", 1)
            for piece in (b"one ", b"frame ", b"in pieces"):
                os.write(bus.fd, piece)
                await asyncio.sleep(0)
            assert await line.until("frame") == b"one frame in pieces"
            os.write(bus.fd, b"another")
            assert await line.until("frame") == b"another"
            os.write(bus.fd, b"cut off")
            await line.until_counted("bytes_received", 1)

    run(test)


@pytest.mark.live
def test_a_port_that_another_program_has_or_that_is_none_is_told(
    bus: Bus, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import serial, sys; port = serial.Serial(sys.argv[1], exclusive=True); print(flush=True); input()"
    (folder / "file").write_text("")

    async def test() -> None:
        bus.plug_in()
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-c", code, str(bus.path))
        other = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert other.stdout is not None
        await other.stdout.readline()
        async with opened(f"serial://{bus.path}") as line:
            await line.until_counted("dials_failed.busy", 2)
            await other.communicate(b"\n")
            await line.until("up/ttyUSB0")
        async with opened(f"serial://{folder}/file") as line:
            await line.until_counted("dials_failed.error", 2)

    run(test)
    assert "can't be opened: another program is using it; stop that program" in lines(caplog)[0]
    assert "can't be opened: it isn't a serial port; correct its path" in lines(caplog)[1]


@pytest.mark.live
@pytest.mark.skipif(os.getuid() == 0, reason="root may use every port")
def test_a_port_that_is_not_ours_to_read_is_told(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        bus.plug_in()
        bus.path.chmod(0)
        async with opened(f"serial://{bus.path}") as line:
            await line.until_counted("dials_failed.denied", 2)

    run(test)
    assert "this user may not use it; " in lines(caplog)[0]


@pytest.mark.live
def test_a_driver_without_rs485_is_told(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        bus.plug_in()
        async with opened(f"serial://{bus.path}?rs485=1") as line:
            await line.until_counted("dials_failed.error", 2)

    run(test)
    assert "its driver has no RS485 mode; leave rs485=1 out" in lines(caplog)[0]


@pytest.mark.live
def test_what_is_sent_waits_for_a_slow_line(bus: Bus) -> None:
    """The device reads a hundred kilobytes as slowly as it likes, and gets all of it."""
    app = App(framing=Line(limit=2_000_000))

    @app.on_received
    async def received(conn: Connection, frame: bytes) -> None:
        for number in range(100):
            await conn.send(b"%06d " % number * 142)
        conn.terminate()

    async def test() -> None:
        bus.plug_in()
        async with opened(f"serial://{bus.path}", app) as line:
            await line.until_counted("connections_opened", 1)
            os.write(bus.fd, b"go\n")
            for number in range(100):
                assert await bus.read_line() == b"%06d " % number * 142 + b"\n"
            await line.until_counted("connections_closed.terminated", 1)

    run(test)


@pytest.mark.live
def test_the_doctor_opens_ports(bus: Bus) -> None:
    url = f"serial://{bus.path}"
    code, said = cli("doctor", "examples/modbus_rtu.py", "--listen", url)
    assert code == 1
    assert f"✗ {url} isn't there: plug it in, or correct its path" in said
    bus.plug_in()
    code, said = cli("doctor", "examples/modbus_rtu.py", "--listen", url, "--dial", url)
    assert code == 0
    assert f"✓ {url} can be opened" in said
    assert "✓ the extra serial is installed" in said
