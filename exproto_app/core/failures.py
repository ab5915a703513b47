"""Failures: what becomes of a handler's exception, and of a command that nobody awaited."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import tap as events
from ..commands import Outcome, Register
from ..errors import ClosedError, FramingError
from ..router import Handler
from .calls import HandlerCalls
from .naming import described
from .states import FAILURES, HANDLER, LEAVING, RUNNING

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["Failures"]

log = logging.getLogger("exproto_app")


class Failures:
    """What has failed on one connection; made for the first time that something does.

    *judging*: an `on_error` runs, so that `keep` has a meaning.
    """

    __slots__ = ("_calls", "_keeping", "_owner", "_unjudged", "judging")

    def __init__(self, owner: Owner, calls: HandlerCalls) -> None:
        self._owner = owner
        self._calls = calls
        self._keeping = False
        self._unjudged: list[tuple[object, Outcome[Any]]] = []
        self.judging = False

    # --- handlers

    def handler(
        self, where: Handler | str | None, after: Callable[[], None] | None, error: BaseException
    ) -> None:
        """Judge a handler's *error*: the router's on_error, then the app's, else the connection ends."""
        owner = self._owner
        name = where.name if isinstance(where, Handler) else where
        if owner.gone and isinstance(error, ClosedError):
            log.debug("%s ! %s ended with the connection", owner, name)
            if after is not None:
                after()
            return
        owner.counters["handler_errors"] += 1
        if owner.tracer is not None:
            owner.tracer.show(events.Failed(name or "framing", error))
        if owner.engine.when_failed is not None and where is not None:
            owner.engine.when_failed(error)
        runtime = owner.engine.runtime
        if isinstance(error, runtime.exits):
            runtime.exit(error)
        # Behind on_terminated no handler runs any more.
        self._ask(() if owner.state >= LEAVING else owner.protocol.errors, name, error, after)

    def keep(self) -> None:
        """Stay connected in spite of the error that is judged."""
        if not self.judging:
            raise RuntimeError("keep() has a meaning in on_error only")
        self._keeping = True

    def _ask(
        self,
        handlers: tuple[Handler, ...],
        name: str | None,
        error: BaseException,
        after: Callable[[], None] | None,
    ) -> None:
        """Ask the first of the `on_error` *handlers*, and the next one if that fails."""
        owner = self._owner
        if not handlers:
            if isinstance(error, FramingError):
                log.warning("%s ! %s", owner, error)
            else:
                log.error("%s ! %s failed: %r", owner, name, error, exc_info=error)
            owner.end("error", str(error) or repr(error))
            if after is not None:
                after()
            return
        log.info("%s ! %s failed: %r", owner, name or "framing", error)
        handler, *others = handlers
        self.judging, self._keeping = True, False

        def judged() -> None:
            self.judging = False
            if not self._keeping:
                owner.end("error", str(error) or repr(error))
            if after is not None:
                after()

        def failed(another: BaseException) -> None:
            self.judging = False
            if owner.tracer is not None:
                owner.tracer.show(events.Failed(handler.name, another))
            log.error("%s ! %s failed: %r", owner, handler.name, another, exc_info=another)
            runtime = owner.engine.runtime
            if isinstance(another, runtime.exits):
                runtime.exit(another)
            self._ask(tuple(others), name, error, after)

        self._calls.run((error,), handler, judged, failed)

    # --- commands

    def command(self, command: object, outcome: Outcome[Any]) -> None:
        """Log what failed, and have it judged once its issuer has had the chance to await it."""
        owner, error = self._owner, outcome.error
        if isinstance(error, ClosedError):
            log.debug("%s ! %s after the end", owner, described(command))
        else:
            log.warning("%s ! %s failed: %s", owner, described(command), error)
            if owner.tracer is not None:
                owner.tracer.refused(command, error)
        if owner.waits & (RUNNING | HANDLER):
            self._unjudged.append((command, outcome))
            owner.waits |= FAILURES
        else:
            owner.engine.runtime.call_soon(self._judge_one, command, outcome)

    def judge(self) -> None:
        """Judge the failures of the turn that has ended."""
        unjudged, self._unjudged = self._unjudged, []
        self._owner.waits &= ~FAILURES
        for command, outcome in unjudged:
            self._judge_one(command, outcome)

    def _judge_one(self, command: object, outcome: Outcome[Any]) -> None:
        """Count a failure that nobody awaited; a refused register ends the connection."""
        if outcome.awaited or isinstance(outcome.error, ClosedError):
            return
        owner = self._owner
        owner.counters["commands_failed"] += 1
        if isinstance(command, Register) and owner.client is None:
            owner.end("error", f"register failed: {outcome.error}")
