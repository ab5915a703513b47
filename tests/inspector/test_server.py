"""What the inspector's server tells and does, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import urllib.request
from pathlib import Path

import aiohttp
import pytest

from exproto_app import App, Connection
from exproto_app.cli.observe import TOKEN, share_token
from exproto_app.errors import SetupError
from exproto_app.framing import Line
from exproto_app.inspector import Inspector
from exproto_app.inspector.access import GUESSES
from exproto_app.inspector.server import CLIENTS, PAGES
from exproto_app.models import Address
from exproto_app.testing import replay
from exproto_app.traffic.recording import parse

from ..test_cli import COMMAND, ECHO, gateway, run
from .site import MARKUP, Site, fleet, on_site

pytestmark = pytest.mark.live


def test_the_state_tells_protocols_listeners_and_counters() -> None:
    async def test(site: Site) -> None:
        await site.device(login="truck")
        status, state = await site.get("/api/state")
        assert status == 200
        default, meter = state["protocols"]
        address = site.gateway.addresses[0][2]
        assert (default["name"], default["connections"]) == ("default", 1)
        assert default["listeners"] == [f"tcp://{address}"]
        assert (meter["name"], meter["connections"], meter["listeners"][0][:6]) == ("meter", 0, "udp://")
        assert state["hub"] == "the embedded hub"
        assert state["counters"]["connections_opened"] == 1

    on_site(test)


def test_a_row_tells_who_is_connected_and_what_it_did() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        await device.ask("position")
        (row,) = await site.rows()
        local = device.writer.get_extra_info("sockname")
        assert row["peer"] == f"127.0.0.1:{local[1]}"
        assert (row["clientid"], row["protocol"], row["state"]) == ("truck", "default", "registered")
        assert (row["frames"], row["received"], row["sent"]) == (2, 21, 20)
        assert row["since"] <= row["last"]
        assert (row["queue"], row["queues"]) == (0, {})
        assert await site.get(f"/api/connections/{row['id']}") == (
            200,
            {**row, "last": pytest.approx(row["last"], abs=20)},
        )
        assert (await site.get("/api/connections/none"))[0] == 404

    on_site(test)


def test_rows_are_searched_sorted_and_given_in_parts() -> None:
    async def test(site: Site) -> None:
        for number in range(12):
            await site.device(login=f"Truck-{number:02}")
        assert [row["clientid"] for row in await site.rows(search="truck-03")] == ["Truck-03"]
        assert len(await site.rows(search="DEFAULT registered")) == 12
        assert await site.rows(search="meter") == []
        names = [
            row["clientid"] for row in await site.rows(sort="clientid", descending=0, offset=10, limit=5)
        ]
        assert names == ["Truck-10", "Truck-11"]
        ids = [row["id"] for row in await site.rows(sort="id", descending=0)]
        assert ids == sorted(ids, key=int)
        for sort in ("protocol", "peer", "since", "last", "rate", "bytes", "queue", "state"):
            assert len(await site.rows(sort=sort)) == 12
        status, answer = await site.get("/api/connections?sort=shoe")
        assert (status, "'shoe' is not a sort order" in answer["error"]) == (400, True)

    on_site(test)


def test_connections_that_ended_are_remembered_with_their_reason() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        async with site.page() as page:
            await page.say("watch", id=await site.id_of("truck"))
            await device.close()
            await page.events_until("closed")
        (row,) = await site.rows(ended=1)
        assert (row["clientid"], row["state"]) == ("truck", "device closed")
        assert row["ended"] >= row["since"]
        for sort in ("last", "rate", "bytes", "since", "state"):
            assert await site.rows(ended=1, sort=sort) == [row]
        assert await site.rows() == []

    on_site(test)


def test_a_page_sees_what_happens_on_a_connection() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        async with site.page() as page:
            await page.say("watch", id=await site.id_of("truck"))
            assert (await page.hear("watching"))["row"]["clientid"] == "truck"
            await device.ask("position")
            device.writer.write(b"break\n")
            events = await page.events_until("failed")
        kinds = [event["event"] for event in events]
        assert kinds == ["opened", "in", "frame", "published", "out", "in", "frame", "failed"]
        frame, published, failed = events[2], events[3], events[-1]
        assert (bytes.fromhex(frame["hex"]), frame["handler"]) == (b"position", "fleet.<locals>.other")
        assert (published["topic"], bytes.fromhex(published["hex"])) == ("up/truck", b"position")
        assert (failed["where"], failed["text"]) == (
            "fleet.<locals>.broken",
            "RuntimeError: this broke: break",
        )
        assert 'raise RuntimeError(f"this broke: {secret}")' in failed["traceback"]

    on_site(test)


def test_a_page_waits_for_the_next_connection_and_sees_all_of_it() -> None:
    async def test(site: Site) -> None:
        async with site.page() as page:
            await page.say("watch next", protocol="default")
            await page.say("table", search="nothing such")
            await page.hear("table")
            await site.device(login="truck s3cret")
            events = await page.events_until("subscribed")
        kinds = [event["event"] for event in events]
        assert kinds[:4] == ["opened", "in", "frame", "registered"]
        assert "late" not in events[0]
        assert b"s3cret".hex() not in json.dumps(events)

    on_site(test)


def test_a_traceback_shows_no_password() -> None:
    async def test(site: Site) -> None:
        async with site.page() as page:
            await page.say("watch next")
            await page.say("table")
            await page.hear("table")
            device = await site.device(login="truck s3cret")
            device.writer.write(b"break s3cret\n")
            events = await page.events_until("failed")
        assert "s3cret" not in json.dumps(events)
        assert "break ******" in json.dumps(events)

    on_site(test)


def test_what_a_page_saw_can_be_replayed(tmp_path: Path) -> None:
    lines: list[str] = []

    async def test(site: Site) -> None:
        async with site.page() as page:
            await page.say("watch next")
            await page.say("table")
            await page.hear("table")
            device = await site.device(login="truck")
            watching = await page.hear("watching")
            await device.ask("position")
            await device.close()
            events = await page.events_until("closed")
        row = watching["row"]
        who = {"conn": row["id"]}
        lines.append(json.dumps(watching["header"]) + "\n")
        lines.extend(json.dumps({**who, **event}) + "\n" for event in events if event["event"] != "frame")

    on_site(test)
    assert len(parse(lines, "page").entries) == len(lines) - 1
    path = tmp_path / "page.jsonl"
    path.write_text("".join(lines))
    assert replay(fleet(), path) == []


def test_two_pages_look_at_one_connection_and_one_leaves() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        number = await site.id_of("truck")
        async with site.page() as page:
            async with site.page() as other:
                for one in (page, other):
                    await one.say("watch", id=number)
                    await one.hear("watching")
                await device.ask("one")
                for one in (page, other):
                    await one.events_until("out")
            await device.ask("two")
            await page.events_until("out")
            await page.say("unwatch")
            await page.say("watch", id="none")
            await page.hear("gone")
        (channel,) = site.gateway.runner.engine.channels
        assert channel.tracer is None, "nobody looks, so it costs nothing"

    on_site(test)


def test_a_page_that_goes_lets_its_connection_go() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        async with site.page() as page:
            await page.say("watch", id=await site.id_of("truck"))
            await page.hear("watching")
        (channel,) = site.gateway.runner.engine.channels
        while channel.tracer is not None:
            await device.ask("more")
        while (await site.get("/api/state"))[1]["pages"]:
            pass

    on_site(test)


def test_more_than_a_page_takes_is_counted() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        async with site.page() as page:
            await page.say("watch", id=await site.id_of("truck"))
            await page.hear("watching")
            lines = 3_000
            device.writer.write(b"x\n" * lines + b"break\n")
            while await device.line() != "ok x":
                pass
            seen = lost = 0
            while seen + lost < 3 * lines:
                for event in (await page.hear("events"))["events"]:
                    if event["event"] == "gap":
                        lost += event["count"]
                    else:
                        seen += 1
        assert lost
        assert seen

    on_site(test)


def test_bytes_and_text_are_sent_to_the_device() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        send = f"/api/connections/{await site.id_of('truck')}/send"
        assert await site.post(send, {"text": r"a\x21\\"}) == (200, {})
        assert await device.line() == "a!\\"
        assert await site.post(send, {"hex": "68 69:0a", "raw": True}) == (200, {})
        assert await device.line() == "hi"
        for body, words in (
            ({"hex": "6"}, "odd number"),
            ({"text": "\\q"}, "\\q means nothing"),
            ({"text": "two\\nlines"}, "can't hold a line feed"),
            ({}, "give hex or text"),
            ([], "not a JSON object"),
        ):
            status, answer = await site.post(send, body)
            assert (status, words in answer["error"]) == (400, True), answer

    on_site(test)


def test_bytes_go_past_a_codec_but_not_past_the_framing() -> None:
    class Words:
        def parse(self, frame: bytes) -> list[str]:
            return frame.decode().split()

        def build(self, message: list[str]) -> bytes:
            return " ".join(message).encode()

    app = App(framing=Line(), codec=Words())

    @app.on_received
    def answer(conn: Connection[None, list[str]], message: list[str]) -> list[str]:
        return message

    async def test(site: Site) -> None:
        device = await site.device()
        await device.ask("hello")
        (row,) = await site.rows()
        assert await site.post(f"/api/connections/{row['id']}/send", {"text": "by hand"}) == (200, {})
        assert await device.line() == "by hand"

    on_site(test, app=app, listens=["tcp://127.0.0.1:0"])


def test_a_message_is_published() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        assert await site.post("/api/publish", {"topic": "down/x", "text": "reboot", "qos": 1}) == (200, {})
        assert await device.line() == "down reboot"
        for body, words in (
            ({"text": "x"}, "'topic' is missing"),
            ({"topic": "a/#", "text": "x"}, "#"),
            ({"topic": "a", "text": "x", "qos": 7}, "qos"),
            ({"topic": 7, "text": "x"}, "not text"),
        ):
            status, answer = await site.post("/api/publish", body)
            assert (status, words in answer["error"]) == (400, True), answer

    on_site(test)


def test_a_connection_is_closed() -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        close = f"/api/connections/{await site.id_of('truck')}/close"
        assert await site.post(close, {}) == (200, {})
        assert await device.line() == ""
        while (await site.post(close, {}))[0] != 404:
            pass

    on_site(test)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_what_another_site_has_a_browser_send_is_refused(headers: dict[str, str]) -> None:
    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        number = await site.id_of("truck")
        for path in ("/api/publish", f"/api/connections/{number}/send", f"/api/connections/{number}/close"):
            status, _ = await site.post(path, {"topic": "down/x", "text": "evil"}, **headers)
            assert status == 403
        assert (await site.get("/api/state", **headers))[0] == 403
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            async with site.page(**headers):
                pass
        assert await device.ask("still there") == "ok still there"

    on_site(test)


def test_a_form_of_another_site_is_refused_although_its_browser_says_nothing() -> None:
    async def test(site: Site) -> None:
        async with site.http.post("/api/publish", data='{"topic": "a", "text": ""}') as response:
            assert response.status == 400
            assert "Content-Type" in (await response.json())["error"]

    on_site(test)


def test_the_inspector_has_names_of_this_machine_and_its_own_origin() -> None:
    async def test(site: Site) -> None:
        port = site.inspector.address.port
        for host in (f"localhost:{port}", "127.0.0.1:9999", f"[::1]:{port}", "localhost"):
            assert (await site.get("/api/state", Host=host, Origin=f"http://{host}"))[0] == 200

    on_site(test)


def test_the_page_can_run_no_script_but_its_own() -> None:
    async def test(site: Site) -> None:
        for path in ("/", "/page.js", "/table.js", "/page.css", "/icon.svg"):
            async with site.http.get(path) as response:
                assert response.status == 200
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'; script-src 'self'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Frame-Options"] == "DENY"
        async with site.http.get("/nothing") as response:
            assert response.status == 404
            assert "Content-Security-Policy" in response.headers

    on_site(test)


def test_with_a_token_nothing_is_told_without_it() -> None:
    async def test(site: Site) -> None:
        for path in ("/api/state", "/api/connections", "/api/connections/1"):
            assert (await site.get(path))[0] == 401
            assert (await site.get(path, Authorization="Bearer wrong"))[0] == 401
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            async with site.page():
                pass
        assert (await site.post("/api/publish", {"topic": "a", "text": ""}))[0] == 401

    on_site(test, token="swordfish")


def test_the_token_lets_programs_in_and_a_cookie_lets_pages_in() -> None:
    async def test(site: Site) -> None:
        right = {"Authorization": "Bearer swordfish"}
        assert (await site.get("/api/state", **right))[0] == 200
        assert (await site.post("/api/login", {"token": "herring"}))[0] == 401
        host = f"127.0.0.1:{site.inspector.address.port}"
        cookie = ""
        async with site.http.post("/api/login", json={"token": "swordfish"}) as response:
            assert response.status == 200
            text = response.headers["Set-Cookie"]
            assert "HttpOnly" in text
            assert "SameSite=Strict" in text
            assert "swordfish" not in text
            cookie = text.partition(";")[0]
        async with site.page(Cookie=cookie, Origin=f"http://{host}") as page:
            await page.hear("state")

    on_site(test, token="swordfish")


def test_whoever_guesses_the_token_has_to_wait_whoever_has_it_does_not() -> None:
    async def test(site: Site) -> None:
        for _ in range(GUESSES):
            assert (await site.post("/api/login", {"token": "herring"}))[0] == 401
        assert (await site.post("/api/login", {"token": "herring"}))[0] == 429
        assert (await site.get("/api/state", Authorization="Bearer swordfish"))[0] == 200
        assert (await site.post("/api/login", {"token": "swordfish"}))[0] == 200

    on_site(test, token="swordfish")


def test_where_others_can_reach_it_a_token_is_made_up() -> None:
    async def test(site: Site) -> None:
        token = site.inspector.token
        assert token is not None
        assert len(token) > 16
        assert site.inspector.url.endswith(f"/#token={token}")
        assert (await site.get("/api/state"))[0] == 401
        own_name = {"Host": "gateway.example:8080", "Authorization": f"Bearer {token}"}
        assert (await site.get("/api/state", **own_name))[0] == 200

    on_site(test, host="0.0.0.0")


def test_hostile_names_are_data() -> None:
    async def test(site: Site) -> None:
        await site.device(login=MARKUP)
        (row,) = await site.rows()
        assert row["clientid"] == MARKUP
        async with site.http.get("/api/connections") as response:
            assert response.content_type == "application/json"

    on_site(test)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"type": "table", "limit": 1e400}',
        "{}",
        "[]",
        "null",
        "x",
        '{"type": "dance"}',
        '{"type": "table", "limit": {}}',
    ],
)
def test_a_page_that_sends_nonsense_is_told(text: str) -> None:
    async def test(site: Site) -> None:
        async with site.page() as page:
            await page.socket.send_str(text)
            assert "invalid message" in (await page.hear("error"))["text"]
            await page.say("table")
            await page.hear("table")

    on_site(test)


def test_pages_are_limited() -> None:
    async def test(site: Site) -> None:
        sockets = [await site.http.ws_connect("/api/live") for _ in range(PAGES)]
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await site.http.ws_connect("/api/live")
        for one in sockets:
            await one.close()

    on_site(test)


def test_connections_to_the_server_are_limited_and_strangers_go_first() -> None:
    async def test(site: Site) -> None:
        port = site.inspector.address.port
        async with site.page() as page:  # of the owner, who has shown the token
            await page.hear("state")
            streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
            reader, _ = streams[0]
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert (await site.get("/api/state"))[0] == 200
            await page.hear("state")
        for _, writer in streams:
            writer.close()
        for _, writer in streams:
            await writer.wait_closed()

    on_site(test)


def test_who_connects_and_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.inspector.server.SILENCE", 0.1)

    async def test(site: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.inspector.address.port)
        writer.write(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        async with site.page() as page:
            await page.hear("table")
            await asyncio.sleep(0.2)  # longer than the silence of one that has asked nothing
            await page.say("table")
            await page.hear("table")
        assert not site.inspector._silent

    on_site(test)


def test_a_page_that_reads_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.inspector.live.PATIENCE", 0.2)

    async def test(site: Site) -> None:
        for number in range(100):
            await site.device(login=f"{number:03}" + "x" * 200)
        port = site.inspector.address.port
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        head = f"GET /api/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
        head += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        await loop.sock_sendall(sock, head.encode())
        ask = json.dumps({"type": "table", "limit": 500}).encode()
        message = bytes([0x81, 0x80 | len(ask), 0, 0, 0, 0]) + ask  # masked with zeros
        while not (await site.get("/api/state"))[1]["pages"]:
            pass

        async def ask_on() -> None:
            while True:
                await asyncio.wait_for(loop.sock_sendall(sock, message), 20)
                await site.get("/api/state")

        with pytest.raises(OSError, match=r"(?i)reset|broken pipe"):
            await ask_on()
        sock.close()

    on_site(test)


def test_rubbish_is_answered_and_logged_by_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def test(site: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.inspector.address.port)
        writer.write(b"\x16\x03\x01 what is this\r\n\r\n")
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        await writer.wait_closed()

    with caplog.at_level(logging.WARNING):
        on_site(test)
    assert not caplog.records


def test_a_page_is_told_that_the_gateway_stops() -> None:
    async def test(site: Site) -> None:
        socket = await site.http.ws_connect("/api/live")
        await site.inspector.stop()
        while (message := await socket.receive(timeout=20)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1001

    on_site(test)


def test_a_taken_port_and_a_wrong_host_are_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SetupError, match=rf"--inspect 127\.0\.0\.1:{port} can't be opened: another program"
        ):
            Inspector(fleet(), Address("127.0.0.1", port))
        code, _, err = run("run", ECHO, "--listen", "tcp://127.0.0.1:0", "--inspect", f"127.0.0.1:{port}")
        assert (code, len(err.splitlines())) == (2, 1)
    code, _, err = run("run", ECHO, "--inspect", "nowhere")
    assert (code, "such as 127.0.0.1:8080" in err) == (2, True)


def test_without_aiohttp_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.py"
    hidden.write_text(
        "import sys\nsys.modules['aiohttp'] = None\n"
        + ECHO.read_text().replace("from __future__", "from __future__")
    )
    code, _, err = run("run", hidden, "--listen", "tcp://127.0.0.1:0", "--inspect", "127.0.0.1:0")
    assert code == 1
    assert "--inspect needs: pip install 'exproto-app[web]'" in err
    assert "Traceback" not in err


def test_run_tells_where_the_page_is() -> None:
    with gateway(ECHO, "--listen", "tcp://127.0.0.1:0", "--inspect", "127.0.0.1:0") as (_, lines):
        assert any(
            line.startswith("inspector on http://127.0.0.1:") and "token" not in line for line in lines
        )
    with gateway(ECHO, "--listen", "tcp://127.0.0.1:0", "--inspect", "0.0.0.0:0", "--loop", "asyncio") as (
        _,
        lines,
    ):
        assert any(line.startswith("inspector on http://127.0.0.1:") and "/#token=" in line for line in lines)


def test_rates_and_the_time_of_the_last_frame_come_from_looking_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exproto_app.inspector.connections.SHORTEST", 0.0)

    async def test(site: Site) -> None:
        device = await site.device(login="truck")
        census = site.inspector._table
        census.sample()
        await device.ask("position")
        census.sample()
        (row,) = await site.rows()
        assert row["frame_rate"] > 0
        assert row["rate_in"] == pytest.approx(9 * row["frame_rate"])
        assert row["rate_out"] == pytest.approx(12 * row["frame_rate"])
        last = row["last"]
        await asyncio.sleep(0)
        census.sample()
        (row,) = await site.rows()
        assert (row["frame_rate"], row["rate_in"], row["last"]) == (0, 0, last)

    on_site(test)


def test_a_datagram_device_has_a_row_too() -> None:
    async def test(site: Site) -> None:
        address = site.address_of("meter")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as meter:
            meter.sendto(b"\x01\x02", (address.host, address.port))
            while not (rows := await site.rows(search="meter")):
                pass
        assert (rows[0]["socktype"], rows[0]["received"], rows[0]["frames"]) == ("udp", 2, 1)

    on_site(test)


def test_a_device_that_is_read_no_more_is_said_to_be_busy() -> None:
    app = App(framing=Line())
    go_on = asyncio.Event()

    @app.on_received
    async def wait(conn: Connection, frame: bytes) -> bytes:
        await go_on.wait()
        return b"done"

    async def test(site: Site) -> None:
        device = await site.device()
        device.writer.write(b"one\n")
        while not (await site.rows(search="busy")):
            pass
        device.writer.write(b"x" * 60 + b"\n")
        while not (rows := await site.rows(search="busy"))[0]["queue"]:
            pass
        assert rows[0]["queues"] == {"bytes to handle": 61}
        go_on.set()
        assert await device.line() == "done"

    on_site(test, app=app, listens=["tcp://127.0.0.1:0"])


def test_serve_has_an_inspector_too() -> None:
    command = [*COMMAND, "serve", str(ECHO), "--bind", "127.0.0.1:0", "--inspect", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.fullmatch(r"inspector on (http://127\.0\.0\.1:\d+/)\n", process.stdout.readline())
            assert match
            with urllib.request.urlopen(f"{match[1]}api/state", timeout=20) as response:
                (protocol,) = json.load(response)["protocols"]
            assert protocol["name"] == "default"
            assert protocol["listeners"][0].startswith("gRPC on 127.0.0.1:")
        finally:
            process.kill()


def test_workers_ask_for_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    share_token("127.0.0.1:8080", None)
    share_token(None, None)
    share_token("0.0.0.0:8080", "given")
    assert TOKEN not in os.environ
    monkeypatch.setenv(TOKEN, "")
    share_token("0.0.0.0:8080", "")
    assert len(os.environ[TOKEN]) > 16


def test_a_device_whose_protocol_its_first_bytes_tell_is_seen_from_the_beginning() -> None:
    app = App()
    for name in ("truck", "meter"):
        router = app.protocol(name, framing=Line(), sniff=name.encode())
        router.on_received(lambda conn, frame: b"ok")

    async def test(site: Site) -> None:
        async with site.page() as page:
            await page.say("watch next", protocol="meter")
            await page.say("table")
            await page.hear("table")
            device = await site.device("meter")
            row = (await page.hear("watching"))["row"]
            assert (row["protocol"], row["state"], row["clientid"]) == ("truck,meter", "sniffing", None)
            assert await site.get(f"/api/connections/{row['id']}") == (200, row)
            status, answer = await site.post(f"/api/connections/{row['id']}/send", {"text": "x"})
            assert (status, "protocol isn't known yet" in answer["error"]) == (409, True)
            assert await device.ask("meter 1") == "ok"
            events = await page.events_until("out")
        assert [event["event"] for event in events] == ["opened", "in", "frame", "out"]
        assert [event["protocol"] for event in (events[0], events[-1])] == ["truck,meter", "meter"]
        (after,) = await site.rows()
        assert (after["protocol"], after["since"], after["received"]) == ("meter", row["since"], 8)
        (channel,) = site.gateway.runner.engine.channels
        while channel.tracer is not None:
            await device.ask("more")

    on_site(test, app=app, listens=["truck,meter=tcp://127.0.0.1:0"])


def test_a_device_that_no_protocol_takes_is_remembered() -> None:
    app = App()
    for name in ("truck", "meter"):
        app.protocol(name, framing=Line(), sniff=name.encode()).on_received(lambda conn, frame: b"ok")

    async def test(site: Site) -> None:
        device = await site.device("meter")
        (row,) = await site.rows(search="sniffing")
        other = await site.device("meter")
        assert await other.ask("bicycle") == ""
        while not (ended := await site.rows(ended=1)):
            pass
        assert ended[0]["detail"] == "no protocol takes 8 bytes"
        assert ended[0]["protocol"] == "truck,meter"
        assert await site.post(f"/api/connections/{row['id']}/close", {}) == (200, {})
        assert await device.line() == ""

    on_site(test, app=app, listens=["truck,meter=tcp://127.0.0.1:0"])
