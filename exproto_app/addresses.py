"""Who may connect, by address: networks, limits for each address, and bans that expire. No I/O, no clock.

Listeners ask `Guard.refusal` before a connection costs anything, tell it of each connection that `opened` and
`closed`, and what an address does wrong by `failed`. An IPv6 address counts as its /64, which is what one
subscriber gets; an IPv4 address inside an IPv6 one counts as itself. Every limit is off unless it is given:
behind a NAT, or a load balancer without the PROXY protocol, many devices share one address.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Final, Literal, TypeAlias

import attrs

from .errors import SetupError

__all__ = ["APPLICANT", "AddressLimits", "Applicant", "Fault", "Guard", "Network", "Refusal", "networks"]

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Refusal: TypeAlias = Literal["denied", "banned", "rate", "address"]
"""Why an address may not connect: its network, a ban, too many connections a second, too many at once."""
Fault: TypeAlias = Literal["bad_frames", "failed_logins"]

KNOWN: Final = 10_000
"""Addresses that are remembered without an open connection."""

WINDOW: Final = 60.0
"""Seconds in which an address's faults are counted together."""

SUBSCRIBER: Final = 64
"""Bits of an IPv6 address that tell subscribers apart."""


@attrs.define(eq=False)
class Applicant:
    """Who asks for a login: its *host*, and whether it has *gone* meanwhile.

    *leaving*: it has said that it sends nothing more, as who hangs up does too; it may still read an answer.
    A login rule that has it wait sets *refuse*, so that the host can end the wait, and *busy* where it
    refuses it unchecked.
    """

    host: str
    gone: Callable[[], bool]
    leaving: Callable[[], bool] = lambda: False
    busy: bool = False
    refuse: Callable[[], object] | None = None


APPLICANT: ContextVar[Applicant | None] = ContextVar("applicant", default=None)
"""Whose login a login rule is asked about; None where nobody said so."""


def networks(texts: Iterable[str], option: str) -> tuple[Network, ...]:
    """Read networks such as `10.0.0.0/8` or `2001:db8::7`, given by *option*. Raises `SetupError`."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:  # noqa: PERF203 - a handful, once
            example = "write it like 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7"
            raise SetupError(f"{option} {text}: {error}; {example}") from None
    return tuple(found)


@attrs.frozen(kw_only=True)
class AddressLimits:
    """What one address may do; None is no limit.

    *allow*: networks that may connect, all where it is empty; *deny*: those that may not, even if allowed.
    *connections* at once; *rate*: new connections a second, of which a second's worth may come at once;
    *bad_frames* and *failed_logins* in a minute, beyond which the address is banned for *ban* seconds.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    connections: int | None = None
    rate: float | None = None
    bad_frames: int | None = None
    failed_logins: int | None = None
    ban: float = 600.0

    def most(self, fault: Fault) -> int | None:
        """Return how many of *fault* an address may have in a minute."""
        return self.bad_frames if fault == "bad_frames" else self.failed_logins


@attrs.define(eq=False)
class _Seen:
    """What is known of one address. *tokens*: connections that it may open now, as of *counted*."""

    tokens: float
    counted: float
    open: int = 0
    banned_until: float = -math.inf
    faults: dict[Fault, tuple[float, int]] = attrs.field(factory=dict)


class Guard:
    """Judges addresses by *limits*. Times are seconds on a clock that never goes back."""

    def __init__(self, limits: AddressLimits | None = None) -> None:
        self.limits = limits or AddressLimits()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._idle = not (self.limits.connections or self.limits.rate or self.bans)

    @property
    def bans(self) -> bool:
        """Whether there is a fault for which addresses are banned."""
        return self.limits.bad_frames is not None or self.limits.failed_logins is not None

    def banned(self, now: float) -> int:
        """Return how many addresses are banned."""
        return sum(seen.banned_until > now for seen in self._seen.values())

    def refusal(self, host: str, now: float) -> Refusal | None:
        """Return why *host* may not connect now; None if it may, which then counts for its rate."""
        limits = self.limits
        if (limits.allow or limits.deny) and not self._listed(host):
            return "denied"
        if self._idle:
            return None
        seen = self._of(host, now)
        if seen.banned_until > now:
            return "banned"
        if limits.connections is not None and seen.open >= limits.connections:
            return "address"
        if limits.rate is not None:
            most = max(limits.rate, 1.0)
            seen.tokens = min(most, seen.tokens + (now - seen.counted) * limits.rate)
            seen.counted = now
            if seen.tokens < 1:
                return "rate"
            seen.tokens -= 1
        return None

    def opened(self, host: str, now: float) -> None:
        """Count a connection of *host*."""
        if not self._idle:
            self._of(host, now).open += 1

    def closed(self, host: str) -> None:
        """Count its end."""
        if not self._idle and (seen := self._seen.get(_key(host))) is not None and seen.open:
            seen.open -= 1

    def failed(self, host: str, fault: Fault, now: float, number: int = 1) -> bool:
        """Count what *host* did wrong; return whether it is banned for that from now on."""
        most = self.limits.most(fault)
        if most is None:
            return False
        seen = self._of(host, now)
        if seen.banned_until > now:
            return False
        began, count = seen.faults.get(fault, (now, 0))
        if now - began >= WINDOW:
            began, count = now, 0
        seen.faults[fault] = began, count + number
        if count + number <= most:
            return False
        seen.banned_until = now + self.limits.ban
        seen.faults.clear()
        return True

    def denies(self, host: str) -> bool:
        """Return whether *host* is in a network that may not connect."""
        ip = _parse(host)
        return ip is not None and any(ip in network for network in self.limits.deny)

    def same(self, host: str, other: str) -> bool:
        """Return whether both count as one address."""
        return _key(host) == _key(other)

    def _listed(self, host: str) -> bool:
        ip = _parse(host)
        if ip is None:
            return not self.limits.allow
        if any(ip in network for network in self.limits.deny):
            return False
        return not self.limits.allow or any(ip in network for network in self.limits.allow)

    def _of(self, host: str, now: float) -> _Seen:
        key = _key(host)
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= KNOWN:
                self._forget_one(now)
            seen = self._seen[key] = _Seen(max(self.limits.rate or 0.0, 1.0), now)
        else:
            self._seen.move_to_end(key)
        return seen

    def _forget_one(self, now: float) -> None:
        """Forget who was heard of longest ago, rather not who is connected or banned."""
        for _ in range(min(len(self._seen), 100)):  # bounded; those that are kept go to the end
            key, seen = next(iter(self._seen.items()))
            if not seen.open and seen.banned_until <= now:
                del self._seen[key]
                return
            self._seen.move_to_end(key)
        for key, seen in self._seen.items():
            if not seen.open:
                del self._seen[key]
                return


def _parse(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def _key(host: str) -> str:
    """Return what *host* counts as."""
    if ":" not in host:
        return host
    ip = _parse(host)
    if not isinstance(ip, ipaddress.IPv6Address):
        return str(ip or host)
    return str(ipaddress.ip_network((int(ip) >> (128 - SUBSCRIBER) << (128 - SUBSCRIBER), SUBSCRIBER)))
