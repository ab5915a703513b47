"""Whether a plugin that should have judged has crashed instead.

The broker goes on without a hook that crashes. Where no other judges, its default counts, which in an
untouched EMQX admits everybody (`allow_anonymous`) and allows everything (`acl_nomatch`), and the answer
looks as if a plugin had given it. So where nobody has judged although there are hooks, each is called again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ...errors import CommandError, UnavailableError
from .link import Done, HubCalls
from .terms import Atom

__all__ = ["AUTHENTICATE", "Acl", "look_for_crash"]

AUTHENTICATE: Final = Atom("client.authenticate")
CHECK_ACL: Final = Atom("client.check_acl")
NOBODY: Final = Atom("undefined")
"""What is left of a question that no hook has answered."""


def look_for_crash(hub: HubCalls, hook: Atom, arguments: list[Any], done: Callable[[str], None]) -> None:
    """Call *done* with what a function of *hook* crashed of, "" if none has."""

    def found(answer: object, error: CommandError | None) -> None:
        actions: list[object] = []
        for callback in answer if error is None and isinstance(answer, list) else ():
            match callback:
                case (_, action, "undefined", *_):  # without a filter, which might pass it over
                    actions.append(action)
        call_next(iter(actions), None, None)

    def call_next(actions: Any, _: object, error: CommandError | None) -> None:
        action = next(actions, None)
        if error is not None or action is None:
            done("" if error is None else f"a plugin's hook crashed: {error}")
            return
        match action:
            case (function, list() as more):
                applied = [function, [*arguments, *more]]
            case (module, function, list() as more):
                applied = [module, function, [*arguments, *more]]
            case _:
                applied = [action, arguments]
        hub.call("erlang", "apply", applied, partial(call_next, actions))

    hub.call("emqx_hooks", "lookup", [hook], found)


class Acl:
    """Asks the broker's ACL."""

    def __init__(self, hub: HubCalls) -> None:
        self._hub = hub
        self._runs_hooks = True

    def check(self, arguments: list[Any], done: Done) -> None:
        """Call *done* with `allow` or whatever else the ACL says; *arguments* are those of `check_acl/3`.

        Its hooks are run without a default, which tells whether anybody has judged.
        """
        if self._runs_hooks:
            asked = [CHECK_ACL, arguments, NOBODY]
            self._hub.call("emqx_hooks", "run_fold", asked, partial(self._judged, arguments, done))
        else:
            self._ask(arguments, done)

    def _judged(self, arguments: list[Any], done: Done, answer: object, error: CommandError | None) -> None:
        if error is None and answer != NOBODY:
            done(answer, None)
        elif isinstance(error, UnavailableError):
            done(None, error)
        else:
            self._runs_hooks = error is None  # else this broker has no such function
            self._ask(arguments, done)

    def _ask(self, arguments: list[Any], done: Done) -> None:
        """Ask for the broker's default, which counts unless a plugin has crashed."""

        def answered(answer: object, error: CommandError | None) -> None:
            if error is not None or answer != "allow":
                done(answer, error)
            else:
                look_for_crash(self._hub, CHECK_ACL, [*arguments, answer], partial(looked, answer))

        def looked(answer: object, why: str) -> None:
            done(answer, CommandError(why) if why else None)

        self._hub.call("emqx_access_control", "check_acl", arguments, answered)
