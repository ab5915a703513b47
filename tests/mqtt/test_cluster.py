"""Several nodes of one broker, and two gateways with one name."""

from __future__ import annotations

import asyncio

import pytest

from exproto_app import UnavailableError
from exproto_app.hosts.mqtt import MqttHub, Options, Url
from exproto_app.hosts.mqtt.cluster import Cluster

from ..test_gateway import run
from .fake import fake
from .test_uplink import Site


class TestCluster:
    """Which node is used."""

    def test_the_next_one_is_tried_at_once_until_all_have_failed(self) -> None:
        cluster = Cluster(Url.parse("mqtt://a,b,c"))
        assert [cluster.failed(cluster.at) for _ in range(7)] == [True, True, False, True, True, False, True]
        assert cluster.here == Url.parse("mqtt://b")

    def test_an_attempt_at_one_that_was_left_changes_nothing(self) -> None:
        cluster = Cluster(Url.parse("mqtt://a,b"))
        assert cluster.failed(0)
        assert cluster.failed(0)
        assert cluster.at == 1

    def test_one_that_answers_is_used_until_it_fails(self) -> None:
        cluster = Cluster(Url.parse("mqtt://a,b"))
        cluster.failed(0)
        cluster.works()
        assert cluster.failed(1)
        assert cluster.at == 0

    def test_a_single_one_has_no_other(self) -> None:
        assert not Cluster(Url.parse("mqtt://a")).failed(0)


@pytest.mark.live
class TestNodes:
    """The uplink with several nodes."""

    @pytest.mark.parametrize("shared", [False, True])
    def test_everybody_goes_to_the_next_when_one_goes(
        self, shared: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def test() -> None:
            async with fake() as one, fake() as two:
                here = Site(
                    MqttHub(f"mqtt://127.0.0.1:{one.port},127.0.0.1:{two.port}", Options(shared=shared))
                )
                async with here.gateway:
                    devices = [await here.device(name) for name in "abc"]
                    await one.stop()
                    for device in devices:
                        assert await device.ask("ask hello") == "ok"
                    assert two.payloads() == [b"hello"] * 3
                    await one.start()
                    await two.stop()
                    for device in devices:
                        assert await device.ask("ask again") == "ok"
                    assert one.payloads() == [b"again"] * 3
                    await two.start()
                    await here.close()

        run(test)
        assert "can't be used: connection refused; trying mqtt://127.0.0.1:" in caplog.text

    def test_one_that_is_too_busy_or_silent_is_left(self) -> None:
        async def test() -> None:
            for answer in (b"\x20\x03\0\x89\0", b""):
                async with fake() as one, fake() as two:
                    one.answer, one.slams = answer, not answer
                    hub = MqttHub(f"mqtt://127.0.0.1:{one.port},127.0.0.1:{two.port}", Options(required=True))
                    here = Site(hub)
                    async with here.gateway:
                        device = await here.device("a")
                        assert await device.ask("ask hello") == "ok"
                        assert two.payloads() == [b"hello"]
                        await here.close()

        run(test)

    def test_all_down_is_an_outage_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        async def test() -> None:
            async with fake() as one, fake() as two:
                url = f"mqtt://127.0.0.1:{one.port},127.0.0.1:{two.port}"
                here = Site(MqttHub(url))
                async with here.gateway:
                    device = await here.device("a")
                    await one.stop()
                    await two.stop()
                    device.send("ask kept")
                    while f"{url} can't be reached" not in caplog.text:  # noqa: ASYNC110 - nothing else tells
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(1)
                    assert caplog.text.count("can't be used") == 1
                    assert caplog.text.count("can't be reached") == 1
                    await two.start()
                    assert await device.read() == "ok"
                    await one.start()
                    await here.close()

        run(test)

    def test_required_they_keep_the_gateway_from_starting(self) -> None:
        async def test() -> None:
            async with fake() as one, fake() as two:
                await one.stop()
                await two.stop()
                url = f"mqtt://127.0.0.1:{one.port},127.0.0.1:{two.port}"
                with pytest.raises(
                    UnavailableError, match=f"{url} is required and can't be used: connection"
                ):
                    async with Site(MqttHub(url, Options(required=True))).gateway:
                        pass
                await one.start()
                await two.start()

        run(test)


@pytest.mark.live
@pytest.mark.parametrize("version", [4, 5])
def test_a_second_gateway_of_the_same_name_is_named_as_the_cause(
    version: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with fake() as broker:
            broker.versions, broker.refusal = {version}, b"\x20\x02\0\1"
            sites = [Site(broker.hub(client_id="gate")) for _ in range(2)]
            async with sites[0].gateway, sites[1].gateway:
                while "--mqtt-client-id" not in caplog.text:  # noqa: ASYNC110 - nothing else tells
                    await asyncio.sleep(0.01)

    run(test)
    assert "clientid" in caplog.text
