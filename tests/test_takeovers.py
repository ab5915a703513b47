"""A device that comes back elsewhere is the same device; two that fight for one name are paced."""

from __future__ import annotations

import logging

import pytest

from exproto_app import App, Connection, Limits, Message
from exproto_app.framing import Line
from exproto_app.testing import TestClient


def app_of(*, roaming: bool = False) -> App[None, bytes]:
    """Return an app whose devices say what they want."""
    app = App(framing=Line(), roaming=roaming, limits=Limits(datagram_idle=30))

    @app.on_received(b"login ")
    def login(conn: Connection, frame: bytes) -> bytes:
        name, _, password = frame[6:].decode().partition(" ")
        conn.register(name, password=password or None, will=Message(f"will/{name}", b"offline"))
        return b"hello"

    @app.on_received(b"sub ")
    def subscribe(conn: Connection, frame: bytes) -> None:
        conn.subscribe(frame[4:].decode(), qos=1)

    @app.on_received
    def data(conn: Connection, frame: bytes) -> bytes:
        conn.publish("up", frame)
        return b"got " + frame

    @app.on_deliver
    def down(conn: Connection, message: Message) -> bytes:
        return message.topic.encode() + b" " + message.payload

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        conn.publish("gone", f"{conn.info.peername.port} {reason}".encode())

    return app


class TestTakeover:
    """The newer connection continues what the older one had."""

    def test_subscriptions_stay_and_nobody_sees_an_offline(self) -> None:
        with TestClient(app_of()) as older:
            older.send(b"login d\nsub jobs/d\n")
            newer = older.another()
            newer.send(b"login d\n")
            assert (older.closed, older.close_reason) == (True, "taken over")
            newer.publish("jobs/d", b"work", qos=1)
            assert newer.recv() == b"hello\njobs/d work\n"
            assert Message("will/d", b"offline") not in older.published
            newer.close()
            assert Message("will/d", b"offline") in newer.published

    def test_what_waited_for_the_older_one_comes_to_the_newer(self) -> None:
        with TestClient(app_of()) as older:
            older.send(b"login d\nsub jobs/d\n")
            older.stop_reading()
            for _ in range(3):
                older.send(b"x" * 30_000 + b"\n")  # more than it may leave unread: turns wait
            older.publish("jobs/d", b"work", qos=1)
            newer = older.another()
            newer.send(b"login d\n")
            newer.advance(20)
            assert newer.recv() == b"hello\njobs/d work\n"

    def test_a_refused_login_takes_nothing(self) -> None:
        with TestClient(app_of(), login=lambda client, password: password == "s3cret") as older:
            older.send(b"login d s3cret\nsub jobs/d\n")
            newer = older.another()
            newer.send(b"login d wrong\n")
            assert (newer.closed, older.closed) == (True, False)
            older.recv()
            older.publish("jobs/d", b"work")
            assert older.recv() == b"jobs/d work\n"


class TestFights:
    """Takeovers that repeat."""

    def test_they_are_told_once_with_both_addresses_and_paced(self, caplog: pytest.LogCaptureFixture) -> None:
        with TestClient(app_of()) as first, caplog.at_level(logging.WARNING):
            first.send(b"login d\n")
            devices = [first]
            for _ in range(5):
                device = first.another()
                device.send(b"login d\n")
                devices.append(device)
            assert devices[-1].connection.client is not None
            seventh, eighth = first.another(), first.another()
            seventh.send(b"login d\nx\n")
            eighth.send(b"login d\nx\n")
            assert (seventh.connection.client, eighth.connection.client) == (None, None)
            seventh.advance(10)
            assert (seventh.recv(), eighth.recv()) == (b"hello\ngot x\n", b"hello\n")
            eighth.advance(2)
            assert eighth.recv() == b"got x\n"
            assert (seventh.closed, eighth.closed) == (True, False)
            (line,) = [r.getMessage() for r in caplog.records if "repeatedly" in r.getMessage()]
            assert "clientid 'd'" in line
            ports = [device.connection.info.peername for device in devices]
            assert f"from {ports[4]} by {ports[5]}" in line

    def test_those_that_would_wait_too_long_are_refused(self) -> None:
        with TestClient(app_of()) as first:
            first.send(b"login d\n")
            others = []
            for _ in range(12):
                other = first.another()
                other.send(b"login d\n")
                others.append(other)
            assert [other.closed for other in others[4:]] == [False] * 7 + [True]
            assert "repeatedly" in others[-1].close_detail

    def test_one_that_hangs_up_meanwhile_takes_nothing_over(self) -> None:
        with TestClient(app_of(), login=lambda client, password: True) as first:
            first.send(b"login d\n")
            for _ in range(5):
                holder = first.another()
                holder.send(b"login d\n")
            waiting = first.another()
            waiting.send(b"login d\nx\n")
            waiting.close()
            first.advance(20)
            assert not holder.closed
            assert Message("up", b"x") not in waiting.published

    def test_a_device_that_comes_back_now_and_then_is_never_delayed(self) -> None:
        with TestClient(app_of()) as first:
            for _ in range(20):
                device = first.another()
                device.send(b"login d\n")
                assert device.connection.client is not None
                first.advance(3)


class TestRoaming:
    """Several addresses of one device on UDP are one client."""

    def pair(self, first: TestClient) -> TestClient:
        """Return a second address of the device."""
        second = first.another()
        first.send(b"login gw")
        second.send(b"login gw")
        assert [first.recv(), second.recv()] == [b"hello\n"] * 2
        return second

    def test_each_is_answered_and_nobody_is_taken_over(self) -> None:
        with TestClient(app_of(roaming=True), socktype="udp") as push:
            pull = self.pair(push)
            push.send(b"1")
            pull.send(b"2")
            push.send(b"3")
            assert (push.recv(), pull.recv()) == (b"got 1\ngot 3\n", b"got 2\n")
            assert not push.closed
            assert list(push.app.connections) == ["gw"]

    def test_messages_go_to_the_address_that_has_subscribed(self) -> None:
        with TestClient(app_of(roaming=True), socktype="udp") as pull:
            push = self.pair(pull)
            pull.send(b"sub down/gw")
            push.send(b"1")
            push.publish("down/gw", b"now", qos=1)
            assert (pull.recv(), push.recv()) == (b"down/gw now\n", b"got 1\n")
            push.send(b"sub down/gw")  # the latest one counts, and each message comes once
            push.publish("down/gw", b"there", qos=1)
            assert (pull.recv(), push.recv()) == (b"", b"down/gw there\n")

    @pytest.mark.parametrize("stays", [0, 1])
    def test_one_that_falls_silent_leaves_the_client_and_its_subscriptions_to_the_other(
        self, stays: int
    ) -> None:
        with TestClient(app_of(roaming=True), socktype="udp") as older:
            both = [older, self.pair(older)]
            both[1 - stays].send(b"sub down/gw")
            for _ in range(4):
                both[stays].send(b"here")
                older.advance(10)
            assert both[1 - stays].close_reason == "taken over"
            both[stays].recv()
            older.publish("down/gw", b"now", qos=1)
            assert both[stays].recv() == b"down/gw now\n"
            assert list(older.app.connections) == ["gw"]
            older.advance(60)
            assert both[stays].close_reason == "timeout"
            published = [message.topic for device in both for message in device.published]
            assert published.count("will/gw") == 1
            assert list(older.app.connections) == []

    def test_addresses_that_join_are_no_fight_for_the_name(self, caplog: pytest.LogCaptureFixture) -> None:
        with TestClient(app_of(roaming=True), socktype="udp") as first:
            first.send(b"login gw")
            others = [first.another() for _ in range(7)]
            for other in others:
                other.send(b"login gw")
                other.send(b"1")
            assert [other.recv() for other in others] == [b"hello\ngot 1\n"] * 7
            assert "taken over" not in caplog.text

    def test_the_number_of_addresses_is_bounded(self) -> None:
        with TestClient(app_of(roaming=True), socktype="udp") as first:
            first.send(b"login gw")
            for _ in range(8):
                other = first.another()
                first.advance(3)
                first.send(b"still here")
                other.send(b"login gw")
            assert first.close_reason == "taken over"
            assert not other.closed

    def test_on_tcp_the_newer_one_takes_over_all_the_same(self) -> None:
        with TestClient(app_of(roaming=True)) as older:
            newer = older.another()
            older.send(b"login gw\n")
            newer.send(b"login gw\n")
            assert older.close_reason == "taken over"

    def test_without_it_the_newer_address_takes_over(self) -> None:
        with TestClient(app_of(), socktype="udp") as older:
            self.pair(older)
            assert older.close_reason == "taken over"

    def test_the_login_of_each_is_checked(self) -> None:
        login = lambda client, password: password == "s3cret"  # noqa: E731 - as users write it
        with TestClient(app_of(roaming=True), socktype="udp", login=login) as first:
            first.send(b"login gw s3cret")
            other = first.another()
            other.send(b"login gw wrong")
            assert (first.closed, other.closed) == (False, True)
