"""The store's log, on a real disk: what it is told is safe is there again, whatever becomes of the disk."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from exproto_app import SetupError
from exproto_app.commands import Publish
from exproto_app.store import (
    Log,
    Run,
    Segment,
    find,
    leftovers,
    lock_folder,
    lock_part,
    look,
    take_over,
)

pytestmark = pytest.mark.live

LIMIT = 1 << 20


@attrs.define(eq=False)
class Entry:
    name: str
    id: int = 0
    segment: Segment | None = None
    offset: int = 0
    size: int = 0


class Writer:
    """Appends to a log, and knows what is safe."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder = folder
        self.safe_names: list[str] = []
        self.unsafe_names: list[str] = []
        self.rooms = 0
        self.news = asyncio.Event()
        self.log: Log[Entry] = Log(folder, 1, limit, self, asyncio.get_running_loop(), time.time)

    def append(self, name: str, payload: bytes = b"x", clientid: str = "c") -> Entry:
        """Append a message; without a segment afterwards it wasn't taken."""
        entry = Entry(name, self.log.new_id())
        self.log.append(entry, clientid.encode(), Publish(f"up/{name}", payload, 1))
        return entry

    def safe(self, entries: Sequence[Entry]) -> None:
        self.safe_names += [entry.name for entry in entries]
        self.news.set()

    def unsafe(self, entries: Sequence[Entry]) -> None:
        self.unsafe_names += [entry.name for entry in entries]
        self.news.set()

    def room(self) -> None:
        self.rooms += 1
        self.news.set()

    async def until(self, count: int) -> None:
        """Wait until *count* are safe or failed."""
        while len(self.safe_names) + len(self.unsafe_names) < count:
            self.news.clear()
            await self.news.wait()

    async def names(self, run: Run) -> list[str]:
        """Read all of *run*."""
        names = []
        while run.next < len(run.offsets):
            read = asyncio.Event()
            found = self.log.read(run, read.set)
            if found is None:
                await read.wait()
            else:
                names.append(found if found == "gone" else found.command.topic.removeprefix("up/"))
        return names


@asynccontextmanager
async def writing(folder: Path, limit: int = LIMIT) -> AsyncIterator[Writer]:
    writer = Writer(folder, limit)
    try:
        yield writer
    finally:
        await writer.log.close()


def waiting(folder: Path) -> dict[str, int]:
    return {clientid: len(entries) for clientid, entries in find(folder).waiting.items()}


def test_what_is_safe_is_found_again_and_what_is_done_is_not(tmp_path: Path) -> None:
    async def write() -> None:
        async with writing(tmp_path) as writer:
            entries = [writer.append(str(number)) for number in range(10)]
            await writer.until(10)
            for entry in entries[:4]:
                writer.log.done(entry)

    async def read() -> None:
        async with writing(tmp_path) as writer:
            (run,) = writer.log.adopt(find(tmp_path))["c"]
            assert await writer.names(run) == [str(number) for number in range(4, 10)]
            assert (writer.log.count, writer.log.live > 0) == (6, True)

    asyncio.run(write())
    asyncio.run(read())


def test_a_message_that_waits_for_ever_keeps_no_other_files(tmp_path: Path) -> None:
    limit = 65_536

    async def write() -> None:
        async with writing(tmp_path, limit) as writer:
            forever = writer.append("forever")
            first = [writer.append(f"first{number}") for number in range(20)]
            await writer.until(21)
            for number in range(20):
                others = [writer.append(f"{number}/{other}") for other in range(300)]
                await writer.until(21 + 300 * (number + 1))
                for entry in (*first[number : number + 1], *others):
                    writer.log.done(entry)
                assert writer.log.size <= 2 * limit
            assert forever.segment is not None

    async def read() -> None:
        async with writing(tmp_path, limit) as writer:
            (run,) = writer.log.adopt(find(tmp_path))["c"]
            assert await writer.names(run) == ["forever"]

    asyncio.run(write())
    assert sum(path.stat().st_size for path in tmp_path.glob("*.log")) <= limit
    asyncio.run(read())


def test_files_that_messages_keep_count_too(tmp_path: Path) -> None:
    limit = 65_536

    async def write() -> None:
        async with writing(tmp_path, limit) as writer:
            kept = []
            for number in range(1000):
                entry = Entry("c", writer.log.new_id())
                if not writer.log.append(entry, b"c", Publish("up", bytes(1000), 1)):
                    break
                await writer.until(number + 1)
                if number % 4:
                    writer.log.done(entry)
                else:
                    kept.append(entry)
            assert (writer.log.live < limit * 3 // 4, writer.log.size <= 2 * limit) == (True, True)
            writer.news.clear()
            for entry in kept:
                writer.log.done(entry)
            await writer.news.wait()
            assert writer.rooms == 1

    asyncio.run(write())


def test_what_comes_together_is_committed_together(tmp_path: Path) -> None:
    async def write() -> None:
        async with writing(tmp_path) as writer:
            for number in range(1000):
                writer.append(str(number))
            await writer.until(1)
            assert writer.safe_names == [str(number) for number in range(1000)]

    asyncio.run(write())


def test_files_are_removed_once_all_in_them_is_done(tmp_path: Path) -> None:
    async def write() -> None:
        async with writing(tmp_path, 64 * 1024) as writer:
            for number in range(200):
                entry = writer.append(str(number), bytes(1000))
                assert entry.segment is not None
                await writer.until(number + 1)
                writer.log.done(entry)
            assert writer.log.live == 0

    asyncio.run(write())
    assert len(list(tmp_path.iterdir())) == 1


def test_beyond_its_limit_nothing_is_taken_until_there_is_room(tmp_path: Path) -> None:
    async def write() -> None:
        async with writing(tmp_path, 16 * 1024) as writer:
            entries = [writer.append(str(number), bytes(1000)) for number in range(20)]
            taken = [entry for entry in entries if entry.segment is not None]
            assert 10 < len(taken) < 20
            await writer.until(len(taken))
            for entry in taken[:4]:
                writer.log.done(entry)
            writer.news.clear()
            await writer.news.wait()
            assert writer.rooms == 1
            assert writer.append("more", bytes(1000)).segment is not None

    asyncio.run(write())


def test_a_disk_that_is_full_is_told_once_and_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is safe stays; what couldn't be written is told to whoever appended it."""
    monkeypatch.setattr("exproto_app.store.log.RETRY", 0.05)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def write() -> None:
        async with writing(tmp_path) as writer:
            writer.append("kept")
            await writer.until(1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
            try:
                for number in range(10):
                    writer.append(str(number), bytes(1000))
                await writer.until(11)
                assert writer.unsafe_names == [str(number) for number in range(10)]
                assert writer.append("while it is full").segment is None
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            while not writer.rooms:
                writer.news.clear()
                await writer.news.wait()
            writer.append("again")
            await writer.until(12)
            assert writer.safe_names == ["kept", "again"]

    asyncio.run(write())
    assert waiting(tmp_path) == {"c": 2}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"store ! {tmp_path} can't be written: file too large; trying again"
    ]


def test_a_folder_that_vanishes_is_told_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def write() -> None:
        folder = tmp_path / "part"
        folder.mkdir()
        async with writing(folder) as writer:
            folder.rmdir()
            writer.append("a")
            await writer.until(1)
            assert writer.unsafe_names == ["a"]

    asyncio.run(write())
    assert "no such file or directory; trying again" in caplog.text


@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
def test_a_message_of_any_size_is_read_back(tmp_path: Path, size: int) -> None:
    """Also one that is longer than a block, and one at the edge of it."""

    async def write() -> None:
        async with writing(tmp_path, 1 << 24) as writer:
            for number in range(9):
                writer.append(str(number), bytes(size))
            await writer.until(9)

    async def read() -> None:
        async with writing(tmp_path, 1 << 24) as writer:
            runs = writer.log.adopt(find(tmp_path))["c"]
            names = [name for run in runs for name in await writer.names(run)]
            assert names == [str(number) for number in range(9)]

    asyncio.run(write())
    asyncio.run(read())


def test_what_can_not_be_read_any_more_is_told_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def damage(at: int) -> None:
        (path,) = tmp_path.iterdir()
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    async def write() -> None:
        async with writing(tmp_path) as writer:
            entries = [writer.append(str(number)) for number in range(3)]
            await writer.until(3)
            run = Run(writer.log.segments[1])
            run.offsets.extend(entry.offset for entry in entries)
            damage(entries[1].offset + 20)
            assert await writer.names(run) == ["0", "gone", "2"]
            assert writer.log.count == 2

    asyncio.run(write())
    assert "can't be read and is dropped" in caplog.text


def test_damage_and_a_torn_end_are_noted_and_the_rest_is_found(tmp_path: Path) -> None:
    async def write() -> None:
        async with writing(tmp_path) as writer:
            for number in range(5):
                writer.append(str(number))
            await writer.until(5)

    asyncio.run(write())
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-3])
    found = find(tmp_path)
    assert len(found.waiting["c"]) == 3
    assert [note.rpartition(": ")[2] for note in (*found.notes, *found.torn)] == [
        "32 bytes at 88 are damaged and are skipped",
        "the last 29 bytes were cut off while they were written",
    ]


def test_ids_grow_although_the_clock_is_set_back(tmp_path: Path) -> None:
    async def write() -> None:
        times = iter([100.0, 50.0, 50.0, 101.0])
        log: Log[Entry] = Log(
            tmp_path, 3, LIMIT, Writer(tmp_path), asyncio.get_running_loop(), times.__next__
        )
        ids = [log.new_id() for _ in range(4)]
        assert ids == sorted(set(ids))
        assert all(number & 0xFF == 3 for number in ids)
        await log.close()

    asyncio.run(write())


class TestFolder:
    """Who has which part of a folder."""

    def test_a_second_gateway_is_refused_in_one_sentence(self, tmp_path: Path) -> None:
        lock = lock_folder(tmp_path / "new")
        assert lock is not None
        with pytest.raises(SetupError, match="another gateway uses this folder; give each one of its own"):
            lock_folder(tmp_path / "new")
        lock.release()
        again = lock_folder(tmp_path / "new")
        assert again is not None
        again.release()

    @pytest.mark.parametrize("name", ["file", "file/store", "file/store/below"])
    def test_a_folder_that_can_not_be_one_is_refused_too(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match=r"can't be used: .*; name a folder that this user may write to"):
            lock_folder(tmp_path / name)

    def test_each_process_has_a_part_and_takes_over_those_that_nobody_has(self, tmp_path: Path) -> None:
        async def write(folder: Path, name: str) -> None:
            async with writing(folder) as writer:
                writer.append(name)
                await writer.until(1)

        one, two = lock_part(tmp_path), lock_part(tmp_path)
        assert (one.number, two.number) == (1, 2)
        asyncio.run(write(one.folder, "of one"))
        asyncio.run(write(two.folder, "of two"))
        assert leftovers(tmp_path, one.number) == []
        two.release()
        (other,) = leftovers(tmp_path, one.number)
        assert leftovers(tmp_path, one.number) == []
        assert take_over(other, one.folder, 7) == [7]
        other.release()
        one.release()
        assert waiting(one.folder) == {"c": 2}
        assert len(look(tmp_path).waiting["c"]) == 2

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_folder_that_can_not_be_written_is_nobodys(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert lock_folder(tmp_path / "new") is None
