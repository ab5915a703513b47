"""What several suites share: how hypothesis runs, an Erlang VM and an MQTT broker."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings

from .behaviour.hosts import PASSWORD
from .erlang.broker import MISSING as NO_ERLANG
from .erlang.broker import Vm, running
from .mqtt.broker import MISSING as NO_MOSQUITTO
from .mqtt.broker import Broker, free_port
from .published import TABLE, Row, lines

# Tests start hundreds of programs: their bytecode is kept, even where none is wanted beside the sources.
BYTECODE = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(BYTECODE)
    shutil.rmtree(f"{BYTECODE}{tempfile.gettempdir()}", ignore_errors=True)  # of what earlier tests wrote

# Under nohup SIGHUP is ignored, and so it would be by the programs that tests start.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine is no failure. The same examples each time, so that a run tells of a change alone; new ones
# are the part of `make fuzz`, and of `pytest --hypothesis-profile long`, which is for a night.
settings.register_profile("usual", deadline=None, derandomize=True)
settings.register_profile(
    "fuzz", deadline=None, max_examples=1_500, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.register_profile("unit", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("usual")

WHOLLY_LIVE = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.(live|system)\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't even import what is wholly live where only the rest is wanted: that is half of `make unit`."""
    wanted: str = config.option.markexpr
    if "not live" not in wanted or "not system" not in wanted or collection_path.suffix != ".py":
        return None
    return bool(WHOLLY_LIVE.search(collection_path.read_text())) or None


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
    ignores = request.node.get_closest_marker("filterwarnings") is not None
    if ignores:
        gc.freeze()
    yield
    guard.unmarked = False
    if ignores:
        gc.collect()  # while what it may leave open is still ignored
        gc.unfreeze()


GRACE = 180
"""Seconds that a test has beyond its `timeout`, whose exception ends none that waits for a thread."""

STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the way to the terminal, which pytest captures while tests run."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[STDERR] = os.dup(2)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Have no test hang for ever: its process says where each thread is and ends; `-n` starts another."""
    mark = item.get_closest_marker("timeout")
    limit = float(mark.args[0] if mark else item.config.getini("timeout"))
    if not item.config.option.usepdb:
        faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape what isn't Unicode in a report, a hostile name in the log, say: `pytest -n` couldn't send it."""
    return escaped((yield))


def escaped(value: Any) -> Any:
    """Return *value* with lone surrogates escaped, in whatever it holds."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {key: escaped(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(escaped, value))
        case _:
            return value


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the table over, where this process works for another (`pytest -n`)."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["published"] = [attrs.astuple(row) for row in TABLE]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take a worker's part of the table; one that has crashed has none."""
    TABLE.extend(Row(*row) for row in getattr(node, "workeroutput", {}).get("published", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how the values of published frames were told."""
    if TABLE:
        terminalreporter.section("values of published frames")
        for line in lines():
            terminalreporter.write_line(line)
