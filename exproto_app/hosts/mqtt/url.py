"""Where the broker is: the text form, and the TLS context."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

from ...errors import SetupError
from ...ops.certificates import load_identity

__all__ = ["Url"]

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
EXAMPLE: Final = "write it like mqtt://user:password@broker:1883 or mqtts://broker"


@attrs.frozen(kw_only=True)
class Url:
    """A broker, and who the gateway itself is to it. `str()` tells no password."""

    host: str
    port: int
    tls: bool = False
    username: str = ""
    password: str | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read `mqtt://[USER[:PASSWORD]@]HOST[:PORT]` or `mqtts://…`; signs such as @ and : are %-escaped.

        The port is 1883, or 8883 with TLS. Raises `SetupError`, which tells no password.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in PORTS:
            shown = f"{scheme}://" if separator else "it"
            raise SetupError(f"the broker's URL: {shown} is neither mqtt:// nor mqtts://; {EXAMPLE}")
        shown = f"{scheme}://{rest.rpartition('@')[2]}"
        if rest.count("@") > 1:
            raise SetupError(f"the broker's URL {shown!r}: write an @ in a user or password as %40")
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
            raise SetupError(f"the broker's URL {shown!r} has something behind its port; {EXAMPLE}")
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
        )

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
            raise SetupError(f"--mqtt-ca: {ca} is no CA file: {error}") from None
        if cert:
            load_identity(context, cert, key, "--mqtt-cert")
        return context
