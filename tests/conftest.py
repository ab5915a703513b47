"""What several suites share: an Erlang VM, in which each test has listeners of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .erlang.broker import MISSING, Vm, running


@pytest.fixture(scope="session")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """Run an Erlang VM with the harness."""
    if MISSING:
        pytest.skip(f"the Erlang VM isn't installed: no {MISSING}")
    with running(tmp_path_factory.mktemp("harness")) as vm:
        yield vm
