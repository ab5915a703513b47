"""The inspector's page in a real Chromium: what its user sees and does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.framing import Line
from exproto_app.testing import replay
from exproto_app.traffic.recording import parse

from .chromium import PROGRAM, Tab, chromium, running
from .site import HOSTILE, MARKUP, Site, fleet, site

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium isn't installed"),
]

ROWS = "[...document.querySelectorAll('#rows tr')].map(row => row.firstChild.textContent)"
EVENTS = "[...document.querySelectorAll('.event')].map(one => one.className.replace('event ', ''))"
KEPT = "import('/log.js').then((module) => module.log.events)"
"""The events that the page keeps, more than it shows."""


Test = Callable[[Site, Tab], Awaitable[None]]
InChromium = Callable[..., None]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
def in_chromium(url: str) -> InChromium:
    """Give what runs a test with the page open; it must leave nothing in the console."""

    def run(test: Test, **options: Any) -> None:
        async def main() -> None:
            async with site(**options) as here, chromium(url) as browser:
                tab = await browser.tab()
                await tab.open(here.inspector.url)
                await test(here, tab)
                assert not tab.complaints

        asyncio.run(main())

    return run


async def watch(site: Site, tab: Tab, clientid: str) -> None:
    """Have the page show a connection's traffic."""
    await tab.type("#search", clientid)
    await tab.until(f"{ROWS}.join() === {json.dumps(clientid)}")
    await tab.click("#rows tr")
    await tab.until("document.querySelectorAll('.event').length > 0")


def test_the_table_shows_searches_and_sorts(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        assert await tab.until("document.querySelector('#empty').textContent") == (
            "No device is connected. Watch the next, and see it from its first byte."
        )
        for number in range(3):
            await site.device(login=f"truck-{number}")
        await tab.until(f"{ROWS}.join() === 'truck-2,truck-1,truck-0'")
        await tab.click("th[data-sort=clientid] button")
        await tab.until(f"{ROWS}.join() === 'truck-0,truck-1,truck-2'")
        await tab.type("#search", "truck-1")
        await tab.until(f"{ROWS}.join() === 'truck-1'")
        assert (
            await tab.run("document.querySelector('#found').textContent") == "1\u20131 of 1 found, 3 in all"
        )
        await tab.type("#search", "no such")
        await tab.until("document.querySelector('#empty').textContent === 'No connection has these words.'")

    in_chromium(test)


def test_the_protocols_their_listeners_and_the_counters_are_shown(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await site.device(login="truck")
        await tab.until("document.querySelector('#protocols').innerText.includes('1 connected')")
        text = await tab.run("document.querySelector('#protocols').innerText")
        for name in ("default", "meter"):
            assert name in text
            assert str(site.address_of(name)) in text
        await tab.click("#show-counters")
        await tab.until("document.querySelector('#counters').innerText.includes('connections_opened')")

    in_chromium(test)


def test_traffic_is_shown_as_hex_frames_messages_and_errors(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        device = await site.device(login="truck")
        await watch(site, tab, "truck")
        await device.ask("position 48.2 16.3")
        device.writer.write(b"break\n")
        await tab.until(f"{EVENTS}.includes('failed')")
        assert await tab.run(EVENTS) == [
            "opened", "in", "frame", "published", "out", "in", "frame", "failed",
        ]  # fmt: skip
        text = await tab.run("document.querySelector('#events').textContent")
        assert "70 6f 73 69 74 69 6f 6e" in text
        assert "position 48.2 16.3" in text
        assert "→ fleet.<locals>.other" in text
        assert "up/truck" in text
        assert "RuntimeError: this broke: break" in text
        assert 'raise RuntimeError(f"this broke: {secret}")' in text

    in_chromium(test)


def test_changing_from_one_device_to_another_mixes_nothing(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        devices = [await site.device(login=f"truck-{number}") for number in range(2)]
        await tab.until("document.querySelectorAll('#rows tr').length === 2")
        for _ in range(20):
            for device in devices:
                device.writer.write(b"x\n" * 20)
            await tab.run("document.querySelectorAll('#rows tr')[0].click()")
            await tab.run("document.querySelectorAll('#rows tr')[1].click()")
        await devices[0].ask("position")
        await tab.until("document.querySelector('#who').textContent === 'truck-0'")
        devices[0].writer.write(b"break\n")
        await tab.until(f"{EVENTS}.includes('failed')")
        text = await tab.run("document.querySelector('#events').textContent")
        assert "truck-1" not in text
        assert "again" not in text

    in_chromium(test)


def test_the_next_device_is_seen_from_its_first_byte(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await tab.until("document.querySelector('#rows') && !document.querySelector('#main').hidden")
        await tab.click("#next")
        await tab.until("document.querySelector('#who').textContent.startsWith('Waiting')")
        # The page has asked when the server answers what it asks behind that.
        await tab.type("#search", "x")
        await tab.until("document.querySelector('#empty').textContent.startsWith('No ')")
        await site.device(login="truck")
        await tab.until(f"{EVENTS}.includes('subscribed')")
        assert (await tab.run(EVENTS))[:4] == ["opened", "in", "frame", "registered"]
        await tab.until("document.querySelector('#who').textContent === 'truck'")

    in_chromium(test)


def test_what_devices_say_is_shown_and_never_run(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        device = await site.device(login=MARKUP)
        await tab.until("document.querySelectorAll('#rows tr').length === 1")
        await tab.click("#rows tr")
        await tab.until(f"{EVENTS}.includes('opened')")
        await device.ask("<script>document.title='pwned'</script>")
        await site.post("/api/publish", {"topic": f"down/{MARKUP}", "text": HOSTILE})
        await tab.until(f"{EVENTS}.includes('delivered')")
        device.writer.write("break <b onclick=alert(1)>\x1b[31m\u202e\n".encode())
        await tab.until(f"{EVENTS}.includes('failed')")
        await device.close()
        await tab.until(f"{EVENTS}.includes('closed')")
        text = await tab.run("document.body.innerText")
        assert "<img_src=x_onerror=" in text
        assert "\\x1b[31m\\u{202e}" in text
        assert "<b onclick=alert(1)>" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert await tab.run("document.title") == "exproto-app inspector"
        assert (
            await tab.run("document.querySelectorAll('main img, main script, main b[onclick]').length") == 0
        )

    in_chromium(test)


def test_the_policy_forbids_what_slips_through(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await tab.run(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.bad = 1\">')"
        )
        await tab.run(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'bad = 1'}))"
        )
        assert await tab.run("new Promise(done => setTimeout(() => done(window.bad), 100))") is None
        assert any("Content Security Policy" in complaint for complaint in tab.complaints)
        tab.complaints.clear()

    in_chromium(test)


def test_traffic_is_searched_by_hex_and_by_text(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        device = await site.device(login="truck")
        await watch(site, tab, "truck")
        for word in ("north", "south", "north"):
            await device.ask(word)
        await tab.until(f"{EVENTS}.filter(kind => kind === 'out').length === 3")
        for text in ("SOUTH", "73 6f 75 74 68", "736f757468", "0x73, 0x6f 0x75"):
            await tab.type("#find", text)
            await tab.until(f"{EVENTS}.join() === 'in,frame,published,out'")
        await tab.type("#find", "37 36")  # in the digits, but across bytes
        await tab.until(f"{EVENTS}.join() === ''")
        await tab.type("#find", "up/truck")
        await tab.until(f"{EVENTS}.join() === 'published,published,published'")
        await tab.type("#find", "")
        await tab.until(f"{EVENTS}.length === 13")

    in_chromium(test)


def test_a_pause_holds_the_page_and_forgets_nothing(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        device = await site.device(login="truck")
        await watch(site, tab, "truck")
        await tab.click("#pause")
        await device.ask("position")
        await tab.until("document.querySelector('#notes').textContent === 'paused, 4 more'")
        assert await tab.run(EVENTS) == ["opened"]
        await tab.click("#pause")
        await tab.until(f"{EVENTS}.length === 5")

    in_chromium(test)


def test_the_user_sends_to_the_device_publishes_and_disconnects(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        device = await site.device(login="truck")
        await watch(site, tab, "truck")
        await tab.type("#send-data", r"re\x62oot")
        await tab.click("#send .primary")
        assert await device.line() == "reboot"
        await tab.run("document.querySelector('#send-kind').value = 'hex'")
        await tab.run("document.querySelector('#send-raw').click()")
        await tab.type("#send-data", "68 69 0a")
        await tab.click("#send .primary")
        assert await device.line() == "hi"
        await tab.type("#send-data", "6")
        await tab.click("#send .primary")
        await tab.until("document.querySelector('#send-result').textContent.includes('odd number')")
        tab.complaints.clear()  # Chromium tells of the status
        await tab.click("#show-publish")
        await tab.type("#publish-topic", "down/all")
        await tab.type("#publish-data", "good morning")
        await tab.click("#publish .primary")
        assert await device.line() == "down good morning"
        await tab.until("document.querySelector('#publish-result').textContent.startsWith('published')")
        await tab.click("#close")
        assert await device.line() == ""
        await tab.until(f"{EVENTS}.includes('closed')")
        await tab.type("#search", "")
        await tab.run("document.querySelector('#which').value = 'ended'")
        await tab.run("document.querySelector('#which').onchange()")
        await tab.until(f"{ROWS}.join() === 'truck'")

    in_chromium(test)


def test_the_download_is_a_recording_that_can_be_replayed(in_chromium: InChromium, tmp_path: Path) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await tab.until("document.querySelector('#link').textContent === 'live'")
        await tab.click("#next")
        await tab.type("#search", "x")
        await tab.until("document.querySelector('#empty').textContent.startsWith('No ')")
        device = await site.device(login="truck")
        await device.ask("position")
        await device.close()
        await tab.until(f"{EVENTS}.includes('closed')")
        await tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        await tab.click("#save")
        path = tmp_path / "truck.jsonl"
        while not path.exists() or not path.stat().st_size:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)

    in_chromium(test)
    path = tmp_path / "truck.jsonl"
    with path.open() as lines:
        assert len(parse(lines, path.name).entries) > 5
    assert replay(fleet(), path) == []


def test_a_page_of_a_restarted_gateway_shows_no_other_device_instead(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await site.device(login="truck")
        await watch(site, tab, "truck")
        site.inspector._instance = "another"  # as after a restart, when ids begin anew
        for page in tuple(site.inspector._pages):
            await page.close()
        await tab.until("document.querySelector('#events').textContent.includes('was restarted')")
        assert await tab.run("document.querySelector('#send-data').disabled")

    in_chromium(test)


def test_a_page_that_lost_the_server_comes_back_to_its_connection(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        device = await site.device(login="truck")
        await watch(site, tab, "truck")
        for page in tuple(site.inspector._pages):
            await page.close()
        await tab.until("document.querySelector('#events').textContent.includes('connected again')")
        await device.ask("position")
        await tab.until(f"{EVENTS}.includes('published')")

    in_chromium(test)


def test_the_token_in_the_link_lets_its_page_in_and_leaves_the_address(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await tab.until("document.querySelector('#link').textContent === 'live'")
        assert await tab.run("location.href") == f"http://127.0.0.1:{site.inspector.address.port}/"
        await tab.open(f"http://127.0.0.1:{site.inspector.address.port}/")
        await tab.until("document.querySelector('#link').textContent === 'live'")
        assert "swordfish" not in await tab.run("document.cookie + JSON.stringify({...localStorage})")

    in_chromium(test, token="swordfish")


def test_without_the_token_the_page_asks_for_it(url: str) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await tab.until("!document.querySelector('#login').hidden")
        assert await tab.run("document.querySelector('#main').hidden")
        await tab.type("#token", "herring")
        await tab.click("#login .primary")
        await tab.until("document.querySelector('#login-error').textContent.includes('not the inspector')")
        await tab.type("#token", "swordfish")
        await tab.click("#login .primary")
        await tab.until("document.querySelector('#link').textContent === 'live'")

    async def main() -> None:
        async with site(token="swordfish") as here, chromium(url) as browser:
            tab = await browser.tab()
            await tab.open(f"http://127.0.0.1:{here.inspector.address.port}/")
            await test(here, tab)

    asyncio.run(main())


def test_a_busy_connection_fills_neither_the_page_nor_its_memory(in_chromium: InChromium) -> None:
    app = App(framing=Line())

    @app.on_received
    def answer(conn: Connection, frame: bytes) -> bytes:
        return frame

    async def test(site: Site, tab: Tab) -> None:
        device = await site.device()
        await tab.until("document.querySelectorAll('#rows tr').length === 1")
        await tab.click("#rows tr")
        await tab.until(f"{EVENTS}.includes('opened')")
        for _ in range(10):
            device.writer.write(b"x" * 32 + b"\n" + b"y\n" * 1_000)
            await device.line()
            for _ in range(1_000):
                await device.line()
            await asyncio.sleep(0.15)  # the page takes a share in each 0.1 s
        await tab.until("document.querySelector('#notes').textContent.includes('no longer kept')")
        assert await tab.run(f"{KEPT}.then((kept) => kept.length)") <= 5_000
        assert await tab.run("document.querySelectorAll('.event').length") <= 500
        assert await tab.run(f"{KEPT}.then((kept) => kept[0].event)") == "opened"
        assert "events left out" in await tab.run("document.querySelector('#notes').textContent")

    in_chromium(test, app=app, listens=["tcp://127.0.0.1:0"])


def test_two_pages_look_at_once(url: str) -> None:
    async def main() -> None:
        async with site() as here, chromium(url) as browser:
            device = await here.device(login="truck")
            tabs = [await browser.tab() for _ in range(2)]
            for tab in tabs:
                await tab.open(here.inspector.url)
                await watch(here, tab, "truck")
            await device.ask("position")
            for tab in tabs:
                await tab.show()
                await tab.until(f"{EVENTS}.includes('published')")

    asyncio.run(main())


def test_on_a_phone_nothing_is_wider_than_the_screen(in_chromium: InChromium) -> None:
    async def test(site: Site, tab: Tab) -> None:
        await tab.size(360, 740, mobile=True)
        device = await site.device(login="truck" * 30)
        await tab.until("document.querySelectorAll('#rows tr').length === 1")
        assert await tab.run("document.documentElement.scrollWidth") <= 360
        await tab.click("#rows tr")
        await tab.until("document.querySelectorAll('.event').length > 0")
        await device.ask("position" * 30)
        await tab.until(f"{EVENTS}.includes('published')")
        assert await tab.run("document.documentElement.scrollWidth") <= 360
        assert await tab.run("document.querySelector('#list').offsetParent === null"), "the table made room"
        await tab.click("#back")
        await tab.until("document.querySelector('#list').offsetParent !== null")

    in_chromium(test)
