"""The file by which parts of a store tell each other who has the oldest messages of a client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from exproto_app.store import NEWEST, Order, lock_folder
from exproto_app.store.order import SLOTS, begin

pytestmark = pytest.mark.live


@pytest.fixture
def orders(tmp_path: Path) -> Iterator[tuple[Order, Order]]:
    """Parts 1 and 2 of one store, both of which serve."""
    begin(tmp_path, (), shared=True)
    both = Order(tmp_path, 1), Order(tmp_path, 2)
    for order in both:
        order.ready()
    yield both
    for order in both:
        order.close()


def test_who_has_newer_messages_knows_who_has_older_ones(orders: tuple[Order, Order]) -> None:
    first, second = orders
    first.put(b"d", 100)
    second.put(b"d", 200)
    assert second.older(b"d", 200) == ((1, 100),)
    assert first.older(b"d", 100) == ()
    assert first.older(b"d", NEWEST) == ((2, 200),)
    assert second.older(b"other", 200) == ()
    first.put(b"d", 300)
    assert [first.older(b"d", 300), second.older(b"d", 200)] == [((2, 200),), ()]
    second.remove(b"d")
    assert [first.older(b"d", NEWEST), first.others()] == [(), []]


def test_clients_that_share_a_slot_count_as_one(orders: tuple[Order, Order]) -> None:
    first, second = orders
    slot = crc32(b"0") % SLOTS
    other = next(name for name in (b"%d" % n for n in range(1, 1 << 22)) if crc32(name) % SLOTS == slot)
    first.put(b"0", 100)
    first.put(other, 50)
    assert second.older(b"0", NEWEST) == ((1, 50),)
    first.remove(other)
    assert second.older(b"0", NEWEST) == ((1, 100),)
    first.remove(b"0")
    assert second.older(b"0", NEWEST) == ()


def test_what_a_dead_process_had_counts_until_another_has_it(tmp_path: Path) -> None:
    begin(tmp_path, (), shared=True)
    dead, other, heir = (Order(tmp_path, part) for part in (1, 2, 3))
    for order in (dead, other, heir):
        order.ready()
    dead.put(b"d", 100)
    dead.close()
    assert other.older(b"d", NEWEST) == ((1, 100),)
    heir.put(b"d", 100)
    heir.taken_over(1)
    assert other.older(b"d", NEWEST) == ((3, 100),)
    again = Order(tmp_path, 1)
    again.ready()
    again.put(b"other", 500)
    assert other.older(b"d", NEWEST) == ((3, 100),)


def test_after_a_reboot_parts_with_files_may_have_anything(tmp_path: Path) -> None:
    (tmp_path / "part-2").mkdir()
    (tmp_path / "part-2" / "00000001.log").touch()
    lock = lock_folder(tmp_path, shared=True)
    assert lock is not None
    first, second = Order(tmp_path, 1), Order(tmp_path, 2)
    first.ready()
    assert first.older(b"d", 100) == ((2, 0),)
    second.put(b"d", 50)
    assert first.older(b"other", 100) == ((2, 0),)
    second.ready()
    assert [first.older(b"d", 100), first.older(b"other", 100)] == [((2, 50),), ()]
    lock.release()


def test_a_gateway_of_one_process_has_no_such_file(tmp_path: Path) -> None:
    begin(tmp_path, (), shared=True)
    lock = lock_folder(tmp_path)
    assert lock is not None
    with pytest.raises(FileNotFoundError):
        Order(tmp_path, 1)
    lock.release()


def test_parts_beyond_the_last_table_wait_for_others_and_for_nobody_else(tmp_path: Path) -> None:
    begin(tmp_path, (), shared=True)
    first, last = Order(tmp_path, 1), Order(tmp_path, 65)
    for order in (first, last):
        order.ready()
    first.put(b"d", 100)
    last.put(b"d", 50)
    assert [first.older(b"d", NEWEST), last.older(b"d", NEWEST)] == [(), ((1, 100),)]
