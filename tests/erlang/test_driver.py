"""What gen-driver writes, on a real Erlang VM that plays EMQX 4.2."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app.hosts.emqx42 import generate
from exproto_app.hosts.emqx42.terms import Atom, decode, encode

from .broker import PATIENCE, Broker, Vm, packages
from .conftest import ROOT, Start, begin, decoy

pytestmark = pytest.mark.system

ECHO = """
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line(limit=2_000_000))

@app.on_received
def echo(conn: Connection, frame: bytes) -> bytes:
    return frame
"""

VERBS = """
import asyncio, logging, os, threading
from exproto_app import App, CommandError, Connection, Message
from exproto_app.framing import Line

app = App(framing=Line(limit=2_000_000))

async def outcome(verb) -> bytes:
    try:
        await verb
    except CommandError as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"done"

@app.on_received(b"register ")
async def register(conn: Connection, frame: bytes) -> bytes:
    clientid, _, password = frame[9:].decode().partition(" ")
    return await outcome(conn.register(clientid, username="u", password=password or None, keepalive=30))

@app.on_received(b"login ")
def login(conn: Connection, frame: bytes) -> None:
    clientid, _, password = frame[6:].decode().partition(" ")
    conn.register(clientid, password=password)

@app.on_received(b"who")
def who(conn: Connection, frame: bytes) -> bytes:
    return conn.client.clientid.encode() if conn.client else b"nobody"

@app.on_received(b"publish ")
async def publish(conn: Connection, frame: bytes) -> bytes:
    topic, _, payload = frame[8:].partition(b" ")
    return await outcome(conn.publish(topic.decode(), payload, qos=1))

@app.on_received(b"subscribe ")
async def subscribe(conn: Connection, frame: bytes) -> bytes:
    return await outcome(conn.subscribe(frame[10:].decode(), qos=1))

@app.on_received(b"unsubscribe ")
async def unsubscribe(conn: Connection, frame: bytes) -> bytes:
    return await outcome(conn.unsubscribe(frame[12:].decode()))

@app.on_received(b"announce ")
async def announce(conn: Connection, frame: bytes) -> bytes:
    return await outcome(app.publish(frame[9:].decode(), b"by the app"))

@app.on_received(b"bye")
def bye(conn: Connection, frame: bytes) -> bytes:
    conn.send(b"so")
    conn.terminate()
    return b"long"

@app.on_received(b"raise")
def fail(conn: Connection, frame: bytes) -> None:
    conn.send(b"before")
    raise LookupError("out of luck")

@app.on_received(b"slow")
async def slow(conn: Connection, frame: bytes) -> bytes:
    conn.send(b"wait")
    await gate.wait()
    return b"slow"

@app.on_received(b"open")
def open_gate(conn: Connection, frame: bytes) -> bytes:
    gate.set()
    return b"opened"

gate = asyncio.Event()

@app.on_received(b"who are you")
def about(conn: Connection, frame: bytes) -> bytes:
    return repr((conn.info.socktype, str(conn.info.peername), conn.info.peercert)).encode()

@app.on_received(b"noise")
def noise(conn: Connection, frame: bytes) -> bytes:
    print("printed", "\\ud800", "\\N{SNOWMAN}")
    print("half a line", end="")
    print(", and the rest")
    logging.getLogger("mine").warning("logged \\udfff")
    os.system("echo from a child")
    os.write(1, b"straight to the file")
    return b"still here"

@app.on_received(b"thread")
def thread(conn: Connection, frame: bytes) -> None:
    def run() -> None:
        conn.send(b"from a thread")
        conn.publish("from/thread", b"payload")
        print("printed by a thread")
    threading.Thread(target=run).start()

@app.on_received
def echo(conn: Connection, frame: bytes) -> bytes:
    return frame

@app.on_deliver("batch/#", batch=True)
def batch(conn: Connection, messages: list[Message]) -> bytes:
    return b" ".join(message.payload for message in messages)

@app.on_deliver
def deliver(conn: Connection, message: Message) -> bytes:
    about = f"{message.topic} {message.qos} {message.sender} {len(message.id)} {message.timestamp > 0} "
    return about.encode() + message.payload

@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    if conn.client:
        conn.publish(f"end/{conn.client.clientid}", f"{reason}: {conn.close_detail}".encode())
"""


def test_an_app_answers_its_device(start: Start) -> None:
    device = start(ECHO).connect()
    device.send(b"hel")
    device.send(b"lo\nagain\n")
    device.expect(b"hello\nagain\n")
    device.hang_up()
    device.expect_end()
    assert device.closed == "{shutdown,{sock_closed,tcp_closed}}"


def test_register_asks_the_broker_for_the_password(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"who\nregister d1\nwho\n")
    device.expect(b"nobody\ndone\nd1\n")
    assert device.registered == {
        "proto_name": b"default",
        "proto_ver": b"",
        "clientid": b"d1",
        "username": b"u",
        "keepalive": 30,
    }
    right, wrong, unwaited = broker.connect(), broker.connect(), broker.connect()
    right.send(b"register d2 s3cret\nwho\n")
    right.expect(b"done\nd2\n")
    wrong.send(b"register d3 wrong\nwho\n")
    wrong.expect(b"DeniedError: the broker refuses 'd3': not_authorized\nnobody\n")
    assert wrong.registered is None
    unwaited.send(b"login d4 wrong\nwho\n")
    unwaited.expect_end()


def test_messages_go_out_and_come_in(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"register d1\npublish up/1 one\nsubscribe down/+\nsubscribe down/+/x\n")
    device.expect(b"done\n" * 4)
    assert broker.messages == [("up/1", b"one", 1, b"d1")]
    assert device.subscriptions == {"down/+": 1, "down/+/x": 1}
    broker.publish("down/1", b"reboot", qos=2)
    device.expect(b"down/1 2 somebody 32 True reboot\n")
    device.send(b"publish down/me mine\n")
    device.wait(lambda device: device.received.count(b"\n") == 2)
    assert sorted(device.received.splitlines()) == [b"done", b"down/me 1 d1 32 True mine"]
    device.expect(device.received)
    device.send(b"unsubscribe down/+\n")
    device.expect(b"done\n")
    broker.publish("down/1", b"nobody listens")
    device.send(b"announce down/2/x\n")
    device.wait(lambda device: device.received.count(b"\n") == 2)
    assert sorted(device.received.splitlines()) == [b"done", b"down/2/x 0 exproto_app 32 True by the app"]


def test_shared_subscriptions_take_turns(start: Start) -> None:
    broker = start(VERBS)
    devices = [broker.connect() for _ in range(3)]
    for device in devices:
        device.send(b"subscribe $share/group/jobs/+\n")
        device.expect(b"done\n")
    for _ in range(2):
        for number in range(3):
            broker.publish(f"jobs/{number}", b"job")
    for device in devices:
        device.wait(lambda device: device.received.count(b"\n") == 2)


def test_a_batch_arrives_complete_and_in_order(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"subscribe batch/1\n")
    device.expect(b"done\n")
    for number in range(250):
        broker.publish("batch/1", b"%d" % number)
    expected = [b"%d" % number for number in range(250)]
    device.wait(lambda device: len(device.received.split()) == len(expected))
    assert device.received.split() == expected


def test_what_was_sent_before_the_end_arrives(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"register d1\nbye\nnever looked at\n")
    device.expect(b"done\nso\nlong\n")
    device.expect_end()
    assert broker.published("end/d1") == b"terminated: {shutdown,{sock_closed,normal}}"


def test_a_handler_that_fails_is_in_the_log_and_its_device_closed(start: Start) -> None:
    broker = start(VERBS)
    device, other = broker.connect(), broker.connect()
    device.send(b"raise\n")
    device.expect(b"before\n")
    device.expect_end()
    broker.expect_log("fail failed: LookupError('out of luck')", "Traceback")
    other.send(b"still here\n")
    other.expect(b"still here\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_thing\n", ("ModuleNotFoundError", "no_such_thing", "device.py")),
        ("def broken(:\n", ("SyntaxError", "device.py")),
        ("raise SystemExit('I quit')\n", ("I quit",)),
        ("raise KeyboardInterrupt\n", ("KeyboardInterrupt", "device.py")),
        ("print('no app here')\n", ("device.py", "app")),
    ],
    ids=["import", "syntax", "exit", "interrupt", "no app"],
)
def test_an_app_that_cant_be_imported_is_in_the_log(start: Start, text: str, words: tuple[str, ...]) -> None:
    broker = start(text)
    for _ in range(2):
        broker.connect().expect_end()
    broker.expect_log("exproto_default", *words)
    assert len(broker.ups) == 1


@pytest.mark.parametrize(
    ("module", "words"),
    [("json", "json/__init__.py is no callback module of gen-driver"), ("main", "search_path has main.py")],
)
def test_a_listener_that_is_not_ours_is_one_sentence_in_the_log(
    start: Start, module: str, words: str
) -> None:
    """Its devices are closed, whatever calls; the sentence says what to do."""
    broker = start(ECHO, module=module)
    for _ in range(2):
        broker.connect().expect_end()
    broker.expect_log(
        words, "set its driver_callback_module to exproto_default, or", "out of its driver_search_path"
    )
    assert "Traceback" not in broker.log


def test_two_folders_of_gen_driver_in_one_search_path_are_told(start: Start, tmp_path: Path) -> None:
    """The first one's message loop serves the other's module, which may be of another version."""
    other = tmp_path / "other"
    texts = generate.files(
        str(tmp_path / "device.py"), [("exproto_other", "default")], [], stock=False, acl=False
    )
    generate.write(other, list(texts), force=False)
    broker = start(ECHO, module="exproto_other", env={"PYTHONPATH": f"{tmp_path}/driver:{other}"})
    device = broker.connect()
    device.send(b"hello\n")
    device.expect(b"hello\n")
    broker.expect_log(f"is in {other}, but the message loop in {tmp_path}/driver", "one folder of gen-driver")


def test_noise_reaches_the_log_and_never_the_port(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"noise\nagain\n")
    device.expect(b"still here\nagain\n")
    broker.expect_log("printed \\ud800 \N{SNOWMAN}\nhalf a line, and the rest\n", "logged \\udfff")
    assert len(broker.ups) == 1


def test_threads_use_verbs(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"thread\n")
    device.expect(b"from a thread\n")
    assert broker.published("from/thread") == b"payload"
    broker.expect_log("printed by a thread")


def test_large_and_binary_payloads(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    large = bytes(byte for byte in range(256) if byte != 10) * 4_112
    device.send(b"subscribe large/#\n")
    device.expect(b"done\n")
    device.send(b"publish large/1 " + large + b"\n")
    assert broker.published("large/1") == large
    device.wait(lambda device: len(device.received) > len(large) + len(b"done\n"))
    assert large in device.received
    device.expect(device.received)
    broker.publish("large/2", b"\xff\x00\xfe")
    device.expect(b"large/2 0 somebody 32 True \xff\x00\xfe\n")
    broker.publish(b"large/\xff\xfe", b"odd")
    device.expect("large/\ufffd\ufffd 0 somebody 32 True odd\n".encode())


def test_the_acl_is_asked(start: Start) -> None:
    broker = start(VERBS, acl=True)
    device = broker.connect()
    device.send(b"publish denied/1 x\npublish up/1 x\nsubscribe denied/#\nsubscribe down/1\n")
    device.expect(b"DeniedError: the broker's ACL doesn't allow to publish 'denied/1'\ndone\n")
    device.expect(b"DeniedError: the broker's ACL doesn't allow to subscribe 'denied/#'\ndone\n")
    assert [topic for topic, *_ in broker.messages] == ["up/1"]
    assert device.subscriptions == {"down/1": 1}


# --- what the broker may send


def test_calls_that_nobody_knows(start: Start, vm: Vm) -> None:
    broker = start(VERBS)
    device = broker.connect()
    dead = vm.request(Atom("dead_pid"))
    about = [(Atom("socktype"), Atom("tcp")), (Atom("peername"), ((127, 0, 0, 1), 1)), (Atom("sockname"), 1)]
    state = Atom("undefined")
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("no_such_callback", ()),
        ("__init__", (1, 2)),
        ("received", ()),
        ("received", (dead, b"x")),
        ("received", (dead, Atom("text"), state)),
        ("received", (b"no pid", b"x", state)),
        ("deliver", (dead, Atom("nothing"), state)),
        ("deliver", (dead, [[(Atom("topic"), b"x")]], state)),
        ("deliver", (dead, [[(Atom("topic"), b"x")], 1], state)),
        ("init", (dead, about)),
        ("init", (dead, Atom("nothing"))),
        ("init", (dead,)),
        ("terminated", (dead,)),
    ]
    for function, arguments in wrong:
        assert broker.call(function, *arguments)[0] == "error", (function, arguments)
    device.send(b"still here\n")
    device.expect(b"still here\n")
    assert len(broker.ups) == 1


def test_the_pid_of_a_dead_connection(start: Start, vm: Vm) -> None:
    broker = start(VERBS)
    dead = vm.request(Atom("dead_pid"))
    state = Atom("undefined")
    about = [
        (Atom("socktype"), Atom("tcp")),
        (Atom("peername"), ((127, 0, 0, 1), 1)),
        (Atom("sockname"), ((127, 0, 0, 1), 2)),
        (Atom("peercert"), Atom("nossl")),
    ]
    # One that was never seen: its end is nothing to us, its bytes are an event from before our start.
    for function, argument in (("terminated", b"gone"), ("received", b"who\n"), ("deliver", [])):
        assert broker.call(function, dead, argument, state) == ("ok", "ok")
    # One that dies behind our back: what is sent goes nowhere, a fence fails.
    assert broker.call("init", dead, about) == ("ok", (0, "undefined"))
    assert broker.call("received", dead, b"register ghost\npublish x y\nhello\n", state) == ("ok", "ok")
    assert broker.call("terminated", dead, b"{shutdown,kicked}", state) == ("ok", "ok")
    assert broker.published("end/ghost") == b"kicked: {shutdown,kicked}"
    device = broker.connect()
    device.send(b"still here\n")
    device.expect(b"still here\n")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x83",
        b"\x83h",
        b"\x82a\x01",
        b"\x83a\x01",
        b"\x83h\x05d\x00\x01C",
        b"\x83h\x05d\x00\x01Ca\x01",
        b"\x83h\x05d\x00\x01Cb\x00",
        b"\x83h\x05w\x01C",
        b"\x83h\xff" + b"j" * 3,
        b"\x83l\xff\xff\xff\xff",
        b"\x83m\xff\xff\xff\xffx",
        b"\x83P\x7f\xff\xff\xffxx",
        b"\x83" + b"h\x01" * 100_000 + b"j",
        encode((Atom("r"), 12_345, Atom("ok"))),
        encode((Atom("r"), [], Atom("ok"))),
        encode((Atom("e"), 12_345, (Atom("erlang"), Atom("error"), b"", []))),
        encode((Atom("M"), Atom("mail"))),
        encode((Atom("C"), 1)),
        encode((Atom("C"), 1.5, Atom("m"), Atom("f"), b"")),
        encode((Atom("C"), {}, 5, 6, [7])),
        encode({Atom("a"): 1}),
        b"\x83t\x00\x00\x00\x01jj",
        bytes(range(100)),
    ],
    ids=str,
)
def test_frames_that_are_no_calls(start: Start, frame: bytes) -> None:
    broker = start(ECHO)
    broker.raw(frame)
    device = broker.connect()
    device.send(b"hello\n")
    broker.raw(frame)
    device.expect(b"hello\n")
    broker.raw(frame)
    device.send(b"still here\n")
    device.expect(b"still here\n")
    assert len(broker.ups) == 1


def test_every_truncated_call_of_the_hot_path(start: Start) -> None:
    broker = start(ECHO)
    device = broker.connect()
    device.send(b"hello\n")
    device.expect(b"hello\n")
    call = (
        Atom("C"),
        1_000,
        Atom("exproto_default"),
        Atom("received"),
        [device.pid, b"x\n", Atom("undefined")],
    )
    whole = encode(call)
    for size in range(len(whole)):
        broker.raw(whole[:size])
    device.send(b"still here\n")
    device.expect(b"still here\n")
    assert len(broker.ups) == 1


# --- the process


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the driver as the broker does, with the port in our hands."""
    (tmp_path / "device.py").write_text(ECHO)
    target = str(tmp_path / "device.py")
    paths = generate.search_paths(tmp_path)
    texts = list(generate.files(target, [("exproto_default", "default")], paths, stock=False, acl=False))
    generate.write(tmp_path / "driver", texts, force=False)
    command = [sys.executable, "-u", "-m", "erlport.cli", "--packet=4", "--use_stdio"]
    env = {**os.environ, "PYTHONPATH": f"{decoy(tmp_path)}:{tmp_path / 'driver'}"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd="/"
    ) as process:
        yield process
        process.kill()


def write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def read(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    size = struct.unpack(">I", process.stdout.read(4))[0]
    return decode(process.stdout.read(size))


def frame_of(term: Any) -> bytes:
    data = encode(term)
    return struct.pack(">I", len(data)) + data


def nonsense(number: int) -> bytes:
    return frame_of((Atom("C"), number, Atom("exproto_default"), Atom("no_such"), []))


def answer(process: subprocess.Popen[bytes]) -> tuple[Any, Any]:
    """Return the kind and the number of the next answer; what goes to the log is left aside."""
    while (term := read(process))[0] in ("P", "C"):
        pass
    return term[0], term[1]


def refuse_calls(process: subprocess.Popen[bytes]) -> None:
    """Refuse whatever the driver asks of the broker, until it has ended."""
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        while head := process.stdout.read(4):
            term = decode(process.stdout.read(struct.unpack(">I", head)[0]))
            if term[0] == "C":
                write(process, frame_of((Atom("e"), term[1], (Atom("erlang"), Atom("undef"), b"", []))))


@pytest.mark.parametrize("rest", [b"", b"\x00", b"\x00\x00\x00\x10", b"\x00\x00\x00\x10half"], ids=str)
def test_the_end_of_the_stream_in_a_frame(process: subprocess.Popen[bytes], rest: bytes) -> None:
    write(process, nonsense(1) + rest)
    assert answer(process) == ("e", 1)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE) == 0


def test_a_call_for_another_module_is_refused(process: subprocess.Popen[bytes]) -> None:
    write(process, nonsense(1))
    assert answer(process) == ("e", 1)
    write(process, frame_of((Atom("C"), 2, Atom("exproto_other"), Atom("init"), [])))
    assert answer(process) == ("e", 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process(process: subprocess.Popen[bytes], number: int) -> None:
    """It waits for the answers that the broker still owes it, as `test_broker_calls.py` has it."""
    write(process, nonsense(1))
    assert answer(process) == ("e", 1)
    process.send_signal(number)
    refuse_calls(process)
    assert process.wait(PATIENCE) == 0


def test_frames_in_pieces_and_too_large_ones(process: subprocess.Popen[bytes]) -> None:
    for byte in nonsense(1):
        write(process, bytes([byte]))
    assert answer(process) == ("e", 1)
    write(process, b"".join(map(nonsense, range(2, 500))))
    assert [answer(process) for _ in range(2, 500)] == [("e", number) for number in range(2, 500)]
    # Whoever made a call that is too large waits for an answer all the same.
    size = 70_000_000
    call = encode((Atom("C"), 500, Atom("exproto_default"), Atom("deliver"), []))
    for piece in (struct.pack(">I", size + len(call)), call[:30], call[30:]):
        write(process, piece)
    for _ in range(70):
        write(process, bytes(size // 70))
    assert answer(process) == ("r", 500)
    deep: Any = []
    for _ in range(250):
        deep = [deep]
    call = encode((Atom("C"), 501, Atom("exproto_default"), Atom("deliver"), [deep]))
    call = call.replace(encode(deep)[1:], b"l\0\0\0\1" * 300 + b"j" * 301)
    write(process, struct.pack(">I", len(call)) + call)
    assert answer(process) == ("r", 501)


def test_a_device_of_a_process_that_died_is_closed(start: Start) -> None:
    broker = start(VERBS)
    idle, speaks, hears = broker.connect(), broker.connect(), broker.connect()
    for number, device in enumerate((idle, speaks, hears)):
        device.send(b"register d%d\nsubscribe down/%d\n" % (number, number))
        device.expect(b"done\ndone\n")
    broker.kill_driver()
    speaks.send(b"who\n")
    speaks.expect_end()
    broker.publish("down/2", b"x")
    hears.expect_end()
    broker.expect_log("restarted")
    fresh = broker.connect()
    fresh.send(b"hello\n")
    fresh.expect(b"hello\n")
    idle.hang_up()
    idle.expect_end()


def test_a_signal_to_a_driver_at_work(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect()
    device.send(b"register d1\n")
    device.expect(b"done\n")
    broker.kill_driver(signal.SIGTERM)
    assert broker.published("end/d1").startswith(b"shutdown")
    device.expect_end()


def test_what_a_device_sent_before_it_hung_up_is_published(start: Start) -> None:
    broker = start(VERBS)
    for number in range(20):
        device = broker.connect()
        device.send(b"register d%d\n" % number)
        device.expect(b"done\n")
        device.send(b"".join(b"publish up/%d %d\n" % (number, each) for each in range(5)))
        device.hang_up()
    for number in range(20):
        assert [broker.published(f"up/{number}") for _ in range(5)] == [b"%d" % each for each in range(5)]
        assert broker.published(f"end/d{number}").startswith(b"device closed")


def test_a_call_that_waits_when_the_driver_dies_ends_its_device_only(start: Start) -> None:
    broker = start(VERBS)
    waiting, idle = broker.connect(), broker.connect()
    idle.send(b"hello\n")
    idle.expect(b"hello\n")
    waiting.send(b"slow\n")
    waiting.expect(b"wait\n")
    broker.kill_driver()
    assert idle.closed is None
    waiting.send(b"hello\n")
    waiting.expect_end()


# --- kinds of connections


def test_udp(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect("udp")
    device.send(b"who are you\n")
    device.expect(repr(("udp", f"127.0.0.1:{1024 + device.id % 60_000}", None)).encode() + b"\n")
    device.send(b"x" * 4_000)
    device.expect(b"x" * 4_000 + b"\n")


def test_tls(start: Start) -> None:
    broker = start(VERBS)
    device = broker.connect("ssl", peercert=("CN=Client,O=EMQ", "Client"))
    device.send(b"who are you\n")
    device.wait(lambda device: device.received.endswith(b"\n"))
    assert b"Certificate(dn='CN=Client,O=EMQ', cn='Client')" in device.received
    nameless = broker.connect("ssl", peercert=(None, None), host=(0, 0, 0, 0, 0, 0, 0, 1))
    nameless.send(b"who are you\n")
    nameless.wait(lambda device: device.received.endswith(b"\n"))
    assert b"'[::1]:" in nameless.received
    assert nameless.received.endswith(b", None)\n")


# --- Pythons


def pythons() -> list[str]:
    """Return the Pythons of this machine that the driver supports."""
    found = Path.home().glob(".pyenv/versions/3.1*/bin/python3")
    return sorted({sys.executable, *map(str, found)})


@pytest.mark.parametrize("python", pythons())
def test_every_python_starts_and_answers(vm: Vm, tmp_path: Path, python: str) -> None:
    probe = "import sys; print(sys.version_info >= (3, 10))"
    done = subprocess.run(
        [python, "-c", probe], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.stdout.strip() != "True":
        pytest.skip(f"{python} is too old or doesn't start")
    (tmp_path / "device.py").write_text(VERBS)
    paths = [str(tmp_path), str(packages(tmp_path / "packages")), str(ROOT)]
    with contextlib.ExitStack() as stack:
        target = str(tmp_path / "device.py")
        broker = begin(vm, stack, tmp_path, target, paths=paths, python=python)
        device = broker.connect()
        device.send(b"hello\nregister d1 s3cret\nnoise\n")
        device.expect(b"hello\ndone\nstill here\n")
        device.send(b"bye\n")
        device.expect(b"so\nlong\n")
        device.expect_end()
        assert broker.published("end/d1").startswith(b"terminated")


# --- many at once


def test_a_slow_handler_delays_its_own_device_only(start: Start) -> None:
    broker = start(VERBS)
    slow, other = broker.connect(), broker.connect()
    slow.send(b"slow\nbehind it\n")
    slow.expect(b"wait\n")
    other.send(b"hello\n")
    other.expect(b"hello\n")
    assert slow.received == b""
    other.send(b"open\n")
    other.expect(b"opened\n")
    slow.expect(b"slow\nbehind it\n")


def test_a_thousand_connections_at_once(start: Start) -> None:
    broker = start(VERBS)
    devices = [broker.connect() for _ in range(1_000)]
    for number, device in enumerate(devices):
        device.send(b"register d%d\nsubscribe down/%d\n" % (number, number))
    for device in devices:
        device.expect(b"done\ndone\n")
    for number, device in enumerate(devices):
        device.send(b"who\n")
        broker.publish(f"down/{number}", b"x")
    for number, device in enumerate(devices):
        device.wait(lambda device: device.received.count(b"\n") == 2)
        who, down = sorted(device.received.splitlines(), key=len)
        assert who == b"d%d" % number
        assert down.startswith(b"down/%d " % number)


def resident(pid: int) -> int:
    """Return the resident memory of a process, in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_burst_of_ten_thousand_callbacks(start: Start, vm: Vm) -> None:
    """Nothing is lost, and memory doesn't grow from burst to burst."""
    broker = start(ECHO)
    sizes = []
    for _ in range(6):
        outcomes = vm.request(Atom("burst"), broker.id, 10_000, 2, patience=60.0)
        assert outcomes == [("true", "true")] * 2
        sizes.append(resident(broker.ups[-1]))
    assert len(broker.ups) == 1
    # The first bursts fill the allocator's pools; a message kept of each callback would add 16 MB a burst.
    assert sizes[5] < sizes[2] * 1.25


def test_drivers_stand_beside_each_other(vm: Vm, start: Start) -> None:
    brokers: list[Broker] = [start(ECHO) for _ in range(3)]
    for broker in brokers:
        broker.connect().send(b"x\n")
    for broker in brokers:
        device = broker.connect()
        device.send(b"hello\n")
        device.expect(b"hello\n")
