"""What a callback module is made of, for our own loop, and how the loop finds it."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...app import App
from ...errors import ExprotoError, SetupError
from ...ops.recorder import KEEP, SIZE
from ...ops.recorder import record as start_recording
from ...target import load

__all__ = ["Driver", "driver_of"]

log = logging.getLogger("exproto_app")


class Driver:
    """What a callback module is made of: an app, and which of its protocols the listener serves.

    *target* is the file of the app, with `:name` where it isn't called `app`. *protocol* may be several,
    `gt06,jt808`, told apart by their `sniff=`. With *acl* the broker is asked
    before each publish and subscribe. *record* is the file of a recording, see `exproto_app.ops.recorder`.
    """

    def __init__(
        self,
        target: str,
        *,
        protocol: str | None = None,
        acl: bool = False,
        record: str | None = None,
        record_size: int = SIZE,
        record_keep: int = KEEP,
        masks: Sequence[str] = (),
        **others: object,
    ) -> None:
        if others:
            names = ", ".join(others)
            raise SetupError(f"the driver's files are of another exproto-app ({names}); run gen-driver again")
        self.app: App[Any] = load(target)
        self.routers = self.app.find_protocols(protocol)
        self.acl = acl
        if record is not None:
            start_recording(self.app, record, size=record_size, keep=record_keep, masks=masks)

    def init(self, *_: object) -> None:
        """Refuse: the broker's own loop has called, which can't run the app."""
        words = "this callback module is for exproto-app's own message loop, which the broker didn't start"
        remedy = "name the folder of gen-driver, alone, as driver_search_path, or write it with --stock"
        raise SetupError(f"{words}; {remedy}")

    received = deliver = terminated = init


def driver_of(module: str) -> Driver:
    """Import the callback module of the listener. Raises `ExprotoError` if it isn't one of gen-driver."""
    imported = importlib.import_module(module)
    driver = getattr(imported, "driver", None)
    if not isinstance(driver, Driver):
        raise ExprotoError(f"{module} is no callback module of exproto-app gen-driver: it has no driver")
    # The loop stands in a folder of its own in the folder that gen-driver wrote.
    loop = Path(getattr(sys.modules.get("erlport.cli"), "__file__", None) or __file__).resolve().parents[2]
    beside = Path(imported.__file__ or "").resolve().parent
    if loop != beside and "erlport.cli" in sys.modules:
        words = (
            "port ! %s is in %s, but the message loop in %s: give driver_search_path one folder of gen-driver"
        )
        log.warning(words, module, beside, loop)
    return driver
