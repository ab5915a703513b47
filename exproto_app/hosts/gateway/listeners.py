"""Which protocol is served where: the text form of a listener, and what it says."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import SplitResult, parse_qsl, urlsplit

import attrs

from ...app import App
from ...errors import SetupError
from ...ops.certificates import load_identity
from ...router import Router

__all__ = ["DEFAULT_LISTEN", "Listen", "Scheme"]

Scheme: TypeAlias = Literal["tcp", "tls", "udp"]

SCHEMES: Final = ("tcp", "tls", "udp")
DEFAULT_LISTEN: Final = "tcp://127.0.0.1:7993"


@attrs.frozen(kw_only=True)
class Listen:
    """One listener.

    *protocol* names the router, or several that share the listener, `gt06,jt808`, told apart by their
    `sniff=`; None means the app's only one. *host* empty means every interface, *port* 0
    any free one. *max_connections* bounds this listener, None leaves it to the gateway's bound. For `tls`:
    *cert* and *key* are PEM files (one file may hold both), *client_ca* demands certificates of the devices.
    *proxy_protocol*, for `tcp` and `tls`: a load balancer in front tells the device's address in a PROXY
    header, version 1 or 2, without which a connection is closed. Anybody who reaches such a listener may
    claim any address, so only the load balancer should.
    """

    scheme: Scheme
    host: str
    port: int
    protocol: str | None = None
    max_connections: int | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    proxy_protocol: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, proxy_protocol: bool = False, **defaults: str | None) -> Listen:
        """Read `[PROTOCOL[,PROTOCOL…]=]tcp://HOST:PORT[?max-connections=N&proxy-protocol=1&cert=FILE&key=FILE&client-ca=FILE]`.

        *defaults* are taken for `cert`, `key` and `client_ca` of a `tls` listener that doesn't say them, and
        *proxy_protocol* for a `tcp` or `tls` one. Raises `SetupError`.
        """
        name, separator, url = text.partition("=") if "=" in text.partition("://")[0] else ("", "", text)
        parts, port = _split(text, url)
        example = f"write it like {DEFAULT_LISTEN} or gt06={DEFAULT_LISTEN}"
        if separator and not name:
            raise SetupError(f"listener {text!r} has no protocol before '='; {example}")
        if parts.scheme not in SCHEMES:
            raise SetupError(f"listener {text!r} is none of tcp://, tls://, udp://; {example}")
        if port is None:
            raise SetupError(f"listener {text!r} has no port; {example}")
        if parts.path or parts.fragment or parts.username:
            raise SetupError(f"listener {text!r} has something behind its port; {example}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        allowed = {"max-connections"}
        if parts.scheme != "udp":
            allowed.add("proxy-protocol")
        if parts.scheme == "tls":
            allowed |= {"cert", "key", "client-ca"}
        for option in options:
            if option not in allowed:
                known = ", ".join(sorted(allowed))
                raise SetupError(f"listener {text!r} has an unknown option {option!r}; it knows {known}")
        files = defaults if parts.scheme == "tls" else {}
        return cls(
            scheme=cast("Scheme", parts.scheme),
            host=parts.hostname or "",
            port=port,
            protocol=name or None,
            max_connections=_count(text, options.get("max-connections")),
            cert=options.get("cert", files.get("cert")),
            key=options.get("key", files.get("key")),
            client_ca=options.get("client-ca", files.get("client_ca")),
            proxy_protocol=parts.scheme != "udp"
            and _flag(text, "proxy-protocol", options.get("proxy-protocol"), default=proxy_protocol),
        )

    def routers(self, app: App[Any]) -> tuple[Router[Any, Any], ...]:
        """Return the routers of *app* that are served here. Raises `SetupError`."""
        return app.find_protocols(self.protocol, how=f": --listen NAME={self}")

    def tls(self) -> ssl.SSLContext | None:
        """Return the context of a `tls` listener. Raises `SetupError` for files that can't be used."""
        if self.scheme != "tls":
            return None
        if not self.cert:
            raise SetupError(f"{self} needs a certificate: give --cert FILE and --key FILE")
        for file in filter(None, (self.cert, self.key, self.client_ca)):
            if not Path(file).is_file():
                raise SetupError(f"{self}: there is no file {file}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        load_identity(context, self.cert, self.key, str(self))
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise SetupError(f"{self}: {self.client_ca} is no CA file: {error}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _split(text: str, url: str) -> tuple[SplitResult, int | None]:
    """Return the parts of *url*, and its port. Raises `SetupError` about *text*, its listener."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SetupError(f"listener {text!r} is no URL: {str(error).lower()}") from None
    try:
        return parts, parts.port
    except ValueError:
        raise SetupError(f"listener {text!r}: the port has to be a number from 0 to 65535") from None


def _count(text: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise SetupError(f"listener {text!r}: max-connections is {value!r}; it must be a number above 0")
    return int(value)


def _flag(text: str, name: str, value: str | None, *, default: bool) -> bool:
    if value not in (None, "0", "1"):
        raise SetupError(f"listener {text!r}: {name} is {value!r}; it must be 0 or 1")
    return default if value is None else value == "1"
