"""The codec for Erlang's terms, beside recorded traffic of a real broker and beside a real Erlang VM."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from exproto_app.drivers.erlport import facts
from exproto_app.drivers.erlport.terms import Atom, ImproperList, Opaque, Pairs, TermError, decode, encode

from .erlang.broker import Vm

RECORDED = Path(__file__).parent / "data" / "erlport"


def recorded() -> list[tuple[str, bytes, str]]:
    """Return who sent it, the bytes, and how Erlang prints them, for each frame."""
    found = []
    for path in sorted(RECORDED.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            frame = json.loads(line)
            found.append((frame["from"], bytes.fromhex(frame["hex"]), frame["erlang"]))
    return found


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911 - a case for each type
    """Tell whether two decoded terms are the same to Erlang, which tells 1 from 1.0 and atoms from text."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, ImproperList):
        return same(one.items, other.items) and same(one.tail, other.tail)
    if isinstance(one, dict):
        # Erlang's order of keys isn't ours.
        left = list(other.items())
        return len(one) == len(left) and all(_taken((key, one[key]), left) for key in one)
    if isinstance(one, Pairs):
        left = list(other.items)
        return len(one.items) == len(left) and all(_taken(pair, left) for pair in one.items)
    return bool(one == other)


def _taken(pair: tuple[Any, Any], left: list[tuple[Any, Any]]) -> bool:
    for number, candidate in enumerate(left):
        if same(pair, candidate):
            del left[number]
            return True
    return False


# --- what a real broker said


def test_recorded_frames_are_calls_and_answers() -> None:
    frames = recorded()
    assert len(frames) > 200
    functions = set()
    for sender, data, _ in frames:
        term = decode(data)
        match sender, term:
            case "broker", ("C", int(), "capmod", function, [Opaque() as pid, *_]):
                assert pid.is_pid
                functions.add(function)
            case "driver", ("C", int(), module, _, list(), "N"):
                assert isinstance(module, Atom)
            case _, (("r" | "e"), int(), _):
                pass
            case "driver", ("P", list() as text):
                assert facts.text(text)
            case _:
                pytest.fail(f"{sender} said {term!r}")
    assert functions == {"init", "received", "deliver", "terminated"}


def test_recorded_facts_are_understood() -> None:
    kinds = set()
    for sender, data, _ in recorded():
        match sender, decode(data):
            case "broker", ("C", _, _, "init", [_, about]):
                info = facts.connection_info(about)
                assert info.peername.host == "127.0.0.1"
                assert info.sockname.port == 18993
                kinds.add((info.socktype, info.peercert and info.peercert.cn))
            case "broker", ("C", _, _, "deliver", [_, batch, _]):
                for message in facts.messages(batch):
                    assert len(message.id) == 32
                    assert message.topic.startswith("dn/")
                    assert message.timestamp > 1_700_000_000_000
            case "broker", ("C", _, _, "terminated", [_, words, _]):
                assert facts.reason(words) == ("device closed", words.decode())
    assert ("ssl", "Client") in kinds
    assert {socktype for socktype, _ in kinds} == {"tcp", "udp", "ssl"}


@pytest.mark.system
def test_recorded_frames_say_what_erlang_prints(vm: Vm) -> None:
    """What Erlang prints, read by Erlang again, is what we decode; pids apart, which it can't read."""
    # The recorder cut what is long.
    frames = [(data, text) for _, data, text in recorded() if not text.endswith("\N{HORIZONTAL ELLIPSIS}")]
    assert len(frames) > 200
    texts = [re.sub(r"<\d+\.\d+\.\d+>", "'a pid'", text) + "." for _, text in frames]
    evaluated = vm.request(Atom("evaluate"), [text.encode() for text in texts])
    for (data, text), term in zip(frames, evaluated, strict=True):
        assert same(_without_pids(decode(data)), decode(term)), text


def _without_pids(term: Any) -> Any:
    if isinstance(term, Opaque) and term.is_pid:
        return Atom("a pid")
    if isinstance(term, list):
        return list(map(_without_pids, term))
    if isinstance(term, tuple):
        return tuple(map(_without_pids, term))
    return term


@pytest.mark.system
def test_recorded_frames_are_the_same_to_erlang_when_encoded_again(vm: Vm) -> None:
    pairs = [(data, encode(decode(data))) for _, data, _ in recorded()]
    assert vm.request(Atom("equal"), pairs) == ["true"] * len(pairs)


# --- any term

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
atoms = names.map(Atom)
numbers = st.integers() | st.integers(-300, 300) | st.integers(-(1 << 3000), 1 << 3000)
floats = st.floats(allow_nan=False, allow_infinity=False)
opaques = st.sampled_from(
    [
        Opaque(b"Xd\x00\x0dnonode@nohost\0\0\0\x55\0\0\0\0\0\0\0\0"),
        Opaque(b"Z\x00\x03d\x00\x0dnonode@nohost\0\0\0\0\0\1\2\3\0\0\0\1\0\0\0\2"),
        Opaque(b"M\0\0\0\2\3\xff\xe0"),
        Opaque(b"qd\0\5listsd\0\3mapa\2"),
    ]
)
plain = atoms | numbers | floats | st.binary(max_size=60) | opaques
keys = atoms | st.integers() | st.binary(max_size=20)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=6)
    return (
        lists
        | lists.map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
        | st.builds(
            ImproperList,
            st.lists(inner, min_size=1, max_size=4).map(tuple),
            plain,
        )
    )


terms = st.recursive(plain, nested, max_leaves=25)


@given(terms)
def test_terms_survive_the_way_there_and_back(term: Any) -> None:
    assert same(decode(encode(term)), term)


@pytest.mark.system
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(terms, min_size=3, max_size=12))
def test_the_vm_reads_ours_and_we_read_its(vm: Vm, batch: list[Any]) -> None:
    """What we encode, Erlang encodes in ways of its own: as it likes, compressed, and in the old form."""
    ours = [encode(term) for term in batch]
    theirs = vm.request(Atom("terms"), ours)
    for term, forms in zip(batch, theirs, strict=True):
        for form in forms:
            assert same(decode(form), term)
    pairs = [(mine, encode(decode(form))) for mine, forms in zip(ours, theirs, strict=True) for form in forms]
    assert vm.request(Atom("equal"), pairs) == ["true"] * len(pairs)


ODD = """
self(). make_ref(). fun(X) -> X + 1 end. fun lists:map/2. <<1, 2:3>>. #{1 => a, 1.0 => b}. #{[] => 1}.
#{#{a => 1} => 2, {1, []} => 3, [x] => 4}. [1, 2 | 3]. [a | b]. "abc". [255, 256]. 'with space'. 'ümlaut'.
'Ж'. 'жжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжж'.
list_to_atom(lists:duplicate(255, 1078)).
''. true. undefined. 0. 255. 256. -1. 2147483647. 2147483648. -2147483648. -2147483649. 1 bsl 64.
-(1 bsl 64). 1 bsl 2040. -(1 bsl 4096). 1.5. -0.0. 1.0e308. 5.0e-324. {}. []. <<>>. #{}. lists:seq(1, 300).
list_to_tuple(lists:seq(1, 300)). binary:copy(<<"x">>, 70000). lists:duplicate(70000, $x). [[[[]]]].
[{id, <<1>>}, {qos, 0}]. erlang:list_to_existing_atom("true"). hd(erlang:ports()).
"""


@pytest.mark.system
def test_terms_that_only_erlang_makes(vm: Vm) -> None:
    texts = [text.strip() + "." for text in re.split(r"\.\s", ODD) if text.strip()]
    made = vm.request(Atom("evaluate"), [text.encode() for text in texts])
    theirs = [form for forms in vm.request(Atom("terms"), made) for form in forms]
    pairs = [(data, encode(decode(data))) for data in (*made, *theirs)]
    assert vm.request(Atom("equal"), pairs) == ["true"] * len(pairs)


def test_the_two_forms_of_atoms_and_pids() -> None:
    for data in (b"\x83d\0\2ok", b"\x83s\2ok", b"\x83v\0\2ok", b"\x83w\2ok"):
        assert decode(data) == Atom("ok")
        assert type(decode(data)) is Atom
    assert decode(b"\x83d\0\1\xfc") == decode(b"\x83w\2\xc3\xbc") == Atom("\xfc")
    for data in (b"\x83gd\0\1n\0\0\0\1\0\0\0\0\1", b"\x83Xw\1n\0\0\0\1\0\0\0\0\0\0\0\1"):
        assert decode(data).is_pid
        assert encode(decode(data)) == data


def test_old_floats() -> None:
    assert decode(b"\x83c1.50000000000000000000e+00\0\0\0\0\0") == 1.5


def test_numbers_keep_their_kind_in_maps() -> None:
    data = b"\x83t\0\0\0\2a\1d\0\1aF" + struct.pack(">d", 1.0) + b"d\0\1b"
    assert decode(data) == Pairs(((1, Atom("a")), (1.0, Atom("b"))))
    assert encode(decode(data)) == data


@pytest.mark.parametrize(
    "value",
    ["text", None, object(), {1}, bytearray(b"x"), 1j, Atom("x" * 256), (1, ["text"]), {"a": 1}],
    ids=repr,
)
def test_values_that_erlang_lacks(value: object) -> None:
    with pytest.raises(TermError):
        encode(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Atom("\ud800")], ids=repr)
def test_values_that_erlang_would_refuse(value: object) -> None:
    with pytest.raises(TermError):
        encode(value)


def test_a_term_that_never_ends_in_depth() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(TermError, match="256 deep"):
        encode(deep)
    with pytest.raises(TermError, match="256 deep"):
        decode(b"\x83" + b"l\0\0\0\1" * 5_000 + b"j" * 5_001)
    packed = b"j"
    for _ in range(5):
        packed = b"\x83P" + struct.pack(">I", len(packed)) + zlib.compress(packed)
    with pytest.raises(TermError):
        decode(packed)


# --- bytes that are no terms


@pytest.mark.parametrize("data", [frame for _, frame, _ in recorded()[:12]], ids=range(12))
def test_frames_cut_anywhere(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(TermError):
            decode(data[:size])
    with pytest.raises(TermError):
        decode(data + b"\0")


def harmless(data: bytes) -> None:
    """Assert that *data* is a term, or no term in a way that is foreseen."""
    try:
        term = decode(data)
    except TermError:
        return
    encode(term)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    harmless(data)
    harmless(b"\x83" + data)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(recorded()[:60]), st.data())
def test_recorded_frames_with_changed_bytes(frame: tuple[str, bytes, str], choose: st.DataObject) -> None:
    data = bytearray(frame[1])
    for _ in range(choose.draw(st.integers(1, 4))):
        place = choose.draw(st.integers(0, min(len(data), 400) - 1))
        data[place] = choose.draw(st.integers(0, 255))
    harmless(bytes(data))


@given(terms, st.data())
def test_terms_with_changed_bytes(term: Any, choose: st.DataObject) -> None:
    data = bytearray(encode(term))
    assume(len(data) > 1)
    data[choose.draw(st.integers(1, len(data) - 1))] = choose.draw(st.integers(0, 255))
    harmless(bytes(data))
