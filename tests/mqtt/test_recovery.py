"""After an outage everybody is back within 5 s, however the broker was away, and without a storm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from .fake import FakeBroker, fake
from .hasty import hasty
from .test_uplink import Device, Site, site

pytestmark = [
    pytest.mark.live,
    # asyncio's streams leave a connection that the stand-in accepted in its last moment to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DEVICES = 40
OUTAGE = 10.0
RECOVERY = 5.0

OUTAGES = pytest.mark.parametrize("kind", ["gone", "slams", "unavailable", "silent"])


@contextlib.asynccontextmanager
async def away(broker: FakeBroker, kind: str) -> AsyncIterator[None]:
    """Have *broker* be away as *kind* says; all connections are lost at the beginning."""
    await broker.stop()
    if kind == "slams":
        broker.slams = True
    elif kind == "unavailable":
        broker.answer = b"\x20\x03\x00\x88\x00"
    elif kind == "silent":
        broker.silent = True
    if kind != "gone":
        await broker.start()
    try:
        yield
    finally:
        if kind != "gone":
            await broker.stop()
        broker.slams, broker.silent, broker.answer = False, False, None
        await broker.start()


async def fleet(here: Site, number: int = DEVICES) -> list[Device]:
    return [await here.device(f"d{each}") for each in range(number)]


@OUTAGES
@pytest.mark.parametrize("outage", [0.5, 3.0, OUTAGE, 17.0, 45.0])
@pytest.mark.parametrize("remembers", [False, True], ids=["forgets", "remembers"])
def test_all_are_back_and_nothing_is_lost(kind: str, outage: float, remembers: bool) -> None:
    """What was said meanwhile, by clients and by the gateway's own, has arrived 5 s after the outage."""

    async def test() -> None:
        async with fake() as broker, site(broker) as here:
            broker.remembers = remembers
            devices = [*await fleet(here), await here.device()]
            async with away(broker, kind):
                for device in devices:
                    device.send("ask hello")
                await asyncio.sleep(outage)
            answers = asyncio.gather(*(device.read() for device in devices))
            assert await asyncio.wait_for(answers, RECOVERY) == ["ok"] * len(devices)

    hasty(test)


@OUTAGES
def test_without_devices_the_gateways_own_client_is_back_as_soon(kind: str) -> None:
    async def test() -> None:
        async with fake() as broker, site(broker) as here:
            device = await here.device()
            async with away(broker, kind):
                device.send("ask hello")
                await asyncio.sleep(OUTAGE)
            assert await asyncio.wait_for(device.read(), RECOVERY) == "ok"

    hasty(test)


@OUTAGES
def test_a_broker_that_is_away_is_asked_by_one_connection_at_a_time(kind: str) -> None:
    """Once they have found out: a thousand devices that ask are no more use than one."""

    async def test() -> None:
        async with fake() as broker, site(broker) as here:
            await fleet(here)
            async with away(broker, kind):
                await asyncio.sleep(60)
                broker.connects = 0
                await asyncio.sleep(60)
                assert broker.connects <= 130  # one each half a second, and a few at the edges

    hasty(test)


def test_those_who_follow_come_no_faster_than_the_broker_lets_them_in() -> None:
    """At first one, then twice as many with each round of answers."""

    async def test() -> None:
        async with fake() as broker, site(broker) as here:
            devices = await fleet(here)
            async with away(broker, "gone"):
                for device in devices:
                    device.send("ask hello")
                await asyncio.sleep(OUTAGE)
                broker.delay = 0.2
            answers = asyncio.gather(*(device.read() for device in devices))
            assert await asyncio.wait_for(answers, RECOVERY) == ["ok"] * DEVICES
            assert all(asking <= answered + 1 for answered, asking in broker.crowds)
            assert max(asking for _, asking in broker.crowds) > DEVICES / 4

    hasty(test)


def test_a_client_that_alone_is_turned_away_does_not_come_back_with_each_success_of_others() -> None:
    async def test() -> None:
        async with fake() as broker, site(broker) as here:
            await here.device("a")
            broker.refuse["bad"] = 0x88
            bad = await here.device()
            bad.send("login bad")
            await asyncio.sleep(8)
            before = broker.connects
            for number in range(50):
                await here.device(f"d{number}")
            assert broker.connects - before <= 51

    hasty(test)
