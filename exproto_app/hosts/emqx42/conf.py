"""EMQX's `emqx_exproto.conf`: what we print for it, and what stands in one that is there.

A line is `exproto.listener.NAME = URL` or `exproto.listener.NAME.OPTION = VALUE`; what doesn't stand there
has the default of the plugin's schema, for a handful of devices mostly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from ...errors import SetupError
from ...names import HARMFUL

__all__ = [
    "GOOD",
    "KNOWN",
    "LIMITS",
    "PORT",
    "Listener",
    "Planned",
    "broker_config",
    "clashes",
    "listeners",
]

PORT: Final = 7993

KNOWN: Final = tuple(
    Path(folder, "plugins", "emqx_exproto.conf")
    for folder in ("/etc/emqx", "/opt/emqx/etc", "/usr/lib/emqx/etc")
)
"""Where the packages of EMQX 4.2 have it."""

LIMITS: Final = {
    "acceptors": "16",
    "max_connections": "1024000",
    "max_conn_rate": "10000",
    "backlog": "10240",
    "active_n": "100",
    "idle_timeout": "1h",
}
"""For 100,000 devices. `idle_timeout` ends who says nothing at first, whatever the protocol has it do."""

GOOD: Final = {**LIMITS, "recbuf": "4MB"}
"""What to write for an option that is low; the kernel's `net.core.rmem_max` bounds the last one."""

LOW: Final = {
    "max_connections": ("1024", 100_000, "connections"),
    "max_conn_rate": ("1024000", 1_000, "new connections a second"),
    "backlog": ("1024", 1_024, "connections that wait to be accepted"),
    "active_n": ("100", 10, "packets between two looks at the socket"),
    "idle_timeout": ("30s", 60, "seconds until the first byte"),
    "recbuf": ("8KB", 65_536, "bytes of datagrams that wait in the kernel"),
}
"""The schema's default, what is low, and of what."""

HEAD: Final = """\
## These lines take the place of the whole emqx_exproto.conf. The one that EMQX comes with has a listener of
## its own, "protoname", on port 7993, and with two listeners on one port the plugin doesn't start."""

CIPHERS: Final = ",".join(
    f"ECDHE-{key}-AES{size}-GCM-SHA{digest}"
    for size, digest in ((256, 384), (128, 256))
    for key in ("ECDSA", "RSA")
)

CERTIFICATE: Final = {"certfile": "etc/certs/cert.pem", "keyfile": "etc/certs/key.pem"}

OWN_CERTIFICATE: Final = """\
## certfile and keyfile: put your own here. These come with EMQX, and everybody has their key. Where EMQX was
## installed from a package, they are in /etc/emqx/certs."""

LARGEST: Final = 1_048_576

_LINE: Final = re.compile(r"^\s*exproto\.listener\.([^.\s=]+)(?:\.([^\s=]+))?\s*=\s*(.*?)\s*$")
_URL: Final = re.compile(r"^(?:(tcp|ssl|udp|dtls)://(.*):)?(\d+)$")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@attrs.define
class Listener:
    """A listener of the file, by its *name*; *options* are those that stand there."""

    name: str
    url: str = ""
    options: dict[str, str] = attrs.field(factory=dict)

    @property
    def port(self) -> tuple[str, int] | None:
        """Return `tcp` or `udp` and the port; None for what is no URL of the plugin's."""
        found = _URL.match(self.url)
        if found is None:
            return None
        return ("udp" if found[1] in ("udp", "dtls") else "tcp"), int(found[3])

    @property
    def secure(self) -> bool:
        """Whether it is for TLS or DTLS."""
        return self.url.startswith(("ssl:", "dtls:"))

    def low(self) -> Iterator[tuple[str, str, str]]:
        """Yield the options that are low: the name, what it comes to, and of what."""
        for option, (default, least, what) in LOW.items():
            if option == ("backlog" if self.port is not None and self.port[0] == "udp" else "recbuf"):
                continue
            value = self.options.get(option, default)
            number = _number(value)
            if number is not None and number < least:
                yield option, value, what


def _number(value: str) -> float | None:
    """Return what *value* comes to, in seconds if it is a duration, in bytes if a size; else None."""
    if re.fullmatch(r"\d+", value):
        return int(value)
    size = re.fullmatch(r"(\d+)([KMG])B", value, re.IGNORECASE)
    if size is not None:
        return float(int(size[1]) << {"K": 10, "M": 20, "G": 30}[size[2].upper()])
    parts = _DURATION.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return None


def listeners(path: Path) -> list[Listener]:
    """Read the listeners of the file at *path*. Raises `SetupError` for what isn't an `emqx_exproto.conf`."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > LARGEST:
        raise SetupError(f"{path} isn't EMQX's emqx_exproto.conf: it has more than {LARGEST} bytes")
    found: dict[str, Listener] = {}
    for line in data.decode(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, option, value = match.groups()
        listener = found.setdefault(name, Listener(name))
        if option is None:
            listener.url = value
        else:
            listener.options[option] = value
    if not found:
        raise SetupError(
            f"{path} isn't EMQX's emqx_exproto.conf, or is empty: it has no exproto.listener line"
        )
    return [listener for listener in found.values() if listener.url]  # without one EMQX opens none


def clashes(known: Sequence[Listener]) -> Iterator[tuple[Listener, Listener]]:
    """Yield each listener that has the port of one before it, and that one."""
    ports: dict[tuple[str, int], Listener] = {}
    for listener in known:
        if listener.port is not None:
            first = ports.setdefault(listener.port, listener)
            if first is not listener:
                yield first, listener


@attrs.frozen
class Planned:
    """A listener to be written: its *kind* is `tcp`, `ssl`, `udp` or `dtls`."""

    module: str
    protocol: str
    port: int
    kind: str = "tcp"

    def options(self, out: Path) -> dict[str, str]:
        """Return what has to stand there of it; *out* is the folder of its callback module."""
        options = {
            "driver": "python3",
            "driver_search_path": str(out),
            "driver_callback_module": self.module,
            **LIMITS,
        }
        if self.kind in ("udp", "dtls"):
            del options["backlog"]
            options["recbuf"] = GOOD["recbuf"]
        if self.kind in ("ssl", "dtls"):
            version = "tlsv1.2" if self.kind == "ssl" else "dtlsv1.2"
            options |= {**CERTIFICATE, "tls_versions": version, "ciphers": CIPHERS}
        return options


def broker_config(out: Path, planned: Sequence[Planned]) -> str:
    """Return what belongs into `emqx_exproto.conf`."""
    if HARMFUL.search(str(out)):
        raise SetupError(
            f"{str(out)!r} can't stand in emqx_exproto.conf, a value is one line; choose another --out"
        )
    lines = [HEAD]
    if any(one.kind in ("ssl", "dtls") for one in planned):
        lines.append(OWN_CERTIFICATE)
    names: set[str] = set()
    for one in planned:
        name = re.sub(r"\W", "_", one.protocol)
        if name in names:
            name += f"_{one.kind}_{one.port}"
        names.add(name)
        listener = f"exproto.listener.{name}"
        lines.append(f"{listener} = {one.kind}://0.0.0.0:{one.port}")
        lines += [f"{listener}.{option} = {value}" for option, value in one.options(out).items()]
    return "\n".join(lines)
