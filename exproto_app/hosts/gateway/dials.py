"""All that a gateway dials: which targets there are, and a dialler for each.

They are given at the start, stand in a file, and come from the app's `dial` functions. The latter two are
asked again by `renew`: what is new is dialled then, what is there no more is hung up.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import attrs

from ...asyncio_host.renewal import Source
from ...errors import SetupError
from ...handlers import Handler
from ...ops.certificates import key_password_file
from .dialling import Dialler
from .endpoint import Endpoint
from .schemes import Server
from .targets import MOST, Target, read_targets

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Dials", "Share"]

log = logging.getLogger("exproto_app")


@attrs.frozen
class Share:
    """The part of all lines that this process has, the *number*-th of *count*, from 1."""

    number: int = 1
    count: int = 1

    def has(self, what: object) -> bool:
        """Return whether *what*, by its text, is this process's."""
        return crc32(str(what).encode()) % self.count == self.number - 1


@attrs.define(eq=False)
class Dialled:
    """A target, and what keeps it connected."""

    endpoint: Endpoint
    server: Server

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return isinstance(self.server, Dialler) and self.server.up


class Dials:
    """The targets of *gateway*, those *given* and those in *file*; each listener counts as *number*."""

    def __init__(self, gateway: Gateway, given: Sequence[Target], file: str | Path | None) -> None:
        self.number: Final = len(gateway.endpoints)
        self._gateway = gateway
        self._given = given
        self.file: Final = file
        self._dialled: dict[str, Dialled] = {}
        self._contexts: dict[tuple[object, ...], SSLContext | None] = {}
        self._task: asyncio.Task[None] | None = None
        for target in given:
            target.routers(gateway.app)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to dial."""
        return bool(self._given or self.file or self._gateway.app.dialled)

    @property
    def up(self) -> int:
        """How many targets are connected."""
        return sum(one.up for one in self._dialled.values())

    @property
    def targets(self) -> list[Target]:
        """The targets that are dialled."""
        listens = (one.endpoint.listen for one in self._dialled.values())
        return [listen for listen in listens if isinstance(listen, Target)]

    async def start(self) -> None:
        """Dial what is known, then what the app's functions yield. Raises `SetupError`."""
        if not self.wanted:
            return
        for target in self._known():
            await self._add(target)
        self.renew()

    def source(self) -> Source:
        """Return what has the targets be asked for again: their file, and their certificates."""
        return Source("", "", self._files, lambda: None, lambda _: self.renew())

    def _files(self) -> set[str | Path | None]:
        targets = tuple(self._dialled.values())
        trusted = {
            file
            for one in targets
            for file in (one.endpoint.listen.ca, one.endpoint.listen.cert, one.endpoint.listen.key)
        }
        return trusted | {self.file, key_password_file() if trusted - {None} else None}

    def renew(self) -> None:
        """Ask the file and the app again."""
        if not self.wanted or self._gateway.stopping:
            return
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._renew())

    def stop(self) -> None:
        """Dial no more."""
        if self._task is not None:
            self._task.cancel()
        for one in self._dialled.values():
            one.server.stop()

    def close(self) -> None:
        """Forget the targets."""
        self._dialled.clear()

    def _known(self) -> list[Target]:
        """Return the targets that nobody has to be asked for. Raises `SetupError`."""
        targets = [*self._given, *(read_targets(self.file) if self.file else ())]
        for target in targets:
            target.routers(self._gateway.app)
        return targets

    async def _renew(self) -> None:
        self._contexts.clear()
        wanted: set[str] = set()
        whole = True
        try:
            for target in self._known():
                wanted.add(await self._add(target))
        except SetupError as error:
            whole = False
            log.error("line ! %s; the targets from before stay", error)  # noqa: TRY400 - the sentence is enough
        for handler in self._gateway.app.dialled:
            whole = await self._ask(handler, wanted) and whole
        if whole:
            for key in self._dialled.keys() - wanted:
                self._remove(key)

    async def _ask(self, handler: Handler, wanted: set[str]) -> bool:
        """Dial what a function of the app yields, which is *wanted* then; return whether that was all."""
        try:
            async for text in _yielded(handler):
                wanted.add(await self._take(text))
        except SetupError as error:
            log.error("line ! %s; the targets from before stay", error)  # noqa: TRY400 - the sentence is enough
            return False
        except Exception:
            log.exception("line ! %s failed; the targets from before stay", handler.name)
            return False
        return True

    async def _take(self, text: object) -> str:
        """Dial what a function of the app has yielded; what is no target is logged and counted."""
        try:
            return await self._add(_target(text))
        except SetupError as error:
            self._gateway.runner.engine.count("targets_refused")
            log.error("line ! %s", error)  # noqa: TRY400 - the sentence is enough
            return ""

    async def _add(self, target: Target) -> str:
        """Dial *target*, unless it is dialled already; return its key. Raises `SetupError`."""
        gateway = self._gateway
        key = f"{target.protocol or ''}={target}"
        routers = target.routers(gateway.app)
        if target.trust not in self._contexts:
            self._contexts[target.trust] = target.tls()
        context = self._contexts[target.trust]
        known = self._dialled.get(key)
        if known is not None:
            known.endpoint.context = context
        elif gateway.share.has(key):
            if len(self._dialled) >= MOST:
                raise SetupError(
                    f"{target} isn't dialled: there are {MOST} targets already, which is the limit"
                )
            endpoint = Endpoint(gateway, self.number, target, routers, context)
            self._dialled[key] = Dialled(endpoint, await target.kind.load()(endpoint, None))
        return key

    def _remove(self, key: str) -> None:
        """Hang a target up that is there no more."""
        gone = self._dialled.pop(key)
        gone.server.stop()
        log.info("line = %s is no longer a target", gone.endpoint.listen)
        for one in self._gateway.runner.engine.connections():
            link: Any = one.link
            if link.endpoint is gone.endpoint:
                one.end("terminated", "it is no longer a target", drain=True)


def _target(text: object) -> Target:
    if not isinstance(text, str):
        raise SetupError(f"{text!r} is not a target; yield text such as modbus=tcp://192.0.2.7:502")
    return Target.parse(text)


async def _yielded(handler: Handler) -> AsyncIterator[object]:
    """Yield what a function of the app returns or yields, a list or a generator, async or not."""
    found = handler.call()
    if inspect.isawaitable(found):
        found = await found
    if isinstance(found, str) or not (hasattr(found, "__aiter__") or hasattr(found, "__iter__")):
        raise SetupError(
            f"{handler.name} returned {found!r}; it has to return a list of targets, or yield them"
        )
    if hasattr(found, "__aiter__"):
        async for text in found:
            yield text
        return
    for text in found:
        yield text
        await asyncio.sleep(0)  # others have their turn
