"""`exproto-app run --mqtt`, as its user calls it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ..test_cli import ECHO, gateway, run

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mqtt-queue", 3), "--mqtt-queue needs --mqtt URL"),
        (("--mqtt-required",), "--mqtt-required needs --mqtt URL"),
        (("--mqtt", "broker"), "it is neither mqtt:// nor mqtts://"),
        (("--mqtt", "mqtt://u:s3cret@broker:x"), "the port has to be a number"),
        (("--mqtt", "mqtt://broker", "--mqtt-ca", "ca.pem"), "--mqtt-ca needs TLS"),
        (
            ("--mqtt", "mqtts://broker", "--mqtt-ca", "/nowhere.pem"),
            "--mqtt-ca: there is no file /nowhere.pem",
        ),
        (("--mqtt", "mqtt://broker", "--mqtt-mode", "all"), "'all' is not one of"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(options: tuple[object, ...], words: str) -> None:
    code, _, err = run("run", ECHO, "--listen", "tcp://127.0.0.1:0", *options)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert "s3cret" not in err


def test_users_are_the_brokers_matter(tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("")
    code, _, err = run("run", ECHO, "--users", users, "--mqtt", "mqtt://broker")
    assert code == 2
    assert "the broker itself decides who may register; leave --users out, or use --mqtt-mode shared" in err


def test_a_required_broker_that_is_not_there_ends_it() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"mqtt://gate:s3cret@127.0.0.1:{nobody.getsockname()[1]}"
        code, _, err = run("run", ECHO, "--listen", "tcp://127.0.0.1:0", "--mqtt", url, "--mqtt-required")
    assert code == 1
    assert err.splitlines()[-1].endswith(" is required and can't be used: connection refused")
    assert "s3cret" not in err
    assert "Traceback" not in err


def test_a_broker_that_is_not_there_is_waited_for() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with gateway(ECHO, "--listen", "tcp://127.0.0.1:0", "--mqtt", f"mqtt://127.0.0.1:{port}") as (
            process,
            lines,
        ):
            assert f"messages through mqtt://127.0.0.1:{port}" in lines[-2] + lines[-1]
            assert process.stdout is not None
            wanted = f"mqtt://127.0.0.1:{port} can't be reached: connection refused; trying again"
            seen = "".join(lines)
            while wanted not in seen:
                line = process.stdout.readline()
                assert line, seen
                seen += line


@pytest.mark.parametrize("users", [False, True])
def test_in_shared_mode_without_users_any_password_is_taken_and_it_says_so(
    users: bool, tmp_path: Path
) -> None:
    file = tmp_path / "users.txt"
    file.write_text("")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{nobody.getsockname()[1]}"
        options = ("--mqtt", url, "--mqtt-mode", "shared", *(("--users", file) if users else ()))
        with gateway(ECHO, "--listen", "tcp://127.0.0.1:0", *options) as (process, lines):
            process.terminate()
            out, _ = process.communicate()
    assert ("any password is accepted" in "".join(lines) + out) is not users
