"""What a gateway reads again while it serves: certificates, networks, targets."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from ...addresses import Network, networks
from ...asyncio_host.renewal import Source, certificate_source
from ...errors import SetupError
from ...ops.certificates import validity
from .faults import info_of

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .gateway import Gateway
    from .listeners import Listen

__all__ = ["Lists", "follow_identity", "warn_of_certificates"]

log = logging.getLogger("exproto_app")

EXPIRES_SOON: Final = 14
"""Days before a certificate's end from which on we warn."""


def follow_identity(endpoint: Endpoint) -> None:
    """Read what a TLS listener shows to devices, and whom it lets in, now and whenever that has changed.

    Raises `SetupError`.
    """
    listen = endpoint.listen

    def use(context: Any) -> None:
        endpoint.context = context
        warn_of_certificates([listen])

    source = certificate_source(
        "gateway",
        f"certificate and keys of {listen}",
        listen.tls,
        use,
        cert=listen.cert,
        named=f"{listen}: the certificate",
        files=(listen.key, listen.client_ca, listen.psk),
    )
    endpoint.gateway.renewal.add(source)
    endpoint.context = listen.tls()


def warn_of_certificates(listens: Iterable[Listen]) -> None:
    """Warn of certificates that aren't good, or not for long."""
    now = datetime.now(timezone.utc)
    for listen in {listen.cert: listen for listen in listens if listen.cert}.values():
        for each in validity(listen.cert or ""):
            trouble = each.trouble(now)
            if not trouble and each.days(now) < EXPIRES_SOON:
                trouble = f"it expires in {each.days(now)} days"
            if trouble:
                log.warning("gateway ! the certificate %s of %s: %s", listen.cert, listen, trouble)


@attrs.frozen
class Lists:
    """Files of networks, one a line: those that may connect, and those that may not even if allowed."""

    allow: str | None = None
    deny: str | None = None

    def follow(self, gateway: Gateway) -> None:
        """Read them, now and whenever they have changed. Raises `SetupError`."""
        for file, read, use in (
            (self.allow, self._read_allowed, self._allow),
            (self.deny, self._read_denied, self._deny),
        ):
            if file:
                given = partial(use, gateway)
                gateway.renewal.add(
                    Source("gateway", f"networks in {file}", partial(tuple, (file,)), read, given)
                )
                given(read())

    def _read_allowed(self) -> tuple[Network, ...]:
        found = read_networks(self.allow or "", "--allow-file")
        if not found:
            raise SetupError(f"--allow-file {self.allow} names no network, so nobody could connect")
        return found

    def _read_denied(self) -> tuple[Network, ...]:
        return read_networks(self.deny or "", "--deny-file")

    def _allow(self, gateway: Gateway, found: tuple[Network, ...]) -> None:
        given, guard = gateway.options.addresses, gateway.guard
        guard.limits = attrs.evolve(guard.limits, allow=given.allow + found)

    def _deny(self, gateway: Gateway, found: tuple[Network, ...]) -> None:
        given, guard = gateway.options.addresses, gateway.guard
        guard.limits = attrs.evolve(guard.limits, deny=given.deny + found)
        if gateway.serving:
            _end_denied(gateway)


def _end_denied(gateway: Gateway) -> None:
    """End what is open from networks that may not connect any more."""
    denies = gateway.guard.denies
    for one in gateway.runner.engine.connections():
        info = info_of(one)
        if info.socktype != "unix" and not info.target and denies(info.peername.host):
            one.end("error", "its network is not allowed any more")
    gateway.guests.end(denies)


def read_networks(file: str, option: str) -> tuple[Network, ...]:
    """Read networks from *file*, one a line; `#` begins a comment. Raises `SetupError`."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise SetupError(f"{option} {file} is not a text file in UTF-8; give one network a line") from None
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise SetupError(f"{option} {file} can't be read: {words}") from None
    found: list[Network] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            found += networks([text], f"{option} {file}, line {number}:")
    return tuple(found)
