"""Several framings in one stream, checksums, garbage: what is dropped without an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import attrs
import pytest

from exproto_app.checksums import CRC16_ARC, CRC16_X25, CRC32, XOR
from exproto_app.errors import FramingError, SetupError
from exproto_app.framing import (
    JT808,
    SLIP,
    Bad,
    Checked,
    Decoder,
    Decoding,
    FirstOf,
    FixedSize,
    Framing,
    LengthPrefix,
    Line,
    OctetCounting,
    Reader,
    Resync,
    StartEnd,
)

from .framings import GT06, NMEA, Counted, CountedSplit, Starting, Words, by, bytewise, decoded, splitting

BINARY = LengthPrefix(1, start=b"\x02")
EITHER = FirstOf(BINARY, Line())
XORED = Checked(LengthPrefix(1), XOR)


def all_of(framing: Framing, chunks: Iterable[bytes]) -> list[bytes | Bad | str]:
    """Return frames, then what was dropped with them, and errors, all of them survived."""
    decoder = Decoder(framing)
    events: list[bytes | Bad | str] = []
    for chunk in chunks:
        data = chunk
        while True:
            events += decoder.feed(data)
            events += decoder.take_bad()
            if decoder.error is None:
                break
            events.append(str(decoder.error))
            decoder.recover()
            data = b""
    return events


# --- FirstOf


@pytest.mark.parametrize(
    ("framing", "stream", "frames"),
    [
        (EITHER, b"\x02\x03a\nbtext\r\n\x02\x00\n", [b"a\nb", b"text", b"", b""]),
        (
            FirstOf((b"\x00\x0f", LengthPrefix(2)), LengthPrefix(4, start=bytes(4))),
            bytes(4) + b"\x00\x00\x00\x01a" + b"\x00\x0f" + b"b" * 15,
            [b"a", b"b" * 15],
        ),
        (FirstOf(OctetCounting(), (b"<", Line())), b"3 a\nb<34>c\n1 d", [b"a\nb", b"<34>c", b"d"]),
        (
            FirstOf(LengthPrefix(1, start=b"xx"), LengthPrefix(1, start=b"xy")),
            b"xx\x01axy\x01b",
            [b"a", b"b"],
        ),
        (
            FirstOf((lambda data: data[0] < 32, LengthPrefix(1)), Line()),
            b"a\n\x02b\nc\n",
            [b"a", b"b\n", b"c"],
        ),
        (FirstOf((b"+", Line()), Counted()), b"+a\n\x00\x01b+c\n", [b"+a", b"b", b"+c"]),
        (
            FirstOf(Starting(), JT808, Words()),
            b"w;;#\x01a\x7eb\x7e#\x00",
            [b"w", b"a", b"b", b""],
        ),
    ],
)
def test_the_first_bytes_of_each_frame_decide(framing: Framing, stream: bytes, frames: list[bytes]) -> None:
    """Text and binary, or several binary forms, may come in one stream, in any order."""
    for chunks in ([stream], bytewise(stream)):
        assert decoded(framing, chunks) == frames


def test_a_function_of_the_first_bytes_is_asked_with_more_and_more() -> None:
    """It gets one byte, then two, whatever has come: what it says can't depend on the network."""
    asked: list[bytes] = []

    def binary(data: bytes) -> bool | None:
        asked.append(data)
        return None if len(data) < 3 else data[2] == 0

    framing = FirstOf((binary, LengthPrefix(1)), Line())
    assert asked == [bytes([byte]) for byte in range(256)]
    asked.clear()
    stream = b"\x02a\x00xyz\n"
    assert decoded(framing, [stream]) == [b"a\x00", b"xyz"]
    assert asked == [stream[:1], stream[:2], stream[:3], b"x", b"xy", b"xyz"]
    assert decoded(framing, bytewise(stream)) == [b"a\x00", b"xyz"]


def test_a_function_that_never_decides_doesnt_take_the_frame() -> None:
    """It may look at 64 bytes."""
    framing = FirstOf((lambda _: None, LengthPrefix(1)), Line())
    assert decoded(framing, bytewise(b"x" * 70 + b"\n")) == [b"x" * 70]


def test_a_frame_that_nobody_takes_is_an_error() -> None:
    """Its first bytes are in the error."""
    framing = FirstOf(StartEnd(b"<", b">"), BINARY)
    assert told_once(framing, b"<a>?123456789") == ([b"a"], "no framing starts with 3f31323334353637")
    generator = FirstOf(Starting(), BINARY)
    assert told_once(generator, b"\x02\x01a?123456789") == ([b"a"], "no framing starts with 3f31323334353637")


def told_once(framing: Framing, stream: bytes) -> tuple[list[bytes], str]:
    """Return the frames before the first error, and that."""
    decoder = Decoder(framing)
    frames = decoder.feed(stream)
    return frames, str(decoder.error)


def test_a_function_that_fails_is_named() -> None:
    """A user's function may raise anything; it costs the device no more than a framing error."""
    frames, error = told_once(FirstOf((lambda data: len(data) < 1 // 0, Line()), BINARY), b"abc")
    assert (frames, error[:8]) == ([], "FirstOf(")
    assert "a predicate failed: ZeroDivisionError(" in error


def test_each_framing_keeps_its_own_limit() -> None:
    """The larger limit of one is none of the other's."""
    stock = FirstOf(LengthPrefix(1, start=b"\x02", limit=5), Line(limit=10))
    assert told_once(stock, b"0123456789\n\x02\x06") == ([b"0123456789"], "frame has 6 bytes, limit is 5")
    users = FirstOf(Starting(limit=5), Line(limit=10))
    assert told_once(users, b"0123456789\n#\x06abcdef") == ([b"0123456789"], "frame has 6 bytes, limit is 5")


def test_what_is_sent_goes_to_the_first_framing_that_can_carry_it() -> None:
    """And that takes it back: a line that would be read as binary is refused."""
    framing = FirstOf((b"<", Line()), BINARY)
    assert framing.encode(b"<34>") == b"<34>\n"
    assert framing.encode(b"a") == b"\x02\x01a"
    assert EITHER.encode(b"x" * 256) == b"x" * 256 + b"\n"
    with pytest.raises(FramingError, match="frame has 256 bytes; its length, 256, doesn't fit"):
        EITHER.encode(b"\x02" + b"x" * 255)
    with pytest.raises(FramingError, match="frame would be read as one of another framing: 61"):
        FirstOf((b"<", Line())).encode(b"a")


@pytest.mark.parametrize("rest", [(Line(),), (Words(),), (Starting(), Line())])
def test_the_end_of_a_datagram_decides_too(rest: tuple[Framing, ...]) -> None:
    """What could still become another framing's start is taken as it is."""
    framing = FirstOf((b"ab", LengthPrefix(1, strip=0)), *rest)
    decoder = Decoder(framing)
    for _ in range(2):
        assert decoder.feed(b"a") + decoder.finish() == [b"a"]
        assert decoder.error is None
        assert decoder.feed(b"x") + decoder.finish() == [b"x"]
    assert decoder.feed(b"ab") + decoder.finish() == []
    assert str(decoder.error) == "datagram ends within a frame: 2 bytes left"


# --- Checked


LOGIN = bytes.fromhex("78780D01012345678901234500018CDD0D0A")
BAD = bytes.fromhex("78781F120B081D112E10CC027AC7EB0C46584900148F01CC00287D001FB8000380810D0A")
LONG = bytes.fromhex("797900109b0344373532304136320d0a000f87f00d0a")


@pytest.mark.parametrize("framing", [GT06, Resync(GT06)])
def test_one_bad_frame_stops_nothing(framing: Framing) -> None:
    """It is dropped, with what is wrong, and the frames behind it come, however the stream is cut."""
    stream = LOGIN + BAD + LONG + BAD + BAD + LOGIN
    good = [LOGIN[3:-4], LONG[4:-4], LOGIN[3:-4]]
    reason = "checksum is 8081; it must be 7377"
    for chunks in ([stream], bytewise(stream)):
        events = all_of(framing, chunks)
        assert [event for event in events if isinstance(event, bytes)] == good
        assert [event for event in events if not isinstance(event, bytes)] == [Bad(BAD[2:-2], reason)] * 3


@pytest.mark.parametrize("inner", [LengthPrefix(1), Counted(), CountedSplit()])
def test_a_bad_frame_may_be_an_error(inner: Framing) -> None:
    """With bad="error" it stands between the frames before and behind it, however they come."""
    framing = Checked(inner, XOR, bad="error")
    bad = inner.encode(b"b\x00")
    stream = framing.encode(b"a") + bad + framing.encode(b"c") + bad + bad + framing.encode(b"d")
    why = "checksum is 00; it must be 62"
    for chunks in ([stream], bytewise(stream)):
        assert all_of(framing, chunks) == [b"a", why, b"c", why, why, b"d"]


@pytest.mark.parametrize("inner", [LengthPrefix(1), Counted(), CountedSplit()])
def test_bytes_are_kept_while_a_bad_frame_is_an_error(inner: Framing) -> None:
    """What comes while the error stands, and what had come behind it, is there after `recover`."""
    framing = Checked(inner, XOR, bad="error")
    frame, bad = framing.encode(b"a"), inner.encode(b"b\x00")
    decoder = Decoder(framing)
    assert decoder.feed(bad + frame + frame[:2]) == []
    assert decoder.feed(frame[2:]) == []
    assert decoder.feed(bad) == []
    assert decoder.buffered >= 2 + 2
    assert decoder.recover() == 2
    assert decoder.feed(frame) == [b"a", b"a"]
    assert str(decoder.error) == "checksum is 00; it must be 62"
    assert decoder.recover() == 2
    assert (decoder.feed(b""), decoder.error, decoder.buffered) == ([b"a"], None, 0)


def test_an_error_behind_a_bad_frame_that_is_one() -> None:
    """Both are told, one after the other."""
    framing = Checked(StartEnd(b"<", b">"), XOR, bad="error")
    assert all_of(framing, [b"<ab>xx<aa>"]) == [
        "checksum is 62; it must be 61",
        "2 bytes before the start marker 3c: 7878",
        b"a",
    ]


def test_a_checksum_in_hex_may_come_in_small_letters() -> None:
    """It is sent in capitals."""
    sent = NMEA.encode(b"J")
    assert sent == b"$J*4A\r\n"
    assert decoded(NMEA, [sent, sent.lower().replace(b"j", b"J")]) == [b"J", b"J"]
    assert all_of(NMEA, [b"$J*4B\r\n$J4A\r\n$\r\n"]) == [
        Bad(b"J*4B", "checksum is '*4B'; it must be '*4A'"),
        Bad(b"J4A", "checksum is 'J4A'; it must be '*00'"),
        Bad(b"", "frame has 0 bytes, its checksum alone 3"),
    ]


def test_a_wider_field_than_the_checksum_needs() -> None:
    """Teltonika's 16 bits stand in four bytes."""
    framing = Checked(LengthPrefix(4, adjustment=4), CRC16_ARC, size=4)
    assert framing.encode(b"123456789") == b"\x00\x00\x00\x09123456789\x00\x00\xbb\x3d"


def test_a_checksum_of_a_users_own_may_fail() -> None:
    """Then the frame is bad, and says why."""

    def failing(data: bytes) -> int:
        raise KeyError(data)

    framing = Checked(LengthPrefix(1), failing, size=1)
    assert all_of(framing, [b"\x02ab"]) == [Bad(b"ab", "checksum failed: KeyError(b'a')")]
    too_much = Checked(LengthPrefix(1), lambda _: 256, size=1)
    (event,) = all_of(too_much, [b"\x02ab"])
    assert isinstance(event, Bad)
    assert event.reason.startswith("checksum failed: ")


def test_checked_lines_in_datagrams() -> None:
    """What the end of a datagram ends is checked too."""
    decoder = Decoder(Checked(Line(), XOR, text=True))
    assert decoder.feed(b"a61\nb62") + decoder.finish() == [b"a", b"b"]
    assert decoder.feed(b"c00") + decoder.finish() == []
    assert (decoder.error, decoder.take_bad()) == (None, [Bad(b"c00", "checksum is '00'; it must be '63'")])


@pytest.mark.parametrize("framing", [Checked(FixedSize(2), XOR), Checked(CountedSplit(), XOR)])
def test_a_datagram_that_ends_within_a_checked_frame(framing: Framing) -> None:
    """It is an error, as it is without a checksum."""
    decoder = Decoder(framing)
    assert decoder.feed(b"\x00") + decoder.finish() == []
    assert str(decoder.error) == "datagram ends within a frame: 1 bytes left"
    assert (decoder.recover(), decoder.buffered) == (1, 0)


# --- Resync


def test_garbage_is_skipped_up_to_the_next_start() -> None:
    """Before, between and behind frames; half a start may still become one."""
    framing = Resync(LengthPrefix(1, start=b"<<"))
    assert all_of(framing, [b"abc<", b"<\x01x--<", b"-<<\x01y-"]) == [
        Bad(b"abc", "frame starts with 6162, not with 3c3c", frame=False),
        b"x",
        Bad(b"--", "frame starts with 2d2d, not with 3c3c", frame=False),
        b"y",
        Bad(b"<-", "frame starts with 3c2d, not with 3c3c", frame=False),
        Bad(b"-", "frame starts with 2d, not with 3c3c", frame=False),
    ]


def test_a_wrong_end_has_the_next_start_looked_for() -> None:
    """A frame whose length doesn't lead to its end marker is garbage from its second byte on."""
    framing = Resync(LengthPrefix(1, start=b"<<", end=b">"))
    good = framing.encode(b"good")
    assert all_of(framing, [good + b"<<\x02" + good + good]) == [
        b"good",
        b"good",
        b"good",
        Bad(b"<<\x02", "frame ends with 04, not with 3e", frame=False),
    ]


@pytest.mark.parametrize("framing", [Resync(Line(), b"$"), Resync(Line(), [b"$", b"!!"])])
def test_starts_may_be_given(framing: Framing) -> None:
    """A framing that takes anything is told where a frame may begin."""
    assert all_of(framing, [b"junk$a\n\r\n$b\n", b"?"]) == [
        b"$a",
        b"$b",
        Bad(
            b"junk",
            f"no frame starts with {'6a' if framing == Resync(Line(), b'$') else '6a75'}",
            frame=False,
        ),
        Bad(
            b"\r\n",
            f"no frame starts with {'0d' if framing == Resync(Line(), b'$') else '0d0a'}",
            frame=False,
        ),
        Bad(b"?", "no frame starts with 3f", frame=False),
    ]


def test_what_ends_is_skipped_to_its_end() -> None:
    """Where the framing knows the end of what is wrong, the next frame is looked for there."""
    wrong = Bad(b"\x7ea\x7d", "frame has an unknown escape: 617d", frame=False)
    assert all_of(Resync(JT808), [b"\x7ea\x7d\x7e\x7eb\x7e"]) == [b"b", wrong]


@pytest.mark.parametrize(
    "framing", [Resync(Starting()), Resync(FirstOf(Starting(), BINARY)), Resync(Checked(Starting(), XOR))]
)
def test_users_framings_are_found_again_too(framing: Framing) -> None:
    """What a user's generator refuses is dropped, and the next start is looked for."""
    good = framing.encode(b"good")
    for chunks in ([b"ab" + good + b"c" + good], bytewise(b"ab" + good + b"c" + good)):
        events = all_of(framing, chunks)
        assert [event for event in events if isinstance(event, bytes)] == [b"good", b"good"]
        assert b"".join(event.data for event in events if isinstance(event, Bad)) == b"abc"


def test_a_users_error_is_a_bad_frame() -> None:
    """The reader has gone on meanwhile, so the rest is found from there."""

    @attrs.frozen
    class Picky(Starting):
        def decode(self, reader: Reader) -> Decoding:
            for item in super().decode(reader):
                if item == b"bad":
                    raise FramingError("refused")
                yield item

    assert all_of(Resync(Picky()), [b"#\x01a#\x03bad#\x01b"]) == [b"a", b"b", Bad(b"", "refused")]


@pytest.mark.parametrize(
    ("framing", "stream"),
    [
        (Resync(StartEnd(b"<", b">", limit=1_000)), b"<" * 100_000),
        (Resync(StartEnd(b"<", b">", limit=1_000)), b"<" * 100_000 + b">"),
        (Resync(StartEnd(b"<", b">", {b">": b"!a", b"!": b"!b"}, limit=1_000)), b"<" * 100_000 + b">"),
        (Resync(StartEnd(b"<", b"<", limit=1_000)), b"<a" * 50_000),
        (Resync(LengthPrefix(2, start=b"xx", limit=1_000)), b"x" * 100_000),
        (
            Resync(FirstOf(LengthPrefix(2, start=b"xx", limit=1_000), JT808)),
            b"xx\xff" * 30_000 + b"\x7e" * 10_000,
        ),
        (Resync(Line(limit=1_000), b"$"), b"$" * 100_000),
    ],
    ids=lambda value: repr(value)[:100],
)
def test_hostile_bytes_cost_no_more_than_their_number(
    framing: Resync, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte is looked at again and again, whatever is sent."""
    looks = 0
    inner = framing.framing
    first = type(inner).first  # type: ignore[union-attr]

    def counting(self: Any, data: bytes, start: int) -> Any:
        nonlocal looks
        found = first(self, data, start)
        looks += found[1] - start if isinstance(found, tuple) else 1
        if getattr(found, "excess", 0):
            looks += found.size or len(data) - start
        return found

    monkeypatch.setattr(type(inner), "first", counting)
    decoder = Decoder(framing)
    decoder.feed(stream)
    assert decoder.error is None
    assert looks < 3 * len(stream)
    assert decoder.buffered <= 1_100


def test_what_would_be_skipped_is_not_sent() -> None:
    """A frame that doesn't begin with its start would never be found."""
    with pytest.raises(FramingError, match="frame would be skipped, it doesn't begin with its start: 61"):
        Resync(Line(), b"$").encode(b"a")


# --- what a user's framing drops


def dropping(reader: Reader) -> Decoding:
    """Frames of three bytes; those that begin with ! are bad, and ? is no frame."""
    while True:
        while (yield from reader.peek(1)) == b"?":
            yield from reader.skip(1, "a question mark")
        frame = yield from reader.exactly(3)
        yield Bad(frame, "an exclamation mark") if frame[:1] == b"!" else frame


def dropping_split(buffer: bytearray) -> list[bytes | Bad]:
    """The same."""
    if buffer[:1] == b"?":
        del buffer[:1]
        return [Bad(b"?", "a question mark", frame=False)]
    if len(buffer) < 3:
        return []
    frame = bytes(buffer[:3])
    del buffer[:3]
    return [Bad(frame, "an exclamation mark") if frame[:1] == b"!" else frame]


@pytest.mark.parametrize("framing", [by(dropping), splitting(dropping_split)])
def test_users_drop_frames_and_bytes(framing: Framing) -> None:
    """They are told with their reasons, and the frames around them come."""
    stream = b"one!no??two!!!"
    bad = [
        Bad(b"!no", "an exclamation mark"),
        Bad(b"?", "a question mark", frame=False),
        Bad(b"?", "a question mark", frame=False),
        Bad(b"!!!", "an exclamation mark"),
    ]
    assert all_of(framing, [stream]) == [b"one", b"two", *bad]
    events = all_of(framing, bytewise(stream))
    assert [event for event in events if isinstance(event, bytes)] == [b"one", b"two"]
    assert [event for event in events if not isinstance(event, bytes)] == bad


def test_dropping_without_reading_comes_to_an_end() -> None:
    """A generator that yields bad frames for ever is stopped like one that yields good ones."""

    def decode(reader: Reader) -> Decoding:
        yield (yield from reader.exactly(1))
        while True:
            yield Bad(b"", "again")

    decoder = Decoder(by(decode))
    assert decoder.feed(b"ab") == [b"a"]
    assert str(decoder.error) == "User(): decode yielded 10000 frames without reading a byte"


# --- set-up


class Nothing:
    """A framing that can only split."""

    def encode(self, frame: bytes) -> bytes:
        return frame

    def split(self, buffer: bytearray) -> list[bytes]:
        return []

    def __repr__(self) -> str:
        return "Nothing()"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (FirstOf, "FirstOf: no framing is given"),
        (
            lambda: FirstOf(Line(), BINARY),
            (
                "FirstOf: Line(ending=b'\\n', limit=65536) may start with any bytes, so it comes last, "
                "or in a pair with its first bytes: (b'…', framing)"
            ),
        ),
        (
            lambda: FirstOf((cast("bytes", "x"), Line())),
            "FirstOf: 'x' has to be the first bytes of a frame, or a function of them",
        ),
        (
            lambda: FirstOf((b"x", Nothing())),
            "FirstOf: Nothing() has only split; to be one of several framings it needs decode",
        ),
        (lambda: FirstOf(cast("Framing", 3)), "3 is not a framing: it has neither split nor decode"),
        (
            lambda: FirstOf(Resync(BINARY)),
            "FirstOf: put Resync around it, as in Resync(FirstOf(…))",
        ),
        (
            lambda: Checked(Resync(BINARY), XOR),
            "Checked: put Resync around it, as in Resync(Checked(…))",
        ),
        (lambda: Checked(cast("Framing", 3), XOR), "3 is not a framing: it has neither split nor decode"),
        (
            lambda: Checked(Line(), cast("Any", "crc")),
            "Checked: checksum is 'crc'; it must be a function of bytes",
        ),
        (
            lambda: Checked(Line(), len),
            "Checked: size is None, say how many bytes <built-in function len> returns",
        ),
        (
            lambda: Checked(Line(), CRC32, size=2),
            "Checked: size is 2, Checksum(name='CRC-32', size=4) makes 4 bytes",
        ),
        (lambda: Checked(Line(), XOR, mark=cast("bytes", "*")), "Checked: mark is '*'; it must be bytes"),
        (
            lambda: Checked(Line(), XOR, bad=cast("Any", "ignore")),
            "Checked: bad is 'ignore'; it must be 'drop' or 'error'",
        ),
        (
            lambda: Checked(Line(), XOR, start=-1),
            f"Checked: start is -1, but {Line()!r} strips no header that could be covered",
        ),
        (lambda: Checked(LengthPrefix(2), XOR, start=-3), "Checked: start is -3, the header has 2 bytes"),
        (
            lambda: Checked(Line(), XOR, byteorder=cast("Any", "middle")),
            "Checked: byteorder is 'middle'; it must be 'big' or 'little'",
        ),
        (
            lambda: Resync(Line()),
            "Resync: Line(ending=b'\\n', limit=65536) may start with any bytes; say which, with start=",
        ),
        (
            lambda: Resync(SLIP, b"\xc0"),
            "Resync: a frame may begin anywhere in StartEnd(…, shared=True), also in garbage",
        ),
        (lambda: Resync(Line(), b""), "Resync: start is b''; it must be bytes, or several of them"),
        (
            lambda: Resync(Nothing(), b"x"),
            "Resync: Nothing() has only split; to be one of several framings it needs decode",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], why: str) -> None:
    """A wrong combination is told in one sentence, when it is made."""
    with pytest.raises(SetupError) as info:
        make()
    assert str(info.value) == why


def test_combinations_are_values() -> None:
    """They are compared by what they are made of, can be hashed, and show themselves."""
    assert FirstOf(BINARY, Line()) == EITHER
    assert {EITHER, XORED, GT06, Resync(GT06)} == {EITHER, XORED, GT06, Resync(GT06)}
    assert Checked(LengthPrefix(1), XOR, size=1) == XORED
    assert Checked(LengthPrefix(1), CRC16_X25, start=-1) != Checked(LengthPrefix(1), CRC16_X25)
    assert repr(FirstOf((b"<", Line()))) == "FirstOf((b'<', Line(ending=b'\\n', limit=65536)))"
    assert repr(XORED).startswith("Checked(framing=LengthPrefix(size=1, ")


@pytest.mark.parametrize("framing", [JT808, StartEnd(b"\x7e", b"\x7e"), Resync(JT808)])
def test_one_flag_may_end_a_frame_and_begin_the_next(framing: Framing) -> None:
    """As in HDLC; two or more flags mean the same, however the network cuts the stream."""
    stream = b"\x7ea\x7eb\x7e\x7ec\x7e\x7e\x7ed\x7e"
    for place in range(len(stream) + 1):
        decoder = Decoder(framing)
        frames = [*decoder.feed(stream[:place]), *decoder.feed(stream[place:])]
        assert (frames, decoder.error, decoder.bad, decoder.buffered) == (
            [b"a", b"b", b"c", b"d"],
            None,
            None,
            0,
        )


def test_a_wrong_checksum_between_shared_flags_costs_its_frame_alone() -> None:
    """The flag behind it begins the next frame."""
    decoder = Decoder(Checked(JT808, XOR))
    assert decoder.feed(b"\x7eaa\x7eab\x7ecc\x7e") == [b"a", b"c"]
    assert [bad.data for bad in decoder.take_bad()] == [b"ab"]


def test_beside_other_framings_a_flag_ends_its_frame_alone() -> None:
    """What follows it may be a frame of theirs."""
    both = FirstOf(Checked(JT808, XOR), (b"#", Line()))
    decoder = Decoder(both)
    assert decoder.feed(b"\x7eaa\x7e#x\n\x7ebb\x7e") == [b"a", b"#x", b"b"]
    assert decoder.buffered == 0
