"""What several suites share: an Erlang VM, in which each test has listeners of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from .erlang.broker import MISSING, Vm, running

settings.register_profile("default", max_examples=30, deadline=None)
settings.register_profile(
    "fuzz", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests of the gRPC service be asked for."""
    text = "also test the gRPC service; its stand-in for EMQX leaves sockets unclosed at times"
    parser.addoption("--grpc", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of the gRPC service out, unless they are asked for."""
    if config.getoption("--grpc"):
        return
    left_out = [item for item in items if item.nodeid.startswith("tests/grpc/") or "[grpc" in item.nodeid]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """Run an Erlang VM with the harness."""
    if MISSING:
        pytest.skip(f"the Erlang VM isn't installed: no {MISSING}")
    with running(tmp_path_factory.mktemp("harness")) as vm:
        yield vm
