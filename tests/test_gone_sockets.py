"""A connection that has gone before it is set up costs nobody anything."""

from __future__ import annotations

import socket

import pytest

from exproto_app.asyncio_host.dead_peers import watch_peer
from exproto_app.asyncio_host.reading import limit_kernel


class Pseudo:
    """A socket as uvloop shows it, whose connection has gone."""

    family = socket.AF_INET

    def setsockopt(self, *_: object) -> None:
        raise ValueError("negative file descriptor")


class Transport:
    """Its transport."""

    def get_extra_info(self, _: str) -> Pseudo:
        return Pseudo()


@pytest.mark.parametrize("set_up", [lambda gone: watch_peer(gone, 1, 1), limit_kernel])
def test_a_socket_that_has_gone_is_left_alone(set_up: object) -> None:
    assert callable(set_up)
    set_up(Transport())
