"""Checks of EMQX's ExProto gateway: what answers where its adapter should be, and whether it calls us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from ...errors import ExprotoError, SetupError, UnsupportedError
from ...models import Address, is_loopback
from ..emqx_config import handler
from ..emqx_ports import choose_listeners
from .finding import Finding, failed, ok, skipped
from .ports import is_free
from .reach import reach
from .setup import EmqxGateway, Setup

if TYPE_CHECKING:
    from ...hosts.grpc import AdapterMap
    from ...hosts.grpc.caller import Caller, InboundCall, Take

__all__ = ["emqx"]

NOBODY: Final = "ZG9jdG9y"
"""Base64, as EMQX's connections have it, but of no process: an adapter says that there is none."""

UNARY, STREAMS = "ConnectionUnaryHandler", "ConnectionHandler"

OLDEST: Final = (5,)
"""The EMQX whose demands on an address are the strictest."""

OTHERS: Final = 1_000
"""Calls for other devices that are remembered."""

ADAPTER_REMEDY: Final = (
    "give --adapter the port of EMQX's gateway.exproto server { bind }, on 4.x exproto.server.http.port; "
    "18083 is its dashboard, 1883 its MQTT, and listeners are for devices"
)


def emqx(setup: Setup) -> Iterator[Finding]:
    """See what answers at each adapter's address, then wait for EMQX's call."""
    gateway = setup.gateway
    if gateway is None:
        yield skipped("emqx", "no EMQX 4.3 to 6.2: no --serve")
        return
    try:
        from ...hosts.grpc import AdapterMap  # noqa: PLC0415 - an extra
    except ImportError as error:
        words = f"EMQX wasn't checked, which needs: pip install 'exproto-app[grpc]' ({error})"
        yield skipped("emqx", words)
        return
    try:
        adapters = AdapterMap(gateway.adapters)
        if setup.app is not None:
            choose_listeners(setup.app, gateway.protocols)
    except SetupError as error:
        yield failed("emqx.options", str(error))
        return
    for host, port in adapters.fixed:
        if Address(host, port) == gateway.bind:
            remedy = "--bind is where EMQX calls us, --adapter where we call EMQX, usually port 9100"
            yield failed("emqx.adapter", f"--adapter {host}:{port} is our own --bind", remedy)
        else:
            yield from asyncio.run(_adapter(setup, host, port))
    if not adapters.fixed:
        yield skipped("emqx.adapter", "the adapter's address is known when EMQX calls (auto)")
    problem = is_free(gateway.bind)
    if problem:
        words = f"can't check whether EMQX calls: {problem}"
        yield skipped("emqx.callback", words, "while serve runs, its own log says who calls")
    else:
        yield from asyncio.run(_callback(setup, gateway, adapters))


async def _adapter(setup: Setup, host: str, port: int) -> list[Finding]:
    findings, sock = await reach(setup, "emqx.adapter", host, port, "--adapter")
    if sock is not None:
        sock.close()
        findings.append(await _speaks(host, port, setup.wait))
    return findings


async def _speaks(host: str, port: int, wait: float) -> Finding:
    """Call the adapter about a connection that doesn't exist, which changes nothing."""
    from ...hosts.grpc import exproto_pb2 as pb  # noqa: PLC0415 - an extra
    from ...hosts.grpc.answers import judge  # noqa: PLC0415 - likewise
    from ...hosts.grpc.broker import Broker  # noqa: PLC0415 - likewise
    from ...hosts.grpc.link import PROBE  # noqa: PLC0415 - likewise

    loop = asyncio.get_running_loop()
    broker = Broker(host, port)
    answer: asyncio.Future[tuple[int, bytes]] = loop.create_future()

    def done(status: int, message: bytes) -> None:
        if not answer.done():
            answer.set_result((status, message))

    request = pb.UnsubscribeRequest(conn=NOBODY, topic=PROBE)
    began = loop.time()
    broker.call("Unsubscribe", request.SerializeToString(), done)
    where = f"http://{broker.client.name}"
    try:
        while not answer.done() and loop.time() < began + wait and not broker.client.trouble:
            await asyncio.wait((answer,), timeout=0.05)
        if not answer.done():
            words = broker.client.trouble or f"it doesn't answer within {wait:g} s"
            return failed("emqx.adapter", f"{where} is not an ExProto adapter: {words}", ADAPTER_REMEDY)
    finally:
        await broker.close()
    status, message = answer.result()
    error = judge("Unsubscribe", status, message)
    took = loop.time() - began
    if isinstance(error, UnsupportedError):
        words = f"{where} is another gRPC program: it has no ConnectionAdapter"
        return failed("emqx.adapter", words, ADAPTER_REMEDY)
    if status != 0 or error is None:
        words = str(error or "it has a connection that can't be")
        return failed("emqx.adapter", f"{where} doesn't answer as an adapter does: {words}", ADAPTER_REMEDY)
    return ok("emqx.adapter", f"{where} answers as an ExProto adapter", seconds=took)


class Listener:
    """Takes the place of the service: answers every call, and remembers who called what.

    *device*: the port and the words of the doctor's own device, whose calls alone count then; by its words it
    is known where something between translates addresses.
    """

    def __init__(self, adapters: AdapterMap, device: tuple[int, bytes] | None = None) -> None:
        from ...hosts.grpc.callers import Callers  # noqa: PLC0415 - an extra

        self.adapters = adapters
        self.callers = Callers()
        self.methods: Mapping[bytes, tuple[Take, bool]] = {
            f"/emqx.exproto.v1.{service}/{name}".encode(): (
                partial(self._take, service, name),
                service == STREAMS,
            )
            for service in (UNARY, STREAMS)
            for name in (
                "OnSocketCreated",
                "OnSocketClosed",
                "OnReceivedBytes",
                "OnTimerTimeout",
                "OnReceivedMessages",
            )
        }
        self.called: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self.device = device
        self.others: list[tuple[str, str, str, bytes]] = []
        self.said: list[str] = []

    def wait_for(self, port: int, words: bytes) -> None:
        """Count the device whose address ends in *port*, or that says *words*, and no other."""
        self.device = port, words
        for caller, service, name, message in self.others:
            self._judge(caller, service, name, message)

    def _take(self, service: str, name: str, caller: Caller, call: InboundCall, message: bytes) -> bool:  # noqa: ARG002 - a `Take`
        self._judge(caller.host, service, name, message)
        if len(self.others) < OTHERS:
            self.others.append((caller.host, service, name, message))
        return True

    def _judge(self, host: str, service: str, name: str, message: bytes) -> None:
        if not self.called.done() and (self.device is None or _is_of(self.device, name, message)):
            self.called.set_result((host, service))

    def say(self, what: object, text: str, *arguments: object) -> None:  # noqa: ARG002 - as callers call it
        """Remember what is wrong with somebody who came."""
        self.said.append((text % arguments).removeprefix("grpc ! "))

    def count(self, name: str) -> None:
        """Do nothing: nobody asks for counts."""


def _is_of(device: tuple[int, bytes], name: str, message: bytes) -> bool:
    """Return whether an event is one of *device*."""
    from ...hosts.grpc import exproto_pb2 as pb  # noqa: PLC0415 - an extra

    port, words = device
    if name != "OnSocketCreated":
        return name == "OnReceivedBytes" and words in message
    try:
        request = pb.SocketCreatedRequest.FromString(message)
    except Exception:  # noqa: BLE001 - protobuf's own error, whose place differs between versions
        return False
    return bool(request.conninfo.peername.port == port)


class _Said(logging.Handler):
    """Collects what is warned of meanwhile: failed handshakes are told in the log only."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage().removeprefix("grpc ! "))


async def _callback(setup: Setup, gateway: EmqxGateway, adapters: AdapterMap) -> list[Finding]:
    """Listen in the service's place until EMQX calls."""
    from ...hosts.grpc.caller import Caller  # noqa: PLC0415 - an extra

    loop = asyncio.get_running_loop()
    words = f"exproto-app doctor {secrets.token_hex(8)}\n".encode()
    ear = Listener(adapters, (0, words) if gateway.device is not None else None)
    try:
        context = gateway.tls.context() if gateway.tls is not None else None
        make: Callable[[], asyncio.Protocol] = lambda: Caller(ear).protocol  # noqa: E731 - a factory, named for its type
        server = await loop.create_server(
            make, gateway.bind.host or None, gateway.bind.port, ssl=context, reuse_address=True
        )
    except (OSError, ExprotoError) as error:
        return [failed("emqx.callback", f"{gateway.bind} can't be served: {error}")]
    handler = _Said(ear.said)
    log = logging.getLogger("exproto_app")
    log.addHandler(handler)
    device = None
    findings: list[Finding] = []
    try:
        if gateway.device is not None:
            host, port = gateway.device.host, gateway.device.port
            findings, device = await reach(setup, "emqx.device", host, port, "--device")
            if device is not None:
                ear.wait_for(device.getsockname()[1], words)
                with contextlib.suppress(OSError):  # then nobody calls, which is told
                    await loop.sock_sendall(device, words)
        await asyncio.wait((ear.called,), timeout=setup.wait)
        findings.append(_judged(setup, gateway, ear))
        if ear.called.done() and not adapters.fixed:
            broker = adapters.find(ear.called.result()[0])
            if broker is not None:
                address = broker.client.name.rpartition(":")
                findings += await _adapter(setup, address[0].strip("[]"), int(address[2]))
        return findings
    finally:
        log.removeHandler(handler)
        if device is not None:
            device.close()
        server.close()
        for caller in ear.callers:
            caller.protocol.abort()
        for broker in adapters:
            await broker.close()


def _judged(setup: Setup, gateway: EmqxGateway, ear: Listener) -> Finding:
    """Return what came of the wait."""
    if ear.called.done():
        host, service = ear.called.result()
        if ear.adapters.find(host) is None:
            remedy = f"add --adapter {host}=http://{host}:9100, or auto:9100"
            return failed("emqx.callback", f"EMQX at {host} calls, but no --adapter is for it", remedy)
        advice = ""
        if service == STREAMS:
            advice = f"it adds up to 20 ms; use service_name = {UNARY} where the broker has it"
        return ok("emqx.callback", f"EMQX at {host} calls the service {service}", advice)
    connected = [caller.host for caller in ear.callers if caller.broker is not None]
    if ear.device is not None and (ear.others or (connected and ear.device[0])):
        host = ear.others[0][0] if ear.others else connected[0]
        does = "calls for other devices" if ear.others else "is connected"
        words = f"EMQX at {host} {does}, but didn't call for the one that connected to {gateway.device}"
        return failed("emqx.callback", words, "--device has to be a listener of its gateway exproto, on TCP")
    if connected:
        host = connected[0]
        advice = "it calls when a device comes: have one connect, or give --device HOST:PORT"
        return ok("emqx.callback", f"EMQX at {host} is connected, but hasn't called", advice)
    if ear.said:
        words = f"EMQX doesn't call, but {ear.said[-1]}"
        return failed("emqx.callback", words, _address(setup, gateway))
    words = f"nobody called {gateway.bind} within {setup.wait:g} s"
    return failed("emqx.callback", words, _address(setup, gateway))


def _address(setup: Setup, gateway: EmqxGateway) -> str:
    """Return what the handler's address in EMQX has to be, as --print-config has it."""
    called = handler(gateway.bind, gateway.tls.cert if gateway.tls is not None else None, OLDEST)
    host = gateway.bind.host
    scheme = called.url.partition(":")[0]
    words = [
        f"the handler's address in EMQX has to begin with {scheme}:// and lead to port {gateway.bind.port}"
    ]
    if is_loopback(host):
        where = "outside this container" if setup.container else "on another machine or in a container"
        words.append(f"an EMQX {where} can't reach {host}: --bind 0.0.0.0:{gateway.bind.port}")
    words.append("it has to be an IP address before EMQX 5.8.5, not a name, and one of IPv4")
    if called.server_name is not None:
        words.append(f'its ssl_options need server_name_indication = "{called.server_name}"')
    words += called.warnings
    if gateway.device is None:
        words.append("it calls when a device comes: have one connect, or give --device HOST:PORT")
    return "; ".join(words)
