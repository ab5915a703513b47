"""Whether a plugin that should have judged a password has crashed instead.

The broker goes on without a hook that crashes, and lets everybody in where `allow_anonymous` is true, as it
is in an untouched EMQX. Its answer then says "anonymous": nobody judged. So where that comes although there
are hooks, each of them is called once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ...errors import CommandError
from .link import Caller
from .terms import Atom

__all__ = ["look_for_crash"]

HOOK: Final = Atom("client.authenticate")


def look_for_crash(hub: Caller, client: Any, result: Any, done: Callable[[str], None]) -> None:
    """Call *done* with what a hook for *client* crashed of, "" if none has."""

    def found(answer: object, error: CommandError | None) -> None:
        hooks = answer if error is None and isinstance(answer, list) else []
        actions = [hook[1] for hook in hooks if isinstance(hook, tuple) and len(hook) > 1]
        call_next(iter(actions), None, None)

    def call_next(actions: Any, _: object, error: CommandError | None) -> None:
        action = next(actions, None)
        if error is not None or action is None:
            done("" if error is None else f"a plugin's hook crashed: {error}")
            return
        arguments = [client, result]
        match action:
            case (function, list() as more):
                applied = [function, [*arguments, *more]]
            case (module, function, list() as more):
                applied = [module, function, [*arguments, *more]]
            case _:
                call_next(actions, None, None)
                return
        hub.call("erlang", "apply", applied, partial(call_next, actions))

    hub.call("emqx_hooks", "lookup", [HOOK], found)
