"""The behaviour suite's host inside the broker: our driver in a process that a real Erlang VM has started."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from exproto_app.hosts.emqx42 import generate
from exproto_app.hosts.emqx42.loop import Driver
from exproto_app.ops.recorder import KEEP, SIZE
from tests.behaviour import hosts

from .broker import Broker, Device, Vm
from .conftest import begin

__all__ = ["ErlangHost"]


class ErlangDevice(hosts.Device):
    """A device whose socket the broker has."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def send(self, data: bytes) -> None:
        self.device.send(data)

    def read(self, count: int) -> bytes:
        return self.device.read(count)

    def hang_up(self) -> None:
        self.device.hang_up()


class ErlangHost:
    """An app in the broker: a listener, with a Python process of its own, for each protocol."""

    socktype = "tcp"
    abilities = frozenset({"address", "apart", "flow", "kernel", "once", "stream", "udp", "unknown"})

    def __init__(self, vm: Vm, app: str, stack: contextlib.ExitStack, record: Path | None = None) -> None:
        self._vm = vm
        self._record = None if record is None else generate.Record(record, SIZE, KEEP)
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._target = hosts.target_of(app)
        self._brokers: dict[str, Broker] = {}

    def connect(
        self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False
    ) -> ErlangDevice:
        return ErlangDevice(self._broker(protocol).connect("udp" if udp else "tcp", unknown=unknown))

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        for broker in self._brokers.values():
            broker.publish(topic, payload, qos)

    def published(self, topic: str) -> bytes:
        (broker,) = self._brokers.values()
        return broker.published(topic)

    def _broker(self, protocol: str | None) -> Broker:
        name = ",".join(router.name for router in Driver(self._target, protocol=protocol).routers)
        if name not in self._brokers:
            folder = self._folder / name
            folder.mkdir()
            self._brokers[name] = begin(
                self._vm, self._stack, folder, self._target, protocol=name, record=self._record
            )
        return self._brokers[name]
