"""Each case of the behaviour suite runs on every host."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from .hosts import HOSTS, Host

SYSTEM = {"erlport", "mqtt", "mqtt-shared"}
"""Hosts that need programs besides Python."""

_numbers = itertools.count(1)


@pytest.fixture
def unique() -> str:
    """Return a name that no other test has used: some hosts serve one test after another."""
    return f"device{next(_numbers)}"


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.system] if name in SYSTEM else []) for name in HOSTS]
)
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Host]]:
    """Return a function that serves an app of `apps.py`, or skips the test where a host lacks a need."""
    with contextlib.ExitStack() as stack:

        def start(app: str, *needs: str) -> Host:
            host = HOSTS[request.param](app, stack, request)
            missing = set(needs) - host.abilities
            if missing:
                pytest.skip(f"this host has no {', '.join(missing)}")
            return host

        yield start
