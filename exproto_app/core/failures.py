"""Failures: what becomes of a handler's exception, and of a command that nobody awaited."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import tap as events
from ..commands import Outcome, Register
from ..errors import ClosedError, CommandError, DeniedError, FramingError, InvalidNameError
from ..handlers import Handler
from ..masking import Later, hide_hex, hide_said, hide_secrets, log_error, secrets_in
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
        self,
        where: Handler | str | None,
        after: Callable[[], None] | None,
        error: BaseException,
        said: bytes | None = None,
    ) -> None:
        """Judge a handler's *error*: the router's on_error, then the app's, else the connection ends.

        A clientid that isn't allowed is the device's fault, not an error of the handler.
        """
        owner = self._owner
        name = where.name if isinstance(where, Handler) else where
        if owner.gone and isinstance(error, ClosedError):
            log.debug("%s ! %s ended with the connection", owner, name)
            if after is not None:
                after()
            return
        if isinstance(error, InvalidNameError):
            owner.counters["commands_failed"] += 1
            if owner.tracer is not None:
                owner.tracer.refused("register", error)
        else:
            owner.counters["handler_errors"] += 1
            if owner.tracer is not None:
                owner.tracer.show(events.Failed(name or "framing", error))
            if owner.engine.when_failed is not None and where is not None:
                owner.engine.when_failed(error)
        runtime = owner.engine.runtime
        if isinstance(error, runtime.exits):
            runtime.exit(error)
        # After on_terminated no handler runs any more.
        self._ask(() if owner.state >= LEAVING else owner.protocol.errors, name, error, after, said)

    def keep(self) -> None:
        """Stay connected in spite of the error that is judged."""
        if not self.judging:
            raise RuntimeError("keep() works in on_error only")
        self._keeping = True

    def _ask(
        self,
        handlers: tuple[Handler, ...],
        name: str | None,
        error: BaseException,
        after: Callable[[], None] | None,
        said: bytes | None,
    ) -> None:
        """Ask the first of the `on_error` *handlers*, and the next one if that fails."""
        owner = self._owner
        # The text of a verb's failure is ours, and holds nothing that the device sent.
        hide = owner.hide if isinstance(error, CommandError) else self._hiding(said)
        size = 0 if said is None else len(said)
        if not handlers:
            self._end(name, error, hide, size)
            if after is not None:
                after()
            return
        text = "%s ! %s failed: %s"
        if not owner.engine.held_back(text, owner):
            log.info(text, owner, name or "framing", Later(partial(owner.hide, repr(error))))
        handler, *others = handlers
        self.judging, self._keeping = True, False

        def judged() -> None:
            self.judging = False
            if not self._keeping:
                owner.end("error", self._detail(error))
            if after is not None:
                after()

        def failed(another: BaseException) -> None:
            self.judging = False
            if owner.tracer is not None:
                owner.tracer.show(events.Failed(handler.name, another))
            log_error(log, "%s ! %s failed: %s", owner, handler.name, error=another, hide=hide, size=size)
            runtime = owner.engine.runtime
            if isinstance(another, runtime.exits):
                runtime.exit(another)
            self._ask(tuple(others), name, error, after, said)

        self._calls.run((error,), handler, judged, failed)

    def _end(self, name: str | None, error: BaseException, hide: Callable[[str], str], size: int) -> None:
        """End the connection because of *error*."""
        owner = self._owner
        detail = self._detail(error)
        if isinstance(error, InvalidNameError):
            log.warning("%s ! %s", owner, detail)
        elif isinstance(error, FramingError):
            log.warning("%s ! %s", owner, hide(detail if owner.client is not None else hide_hex(detail)))
        else:
            log_error(log, "%s ! %s failed: %s", owner, name, error=error, hide=hide, size=size)
        owner.end("error", detail)

    def _hiding(self, said: bytes | None) -> Callable[[str], str]:
        """Return what masks the text of an error: passwords, and without a client all that the device *said*.

        Nobody knows yet which part of that is secret, unless the router has a `secret=`.
        """
        owner = self._owner
        if said is None or owner.client is not None:
            return owner.hide
        secret = owner.protocol.router.secret

        def hide(text: str) -> str:
            text = owner.hide(text)
            return hide_said(text, said) if secret is None else hide_secrets(text, secrets_in(said, secret))

        return hide

    def _detail(self, error: BaseException) -> str:
        """Return in one line why *error* ends the connection."""
        text = str(error) or repr(error)
        if isinstance(error, InvalidNameError):
            return f"register failed: {text}"
        return self._owner.hide(text)

    # --- commands

    def command(self, command: object, outcome: Outcome[Any]) -> None:
        """Log what failed, and have it judged once its issuer has had the chance to await it."""
        owner, error = self._owner, outcome.error
        self._log(command, error)
        if owner.tracer is not None:
            owner.tracer.refused(command, error)
        if owner.waits & (RUNNING | HANDLER):
            self._unjudged.append((command, outcome))
            owner.waits |= FAILURES
        else:
            owner.engine.runtime.call_soon(self._judge_one, command, outcome)

    def _log(self, command: object, error: CommandError | None) -> None:
        """Log what failed, with all that whoever has to mend it needs to know."""
        owner = self._owner
        words = Later(partial(owner.hide, str(error)))
        if not isinstance(error, DeniedError) or isinstance(command, str):
            log.warning("%s ! %s failed: %s", owner, described(command), words)
            return
        if error.told:
            return
        client = command.client if isinstance(command, Register) else owner.client
        names = ("", "") if client is None else (client.clientid, client.username)
        if isinstance(command, Register):
            # The address stands before what the device could make up.
            text = "%s ! login refused, from %s: clientid %r, username %r: %s"
            log.warning(text, owner, owner.conn.info.peername, *names, words)
        else:
            text = "%s ! %s refused for clientid %r, username %r: %s"
            log.warning(text, owner, described(command), *names, words)

    def judge(self) -> None:
        """Judge the failures of the turn that has ended."""
        unjudged, self._unjudged = self._unjudged, []
        self._owner.waits &= ~FAILURES
        for command, outcome in unjudged:
            self._judge_one(command, outcome)

    def _judge_one(self, command: object, outcome: Outcome[Any]) -> None:
        """Count a failure that nobody awaited; a refused register ends the connection."""
        if outcome.awaited or outcome.watched or isinstance(outcome.error, ClosedError):
            return
        owner = self._owner
        owner.counters["commands_failed"] += 1
        if not isinstance(command, Register):
            return
        if owner.client is None:
            owner.end("error", f"register failed: {outcome.error}")
        else:
            owner.forgive()
