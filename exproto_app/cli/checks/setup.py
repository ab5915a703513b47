"""What is to be checked: what the user would give to `run`, `serve` and `gen-driver`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ...app import App
from ...hosts.gateway import Listen, Target
from ...models import Address

if TYPE_CHECKING:
    from ...hosts.grpc import Tls
    from ...hosts.mqtt.versions import Wanted

__all__ = ["EmqxGateway", "Setup", "Uplink", "in_container"]


@attrs.frozen
class Uplink:
    """The broker of `--mqtt`, and the topic of the round trip."""

    url: str = attrs.field(repr=False)  # it has a password
    topic: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    version: Wanted = "auto"


@attrs.frozen
class EmqxGateway:
    """EMQX's gateway, by the options of `serve`; *device* is one of its listeners on TCP."""

    bind: Address
    adapters: tuple[str, ...]
    protocols: tuple[str, ...] = ()
    tls: Tls | None = None
    device: Address | None = None


@attrs.define(kw_only=True)
class Setup:
    """All of it; *app* is there once it could be imported. *wait*: seconds that each answer may take."""

    target: str
    wait: float
    listens: tuple[Listen, ...] = ()
    targets: tuple[Target, ...] = ()
    uplink: Uplink | None = None
    gateway: EmqxGateway | None = None
    driver: Path | None = None
    python: str | None = None
    conf: Path | None = None
    container: bool = False
    app: App[Any] | None = None


def in_container(root: Path = Path("/")) -> bool:
    """Return whether this process runs in a container, by the marks of Docker, Podman and Kubernetes."""
    marks = (".dockerenv", "run/.containerenv", "var/run/secrets/kubernetes.io")
    return any((root / mark).exists() for mark in marks)
