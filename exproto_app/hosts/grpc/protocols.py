"""Protocols: which protocol a listener of the broker speaks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...app import App
from ...router import Router

__all__ = ["Protocols"]


class Protocols:
    """The protocols of *app* by the *ports* of the broker's listeners; without ports it has only one.

    What comes by TLS to a port of *datagrams* is DTLS. Raises `SetupError` for what doesn't fit the app.
    """

    def __init__(self, app: App[Any, Any], ports: Mapping[int, str], datagrams: Collection[int]) -> None:
        self.ports = {port: app.find_protocols(name) for port, name in ports.items()}
        self.datagrams = datagrams
        self._only = None if self.ports else app.find_protocols(None)
        # The protocol of a connection that we never saw begin, where that is certain.
        choices = {*self.ports.values()}
        self.unseen = choices.pop() if len(choices) == 1 else self._only

    def __str__(self) -> str:
        return ", ".join(
            f"{','.join(router.name for router in routers)}=:{port}" for port, routers in self.ports.items()
        )

    def find(self, port: int) -> Sequence[Router[Any]] | None:
        """Return what the listener on *port* may speak, None if no port says so."""
        return self._only or self.ports.get(port)

    def listening(self, where: str) -> list[tuple[str, str]]:
        """Return each protocol's name and *where* it is served, with the broker's listener."""
        return [
            *((router.name, where) for router in self._only or ()),
            *(
                (router.name, f":{port} of EMQX, {where}")
                for port, routers in self.ports.items()
                for router in routers
            ),
        ]
