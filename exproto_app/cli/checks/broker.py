"""Checks of the broker of `--mqtt`: each step of the way to it, then a message there and back."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from ...commands import Publish, Subscribe
from ...errors import ExprotoError, SetupError, UnavailableError
from ...models import Message
from .finding import Finding, failed, ok, skipped
from .reach import reach
from .setup import Setup, Uplink

if TYPE_CHECKING:
    from ...hosts.mqtt import Url
    from ...hosts.mqtt.dialects import Dialect

__all__ = ["broker"]

STEPS: Final = ("dns", "tcp", "tls", "login", "roundtrip")

GOODBYE: Final = 1.0
"""Seconds that the broker may take to notice that we go."""

TLS_ALERT: Final = b"\x15\x03"
MQTT3_ANSWER: Final = b"\x20\x02"
"""A CONNACK of MQTT 3, which is two bytes shorter (3.2.2.3 of the MQTT 5 standard)."""

VERSION: Final = 0x84

REMEDIES: Final = {
    VERSION: "use a broker that speaks MQTT 5 or 3.1.1, and leave --mqtt-version out",
    0x85: "have it allow clientids that begin with exproto-app",
    0x86: "correct the user and the password in --mqtt",
    0x87: "give --mqtt a user that may connect: mqtt://USER:PASSWORD@HOST",
    0x8A: "lift the ban at the broker",
}
"""By the reason code of its refusal."""


def broker(setup: Setup) -> Iterator[Finding]:
    """Follow the way to the broker: name, connection, TLS, login, a message there and back."""
    if setup.uplink is None:
        yield skipped("broker", "no broker: no --mqtt")
        return
    try:
        from ...hosts.mqtt import Url  # noqa: PLC0415 - an extra
    except ExprotoError as error:
        yield skipped("broker", f"the broker wasn't checked: {error}")
        return
    try:
        url = Url.parse(setup.uplink.url)
        context = url.context(setup.uplink.ca, setup.uplink.cert, setup.uplink.key)
    except SetupError as error:
        yield failed("broker.url", str(error))
        return
    for node in url.each():
        yield from _node(setup, setup.uplink, node, context)


def _node(setup: Setup, uplink: Uplink, url: Url, context: ssl.SSLContext | None) -> Iterator[Finding]:
    findings = asyncio.run(_follow(setup, uplink, url, context))
    yield from findings
    seen = {finding.check for finding in findings}
    left = [step for step in STEPS if f"broker.{step}" not in seen]
    for step in left:
        yield skipped(f"broker.{step}", f"the broker's {step} wasn't reached")


async def _follow(setup: Setup, uplink: Uplink, url: Url, context: ssl.SSLContext | None) -> list[Finding]:
    from ...hosts.mqtt.dialects import MQTT_5, MQTT_311  # noqa: PLC0415 - an extra

    findings, pair = await _connect(setup, url, context)
    if pair is None:
        return findings
    talk = Talk(*pair, url, setup.wait, MQTT_311 if uplink.version == "3.1.1" else MQTT_5)
    found = await _talk(talk, uplink)
    if uplink.version == "auto" and talk.may_be_old:
        _, pair = await _connect(setup, url, context)
        if pair is not None:
            older = Talk(*pair, url, setup.wait, MQTT_311)
            other = await _talk(older, uplink)
            if not older.may_be_old:
                found = other
    return findings + found


async def _connect(
    setup: Setup, url: Url, context: ssl.SSLContext | None
) -> tuple[list[Finding], tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]:
    """Connect, with TLS where there is to be some."""
    findings, sock = await reach(setup, "broker", url.host, url.port, "--mqtt")
    if sock is None:
        return findings, None
    secured, pair = await _secure(setup, sock, url, context)
    return [*findings, secured], pair


async def _secure(
    setup: Setup, sock: socket.socket, url: Url, context: ssl.SSLContext | None
) -> tuple[Finding, tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]:
    """Do the TLS handshake, where there is to be one."""
    from ...hosts.mqtt.dialling import why  # noqa: PLC0415 - an extra

    if context is None:
        return skipped("broker.tls", "no TLS", "mqtts:// has it"), await asyncio.open_connection(sock=sock)
    began = asyncio.get_running_loop().time()
    opened = asyncio.open_connection(sock=sock, ssl=context, server_hostname=url.host)
    try:
        pair = await asyncio.wait_for(opened, setup.wait)
    except asyncio.TimeoutError:
        words = f"{url}: no answer to the TLS handshake within {setup.wait:g} s"
        return failed(
            "broker.tls", words, "does this port speak TLS? it is usually 8883; mqtt:// uses none"
        ), None
    except OSError as error:
        return failed("broker.tls", f"{url}: {why(error)}", _tls_remedy(error)), None
    took = asyncio.get_running_loop().time() - began
    return ok("broker.tls", f"{url}: its certificate is good", seconds=took), pair


def _tls_remedy(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if "ostname" in str(error) or "IP address" in str(error):
            return "give --mqtt the name that its certificate is for"
        return "give the CA that it is signed by, --mqtt-ca FILE, or have the broker renew it"
    if isinstance(error, ssl.SSLError) and "VERSION" in (error.reason or ""):
        return "that port speaks no TLS; write mqtt://, or use the broker's TLS port, usually 8883"
    return "the broker may demand a certificate: --mqtt-cert FILE; else use its TLS port, usually 8883"


class Talk:
    """One MQTT session for the checks: the owner of a `Session`, over streams."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        url: Url,
        wait: float,
        dialect: Dialect,
    ) -> None:
        from ...hosts.mqtt.session import Bounds, Login, Session  # noqa: PLC0415 - an extra

        self.loop = asyncio.get_running_loop()
        clientid = f"exproto-app-doctor-{secrets.token_hex(6)}"
        login = Login(clientid, url.username, url.password)
        self.session = Session(login, self, self.loop.create_future, Bounds(timeout=wait))
        self.dialect = dialect
        self.may_be_old = False  # it doesn't speak this version
        self.url = url
        self.clientid = clientid
        self.answer: Finding | None = None
        self.messages: list[Message] = []
        self.ended = ""
        self._reader = reader
        self._writer = writer
        self._wait = wait
        self._user = f" for {url.username!r}" if url.username else ""

    async def until(self, reached: Callable[[], object]) -> None:
        """Go on until *reached*. Raises `UnavailableError` where the broker ends it, or keeps silent."""
        from ...hosts.mqtt.dialling import why  # noqa: PLC0415 - an extra

        deadline = self.loop.time() + self._wait
        while not reached():
            self._writer.write(self.session.take())
            try:
                reading = self._reader.read(65_536)
                data = await asyncio.wait_for(reading, max(0.0, deadline - self.loop.time()))
            except asyncio.TimeoutError:
                raise UnavailableError(f"no answer within {self._wait:g} s") from None
            except OSError as error:
                raise UnavailableError(f"the connection broke: {why(error)}") from None
            if not data:
                self.may_be_old = self.answer is None and not self.ended
                raise UnavailableError(self.ended or "it closed the connection")
            self._receive(data)
            if self.ended:
                raise UnavailableError(self.ended)

    def _receive(self, data: bytes) -> None:
        from ...hosts.mqtt.session import ProtocolError  # noqa: PLC0415 - an extra

        if not self.session.online:
            other = _no_broker(data, self.dialect)
            if other is not None:
                self.may_be_old = data[:1] == MQTT3_ANSWER[:1]
                self.answer = other
                return
        try:
            self.session.receive(data)
        except ProtocolError as error:
            raise UnavailableError(f"it breaks the protocol: {error}") from None

    async def close(self) -> None:
        """Say goodbye."""
        self.session.disconnect(with_will=False)
        self._writer.write(self.session.take())
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), GOODBYE)
        except (OSError, asyncio.TimeoutError):
            self._writer.transport.abort()

    # --- from the session

    def wants_write(self) -> None:
        """Do nothing: `until` writes."""

    def accepted(self) -> None:
        """Take note of success."""
        from ...hosts.mqtt.versions import LOST  # noqa: PLC0415 - an extra

        words = f"the broker lets the gateway in{self._user}, by {self.dialect.name}"
        self.answer = ok("broker.login", words, "" if self.dialect.is_5 else LOST)

    def refused(self, code: int, words: str) -> None:
        """Take note of a refusal."""
        self.may_be_old = code == VERSION
        remedy = REMEDIES.get(code, "see the broker's log")
        self.answer = failed("broker.login", f"the broker refuses the login{self._user}: {words}", remedy)

    def denied(self, command: object, words: str) -> bool:  # noqa: ARG002 - a session's owner
        """Do nothing: its outcome tells."""
        return True

    def disconnected(self, code: int, words: str, blame: object) -> None:  # noqa: ARG002 - a session's owner
        """Take note of the broker's goodbye."""
        self.ended = f"the broker ended the session: {words}"

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:  # noqa: ARG002 - as above
        """Take the message that comes back."""
        self.messages.append(message)
        if taken is not None:
            taken()

    def relieved(self) -> None:
        """Do nothing: there is no queue."""

    def finished(self) -> None:
        """Do nothing: it is never asked to finish."""


def _no_broker(data: bytes, dialect: Dialect) -> Finding | None:
    """Return what is wrong where the first bytes are no answer in *dialect*."""
    if data[:2] == TLS_ALERT:
        return failed("broker.login", "that port speaks TLS", "write mqtts://")
    if dialect.is_5 and data[:2] == MQTT3_ANSWER:
        return failed("broker.login", "it answers with MQTT 3", REMEDIES[VERSION])
    if data[:1] not in (b"\x20", b"\xe0"):
        remedy = "correct the port in --mqtt; 1883 is usual, 8883 with mqtts://"
        return failed("broker.login", f"that port doesn't speak MQTT: it answered {data[:40]!r}", remedy)
    return None


async def _talk(talk: Talk, uplink: Uplink) -> list[Finding]:
    """Log in, have a message go there and back, and say goodbye."""
    try:
        return await _converse(talk, uplink)
    finally:
        await talk.close()


async def _converse(talk: Talk, uplink: Uplink) -> list[Finding]:
    from ...hosts.mqtt.reasons import NO_MQTT5  # noqa: PLC0415 - an extra

    url = talk.url
    talk.session.connect(talk.loop.time(), talk.dialect)
    try:
        await talk.until(lambda: talk.answer)
    except UnavailableError as error:
        hint = NO_MQTT5 if uplink.version == "5" else "it has another reason; see its log"
        remedy = f"perhaps {hint}" if url.tls else f"perhaps it wants TLS, mqtts://, or {hint}"
        return [failed("broker.login", f"{url} doesn't answer to our CONNECT: {error}", remedy)]
    assert talk.answer is not None  # noqa: S101 - `until` has seen to it
    findings = [talk.answer]
    if talk.answer.outcome == "ok":
        findings.append(await _round_trip(talk, uplink.topic))
    return findings


async def _round_trip(talk: Talk, topic: str) -> Finding:
    """Publish to ourselves."""
    began = talk.loop.time()
    payload = secrets.token_bytes(8)
    remedy = f"allow this user to use {topic}, or name an allowed topic with --mqtt-topic"
    session = talk.session
    try:
        for name, outcome in (
            ("subscribe", session.subscribe(Subscribe(topic, 1))),
            ("publish", session.publish(Publish(topic, payload, 1))),
        ):
            await talk.until(partial(getattr, outcome, "done"))
            if outcome.error is not None:
                words = f"the broker doesn't let us {name}: {outcome.error}"
                return failed("broker.roundtrip", words, remedy)
        await talk.until(lambda: any(message.payload == payload for message in talk.messages))
    except UnavailableError as error:
        return failed("broker.roundtrip", f"a message didn't come back: {error}", remedy)
    took = talk.loop.time() - began
    return ok("broker.roundtrip", f"a message goes to {topic} and comes back", seconds=took)
