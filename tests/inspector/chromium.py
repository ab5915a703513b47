"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import attrs

__all__ = ["PROGRAM", "Tab", "chromium", "running"]

PROGRAM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)

FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1, EXCLUDE ::1",
    "--remote-debugging-port=0",
)

PATIENCE = 60.0
"""Seconds that anything may take."""


@attrs.define(eq=False)
class Tab:
    """One page; *complaints* is what its console told: errors, and what its policy forbade."""

    _browser: Browser
    _session: str
    complaints: list[str] = attrs.field(factory=list)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call *method* of the protocol."""
        return await self._browser.call(method, self._session, **parameters)

    async def open(self, url: str) -> None:
        """Go to *url*, and wait until it is loaded."""
        await self.show()
        await self.call("Page.navigate", url="about:blank")
        await self.call("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def show(self) -> None:
        """Be the tab that is seen: those behind it draw nothing."""
        await self.call("Page.bringToFront")

    async def run(self, script: str) -> Any:
        """Return what the expression *script* gives, awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until the expression *script* gives something true, and return that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while loop.time() < deadline:
            if found := await self.run(script):
                return found
            await asyncio.sleep(0.02)
        text = await self.run("document.body.innerText")
        raise AssertionError(f"never true: {script}\n{text}\n{self.complaints}")

    async def click(self, selector: str) -> None:
        """Click on what *selector* finds."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, selector: str, text: str) -> None:
        """Put *text* into the field that *selector* finds."""
        await self.run(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.focus();"
            " field.select(); })()"
        )
        if text:
            await self.call("Input.insertText", text=text)
        else:
            await self.call("Input.dispatchKeyEvent", type="keyDown", key="Delete", windowsVirtualKeyCode=46)

    async def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Have the page shown at this size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    async def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}]
        )

    async def screenshot(self, path: Path) -> None:
        """Write what is to be seen."""
        answer = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(answer["data"]))


@attrs.define(eq=False)
class Browser:
    """The connection to Chromium."""

    _socket: aiohttp.ClientWebSocketResponse[Any]
    _numbers: itertools.count[int] = attrs.field(factory=itertools.count)
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = attrs.field(factory=dict)
    _tabs: dict[str, Tab] = attrs.field(factory=dict)
    context: str = ""

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send_json(message)
        return await asyncio.wait_for(answer, PATIENCE)

    async def tab(self) -> Tab:
        """Open a tab."""
        target = (await self.call("Target.createTarget", url="about:blank", browserContextId=self.context))[
            "targetId"
        ]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        return tab

    async def listen(self) -> None:
        async for message in self._socket:
            facts = json.loads(message.data)
            if "id" in facts:
                answer = self._answers.pop(facts["id"])
                if "error" in facts:
                    answer.set_exception(AssertionError(f"{facts['error']}"))
                elif not answer.done():
                    answer.set_result(facts["result"])
            elif facts["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self._tabs[facts["sessionId"]].complaints.append(json.dumps(facts["params"]))


@contextmanager
def running() -> Iterator[str]:
    """Run a Chromium for the length of a block; give the URL of its DevTools."""
    assert PROGRAM is not None
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="exproto-app-chromium-", ignore_cleanup_errors=True)
        )
        process = stack.enter_context(
            subprocess.Popen(
                [PROGRAM, *FLAGS, f"--user-data-dir={folder}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={"HOME": folder, "PATH": os.environ["PATH"]},
            )
        )
        stack.callback(process.kill)
        assert process.stderr is not None
        told: list[str] = []
        for line in process.stderr:
            told.append(line)
            if line.startswith("DevTools listening on "):
                break
        else:
            raise AssertionError(f"Chromium didn't start: {''.join(told)}")
        # It goes on to tell of this and that, which nobody needs.
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        url = line.split()[-1]
        with urllib.request.urlopen(
            f"http://{urlsplit(url).netloc}/json/version", timeout=PATIENCE
        ) as answer:
            assert answer.status == 200, "Chromium doesn't answer"
        yield url
        process.kill()
        reader.join()


@asynccontextmanager
async def chromium(url: str) -> AsyncIterator[Browser]:
    """Use the Chromium at *url*, as if it were new."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:
        browser = Browser(socket)
        listening = asyncio.ensure_future(browser.listen())
        browser.context = (await browser.call("Target.createBrowserContext"))["browserContextId"]
        yield browser
        await browser.call("Target.disposeBrowserContext", browserContextId=browser.context)
        listening.cancel()
        await asyncio.wait((listening,))
