"""Peers that die without a word: whoever cuts the cable, the connection ends in time."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exproto_app.asyncio_host.dead_peers import watch_peer

pytestmark = pytest.mark.live

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has that time")

WORLD = """
import asyncio, socket, subprocess, sys
from exproto_app import App, Limits
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Options

app = App(framing=Line(), limits=Limits(stall=1.5))
ended = []

@app.on_received
async def received(conn, frame):
    if frame == b"command":
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)  # the cable is cut
        conn.send(b"a command")
    return b"ok"

@app.on_terminated
def gone(conn, reason):
    ended.append(reason)

async def main():
    async with Gateway(app, ["tcp://127.0.0.1:0"], options=Options(keepalive=float(sys.argv[1]))) as gateway:
        device = socket.create_connection(("127.0.0.1", gateway.addresses[0][2].port))
        device.sendall(sys.argv[2].encode() + b"\\n")
        if sys.argv[2] == "silence":
            while not gateway.app.stats["frames_received"]:
                await asyncio.sleep(0.01)
            subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
        while not ended:
            await asyncio.sleep(0.01)
        print(ended[0])

asyncio.run(asyncio.wait_for(main(), 60))
"""


@pytest.mark.system
@linux
@pytest.mark.parametrize(("keepalive", "word"), [("3600", "command"), ("1", "silence")])
def test_a_device_whose_cable_is_cut_is_lost_in_time(keepalive: str, word: str) -> None:
    """Of a command that it doesn't acknowledge, and, if that is asked for, of its silence."""
    tools = [shutil.which(name) for name in ("unshare", "ip")]
    if not all(tools):
        pytest.skip("there is no unshare, or no ip")
    command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may have no network of its own")
    done = subprocess.run(
        [*command, sys.executable, "-c", WORLD, keepalive, word],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.stdout == "lost\n", done.stderr


class Transport:
    """A transport of one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def get_extra_info(self, name: str) -> Any:
        return self.sock if name == "socket" else None


@linux
def test_the_kernel_is_told_how_long_to_wait() -> None:
    with socket.socket() as sock:
        watch_peer(Transport(sock), 30, 60)
        told = {
            name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        }
        assert told == {
            "TCP_USER_TIMEOUT": 30_000,
            "TCP_KEEPIDLE": 60,
            "TCP_KEEPINTVL": 10,
            "TCP_KEEPCNT": 3,
        }


@linux
def test_times_that_the_kernel_does_not_take_are_cut() -> None:
    with socket.socket() as sock:
        watch_peer(Transport(sock), 1e9, 1e9)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 32_767_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 32_767


def test_other_sockets_are_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        watch_peer(Transport(sock), 30, 60)
