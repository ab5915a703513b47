"""`exproto-app gen-driver`: what it writes, what it refuses."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exproto_app.hosts.emqx42.driver import Driver

from .test_cli import ECHO, FLEET, run

pytestmark = pytest.mark.live


def texts(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.suffix == ".py"
    }


def test_it_writes_a_module_a_protocol_and_the_brokers_configuration(tmp_path: Path) -> None:
    code, out, err = run("gen-driver", FLEET, "--out", tmp_path)
    assert code == 0, err
    assert set(texts(tmp_path)) == {
        "exproto_tracker.py",
        "exproto_meter.py",
        "sitecustomize.py",
        "exproto_app_loop/erlport/__init__.py",
        "exproto_app_loop/erlport/cli.py",
    }
    assert [line for line in out.splitlines() if not line.startswith("##")] == [
        line
        for name, port in (("tracker", 7993), ("meter", 7994))
        for line in (
            f"exproto.listener.{name} = tcp://0.0.0.0:{port}",
            f"exproto.listener.{name}.driver = python3",
            f"exproto.listener.{name}.driver_search_path = {tmp_path}",
            f"exproto.listener.{name}.driver_callback_module = exproto_{name}",
            f"exproto.listener.{name}.acceptors = 16",
            f"exproto.listener.{name}.max_connections = 1024000",
            f"exproto.listener.{name}.max_conn_rate = 10000",
            f"exproto.listener.{name}.backlog = 10240",
            f"exproto.listener.{name}.active_n = 100",
            f"exproto.listener.{name}.idle_timeout = 1h",
        )
    ]


def test_it_tells_of_the_listener_that_emqx_comes_with(tmp_path: Path) -> None:
    _, out, err = run("gen-driver", ECHO, "--out", tmp_path)
    assert "protoname" in out
    assert "the whole emqx_exproto.conf; EMQX's own has a listener on port 7993 too" in err


def test_protocols_that_share_a_listener_are_one_module(tmp_path: Path) -> None:
    options = ("--protocol", "meter,tracker", "--record", tmp_path / "field.jsonl")
    code, out, err = run("gen-driver", FLEET, "--out", tmp_path, *options)
    assert code == 0, err
    assert "exproto.listener.meter_tracker = tcp://0.0.0.0:7993" in out
    assert "driver_callback_module = exproto_meter_tracker" in out
    assert "protocol='meter,tracker'" in texts(tmp_path)["exproto_meter_tracker.py"]


def configured(out: str) -> dict[str, dict[str, str]]:
    """Return the options of each listener that was printed, and under "" its address."""
    found: dict[str, dict[str, str]] = {}
    for line in out.splitlines():
        if not line.startswith("##"):
            key, _, value = line.partition(" = ")
            name, _, option = key.removeprefix("exproto.listener.").partition(".")
            found.setdefault(name, {})[option] = value
    return found


def test_listeners_of_each_kind_have_what_emqx_wants_of_them(tmp_path: Path) -> None:
    protocols = ("tracker=:7000", "meter=udp://:7000", "meter=tls://:7001", "meter=dtls://:7001")
    code, out, err = run("gen-driver", FLEET, "--out", tmp_path, *options_of(protocols))
    assert code == 0, err
    found = configured(out)
    assert {name: options[""] for name, options in found.items()} == {
        "tracker": "tcp://0.0.0.0:7000",
        "meter": "udp://0.0.0.0:7000",
        "meter_ssl_7001": "ssl://0.0.0.0:7001",
        "meter_dtls_7001": "dtls://0.0.0.0:7001",
    }
    assert {options["driver_callback_module"] for options in found.values()} == {
        "exproto_tracker",
        "exproto_meter",
    }
    for name, options in found.items():
        assert ("recbuf" in options, "backlog" in options) == (
            (True, False) if options[""].startswith(("udp", "dtls")) else (False, True)
        )
        secure = {"certfile", "keyfile", "ciphers", "tls_versions"}
        assert secure & options.keys() == (secure if "_" in name else set())
    assert found["meter_dtls_7001"]["tls_versions"] == "dtlsv1.2"
    assert "put your own here" in out
    conf = tmp_path / "emqx_exproto.conf"
    conf.write_text(out)
    code, out, err = run(
        "gen-driver",
        FLEET,
        "--out",
        tmp_path,
        *options_of(protocols),
        "--check",
        "--conf",
        conf,
        "--python",
        sys.executable,
    )
    assert code == 0, out + err
    assert "low" not in out


def options_of(protocols: tuple[str, ...]) -> list[str]:
    return [part for text in protocols for part in ("--protocol", text)]


def test_a_listener_without_a_port_has_one_that_is_free(tmp_path: Path) -> None:
    _, out, _ = run("gen-driver", FLEET, "--out", tmp_path, *options_of(("tracker", "meter=:7993")))
    assert [options[""] for options in configured(out).values()] == [
        "tcp://0.0.0.0:7994",
        "tcp://0.0.0.0:7993",
    ]


@pytest.mark.parametrize(
    ("protocols", "words"),
    [
        (("meter=:7000", "tracker=tls://:7000"), "two --protocol name port 7000"),
        (("meter", "meter=:7000"), "--protocol meter is given twice; add =:PORT to both"),
        (("meter=ftp://:7000",), "ftp:// should be tcp://, tls://, udp:// or dtls://"),
        (("meter=7000",), "--protocol meter=7000 should be NAME=:PORT"),
        (("meter=:0",), "should be NAME=:PORT"),
        (("nobody=:7000",), "nobody"),
    ],
)
def test_listeners_that_emqx_cannot_have(tmp_path: Path, protocols: tuple[str, ...], words: str) -> None:
    code, _, err = run("gen-driver", FLEET, "--out", tmp_path, *options_of(protocols))
    assert code != 0
    assert words in err
    assert "Traceback" not in err


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path)
    assert code == 0
    assert err.count("unchanged: ") == len(before)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")} == before


def test_names(tmp_path: Path) -> None:
    code, out, _ = run("gen-driver", FLEET, "--out", tmp_path, "--protocol", "meter", "--module", "my_meter")
    assert code == 0
    assert "driver_callback_module = my_meter" in out
    assert "exproto_tracker.py" not in texts(tmp_path)


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("mine = True\n")
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path)
    assert code == 2
    assert "sitecustomize.py was not written by gen-driver; choose another --out, or say --force" in err
    assert set(texts(tmp_path)) == {"sitecustomize.py"}
    assert run("gen-driver", ECHO, "--out", tmp_path, "--force")[0] == 0


STOCK = "from exproto_app import App\napp = App()\n"


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("@app.on_received\nasync def f(conn, frame): ...", "runs no async handler such as f"),
        ("@app.on_received(blocking=True)\ndef f(conn, frame): ...", "no threads for f"),
        ("@app.every(1)\ndef f(conn): ...", "no timers for f"),
        ("@app.on_timeout\ndef f(conn): ...", "no timers for f"),
        (
            "@app.on_connect\ndef g(conn): ...\n@app.on_startup\nasync def f(): ...",
            "no async handler such as f",
        ),
    ],
)
def test_stock_refuses_what_the_brokers_loop_cant_do(tmp_path: Path, app: str, words: str) -> None:
    (tmp_path / "t.py").write_text(STOCK + app + "\n")
    code, _, err = run("gen-driver", tmp_path / "t.py", "--out", tmp_path / "out", "--stock")
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--protocol", "nope"), "serves no protocol 'nope'; it serves default"),
        (("--protocol", "default,default"), "'default,default' names a protocol twice"),
        (("--module", "With-Dash"), "can't be an Erlang atom and a Python module"),
        (("--module", "os"), "'os' is a Python module already; choose another name"),
        (("--python", "no-such-python"), "no-such-python can't be run as Python"),
        (("--stock", "--acl"), "leave out --stock or --acl"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_folder_that_cant_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path / "file" / "drivers")
    assert code == 2
    assert "can't be written: not a directory; choose another --out" in err
    assert err.count("\n") == 1


def test_a_python_of_another_version_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho '[3, 8, \"/usr/bin/python3\"]'\n")
    other.chmod(0o755)
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path / "out", "--python", other)
    assert code == 2
    assert "is Python 3.8, but exproto-app is installed for 3." in err


def test_check(tmp_path: Path) -> None:
    code, out, _ = run("gen-driver", ECHO, "--out", tmp_path, "--check")
    assert code == 1
    assert "exproto_default.py: missing; run gen-driver again" in out
    run("gen-driver", ECHO, "--out", tmp_path)
    code, out, err = run("gen-driver", ECHO, "--out", tmp_path, "--check", "--python", sys.executable)
    assert (code, err) == (0, "")
    assert "import exproto_default" in out
    (tmp_path / "exproto_default.py").write_text("broken")
    code, out, err = run("gen-driver", ECHO, "--out", tmp_path, "--check", "--python", sys.executable)
    assert code == 1
    assert "differs from what would be written now" in out
    assert "2 of the checks failed" in err


OWN = """
## The listener that EMQX comes with
exproto.listener.protoname = tcp://0.0.0.0:7993
exproto.listener.protoname.driver = python3
exproto.listener.protoname.driver_search_path = data/extension
exproto.listener.protoname.max_connections = 1024000
"""


def checked(tmp_path: Path, text: str | bytes) -> tuple[int, str]:
    """Check a driver against a configuration with *text*."""
    path = tmp_path / "emqx_exproto.conf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    python = ("--python", sys.executable)
    code, out, _ = run("gen-driver", ECHO, "--out", tmp_path / "out", "--check", "--conf", path, *python)
    return code, out


def test_check_of_the_configuration(tmp_path: Path) -> None:
    _, printed, _ = run("gen-driver", ECHO, "--out", tmp_path / "out")
    code, out = checked(tmp_path, printed)
    assert code == 0
    assert "default = tcp://0.0.0.0:7993" in out
    assert "is low in" not in out
    code, out = checked(tmp_path, OWN + printed)
    assert code == 1
    assert "protoname and default both have port 7993, so the plugin doesn't start; remove one" in out
    code, out = checked(tmp_path, OWN)
    assert code == 1
    assert "no listener has exproto_default; add what gen-driver prints" in out


def test_check_says_what_is_low(tmp_path: Path) -> None:
    _, printed, _ = run("gen-driver", ECHO, "--out", tmp_path / "out")
    few = "\n".join(printed.splitlines()[:6])
    code, out = checked(tmp_path, few)
    assert code == 0
    assert "default is low in connections: 1024; max_connections = 1024000" in out
    assert "default is low in seconds until the first byte: 30s; idle_timeout = 1h" in out
    _, out = checked(
        tmp_path, printed.replace("backlog = 10240", "backlog = 100").replace("n = 100\n", "n = 5\n")
    )
    assert "low in connections that wait to be accepted: 100; backlog = 10240" in out
    assert "active_n = 100" in out
    udp = printed.replace("tcp://", "udp://")
    _, out = checked(tmp_path, udp)
    assert "default is low in bytes of datagrams that wait in the kernel: 8KB; recbuf = 4MB" in out
    _, out = checked(tmp_path, udp + "exproto.listener.default.recbuf = 64kb\n")
    assert "is low in" not in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("tcp://0.0.0.0:7993", "ssl://0.0.0.0:7993"), "has no ciphers, without which EMQX refuses the file"),
        (("tcp://0.0.0.0:7993", "here"), "has no address that EMQX knows: here"),
        (("driver = python3", "driver = java"), "has the driver java; driver = python3"),
        (("/out\n", "/other\n"), "/other, not in"),
    ],
)
def test_check_of_a_listener(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    _, printed, _ = run("gen-driver", ECHO, "--out", tmp_path / "out")
    code, out = checked(tmp_path, printed.replace(*change))
    assert code == 1
    assert words in out


@pytest.mark.parametrize(
    "text", [b"", bytes(range(256)) * 10, b"listener.tcp.external = 0.0.0.0:1883\n", b"{}"]
)
def test_check_of_a_file_that_is_not_emqxs(tmp_path: Path, text: bytes) -> None:
    run("gen-driver", ECHO, "--out", tmp_path / "out")
    code, out = checked(tmp_path, text)
    assert code == 1
    assert "isn't EMQX's emqx_exproto.conf" in out
    assert "Traceback" not in out


def test_check_of_a_file_that_cant_be_read(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path / "out")
    code, out, _ = run("gen-driver", ECHO, "--out", tmp_path / "out", "--check", "--conf", tmp_path)
    assert code == 1
    assert "can't be read: is a directory" in out
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path / "out", "--conf", tmp_path)
    assert code == 2
    assert "--conf FILE is only read, by --check" in err


def test_a_module_of_another_version_says_so(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path)
    module = tmp_path / "exproto_default.py"
    module.write_text(module.read_text().replace("protocol='default'", "protocol='default', shiny=1"))
    done = start(tmp_path, "-c", "import exproto_default")
    assert "the driver's files are of another exproto-app (shiny); run gen-driver again" in done.stderr


def test_the_brokers_own_loop_is_told_what_is_wrong(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path)
    done = start(tmp_path, "-c", "import exproto_default; exproto_default.received(1, b'', None)")
    assert "name the folder of gen-driver, alone, as driver_search_path" in done.stderr


def test_check_of_the_brokers_own_loop(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(STOCK + "@app.on_received\ndef f(conn, frame): ...\n")
    out = ("--out", tmp_path / "out", "--stock", "--python", sys.executable)
    assert run("gen-driver", tmp_path / "t.py", *out)[0] == 0
    code, text, _ = run("gen-driver", tmp_path / "t.py", *out, "--check")
    assert code == 0
    assert "import exproto_default: only the broker can" in text


def start(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        input="",
    )


def test_the_sitecustomize_leaves_other_processes_and_others_of_its_kind_alone(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path / "driver")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text("import sys; sys.other = 'ran'\n")
    path = f"{tmp_path / 'driver'}{os.pathsep}{tmp_path / 'other'}"
    done = start(
        tmp_path, "-c", "import sys; print(sys.other, 'exproto_app' in sys.modules)", PYTHONPATH=path
    )
    assert done.stdout == "ran False\n", done.stderr
    # In the broker's process it puts our loop in front, which ends with its standard input.
    done = start(tmp_path, "-u", "-m", "erlport.cli", "--packet=4", "--use_stdio", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_callback_module_of_0_1_still_finds_its_driver() -> None:
    """It stays where it was written; that it is to be written anew is said as a deprecation."""
    with pytest.warns(DeprecationWarning, match="gen-driver --force"):
        old = importlib.import_module("exproto_app.drivers.erlport.loop")
    assert old.Driver is Driver
