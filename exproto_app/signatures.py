"""What handlers look like to a type checker; nothing here is used while an app runs.

Each decorator knows a handler of bytes, whose own type it keeps, and one of the messages M that a router's
codec makes of frames.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias, TypeVar, overload

from .connection import Connection, M, S
from .models import ClientInfo, ConnectionInfo, Message, Reason

__all__ = [
    "Answer",
    "B",
    "BadFrameDecorator",
    "BatchDecorator",
    "ConnectDecorator",
    "DeliverDecorator",
    "ErrorDecorator",
    "M",
    "N",
    "ReceivedDecorator",
    "Reply",
    "S",
    "TerminatedDecorator",
    "TimerDecorator",
]

# What a handler may return; its own return type stays known to the type checker.
B = TypeVar("B", bound="bytes | Awaitable[bytes | None] | None")
N = TypeVar("N", bound="Awaitable[None] | None")

Answer = TypeVar("Answer", bound="bool | str | ClientInfo | Awaitable[bool | str | ClientInfo]")
"""What `on_login` returns: whether the device may register, why not, or as whom."""

Reply: TypeAlias = "M | bytes | Awaitable[M | bytes | None] | None"
"""What a handler of messages may return; bytes are for a codec that builds nothing."""


class ConnectDecorator(Protocol[S, M]):
    """What `on_connect(blocking=True)` gives."""

    @overload
    def __call__(
        self: ConnectDecorator[S, bytes], handler: Callable[[Connection[S]], B], /
    ) -> Callable[[Connection[S]], B]: ...
    @overload
    def __call__(
        self: ConnectDecorator[S, bytes], handler: Callable[[Connection[S], ConnectionInfo], B], /
    ) -> Callable[[Connection[S], ConnectionInfo], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M]], Reply[M]], /
    ) -> Callable[[Connection[S, M]], Reply[M]]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], ConnectionInfo], Reply[M]], /
    ) -> Callable[[Connection[S, M], ConnectionInfo], Reply[M]]: ...


class ReceivedDecorator(Protocol[S, M]):
    """What `on_received(b"…")` gives."""

    @overload
    def __call__(
        self: ReceivedDecorator[S, bytes], handler: Callable[[Connection[S], bytes], B], /
    ) -> Callable[[Connection[S], bytes], B]: ...
    @overload
    def __call__(
        self: ReceivedDecorator[S, bytes], handler: Callable[[Connection[S], bytes, S], B], /
    ) -> Callable[[Connection[S], bytes, S], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], M], Reply[M]], /
    ) -> Callable[[Connection[S, M], M], Reply[M]]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], M, S], Reply[M]], /
    ) -> Callable[[Connection[S, M], M, S], Reply[M]]: ...


class DeliverDecorator(Protocol[S, M]):
    """What `on_deliver("filter")` gives."""

    @overload
    def __call__(
        self: DeliverDecorator[S, bytes], handler: Callable[[Connection[S], Message], B], /
    ) -> Callable[[Connection[S], Message], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], Message], Reply[M]], /
    ) -> Callable[[Connection[S, M], Message], Reply[M]]: ...


class BatchDecorator(Protocol[S, M]):
    """What `on_deliver(batch=True)` gives."""

    @overload
    def __call__(
        self: BatchDecorator[S, bytes], handler: Callable[[Connection[S], list[Message]], B], /
    ) -> Callable[[Connection[S], list[Message]], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], list[Message]], Reply[M]], /
    ) -> Callable[[Connection[S, M], list[Message]], Reply[M]]: ...


class TimerDecorator(Protocol[S, M]):
    """What `every(seconds)` and `on_timeout(blocking=True)` give."""

    @overload
    def __call__(
        self: TimerDecorator[S, bytes], handler: Callable[[Connection[S]], B], /
    ) -> Callable[[Connection[S]], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M]], Reply[M]], /
    ) -> Callable[[Connection[S, M]], Reply[M]]: ...


class BadFrameDecorator(Protocol[S, M]):
    """What `on_bad_frame(blocking=True)` gives."""

    @overload
    def __call__(
        self: BadFrameDecorator[S, bytes], handler: Callable[[Connection[S], bytes, str], B], /
    ) -> Callable[[Connection[S], bytes, str], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], bytes, str], Reply[M]], /
    ) -> Callable[[Connection[S, M], bytes, str], Reply[M]]: ...


class TerminatedDecorator(Protocol[S, M]):
    """What `on_terminated(blocking=True)` gives."""

    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], Reason], N], /
    ) -> Callable[[Connection[S, M], Reason], N]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], Reason, S], N], /
    ) -> Callable[[Connection[S, M], Reason, S], N]: ...


class ErrorDecorator(Protocol[S, M]):
    """What `on_error(blocking=True)` gives."""

    @overload
    def __call__(
        self: ErrorDecorator[S, bytes], handler: Callable[[Connection[S], Exception], B], /
    ) -> Callable[[Connection[S], Exception], B]: ...
    @overload
    def __call__(
        self, handler: Callable[[Connection[S, M], Exception], Reply[M]], /
    ) -> Callable[[Connection[S, M], Exception], Reply[M]]: ...
