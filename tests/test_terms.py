"""The codec for Erlang's terms, beside recorded traffic of a real broker and beside a real Erlang VM."""

from __future__ import annotations

import json
import math
import random
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from exproto_app.hosts.emqx42 import facts
from exproto_app.hosts.emqx42.terms import Atom, ImproperList, Opaque, Pairs, TermError, decode, encode, parse

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
    if isinstance(one, Opaque):
        return _parts(one) == _parts(other)
    return bool(one == other)


def _parts(term: Opaque) -> list[Any]:
    """Return the atoms in *term*, which Erlang/OTP 26 and newer write as UTF-8, and the bytes around them."""
    raw, at = term.raw, 3 if term.raw[:1] in b"Zr" else 1  # in front of a reference's node is its size
    parts: list[Any] = [raw[:at]]
    while raw[at : at + 1] in (b"d", b"s", b"v", b"w"):
        atom, at = parse(raw, at)
        parts.append(atom)
    return [*parts, raw[at:]]


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
                messages, wrong = facts.readable(batch)
                assert wrong == []
                for message in messages:
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
@settings(max_examples=settings().max_examples * 2 // 5, suppress_health_check=[HealthCheck.too_slow])
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


def random_term(chance: random.Random, depth: int = 0) -> Any:  # noqa: C901, PLR0911 - a case for each type
    """Return a term of any kind; sizes lie around those where the format changes."""

    def several() -> list[Any]:
        return [random_term(chance, depth + 1) for _ in range(chance.randrange(5))]

    match chance.choice(
        ["int", "big", "float", "atom", "bytes", "text"] + ["nest"] * (5 if depth < 5 else 0)
    ):
        case "int":
            return chance.choice([0, 255, 256, -1, 1 << 31, -(1 << 31), 1 << 63]) + chance.randrange(-2, 3)
        case "big":
            return chance.choice([1, -1]) * chance.getrandbits(chance.choice([40, 64, 65, 2040, 2048, 5000]))
        case "float":
            return chance.uniform(-1, 1) * 10.0 ** chance.randrange(-300, 300)
        case "atom":
            letters = chance.choice(["ab c'", "\xe4\xff\x80", "\u0416\u6f22\U0001f600"])
            return Atom("".join(chance.choices(letters, k=chance.choice([0, 1, 5, 127, 128, 255]))))
        case "bytes":
            return chance.randbytes(chance.choice([0, 1, 63, 64, 65, 300]))
        case "text":
            return list(chance.randbytes(chance.randrange(20)))
    match chance.randrange(5):
        case 0:
            return several()
        case 1:
            return tuple(several())
        case 2:
            return ImproperList((1, *several()), Atom("tail"))
        case 3:
            return {
                (number, chance.choice([b"k", 1.5, Atom("k")])): item for number, item in enumerate(several())
            }
        case _:
            return (random_term(chance, depth + 1),) * chance.choice([1, 255, 256] if depth > 3 else [1, 2])


@pytest.mark.system
def test_a_batch_of_random_terms_through_the_vm(vm: Vm) -> None:
    chance = random.Random(42)
    batch = [random_term(chance) for _ in range(400)]
    for term, forms in zip(batch, vm.request(Atom("terms"), list(map(encode, batch))), strict=True):
        for form in forms:
            assert same(decode(form), term)


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


@pytest.mark.system
def test_what_terms_of_erlang_alone_become(vm: Vm) -> None:
    texts = [
        b"self().",
        b"make_ref().",
        b"fun(X) -> X end.",
        b"fun lists:map/2.",
        b"hd(erlang:ports()).",
        b"<<5:3>>.",
    ]
    made = [decode(data) for data in vm.request(Atom("evaluate"), texts)]
    assert all(isinstance(term, Opaque) for term in made)
    assert [term.is_pid for term in made] == [True] + [False] * 5
    texts = [
        b'"abc".',
        b"[1 | 2].",
        b"#{[] => 1}.",
        "'\xfc'.".encode(),
        b"list_to_tuple(lists:seq(1, 300)).",
    ]
    made = [decode(data) for data in vm.request(Atom("evaluate"), texts)]
    assert made == [
        [97, 98, 99],
        ImproperList((1,), 2),
        Pairs((([], 1),)),
        Atom("\xfc"),
        tuple(range(1, 301)),
    ]


# No VM writes these lists, but each one reads them.
TAILS = [
    (b"l\0\0\0\1a\1l\0\0\0\1a\2j", [1, 2]),
    (b"l\0\0\0\1a\1k\0\1\2", [1, 2]),
    (b"l\0\0\0\1a\1l\0\0\0\1a\2a\3", ImproperList((1, 2), 3)),
    (b"l\0\0\0\0j", []),
    (b"l\0\0\0\0a\5", 5),
]


@pytest.mark.parametrize(("data", "term"), TAILS, ids=repr)
def test_a_list_with_a_list_as_tail_is_one_list(data: bytes, term: Any) -> None:
    assert same(decode(b"\x83" + data), term)


REFUSED = [
    b"M\0\0\0\1\x09\xff",
    b"M\0\0\0\1\0\xff",
    b"M\0\0\0\0\1",
    b"p\0\0\0\0",
    b"p\0\0\0\4",
    b"qa\1a\1a\1",
    b"qd\0\1md\0\1fd\0\1a",
    b"d\1\0" + b"a" * 256,
    b"v\2\0" + "\xfc".encode() * 256,
    b"w\1\xff",
]


@pytest.mark.parametrize("data", REFUSED, ids=range(len(REFUSED)))
def test_what_erlang_refuses_is_refused(data: bytes) -> None:
    with pytest.raises(TermError):
        decode(b"\x83" + data)


@pytest.mark.system
def test_erlang_agrees_on_odd_tails_and_on_what_is_refused(vm: Vm) -> None:
    pairs = [(b"\x83" + data, encode(term)) for data, term in TAILS]
    assert vm.request(Atom("equal"), pairs) == ["true"] * len(TAILS)
    pairs = [(b"\x83" + data, b"\x83j") for data in REFUSED]
    assert vm.request(Atom("equal"), pairs) == ["badarg"] * len(REFUSED)


@pytest.mark.parametrize(
    "identifier",
    [
        b"X%s\0\0\0\1\0\0\0\0\0\0\0\1",
        b"Y%s\0\0\0\1\0\0\0\1",
        b"x%s\0\0\0\0\0\0\0\1\0\0\0\1",
        b"Z\0\3%s\0\0\0\0\0\1\2\3\0\0\0\1\0\0\0\2",
    ],
    ids=["pid", "port", "large port", "reference"],
)
def test_an_identifier_is_one_however_its_node_was_written(identifier: bytes) -> None:
    """OTP 26 and newer write a node's name in one form, and in another where they are asked to."""
    forms = [b"d\0\3a@b", b"s\3a@b", b"v\0\3a@b", b"w\3a@b"]
    (one,) = {decode(b"\x83" + identifier.replace(b"%s", form)) for form in forms}
    assert encode(one) == b"\x83" + identifier.replace(b"%s", forms[0])
    assert decode(encode([one])) == [one]


def test_the_two_forms_of_atoms_and_pids() -> None:
    for data in (b"\x83d\0\2ok", b"\x83s\2ok", b"\x83v\0\2ok", b"\x83w\2ok"):
        assert decode(data) == Atom("ok")
        assert type(decode(data)) is Atom
    assert decode(b"\x83d\0\1\xfc") == decode(b"\x83w\2\xc3\xbc") == Atom("\xfc")
    for data in (b"\x83gd\0\1n\0\0\0\1\0\0\0\0\1", b"\x83Xw\1n\0\0\0\1\0\0\0\0\0\0\0\1"):
        assert decode(data).is_pid


ONE_THING_IN_TWO_FORMS = [
    (b"Xd\0\4n\xfc@h" + bytes(12), b"Xw\5n\xc3\xbc@h" + bytes(12)),
    (b"Yd\0\1n" + bytes(8), b"Yw\1n" + bytes(8)),
    (b"Z\0\1d\0\1n" + bytes(8), b"Z\0\1w\1n" + bytes(8)),
    (b"qd\0\5listsd\0\3mapa\2", b"qw\5listsw\3mapa\2"),
    (b"qs\5listss\3mapa\2", b"qv\0\5listsv\0\3mapa\2"),
]


@pytest.mark.parametrize(("old", "new"), ONE_THING_IN_TWO_FORMS, ids=repr)
def test_opaque_terms_are_compared_by_what_they_mean(old: bytes, new: bytes) -> None:
    """OTP 26 and newer write each atom as UTF-8, also the node's name in a pid, older ones in Latin-1."""
    assert same(decode(b"\x83" + old), decode(b"\x83" + new))
    other = new[:-1] + bytes([new[-1] ^ 1])
    assert not same(decode(b"\x83" + old), decode(b"\x83" + other))


@pytest.mark.system
def test_erlang_takes_both_forms_for_one(vm: Vm) -> None:
    pairs = [(b"\x83" + old, b"\x83" + new) for old, new in ONE_THING_IN_TWO_FORMS]
    assert vm.request(Atom("equal"), pairs) == ["true"] * len(pairs)


def test_old_floats() -> None:
    assert decode(b"\x83c1.50000000000000000000e+00\0\0\0\0\0") == 1.5


def test_numbers_keep_their_kind_in_maps() -> None:
    data = b"\x83t\0\0\0\2a\1d\0\1aF" + struct.pack(">d", 1.0) + b"d\0\1b"
    assert decode(data) == Pairs(((1, Atom("a")), (1.0, Atom("b"))))
    assert encode(decode(data)) == data


@pytest.mark.parametrize(
    "value",
    ["text", None, ..., {1}, bytearray(b"x"), 1j, Atom("x" * 256), (1, ["text"]), {"a": 1}],
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


@pytest.mark.parametrize("leaf", [1, 1.5, 1 << 80, b"x", Atom("a"), (), [], {}], ids=repr)
def test_what_is_encoded_at_the_deepest_place_is_decoded_there(leaf: Any) -> None:
    term = leaf
    for _ in range(256):
        term = (term,)
    data = encode(term)
    assert encode(decode(data)) == data
    assert encode(decode(b"\x83" + packed(data[1:]))) == data
    with pytest.raises(TermError, match="256 deep"):
        decode(b"\x83h\1" + data[1:])


def test_lists_without_items_are_deep_too() -> None:
    with pytest.raises(TermError, match="256 deep"):
        decode(b"\x83" + b"l\0\0\0\0" * 5_000 + b"j")


# --- terms that are far smaller than what they would become


def packed(plain: bytes, size: int | None = None) -> bytes:
    """Return *plain* as a compressed term, which says that it has *size* bytes."""
    return b"P" + struct.pack(">I", len(plain) if size is None else size) + zlib.compress(plain)


def filled(tag: bytes, count: int, item: bytes) -> bytes:
    """Return *count* times *item*, in a term of *tag*."""
    return tag + struct.pack(">I", count) + item * count


MANY = 1_100_000
BOMBS = {
    "a list that isn't there": b"l\xff\xff\xff\xffj",
    "a tuple that isn't there": b"i\xff\xff\xff\xff",
    "a map that isn't there": b"t\xff\xff\xff\xff",
    "a binary that isn't there": b"m\xff\xff\xff\xff",
    "a number that isn't there": b"o\xff\xff\xff\xff\0",
    "bits that aren't there": b"M\xff\xff\xff\xff\1",
    "a function that isn't there": b"p\xff\xff\xff\xff",
    "a function of everything": b"u\xff\xff\xff\xff",
    "a reference that isn't there": b"Z\xff\xffd\0\1n\0\0\0\0",
    "lists in lists that aren't there": b"l\0\0\1\0" * 300,
    "more than fits, packed": packed(b"j", 0xFFFFFFFF),
    "more than it says, packed": packed(filled(b"m", 1, bytes(8_000_000)), 10),
    "less than it says, packed": packed(b"j", 60_000_000),
    "empty lists": filled(b"l", MANY, b"j") + b"j",
    "empty lists, packed": packed(filled(b"l", MANY, b"j") + b"j"),
    "empty maps, packed": packed(filled(b"i", MANY, b"t\0\0\0\0")),
    "texts, packed": packed(filled(b"i", MANY // 60_000 + 1, b"k\xea\x60" + bytes(60_000))),
    "packed in a function": b"q" + packed(b"m\0\0\0\1m") + b"d\0\1fa\1",
    "packed in packed": packed(packed(b"j")),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory(name: str) -> None:
    data = b"\x83" + BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(TermError):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000


def test_items_are_counted_over_the_whole_term() -> None:
    many = filled(b"i", 400_000, b"a\1")
    with pytest.raises(TermError, match="more than 1000000 items"):
        decode(b"\x83h\3" + many * 3)


# --- bytes that are no terms


def test_compressed_terms_cut_anywhere() -> None:
    data = b"\x83" + packed(encode([b"hello" * 50, Atom("ok")])[1:])
    assert decode(data) == [b"hello" * 50, Atom("ok")]
    for size in range(len(data)):
        with pytest.raises(TermError):
            decode(data[:size])
    with pytest.raises(TermError):
        decode(data + b"\0")


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


def test_what_erlport_has_wrapped_is_read_as_what_it_stands_for() -> None:
    def wrapped(term: Any) -> Any:
        return (Atom("$erlport.opaque"), Atom("erlang"), encode(term)[1:])

    inner = {Atom("a"): 1, Atom("nested"): wrapped({Atom("b"): [wrapped({})]})}
    term = (Atom("ok"), [wrapped(inner)])
    plain = (Atom("ok"), [{Atom("a"): 1, Atom("nested"): {Atom("b"): [{}]}}])
    assert decode(encode(term)) == plain
    assert decode(encode(decode(encode(term)))) == plain  # nothing goes back wrapped
    other = (Atom("$erlport.opaque"), Atom("python"), b"pickled")
    assert decode(encode(other)) == other


@pytest.mark.parametrize("data", [b"", b"\xff", b"a\x01a\x01", b"m\xff\xff\xff\xff"], ids=str)
def test_a_wrapped_term_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(TermError):
        decode(encode((Atom("$erlport.opaque"), Atom("erlang"), data)))


def test_wrapping_is_bounded_in_depth() -> None:
    term: Any = {}
    for _ in range(300):
        term = (Atom("$erlport.opaque"), Atom("erlang"), encode(term)[1:])
    with pytest.raises(TermError, match="256 deep"):
        decode(encode(term))


def test_a_delivery_that_is_no_list_has_no_messages() -> None:
    assert facts.readable(Atom("undefined")) == ([], ["this is no list of messages: Atom('undefined')"])
