"""What the MQTT server allows, per client and in all."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["LATE", "LEVEL", "LEVELS", "MESSAGE", "OVERHEAD", "Bounds", "Budget"]

OVERHEAD: Final = 100
"""Bytes that a packet that is to be sent counts beside its own."""

MESSAGE: Final = 300
LATE: Final = 150
"""Bytes that a waiting message counts beside its topic and payload, and more where it waits for room."""

LEVEL: Final = 400
"""Bytes that each level of a subscription's topic filter counts: what a node of the hub's tree takes."""

LEVELS: Final = 128
"""Levels of a topic or topic filter."""


@attrs.frozen(kw_only=True)
class Bounds:
    """The limits of the MQTT server.

    Counts: *clients* connected, *half_open* of them without a login yet; *sessions* kept; *subscriptions* of
    a client; *in_flight* messages to a client that it hasn't acknowledged; *receive_max* messages of QoS 1
    and 2 of a client that aren't finished.
    Bytes: *packet* that a client may send, and its *connect*; *soft* waiting for a client, beyond it
    publishers that await are made to wait; *queue* waiting for it and unacknowledged; *filters* of its
    subscriptions; *total* of everything that is held for all clients; *late* of messages, of all clients,
    that wait for room in such a queue, beyond it those are dropped that nobody awaits; *write* in one piece.
    Times, in seconds: *connect_time* until a client is logged in; *stall* without a byte read or a message
    acknowledged while something waits; *packet_time* until a packet that has begun is complete; *goodbye* for
    the last bytes; *session_expiry* at most.
    """

    clients: int = 1_000
    half_open: int = 256
    sessions: int = 1_000
    subscriptions: int = 1_000
    in_flight: int = 32
    receive_max: int = 1_024
    packet: int = 1_048_576
    connect: int = 65_536
    soft: int = 262_144
    queue: int = 8_388_608
    filters: int = 2_097_152
    total: int = 50_331_648
    late: int = 33_554_432
    write: int = 32_768
    connect_time: float = 10.0
    stall: float = 30.0
    packet_time: float = 60.0
    goodbye: float = 2.0
    session_expiry: int = 86_400


class Budget:
    """The bytes that are held for all clients together.

    Those who hold much can't keep the others out: beyond the total each may still have its *share*, and one
    message, of any size, who has nothing; half as much again is the end. Clients that are away have half.
    """

    def __init__(self, total: int, peers: int) -> None:
        self.total = total
        self.share = max(total // (4 * peers), 16_384)
        self.used = 0

    def allows(self, held: int, size: int, *, absent: bool = False) -> bool:
        """Return whether somebody who holds *held* bytes may hold *size* more."""
        used = self.used + size
        if held + size <= self.share:
            return True
        if absent:
            return used <= self.total // 2
        return used <= self.total or (not held and used <= self.total // 2 * 3)
