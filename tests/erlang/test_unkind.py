"""What the real broker does to a driver, on an Erlang VM that does the same."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest

from exproto_app.hosts.emqx42.terms import Atom

from .broker import Device, Vm
from .conftest import Start
from .device_app import APP, echoes, registered

pytestmark = pytest.mark.system

# --- UDP: all peers share a socket


ENDS = {
    "terminate": (b"bye\n", b"terminated"),
    "handler": (b"raise\n", b"error"),
    "timer": (b"silence\n", b"timeout"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_udp_peer_costs_the_others_nothing(start: Start, end: str) -> None:
    broker = start(APP)
    device, other = registered(broker, "d1", "udp"), registered(broker, "d2", "udp")
    data, reason = ENDS[end]
    device.send(data)
    assert broker.published("gone/d1") == reason
    device.wait(lambda device: device.closed)
    echoes(other)
    device.send(b"hello again\n")
    device.wait(lambda device: device.received.endswith(b"hello again\n"))
    assert not broker.socket_closed


def test_a_udp_peer_that_is_kicked_costs_the_others_nothing(start: Start, vm: Vm) -> None:
    broker = start(APP)
    device, other = registered(broker, "d1", "udp"), registered(broker, "d2", "udp")
    vm.request(Atom("kick"), device.id)
    assert broker.published("gone/d1") == b"kicked"
    echoes(other)
    assert not broker.socket_closed


def test_a_udp_peer_that_is_taken_over_costs_the_others_nothing(start: Start) -> None:
    broker = start(APP)
    other = registered(broker, "d2", "udp")
    registered(broker, "d1", "udp")
    registered(broker, "d1", "udp")
    assert broker.published("gone/d1") == b"taken over"
    echoes(other)
    assert not broker.socket_closed


def test_udp_peers_from_before_a_restart_cost_the_listener_nothing(start: Start) -> None:
    broker = start(APP)
    speaks, waits, silent = (broker.connect("udp") for _ in range(3))
    for device in (speaks, waits, silent):
        echoes(device)
    broker.kill_driver()
    for device in (speaks, waits, silent):
        device.wait(lambda device: device.closed)
        echoes(device)
    assert not broker.socket_closed


def test_the_socket_of_a_udp_listener_is_opened_again(start: Start) -> None:
    """A process that dies at work leaves calls unanswered, and their peers' ends close it."""
    broker = start(APP, behaves={"listener": Atom("udp")})
    devices = [broker.connect("udp") for _ in range(10)]
    for device in devices:
        echoes(device)
    devices[0].send(b"sleep\n")
    for device in devices[1:]:
        device.send(b"hello\n")
    broker.kill_driver()
    broker.expect_log("the socket of the UDP listener devices:udp is closed; it is opened again")
    broker.vm.wait(lambda: not broker.socket_closed, "the socket")
    for device in devices:
        device.wait(lambda device: device.closed)
        device.send(b"hello again\n")
        device.wait(lambda device: device.received.endswith(b"hello again\n"))


def test_an_app_that_cant_be_imported_costs_the_udp_listener_nothing(start: Start) -> None:
    broker = start("import no_such_thing\n")
    device = broker.connect("udp")
    device.wait(lambda device: device.closed)
    device.send(b"hello\n")
    broker.expect_log("no_such_thing")
    assert not broker.socket_closed


def test_a_datagram_that_cant_leave_is_dropped_and_nothing_else(start: Start) -> None:
    broker = start(APP)
    device, other = broker.connect("udp"), broker.connect("udp")
    device.send(b"large\n")
    echoes(device)
    echoes(other)
    assert broker.datagrams_dropped == [70_001]


def test_undecided_udp_peers_cost_the_listener_nothing(start: Start) -> None:
    shared = """
from exproto_app import App
from exproto_app.framing import Line
app = App()
for name in ("a", "b"):
    router = app.protocol(name, framing=Line(), sniff=name.encode())
    router.on_received(lambda conn, frame: frame)
"""
    broker = start(shared, protocol="a,b")
    stranger, device = broker.connect("udp"), broker.connect("udp")
    stranger.send(b"?\n")
    stranger.wait(lambda device: device.closed)
    device.send(b"ab\n")
    device.expect(b"ab\n")
    assert not broker.socket_closed


# --- terms


def test_what_the_app_publishes_arrives(start: Start) -> None:
    broker = start(APP)
    device = broker.connect()
    device.send(b"subscribe news\napp news\n")
    device.wait(lambda device: device.received.count(b"\n") == 3)
    assert sorted(device.received.splitlines()) == [b"by the app", b"done", b"done"]


def test_what_a_device_published_right_before_it_hung_up_arrives(start: Start) -> None:
    broker = start(APP)
    watcher = broker.connect()
    watcher.send(b"subscribe up\n")
    watcher.expect(b"done\n")
    for number in range(50):
        device = broker.connect()
        device.send(b"register d%d\npublish %d\npublish %d\n" % (number, number, number))
        device.hang_up()
    watcher.wait(lambda device: device.received.count(b"\n") == 100)
    assert sorted(map(int, watcher.received.split())) == sorted([*range(50)] * 2)


def test_a_login_with_a_password_right_before_the_hang_up_is_finished(start: Start) -> None:
    broker = start(APP)
    for number in range(20):
        device = broker.connect()
        device.send(b"login d%d\n" % number)
        device.hang_up()
    for number in range(20):
        assert [broker.published(f"login/d{number}") for _ in range(2)] == [b"1", b"2"]
        assert broker.published(f"gone/d{number}") == b"device closed"


def test_a_busy_process_finishes_logins_of_devices_that_hang_up(start: Start) -> None:
    broker = start(APP)
    devices = [broker.connect() for _ in range(50)]
    for number, device in enumerate(devices):
        device.send(b"busy d%d\n" % number)
        device.hang_up()
    for number in range(len(devices)):
        assert broker.published(f"gone/d{number}") == b"device closed"


def test_a_connection_from_before_a_restart_is_resumed(start: Start) -> None:
    text = APP.replace("App(framing", "App(resume=True, framing")
    broker = start(text)
    device = broker.connect()
    device.send(b"subscribe down\n")
    device.expect(b"done\n")
    broker.kill_driver()
    broker.publish("down", b"still there")
    device.expect(b"still there\n")
    echoes(device)


def test_a_resumed_connection_is_taken_over(start: Start) -> None:
    broker = start(APP.replace("App(framing", "App(resume=True, framing"))
    older = registered(broker, "d1")
    broker.kill_driver()
    echoes(older)
    newer = registered(broker, "d1")
    older.expect_end()
    echoes(newer)


# --- authentication and ACL


KEYS = {
    "zone",
    "protocol",
    "peerhost",
    "sockport",
    "clientid",
    "username",
    "password",
    "mountpoint",
    "is_bridge",
    "is_superuser",
}


def test_plugins_get_every_key_that_the_brokers_own_connections_have(start: Start) -> None:
    broker = start(APP, acl=True)
    device = broker.connect()
    device.send(b"register d1 s3cret\nask up\n")
    device.expect(b"done\ndone\n")
    assert [function for function, _ in broker.asked] == ["authenticate", "check_acl"]
    assert all(keys.keys() >= KEYS for _, keys in broker.asked)
    broker.asked.clear()
    device = broker.connect("ssl", peercert=("CN=Client", "Client"))
    device.send(b"register d2 s3cret\nask up\n")
    device.expect(b"done\ndone\n")
    assert all(keys.keys() >= KEYS | {"dn", "cn"} for _, keys in broker.asked)


@pytest.mark.parametrize(
    "answer",
    [
        Atom("undefined"),
        Atom("ok"),
        (Atom("ok"), Atom("undefined")),
        (Atom("error"), Atom("timeout")),
        (Atom("ok"), {Atom("auth_result"): Atom("not_authorized")}),
        [],
    ],
    ids=str,
)
def test_an_answer_about_a_password_that_isnt_understood_is_a_refusal(start: Start, answer: Any) -> None:
    broker = start(APP, behaves={"authenticate": answer})
    device = broker.connect()
    device.send(b"register d1 s3cret\n")
    device.wait(lambda device: device.received.endswith(b"\n"))
    assert device.received.startswith(b"DeniedError: the broker refuses 'd1'")
    assert device.registered is None


@pytest.mark.parametrize("answer", [Atom("undefined"), (Atom("ok"), Atom("allow")), b"allow", []], ids=str)
def test_an_answer_of_the_acl_that_isnt_understood_is_a_refusal(start: Start, answer: Any) -> None:
    broker = start(APP, acl=True, behaves={"check_acl": answer})
    device = broker.connect()
    device.send(b"ask up\n")
    device.wait(lambda device: device.received.endswith(b"\n"))
    assert device.received.startswith(b"DeniedError")
    assert broker.messages == []


def test_a_plugin_whose_hook_crashes_lets_nobody_in(start: Start) -> None:
    broker = start(APP, behaves={"crashing": Atom("true")})
    device = broker.connect()
    device.send(b"register d1 s3cret\n")
    device.wait(lambda device: device.received.endswith(b"\n"))
    assert device.received.startswith(b"DeniedError: the broker refuses 'd1'")
    assert b"s3cret" not in device.received
    assert "s3cret" not in broker.log


def test_an_acl_whose_hooks_crash_allows_nothing(start: Start) -> None:
    broker = start(APP, acl=True, behaves={"crashing": Atom("true")})
    device = broker.connect()
    device.send(b"ask up\nsubscribe down\n")
    device.wait(lambda device: device.received.count(b"\n") == 2)
    for line in device.received.splitlines():
        assert line.startswith(b"DeniedError: the broker's ACL gives no answer to ")
        assert b"a plugin's hook crashed" in line
    assert broker.messages == []


@pytest.mark.parametrize("what", ["old", "nobody_judges"])
def test_where_no_rule_fits_the_brokers_default_counts(start: Start, what: str) -> None:
    broker = start(APP, acl=True, behaves={what: Atom("true")})
    device = broker.connect()
    device.send(b"ask up\nask denied/1\n")
    device.expect(b"done\nDeniedError: the broker's ACL doesn't allow to publish 'denied/1'\n")


def test_the_acl_holds_behind_the_hang_up_too(start: Start) -> None:
    broker = start(APP.replace('"up", frame', '"denied/1", frame'), acl=True)
    device = broker.connect()
    device.send(b"register d1\npublish 1\n")
    device.hang_up()
    assert broker.published("gone/d1") == b"device closed"
    assert [topic for topic, *_ in broker.messages if topic.startswith("denied")] == []


def test_a_superuser_passes_the_acl(start: Start) -> None:
    broker = start(APP, acl=True)
    device = broker.connect()
    device.send(b"ask denied/1\nregister root s3cret\nask denied/1\n")
    device.wait(lambda device: device.received.count(b"\n") == 3)
    assert [line[:6] for line in device.received.splitlines()] == [b"Denied", b"done", b"done"]


def test_no_certificate_is_none(start: Start) -> None:
    device = start(APP).connect("ssl", peercert=(None, None))
    device.send(b"cert\n")
    device.expect(b"None\n")


# --- the client


def test_subscriptions_from_before_a_register_survive_it(start: Start) -> None:
    broker = start(APP)
    device = broker.connect()
    device.send(b"subscribe early\nregister d1\nsubscribe late\n")
    device.expect(b"done\n" * 3)
    for topic in ("early", "late"):
        broker.publish(topic, topic.encode())
        device.expect(topic.encode() + b"\n")
    assert device.closed is None


def test_a_client_is_taken_over_across_listeners(vm: Vm, start: Start) -> None:
    one, two = start(APP), start(APP)
    older, newer = registered(one, "d1"), registered(two, "d1")
    older.expect_end()
    assert one.published("gone/d1") == b"taken over"
    echoes(newer)
    udp = registered(one, "d1", "udp")
    newer.expect_end()
    registered(two, "d1")
    assert [one.published("gone/d1"), two.published("gone/d1")] == [b"taken over"] * 2
    echoes(udp)  # a new connection of that peer
    assert not one.socket_closed


def one_left(one: Device, other: Device) -> bool:
    return (one.closed is None) != (other.closed is None)


def test_two_that_register_at_once_leave_one(start: Start) -> None:
    brokers = [start(APP), start(APP)]
    for number in range(10):
        devices = [broker.connect() for broker in brokers]
        for device in devices:
            device.send(b"register d%d\n" % number)
        first, second = devices
        first.vm.wait(partial(one_left, first, second), "one end")
        left = second if first.closed else first
        left.expect(b"done\n")
        echoes(left)


def test_logins_ask_no_process_of_the_broker_for_each_device(start: Start) -> None:
    broker = start(APP)
    first = broker.connect()
    for _ in range(20):  # meanwhile the process has looked for connections from before its start
        echoes(first)
    devices = [broker.connect() for _ in range(50)]
    for number, device in enumerate(devices):
        device.send(b"register d%d\nask up\n" % number)
    for device in devices:
        device.expect(b"done\ndone\n")
    # At most the first one, which may have been there when the process began.
    assert broker.called.count(("emqx_exproto_conn", "info")) <= 1
    assert ("emqx_cm", "lookup_channels") not in broker.called  # told together, see the tests of `Calls`


def test_an_mqtt_client_ends_when_a_device_takes_its_name(start: Start, vm: Vm) -> None:
    broker = start(APP)
    gone: list[Any] = []
    vm.owners["mqtt"] = gone.append
    vm.request(Atom("mqtt"), b"d1")
    echoes(registered(broker, "d1"))
    vm.wait(lambda: gone == [(Atom("discarded"), b"d1")], "the client's end")


@pytest.mark.parametrize("name", ["d1", "site/1/d1", "\N{SNOWMAN}"])
def test_a_device_ends_when_an_mqtt_client_takes_its_name(start: Start, vm: Vm, name: str) -> None:
    broker = start(APP.replace("App(framing", "App(slash=True, framing"))
    device, other = registered(broker, name), registered(broker, "d2")
    vm.request(Atom("mqtt"), name.encode())
    assert broker.published(f"gone/{name}") == b"taken over"
    device.expect_end()
    echoes(other)


def test_a_device_that_came_later_than_an_mqtt_client_stays(start: Start) -> None:
    broker = start(APP)
    device = registered(broker, "d1")
    for node in ("emqx@127.0.0.1", "other@127.0.0.1"):
        broker.publish(f"$SYS/brokers/{node}/clients/d1/connected", b"{}")
        broker.publish(f"$SYS/brokers/{node}/clients/d1/disconnected", b"{}")
    registered(broker, "d2")
    echoes(device)


# --- the process starts anew


def test_silent_connections_are_closed_after_a_restart(start: Start) -> None:
    broker = start(APP)
    devices = [broker.connect() for _ in range(200)]
    for device in devices:
        echoes(device)
    broker.kill_driver()
    for device in devices:
        device.expect_end()
    broker.expect_log("restarted")
    echoes(broker.connect())


# --- the log


def test_lines_reach_the_brokers_own_log_whole(start: Start) -> None:
    broker = start(APP, env={"EXPROTO_LOG_FORMAT": "json"})
    device = broker.connect()
    device.send('print … {"a": "☃"}\n'.encode())
    device.expect(b"shown\n")
    broker.expect_log('"right"')
    printed, *logged = [line for line in broker.lines if "exproto_app" not in line]
    assert printed == '… {"a": "☃"}\n'
    assert [re.sub(r'.*"level": "(\w+)".*\n', r"\1", line) for line in logged] == ["error", "info"]
    assert broker.levels[-3:] == ["warning", "error", "warning"]


def test_much_that_is_printed_holds_nobody_and_arrives(start: Start) -> None:
    broker = start(APP)
    device, other = broker.connect(), broker.connect()
    device.send(b"much\n")
    echoes(other)
    device.expect(b"printed\n")
    broker.expect_log("line 19999\n")
    assert [line for line in broker.lines if line.startswith("line ")] == [
        f"line {n}\n" for n in range(20_000)
    ]


# --- devices that don't read


def test_what_is_sent_to_a_device_that_doesnt_read_is_bounded(start: Start) -> None:
    broker = start(APP)
    device, other = broker.connect(), broker.connect()
    device.mail(Atom("stop_reading"))
    device.send(b"flood\n")
    for _ in range(20):
        echoes(other)
    assert len(device.received) <= 200_000
    device.mail(Atom("reads_again"))
    device.expect((b"x" * 100_000 + b"\n") * 100)


def test_a_device_that_never_reads_is_lost(start: Start) -> None:
    text = APP.replace("App(framing", "App(limits=Limits(stall=0.2), framing").replace(
        "Router\n", "Router, Limits\n"
    )
    broker = start(text)
    device = broker.connect()
    device.send(b"register d1\n")
    device.expect(b"done\n")
    device.mail(Atom("stop_reading"))
    device.send(b"flood\n")
    assert broker.published("gone/d1") == b"lost"
    device.wait(lambda device: device.closed)


def test_what_a_device_publishes_is_bounded_in_the_broker_too(start: Start, vm: Vm) -> None:
    broker = start(APP)
    device, other = broker.connect(), broker.connect()
    device.mail(Atom("stop_reading"))
    device.send(b"hello\nmany 8000\n")
    for _ in range(20):
        echoes(other)
    assert vm.request(Atom("mailbox"), device.id) < 4_500
    device.mail(Atom("reads_again"))
    device.expect(b"hello\n")
    device.expect(b"all\n")
    published = [int(payload) for topic, payload, *_ in broker.messages if topic == "many"]
    assert published == [*range(8_000)]


def test_a_connection_whose_process_ends_without_a_word_ends_here_too(start: Start, vm: Vm) -> None:
    soon = "import exproto_app.hosts.emqx42.liveness as liveness\nliveness.SWEEP = 0.05\n"
    broker = start(soon + APP)
    for socktype in ("tcp", "udp"):
        device, other = registered(broker, socktype, socktype), registered(broker, "d2", socktype)
        vm.request(Atom("kill"), device.id)
        assert broker.published(f"gone/{socktype}") == b"lost"
        echoes(other)
        echoes(registered(broker, socktype, socktype))


# --- bad input


def test_messages_that_no_client_could_have_published(start: Start, vm: Vm) -> None:
    broker = start(APP)
    device = broker.connect()
    echoes(device)

    def message(payload: Any, qos: Any = 0) -> Any:
        parts = {"id": bytes(16), "qos": qos, "from": Atom("a_plugin"), "topic": b"t", "payload": payload}
        return [*((Atom(name), value) for name, value in parts.items()), (Atom("timestamp"), 1)]

    batch = [message(b"one"), message(Atom("undefined")), message([b"t", [119], [[111]]]), message(b"", 7), 8]
    assert broker.call("deliver", device.pid, batch, Atom("undefined"))[0] == "ok"
    device.expect(b"one\ntwo\n")
    broker.expect_log("a message that can't be read is dropped", "this is no message", "('qos'), 7)")
    echoes(device)


def test_a_broker_whose_functions_all_fail(start: Start) -> None:
    broker = start(APP, acl=True, behaves={"fails": Atom("true")})
    device = broker.connect()
    device.send(b"hello\nregister d1 s3cret\nask up\napp news\nprint x\n")
    device.wait(lambda device: device.received.count(b"\n") == 5)
    hello, login, ask, announce, shown = device.received.splitlines()
    assert (hello, shown) == (b"hello", b"shown")
    assert [line.partition(b":")[0] for line in (login, ask, announce)] == [
        b"DeniedError",
        b"DeniedError",
        b"UnavailableError",
    ]
    broker.expect_log("x\n")
    device.hang_up()
    device.wait(lambda device: device.closed)
    assert broker.messages == []


CUT = """
import os, signal
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())

@app.on_received
def echo(conn: Connection, frame: bytes) -> bytes:
    return frame

@app.on_received(b"cut")
def cut(conn: Connection, frame: bytes) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > 2 and os.readlink(f"/proc/self/fd/{fd}").startswith(("pipe:", "socket:")):
                os.write(fd, b"\\0\\0\\1\\0\\x83h")  # half a frame
        except OSError:
            pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_driver_that_dies_in_the_middle_of_a_frame_costs_its_own_listener_its_devices_only(
    start: Start,
) -> None:
    """The next one begins with a whole frame, and other listeners go on."""
    broker, other = start(CUT), start(CUT)
    device, stranger = broker.connect(), other.connect()
    device.send(b"hello\n")
    device.expect(b"hello\n")
    device.send(b"cut\n")
    device.expect_end()
    broker.vm.wait(lambda: len(broker.ups) == 2, "the next driver")
    for one in (broker.connect(), stranger):
        one.send(b"still here\n")
        one.expect(b"still here\n")
    assert len(other.ups) == 1
