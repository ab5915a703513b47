"""Logins: what the app's own `on_login` says of a device, before the broker is asked.

Anybody may ask for a login, as often as he likes, and a judge that asks a database or computes a hash takes
its time. So not all are asked at once: `Judging` says whose turn it is. Whoever hangs up is forgotten.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from ..addresses import Applicant
from ..commands import Register
from ..errors import CommandError, DeniedError, InvalidNameError, UnavailableError
from ..masking import log_error
from ..models import ClientInfo, Login
from .login_queue import Judging
from .login_queue import Login as Waiter
from .states import OPEN

if TYPE_CHECKING:
    from ..handlers import Handler
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["LoginCall"]

log = logging.getLogger("exproto_app")


class LoginCall:
    """One call of `on_login`, for *command*; *done* gets the command as it was allowed, or why it wasn't.

    It has `Limits.login_timeout` seconds, its wait included. Whatever isn't a clear yes is a no.
    """

    __slots__ = (
        "_awaitable",
        "_begun",
        "_command",
        "_deadline",
        "_done",
        "_handler",
        "_judging",
        "_owner",
        "_task",
        "ended",
        "waiter",
    )

    def __init__(
        self,
        owner: Owner,
        handler: Handler,
        command: Register,
        done: Callable[[Register, CommandError | None], object],
    ) -> None:
        self._owner = owner
        self._handler = handler
        self._command = command
        self._done = done
        self._awaitable: Any = None
        self._judging: Judging | None = None
        self._begun = False
        self._task: Timer | None = None
        self._deadline: Timer | None = None
        self.ended = False
        self.waiter: Waiter[Any]  # while it waits or is judged

    @property
    def now(self) -> float:
        """The time on the runtime's clock."""
        return self._owner.engine.runtime.time()

    def start(self) -> None:
        """Call the handler."""
        if self._handler.blocking:
            self._wait()
            return
        try:
            answer = self._handler.call(self._login)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises refuses the login
            self._answered(None, error)
            return
        if inspect.isawaitable(answer):
            self._awaitable = answer
            self._wait()
        else:
            self._answered(answer, None)

    def begin(self) -> None:
        """Have it judged: it is our turn."""
        self._begun = True
        runtime = self._owner.engine.runtime
        if self._handler.blocking:
            task = runtime.run_thread(partial(self._handler.call, self._login), self._judged)
        else:
            awaitable, self._awaitable = self._awaitable, None
            task = runtime.run_task(awaitable, self._judged, now=True)
        if not self.ended:
            self._task = task

    def cancel(self) -> None:
        """Ask no more: the device has gone."""
        self._end()

    def turned_away(self, why: str) -> None:
        """Refuse it, because of *why*."""
        if not self.ended:
            self._refuse(UnavailableError(why))

    @property
    def _login(self) -> Login:
        owner, command = self._owner, self._command
        return Login(command.client, command.password, owner.conn.info, owner.protocol.router.name)

    def _wait(self) -> None:
        """Have it judged in its turn, in so much time."""
        owner, client = self._owner, self._command.client
        host = owner.conn.info.peername.host
        applicant = Applicant(host, lambda: owner.gone, lambda: owner.state > OPEN)
        self.waiter = Waiter(client.username or client.clientid, applicant, self)
        engine = owner.engine
        seconds = engine.limits.login_timeout
        self._deadline = engine.runtime.call_later(seconds, self._late, seconds)
        self._judging = engine.judging(blocking=self._handler.blocking)
        self._judging.enter(self)

    def _late(self, seconds: float) -> None:
        if not self.ended:
            self._refuse(UnavailableError(f"{self._handler.name} gave no answer within {seconds:g} s"))

    def _judged(self, answer: object, error: BaseException | None) -> None:
        """Take the end of a call that took its time, which may come when nobody waits for it any more."""
        refused = error is None and answer is not True and not isinstance(answer, ClientInfo)
        self._answered(answer, error)
        if self._judging is not None:
            self._judging.left(self, refused=refused)
            del self.waiter  # which has this

    def _answered(self, answer: object, error: BaseException | None) -> None:
        """Take what the handler returned or raised."""
        if self.ended:
            return
        owner, name = self._owner, self._handler.name
        if error is not None:
            if isinstance(error, owner.engine.runtime.exits):
                owner.engine.runtime.exit(error)
            log_error(log, "%s ! %s failed: %s", owner, name, error=error, hide=owner.hide)
            self._refuse(UnavailableError(owner.hide(f"{name} failed: {error!r}")))
        elif answer is True:
            self._allow(self._command)
        elif isinstance(answer, ClientInfo):
            self._allow_as(answer)
        elif answer is False or isinstance(answer, str):
            why = answer or "refused by the app"
            self._refuse(DeniedError(f"{self._command.client.clientid!r} may not register: {why}"))
        else:
            words = (
                f"{name} returned {type(answer).__name__}; it returns True, False, a reason or a ClientInfo"
            )
            log.error("%s ! %s", owner, words)
            self._refuse(UnavailableError(words))

    def _allow_as(self, client: ClientInfo) -> None:
        """Allow the login with the facts that the handler gave."""
        try:
            self._owner.protocol.router.check_client(client)
        except InvalidNameError as error:
            self._refuse(error)
            return
        self._allow(attrs.evolve(self._command, client=client))

    def _allow(self, command: Register) -> None:
        self._end()
        self._done(command, None)

    def _refuse(self, error: CommandError) -> None:
        self._end()
        if isinstance(error, DeniedError) and not self._owner.gone:
            self._owner.engine.when_denied(self._owner.conn.info)
        self._done(self._command, error)

    def _end(self) -> None:
        self.ended = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._judging is None:
            return
        if not self._begun:
            self._judging.forget(self)
            del self.waiter  # as above
            close = getattr(self._awaitable, "close", None)
            if close is not None:  # a coroutine that never began
                close()
        elif self._task is not None and not self._handler.blocking:  # a thread goes on, and takes its place
            self._task.cancel()
