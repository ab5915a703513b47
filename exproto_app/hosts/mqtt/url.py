"""Where the broker is: the text form, and the TLS context."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

from ...asyncio_host.renewal import Source, certificate_source
from ...errors import SetupError
from ...models import Address
from ...ops.certificates import load_identity

__all__ = ["Trust", "Url"]

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
EXAMPLE: Final = "write it like mqtt://user:password@broker:1883 or mqtts://broker"


@attrs.frozen(kw_only=True)
class Url:
    """A broker, and who the gateway itself is to it; its *others* are further nodes of a cluster.

    `str()` leaves the password out.
    """

    host: str
    port: int
    tls: bool = False
    username: str = ""
    password: str | None = attrs.field(default=None, repr=False)
    others: tuple[Address, ...] = ()

    def __str__(self) -> str:
        nodes = (Address(self.host, self.port), *self.others)
        return f"{'mqtts' if self.tls else 'mqtt'}://{','.join(map(str, nodes))}"

    def each(self) -> tuple[Url, ...]:
        """Return the URL of each node alone."""
        nodes = (Address(self.host, self.port), *self.others)
        return tuple(attrs.evolve(self, host=node.host, port=node.port, others=()) for node in nodes)

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read `mqtt://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…]` or `mqtts://…`.

        Signs such as @ and : are %-escaped in user and password.
        The port is 1883, or 8883 with TLS. Raises `SetupError`, which never shows the password.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in PORTS:
            shown = f"{scheme}://" if separator else "it"
            raise SetupError(f"the broker's URL: {shown} is neither mqtt:// nor mqtts://; {EXAMPLE}")
        shown = f"{scheme}://{rest.rpartition('@')[2]}"
        if rest.count("@") > 1:
            raise SetupError(f"the broker's URL {shown!r}: write an @ in a user or password as %40")
        who, at, where = rest.rpartition("@")
        first, *more = where.split(",")
        others = [cls._other(scheme, node, shown) for node in more]
        text = f"{scheme}://{who}{at}{first}"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            words = "the port has to be a number from 1 to 65535; a / or # in a password is written %2F, %23"
            raise SetupError(f"the broker's URL {shown!r}: {words}") from None
        if not parts.hostname:
            raise SetupError(f"the broker's URL {shown!r} has no host; {EXAMPLE}")
        if port == 0:
            raise SetupError(f"the broker's URL {shown!r}: the port has to be a number from 1 to 65535")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise SetupError(f"the broker's URL {shown!r} has extra text after its port; {EXAMPLE}")
        try:
            username = unquote(parts.username or "", errors="strict")
            password = None if parts.password is None else unquote(parts.password, errors="strict")
        except UnicodeDecodeError:
            raise SetupError(f"the broker's URL {shown!r}: user and password have to be UTF-8") from None
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=PORTS[parts.scheme] if port is None else port,
            tls=tls,
            username=username,
            password=password,
            others=tuple(others),
        )

    @classmethod
    def _other(cls, scheme: str, node: str, shown: str) -> Address:
        """Read a further node."""
        if not node.strip("/") or "://" in node:
            words = "write several brokers like mqtt://USER:PASSWORD@ONE:1883,TWO:1883"
            raise SetupError(f"the broker's URL {shown!r}: {words}")
        other = cls.parse(f"{scheme}://{node}")
        return Address(other.host, other.port)

    def context(self, ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext | None:
        """Return the TLS context of an `mqtts` URL, None otherwise.

        *ca* takes the place of the system's CAs, *cert* and *key* are shown to the broker. Raises
        `SetupError` for files that can't be used, or that have no use.
        """
        given = [
            (f"--mqtt-{name}", file) for name, file in (("ca", ca), ("cert", cert), ("key", key)) if file
        ]
        if not self.tls:
            if given:
                raise SetupError(f"{given[0][0]} needs TLS; write the broker's URL with mqtts://")
            return None
        for option, file in given:
            if not Path(file).is_file():
                raise SetupError(f"{option}: there is no file {file}")
        if key and not cert:
            raise SetupError("--mqtt-key needs the certificate it belongs to; give --mqtt-cert FILE")
        try:
            context = ssl.create_default_context(cafile=ca)
        except (ssl.SSLError, OSError) as error:
            raise SetupError(f"--mqtt-ca: {ca} is not a CA file: {error}") from None
        if cert:
            load_identity(context, cert, key, "--mqtt-cert")
        return context


@attrs.frozen(kw_only=True)
class Trust:
    """Files of the TLS to the broker: the CA that it is signed by, and the certificate that it is shown."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def context(self, url: Url) -> ssl.SSLContext | None:
        """Return the TLS context for *url*, None where it has no TLS. Raises `SetupError`."""
        return url.context(self.ca, self.cert, self.key)

    def source(self, url: Url, use: Callable[[ssl.SSLContext | None], object]) -> Source:
        """Return what is read again, for *use*."""
        what, read = f"certificates for {url}", partial(self.context, url)
        files = (self.ca, self.key)
        return certificate_source("mqtt", what, read, use, cert=self.cert, named="--mqtt-cert:", files=files)
