"""Brokers that acknowledge as they shouldn't: no device is told that a message is safe which isn't."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mqtt5
import pytest

from .fake import fake
from .hasty import hasty
from .test_uplink import site

pytestmark = [
    pytest.mark.live,
    # asyncio's streams leave a connection that the stand-in accepted in its last moment to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LINES = 60


class Unkind:
    """Ways to answer a PUBLISH; *safe* is what the broker really acknowledged."""

    def __init__(self) -> None:
        self.safe: set[bytes] = set()
        self.numbers = itertools.count(1)
        self.late: list[int] = []

    def acknowledge(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        assert packet.packet_id is not None
        self.safe.add(packet.payload)
        writer.write(mqtt5.PubAckPacket(packet.packet_id).write())

    def other_ids_too(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        writer.write(mqtt5.PubAckPacket(((packet.packet_id or 0) + 30_000) % 65_535 + 1).write())
        self.acknowledge(packet, writer)

    def twice(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        self.acknowledge(packet, writer)
        self.acknowledge(packet, writer)

    def backwards(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        self.late.append(packet.packet_id or 0)
        self.safe.add(packet.payload)
        if len(self.late) == 3:
            while self.late:
                writer.write(mqtt5.PubAckPacket(self.late.pop()).write())

    def second_refused(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        if next(self.numbers) % 2:
            self.acknowledge(packet, writer)
        else:
            code = mqtt5.PubAckReasonCode.QUOTA_EXCEEDED
            writer.write(mqtt5.PubAckPacket(packet.packet_id or 1, reason_code=code).write())

    def hangs_up_between(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        if next(self.numbers) != 25:
            self.acknowledge(packet, writer)
        else:
            writer.close()

    def never_until_it_hangs_up(self, packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
        number = next(self.numbers)
        if number > LINES:
            self.acknowledge(packet, writer)
        elif number == LINES:
            writer.close()


KINDS = [
    Unkind.acknowledge,
    Unkind.other_ids_too,
    Unkind.twice,
    Unkind.backwards,
    Unkind.second_refused,
    Unkind.hangs_up_between,
    Unkind.never_until_it_hangs_up,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("store", ["", "away", "always"])
def test_a_device_is_told_that_a_message_is_safe_only_when_it_is(
    kind: Callable[..., None], store: str, tmp_path: Path
) -> None:
    """With a store it may be safe on the disk; then the broker has it in the end, or has refused it."""
    options: dict[str, Any] = {"store": tmp_path, "store_when": store} if store else {}

    async def test() -> None:
        unkind, results = Unkind(), Results()
        async with fake() as broker, site(broker, **options, timeout=1.0) as here:
            broker.answers = kind.__get__(unkind)
            device = await here.device("d")
            (conn,) = here.app.connections.values()
            for number in range(LINES):
                payload = b"%d" % number
                conn.publish("up", payload, qos=1).when_done(partial(results.put, payload))
            await results.all_there.wait()
            refuses = kind is Unkind.second_refused
            if store and not refuses:
                await broker.until(lambda _: results.safe <= unkind.safe)
            assert refuses or results.safe <= unkind.safe
            assert results.safe | results.refused == {b"%d" % number for number in range(LINES)}
            if not refuses:
                assert not results.refused
            elif store != "always":
                assert len(results.refused) == LINES // 2
                assert results.safe == unkind.safe
            await device.hang_up()

    hasty(test)


class Results:
    """What became of each message."""

    def __init__(self) -> None:
        self.safe: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.all_there = asyncio.Event()

    def put(self, payload: bytes, outcome: Any) -> None:
        (self.safe if outcome.error is None else self.refused).add(payload)
        if len(self.safe | self.refused) == LINES:
            self.all_there.set()
