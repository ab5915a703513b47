"""Loops over connections while some of them come and go."""

from __future__ import annotations

from exproto_app import App, Connection
from exproto_app.framing import Line
from exproto_app.testing import TestClient


def test_a_handler_that_loops_over_children_may_await_while_one_ends() -> None:
    app = App(framing=Line())
    seen: list[str] = []

    @app.on_received
    async def poll(conn: Connection, frame: bytes) -> None:
        for name in "abc":
            await conn.child(name)
        for name, child in conn.children.items():
            seen.append(name)
            conn.children["c"].terminate()
            await child.publish("t", b"", qos=1)
            if name == "b":
                break

    with TestClient(app) as line:
        line.send(b"poll\n")
        assert seen == ["a", "b"]
        assert not line.closed
        assert list(line.connection.children) == ["a", "b"]


def test_a_loop_over_the_connections_of_an_app_sees_those_of_its_beginning() -> None:
    app = App(framing=Line())

    @app.on_received
    def login(conn: Connection, frame: bytes) -> None:
        conn.register(frame.decode())

    with TestClient(app) as device:
        device.send(b"a\n")
        other = device.another()
        other.send(b"b\n")
        for conn in app.connections.values():
            conn.terminate()
            device.advance(0)
        assert (dict(app.connections), len(app.connections), "a" in app.connections) == ({}, 0, False)
