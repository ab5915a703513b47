r"""The states of a connection, and the reasons for it to wait: a theory of operation.

A connection is a state machine between two sides. On one side is the device, behind a `Link`; on the other
the broker, behind a `Hub`. The driver feeds events, handlers issue verbs, and what comes of both leaves
through two queues:

                     received            turns              send, replies
        device ───▶  inbound   ───▶  handler calls  ───▶  outbound  ───▶  device
       (Link)        delivered ───▶        │
                     timers    ───▶        │  publish, subscribe, register
                                           ╰──────────▶  broker queue ───▶  broker (Hub)

**Turns.** One event is one turn: a frame, a message for the device, a timer. Turns run strictly one after
another, in the order in which their events came. Whatever can't be handled at once is kept: bytes and frames
by `Inbound`, other events behind them in the `Backlog`. `Channel.advance` takes turns from there; it is the
only place that does so, and it may be called at any time.

**The two queues** don't wait for each other. `Outbound` holds what is to be sent to the device, in order;
`BrokerQueue` holds what the broker is asked for, in order. A device gets its answers while the broker is
away, unless a handler awaited the broker. Only the end of a connection waits for both.

**State** moves one way, never back:

        OPENING ──▶ OPEN ──▶ DRAINING ──▶ CLOSING ──▶ CLOSED ──▶ GONE ──▶ LEAVING ──▶ ENDED
           │          ╰──────────┼───────────▲           ▲          ▲
           ╰─────────────────────┴───────────┴───────────┴──────────╯   any may be skipped

    OPENING    the device hasn't said anything useful yet; it has `Limits.first_frame` seconds for it.
               A frame or a registration makes it OPEN.
    OPEN       the long middle.
    DRAINING   we close once all that was received is handled: the device has closed its half, or the host
               shuts down. Nothing more is read.
    CLOSING    we close once both queues are flushed: a handler said `terminate()` or failed, a timer ran
               out. What was received is dropped and counted.
    CLOSED     `Link.close` or `Link.abort` was called; we wait for the host's word that the device is gone.
    GONE       the host has said so (`Channel.terminated`). What came before a hang-up is still handled,
               what a CLOSING connection had received is not. Behind it `on_terminated` runs, once.
    LEAVING    `on_terminated` has returned; what it published is on its way.
    ENDED      everybody has been told, nothing runs any more, everything is let go of.

`Limits.end_timeout` bounds each step between OPEN and ENDED, so that a handler that never returns, a broker
that never answers, a device that never reads, or a pile of frames can't keep a connection alive.

**Reasons to wait** are the bits of `Channel.waits`. The hot path asks one question, `if self.waits`: without
any, what was just received is handled on the spot. Each reason is set and cleared by its owner alone:

    RUNNING        a plain handler is on the stack                          HandlerCalls.run
    HANDLER        an async or blocking handler has the turn                HandlerCalls.turn
    REGISTER       a registration has no outcome yet                        Registration
    CONGESTED      the host's queue to the broker is full                   Channel.congested, relieved
    WRITE_BLOCKED  the device reads too slowly                              Outbound
    OUTBOUND_FULL  more than `Limits.outbox` bytes wait to be sent          Outbound
    FAILURES       commands have failed; were they awaited?                 Failures
    RESUMES        handlers that awaited a request go on before new turns   HandlerCalls
    BACKLOG        frames or events wait for their turn                     Channel.advance, Inbound, Backlog
    ENDING         the state is beyond OPEN, so each event may move it on   Channel.move_on
    INDIRECT       OPENING, watched, or on a datagram socket: not the       Channel.choose_path
                   straight path

`BLOCKS` are those that no turn gets past. The others only say that `advance` has something to see to.

**Slices.** No connection holds the loop. A read of a few frames is handled on the spot. Whatever is more is
cut in pieces of `PIECE` bytes, and its frames handled a `BATCH` at a time: after each the clock is looked at,
and after `SLICE` seconds the connection goes to the back of the `Scheduler`'s queue. All slices in one turn
of the event loop take `ROUND` seconds together at most; sockets and timers come in between. While a
connection's backlog is above `Limits.inbox`, its socket isn't read.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "BACKLOG",
    "BATCH",
    "BLOCKS",
    "CLOSED",
    "CLOSING",
    "CONGESTED",
    "DRAINING",
    "ENDED",
    "ENDING",
    "FAILURES",
    "GONE",
    "HANDLER",
    "INDIRECT",
    "LEAVING",
    "NOT_RUNNING",
    "OPEN",
    "OPENING",
    "OUTBOUND_FULL",
    "PACE",
    "PIECE",
    "REGISTER",
    "RESUMES",
    "ROUND",
    "RUNNING",
    "SLICE",
    "WRITE_BLOCKED",
    "State",
    "reasons",
]


class State(IntEnum):
    """Where a connection is in its life; the module's docstring tells what each state means."""

    OPENING = 0
    OPEN = 1
    DRAINING = 2
    CLOSING = 3
    CLOSED = 4
    GONE = 5
    LEAVING = 6
    ENDED = 7


# Looking a member up costs half a microsecond in Python 3.11; a name of the module costs nothing.
OPENING: Final = State.OPENING
OPEN: Final = State.OPEN
DRAINING: Final = State.DRAINING
CLOSING: Final = State.CLOSING
CLOSED: Final = State.CLOSED
GONE: Final = State.GONE
LEAVING: Final = State.LEAVING
ENDED: Final = State.ENDED

# Plain integers: the operators of an IntFlag take a microsecond each, and these are on the hot path.
RUNNING: Final = 1
HANDLER: Final = 2
REGISTER: Final = 4
CONGESTED: Final = 8
WRITE_BLOCKED: Final = 16
OUTBOUND_FULL: Final = 32
FAILURES: Final = 64
RESUMES: Final = 128
BACKLOG: Final = 256
ENDING: Final = 512
INDIRECT: Final = 1024

NOT_RUNNING: Final = ~RUNNING

BLOCKS: Final = HANDLER | REGISTER | CONGESTED | WRITE_BLOCKED | OUTBOUND_FULL
"""The reasons that no turn gets past."""

PIECE: Final = 8_192
"""Bytes that are cut into frames at a time."""

BATCH: Final = 16
"""Frames that are handled before the clock is looked at."""

PACE: Final = BATCH - 1
"""A mask: whenever a connection's count of frames has none of these bits, the clock is looked at."""

SLICE: Final = 0.004
"""Seconds of work of one connection, behind which the others have their turn."""

ROUND: Final = 0.010
"""Seconds of all slices together, behind which sockets and timers have their turn."""

_NAMES: Final = {
    RUNNING: "RUNNING",
    HANDLER: "HANDLER",
    REGISTER: "REGISTER",
    CONGESTED: "CONGESTED",
    WRITE_BLOCKED: "WRITE_BLOCKED",
    OUTBOUND_FULL: "OUTBOUND_FULL",
    FAILURES: "FAILURES",
    RESUMES: "RESUMES",
    BACKLOG: "BACKLOG",
    ENDING: "ENDING",
    INDIRECT: "INDIRECT",
}


def reasons(waits: int) -> set[str]:
    """Return the names of the reasons in *waits*, for whoever debugs."""
    return {name for bit, name in _NAMES.items() if waits & bit}
