"""Topics, filters, and what matches what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app.topics import (
    Filters,
    Topics,
    check_filter,
    check_qos,
    check_topic,
    matcher,
    matches,
    split_share,
)

LEVELS = ["a", "b", "", "$SYS", "ä"]
TOPICS = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, rest: "/".join([*levels, *(["#"] if rest else [])]),
    st.lists(st.sampled_from([*LEVELS, "+"]), min_size=1, max_size=4),
    st.booleans(),
).filter(bool) | st.just("#")


def naive(levels: list[str], topic: list[str]) -> bool:
    """Match level by level, as the standard's text says."""
    if not levels:
        return not topic
    if levels[0] == "#":
        return True
    if not topic:
        return False
    return levels[0] in ("+", topic[0]) and naive(levels[1:], topic[1:])


def reference(topic_filter: str, topic: str) -> bool:
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    return naive(topic_filter.split("/"), topic.split("/"))


@given(FILTERS, TOPICS)
def test_a_filter_matches_as_the_standard_says(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic) == reference(topic_filter, topic)
    assert matcher(f"$share/group/{topic_filter}")(topic) == reference(topic_filter, topic)


@given(st.lists(st.tuples(FILTERS, st.integers(0, 3))), TOPICS)
def test_the_tree_finds_what_the_filters_say(entries: list[tuple[str, int]], topic: str) -> None:
    filters: Filters[int, str] = Filters()
    for topic_filter, key in entries:
        filters.add(topic_filter, key, topic_filter)
    expected = sorted((key, value) for value, key in set(entries) if reference(value, topic))
    assert sorted(filters.matching(topic)) == expected


@given(st.lists(st.tuples(FILTERS, st.integers(0, 3))))
def test_a_tree_from_which_all_is_discarded_is_empty(entries: list[tuple[str, int]]) -> None:
    filters: Filters[int, int] = Filters()
    for topic_filter, key in entries:
        filters.add(topic_filter, key, 0)
    assert bool(filters) == bool(entries)
    for topic_filter, key in entries:
        filters.discard(topic_filter, key)
        filters.discard(topic_filter, key)
    assert not filters


@given(st.sets(TOPICS), FILTERS)
def test_a_walk_through_the_topics_finds_what_matches_step_by_step(have: set[str], topic_filter: str) -> None:
    topics: Topics[str] = Topics()
    for topic in have:
        topics.put(topic, topic)
    found = [topic for topic in topics.walk(topic_filter) if topic is not None]
    assert sorted(found) == sorted(topic for topic in have if reference(topic_filter, topic))
    walk = topics.walk("#")
    for topic in have:
        next(walk, None)
        topics.discard(topic)
    assert [topic for topic in walk if topic is not None] == []


@pytest.mark.parametrize("topic", ["a", "a/b", "/", "$SYS/x", "ä/ö", "x" * 65_535])
def test_good_topics_pass(topic: str) -> None:
    check_topic(topic)
    check_topic(topic)
    check_filter(topic)


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("", "empty"),
        ("a/+", "wildcard"),
        ("#", "wildcard"),
        ("a\0b", "NUL"),
        ("\ud800", "UTF-8"),
        ("x" * 65_536, "65536 bytes, limit is 65535"),
        ("a/+/" + "x" * 300, "wildcard"),
    ],
)
def test_a_bad_topic_is_refused_in_a_sentence(topic: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_topic(topic)


@pytest.mark.parametrize(
    "topic_filter",
    ["a+", "a/b#", "#/a", "a/#/b", "$share", "$share/", "$share/g", "$share/g/", "$share/+/a", ""],
)
def test_a_bad_filter_is_refused(topic_filter: str) -> None:
    with pytest.raises(ValueError, match="topic filter"):
        check_filter(topic_filter)


@pytest.mark.parametrize("topic_filter", ["+", "#", "+/a/#", "/+", "$share/g/a/#", "$share/g//", "$queue/a"])
def test_a_good_filter_passes(topic_filter: str) -> None:
    check_filter(topic_filter)


def test_text_has_to_be_text() -> None:
    with pytest.raises(TypeError, match="topic is bytes, not str"):
        check_topic(b"a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="topic filter is int, not str"):
        check_filter(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("qos", [3, -1])
def test_a_qos_is_0_1_or_2(qos: int) -> None:
    with pytest.raises(ValueError, match=f"qos is {qos}"):
        check_qos(qos)


def test_a_qos_is_a_number() -> None:
    with pytest.raises(TypeError, match="bool"):
        check_qos(qos=True)


def test_a_shared_filter_is_split() -> None:
    assert split_share("$share/g/a/+") == ("g", "a/+")
    assert split_share("a/+") == ("", "a/+")


@given(st.lists(TOPICS, max_size=12), st.lists(TOPICS, max_size=12), FILTERS)
def test_values_are_found_by_what_matches_their_topic(
    put: list[str], discarded: list[str], topic_filter: str
) -> None:
    topics: Topics[str] = Topics()
    for topic in put:
        topics.put(topic, "old")
        topics.put(topic, topic)
    for topic in discarded:
        topics.discard(topic)
    left = set(put) - set(discarded)
    assert len(topics) == len(left)
    assert {topic for topic in {*put, *discarded} if topics.get(topic) == topic} == left
    assert sorted(topics.matching(topic_filter)) == sorted(filter(matcher(topic_filter), left))


def test_what_is_discarded_leaves_nothing_behind() -> None:
    topics: Topics[int] = Topics()
    topics.put("a/b/c", 1)
    topics.put("a", 2)
    topics.discard("a/b/c")
    topics.discard("a")
    topics.discard("never/there")
    assert topics._root.children == {}
