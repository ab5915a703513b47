"""What the gateway dials: the text form of a target, and what it says."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import attrs

from ...app import App
from ...errors import SetupError
from ...ops.certificates import load_identity
from ...router import Router
from .keys import check_version, restrict
from .listeners import Listen, Url, check_files, load_ca
from .schemes import TARGETS, Scheme

__all__ = ["EXAMPLE", "MOST", "Target", "read_targets"]

EXAMPLE: Final = "tcp://192.0.2.7:502"

MOST: Final = 10_000
"""Targets of a gateway."""

LONGEST: Final = 4_096
"""Bytes of one target's URL."""


@attrs.frozen(kw_only=True)
class Target(Listen):
    """One device to connect to.

    *name* is what handlers find as `conn.info.name`. For `tls`: *ca* signs the target's certificate, the
    system's CAs do by default, and *server_name* is in it, *host* by default; *verify* False takes any
    certificate, which tells nobody who answers; *cert* and *key* are shown to the target.
    """

    server_name: str | None = None
    verify: bool = True

    @property
    def kind(self) -> Scheme:
        return TARGETS[self.scheme]

    @classmethod
    def parse(cls, text: str, **_: Any) -> Target:
        """Read `[PROTOCOL=]URL`, of a scheme of `TARGETS`, with its options. Raises `SetupError`.

        Options of `tls`: `ca=FILE`, `server-name=NAME`, `verify=0`, `cert=FILE`, `key=FILE`, `ciphers=LIST`
        and `tls-min=VERSION`.
        """
        if len(text) > LONGEST:
            raise SetupError(f"a target has {len(text)} characters, limit is {LONGEST}")
        url = Url.parse(text, "target", TARGETS, EXAMPLE)
        options = url.options
        if url.scheme.place == "port" and not (url.parts.hostname and url.port):
            raise SetupError(f"target {text!r} has no host or no port; write it like {EXAMPLE}")
        return cls(
            **url.fields(),
            ca=options.get("ca"),
            server_name=options.get("server-name"),
            verify=url.flag("verify", default=True),
            cert=options.get("cert"),
            key=options.get("key"),
            ciphers=options.get("ciphers"),
            tls_min=check_version(url.text, options.get("tls-min")),
        )

    def routers(self, app: App[Any]) -> tuple[Router[Any, Any], ...]:
        return self.fitting(app.find_protocols(self.protocol, how=f": --dial NAME={self}"))

    @property
    def trust(self) -> tuple[object, ...]:
        """What its TLS context depends on."""
        return self.scheme, self.ca, self.verify, self.cert, self.key, self.ciphers, self.tls_min

    def tls(self) -> ssl.SSLContext | None:
        if not self.kind.tls:
            return None
        check_files(self, self.ca, self.cert, self.key)
        context = ssl.create_default_context()
        if self.ca:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            load_ca(context, self.ca, str(self))
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            load_identity(context, self.cert, self.key, str(self))
        restrict(context, self, self.ciphers, self.tls_min)
        return context


def read_targets(file: str | Path) -> list[Target]:
    """Read the targets in *file*, one a line; `#` begins a comment line. Raises `SetupError`."""
    targets: list[Target] = []
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                if len(targets) >= MOST:
                    raise SetupError(f"{file} has more than {MOST} targets, which is the limit")
                try:
                    targets.append(Target.parse(text))
                except SetupError as error:
                    raise SetupError(f"{file}, line {number}: {error}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file} is not a text file in UTF-8; give one target a line") from None
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise SetupError(f"--dial-file {file} can't be read: {words}") from None
    return targets
