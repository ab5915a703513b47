"""Each case of the behaviour suite runs on every host."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hosts import HOSTS, Host

MARKS = {
    "gateway": (pytest.mark.live,),
    "dial": (pytest.mark.live,),
    "unix": (pytest.mark.live,),
    "dtls": (pytest.mark.live,),
    "serial": (pytest.mark.live,),
    "ws": (pytest.mark.live,),
    "modems": (pytest.mark.live, pytest.mark.system),
    "grpc": (pytest.mark.live,),
    "grpc-streams": (pytest.mark.live,),
    "mqtt": (pytest.mark.live, pytest.mark.system),
    "mqtt-shared": (pytest.mark.live, pytest.mark.system),
    "mqtt-311": (pytest.mark.live, pytest.mark.system),
    "mqtt-311-shared": (pytest.mark.live, pytest.mark.system),
    "erlport": (pytest.mark.live, pytest.mark.system),
}
"""What hosts other than the memory need."""

_numbers = itertools.count(1)


@pytest.fixture
def unique() -> str:
    """Return a name that no other test has used: some hosts serve one test after another."""
    return f"device{next(_numbers)}"


class Serve:
    """Serves an app of `apps.py`, or skips the test where the host lacks a need."""

    def __init__(self, request: pytest.FixtureRequest, stack: contextlib.ExitStack) -> None:
        self._request = request
        self._stack = stack

    def __call__(self, app: str, *needs: str, record: Path | None = None) -> Host:
        """Serve the app of this name, and have it recorded if *record* says where."""
        host = HOSTS[self._request.param](app, self._stack, self._request, record)
        missing = set(needs) - host.abilities
        if missing:
            pytest.skip(f"this host has no {', '.join(missing)}")
        return host

    def stop(self) -> None:
        """Stop serving."""
        self._stack.close()


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in HOSTS])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Return what serves an app of `apps.py` on this host."""
    with contextlib.ExitStack() as stack:
        yield Serve(request, stack)
