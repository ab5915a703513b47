"""The format of a store's files: whatever happens to a file, what is readable is read."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app.commands import Publish
from exproto_app.models import PLAIN, Properties
from exproto_app.store.files import find
from exproto_app.store.records import HEADER, Damage, Done, Stored, done, header, message, read_one, scan

MARKER = b"\xc5\x9e\x00\x7f"

topics = st.text(max_size=20)
properties = st.builds(
    Properties,
    st.none() | st.integers(0, 2**32 - 1),
    topics,
    topics,
    st.binary(max_size=10),
    st.lists(st.tuples(topics, topics), max_size=2).map(tuple),
    st.booleans(),
)
publishes = st.builds(
    Publish, topics, st.binary(max_size=60), st.integers(1, 2), st.booleans(), st.just(PLAIN) | properties
)
messages = st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=20), publishes)
notes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5)
records = st.lists(messages | notes, max_size=8)


def encoded(record: object) -> bytes:
    if isinstance(record, tuple):
        number, clientid, command = record
        return message(MARKER, number, clientid.encode(), command)
    assert isinstance(record, list)
    return done(MARKER, record)


def content(item: object) -> object:
    if isinstance(item, Stored):
        return item.id, item.clientid, item.command
    return list(item.ids) if isinstance(item, Done) else item


def read(data: bytes) -> list[object]:
    return [content(item) for item in scan(data)]


@given(records)
def test_what_is_written_is_read(written: list[object]) -> None:
    data = header(MARKER) + b"".join(map(encoded, written))
    assert read(data) == written


@given(records)
def test_a_file_cut_off_anywhere_gives_what_is_whole_before_the_cut(written: list[object]) -> None:
    parts = [encoded(record) for record in written]
    data = header(MARKER) + b"".join(parts)
    ends = [HEADER + sum(map(len, parts[:number])) for number in range(len(parts) + 1)]
    for cut in range(len(data)):
        whole = sum(end <= cut for end in ends[1:])
        found = list(scan(data[:cut]))
        assert [content(item) for item in found[:whole]] == written[:whole]
        assert all(isinstance(item, Damage) and item.torn for item in found[whole:])


@given(records, st.data())
def test_a_byte_that_changed_costs_one_record(written: list[object], data: st.DataObject) -> None:
    parts = [encoded(record) for record in written]
    file = bytearray(header(MARKER) + b"".join(parts))
    at = data.draw(st.integers(0, len(file) - 1))
    file[at] ^= data.draw(st.integers(1, 255))
    found = [content(item) for item in scan(bytes(file)) if not isinstance(item, Damage)]
    end, left = HEADER, []
    for record, part in zip(written, parts, strict=True):
        if not end <= at < end + len(part):
            left.append(record)
        end += len(part)
    # A record whose marker is damaged is readable all the same, where no other tells what it should be.
    assert found == left or (found == written and len(written) == 1 and HEADER <= at < HEADER + 4)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    for file in (data, header(MARKER) + data):
        assert all(not isinstance(item, Stored) or item.size for item in scan(file))


@given(messages, st.integers(0, 50))
def test_one_message_is_read_from_a_block(written: tuple[int, str, Publish], before: int) -> None:
    data = bytes(before) + encoded(written)
    found = read_one(data, before, 1_000)
    assert isinstance(found, Stored)
    assert (found.offset, found.size) == (1_000 + before, len(data) - before)
    assert content(found) == written
    assert isinstance(read_one(data[:-1], before, 0), int)


def test_a_device_can_write_nothing_that_looks_like_a_record() -> None:
    inner = message(b"\0\0\0\0", 1, b"other", Publish("t", b"forged", 1))
    outer = bytearray(header(MARKER) + message(MARKER, 2, b"c", Publish("t", inner, 1)))
    outer[HEADER + 4] ^= 1
    assert [item for item in scan(bytes(outer)) if isinstance(item, Stored)] == []


@pytest.mark.parametrize("payload", [MARKER * 100_000, random.Random(1).randbytes(400_000)])
def test_the_search_behind_damage_takes_linear_time(payload: bytes) -> None:
    """With a marker that a device can't know; here it knows it, and each is looked at once all the same."""
    file = bytearray(header(MARKER) + message(MARKER, 1, b"c", Publish("t", payload, 1)))
    file[HEADER + 4] ^= 1
    began = time.process_time()
    found = list(scan(bytes(file) + message(MARKER, 2, b"c", Publish("t", b"next", 1))))
    assert time.process_time() - began < 10
    assert isinstance(found[-1], Stored)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in files' places")
def test_what_is_no_file_of_a_store_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    """A pipe would wait for its writer for ever, and a file of 20 GB takes more memory than there is."""
    command = Publish("t", b"x", 1)
    (tmp_path / "00000001.log").write_bytes(header(MARKER) + message(MARKER, 256, b"dev", command))
    os.mkfifo(tmp_path / "00000002.log")
    with (tmp_path / "00000003.log").open("wb") as file:
        file.truncate(20 * 2**30)
    (tmp_path / "00000004.log").symlink_to("00000004.log")
    (tmp_path / "00000005.log").mkdir()
    found = find(tmp_path)
    assert list(found.waiting) == ["dev"]
    assert [note.partition(" can't be read: ")[0][-5] for note in found.notes] == ["2", "3", "4", "5"]
