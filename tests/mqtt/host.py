"""The behaviour suite's host: an app on its own gateway, with a real broker as the hub."""

from __future__ import annotations

import contextlib
from typing import Any

from exproto_app import App
from exproto_app.hosts.mqtt import MqttHub, Options
from tests.behaviour.hosts import GatewayHost, login

from .broker import Broker
from .client import Client

__all__ = ["MqttHost"]


class MqttHost(GatewayHost):
    """An app on its gateway, and the broker; *shared*: all devices are one client to it."""

    def __init__(
        self, app: App[Any], stack: contextlib.ExitStack, broker: Broker, *, shared: bool = False
    ) -> None:
        self._client = stack.enter_context(Client(broker.port))
        self._client.subscribe("#", qos=2)
        hub = MqttHub(f"mqtt://127.0.0.1:{broker.port}", Options(shared=shared), login=login)
        super().__init__(app, stack, hub)

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self._client.post(topic, payload, qos)
        # When this is acknowledged, the broker has passed on what came before.
        self._client.publish("published", b"", qos=1)

    def published(self, topic: str) -> bytes:
        return self._client.next(topic).payload
