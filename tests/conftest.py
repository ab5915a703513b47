"""What several suites share: how hypothesis runs, and an Erlang VM, in which each test has its listeners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from .erlang.broker import MISSING, Vm, running

# A busy machine is no failure; `pytest --hypothesis-profile long` is for a night of it.
settings.register_profile("usual", deadline=None)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile("usual")


@pytest.fixture(scope="session")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """Run an Erlang VM with the harness."""
    if MISSING:
        pytest.skip(f"the Erlang VM isn't installed: no {MISSING}")
    with running(tmp_path_factory.mktemp("harness")) as vm:
        yield vm
