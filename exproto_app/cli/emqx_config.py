"""What EMQX has to know of the service: the text of its configuration, and the address that it calls."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from ..models import Address
from ..names import escaped, to_json
from .emqx_ports import NAMES_SINCE, Listener, Version

__all__ = ["HandlerAddress", "configuration", "dns_names", "handler"]

MAX_CONNECTIONS: Final = 1_024_000
"""Of each listener; EMQX's default is 1024."""

SUBJECT_ALT_NAME: Final = b"\x06\x03\x55\x1d\x11"
DNS_NAME: Final = 0x82
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9*._-]+")

# Where EMQX has its own files by default; the CA is the one that signed our certificate.
CA: Final = (("cacertfile", "etc/certs/cacert.pem"),)
OWN: Final = (("certfile", "etc/certs/cert.pem"), ("keyfile", "etc/certs/key.pem"))


@attrs.frozen
class HandlerAddress:
    """How EMQX reaches the service: *url*, the name in the certificate, and what may be wrong with it."""

    url: str
    server_name: str | None = None
    warnings: tuple[str, ...] = ()


def handler(bind: Address, cert: str | None, version: Version) -> HandlerAddress:
    """Return what an EMQX of *version* calls, where the service listens on *bind*."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind.host, bind.host)  # noqa: S104 - compared, not bound
    warnings = []
    host, problem = _reachable(host, version)
    if problem:
        warnings.append(problem)
    name = None
    if cert is not None and version[0] > 4:
        names = dns_names(cert)
        name = names[0].replace("*", "exproto", 1) if names else "NAME"
        if not names:
            warnings.append(
                f"NAME has to be a DNS name in the certificate of --cert, and none can be read in {cert}: "
                "EMQX before 5.8.5 verifies names only; subjectAltName = DNS:localhost would do"
            )
    url = f"{'http' if cert is None else 'https'}://{Address(host, bind.port)}"
    return HandlerAddress(url, name, tuple(warnings))


def _reachable(host: str, version: Version) -> tuple[str, str]:
    """Return *host* as an EMQX of *version* takes it, and what is wrong with it."""
    if version[0] == 4:
        return host, ""
    try:
        if ipaddress.ip_address(host).version == 4:
            return host, ""
    except ValueError:
        return _resolved(host, version)
    return host, f"EMQX 5 and 6 can't call an IPv6 address such as {host}: --bind one of IPv4"


def _resolved(name: str, version: Version) -> tuple[str, str]:
    if version >= NAMES_SINCE:
        return name, ""
    try:
        address = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError:
        problem = "it can't be resolved here: --bind an IP address"
        return name, f"before EMQX 5.8.5 a name such as {name} keeps the gateway from loading, and {problem}"
    problem = "so its address stands here; --emqx 5.8.5 leaves the name"
    return str(address), f"before EMQX 5.8.5 a name such as {name} keeps the gateway from loading, {problem}"


def dns_names(cert: str) -> list[str]:
    """Return the DNS names of the first certificate in a PEM file, none if it can't be read."""
    try:
        text = Path(cert).read_text("ascii")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(text[begin:end])
        return _alternatives(der)
    except (OSError, ValueError, IndexError):
        return []


def _alternatives(der: bytes) -> list[str]:
    """Return the DNS names of a certificate's subjectAltName (RFC 5280, 4.2.1.6)."""
    at = der.find(SUBJECT_ALT_NAME)
    if at < 0:
        return []
    at += len(SUBJECT_ALT_NAME)
    if der[at] == 1:  # critical
        at += 3
    at, _ = _opened(der, at)  # the octet string, and in it
    at, end = _opened(der, at)  # the sequence of names
    names = []
    while at < end:
        kind = der[at]
        at, behind = _opened(der, at)
        if kind == DNS_NAME:
            name = der[at:behind].decode("ascii")
            if _HOST_NAME.fullmatch(name):  # whoever made the certificate might have put anything there
                names.append(name)
        at = behind
    return names


def _opened(der: bytes, at: int) -> tuple[int, int]:
    """Return where the value of an element begins and ends."""
    size, at = der[at + 1], at + 2
    if size > 0x7F:
        count = size & 0x7F
        size, at = int.from_bytes(der[at : at + count], "big"), at + count
    return at, at + size


def configuration(
    called: HandlerAddress,
    adapter: str,
    listeners: Sequence[Listener],
    version: Version,
    *,
    client_certificate: bool,
) -> str:
    """Return what belongs into the configuration of an EMQX of *version*; *adapter* is a port."""
    files = () if called.url.startswith("http:") else CA if not client_certificate else (*CA, *OWN)
    warnings = [f"# {escaped(line)}" for line in called.warnings]
    if version[0] == 4:
        return "\n".join([*warnings, *_plugin(called, adapter, listeners, files)])
    return "\n".join([*warnings, *_gateway(called, adapter, listeners, version, files)])


def _gateway(
    called: HandlerAddress,
    adapter: str,
    listeners: Sequence[Listener],
    version: Version,
    files: tuple[tuple[str, str], ...],
) -> list[str]:
    tls, own = (", ".join(f"{key} = {to_json(path)}" for key, path in some) for some in (files, (*CA, *OWN)))
    if files:
        tls = f", ssl_options {{ enable = true, verify = verify_peer, {tls} }}"
    lines = [
        f"# EMQX {'.'.join(map(str, version))}, in emqx.conf or etc/base.hocon",
        "gateway.exproto {",
        f"  server {{ bind = {adapter} }}",
        f'  handler {{ address = {to_json(called.url)}, service_name = "ConnectionUnaryHandler"{tls} }}',
    ]
    if files:
        lines += [
            "  # It calls an address, so it has to be told which name of the certificate to verify.",
            f"  handler.ssl_options.server_name_indication = {to_json(called.server_name)}",
        ]
    lines += [
        "  # A device on TCP that has sent nothing for so long after it connected is closed by EMQX.",
        "  idle_timeout = 30s",
    ]
    for listener, name in _named(listeners):
        of = f"  listeners.{listener.kind}.{name}"
        secure = {"ssl": f", ssl_options {{ {own} }}", "dtls": f", dtls_options {{ {own} }}"}
        lines += [
            f'{of} {{ bind = "0.0.0.0:{listener.port}"{secure.get(listener.kind, "")} }}',
            f"{of}.max_connections = {MAX_CONNECTIONS}",
        ]
    return [*lines, "}"]


def _plugin(
    called: HandlerAddress, adapter: str, listeners: Sequence[Listener], files: tuple[tuple[str, str], ...]
) -> list[str]:
    lines = [
        "# etc/plugins/emqx_exproto.conf of EMQX 4.3 and 4.4",
        f"exproto.server.http.port = {adapter}",
    ]
    for listener, name in _named(listeners):
        of = f"exproto.listener.{name}"
        lines += [
            f"{of} = {listener.kind}://0.0.0.0:{listener.port}",
            f"{of}.connection_handler_url = {escaped(called.url)}",
            *(f"{of}.connection_handler_{key} = {path}" for key, path in files),
            f"{of}.max_connections = {MAX_CONNECTIONS}",
            "# A device on TCP that has sent nothing for so long after it connected is closed by EMQX.",
            f"{of}.idle_timeout = 30s",
        ]
        if listener.kind in ("ssl", "dtls"):
            lines += [f"{of}.{key} = {path}" for key, path in (*CA, *OWN)]
    return lines


def _named(listeners: Sequence[Listener]) -> list[tuple[Listener, str]]:
    """Return each listener with a name that both forms of the configuration take."""
    names: dict[str, Listener] = {}
    for listener in listeners:
        plain = "".join(char if char.isascii() and char.isalnum() else "_" for char in listener.protocols)
        name = plain or "listener"
        if name in names or name[0].isdigit():
            name = f"{name}_{listener.port}"
        if name in names:
            name = f"{name}_{listener.kind}"
        names[name] = listener
    return [(listener, name) for name, listener in names.items()]
