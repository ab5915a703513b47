"""The option of `exproto-app run` that lets MQTT clients into the embedded hub."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import click

from ..core import Hub
from ..hosts.gateway import Gateway
from ..hosts.mqtt_server import MqttServer
from ..hub import MemoryHub
from ..models import Address
from .observe import parse_address

__all__ = ["MqttListen", "choose_mqtt_listen", "mqtt_listen_option", "opened"]

log = logging.getLogger("exproto_app")

DEFAULT: Final = "127.0.0.1:1883"

mqtt_listen_option: Callable[[Any], Any] = click.option(
    "--mqtt-listen",
    metavar="HOST:PORT|off",
    envvar="EXPROTO_MQTT_LISTEN",
    help="Let MQTT clients (3.1.1 and 5) publish to the embedded hub and subscribe from it. "
    f"Default: {DEFAULT}.",
)


@attrs.frozen
class MqttListen:
    """Where MQTT clients may connect, and whether somebody asked for that."""

    address: Address
    asked: bool


def choose_mqtt_listen(text: str | None, hub: Hub) -> MqttListen | None:
    """Read the option. Raises `SetupError`, and `click.UsageError` where the hub takes no MQTT clients."""
    if text == "off":
        return None
    if not isinstance(hub, MemoryHub):
        if text is not None:
            words = "--mqtt-listen opens the embedded hub; with --mqtt, clients go to the broker."
            raise click.UsageError(words)
        return None
    address = parse_address(text or DEFAULT, "--mqtt-listen", DEFAULT)
    return MqttListen(address, text is not None)


@asynccontextmanager
async def opened(choice: MqttListen | None, gateway: Gateway) -> AsyncIterator[list[str]]:
    """Serve MQTT clients, if the port is free, for the length of a block; yield the line that says so."""
    if choice is None or not isinstance(gateway.hub, MemoryHub):
        yield []
        return
    level = logging.WARNING if choice.asked else logging.INFO
    server = MqttServer(gateway.hub, choice.address, gate=gateway.guests)
    gateway.guests.end = server.end_clients
    try:
        await server.start(gateway.runner.engine)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program has the port" if taken else (error.strerror or str(error)).lower()
        words = (
            "gateway = MQTT clients can't connect: %s can't be opened, %s; choose another with --mqtt-listen"
        )
        log.log(level, words, choice.address, why)
        yield []
        return
    try:
        where = f"-h {server.address.host} -p {server.address.port}"
        yield [f"MQTT clients on mqtt://{server.address}  try: mosquitto_sub {where} -t '#' -v"]
    finally:
        await server.stop()
