"""The behaviour suite's host: an app on its own gateway, with a real broker as the hub."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import time
from typing import Any

from exproto_app import App
from exproto_app.hosts.gateway import Gateway
from exproto_app.hosts.gateway.faults import info_of
from exproto_app.hosts.mqtt import MqttHub, Options
from exproto_app.hosts.mqtt.versions import Wanted
from tests.behaviour.hosts import PATIENCE, Device, GatewayHost, listeners, login

from .broker import Broker
from .client import Client

__all__ = ["ModemHost", "MqttHost"]


_numbers = itertools.count(1)


class MqttHost(GatewayHost):
    """An app on its gateway, and the broker; *shared*: all devices are one client to it."""

    abilities = GatewayHost.abilities - {"once"}

    def __init__(
        self,
        app: App[Any],
        stack: contextlib.ExitStack,
        broker: Broker,
        *,
        shared: bool = False,
        version: Wanted = "auto",
    ) -> None:
        self._client = stack.enter_context(Client(broker.port))
        self._client.subscribe("#", qos=2)
        hub = MqttHub(f"mqtt://127.0.0.1:{broker.port}", Options(shared=shared, version=version), login=login)
        super().__init__(app, stack, hub)
        if shared:
            self.abilities -= {"sessions"} if version == "auto" else {"sessions", "apart"}
        if version == "3.1.1":
            self.abilities -= {"properties"}

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self._client.post(topic, payload, qos)
        # When this is acknowledged, the broker has passed on what came before.
        self._client.publish("published", b"", qos=1)

    def published(self, topic: str) -> bytes:
        return self._client.next(topic).payload


class ModemDevice(Device):
    """A device behind a modem that publishes what its serial port says."""

    def __init__(self, client: Client, host: ModemHost, prefix: str, name: str) -> None:
        self.client = client
        self.name = name
        self.seen = b""
        self._host = host
        self._topic = f"{prefix}/{name}"
        client.subscribe(f"{self._topic}/down", qos=1)

    def say(self, word: bytes) -> None:
        """Say that it is there, or that it has gone."""
        self.client.publish(f"{self._topic}/status", word, qos=1)

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 32_768):
            self.client.publish(f"{self._topic}/up", data[at : at + 32_768], qos=1)

    def read(self, count: int) -> bytes:
        until = time.monotonic() + PATIENCE
        while len(self.seen) < count:
            open_ = self._host.has(self.name)
            try:
                self.seen += self.client.take(f"{self._topic}/down", 0.02 if open_ else 0.1).payload
            except queue.Empty:
                if not open_:
                    break
                assert time.monotonic() < until, f"nothing came; before: {self.seen!r}"
        data, self.seen = self.seen[:count], self.seen[count:]
        return data

    def hang_up(self) -> None:
        self.say(b"offline")


class ModemHost(GatewayHost):
    """An app whose devices are behind modems, at a broker that is only theirs."""

    abilities = GatewayHost.abilities - {"address", "flow", "pressure", "udp"}
    socktype = "mqtt"

    def __init__(self, app: App[Any], stack: contextlib.ExitStack, broker: Broker, options: str = "") -> None:
        self._broker = broker
        self._prefix = f"modems{next(_numbers)}"
        self._options = options
        self._names = itertools.count(1)
        super().__init__(app, stack)

    def _make(self) -> Gateway:
        listens = []
        for at, name in enumerate(listeners(self._app)):
            topic = f"{self._prefix}-{at}/{{id}}"
            where = f"mqtt-bytes://127.0.0.1:{self._broker.port}/{topic}/up"
            listens.append(f"{name}={where}?down={topic}/down&will={topic}/status{self._options}")
        return Gateway(self._app, listens, hub=self._hub)

    def connect(
        self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False
    ) -> ModemDevice:
        served = self._app.find_protocols(protocol)
        at = next(at for at, (_, routers, _) in enumerate(self._gateway.addresses) if routers == served)
        client = self._stack.enter_context(Client(self._broker.port))
        device = ModemDevice(client, self, f"{self._prefix}-{at}", f"m{next(self._names)}")
        for number in range(int(PATIENCE / 0.01)):
            if self.has(device.name):
                break
            if not number % 50:  # the gateway may not have subscribed yet
                device.say(b"online")
            time.sleep(0.01)
        return device

    def has(self, name: str) -> bool:
        """Tell whether the modem of that name is connected."""
        return asyncio.run_coroutine_threadsafe(self._has(name), self._loop).result(PATIENCE)

    async def _has(self, name: str) -> bool:
        return any(info_of(one).name == name for one in self._gateway.runner.engine.connections())
