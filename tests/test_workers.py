"""`run --workers`: processes that share ports, their deaths, their reload, and their supervisor's end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from exproto_app import App, Connection
from exproto_app.cli.supervisor import Supervisor
from exproto_app.cli.worker import Worker
from exproto_app.errors import SetupError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Listen
from exproto_app.hosts.gateway.sockets import bind, share, share_again

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="--workers needs Linux"),
]

RUN = (sys.executable, "-m", "exproto_app", "run")
PATIENCE = 60
MANY = 200
"""Connections among which each of two workers surely gets one."""

BROKER = "mqtt://127.0.0.1:9"
"""Where no broker is: workers serve without one, and keep trying."""

APP = """
import asyncio, os

from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_received
def who(conn: Connection, frame: bytes) -> bytes:
    return str(os.getpid()).encode()


@app.on_received(b"slow")
async def slow(conn: Connection, frame: bytes) -> bytes:
    conn.send(b"wait")
    await asyncio.sleep(0.3)
    return b"done"


@app.on_received(b"die")
def die(conn: Connection, frame: bytes) -> None:
    os._exit(7)


@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    os.write(1, f"gone: {reason}\\n".encode())  # in one piece, since others print too
"""


@attrs.define(eq=False)
class Gang:
    """A gateway of several workers, as its operator and its devices see it."""

    process: subprocess.Popen[str]
    lines: list[str]

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return "".join(self.lines)

    def port(self, scheme: str = "tcp") -> int:
        match = re.search(rf" on {scheme}://127\.0\.0\.1:(\d+)", self.text)
        assert match, self.text
        return int(match[1])

    def until(self, words: str) -> None:
        """Read what it prints, until a line has *words*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(words, line):
                return
        pytest.fail(f"it ended without saying {words!r}:\n{self.text}")

    def rest(self) -> str:
        """Read on until it, and each of its workers, has closed its output by ending."""
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)
        return self.text

    def pids(self) -> list[int]:
        """Return the workers that serve, in the order in which they came."""
        alive: dict[str, int] = {}
        for number, pid in re.findall(r"worker (\d) = serves, process (\d+)", self.text):
            alive[number] = int(pid)
        return list(alive.values())


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app to run in workers, which need the uplink."""
    pytest.importorskip("mqtt5", reason="the uplink needs Python 3.11 and mqtt5")
    path = tmp_path / "devices.py"
    path.write_text(APP)
    return path


@contextlib.contextmanager
def gang(app: Path, *arguments: str, workers: int = 2) -> Iterator[Gang]:
    """Run workers until the block ends; none survives it."""
    listens = () if "--listen" in arguments else ("--listen", "tcp://127.0.0.1:0")
    process = subprocess.Popen(
        [*RUN, str(app), "--mqtt", BROKER, "--workers", str(workers), *listens, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    found = Gang(process, [])
    try:
        found.until("Ctrl-C stops them")
        yield found
    finally:
        process.kill()  # its workers notice
        found.rest()
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


@attrs.define(eq=False)
class Device:
    """A device on TCP that asks who serves it."""

    sock: socket.socket

    @classmethod
    def dial(cls, port: int) -> Device:
        return cls(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))

    def ask(self, line: bytes = b"who\n") -> bytes:
        """Send *line*; return the answer, empty where the connection has ended."""
        try:
            self.sock.sendall(line)
            data = b""
            while not data.endswith(b"\n"):
                more = self.sock.recv(100)
                if not more:
                    return b""
                data += more
        except ConnectionError:
            return b""
        return data.rstrip()

    def close(self) -> None:
        self.sock.close()


def spread(port: int, stack: contextlib.ExitStack) -> dict[int, Device]:
    """Connect until each of two workers has a device; return one of each by the worker's process."""
    found: dict[int, Device] = {}
    for _ in range(MANY):
        device = Device.dial(port)
        stack.callback(device.close)
        found.setdefault(int(device.ask()), device)
        if len(found) == 2:
            return found
    pytest.fail(f"{MANY} connections went to one worker")


def test_devices_spread_over_the_workers_and_each_stays_with_its_own(app: Path) -> None:
    listens = ("--listen", "tcp://127.0.0.1:0", "--listen", "udp://127.0.0.1:0")
    with gang(app, *listens) as workers, contextlib.ExitStack() as stack:
        devices = spread(workers.port(), stack)
        assert set(devices) == set(workers.pids())
        assert [int(device.ask()) for device in devices.values()] == list(devices)
        served: set[bytes] = set()
        for _ in range(MANY):
            peer = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            peer.settimeout(PATIENCE)
            peer.connect(("127.0.0.1", workers.port("udp")))
            answers = {(peer.send(b"who"), peer.recv(100))[1] for _ in range(3)}
            assert len(answers) == 1
            served |= answers
            if len(served) == 2:
                break
        assert {int(pid) for pid in served} == set(workers.pids())


def test_log_lines_tell_the_workers_apart_and_each_has_its_own_counters(app: Path) -> None:
    with gang(app, "--stats", "0.1") as workers:
        workers.until(r"INFO worker 1: stats = ")
        workers.until(r"INFO worker 2: stats = ")


def test_a_killed_worker_costs_its_own_devices_and_is_replaced(app: Path) -> None:
    with gang(app) as workers, contextlib.ExitStack() as stack:
        (lost, victim), (kept, other) = spread(workers.port(), stack).items()
        os.kill(lost, signal.SIGKILL)
        assert victim.ask() == b""
        assert int(other.ask()) == kept
        workers.until(r"worker \d ! was killed by SIGKILL; another starts in 0\.\d s")
        # What comes now for the dead worker waits in its slot, and is served.
        waiting = [Device.dial(workers.port()) for _ in range(20)]
        for device in waiting:
            stack.callback(device.close)
        workers.until(r"worker \d = serves")
        answers = {int(device.ask()) for device in waiting}
        assert answers <= {kept, *workers.pids()}
        assert lost not in answers
        assert int(other.ask()) == kept
        assert len(spread(workers.port(), stack)) == 2


def test_a_dead_worker_that_fails_to_start_keeps_no_device_waiting(app: Path) -> None:
    listens = ("--listen", "tcp://127.0.0.1:0", "--listen", "udp://127.0.0.1:0")
    with gang(app, *listens) as workers, contextlib.ExitStack() as stack:
        (lost, _), (kept, _) = spread(workers.port(), stack).items()
        broken = app.read_text() + "\nimport time; time.sleep(0.2); import os; os._exit(3)\n"
        app.write_text(broken)
        os.kill(lost, signal.SIGKILL)
        workers.until(r"worker \d ! was killed by SIGKILL; another starts in 0\.\d s")
        workers.until(r"worker \d ! ended with exit code 3 before it served; another starts in")
        for _ in range(60):
            device = Device.dial(workers.port())
            stack.callback(device.close)
            assert int(device.ask()) == kept
        app.write_text(APP)
        workers.until(r"worker \d = serves")
        assert len(spread(workers.port(), stack)) == 2
        assert lost not in workers.pids()


def test_a_worker_that_the_app_ends_is_replaced_too(app: Path) -> None:
    with gang(app, workers=1) as workers:
        before = workers.pids()
        device = Device.dial(workers.port())
        assert device.ask(b"die\n") == b""
        device.close()
        workers.until(r"worker 1 ! ended with exit code 7; another starts in")
        workers.until(r"worker 1 = serves")
        device = Device.dial(workers.port())
        assert [int(device.ask())] == workers.pids() != before
        device.close()


def test_a_reload_in_the_middle_of_traffic_refuses_nobody(app: Path) -> None:
    """Devices that lose their connection come back at once, as devices do, and are always let in."""
    with gang(app) as workers:
        stop, refused = threading.Event(), []
        seen: list[set[bytes]] = []

        def device(port: int, pids: set[bytes]) -> None:
            while not stop.is_set():
                try:
                    connection = Device.dial(port)
                except OSError as error:
                    refused.append(error)
                    return
                for _ in range(5):
                    pid = connection.ask()
                    if not pid:
                        break
                    pids.add(pid)
                connection.close()

        threads = []
        for _ in range(4):
            seen.append(set())
            threads.append(threading.Thread(target=device, args=(workers.port(), seen[-1])))
        before = workers.pids()
        for thread in threads:
            thread.start()
        workers.process.send_signal(signal.SIGHUP)
        workers.until("workers = reloaded")
        with contextlib.ExitStack() as stack:
            after = set(spread(workers.port(), stack))
        stop.set()
        for thread in threads:
            thread.join()
        assert not refused
        assert after == set(workers.pids())
        assert not after & set(before)
        assert {int(pid) for pid in set().union(*seen)} <= {*before, *after}


def test_a_reload_with_a_broken_file_keeps_the_workers_that_serve(app: Path) -> None:
    with gang(app) as workers, contextlib.ExitStack() as stack:
        devices = spread(workers.port(), stack)
        app.write_text("import nothing_of_this_name\n")
        workers.process.send_signal(signal.SIGHUP)
        workers.until(
            "worker 1 ! its replacement ended with exit code 1 before it served; the old one keeps serving"
        )
        workers.until("workers ! worker 1 and those after it are not reloaded; the old ones keep serving")
        assert workers.text.count("No module named 'nothing_of_this_name'") == 1
        assert {int(device.ask()) for device in devices.values()} == set(devices)
        app.write_text(APP)
        workers.process.send_signal(signal.SIGHUP)
        workers.until("workers = reloaded")
        assert not set(spread(workers.port(), stack)) & set(devices)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("import nothing_of_this_name\n", 1, "No module named 'nothing_of_this_name'"),
        ("app = 3\n", 2, "is int, not an App"),
        ("import os; os.kill(os.getpid(), 9)\n", 1, "worker 1 ! was killed by SIGKILL before it served"),
        (
            APP + "\n@app.on_startup\ndef fail() -> None:\n    raise SystemExit('no database')\n",
            1,
            "no database",
        ),
    ],
)
def test_what_is_broken_from_the_start_is_told_once(app: Path, text: str, code: int, words: str) -> None:
    app.write_text(text)
    done = run(str(app), "--mqtt", BROKER, "--workers", "3", "--listen", "tcp://127.0.0.1:0")
    assert done.returncode == code
    assert (done.stdout + done.stderr).count(words) == 1
    assert "supervisor.py" not in done.stderr


def test_when_no_worker_comes_up_any_more_the_whole_ends(app: Path) -> None:
    with gang(app, workers=1) as workers:
        app.write_text("app = 3\n")
        os.kill(workers.pids()[0], signal.SIGKILL)
        assert "workers ! no worker can be started any more" in workers.rest()
        assert workers.process.wait(PATIENCE) == 2


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_the_end_lets_handlers_end(app: Path, name: signal.Signals) -> None:
    with gang(app) as workers, contextlib.ExitStack() as stack:
        devices = spread(workers.port(), stack).values()
        assert [device.ask(b"slow\n") for device in devices] == [b"wait", b"wait"]
        workers.process.send_signal(name)
        assert [device.sock.recv(100) for device in devices] == [b"done\n", b"done\n"]
        text = workers.rest()
        assert workers.process.wait(PATIENCE) == 0
        assert text.count("gone: shutdown") >= 2
        assert "killed" not in text


def test_workers_end_by_themselves_when_their_supervisor_is_killed(app: Path) -> None:
    with gang(app) as workers, contextlib.ExitStack() as stack:
        devices = spread(workers.port(), stack).values()
        port = workers.port()
        workers.process.kill()
        text = workers.rest()
        assert text.count("the supervisor is gone; the worker ends") == 2
        assert [device.sock.recv(100) for device in devices] == [b"", b""]
        assert "gone: shutdown" in text
        with pytest.raises(ConnectionRefusedError):
            Device.dial(port)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_a_port_that_other_workers_share_counts_as_taken(app: Path) -> None:
    with gang(app, "--listen", "tcp://127.0.0.1:0", "--listen", "udp://127.0.0.1:0") as workers:
        for scheme in ("tcp", "udp"):
            url = f"{scheme}://127.0.0.1:{workers.port(scheme)}"
            for more in ((), ("--mqtt", BROKER, "--workers", "2")):
                done = run(str(app), "--listen", url, *more)
                assert done.returncode == 2
                assert f"{url} can't be opened: another program has the port" in done.stderr


def test_workers_need_a_broker() -> None:
    done = run("devices.py", "--workers", "2")
    assert done.returncode == 2
    assert "--workers needs --mqtt URL: the embedded hub can't reach devices of another" in done.stderr


def test_processes_that_hang_are_killed() -> None:
    """One that never says that it serves, and one that says it and then doesn't want to end."""
    says = "import json, os, socket; control = json.loads(os.environ['EXPROTO_WORKER'])['control'];"
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    ready = "socket.socket(fileno=control).sendall(b'{\"serves\": []}\\n');"

    def outcome(code: str) -> tuple[int, float]:
        command = (sys.executable, "-c", code + "time.sleep(3600)")
        supervisor = Supervisor(command, [[]], start_timeout=1, stop_timeout=0.1)

        async def end() -> int:
            running = asyncio.ensure_future(supervisor.run())
            while not supervisor.serving and not running.done():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            children = tuple(supervisor.children.alive)
            if not running.done():
                os.kill(os.getpid(), signal.SIGTERM)
            code = await running
            assert all(child.process.returncode == -signal.SIGKILL for child in children)
            return code

        return asyncio.run(asyncio.wait_for(end(), PATIENCE)), len(supervisor.children.alive)

    assert outcome(stubborn) == (1, 0)
    assert outcome(stubborn + says + ready) == (0, 0)


# --- what the workers stand on: a gateway on sockets that are there already


def late() -> tuple[App, asyncio.Event]:
    """An app that takes its time to answer, and the event that it has begun to."""
    app = App(framing=Line())
    started = asyncio.Event()

    @app.on_received
    async def received(conn: Connection, frame: bytes) -> bytes:
        started.set()
        await asyncio.sleep(0.05)
        return b"late " + frame

    return app, started


def in_loop(test: Callable[[], Coroutine[Any, Any, None]], module: ModuleType) -> None:
    loop: asyncio.AbstractEventLoop = module.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(test(), PATIENCE))
    finally:
        loop.close()


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_datagrams_that_come_while_a_gateway_ends_are_the_next_ones(name: str) -> None:
    module = pytest.importorskip(name)
    listen = Listen.parse("udp://127.0.0.1:0")
    (kept,) = bind(listen)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.setblocking(False)
        peer.connect(kept.getsockname())
        app, started = late()
        old = Gateway(app, [listen], sockets=[[kept.dup()]])
        await old.start()
        peer.send(b"one")
        await started.wait()
        ending = asyncio.ensure_future(old.stop())
        for _ in range(5):
            await asyncio.sleep(0)
        peer.send(b"two")
        assert await loop.sock_recv(peer, 100) == b"late one\n", "what is being handled is still answered"
        await ending
        async with Gateway(late()[0], [listen], sockets=[[kept.dup()]]):
            assert await loop.sock_recv(peer, 100) == b"late two\n"
        peer.close()

    in_loop(test, module)
    kept.close()


def test_a_port_is_chosen_once_for_all_who_share_it() -> None:
    for url in ("tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://:0"):
        shares = share(Listen.parse(url), 3)
        names = [[sock.getsockname() for sock in sockets] for sockets in shares]
        assert names[0] == names[1] == names[2]
        for sock in (sock for sockets in shares for sock in sockets):
            sock.close()


def test_a_socket_for_datagrams_gets_its_part_of_them_when_somebody_reads_it() -> None:
    """That of a worker that died stays out of its group until the successor serves."""
    [[first]], [[second]] = (share(Listen.parse("udp://127.0.0.1:0"), 1) for _ in range(2))
    again = share_again(first.family, first.type, first.getsockname())
    ours, theirs = socket.socketpair()
    with first, second, again, ours, theirs:
        assert again.getsockname()[1] == 0
        given = Worker(1, [[again], [second]], ours, names=[[first.getsockname()], [("127.0.0.1", 9)]])
        assert given.open() == [[again], [second]]
        assert again.getsockname() == first.getsockname()
        assert second.getsockname()[1] != 9


def test_a_port_that_somebody_listens_on_cant_be_shared() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Listen.parse(f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(SetupError, match="another program has the port"):
            share(listen, 2)
