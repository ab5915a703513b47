"""A device becomes a client of the broker: its password, its subscriptions, and who was the client before.

The connection process does what it is told and asks nobody, and EMQX's takeover ends MQTT clients only: one
of ours that is told to "discard" stays (`emqx_exproto_channel`, "Unexpected call"). So we see to each step,
by functions of the broker; the lane waits until the last of them is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...commands import Outcome, Register
from ...core import Channel
from ...errors import CommandError, DeniedError, UnavailableError
from ...runtime import Timer
from . import facts
from .hooks import AUTHENTICATE, look_for_crash
from .link import ErlangLink
from .terms import Atom, Opaque

if TYPE_CHECKING:
    from .broker import BrokerHub

__all__ = ["Registration"]

log = logging.getLogger("exproto_app")

CONN: Final = "emqx_exproto_conn"

TAKEN_OVER: Final = (Atom("shutdown"), Atom("takeovered"))
"""What a connection process ends of, and says so to its driver, when it gets it as a message."""

PATIENCE: Final = 2.0
"""Seconds that a login waits for the older connections to end; then they end meanwhile."""

LOOKS: Final = 20
"""How often the broker is asked whether it has noted a subscription, which it does a moment later."""

AGAIN: Final = 0.02
"""Seconds between two of these."""


class Registration:
    """One `register`, from the question for the password to the end of the older connections."""

    def __init__(self, hub: BrokerHub, channel: Channel, link: ErlangLink, command: Register) -> None:
        self._hub = hub
        self._channel = channel
        self._link = link
        self._client = command.client
        self._password = command.password
        self._before: dict[str, int] = {}
        self._old_id: object = None
        self._looks = 0
        self._who: dict[Atom, Any] = {}
        self._over = False
        self._bound: Timer | None = None
        self._asking = False
        self._hurried: Callable[[], None] | None = None
        self._outcome: Outcome[None] = Outcome(hub.waiter)

    def begin(self) -> Outcome[None]:
        """Ask for the password, if one was shown."""
        info = self._link.info
        if self._password is None:
            self._register()
        elif info is None:
            self._end(DeniedError("nobody knows whose connection this is"))
        else:
            self._who = facts.authentication(self._client, self._password, info)
            self._asking = True
            self._hub.call("emqx_access_control", "authenticate", [self._who], self._authenticated)
        if not self._outcome.done:
            self._link.registration = self
        return self._outcome

    def hurry(self, done: Callable[[], None]) -> None:
        """Leave out all but the password: the device has gone. Then *done* is called."""
        self._hurried = done
        if not self._asking:
            self._end(None)

    def _authenticated(self, answer: object, error: CommandError | None) -> None:
        """Take only what says in so many words that the password is right."""
        self._asking = False
        who = repr(self._client.clientid)
        match answer:
            case ("ok", dict() as result) if error is None:
                verdict = result.get(Atom("auth_result"), Atom("success"))
                if verdict == "success":
                    self._link.superuser = result.get(Atom("is_superuser")) == "true"
                    if result.get(Atom("anonymous")) == "true":
                        self._asking = True
                        look_for_crash(self._hub, AUTHENTICATE, [self._who, result], self._looked_for_crash)
                    else:
                        self._register()
                    return
                why = facts.text(verdict)
            case _:
                why = str(error or facts.problem(answer) or f"its answer is {answer!r}")
        if isinstance(error, UnavailableError):
            self._end(UnavailableError(f"{who} is refused, the broker's authentication failed: {why}"))
        else:
            self._end(DeniedError(f"the broker refuses {who}: {why}"))

    def _looked_for_crash(self, why: str) -> None:
        self._asking = False
        if why:
            self._end(DeniedError(f"the broker refuses {self._client.clientid!r}: {why}"))
        else:
            self._register()

    def _register(self) -> None:
        if self._link.ending or self._channel.gone:
            self._end(None)
            return
        self._before = dict(self._link.subscriptions)
        if self._before:
            self._link.ask(self._known_before)
        self._link.cast((Atom("register"), facts.client_map(self._client)))
        self._link.confirm().when_done(self._registered)
        if not self._before:
            # A broker that thousands log in to at once needs longer for each question than a device may.
            self._bound = self._hub.call_later(PATIENCE, self._outcome.settle, None)

    def _known_before(self, answer: object, _: CommandError | None) -> None:
        if isinstance(answer, dict) and isinstance(client := answer.get(Atom("clientinfo")), dict):
            self._old_id = client.get(Atom("clientid"))

    def _registered(self, outcome: Outcome[None]) -> None:
        """Go on behind the register, which the process has handled now."""
        if self._over:
            return
        if outcome.error is not None and not isinstance(outcome.error, UnavailableError):
            self._end(None)  # the device has gone: what it sent is still handled
        elif self._before:
            self._look()
        else:
            self._take_over()

    # --- subscriptions from before

    # The broker notes under which id a process subscribes, and kills a process whose next subscription comes
    # with another id (`subid_conflict`). So the note is brought up to date; where that can't be done, the
    # subscriptions are at least taken again.

    def _look(self) -> None:
        self._looks += 1
        self._hub.call("ets", "lookup", [Atom("emqx_submon"), Opaque(self._link.pid)], self._looked)

    def _looked(self, answer: object, error: CommandError | None) -> None:
        if answer == [] and error is None and self._looks < LOOKS:
            self._hub.call_later(AGAIN, self._look)
            return
        if error is not None or not isinstance(answer, list):
            self._subscribe_again(None, error or CommandError(repr(answer)))
            return
        pid, clientid = Opaque(self._link.pid), self._client.clientid.encode()
        if isinstance(self._old_id, bytes):
            self._forget("delete_object", Atom("emqx_subid"), (self._old_id, pid))
            self._forget("insert", Atom("emqx_subid"), (clientid, pid))
        note = [Atom("emqx_submon"), (pid, clientid)]
        self._hub.call("ets", "insert", note, self._subscribe_again)

    def _forget(self, function: str, *arguments: Any) -> None:
        self._hub.call("ets", function, list(arguments), _nothing)

    def _subscribe_again(self, answer: object, error: CommandError | None) -> None:
        failed = error is not None or answer != "true"
        if failed:
            log.warning(
                "%s ! subscriptions from before its register are taken anew: %s", self._channel, error
            )
        for topic, qos in self._before.items():
            if self._link.subscriptions.get(topic) == qos:
                if failed:
                    self._link.cast((Atom("unsubscribe"), topic.encode()))
                self._link.cast((Atom("subscribe"), topic.encode(), qos))
        self._take_over()

    # --- the older connections of this client

    def _take_over(self) -> None:
        """End connections of this client at other listeners, and of other nodes; MQTT's the broker ended.

        Those that come later end this one: other listeners in the same way, MQTT clients by `presence`.
        """
        self._hub.tell_of_takeover()
        self._hub.each("emqx_cm", "lookup_channels", self._client.clientid.encode(), self._found)

    def _found(self, answer: object, error: CommandError | None) -> None:
        if error is not None or not isinstance(answer, list):
            text = "%s ! whether %r is connected elsewhere isn't known: %s"
            log.warning(text, self._channel, self._client.clientid, error or answer)
            self._end(None)
            return
        pids = [term.raw for term in answer if facts.is_pid(term)]
        # They stand in the order of their registers: of two that come at once, one stays.
        older = pids[: pids.index(self._link.pid)] if self._link.pid in pids else []
        # The engine ends those that it knows by this name itself.
        older = [pid for pid in older if not self._hub.serves(pid, self._client.clientid)]
        left = len(older)
        if not left:
            self._end(None)
            return

        def ended(_: object, __: CommandError | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._end(None)

        for pid in older:
            arguments = [self._client.clientid.encode(), Opaque(pid)]
            self._hub.call("emqx_cm", "get_chann_conn_mod", arguments, partial(self._end_older, pid, ended))

    def _end_older(self, pid: bytes, ended: Any, answer: object, error: CommandError | None) -> None:
        """End one of them, unless it is an MQTT client's; its process answers no more when it has gone."""
        if error is not None or answer != CONN:
            ended(answer, error)
            return
        text = "%s = takes over %r from a connection of another listener"
        log.info(text, self._channel, self._client.clientid)
        self._hub.mail(pid, TAKEN_OVER)
        self._hub.call(CONN, "info", [Opaque(pid)], ended)

    def _end(self, error: CommandError | None) -> None:
        self._over = True
        if self._bound is not None:
            self._bound.cancel()
        self._link.registration = None
        hurried, self._hurried = self._hurried, None
        if error is None:
            self._outcome.settle(None)
        else:
            self._outcome.fail(error)
        if hurried is not None:
            hurried()


def _nothing(_: object, __: CommandError | None) -> None:
    """Do nothing: it is only tidying up."""
