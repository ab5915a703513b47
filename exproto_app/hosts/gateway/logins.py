"""Logins: who asks is known to the login rule, what is refused is counted for its address."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from ...addresses import APPLICANT, Applicant
from ...commands import Command, Outcome, Register, refused
from ...core import Channel, Hub
from ...errors import DeniedError, UnavailableError
from ...models import ConnectionInfo

__all__ = ["LoginGate"]

log = logging.getLogger("exproto_app")

Failed = Callable[[ConnectionInfo], object]
"""Gets how a device is connected whose login was refused."""


class LoginGate:
    """A hub in front of *hub*, which it asks for everything; logins that it refuses are told to *failed*."""

    def __init__(self, hub: Hub, failed: Failed) -> None:
        if hub.broker_side is None:
            raise TypeError(f"{hub} carries out nothing for the devices of a gateway")
        self._hub = hub
        self._broker_side = hub.broker_side
        self._failed = failed
        self.publish, self.gone = hub.publish, hub.gone
        self._stopping = False
        self._pending: dict[Outcome[Any], Applicant] = {}

    def as_hub(self) -> Hub:
        """Return this as what it stands for."""
        return cast("Hub", self)

    def stop(self) -> None:
        """Wait for no login any more."""
        self._stopping = True
        pending, self._pending = self._pending, {}
        for outcome, applicant in pending.items():
            outcome.fail(UnavailableError("the gateway stops"))
            if applicant.refuse is not None:
                applicant.refuse()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hub, name)

    def __str__(self) -> str:
        return str(self._hub)

    @property
    def broker_side(self) -> LoginGate:
        """Carries out what devices ask: this."""
        return self

    def judges(self, channel: Channel, command: Register) -> bool:
        """Return whether a login may be refused."""
        return self._broker_side.judges(channel, command)

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        if type(command) is not Register:
            return self._broker_side.execute(channel, command)
        if self._stopping:
            return refused(UnavailableError("the gateway stops"))
        host = channel.conn.info.peername.host
        applicant = Applicant(host, lambda: channel.gone, lambda: channel.closing is not None)
        before = APPLICANT.set(applicant)
        try:
            asked = self._broker_side.execute(channel, command)
        finally:
            APPLICANT.reset(before)
        if asked.done and asked.error is None:
            return asked
        outcome: Outcome[Any] = Outcome(channel.engine.runtime.waiter)
        self._pending[outcome] = applicant
        asked.when_done(partial(self._answered, channel, applicant, outcome))
        return outcome

    def _answered(
        self,
        channel: Channel,
        applicant: Applicant,
        outcome: Outcome[Any],
        answer: Outcome[Any],
    ) -> None:
        self._pending.pop(outcome, None)
        if outcome.done:
            return
        error = answer.error
        if error is None:
            outcome.settle(answer.value)
            return
        if applicant.busy:
            error = UnavailableError("too many logins wait already; try again")
        elif isinstance(error, DeniedError) and not channel.gone:
            self._failed(channel.conn.info)
        outcome.fail(error)
