"""What a line has brought and nobody has looked at yet, where there is work to do before a channel has it.

It is worked off in the slices of the engine's scheduler, like what channels have to do, and waits while the
channel, or the device, has to make room first. The line isn't read meanwhile. Where it ends, whoever waits
for that learns of it behind what had come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from ...core import Engine

__all__ = ["Unread"]

PIECE: Final = 4_096
"""Bytes that are worked off before the clock is looked at."""


class Layer(Protocol):
    """Who works on it."""

    @property
    def paused(self) -> bool:
        """Whether the channel wants nothing more for now."""
        ...

    @property
    def shut(self) -> bool:
        """Whether the channel drops what comes."""
        ...

    @property
    def newcomer(self) -> bool:
        """Whether the device has said nothing useful yet."""
        ...

    def take(self, piece: bytes, until: float, /) -> bool:
        """Take a *piece*, or go on with the last one; return whether *until* came before its end."""
        ...

    def note_memory(self) -> None:
        """Take note that much waits."""
        ...

    def worked(self) -> None:
        """Take note that a slice has ended."""
        ...


class Line(Protocol):
    """What is read."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Unread:
    """The bytes of *line* that *layer* works on."""

    __slots__ = (
        "_blocked",
        "_engine",
        "_held",
        "_layer",
        "_line",
        "_more",
        "_rest",
        "_then",
        "over",
        "scheduled",
    )

    def __init__(self, engine: Engine, layer: Layer, line: Line) -> None:
        self._engine = engine
        self._layer = layer
        self._line = line
        self._rest = bytearray()
        self._more = False  # the layer has more to do with what it was given
        self._held = False  # the line isn't read until all is worked off
        self._blocked = False  # the device doesn't read
        self._then: Callable[[], object] | None = None
        self.over = False  # the line has gone
        self.scheduled = False

    def __len__(self) -> int:
        return len(self._rest)

    @property
    def newcomer(self) -> bool:
        """Whether the device has said nothing useful yet."""
        return self._layer.newcomer

    def put(self, data: bytes) -> None:
        """Take *data*, as it came: a little of it is worked off now."""
        self._rest += data
        if len(self._rest) > PIECE:
            self._layer.note_memory()
        if self._held or self.scheduled:
            return
        if self._blocked or self._engine.scheduler.busy or len(self._rest) > PIECE:
            self._hold()
            self.go_on()
        else:
            self.advance()
            self._engine.scheduler.pace()

    def then(self, act: Callable[[], object], *, over: bool) -> None:
        """Call *act* when all is worked off; *over*: nobody waits for room any more."""
        if over:
            self.over, self._blocked = True, False
        if self._busy:
            self._then = act
            self.go_on()
        else:
            act()

    def block(self) -> None:
        """Wait: the device doesn't read."""
        self._blocked = True

    def unblock(self) -> None:
        """Go on: it reads."""
        self._blocked = False
        self.go_on()

    def resume(self) -> None:
        """Go on: the channel has room."""
        if self._held:
            self.go_on()
        else:
            self._line.resume()

    def clear(self) -> None:
        """Forget what there is."""
        self._rest.clear()
        self._more = False

    def go_on(self) -> None:
        """Have our turn come, if there is anything to do."""
        if self._busy and not self._waits:
            self._engine.scheduler.later(self)

    def advance(self) -> None:
        """Work off a slice."""
        if not self._busy:  # it has ended meanwhile
            return
        layer, time, until = self._layer, self._engine.runtime.time, self._engine.scheduler.slice_end()
        if layer.shut and len(self._rest) > PIECE:  # less may be its goodbye
            self._engine.count("bytes_dropped", len(self._rest))
            self._engine.count("bytes_dropped.closing", len(self._rest))
            self.clear()
        while self._busy and not self._waits:
            piece = b"" if self._more else bytes(self._rest[:PIECE])
            del self._rest[: len(piece)]
            self._more = layer.take(piece, until)
            if time() >= until:
                break
        layer.worked()
        if self._busy:
            self._hold()
            self.go_on()
            return
        if self._held and not self.over:
            self._held = False
            if not layer.paused:
                self._line.resume()
        then, self._then = self._then, None
        if then is not None:
            then()

    @property
    def _busy(self) -> bool:
        return bool(self._rest) or self._more

    @property
    def _waits(self) -> bool:
        """Whether somebody has to make room first; where the line has gone that is nobody."""
        return not self.over and (self._blocked or self._layer.paused)

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._line.pause()
