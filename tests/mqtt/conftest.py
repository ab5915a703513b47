"""A broker for a test. The codec, and so the uplink, needs Python 3.11."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .broker import MISSING, Broker, free_port

collect_ignore_glob = ["test_*.py"] if sys.version_info < (3, 11) else []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Return a function that starts a Mosquitto with these options; it keeps whatever it is given."""
    if MISSING:
        pytest.skip(f"Mosquitto isn't installed: no {MISSING}")
    with ExitStack() as stack:

        def start(*options: str, **fields: Any) -> Broker:
            port = stack.enter_context(free_port())
            # 0, no limit, has Mosquitto 2.0.11 close at each message that it refuses.
            options = ("max_queued_messages 1000000", *options)
            return stack.enter_context(Broker(tmp_path / str(port), port, options=options, **fields))

        yield start
