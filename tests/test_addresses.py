"""Who may connect, by address, without a socket and on a clock of the test's own."""

from __future__ import annotations

import click
import pytest

from exproto_app.addresses import KNOWN, WINDOW, AddressLimits, Guard, networks
from exproto_app.cli.addressing import take_address_limits
from exproto_app.errors import SetupError


def test_without_limits_everybody_may_connect_and_nothing_is_remembered() -> None:
    guard = Guard()
    for number in range(100):
        assert guard.refusal(f"192.0.2.{number}", 0.0) is None
        guard.opened(f"192.0.2.{number}", 0.0)
        assert not guard.failed(f"192.0.2.{number}", "bad_frames", 0.0, 1_000)
    assert not guard._seen


def test_networks_are_allowed_and_denied() -> None:
    limits = AddressLimits(
        allow=networks(["192.0.2.0/24", "2001:db8::/32"], "--allow"), deny=networks(["192.0.2.7"], "--deny")
    )
    guard = Guard(limits)
    allowed = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::1%eth0")
    assert [guard.refusal(host, 0.0) for host in allowed] == [None] * 4
    denied = ("192.0.2.7", "::ffff:192.0.2.7", "198.51.100.1", "2001:db9::1", "no address")
    assert [guard.refusal(host, 0.0) for host in denied] == ["denied"] * 5
    assert Guard(AddressLimits(deny=limits.deny)).refusal("198.51.100.1", 0.0) is None


@pytest.mark.parametrize("text", ["", "x", "192.0.2.1/24", "192.0.2.0/33", "::g"])
def test_a_network_that_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(SetupError, match=r"--deny .*write it like 192\.0\.2\.0/24"):
        networks([text], "--deny")


def test_one_address_has_so_many_connections_at_once() -> None:
    guard = Guard(AddressLimits(connections=2))
    for _ in range(2):
        assert guard.refusal("192.0.2.1", 0.0) is None
        guard.opened("192.0.2.1", 0.0)
    assert guard.refusal("192.0.2.1", 0.0) == "address"
    assert guard.refusal("192.0.2.2", 0.0) is None
    guard.closed("192.0.2.1")
    assert guard.refusal("192.0.2.1", 0.0) is None


def test_one_address_opens_so_many_connections_a_second() -> None:
    guard = Guard(AddressLimits(rate=2))
    assert [guard.refusal("192.0.2.1", 10.0) for _ in range(3)] == [None, None, "rate"]
    assert [guard.refusal("192.0.2.1", 10.5) for _ in range(2)] == [None, "rate"]
    assert [guard.refusal("192.0.2.1", 99.0) for _ in range(3)] == [None, None, "rate"]


def test_less_than_one_a_second_is_a_rate_too() -> None:
    guard = Guard(AddressLimits(rate=0.1))
    assert [guard.refusal("192.0.2.1", now) for now in (0.0, 9.0, 10.0)] == [None, "rate", None]


def test_a_ban_begins_beyond_the_limit_and_expires() -> None:
    guard = Guard(AddressLimits(failed_logins=3, ban=100))
    assert [guard.failed("192.0.2.1", "failed_logins", 1.0) for _ in range(4)] == [False] * 3 + [True]
    assert not guard.failed("192.0.2.1", "bad_frames", 1.0, 99)  # which has no limit
    assert guard.refusal("192.0.2.1", 100.9) == "banned"
    assert guard.banned(100.9) == 1
    assert guard.refusal("192.0.2.1", 101.0) is None
    assert guard.refusal("192.0.2.2", 2.0) is None


def test_faults_are_forgotten_after_a_minute() -> None:
    guard = Guard(AddressLimits(bad_frames=3))
    assert not guard.failed("192.0.2.1", "bad_frames", 0.0, 3)
    assert not guard.failed("192.0.2.1", "bad_frames", WINDOW, 3)
    assert guard.failed("192.0.2.1", "bad_frames", WINDOW + 1)


def test_addresses_of_one_subscriber_count_as_one() -> None:
    guard = Guard(AddressLimits(rate=1))
    assert guard.refusal("2001:db8::1", 0.0) is None
    assert guard.refusal("2001:db8::2:3:4:5", 0.0) == "rate"
    assert guard.refusal("2001:db8:0:1::1", 0.0) is None
    assert guard.refusal("192.0.2.1", 0.0) is None
    assert guard.refusal("::ffff:192.0.2.1", 0.0) == "rate"


def test_what_is_remembered_is_bounded_and_bans_outlast_a_flood_of_addresses() -> None:
    guard = Guard(AddressLimits(failed_logins=0, ban=1e9))
    assert guard.failed("192.0.2.1", "failed_logins", 0.0)
    for number in range(3 * KNOWN):
        assert guard.refusal(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0) is None
    assert len(guard._seen) <= KNOWN
    assert guard.refusal("192.0.2.1", 2.0) == "banned"


def test_even_bans_are_bounded() -> None:
    guard = Guard(AddressLimits(failed_logins=0))
    for number in range(KNOWN + 100):
        guard.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "failed_logins", 0.0)
    assert len(guard._seen) <= KNOWN


def given(**options: object) -> dict[str, object]:
    """The options of `run` about addresses, as click gives them."""
    nothing = dict.fromkeys(
        ("address_connections", "address_rate", "address_bad_frames", "address_failed_logins", "ban")
    )
    return {**nothing, "allow": (), "deny": (), **options}


def test_the_options_of_run_become_limits_and_are_taken_out() -> None:
    options = given(address_rate=2.0, address_failed_logins=3, ban=5.0, deny=("192.0.2.0/24",), other=1)
    limits = take_address_limits(options)
    assert limits == AddressLimits(
        rate=2.0, failed_logins=3, ban=5.0, deny=networks(["192.0.2.0/24"], "--deny")
    )
    assert options == {"other": 1}
    assert take_address_limits(given()) == AddressLimits()


def test_a_ban_needs_a_fault() -> None:
    with pytest.raises(click.UsageError, match="--ban needs --address-bad-frames or --address-failed-logins"):
        take_address_limits(given(ban=5.0))
