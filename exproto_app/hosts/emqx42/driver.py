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
from .generate import written

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
    folder = _folder()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ExprotoError(
            f"no folder of its driver_search_path has {module}.py; {_remedy(folder)}"
        ) from None
    driver = getattr(imported, "driver", None)
    if not isinstance(driver, Driver):
        where = getattr(imported, "__file__", None) or "it"
        raise ExprotoError(f"{where} is no callback module of gen-driver; {_remedy(folder)}")
    beside = Path(imported.__file__ or "").resolve().parent
    if folder not in (None, beside):
        words = (
            "port ! %s is in %s, but the message loop in %s: give driver_search_path one folder of gen-driver"
        )
        log.warning(words, module, beside, folder)
    return driver


def _folder() -> Path | None:
    """Return the folder that gen-driver wrote and our loop was started from, as `python3 -m erlport.cli`."""
    started = sys.modules["__main__"]
    if getattr(started.__spec__, "name", "") != "erlport.cli" or started.__file__ is None:
        return None
    return Path(started.__file__).resolve().parents[2]


def _remedy(folder: Path | None) -> str:
    """Return what to do about a listener that has our message loop, from *folder*, but no module of ours."""
    modules = " or ".join(one.module for one in written(folder)) if folder is not None else ""
    return (
        f"set its driver_callback_module to {modules or 'what gen-driver printed'}, or, if it is for another "
        f"driver, take {folder or 'the folder of gen-driver'} out of its driver_search_path"
    )
