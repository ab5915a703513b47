"""`exproto-app doctor`: each check, where all is well and where something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
from click.testing import CliRunner

from exproto_app import App
from exproto_app.cli import main
from exproto_app.cli.checks import CHECKS, Finding, Setup
from exproto_app.cli.checks.app import EXTRAS, target
from exproto_app.cli.checks.ports import ports
from exproto_app.cli.checks.setup import in_container
from exproto_app.hosts.gateway import Listen

from .behaviour.hosts import PASSWORD
from .certificates import Authority
from .grpc.host import Cable, broker_loop
from .grpc.standin import Node
from .mqtt.broker import MISSING as NO_MOSQUITTO
from .mqtt.broker import Broker, Tls, free_port
from .test_cli import ECHO, FLEET, ROOT, run

pytestmark = pytest.mark.live

needs_mosquitto = pytest.mark.skipif(bool(NO_MOSQUITTO), reason=f"not installed: {NO_MOSQUITTO}")
needs_mqtt5 = pytest.mark.skipif(sys.version_info < (3, 11), reason="mqtt5 needs Python 3.11")

FREE = ("--listen", "tcp://127.0.0.1:0")


@attrs.frozen
class Report:
    """What a doctor said, as programs read it."""

    code: int
    findings: list[dict[str, Any]]

    def of(self, check: str) -> list[dict[str, Any]]:
        return [finding for finding in self.findings if finding["check"] == check]

    def one(self, check: str) -> dict[str, Any]:
        (found,) = self.of(check)
        return found

    @property
    def failed(self) -> list[str]:
        """The checks that failed, in their order."""
        return [finding["check"] for finding in self.findings if finding["outcome"] == "failed"]


def doctor(*arguments: object, wait: float = 10.0) -> Report:
    """Run the command in this process, which is quicker, and where a socket left open is an error."""
    done = CliRunner().invoke(main, ["doctor", *map(str, arguments), "--wait", str(wait), "--json"])
    return report(done.exit_code, done.stdout, done.stderr)


def doctor_process(*arguments: object) -> Report:
    """Run the command as its user does."""
    return report(*run("doctor", *arguments, "--wait", 10, "--json"))


def report(code: int, out: str, err: str) -> Report:
    assert out, err
    assert "Traceback" not in err
    facts = json.loads(out)
    assert (code, facts["ok"]) in ((0, True), (1, False))
    return Report(code, facts["findings"])


@contextlib.contextmanager
def saying(answer: bytes | None) -> Iterator[int]:
    """Listen on a port of loopback; answer whoever says something with *answer*, for None close at once."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = server.accept()
                with peer, contextlib.suppress(OSError):
                    peer.recv(1_000)
                    if answer is None:
                        continue
                    if answer:
                        peer.sendall(answer)
                    while peer.recv(1_000):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port where nobody answers a connection, as if packets were dropped: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            peer.connect_ex(server.getsockname())
        yield server.getsockname()[1]


# --- the file, and what is installed


def test_all_is_well() -> None:
    code, out, err = run("doctor", ECHO, *FREE)
    assert code == 0, out + err
    lines = out.splitlines()
    assert lines[0].startswith("✓ Python 3.")
    assert f"✓ {ECHO} has an app; its protocols: default" in lines
    assert "– no broker: no --mqtt" in lines  # noqa: RUF001 - as it is printed
    assert not [line for line in lines if line[0] not in "✓–"]  # noqa: RUF001 - likewise


@pytest.mark.parametrize(
    ("text", "check", "words", "remedy"),
    [
        ("app = 3\n", "import", "is int, not an App", ""),
        ("1 / 0\n", "import", "can't be imported: ZeroDivisionError", "see line 1 of"),
        ("import nothing_here\n", "import", "No module named 'nothing_here'", "install nothing_here for"),
        ("raise SystemExit(4)\n", "import", "importing it ends the program (4)", "__main__"),
        ("from exproto_app import App\napp = App()\n", "handlers", "without any handler", "@app.on_received"),
    ],
)
def test_a_file_that_cant_be_used(tmp_path: Path, text: str, check: str, words: str, remedy: str) -> None:
    path = tmp_path / "devices.py"
    path.write_text(text)
    found = doctor(path, *FREE)
    assert found.failed[0] == check
    assert words in found.one(check)["text"]
    assert remedy in found.one(check)["remedy"]


def test_what_the_file_prints_is_not_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "devices.py"
    path.write_text(ECHO.read_text() + "\nprint('hello')\n")
    assert doctor(path, *FREE).code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm")
def test_an_import_that_never_ends_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "devices.py"
    path.write_text(
        "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except Exception:\n        pass\n"
    )
    (finding,) = target(Setup(target=str(path), wait=1), limit=0.2)
    assert finding.outcome == "failed"
    assert "takes longer than 0.2 s" in finding.text


def test_what_is_likely_a_mistake_is_told(tmp_path: Path) -> None:
    path = tmp_path / "devices.py"
    path.write_text(
        "from exproto_app import App\napp = App()\nsink = app.protocol('sink')\n"
        "@app.on_received\ndef f(conn, frame): ...\n@sink.on_connect\ndef g(conn): ...\n"
    )
    found = doctor(path, "--listen", "default=tcp://127.0.0.1:0", "--listen", "sink=udp://127.0.0.1:0")
    raw, deaf_one = (finding["remedy"] for finding in found.of("handlers"))
    assert "framing= makes them whole" in raw
    assert "no handler takes what devices send" in deaf_one
    assert "silent for 120 s counts as gone" in found.of("ports.listen")[1]["remedy"]
    assert found.code == 0


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'hpack' else find(name, *rest)\n"
        "from exproto_app.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "doctor",
        str(ECHO),
        "--serve",
        "--bind",
        "127.0.0.1:0",
        "--wait",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "✗ the extra grpc is missing; pip install 'exproto-app[grpc]'" in done.stdout


def test_every_extra_of_the_package_is_known() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\ndev = ")[0]
    assert sorted(EXTRAS) == sorted(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


# --- ports


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_a_port_that_is_taken_and_who_has_it(scheme: str) -> None:
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if scheme == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        found = doctor(ECHO, "--listen", f"{scheme}://127.0.0.1:{port}")
    assert found.failed == ["ports.listen"]
    finding = found.one("ports.listen")
    assert "another program has the port" in finding["text"]
    if sys.platform == "linux":
        assert f"process {os.getpid()}" in finding["remedy"]


def test_a_listener_of_no_protocol_and_one_without_its_certificate() -> None:
    listens = ("--listen", "boat=tcp://127.0.0.1:0", "--listen", "tracker=tls://127.0.0.1:0")
    found = doctor(FLEET, *listens)
    no_protocol, no_certificate = found.of("ports.listen")
    assert "serves no protocol 'boat'" in no_protocol["text"]
    assert "needs a certificate" in no_certificate["text"]
    assert found.code == 1


def test_loopback_in_a_container_is_told(tmp_path: Path) -> None:
    assert not in_container(tmp_path)
    (tmp_path / ".dockerenv").touch()
    assert in_container(tmp_path)
    listen = Listen.parse("tcp://127.0.0.1:0")
    for container, words in ((True, "in this container; listen on 0.0.0.0"), (False, "")):
        setup = Setup(target="x", wait=1, listens=(listen,), container=container)
        (finding,) = ports(setup)
        assert finding.remedy.endswith(words) if words else not finding.remedy


# --- the broker


STEPS = [f"broker.{step}" for step in ("dns", "tcp", "tls", "login", "roundtrip")]


@needs_mqtt5
@pytest.mark.system
def test_a_broker_that_can_be_used(mosquitto: Broker) -> None:
    found = doctor_process(ECHO, *FREE, "--mqtt", mosquitto.url.replace("://", f"://device:{PASSWORD}@"))
    assert found.code == 0
    assert [finding["check"] for finding in found.findings if "broker." in finding["check"]] == STEPS
    assert found.one("broker.tls")["outcome"] == "skipped"
    assert "for 'device'" in found.one("broker.login")["text"]
    assert found.one("broker.roundtrip")["seconds"] > 0
    assert PASSWORD not in json.dumps(found.findings)


@needs_mqtt5
@pytest.mark.system
def test_a_wrong_password(mosquitto: Broker) -> None:
    found = doctor(ECHO, *FREE, "--mqtt", mosquitto.url.replace("://", "://device:wrong@"))
    assert found.failed == ["broker.login"]
    assert "correct the user and the password" in found.one("broker.login")["remedy"] or (
        "may connect" in found.one("broker.login")["remedy"]
    )
    assert found.one("broker.roundtrip")["outcome"] == "skipped"


@needs_mqtt5
@needs_mosquitto
@pytest.mark.system
def test_a_topic_that_isnt_allowed_and_one_that_is(tmp_path: Path) -> None:
    acl = ("topic readwrite mine/#",)
    with free_port() as port, Broker(tmp_path, port, acl=acl) as broker:
        found = doctor(ECHO, *FREE, "--mqtt", broker.url, wait=1)
        assert found.failed == ["broker.roundtrip"]
        assert "--mqtt-topic" in found.one("broker.roundtrip")["remedy"]
        assert doctor(ECHO, *FREE, "--mqtt", broker.url, "--mqtt-topic", "mine/x").code == 0


@needs_mqtt5
@needs_mosquitto
@pytest.mark.system
def test_tls_and_what_may_be_wrong_with_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ca = ("--mqtt-ca", authority.file)
    tls = Tls(authority.issue("broker"))
    with free_port() as port, Broker(tmp_path / "broker", port, tls=tls) as broker:
        found = doctor(ECHO, *FREE, "--mqtt", broker.url, *ca)
        assert found.code == 0
        assert found.one("broker.tls")["outcome"] == "ok"
        found = doctor(ECHO, *FREE, "--mqtt", broker.url)
        assert found.failed == ["broker.tls"]
        assert "--mqtt-ca FILE" in found.one("broker.tls")["remedy"]
        found = doctor(ECHO, *FREE, "--mqtt", broker.url.replace("127.0.0.1", "localhost"), *ca)
        assert "the name that its certificate is for" in found.one("broker.tls")["remedy"]
        found = doctor(ECHO, *FREE, "--mqtt", broker.url.replace("mqtts", "mqtt"), wait=1)
        assert found.failed == ["broker.login"]
        assert "mqtts://" in found.one("broker.login")["remedy"]


@needs_mqtt5
@pytest.mark.system
def test_tls_where_there_is_none(mosquitto: Broker) -> None:
    found = doctor(ECHO, *FREE, "--mqtt", mosquitto.url.replace("mqtt://", "mqtts://"), wait=1)
    assert found.failed == ["broker.tls"]


@needs_mqtt5
@pytest.mark.parametrize(
    ("answer", "words", "remedy"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "that port doesn't speak MQTT: it answered b'HTTP/1.1 400",
            "correct the port",
        ),
        (b"\x15\x03\x01\x00\x02\x02\x46", "that port speaks TLS", "write mqtts://"),
        (b"\x20\x02\x00\x01", "it answers with MQTT 3", "use a broker that speaks MQTT 5 or 3.1.1"),
        (b"\x20\x03\x00\x87\x00", "not authorized (0x87)", "mqtt://USER:PASSWORD@HOST"),
        (b"\x20\x03\x00\x86\x00", "bad user name or password", "correct the user and the password"),
        (b"\x20\xff\xff\xff\x7f", "it breaks the protocol", "perhaps"),
        (b"", "no answer within 0.5 s", "perhaps it wants TLS"),
        (None, "it closed the connection", "perhaps it wants TLS"),
    ],
)
def test_what_is_no_broker(answer: bytes | None, words: str, remedy: str) -> None:
    with saying(answer) as port:
        found = doctor(ECHO, *FREE, "--mqtt", f"mqtt://127.0.0.1:{port}", wait=0.5)
    assert found.failed == ["broker.login"]
    assert words in found.one("broker.login")["text"]
    assert remedy in found.one("broker.login")["remedy"]


@needs_mqtt5
def test_nobody_there_nobody_answering_and_no_such_host() -> None:
    with free_port() as port:
        found = doctor(ECHO, *FREE, "--mqtt", f"mqtt://127.0.0.1:{port}")
        assert found.failed == ["broker.tcp"]
        assert "connection refused" in found.one("broker.tcp")["text"]
    found = doctor(ECHO, *FREE, "--mqtt", "mqtt://nowhere.invalid", wait=20)
    assert found.failed == ["broker.dns"]
    assert [found.one(step)["outcome"] for step in STEPS[1:]] == ["skipped"] * 4


@needs_mqtt5
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops what finds a full queue")
def test_a_host_that_drops_packets_takes_bounded_time() -> None:
    with deaf() as port:
        url = f"mqtt://127.0.0.1:{port}"
        found = doctor(ECHO, "--mqtt", url, "--serve", "--bind", "127.0.0.1:0", wait=0.3)
        assert found.one("broker.tcp")["text"] == f"127.0.0.1:{port} can't be reached: no answer within 0.3 s"
        adapter = ("--serve", "--bind", "127.0.0.1:0", "--adapter", f"http://127.0.0.1:{port}")
        found = doctor(ECHO, *adapter, wait=0.3)
        assert "no answer within 0.3 s" in found.one("emqx.adapter.tcp")["text"]


def test_an_url_that_is_none_tells_no_password() -> None:
    found = doctor(ECHO, *FREE, "--mqtt", "http://u:s3cret@h")
    if sys.version_info >= (3, 11):
        assert "neither mqtt:// nor mqtts://" in found.one("broker.url")["text"]
    assert "s3cret" not in json.dumps(found.findings)


# --- EMQX's gateway


@contextlib.contextmanager
def node(*, streaming: bool = False, handler: str | None = None) -> Iterator[Node]:
    """A stand-in for EMQX with its adapter and a listener, which calls *handler* when a device comes."""
    thread = broker_loop()

    async def begin() -> Node:
        stand_in = Node(streaming=streaming)
        await stand_in.listen(udp=0)
        if handler is not None:
            await stand_in.connect(handler)
        return stand_in

    stand_in = thread.run(begin())
    try:
        yield stand_in
    finally:
        thread.run(stand_in.stop())


@pytest.mark.parametrize(
    ("streaming", "service"), [(False, "ConnectionUnaryHandler"), (True, "ConnectionHandler")]
)
def test_emqx_answers_and_calls(*, streaming: bool, service: str) -> None:
    with free_port() as port, node(streaming=streaming, handler=f"127.0.0.1:{port}") as emqx:
        device = ("--device", f"127.0.0.1:{emqx.ports[0]}")
        for adapter in (f"http://127.0.0.1:{emqx.adapter_port}", f"auto:{emqx.adapter_port}"):
            options = ("--serve", "--bind", f"127.0.0.1:{port}", "--adapter", adapter)
            found = doctor_process(ECHO, *options, *device)
            assert found.code == 0, found.findings
            assert found.of("emqx.adapter")[-1]["text"].endswith("answers as an ExProto adapter")
            callback = found.one("emqx.callback")
            assert callback["text"] == f"EMQX at 127.0.0.1 calls the service {service}"
            assert ("20 ms" in callback["remedy"]) == streaming


@pytest.mark.parametrize("translated", [False, True])
def test_another_devices_calls_dont_count(*, translated: bool) -> None:
    with free_port() as port, node(handler=f"127.0.0.1:{port}") as emqx:
        cable = Cable("127.0.0.1", emqx.ports[0])  # which brings the device to the listener from another port
        broker_loop().run(cable.lay())
        if not translated:
            broker_loop().run(cable.cut())
        with socket.create_connection(("127.0.0.1", emqx.ports[0])) as other:
            other.sendall(b"I was here before\n")
            adapter = ("--adapter", f"http://127.0.0.1:{emqx.adapter_port}")
            options = ("--serve", "--bind", f"127.0.0.1:{port}", *adapter)
            found = doctor(ECHO, *options, "--device", f"127.0.0.1:{cable.port}", wait=3.0)
        broker_loop().run(cable.take_up())
    assert found.failed == ([] if translated else ["emqx.callback"]), found.findings
    if not translated:
        assert "calls for other devices, but didn't call for the one" in found.one("emqx.callback")["text"]


def test_emqx_that_no_adapter_is_for() -> None:
    with free_port() as port, node(handler=f"127.0.0.1:{port}") as emqx:
        adapter = f"127.0.0.9=http://127.0.0.1:{emqx.adapter_port}"
        options = ("--serve", "--bind", f"127.0.0.1:{port}", "--adapter", adapter)
        found = doctor(ECHO, *options, "--device", f"127.0.0.1:{emqx.ports[0]}")
    assert found.failed == ["emqx.callback"]
    assert "add --adapter 127.0.0.1=http://127.0.0.1:9100" in found.one("emqx.callback")["remedy"]


def test_nobody_calls(tmp_path: Path) -> None:
    tls = ("--cert", Authority(tmp_path).issue("us"))
    with node() as emqx:
        adapter = ("--adapter", f"http://127.0.0.1:{emqx.adapter_port}")
        for options, words in (((), "begin with http://"), (tls, "before EMQX 5.8.5")):
            found = doctor(ECHO, "--serve", "--bind", "127.0.0.1:0", *adapter, *options, wait=0.5)
            assert found.failed == ["emqx.callback"]
            assert words in found.one("emqx.callback")["remedy"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60), "speaks TLS, but the service has none"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "speaks HTTP/1; this port is for EMQX"),
        (
            b"\x78\x78\x0d\x01 a device's login, and more than a preface",
            "devices belong on a listener of EMQX",
        ),
    ],
)
def test_others_than_emqx_call(said: bytes, words: str) -> None:
    stop = threading.Event()

    def call(port: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(said)
                sock.settimeout(5)
                sock.recv(1)

    with free_port() as port, node() as emqx:
        thread = threading.Thread(target=call, args=(port,))
        thread.start()
        adapter = ("--adapter", f"http://127.0.0.1:{emqx.adapter_port}")
        found = doctor(ECHO, "--serve", "--bind", f"127.0.0.1:{port}", *adapter, wait=0.5)
        stop.set()
        thread.join()
    assert found.failed == ["emqx.callback"]
    assert words in found.one("emqx.callback")["text"]


@contextlib.contextmanager
def other_grpc() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (other_grpc, "is another gRPC program"),
        (lambda: saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "it said b'HTTP/1.1 400 Bad Request"),
        (lambda: saying(b"hello, device\r\n, what do you want from me?\r\n"), "it said b'hello, device"),
        (lambda: saying(b""), "it doesn't answer within 0.5 s"),
        (lambda: saying(None), "is not an ExProto adapter"),
    ],
)
def test_what_is_no_adapter(program: Callable[[], Any], words: str) -> None:
    with program() as port:
        options = ("--serve", "--bind", "127.0.0.1:0", "--adapter", f"http://127.0.0.1:{port}")
        found = doctor(ECHO, *options, wait=0.5)
    assert found.failed == ["emqx.adapter", "emqx.callback"]
    assert words in found.of("emqx.adapter")[0]["text"]
    assert "server { bind }" in found.of("emqx.adapter")[0]["remedy"]


def test_the_adapter_is_not_where_emqx_calls_us() -> None:
    options = ("--serve", "--bind", "127.0.0.1:9001", "--adapter", "http://127.0.0.1:9001")
    found = doctor(ECHO, *options, wait=0.2)
    assert "is our own --bind" in found.one("emqx.adapter")["text"]


def test_a_bind_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, node() as emqx:
        bind = ("--serve", "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
        found = doctor(ECHO, *bind, "--adapter", f"http://127.0.0.1:{emqx.adapter_port}")
    assert found.failed == ["ports.bind"]
    assert "choose another with --bind" in found.one("ports.bind")["text"]
    assert found.one("emqx.callback")["outcome"] == "skipped"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((FLEET,), "such as --protocol tracker=:7993 --protocol meter=:7994"),
        ((ECHO, "--adapter", "127.0.0.1:9100"), "write http://HOST:9100"),
        ((ECHO, "--adapter", "https://h:1"), "has no TLS"),
    ],
)
def test_options_of_serve_that_dont_fit(options: tuple[object, ...], words: str) -> None:
    found = doctor(*options, "--serve", "--bind", "127.0.0.1:0")
    assert found.failed == ["emqx.options"]
    assert words in found.one("emqx.options")["text"]


# --- EMQX 4.2


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--stock",),
        ("--acl",),
        ("--protocol", "meter", "--module", "my_meter"),
        ("--acl", "--record", "r.jsonl"),
    ],
)
def test_a_driver_that_fits_whatever_it_was_written_with(tmp_path: Path, options: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    app = tmp_path / "fleet.py"
    app.write_text(FLEET.read_text().replace("async def", "def").replace("await ", ""))
    code, _, err = run("gen-driver", app, "--out", out, *options)
    assert code == 0, err
    python = ("--python", sys.executable)
    found = doctor(app, "--driver", out, *python)
    assert found.code == 0, found.findings
    assert found.of("driver.import")
    (out / "sitecustomize.py").unlink()
    module = next(out.glob("*_meter.py"))
    module.write_text(module.read_text() + "# mine\n")
    found = doctor(app, "--driver", out, *python)
    assert found.failed[:2] == ["driver.files"] * 2
    assert {finding["remedy"] for finding in found.of("driver.files")} == {"", "run gen-driver again"}


def test_the_configuration_of_emqx_that_goes_with_a_driver(tmp_path: Path) -> None:
    out, conf = tmp_path / "out", tmp_path / "emqx_exproto.conf"
    _, printed, _ = run("gen-driver", ECHO, "--out", out)
    conf.write_text(printed.replace("max_connections = 1024000", "max_connections = 512"))
    given = ("--driver", out, "--python", sys.executable, "--conf", conf)
    found = doctor(ECHO, *given)
    assert found.code == 0
    assert "is low in connections: 512" in found.one("driver.limits")["text"]
    assert found.one("driver.limits")["remedy"] == "max_connections = 1024000"
    own = "exproto.listener.protoname = tcp://0.0.0.0:7993\n"
    conf.write_text(own + printed)
    found = doctor(ECHO, *given)
    assert found.failed == ["driver.conf"]


def test_a_folder_without_a_driver_and_a_python_of_another_version(tmp_path: Path) -> None:
    found = doctor(ECHO, "--driver", tmp_path)
    assert found.failed == ["driver.files"]
    assert "run exproto-app gen-driver" in found.one("driver.files")["remedy"]
    assert run("gen-driver", ECHO, "--out", tmp_path)[0] == 0
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho '[3, 8, \"/usr/bin/python3\"]'\n")
    other.chmod(0o755)
    found = doctor(ECHO, "--driver", tmp_path, "--python", other)
    assert found.failed == ["driver.python"]
    assert "is Python 3.8, but exproto-app is installed for" in found.one("driver.python")["text"]


# --- the command itself


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--listen", "nonsense"), "has to begin with tcp://"),
        (("--bind", "127.0.0.1:1"), "--bind needs --serve"),
        (("--adapter", "http://h:1"), "--adapter needs --serve"),
        (("--mqtt-ca", "x"), "--mqtt-ca needs --mqtt URL"),
        (("--wait", "0"), "--wait"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], words: str) -> None:
    code, out, err = run("doctor", ECHO, *options)
    assert (code, out) == (2, "")
    assert words in err


def test_a_finding_is_one_line_and_its_keys_stay() -> None:
    finding = Finding("x", "failed", "two\nlines", "do this")
    assert str(finding) == "✗ two lines; do this"
    assert list(finding.facts()) == ["check", "outcome", "text", "remedy", "seconds"]
    assert len(set(CHECKS)) == len(CHECKS)
    assert App().protocols == {}
