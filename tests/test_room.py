"""Places for connections, and who gives way, without a socket and on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from exproto_app.hosts.gateway.handshakes import MOST, Handshakes, crowded
from exproto_app.hosts.gateway.room import Candidate, Room


@attrs.define
class House:
    """Connections at listeners: number 0 is TCP, the last one UDP."""

    limit: int
    listeners: int = 2
    sockets: int | None = None
    room: Room = attrs.field(init=False)
    unproved: list[Candidate] = attrs.field(factory=list)
    kinds: dict[Candidate, tuple[str, int]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.room = Room(self.limit, [None] * self.listeners, self.oldest, self.sockets)

    def oldest(self, kind: str, number: int) -> Candidate | None:
        return next((one for one in self.unproved if self.kinds[one] == (kind, number)), None)

    def enter(self, kind: str, now: float, *, proved: bool = False) -> str:
        number = self.listeners - 1 if kind == "udp" else 0
        why = self.room.enter(number, now, datagrams=kind == "udp")
        if not why and not proved:

            def vacate() -> bool:
                self.unproved.remove(candidate)
                self.room.leave(number, datagrams=kind == "udp")
                return True

            candidate = Candidate(now, vacate)
            self.kinds[candidate] = kind, number
            self.unproved.append(candidate)
        return why


def test_a_flood_of_udp_peers_leaves_room_for_tcp_and_for_new_udp_devices() -> None:
    house = House(100)
    assert {house.enter("udp", now / 1000) for now in range(10_000)} <= {"", "share"}
    assert house.room.total == 95  # 5 are the TCP listener's own
    for now in range(50):
        assert house.enter("tcp", 20.0 + now / 1000, proved=True) == ""
    assert house.enter("udp", 30.0, proved=True) == ""
    assert house.room.total <= 100


def test_who_proved_something_keeps_its_place() -> None:
    house = House(10, listeners=1)
    for now in range(10):
        assert house.enter("tcp", now, proved=True) == ""
    assert house.enter("tcp", 100.0) == "gateway"
    assert house.room.evicted == 0


def test_the_oldest_gives_way_first_half_open_before_udp_before_silent_tcp() -> None:
    house = House(4, listeners=1)
    for kind, now in (("tcp", 0.0), ("udp", 1.0), ("half-open", 2.0), ("half-open", 3.0)):
        assert house.enter(kind, now) == ""
    went: list[float] = []
    for now in range(10, 14):
        before = {candidate.since for candidate in house.unproved}
        assert house.enter("tcp", float(now), proved=True) == ""
        went += before - {candidate.since for candidate in house.unproved}
    assert went == [2.0, 3.0, 1.0, 0.0]


def test_a_device_on_tcp_has_time_to_say_something() -> None:
    house = House(1, listeners=1)
    assert house.enter("tcp", 0.0) == ""
    assert house.enter("tcp", 4.9) == "gateway"
    assert house.enter("tcp", 5.0) == ""


def test_a_udp_peer_displaces_no_tcp_connection_for_its_address_may_be_forged() -> None:
    house = House(10, listeners=2)
    for now in range(10):
        house.enter("tcp", float(now))
    assert house.enter("udp", 100.0) == "gateway"


def test_the_limit_of_a_listener_concerns_its_own_connections() -> None:
    room = Room(10, [1, None], lambda kind, number: None)
    assert [room.enter(0, 0.0, datagrams=False) for _ in range(2)] == ["", "listener"]
    assert room.enter(1, 0.0, datagrams=False) == ""
    assert room.words(0, "listener") == "it has 1, limit is 1"
    room.leave(0, datagrams=False)
    assert room.enter(0, 0.0, datagrams=False) == ""


def test_sockets_are_bounded_by_open_files_udp_peers_need_none() -> None:
    house = House(100, sockets=2)
    assert [house.enter("tcp", 0.0, proved=True) for _ in range(3)] == ["", "", "files"]
    assert [house.enter("udp", 0.0) for _ in range(3)] == [""] * 3
    house.room.leave(0, datagrams=False)
    assert house.enter("tcp", 0.0) == ""


def test_the_oldest_of_the_host_with_most_is_given_up() -> None:
    assert crowded([(1, "a"), (2, "b"), (3, "b")]) == 2
    assert crowded([(1, "a"), (2, "b")]) == 1


@attrs.define(eq=False)
class Half:
    """A connection whose handshake is to come."""

    host: str
    handshakes: Handshakes

    def vacate(self, why: str = "") -> bool:
        self.handshakes.ended(self)
        return True


def test_handshakes_begin_one_a_round_and_addresses_take_turns() -> None:
    rounds: list[Callable[[], object]] = []
    handshakes, begun = Handshakes(rounds.append), list[str]()
    for name in ("a1", "a2", "a3", "b1", "gone", "a4"):
        half = Half(name[0], handshakes)
        handshakes.wait(half, partial(begun.append, name))
        if name == "gone":
            half.vacate()
    while rounds:
        before = len(begun)
        rounds.pop()()
        assert len(begun) <= before + 1
    assert begun == ["a1", "b1", "a2", "a3", "a4"]


def test_who_has_most_handshakes_under_way_gives_one_up() -> None:
    handshakes = Handshakes(lambda run: run())
    halves = [Half("a", handshakes) for _ in range(MOST)]
    for half in halves:
        handshakes.wait(half, list)
    other = Half("b", handshakes)
    handshakes.wait(other, list)
    assert list(handshakes._under_way) == [*halves[1:], other]
