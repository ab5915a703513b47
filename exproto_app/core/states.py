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
another, in the order in which their events came. What can't be handled at once is kept: bytes and frames by
`Inbound`, other events after them in the backlog. `Channel.advance` takes turns from there. It is the only
place that does so, and it may be called at any time.

**The two queues** don't wait for each other. `Outbound` holds what is to be sent to the device, in order;
`BrokerQueue` holds what the broker is asked for, in order. A device gets its answers while the broker is
away, unless a handler awaited the broker. Only the end of a connection waits for both, and a send that was
told to: `WaitingSends` keeps it until the broker has what it acknowledges.

**Children** are devices behind a line that they share. Each is a `Child`, a connection with a client,
handlers, timers and an end of its own, but without bytes: frames come to the line, what a child sends leaves
by the line's outbound. A child's turns are events in its line's backlog, so that turns of a line and of all
its children run one after another. The end of a line ends its children first.

**Logins.** `register` is a command for the broker, and turns wait for its outcome. `Registration` asks the
app's `on_login` first, then the broker. Success makes the connection the client of that name: in the
engine's tables, and at the hub (`Hub.registered`). A refused login takes with it what the same handler asked
for behind it, unless the handler has awaited the refusal (`BrokerQueue.refusal`).

**Takeovers.** If an older connection is that client, the newer one continues its session and takes the
messages that wait there; its own turns go on when the older one has ended, `taken over`, or after a bounded
time. `Takeovers` delays those that repeat. With `Router(roaming=True)` the addresses of one device don't take
over: `Roaming` joins them, and one of them, the anchor, stands for all at the broker.

**The broker.** A `Hub` is the broker for all connections: it publishes for the app, and learns who registered
and who has gone. What one connection asks is carried out by its `BrokerSide`. That is the hub itself, or, on
hosts where each connection is a process of the broker, what its link brings (`Link.broker_side`). The
embedded hub, `MemoryHub`, does no I/O and is part of the core; `sessions` and `retained` are its memory.

**State** moves one way, never back:

        OPENING ──▶ OPEN ──▶ DRAINING ──▶ CLOSING ──▶ CLOSED ──▶ GONE ──▶ LEAVING ──▶ ENDED
           │          ╰──────────┼───────────▲           ▲          ▲
           ╰─────────────────────┴───────────┴───────────┴──────────╯   any may be skipped

    OPENING    the device hasn't sent a frame yet; it has `Limits.first_frame` seconds to do so.
               A frame or a registration makes it OPEN.
    OPEN       frames, messages and timers are handled; most of a connection's life.
    DRAINING   we close once all that was received is handled: the device has closed its half, or the host
               shuts down. Nothing more is read.
    CLOSING    we close once both queues are flushed: a handler said `terminate()` or failed, a timer ran
               out. What was received is dropped and counted.
    CLOSED     `Link.close` or `Link.abort` was called; the host is about to report that the device is gone.
    GONE       the host has reported it (`Channel.terminated`). What came before a hang-up is still handled,
               what a CLOSING connection had received is not. Then `on_terminated` runs, once.
    LEAVING    `on_terminated` has returned; what it published is on its way.
    ENDED      hub and observers know, nothing runs any more, all references are dropped.

`Limits.end_timeout` bounds each step between OPEN and ENDED, so that a handler that never returns, a broker
that never answers, a device that never reads, or a pile of frames can't keep a connection alive.

**Reasons to wait** are the bits of `Channel.waits`. The hot path asks one question, `if self.waits`: without
any, what was just received is handled on the spot. Each reason is set and cleared by its owner alone:

    RUNNING        a plain handler is on the stack                          HandlerCalls.run, Straight
    HANDLER        an async or blocking handler has the turn                HandlerCalls.turn
    REGISTER       a registration has no outcome yet                        Registration
    CONGESTED      the host's queue to the broker is full                   Channel.congested, relieved
    COMMANDS_FULL  more than `Limits.commands` wait for the broker          Verbs
    WRITE_BLOCKED  the device reads too slowly                              Outbound
    OUTBOUND_FULL  more than `Limits.outbox` bytes wait to be sent          Outbound
    SENDS_FULL     more than `Limits.waiting_sends` wait for their outcome  WaitingSends
    SENDS_FAILED   one of them failed, which is judged before new turns     WaitingSends
    FAILURES       commands have failed; were they awaited?                 Failures
    RESUMES        handlers that awaited a request go on before new turns   HandlerCalls
    BACKLOG        frames or events wait for their turn                     Channel.advance, Inbound, Backlog
    CHILDREN       a child's handler has the turn, or its queue is full    Children
    ENDING         the state is beyond OPEN, so each event may move it on   Channel.move_on
    INDIRECT       OPENING, watched, on a datagram socket, or messages wait Channel.choose_path
                   for the device to speak: not the straight path

No turn starts while one of `BLOCKS` is set. The others only mean that `advance` has something to do.

**Slices.** No connection holds the loop. A read of a few frames is handled on the spot. Whatever is more is
cut in pieces, of as many bytes as take `CUT` seconds but `PIECE` at most, and its frames handled a `BATCH`
at a time: after each the clock is looked at, and after `SLICE` seconds the connection goes back into the
`Scheduler`'s queue, where those who have worked least come first. All slices in one turn of the event loop
take `ROUND` seconds together at most; sockets and timers come in between. While a connection's backlog is
above `Limits.inbox`, its socket isn't read. At a shutdown what waits has a second.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "BACKLOG",
    "BATCH",
    "BLOCKS",
    "CHILDREN",
    "CLOSED",
    "CLOSING",
    "COMMANDS_FULL",
    "CONGESTED",
    "CUT",
    "DRAINING",
    "ENDED",
    "ENDING",
    "FAILURES",
    "FIRST_PIECE",
    "FIRST_SLICE",
    "GONE",
    "HANDLER",
    "INDIRECT",
    "LEAST_PIECE",
    "LEAVING",
    "NOT_RUNNING",
    "OPEN",
    "OPENING",
    "OUTBOUND_FULL",
    "PIECE",
    "REGISTER",
    "RESUMES",
    "ROUND",
    "RUNNING",
    "SENDS_FAILED",
    "SENDS_FULL",
    "SLICE",
    "WRITE_BLOCKED",
    "State",
    "reasons",
]


class State(IntEnum):
    """Where a connection is in its life; the module's docstring explains each state."""

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
CHILDREN: Final = 8192
SENDS_FULL: Final = 2048
SENDS_FAILED: Final = 4096
COMMANDS_FULL: Final = 16384

NOT_RUNNING: Final = ~RUNNING

BLOCKS: Final = (
    HANDLER | REGISTER | CONGESTED | COMMANDS_FULL | WRITE_BLOCKED | OUTBOUND_FULL | SENDS_FULL | CHILDREN
)
"""The reasons that no turn gets past."""

PIECE: Final = 8_192
LEAST_PIECE: Final = 64
FIRST_PIECE: Final = 512
"""Bytes that are cut into frames at a time: at most, at least, and at first."""

CUT: Final = 0.002
"""Seconds that cutting a piece may take; the next one is smaller if it took longer."""

BATCH: Final = 16
"""Frames that are handled before the clock is checked."""

SLICE: Final = 0.004
FIRST_SLICE: Final = 0.0005
"""Seconds of work of one connection, behind which the others have their turn; the first time it is less."""

ROUND: Final = 0.010
"""Seconds of all slices together, after which sockets and timers get their turn."""

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
    CHILDREN: "CHILDREN",
    SENDS_FULL: "SENDS_FULL",
    SENDS_FAILED: "SENDS_FAILED",
    COMMANDS_FULL: "COMMANDS_FULL",
}


def reasons(waits: int) -> set[str]:
    """Return the names of the reasons in *waits*, for debugging."""
    return {name for bit, name in _NAMES.items() if waits & bit}
