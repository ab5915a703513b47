"""Which protocol is served where: the text form of a listener, and what it says."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs

from ...app import App
from ...errors import SetupError
from ...framing.modes import gap_of
from ...models import Address
from ...names import HARMFUL, INVISIBLE, shortened
from ...ops.certificates import load_identity
from ...router import Router
from .dtls_context import make_context
from .keys import check_version, restrict, share_keys
from .schemes import LISTENED, Scheme

__all__ = ["DEFAULT_LISTEN", "Listen", "Url", "check_files", "load_ca"]

PORTS: Final = {"mqtt-bytes": 1883, "mqtts-bytes": 8883}
"""Where a scheme has a port of its own."""

DEFAULT_LISTEN: Final = "tcp://127.0.0.1:7993"


@attrs.frozen(kw_only=True)
class Url:
    """What `[PROTOCOL[,PROTOCOL…]=]URL` says, of a listener or of a target: *what* it is of, in errors."""

    text: str
    what: str
    scheme: Scheme
    protocol: str | None
    parts: SplitResult
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, what: str, table: Mapping[str, Scheme], example: str) -> Url:
        """Read *text*, of one of the schemes in *table*. Raises `SetupError`, with an *example*."""
        name, separator, url = text.partition("=") if "=" in text.partition("://")[0] else ("", "", text)
        shown = re.sub("//[^/@]*@", "//", text)  # it may have a password
        advice = f"write it like {example} or gt06={example}"
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise SetupError(f"{what} {shown!r} is not a valid URL: {str(error).lower()}") from None
        if separator and not name:
            raise SetupError(f"{what} {shown!r} has no protocol before '='; {advice}")
        scheme = table.get(parts.scheme)
        if scheme is None:
            *others, last = (f"{one}://" for one in table)
            known = f"{', '.join(others)} or {last}"
            raise SetupError(f"{what} {shown!r} has to begin with {known}; {advice}")
        if HARMFUL.search(unquote(text)):
            raise SetupError(f"{what} {shortened(shown)} {INVISIBLE}")
        if re.search(r"\s", parts.hostname or ""):
            raise SetupError(f"{what} {shown!r} has a space in its host; {advice}")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        options = dict(pairs)
        if len(options) < len(pairs):
            raise SetupError(f"{what} {shown!r} has an option twice; give each once")
        for option in options:
            if option not in scheme.options:
                known = ", ".join(sorted(scheme.options))
                raise SetupError(f"{what} {shown!r} has an unknown option {option!r}; it knows {known}")
        self = cls(text=shown, what=what, scheme=scheme, protocol=name or None, parts=parts, options=options)
        self._check_place(advice)
        return self

    @property
    def port(self) -> int | None:
        """The port. Raises `SetupError` for one that can't be."""
        try:
            return self.parts.port
        except ValueError:
            words = f"{self.what} {self.text!r}: the port has to be a number from 0 to 65535"
            raise SetupError(words) from None

    def count(self, name: str) -> int | None:
        """Return the option *name*, a number above 0. Raises `SetupError`."""
        value = self.options.get(name)
        if value is not None and (not value.isdecimal() or int(value) < 1):
            raise SetupError(f"{self.what} {self.text!r}: {name} is {value!r}; it must be a number above 0")
        return None if value is None else int(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return the option *name*, 0 or 1. Raises `SetupError`."""
        value = self.options.get(name)
        if value not in (None, "0", "1"):
            raise SetupError(f"{self.what} {self.text!r}: {name} is {value!r}; it must be 0 or 1")
        return default if value is None else value == "1"

    @property
    def path(self) -> str:
        """The path, without escapes."""
        return unquote(self.parts.path)

    def mode(self, name: str) -> int | None:
        """Return the option *name*, a file's mode such as 660. Raises `SetupError`."""
        value = self.options.get(name)
        if value is not None and not re.fullmatch("[0-7]{3,4}", value):
            words = f"{name} is {value!r}; it must be octal digits such as 660"
            raise SetupError(f"{self.what} {self.text!r}: {words}")
        return None if value is None else int(value, 8)

    def fields(self) -> dict[str, Any]:
        """Return what listeners and targets have in common. Raises `SetupError`."""
        scheme, host = self.scheme, self.parts.hostname or ""
        path = "" if scheme.place == "port" else self.path
        return {
            "scheme": scheme.name,
            "host": host,
            "port": self.port or PORTS.get(scheme.name, 0),
            "path": path,
            "protocol": self.protocol,
            "name": self.options.get("name") or (host or PurePath(path).name if scheme.dialled else ""),
            "settings": None if scheme.settings is None else scheme.settings(self),
        }

    def _check_place(self, advice: str) -> None:
        if self.scheme.place == "broker":  # its settings tell
            return
        if self.scheme.place == "file":
            place = "/dev/ttyUSB0" if self.scheme.name == "serial" else "/run/devices.sock"
            example = f"write it like {self.scheme.name}://{place}"
            if self.parts.netloc or len(self.path) < 2 or self.parts.fragment:
                raise SetupError(f"{self.what} {self.text!r} has no absolute path; {example}")
            return
        if self.port is None:
            raise SetupError(f"{self.what} {self.text!r} has no port; {advice}")
        path = self.parts.path if self.scheme.place == "port" else ""
        if path or self.parts.fragment or self.parts.username:
            raise SetupError(f"{self.what} {self.text!r} has extra text after its port; {advice}")


@attrs.frozen(kw_only=True)
class Listen:
    """One listener.

    *protocol* names the router, or several that share the listener, `gt06,jt808`, told apart by their
    `sniff=`; None means the app's only one. *host* empty means every interface, *port* 0
    any free one. *max_connections* bounds this listener, None leaves it to the gateway's bound. For `tls`:
    *cert* and *key* are PEM files (one file may hold both), *client_ca* demands certificates of the devices;
    *psk* has keys that devices may know instead; *ciphers* and *tls_min* are for old devices.
    *proxy_protocol*, for `tcp` and `tls`: a load balancer in front tells the device's address in a PROXY
    header, version 1 or 2, without which a connection is closed. Anybody who reaches such a listener may
    claim any address, so only the load balancer should. *name*, of a line that we open ourselves, is what
    handlers find as `conn.info.name`. For `unix`: the *path* of the socket, and its *mode*, by which other
    users may connect or not. *ca*: who signs the broker's
    certificate, of `mqtts-bytes`. *settings*: those of its scheme.
    """

    scheme: str
    host: str
    port: int
    protocol: str | None = None
    max_connections: int | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    proxy_protocol: bool = False
    name: str = ""
    path: str = ""
    mode: int | None = None
    ca: str | None = None
    psk: str | None = None
    ciphers: str | None = None
    tls_min: str | None = None
    settings: Any = None

    def __str__(self) -> str:
        return self.at(Address(self.host, self.port))

    def at(self, address: Address) -> str:
        """Return the URL of this listener, opened at *address*."""
        if self.kind.place == "file":
            return f"{self.scheme}://{self.path}"
        if self.kind.place == "broker":
            return f"{self.scheme}://{Address(self.host, self.port) if self.host else ''}{self.path}"
        return f"{self.scheme}://{address}{self.path}"

    @property
    def kind(self) -> Scheme:
        """What kind of listener it is."""
        return LISTENED[self.scheme]

    @classmethod
    def parse(cls, text: str, *, proxy_protocol: bool = False, **defaults: str | None) -> Listen:
        """Read `[PROTOCOL[,PROTOCOL…]=]URL`, of a scheme of `LISTENED`, with its options.

        *defaults* are taken for `cert`, `key` and `client_ca` of a `tls` listener that doesn't say them, and
        *proxy_protocol* for a `tcp` or `tls` one. Raises `SetupError`.
        """
        url = Url.parse(text, "listener", LISTENED, DEFAULT_LISTEN)
        options, allowed = url.options, url.scheme.options
        files = {} if url.scheme.dialled or not url.scheme.tls else defaults
        return cls(
            **url.fields(),
            mode=url.mode("mode"),
            ca=options.get("ca"),
            psk=options.get("psk", files.get("psk")),
            ciphers=options.get("ciphers", files.get("ciphers")),
            tls_min=check_version(url.text, options.get("tls-min", files.get("tls_min"))),
            max_connections=url.count("max-connections"),
            cert=options.get("cert", files.get("cert")),
            key=options.get("key", files.get("key")),
            client_ca=options.get("client-ca", files.get("client_ca")),
            proxy_protocol="proxy-protocol" in allowed and url.flag("proxy-protocol", default=proxy_protocol),
        )

    def routers(self, app: App[Any]) -> tuple[Router[Any, Any], ...]:
        """Return the routers of *app* that are served here. Raises `SetupError`."""
        return self.fitting(app.find_protocols(self.protocol, how=f": --listen NAME={self}"))

    def fitting(self, routers: tuple[Router[Any, Any], ...]) -> tuple[Router[Any, Any], ...]:
        """Return *routers*. Raises `SetupError` if a framing waits for a silence, as this line does."""
        for router in routers:
            if getattr(self.settings, "gap", None) and gap_of(router.framing) is not None:
                words = (
                    f"the framing {router.framing!r} of {router.name} waits for a silence too; leave gap= out"
                )
                raise SetupError(f"{self} has gap=, and {words}, or take RAW for the framing")
        return routers

    def tls(self) -> Any:
        """Return the context of a listener with encryption: of the ssl module, or of pyOpenSSL for DTLS.

        Raises `SetupError` for files that can't be used, and `ExprotoError` without pyOpenSSL.
        """
        if not self.kind.tls or self.kind.dialled:
            return None
        if self.kind.datagrams and self.psk:
            words = "pyOpenSSL has no pre-shared keys for DTLS; give it a certificate"
            raise SetupError(f"{self}: {words}, and tls listeners theirs with ?psk=FILE")
        if not self.cert and not self.psk:
            files = "--cert FILE and --key FILE"
            words = "" if self.kind.datagrams else f"{files}, or --psk FILE"
            raise SetupError(
                f"{self} needs a certificate{', or pre-shared keys' if words else ''}: give {words or files}"
            )
        check_files(self, self.cert, self.key, self.client_ca, self.psk)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if self.cert:
            load_identity(context, self.cert, self.key, str(self))
        if self.psk:
            share_keys(context, self.psk, self, certified=bool(self.cert))
        restrict(context, self, self.ciphers, self.tls_min)
        if self.client_ca:
            load_ca(context, self.client_ca, str(self))
            context.verify_mode = ssl.CERT_REQUIRED
        # The ssl module, whose errors are plain, has looked at the files that pyOpenSSL takes.
        return make_context(self) if self.kind.datagrams else context


def check_files(who: object, *files: str | None) -> None:
    """Raise `SetupError` about *who* if one of its *files* isn't there."""
    for file in filter(None, files):
        if not Path(file).is_file():
            raise SetupError(f"{who}: there is no file {file}")


def load_ca(context: ssl.SSLContext, file: str, who: str) -> None:
    """Have *context* trust the CA in *file*. Raises `SetupError` about *who* if it isn't one."""
    try:
        context.load_verify_locations(file)
    except (ssl.SSLError, OSError) as error:
        raise SetupError(f"{who}: {file} is not a CA file: {error}") from None
