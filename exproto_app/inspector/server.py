r"""The inspector's server: the page, what it is told, and what may be done from it.

- `GET /` is the page. `POST /api/login` with `{"token": …}` gives its browser a cookie.
- `GET /api/state`, `GET /api/connections` (with the fields of a `Query`) and `GET /api/connections/ID` tell
  what the page shows; `GET /api/live` is its WebSocket, see `live`.
- `POST /api/connections/ID/send` with `text` or `hex`, and `raw` for bytes without framing;
  `POST /api/connections/ID/close`; `POST /api/publish` with `topic`, `text` or `hex`, `qos`, `retain`.

Programs show the token as `Authorization: Bearer TOKEN`. Errors are `{"error": …}`. In `text`, `\n`, `\r`,
`\t`, `\0`, `\xNN` and `\\` stand for what they do in Python.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ..app import App
from ..asyncio_host.runner import Runner
from ..core import Channel
from ..errors import CommandError
from ..models import Address, is_loopback
from ..ops.listening import listen
from .access import Access, Refusal, new_token
from .answers import BODY, HEADERS, SMALL, error_answer, failure, posted, refused, result_of, static_files
from .connections import ConnectionTable, One, Query
from .live import Live

__all__ = ["Inspector"]

log = logging.getLogger("exproto_app")

PAGES: Final = 32
"""Pages that may be open at once."""

CLIENTS: Final = 128
"""Connections to the server at once; beyond them those go first that haven't shown the token."""

BACKLOG: Final = 16
"""Connections that may wait until they are taken."""

SILENCE: Final = 10.0
"""Seconds in which a connection has to ask for something."""

IDLE: Final = 30.0
"""Seconds that a connection is kept for another request."""

GOODBYE: Final = 1.0
"""Seconds that pages and requests have to end."""

LOOKED_AT: Final = 1.0
UNSEEN: Final = 5.0
"""Seconds from one look at the connections' counts to the next, with a page open and without."""

_quiet = logging.getLogger("exproto_app.inspector.http")
_quiet.disabled = True  # what strangers send is their problem; our own failures are logged by `_guard`

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InspectedHost(Protocol):
    """What runs the app: a `Gateway` or a `Service`."""

    runner: Runner

    @property
    def listening(self) -> list[tuple[str, str]]:
        """What devices, or brokers, may connect to: the protocol's name, and where."""
        ...


class Inspector:
    """Serves the page for *app* at *address*, from `start` until `stop`.

    Whoever looks has to show the *token*; None, and where others may reach the address, it is made up.
    *shared*: for a while another process may serve there too. Raises `SetupError` for an address that can't
    be opened.
    """

    def __init__(
        self, app: App[Any, Any], address: Address, *, token: str | None = None, shared: bool = False
    ) -> None:
        self.token = token if token or is_loopback(address.host) else new_token()
        self._app = app
        self._socket = listen("--inspect", address, shared=shared, backlog=BACKLOG)
        self._socket.setblocking(False)
        self.address = Address(*self._socket.getsockname()[:2])
        self._access = Access(self.token, address.host.lower())
        self._cookie = f"exproto_inspector_{self.address.port}"  # cookies don't know ports
        self._files = static_files()
        self._pages: set[web.WebSocketResponse] = set()
        self._strangers: dict[RequestHandler, None] = {}  # by age; those that have gone too
        self._silent: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}
        self._host: InspectedHost
        self._table: ConnectionTable
        self._runner: web.AppRunner | None = None
        self._server: asyncio.AbstractServer | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._offset = 0.0
        self._turns = asyncio.Lock()  # of requests
        self._reading = asyncio.Lock()  # of large ones
        self._instance = new_token()  # the ids of connections are those of this process

    @property
    def url(self) -> str:
        """What a browser on this machine opens; the token is behind the #, which browsers send nobody."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)  # noqa: S104 - compared, not bound
        url = f"http://{Address(host, self.address.port)}/"
        return url if self.token is None else f"{url}#token={self.token}"

    async def start(self, host: InspectedHost) -> None:
        """Begin to serve; *host* runs, in the running event loop."""
        loop = asyncio.get_running_loop()
        engine = host.runner.engine
        self._host = host
        self._offset = time.time() - loop.time()
        self._table = ConnectionTable(engine, self._offset)
        engine.observers = (*engine.observers, self._table)
        self._sample()
        self._runner = web.AppRunner(
            self._site(),
            handle_signals=False,
            access_log=None,
            logger=_quiet,
            keepalive_timeout=IDLE,
            shutdown_timeout=GOODBYE,
        )
        await self._runner.setup()
        serve = self._runner.server
        if serve is None:  # only before setup
            return

        def connected() -> asyncio.BaseProtocol:
            if len(serve.connections) >= CLIENTS and not self._make_room():
                return _Refuse()
            if len(self._strangers) > 2 * CLIENTS:
                here = (one for one in self._strangers if one.transport is not None)
                self._strangers = dict.fromkeys(here)
            client = serve()
            self._strangers[client] = None
            self._silent[client] = loop.call_later(SILENCE, self._said_nothing, client)
            return client

        self._server = await loop.create_server(connected, sock=self._socket)

    def _make_room(self) -> bool:
        """Close the oldest connection that hasn't shown the token; return whether there was one."""
        for client in tuple(self._strangers):
            del self._strangers[client]
            if client.transport is not None:
                client.transport.abort()
                return True
        return False

    def _said_nothing(self, client: RequestHandler) -> None:
        del self._silent[client]
        if client.transport is not None:
            client.transport.abort()

    def _site(self) -> web.Application:
        site = web.Application(middlewares=[self._guard], client_max_size=BODY)
        site.add_routes(
            [
                *(web.get(path, self._file) for path in self._files),
                web.post("/api/login", self._login),
                web.get("/api/state", self._state),
                web.get("/api/connections", self._connections),
                web.get("/api/connections/{id}", self._connection),
                web.post("/api/connections/{id}/send", self._send),
                web.post("/api/connections/{id}/close", self._close),
                web.post("/api/publish", self._publish),
                web.get("/api/live", self._live),
            ]
        )
        return site

    async def stop(self) -> None:
        """End it, and let go of its pages."""
        if self._sampling is not None:
            self._sampling.cancel()
        engine = self._host.runner.engine
        engine.observers = tuple(other for other in engine.observers if other is not self._table)
        if self._server is not None:
            self._server.close()
        goodbye = b"the gateway stops"
        await asyncio.gather(*(page.close(code=1001, message=goodbye, drain=False) for page in self._pages))
        if self._runner is not None:
            await self._runner.cleanup()
        for silence in self._silent.values():
            silence.cancel()

    def _sample(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
        self._table.sample()
        pause = LOOKED_AT if self._pages else UNSEEN
        self._sampling = asyncio.get_running_loop().call_later(pause, self._sample)

    # --- every request

    @web.middleware
    async def _guard(self, request: web.Request, handler: Next) -> web.StreamResponse:
        silence = self._silent.pop(request.protocol, None)
        if silence is not None:
            silence.cancel()
        refusal = self._judge(request)
        if refusal is not None:
            return await refused(refusal)
        if request.path.startswith("/api/") and request.path != "/api/login":
            self._strangers.pop(request.protocol, None)
        async with self._turns:  # one request in each round of the loop: devices come in between
            await asyncio.sleep(0)
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - each has its status
            return failure(request, error)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _judge(self, request: web.Request) -> Refusal | None:
        headers = request.headers
        origin, fetch_site = headers.get("Origin"), headers.get("Sec-Fetch-Site")
        if not request.path.startswith("/api/"):  # a link from elsewhere may lead to the page
            origin = fetch_site = None
        refusal = self._access.check_site(headers.get("Host", ""), origin, fetch_site)
        if refusal is not None or not request.path.startswith("/api/") or request.path == "/api/login":
            return refusal
        kind, _, token = headers.get("Authorization", "").partition(" ")
        return self._access.check_token(
            token.strip() if kind.lower() == "bearer" else None,
            request.cookies.get(self._cookie),
            request.remote or "",
            time.monotonic(),
        )

    # --- what is told

    async def _file(self, request: web.Request) -> web.Response:
        data, kind = self._files[request.path]
        return web.Response(body=data, content_type=kind, charset="utf-8")

    async def _login(self, request: web.Request) -> web.Response:
        given, _ = await posted(request, self._reading, most=SMALL)  # of a stranger
        token = given.get("token")
        refusal = self._access.check_token(
            token if isinstance(token, str) else "", None, request.remote or "", time.monotonic()
        )
        if refusal is not None:
            return await refused(refusal)
        response = web.json_response({})
        response.set_cookie(self._cookie, self._access.cookie, httponly=True, samesite="Strict", path="/api/")
        return response

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response(self._look())

    async def _connections(self, request: web.Request) -> web.Response:
        return web.json_response(await self._table.table(Query.read(request.query)))

    async def _connection(self, request: web.Request) -> web.Response:
        return web.json_response(self._table.row(self._find(request)))

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if len(self._pages) >= PAGES:
            return error_answer(503, f"{PAGES} pages are open already, which is the limit")
        page = web.WebSocketResponse(timeout=GOODBYE, heartbeat=20.0, max_msg_size=65_536, compress=False)
        if not page.can_prepare(request):
            return error_answer(400, "this is for the page's WebSocket")
        await page.prepare(request)
        transport = request.transport
        self._pages.add(page)
        if len(self._pages) == 1:
            self._sample()
        try:
            if transport is not None:
                await Live(self._table, self._look, page, transport.abort).run()
        finally:
            self._pages.discard(page)
        return page

    def _look(self) -> dict[str, Any]:
        engine = self._host.runner.engine
        numbers = Counter(channel.protocol.router.name for channel in engine.channels)
        return {
            "version": version("exproto-app"),
            "instance": self._instance,
            "protocols": [
                {
                    "name": name,
                    "framing": repr(router.framing),
                    "codec": "" if router.codec is None else repr(router.codec),
                    "listeners": [where for protocol, where in self._host.listening if protocol == name],
                    "connections": numbers[name],
                }
                for name, router in self._app.protocols.items()
            ],
            "hub": str(engine.hub),
            "ready": getattr(engine.hub, "ready", None),
            "counters": dict(engine.counters),
            "pages": len(self._pages),
            "now": time.time(),
        }

    # --- what is done

    def _find(self, request: web.Request) -> One:
        one = self._table.find(request.match_info["id"])
        if one is None:
            raise web.HTTPNotFound(reason="this connection is gone")
        return one

    async def _send(self, request: web.Request) -> web.Response:
        given, data = await posted(request, self._reading, payload=True)
        channel = self._find(request)
        if not isinstance(channel, Channel):
            raise CommandError("the device has to speak first: its protocol isn't known yet")
        raw = bool(given.get("raw"))
        if not raw and channel.builds:  # by hand it is a frame, no message of the codec
            data, raw = channel.protocol.router.reply_framing.encode(data), True
        log.info("%s = the inspector sends %d bytes", channel, len(data))
        await result_of(channel.conn.send(data, raw=raw))
        return web.json_response({})

    async def _close(self, request: web.Request) -> web.Response:
        await posted(request, self._reading)
        one = self._find(request)
        log.info("%s = the inspector closes it", one)
        one.end("terminated")
        return web.json_response({})

    async def _publish(self, request: web.Request) -> web.Response:
        given, data = await posted(request, self._reading, payload=True)
        topic = given["topic"]
        if not isinstance(topic, str):
            raise TypeError("the topic is not text")
        outcome = self._app.publish(topic, data, given.get("qos", 0), retain=bool(given.get("retain")))
        log.info("inspector = publishes %d bytes to %r", len(data), topic)
        await result_of(outcome)
        return web.json_response({})


class _Refuse(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
