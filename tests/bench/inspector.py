"""What the inspector costs a gateway, and what 5,000 connections in its table cost a browser.

Run it as `python -m tests.bench inspector`. `unseen` has `--inspect` on and no page; `page` has one open,
which shows the table and one connection of a hundred. Rounds alternate with a gateway without an inspector.
The ratio is that of the CPU times for a message, as in `tap`, for the page itself takes its share of the
machine; `rate` is the ratio of the rates.

In Chromium, with 5,000 connections of which a thousand speak each second: `load` from the address to the
filled table, `search` from the last letter to its row, and `update`, what the page's script and its layout
take of each second's new table.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .figures import show
from .gateway import rounds
from .load import load_generator
from .servers import LOOPS, Server, allow_files

if TYPE_CHECKING:
    from ..inspector.chromium import Tab

__all__ = ["main"]

ROUNDS = 15
BARS = {"unseen": 0.98, "page": 0.9}
CONNECTIONS = 5_000
SPEAKING = 1_000
LOADS = 5
UPDATES = 10


async def look(port: int, stop: asyncio.Event) -> int:
    """Be a page that shows the table, and the next connection again and again; count the events."""
    import aiohttp  # noqa: PLC0415 - an extra

    seen = 0

    async def read(socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        nonlocal seen
        await socket.send_str('{"type": "table"}')
        await socket.send_str('{"type": "watch next"}')
        async for message in socket:
            if message.data.startswith('{"type":"events"'):
                seen += message.data.count('"at":')
                if '"event":"closed"' in message.data:
                    await socket.send_str('{"type": "watch next"}')

    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{port}/api/live", max_msg_size=0) as socket,
    ):
        reading = asyncio.ensure_future(read(socket))
        await stop.wait()
        reading.cancel()
    return seen


@contextmanager
def page(port: int) -> Iterator[list[int]]:
    """Have a page open, in a thread, for the length of a block; then tell how many events it saw."""
    loop, stop, seen = asyncio.new_event_loop(), asyncio.Event(), [0]

    def run() -> None:
        seen[0] = loop.run_until_complete(look(port, stop))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def rates() -> None:
    """Echo lines over 100 connections."""
    with load_generator(seconds=0.5) as load, ExitStack() as stack:
        if load is None:
            print("inspector.rates skipped: it needs a C compiler (cc) for its load generator")
            return
        loop = LOOPS[0]
        plain = stack.enter_context(Server("line", (loop,)))
        ours = stack.enter_context(Server("line_inspected", (loop,)))
        for name, bar in BARS.items():
            for window in (1, 16):
                seen = None
                with ExitStack() as opened:
                    if name == "page":
                        seen = opened.enter_context(page(ours.ask()[1]))
                    pairs = rounds(load, ours, plain, window, ROUNDS)
                rate = statistics.median(mine.messages / other.messages for mine, other in pairs)
                without = statistics.median(other.messages for _, other in pairs)
                note = f"rate={rate:.2f} without={without:.0f}"
                show(
                    f"inspector.{name}.{window}_outstanding.{loop}",
                    f"{statistics.median(mine.messages for mine, _ in pairs):.0f}",
                    "messages/s",
                    ratio=statistics.median(other.microseconds / mine.microseconds for mine, other in pairs),
                    bar=bar,
                    note=note if seen is None else f"{note} events={seen[0]}",
                )


async def speak(writers: list[asyncio.StreamWriter]) -> None:
    while True:
        for writer in writers[:SPEAKING]:
            writer.write(b"position 48.2 16.3\n")
        await asyncio.sleep(1)


async def measure(tab: Tab, url: str) -> None:
    """Measure what the browser does with the table."""
    filled = "document.querySelectorAll('#rows tr').length === 100"
    times = []
    for _ in range(LOADS):
        await tab.open("about:blank#")
        started = time.perf_counter()
        await tab.open(url)
        await tab.until(filled)
        times.append(time.perf_counter() - started)
    show("inspector.chromium.load", f"{statistics.median(times) * 1e3:.0f}", "ms", note=f"n={CONNECTIONS}")
    # What happens between a table's arrival and the frame that shows it.
    took = await tab.run(
        f"""new Promise(done => {{
            const original = take, times = [];
            take = message => {{
                const started = performance.now();
                original(message);
                document.body.offsetHeight;
                if (message.type === "table") times.push(performance.now() - started);
                if (times.length === {UPDATES}) {{ take = original; done(times); }}
            }};
        }})"""
    )
    show("inspector.chromium.update", f"{statistics.median(took):.1f}", "ms", note=f"worst={max(took):.1f}")
    found = []
    for number in range(LOADS):
        peer = await tab.run(f"document.querySelectorAll('#rows tr')[{number}].children[2].textContent")
        started = time.perf_counter()
        await tab.type("#search", peer)
        first = "document.querySelector('#rows tr').children[2].textContent"
        await tab.until(f"{first} === {json.dumps(peer)} && !({filled})")
        found.append(time.perf_counter() - started)
        await tab.type("#search", "")
        await tab.until(filled)
    show(
        "inspector.chromium.search",
        f"{statistics.median(found) * 1e3:.0f}",
        "ms",
        note="of them 150 of typing",
    )


async def table(server: Server, devtools: str) -> None:
    """Fill a table with devices, and look at it in Chromium."""
    from ..inspector.chromium import chromium  # noqa: PLC0415 - it needs aiohttp, an extra

    writers = []
    for _ in range(CONNECTIONS):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"hello\n")
        writers.append(writer)
    speaking = asyncio.ensure_future(speak(writers))
    await asyncio.sleep(2)
    before, began = server.cpu(), time.perf_counter()
    await asyncio.sleep(5)
    unseen = (server.cpu() - before) / (time.perf_counter() - began)
    async with chromium(devtools) as browser:
        tab = await browser.tab()
        await measure(tab, f"http://127.0.0.1:{server.ask()[1]}/")
        before, began = server.cpu(), time.perf_counter()
        await asyncio.sleep(5)
        seen = (server.cpu() - before) / (time.perf_counter() - began)
    show("inspector.table.cpu", f"{seen - unseen:.1%}", "of a core", note=f"without_page={unseen:.1%}")
    speaking.cancel()
    for writer in writers:
        writer.close()


def browser() -> None:
    """Show 5,000 connections."""
    from ..inspector.chromium import PROGRAM, running  # noqa: PLC0415 - it needs aiohttp, an extra

    if PROGRAM is None:
        print("inspector.chromium skipped: it needs Chromium")
        return
    allow_files()
    with Server("line_inspected", (LOOPS[0],)) as server, running() as devtools:
        asyncio.run(table(server, devtools))


def main() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        print("inspector skipped: it needs aiohttp")
        return
    rates()
    browser()


if __name__ == "__main__":
    main()
