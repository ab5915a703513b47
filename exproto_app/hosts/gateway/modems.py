"""Transparent modems that publish what their serial port says: each id is a connection, framing and all.

The gateway is a client of the broker, of its own, which subscribes to what all modems say. A modem's first
message, or its word that it is online, begins its connection; silence, or its will, ends it. What comes for a
connection that isn't read waits, up to `HELD` of the largest messages; beyond that the connection ends, for a
stream with a hole is worth nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...commands import Outcome, Publish, Subscribe, Unsubscribe
from ...core import Intake
from ...errors import CommandError, ExprotoError, SetupError
from ...models import Address, ConnectionInfo, Message, Reason
from .listeners import check_files
from .modem_line import ModemLine

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .listeners import Listen

__all__ = ["Modem", "Modems", "probe", "serve"]

log = logging.getLogger("exproto_app")

HEAD: Final = 4_096
"""Bytes of a packet beside the payload."""

HELD: Final = 4
"""How many of the largest messages of a modem may wait."""

EACH: Final = 100
"""Bytes that a message that waits takes beside what it says."""

LARGEST: Final = 1_048_576
"""Bytes of a payload that the broker may send; it keeps larger ones to itself."""

PATIENCE: Final = 5.0
"""Seconds that the doctor waits for the broker, and that saying goodbye to it may take."""


async def serve(endpoint: Endpoint, _: socket.socket | None = None) -> Modems:
    """Serve the modems of *endpoint*. Raises `SetupError`, and `ExprotoError` without the MQTT library."""
    from ..mqtt.dialling import BrokerConnections  # noqa: PLC0415 - an extra
    from ..mqtt.url import Trust, Url  # noqa: PLC0415 - likewise

    line: ModemLine = endpoint.listen.settings
    loop = asyncio.get_running_loop()
    hub: Any = endpoint.gateway.hub
    if line.broker is None:
        uplink = getattr(hub, "broker", None)
        if not isinstance(uplink, BrokerConnections):
            raise SetupError(f"{endpoint.listen} has no host; name the broker, or give --mqtt URL")
        broker = BrokerConnections(uplink.url, uplink.tls, uplink.timeout, loop, version=uplink.version)
    else:
        listen, url = endpoint.listen, Url.parse(line.broker)
        check_files(listen, listen.ca, listen.cert, listen.key)
        trust = Trust(ca=listen.ca, cert=listen.cert, key=listen.key)
        broker = BrokerConnections(url, trust.context(url), 10.0, loop)
        if url.tls:
            endpoint.gateway.renewal.add(trust.source(url, broker.use_tls))
    modems = Modems(endpoint, broker)
    modems.start()
    return modems


def probe(listen: Listen) -> None:
    """See whether the broker of *listen* takes connections. Raises `ExprotoError`."""
    from ..mqtt.url import Url  # noqa: PLC0415 - an extra

    if listen.settings.broker is None:  # the check of the uplink tells
        return
    url = Url.parse(listen.settings.broker)
    try:
        socket.create_connection((url.host, url.port), PATIENCE).close()
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise ExprotoError(f"{listen}: the broker can't be reached: {words}") from None


class Modems:
    """The modems of one listener; to *broker* they are one client."""

    def __init__(self, endpoint: Endpoint, broker: Any) -> None:
        from ..mqtt.broker_link import BrokerLink  # noqa: PLC0415 - an extra
        from ..mqtt.session import Bounds, Login  # noqa: PLC0415 - likewise

        self.endpoint = endpoint
        self.line: ModemLine = endpoint.listen.settings
        self.broker = broker
        clientid = self.line.client_id or f"exproto-app-{secrets.token_hex(6)}"
        bounds = Bounds(messages=4_096, queue=4 * LARGEST, packet_max=LARGEST + HEAD, timeout=broker.timeout)
        login = Login(clientid, broker.url.username, broker.url.password)
        self.link = BrokerLink(broker, self, login, bounds)
        self.modems: dict[str, Modem] = {}
        self._loop = broker.loop
        self._sweeper: asyncio.TimerHandle | None = None
        self._stopping = False

    def start(self) -> None:
        """Connect, and subscribe."""
        self.broker.gateway_client = self.link
        self.broker.start()
        self.link.open()
        line = self.line
        for template in filter(None, (line.up, line.status)):
            self.link.session.subscribe(Subscribe(template.filter, line.qos))
        self._sweep()

    def stop(self) -> None:
        """Begin no new connections."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def close(self) -> None:
        """Disconnect."""
        self.link.close()
        until = self._loop.time() + PATIENCE
        while self.link.connected and self._loop.time() < until:  # noqa: ASYNC110 - only the end waits
            await asyncio.sleep(0.01)
        await self.broker.stop()

    def _sweep(self) -> None:
        """End the connections of modems that have been silent for too long."""
        seconds = self.line.idle
        now = self._loop.time()
        self._sweeper = self._loop.call_later(min(10.0, seconds / 4), self._sweep)
        for modem in tuple(self.modems.values()):
            if now - modem.heard >= seconds and modem.channel is not None:
                modem.channel.end("timeout", f"no message within {seconds:g} s", drain=True)

    # --- from the link

    def message(self, message: Message, ids: list[int], acknowledge: Callable[[], object] | None) -> None:  # noqa: ARG002 - the link's signature
        """Take what a modem says, or what is said of it."""
        line = self.line
        if modem := line.up.find(message.topic):
            if not message.retain:  # else it is old
                self._heard(modem, message.payload)
        elif line.status is not None and (modem := line.status.find(message.topic)):
            if message.payload.strip() == line.offline:
                self._left(modem)
            else:
                self._find(modem)
        else:
            self._drop(f"{message.topic!r} has no valid id")
        if acknowledge is not None:
            acknowledge()

    def _heard(self, name: str, data: bytes) -> None:
        most = self.line.max_message
        modem = self._find(name)
        if modem is None:
            self.endpoint.engine.count("modem_messages_dropped")
        elif len(data) > most:
            self._drop(f"{name!r} published {len(data)} bytes, limit is {most}; its connection ends")
            modem.lose(f"a message has {len(data)} bytes, limit is {most}")
        elif data:
            modem.received(data)

    def _drop(self, why: str) -> None:
        self.endpoint.engine.count("modem_messages_dropped")
        log.warning("modems ! a message is dropped: %s", why)

    def _find(self, name: str) -> Modem | None:
        """Return the modem of that id; begin its connection if there is none, and room for one."""
        modem = self.modems.get(name)
        if modem is not None or self._stopping:
            return modem
        peer = Address(name, 0)
        if not self.endpoint.take_place(peer):
            return None
        modem = self.modems[name] = Modem(self, name)
        where = self.broker.cluster.here
        target = f"{self.endpoint.listen.scheme}://{where.host}:{where.port}/{self.line.up.of(name)}"
        info = ConnectionInfo("mqtt", peer, Address(where.host, where.port), None, target, name)
        self.endpoint.connected(modem, info)
        return modem

    def _left(self, name: str) -> None:
        modem = self.modems.get(name)
        if modem is not None:
            modem.leave("the broker says that it is offline")

    def accepted(self) -> None:
        log.info("line = %s is up", self.endpoint.listen)

    def refused(self, error: CommandError, words: str) -> None:
        log.error("line ! %s: the broker refuses the gateway: %s", self.endpoint.listen, words)
        self.link.retry(str(error))

    def offline(self) -> None:
        """Do nothing: what is to be sent waits."""

    def failed(self, words: str, *, worst: bool) -> None:
        if self.link.trouble != words or worst:
            log.error("line ! %s: %s; tried again", self.endpoint.listen, words)

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> bool:
        log.error("line ! %s: the broker refuses %r: %s", self.endpoint.listen, command.topic, words)
        return False

    def disconnected(self, code: int, words: str, blame: object) -> bool:  # noqa: ARG002 - the link's signature
        return True

    def relieved(self) -> None:
        """Do nothing: each modem counts what it has on the way."""

    def finished(self) -> None:
        """Do nothing: it is never asked to finish."""


class Modem:
    """The link of one modem."""

    __slots__ = (
        "_flying",
        "_held",
        "_held_size",
        "_left",
        "_modems",
        "_paused",
        "_pending",
        "_unsent",
        "channel",
        "heard",
        "name",
    )

    answers = False
    write = None
    broker_side = None
    confirm = None

    def __init__(self, modems: Modems, name: str) -> None:
        self.name = name
        self.channel: Intake | None = None
        self.heard = modems.broker.loop.time()
        self._modems = modems
        self._held: deque[bytes] = deque()
        self._held_size = 0
        self._paused = False
        self._pending = 0
        self._flying = 0
        self._unsent: deque[bytes] = deque()
        self._left = ""

    @property
    def endpoint(self) -> Endpoint:
        """The listener."""
        return self._modems.endpoint

    def received(self, data: bytes) -> None:
        """Take what it says, or have that wait."""
        self.heard = self._modems.broker.loop.time()
        if self.channel is None:
            return
        if not self._paused and not self._held:
            self.channel.received(data)
            return
        self._held.append(data)
        self._held_size += len(data) + EACH
        self.channel.note_memory()
        most = HELD * self._modems.line.max_message
        if self._held_size > most:
            self.lose(f"{self._held_size} bytes wait to be handled, limit is {most}")

    def leave(self, detail: str) -> None:
        """End the connection, when what has come is handled."""
        if self._held:
            self._left = detail
        else:
            self.end("device closed", detail)

    def lose(self, detail: str) -> None:
        """End the connection, in which something is missing."""
        self.end("lost", detail)

    def end(self, reason: Reason, detail: str) -> bool:
        """End the connection, once; return whether there was one."""
        if self.channel is None:
            return False
        channel, self.channel = self.channel, None
        self._held.clear()
        if self._modems.modems.get(self.name) is self:
            del self._modems.modems[self.name]
        self.endpoint.leave(None)
        channel.terminated(reason, detail)
        return True

    def vacate(self) -> bool:
        """Give the connection's place to somebody else; return whether it still had one."""
        return self.end("lost", "its place was needed")

    # --- from the channel

    @property
    def buffered(self) -> int:
        return self._held_size + self._pending

    def send(self, chunks: list[bytes]) -> None:
        self._unsent.extend(chunks)
        self._pending += sum(map(len, chunks))
        if not self._flying:
            self._publish()
        if self._pending > self.endpoint.engine.limits.outbox and self.channel is not None:
            self.channel.unwritable()

    def _publish(self) -> None:
        """Publish what is to be sent, joined as far as a message may be long.

        One message is on the way to the broker; what follows is joined meanwhile, for brokers keep few
        messages for a client (Mosquitto 1,000) and drop the rest.
        """
        line = self._modems.line
        pieces = [self._unsent.popleft()]
        size = len(pieces[0])
        while self._unsent and size + len(self._unsent[0]) <= line.max_message:
            pieces.append(self._unsent.popleft())
            size += len(pieces[-1])
        self._flying += 1
        command = Publish(line.down.of(self.name), b"".join(pieces), line.qos)
        self._modems.link.session.publish(command).when_done(partial(self._sent, size))

    def _sent(self, size: int, outcome: Outcome[Any]) -> None:
        self._flying -= 1
        before, self._pending = self._pending, self._pending - size
        if outcome.error is not None:
            self.endpoint.engine.count("sends_failed")
            log.warning("modems ! %r wasn't sent %d bytes: %s", self.name, size, outcome.error)
            self._modems.broker.loop.call_soon(self.lose, f"it couldn't be sent to: {outcome.error}")
            return
        half = self.endpoint.engine.limits.outbox // 2
        if before > half >= self._pending and self.channel is not None:
            self.channel.drained()
        if self._unsent and not self._flying:
            self._publish()

    def close(self) -> None:
        while self._unsent:
            self._publish()
        asyncio.get_running_loop().call_soon(self.end, "device closed", "")

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self.end, "device closed", "")

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._held:
            self._modems.broker.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Take what has waited, for as long as it is read."""
        while self._held and not self._paused and self.channel is not None:
            data = self._held.popleft()
            self._held_size -= len(data) + EACH
            self.channel.received(data)
        if self._left and not self._held:
            self.end("device closed", self._left)
