"""Apps in the broker: their drivers are written as users have them written, and started by the VM."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app.hosts.emqx42 import generate

from .broker import Broker, Vm

ROOT = Path(__file__).parents[2]


Start = Callable[..., Broker]


@pytest.fixture
def start(vm: Vm, tmp_path: Path) -> Iterator[Start]:
    """Return a function that writes an app's file and its driver, and has the broker start that."""
    with contextlib.ExitStack() as stack:

        def started(text: str, *, acl: bool = False, **options: Any) -> Broker:
            (tmp_path / "device.py").write_text(text)
            return begin(vm, stack, tmp_path, str(tmp_path / "device.py"), acl=acl, **options)

        yield started


def begin(
    vm: Vm,
    stack: contextlib.ExitStack,
    folder: Path,
    target: str,
    *,
    protocol: str = "default",
    module: str | None = None,
    acl: bool = False,
    stock: bool = False,
    paths: list[str] | None = None,
    record: generate.Record | None = None,
    **options: Any,
) -> Broker:
    """Write the driver of *target* into *folder*, and have the broker start it."""
    name = generate.module_name(protocol)
    known = generate.search_paths(Path(target).parent) if paths is None else paths
    texts = list(generate.files(target, [(name, protocol)], known, stock=stock, acl=acl, record=record))
    generate.write(folder / "driver", texts, force=False)
    if stock:
        options["loop"] = "emqx.erlport.cli"
    broker = Broker(vm, module or name, [decoy(folder), folder / "driver"], **options)
    stack.callback(_finish, broker)
    return broker


def decoy(folder: Path) -> Path:
    """Make an `erlport` that comes before the driver on the path, as the broker's own does, and fails."""
    package = folder / "priv" / "erlport"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text("raise SystemExit('the broker\\'s own loop was started')\n")
    return package.parent


def _finish(broker: Broker) -> None:
    broker.stop()
    assert broker.faults == []
