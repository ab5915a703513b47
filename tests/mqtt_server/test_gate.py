"""What counts for devices counts for MQTT clients: addresses, failed logins, names that have a user."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from exproto_app import ClientInfo
from exproto_app.addresses import APPLICANT, AddressLimits, networks
from exproto_app.core.login_queue import EACH
from exproto_app.hosts.gateway import Options
from exproto_app.hosts.gateway.users import Users, hash_password
from exproto_app.hosts.mqtt_server.codec import encode
from exproto_app.hosts.mqtt_server.packets import V5, ConnAck, Connect
from exproto_app.hosts.mqtt_server.reasons import Reason

from .site import Site, at_a_site

pytestmark = pytest.mark.live


def right(client: ClientInfo, password: str | None) -> bool:
    return password == "right"


def test_the_login_rule_knows_who_asks() -> None:
    seen: list[tuple[str, bool]] = []

    def login(client: ClientInfo, password: str | None) -> bool:
        applicant = APPLICANT.get()
        assert applicant is not None
        seen.append((applicant.host, applicant.gone()))
        return True

    async def test(site: Site) -> None:
        async with site.mqtt("panel"):
            pass

    at_a_site(test, login)
    assert seen == [("127.0.0.1", False)]


def test_who_is_one_login_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"panel:{hash_password('right')}\n")

    async def test(site: Site) -> None:
        # They differ, so that none is known to be wrong from the one before.
        packets = [Connect(f"g{n}", username="panel", password=b"wrong%d" % n) for n in range(EACH + 20)]

        async def one(connect: Connect) -> int:
            async with site.raw(encode(connect, V5)) as raw:
                answer = await raw.packet()
            assert isinstance(answer, ConnAck)
            return answer.code

        codes = await asyncio.gather(*map(one, packets))
        assert set(codes) == {Reason.BAD_LOGIN, Reason.BUSY}
        assert site.stat("logins_failed") == codes.count(Reason.BAD_LOGIN)

    at_a_site(test, Users(users))


def test_a_client_with_too_many_wrong_passwords_is_banned_as_a_device_is() -> None:
    options = Options(addresses=AddressLimits(failed_logins=2))

    async def test(site: Site) -> None:
        async with site.mqtt("panel", password=b"right") as panel, site.device() as device:
            for password in (b"wrong", b"wrong", b"\xff"):
                async with site.mqtt("guess", code=Reason.BAD_LOGIN, password=password):
                    pass
            assert await panel.rest()  # its address is banned: a DISCONNECT, and the end
            assert await device.hear() == b""
        async with site.raw(encode(Connect("panel", password=b"right"), V5)) as late:
            assert await late.rest() == b""
        assert site.stat("logins_failed") == 3
        assert site.stat("addresses_banned") == 1
        assert site.stat("connections_refused.banned") == 1

    at_a_site(test, right, options=options)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (AddressLimits(deny=networks(["127.0.0.0/8"], "--deny")), "denied"),
        (AddressLimits(connections=1), "address"),
        (AddressLimits(rate=0.001), "rate"),
    ],
)
def test_limits_of_an_address_count_for_clients_too(limits: AddressLimits, why: str) -> None:
    async def test(site: Site) -> None:
        async with site.raw(encode(Connect("one"), V5)) as one:
            if why != "denied":
                assert await one.packet()
            async with site.raw(encode(Connect("two"), V5)) as two:
                assert await two.rest() == b""
        assert site.stat(f"connections_refused.{why}") >= 1

    at_a_site(test, options=Options(addresses=limits))


def test_a_device_takes_no_name_of_another_users_client_or_device() -> None:
    async def test(site: Site) -> None:
        async with site.mqtt("panel", username="ops", password=b"right") as panel:
            async with site.device() as device:
                assert await device.ask(b"login panel mallory") == b""
            async with site.device() as device:
                assert await device.ask(b"login dev5 fleet") == b"welcome"
                async with site.device() as thief:
                    assert await thief.ask(b"login dev5 mallory") == b""
                async with site.device() as again:
                    assert await again.ask(b"login dev5 fleet") == b"welcome"
                    options: dict[str, Any] = {"username": "mallory", "password": b"right"}
                    async with site.mqtt("dev5", code=Reason.NOT_AUTHORIZED, **options):
                        pass
            assert site.stat("logins_failed") == 3
            assert not panel.reader.at_eof()

    at_a_site(test, right)
