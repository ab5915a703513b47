"""`exproto-app top`: what a running gateway does, in a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from exproto_app.cli import main
from exproto_app.top import Look, Rates, Screen
from exproto_app.top.source import Handler

from .test_cli import COMMAND, gateway, port_of

SCRIPT = """
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_received(b"login ")
async def login(conn: Connection, frame: bytes) -> bytes:
    await conn.register(frame[6:].decode())
    return b"welcome"


@app.on_received
def reading(conn: Connection, frame: bytes) -> bytes:
    conn.publish("up", frame)
    return frame
"""


def row(**facts: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "protocol": "default",
        "clientid": "meter-1",
        "peer": "192.0.2.1:5000",
        "state": "registered",
        "frame_rate": 1.0,
        "rate_in": 10.0,
        "rate_out": 10.0,
        "queue": 0,
        "since": 100.0,
        "last": time.time(),
        "process": 1,
        **facts,
    }


def state(instance: str = "a", ready: bool | None = None, **counters: int) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "instance": instance,
        "protocols": [{"name": "default", "connections": 3}],
        "hub": "the embedded hub",
        "ready": ready,
        "counters": counters,
    }


def drawn(look: Look, rates: Rates, sort: str = "rate", width: int = 200) -> str:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=width, height=40))
    screen.console.print(screen.draw(look, rates, sort=sort))
    return out.getvalue()


def test_rates_are_of_all_processes_and_of_the_time_between_two_looks() -> None:
    before = Look(10.0, [state(frames_received=5), state("b", frames_received=7)], [], 0)
    now = Look(12.0, [state(frames_received=25), state("b", frames_received=8)], [], 0)
    rates = Rates.between(before, now)
    assert rates.counted["frames_received"] == 10.5
    assert now.connections == 6


def test_a_restart_makes_no_rates() -> None:
    before, now = Look(10.0, [state(frames_received=500)], [], 0), Look(12.0, [state("b")], [], 0)
    assert Rates.between(before, now) == Rates({}, [])
    assert "- frames received/s" in drawn(now, Rates.between(before, now))


def test_handlers_come_by_the_time_that_they_took_meanwhile() -> None:
    def at(*calls: tuple[str, int, float]) -> list[Handler]:
        return [Handler("default", "on_received", name, count, seconds) for name, count, seconds in calls]

    before = Look(0.0, [state()], [], 0, at(("old", 900, 90.0), ("quick", 10, 0.1), ("slow", 1, 1.0)))
    now = Look(2.0, [state()], [], 0, at(("old", 900, 90.0), ("quick", 110, 0.2), ("slow", 2, 2.0)))
    found = [
        (one.name, one.rate, round(one.mean, 6), round(one.share, 6))
        for one in Rates.between(before, now).handlers
    ]
    assert found == [("slow", 0.5, 1.0, 0.5), ("quick", 50.0, 0.001, 0.05)]
    assert re.search(r"slow +on_received +0\.5 +1\.0 s +50\.0%", drawn(now, Rates.between(before, now)))


def test_what_goes_wrong_right_now_comes_first() -> None:
    before = Look(0.0, [state(frames_bad=90, deliveries_dropped=1, logins_failed=4)], [], 0)
    now = Look(1.0, [state(frames_bad=90, deliveries_dropped=3, logins_failed=4, frames_received=1)], [], 0)
    trouble = Rates.between(before, now).trouble(now.counters)
    assert trouble == [("deliveries_dropped", 3, 2.0), ("frames_bad", 90, 0.0), ("logins_failed", 4, 0.0)]
    assert "3 deliveries dropped (2.0/s) · 90 frames bad" in drawn(now, Rates.between(before, now))


def test_connections_of_several_processes_are_one_table() -> None:
    rows = [row(id="7", process=1, frame_rate=2.0), row(id="7", process=2, frame_rate=9.0, clientid=None)]
    text = drawn(Look(0.0, [state(), state("b")], rows, 2), Rates({}, []))
    assert text.index("2:7") < text.index("1:7")
    assert "2 processes" in text


def test_what_devices_call_themselves_does_nothing_to_the_terminal() -> None:
    name = "x\x1b[2J\x1b]0;owned\x07[bold red]\u202e"
    look = Look(0.0, [state()], [row(clientid=name, peer=name, state="busy")], 1)
    text = drawn(look, Rates({}, []))
    assert not set("\x1b\x07\u202e") & set(text)
    assert "[bold red]" in text


@pytest.mark.parametrize(("ready", "words"), [(True, "is reachable"), (False, "isn't reachable")])
def test_it_tells_of_the_broker(ready: bool, words: str) -> None:
    assert f"the broker {words}" in drawn(Look(0.0, [state(ready=ready)], [], 0), Rates({}, []))


# --- a gateway that runs


@contextmanager
def device(port: int, name: str) -> Iterator[None]:
    """A device that logs in and goes on talking."""
    done = threading.Event()

    def talk() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, sock.makefile("rb") as stream:
            sock.sendall(f"login {name}\n".encode())
            assert stream.readline() == b"welcome\n"
            while not done.is_set():
                sock.sendall(b"21.5\n")
                stream.readline()

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def served(tmp_path: Path) -> Iterator[tuple[int, str, str]]:
    """A gateway with metrics and inspector; give the devices' port and the addresses of both."""
    script = tmp_path / "meters.py"
    script.write_text(SCRIPT)
    anywhere = "127.0.0.1:0"
    with gateway(script, "--listen", f"tcp://{anywhere}", "--inspect", anywhere, "--metrics", anywhere) as (
        process,
        lines,
    ):
        text = "".join(lines)
        inspector = re.search(r"inspector on http://([\d.:]+)/", text)
        metrics = re.search(r"metrics on http://([\d.:]+)/", text)
        if inspector is None:
            assert process.stdout is not None
            inspector = re.search(r"http://([\d.:]+)/", process.stdout.readline())
        assert inspector, text
        assert metrics, text
        yield port_of(lines), inspector[1], metrics[1]


@pytest.mark.live
def test_it_prints_one_look(tmp_path: Path) -> None:
    with served(tmp_path) as (port, inspector, metrics), device(port, "meter-7"):
        options = ["--inspect", inspector, "--metrics", metrics, "--once", "--every", "0.2"]
        result = CliRunner().invoke(main, ["top", *options], env={"COLUMNS": "180"})
        assert result.exit_code == 0, result.output
        assert re.search(r"reading +on_received +[\d,]+ +\d+ µs", result.output)
        assert re.search(r"default +meter-7 +127\.0\.0\.1:\d+ +registered", result.output)
        nobody = CliRunner().invoke(main, ["top", *options, "--search", "truck"])
        assert "0 connections by frames" in nobody.output


@pytest.mark.live
@pytest.mark.parametrize("end", ["q", "ctrl-c"])
def test_in_a_terminal_keys_sort_and_quit(tmp_path: Path, end: str) -> None:
    with served(tmp_path) as (port, inspector, _), device(port, "meter-7"):
        ours, theirs = pty.openpty()
        command = [*COMMAND, "top", "--inspect", inspector, "--every", "0.1"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
        process = subprocess.Popen(
            # Where the tests run in the background, Ctrl-C may be ignored.
            ["env", "--default-signal=INT", "setsid", "--ctty", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        try:
            _read_until(ours, "by frames")
            os.write(ours, b"b")
            _read_until(ours, "by bytes")
            os.write(ours, b"q" if end == "q" else b"\x03")
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def _read_until(terminal: int, words: str) -> None:
    text, end = "", time.monotonic() + 20
    while words not in text:
        ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, f"{words!r} didn't come: {text!r}"
        text += os.read(terminal, 65_536).decode(errors="replace")


@pytest.mark.live
def test_who_can_t_be_asked_is_told_in_a_sentence(tmp_path: Path) -> None:
    def told(*options: str) -> str:
        result = CliRunner().invoke(main, ["top", "--once", *options])
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        return result.output

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        assert f"start the gateway with --inspect {nobody}" in told("--inspect", nobody)
    with served(tmp_path) as (port, inspector, metrics):
        assert "is that --inspect of run?" in told("--inspect", metrics)
        assert "doesn't speak HTTP" in told("--inspect", f"127.0.0.1:{port}")
        assert "is that --metrics of run?" in told("--inspect", inspector, "--metrics", inspector)


@pytest.mark.live
def test_where_others_reach_the_inspector_its_token_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPROTO_INSPECT_TOKEN", "")  # where the option puts it, and what is undone
    script = tmp_path / "meters.py"
    script.write_text(SCRIPT)
    (tmp_path / "token").write_text("open-sesame\n")
    file = str(tmp_path / "token")
    options = ("--inspect", "0.0.0.0:0", "--inspect-token-file", file)
    with gateway(script, "--listen", "tcp://127.0.0.1:0", *options) as (process, lines):
        assert process.stdout is not None
        text = "".join(lines)
        if "inspector on" not in text:
            text += process.stdout.readline()
        match = re.search(r"inspector on http://127\.0\.0\.1:(\d+)/", text)
        assert match, text
        where = ("top", "--once", "--every", "0.1", "--inspect", f"127.0.0.1:{match[1]}")
        result = CliRunner().invoke(main, where)
        assert (result.exit_code, "--inspect-token-file" in result.output) == (1, True), result.output
        right = CliRunner().invoke(main, [*where, "--inspect-token-file", file])
        assert (right.exit_code, "0 connections" in right.output) == (0, True), right.output


def test_an_address_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(main, ["top", "--inspect", "nowhere"])
    assert result.exit_code == 2
    assert "--inspect nowhere is not an address; write HOST:PORT, such as 127.0.0.1:8080" in result.output
