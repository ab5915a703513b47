"""Topics and topic filters: what is allowed, what matches what (MQTT 5, 4.7 and 4.8.2)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from typing import Final, Generic, TypeVar

from .names import CONTROL, LONGEST, shortened

__all__ = [
    "Filters",
    "Topics",
    "check_filter",
    "check_qos",
    "check_topic",
    "matcher",
    "matches",
    "split_share",
]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

REMEMBERED: Final = 256
"""Characters of a topic that is worth remembering as a good one."""

SHARE: Final = "$share/"


def check_topic(topic: str) -> None:
    """Refuse what can't be published to: raises `TypeError` or `ValueError`."""
    fine = _is_topic if type(topic) is str and len(topic) <= REMEMBERED else _is_topic.__wrapped__
    if not fine(topic):
        raise ValueError(f"topic {topic!r} has a wildcard; only a filter may, so name one topic")


def check_filter(topic: str) -> None:
    """Refuse what can't be subscribed to: raises `TypeError` or `ValueError`.

    A shared subscription is `$share/GROUP/FILTER`; EMQX 4.2 kills a connection that leaves the filter out.
    """
    _check_text("topic filter", topic)
    plain = topic
    if topic.startswith(SHARE) or topic == "$share":
        group, _, plain = topic[len(SHARE) :].partition("/")
        if not group or not plain or "+" in group or "#" in group:
            raise ValueError(
                f"topic filter {topic!r} is not a shared subscription; write $share/GROUP/FILTER"
            )
    levels = plain.split("/")
    for level in levels:
        if len(level) > 1 and ("+" in level or "#" in level):
            raise ValueError(
                f"topic filter {topic!r}: a wildcard has to be a whole level, as in a/+/b or a/#"
            )
    if "#" in levels[:-1]:
        raise ValueError(f"topic filter {topic!r}: '#' has to be the last level, as in a/#")


def check_qos(qos: int) -> None:
    """Refuse an invalid QoS: raises `TypeError` or `ValueError`."""
    if isinstance(qos, bool) or not isinstance(qos, int):
        raise TypeError(f"qos is {type(qos).__name__}, not int")
    if not 0 <= qos <= 2:
        raise ValueError(f"qos is {qos}; it must be 0, 1 or 2")


def split_share(topic: str) -> tuple[str, str]:
    """Return the group of a shared subscription and its filter; without a group it is empty."""
    if not topic.startswith(SHARE):
        return "", topic
    group, _, plain = topic[len(SHARE) :].partition("/")
    return group, plain


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a message of *topic* reaches a subscription of *topic_filter*."""
    return matcher(topic_filter)(topic)


def matcher(topic_filter: str) -> Callable[[str], bool]:
    """Return a function that says whether a topic matches *topic_filter*."""
    _, plain = split_share(topic_filter)
    if "+" not in plain and "#" not in plain:
        return plain.__eq__
    levels = plain.split("/")
    rest = levels[-1] == "#"
    if rest:
        levels.pop()
    wanted = [(index, level) for index, level in enumerate(levels) if level != "+"]
    size = len(levels)
    wild_start = plain[0] in "+#"

    def match(topic: str) -> bool:
        if wild_start and topic.startswith("$"):
            return False
        parts = topic.split("/")
        if len(parts) != size and not (rest and len(parts) > size):
            return False
        return all(parts[index] == level for index, level in wanted)

    return match


class _Node(Generic[K, V]):
    """One level of the wildcard filters."""

    __slots__ = ("children", "ends", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[K, V]] = {}
        self.ends: dict[K, V] = {}
        self.rest: dict[K, V] = {}

    @property
    def empty(self) -> bool:
        return not (self.children or self.ends or self.rest)


class Filters(Generic[K, V]):
    """Who is subscribed to what: values by filter and key. A look-up costs what it finds, not what there is.

    A key may be under several filters and is found once for each that matches. Shared subscriptions are the
    caller's matter: filters here are plain.
    """

    def __init__(self) -> None:
        self._exact: dict[str, dict[K, V]] = {}
        self._root: _Node[K, V] = _Node()

    def __bool__(self) -> bool:
        return bool(self._exact) or not self._root.empty

    def add(self, topic_filter: str, key: K, value: V) -> None:
        """Put *value* under *topic_filter* for *key*, in place of what it had there."""
        if "+" not in topic_filter and "#" not in topic_filter:
            self._exact.setdefault(topic_filter, {})[key] = value
            return
        node = self._root
        levels = topic_filter.split("/")
        rest = levels[-1] == "#"
        for level in levels[:-1] if rest else levels:
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        (node.rest if rest else node.ends)[key] = value

    def discard(self, topic_filter: str, key: K) -> None:
        """Remove what *key* has under *topic_filter*, if anything."""
        if "+" not in topic_filter and "#" not in topic_filter:
            values = self._exact.get(topic_filter)
            if values is not None:
                values.pop(key, None)
                if not values:
                    del self._exact[topic_filter]
            return
        levels = topic_filter.split("/")
        rest = levels[-1] == "#"
        path = [self._root]
        for level in levels[:-1] if rest else levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        (path[-1].rest if rest else path[-1].ends).pop(key, None)
        while len(path) > 1 and path[-1].empty:
            path.pop()
            del path[-1].children[levels[len(path) - 1]]

    def matching(self, topic: str) -> list[tuple[K, V]]:
        """Return key and value of each subscription that a message of *topic* reaches."""
        exact, root = self._exact.get(topic), self._root
        found = list(exact.items()) if exact else []
        if root.children or root.rest:  # a filter ends in none of its own levels there
            for values in self._wild(topic):
                found += values.items()
        return found

    def _wild(self, topic: str) -> Iterator[dict[K, V]]:
        levels = topic.split("/")
        nodes = [self._root]
        hidden = topic.startswith("$")  # topics of the broker's own match no leading wildcard
        for index, level in enumerate(levels):
            further = []
            for node in nodes:
                if node.rest and not (hidden and index == 0):
                    yield node.rest
                child = node.children.get(level)
                if child is not None:
                    further.append(child)
                child = node.children.get("+")
                if child is not None and not (hidden and index == 0):
                    further.append(child)
            if not further:
                return
            nodes = further
        for node in nodes:
            if node.rest:  # a/# matches a too
                yield node.rest
            if node.ends:
                yield node.ends


class _Level(Generic[V]):
    """One level of the topics that have values."""

    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Level[V]] = {}
        self.values: list[V] = []  # one at most; a list, for None may be a value

    def all(self) -> Iterator[V]:
        """Yield the values here and below."""
        levels = [self]
        while levels:
            level = levels.pop()
            yield from level.values
            levels += level.children.values()


class Topics(Generic[V]):
    """A value for each topic, found by filters. A look-up costs what it finds and what branches off."""

    def __init__(self) -> None:
        self._root: _Level[V] = _Level()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, topic: str) -> V | None:
        """Return the value of *topic*."""
        level: _Level[V] | None = self._root
        for name in topic.split("/"):
            level = level.children.get(name) if level is not None else None
        return level.values[0] if level is not None and level.values else None

    def put(self, topic: str, value: V) -> None:
        """Give *topic* a value, in place of the one it had."""
        level = self._root
        for name in topic.split("/"):
            level = level.children.setdefault(name, _Level())
        self._size += not level.values
        level.values = [value]

    def discard(self, topic: str) -> None:
        """Remove the value of *topic*, if it has one."""
        names = topic.split("/")
        path = [self._root]
        for name in names:
            child = path[-1].children.get(name)
            if child is None:
                return
            path.append(child)
        self._size -= len(path[-1].values)
        path[-1].values = []
        while len(path) > 1 and not path[-1].values and not path[-1].children:
            path.pop()
            del path[-1].children[names[len(path) - 1]]

    def matching(self, topic_filter: str) -> list[V]:
        """Return the values of the topics that match a plain filter."""
        levels = [self._root]
        for depth, name in enumerate(topic_filter.split("/")):
            if name in ("+", "#"):
                below = [
                    child
                    for level in levels
                    for key, child in level.children.items()
                    if depth or not key.startswith("$")  # the broker's own topics match no leading wildcard
                ]
                if name == "#":
                    own = [value for level in levels for value in level.values]  # a/# matches a too
                    return [*own, *(value for level in below for value in level.all())]
                levels = below
            else:
                levels = [level.children[name] for level in levels if name in level.children]
        return [value for level in levels for value in level.values]

    def walk(self, topic_filter: str) -> Iterator[V | None]:
        """Yield what `matching` returns, one step at a time: None for a step that finds nothing.

        The topics may change meanwhile; what is added behind the walk is not found.
        """
        names = topic_filter.split("/")
        rest = names[-1] == "#"
        if rest:
            names.pop()  # a/# matches a too
        stack: list[tuple[Iterator[_Level[V]], int]] = [(iter((self._root,)), 0)]
        while stack:
            levels, depth = stack[-1]
            level = next(levels, None)
            if level is None:
                stack.pop()
            elif depth == len(names):
                yield level.values[0] if level.values else None
                if rest:
                    stack.append((self._below(level), depth))
            else:
                yield None
                child = level.children.get(names[depth])
                if names[depth] == "+":
                    stack.append((self._below(level), depth + 1))
                elif child is not None:
                    stack.append((iter((child,)), depth + 1))

    def _below(self, level: _Level[V]) -> Iterator[_Level[V]]:
        """Return the next levels as they are now; the broker's own topics match no leading wildcard."""
        children = level.children
        if level is not self._root:
            return iter(tuple(children.values()))
        return iter([child for name, child in children.items() if not name.startswith("$")])


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__}, not str")
    if not text:
        raise ValueError(f"{what} is empty; it needs at least one character")
    bad = CONTROL.search(text)
    if bad:
        if bad[0] == "\0":
            words = "has a NUL character; MQTT allows none"
        elif "\ud800" <= bad[0] <= "\udfff":
            words = "can't be sent as UTF-8; replace its surrogates"
        else:
            words = "has a control character or a noncharacter; brokers close connections for these"
        raise ValueError(f"{what} {shortened(text)} {words}")
    size = len(text.encode())
    if size > LONGEST:
        raise ValueError(f"{what} has {size} bytes, limit is {LONGEST}")


@lru_cache(maxsize=4096)
def _is_topic(topic: str) -> bool:
    """Return whether *topic* can be published to; devices use the same few again and again."""
    _check_text("topic", topic)
    return "+" not in topic and "#" not in topic
