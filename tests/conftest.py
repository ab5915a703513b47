"""What several suites share: how hypothesis runs, an Erlang VM and an MQTT broker."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from .behaviour.hosts import PASSWORD
from .erlang.broker import MISSING as NO_ERLANG
from .erlang.broker import Vm, running
from .mqtt.broker import MISSING as NO_MOSQUITTO
from .mqtt.broker import Broker, free_port
from .published import TABLE, lines

# Under nohup SIGHUP is ignored, and so it would be by the programs that tests start.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine is no failure; `pytest --hypothesis-profile long` is for a night of it.
settings.register_profile("usual", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=1_500, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.register_profile("unit", deadline=None, max_examples=20)
settings.load_profile("usual")

NEEDS_LIVE = {"socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.posix_spawn"}


class Guard:
    """An audit hook that has a test fail which opens sockets or starts processes without the mark for it."""

    unmarked = False

    def __call__(self, event: str, _: object) -> None:
        if self.unmarked and event in NEEDS_LIVE:
            pytest.fail(f"{event} in a test that isn't marked live")


guard = Guard()
sys.addaudithook(guard)  # for good: hooks can't be taken back


@pytest.fixture(autouse=True)
def guarded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep what isn't marked as live in memory."""
    marks = ("live", "system")
    guard.unmarked = not any(request.node.get_closest_marker(mark) for mark in marks)
    yield
    guard.unmarked = False


@pytest.fixture(scope="session")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """Run an Erlang VM with the harness, in which each test has listeners of its own."""
    if NO_ERLANG:
        pytest.skip(f"the Erlang VM isn't installed: no {NO_ERLANG}")
    with running(tmp_path_factory.mktemp("harness")) as vm:
        yield vm


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Run a Mosquitto that knows one user, and lets in who shows no name; tests use names of their own."""
    if NO_MOSQUITTO:
        pytest.skip(f"Mosquitto isn't installed: no {NO_MOSQUITTO}")
    pytest.importorskip("mqtt5", reason="the uplink needs Python 3.11 and mqtt5")
    folder = tmp_path_factory.mktemp("mosquitto")
    with (
        free_port() as port,
        Broker(folder, port, users={"device": PASSWORD, "own-user": PASSWORD}, anonymous=True) as broker,
    ):
        yield broker


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how the values of published frames were told."""
    if TABLE:
        terminalreporter.section("values of published frames")
        for line in lines():
            terminalreporter.write_line(line)
