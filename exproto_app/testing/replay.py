"""Recordings of real devices, fed to the app in memory: what it sends and publishes now, beside then.

Time is virtual, the broker is the recording: it delivers what was delivered, and refuses what was refused.
"""

from __future__ import annotations

import difflib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from ..app import App
from ..commands import DONE, GRANTED, Command, Outcome, Publish, Register, Subscribe, refused
from ..core import Channel, Context, Intake
from ..errors import CommandError
from ..models import Message
from ..names import escaped
from ..tap import (
    Closed,
    Delivered,
    Event,
    Failed,
    Mask,
    Opened,
    Published,
    Received,
    Refused,
    Registered,
    Sent,
    Subscribed,
    Tap,
    Unsubscribed,
    masking,
)
from ..traffic.capture import read
from ..traffic.hexdump import payload, plain
from ..traffic.recording import Entry, Recording
from .world import MemoryLink, World

__all__ = ["Case", "Difference", "cases", "failures", "replay"]

CONTEXT: Final = 2
"""Lines that are shown around those that differ."""

COMPARED: Final = 2_000
"""Lines that are compared, from the first that differs on: a diff takes time with their square."""

GRACE: Final = 0.001
"""Seconds behind the last event in which the app may still do what was recorded: times are rounded."""

OWN: Final = ("terminated", "error")
"""Ends that only the app itself can bring about."""


@attrs.frozen(repr=False)
class Difference:
    """How one connection differs; *conn* and *protocol* are empty for what the app itself published.

    *sent* and *broker* are diffs (`-` recorded, `+` replayed): of the bytes sent, and of messages,
    registrations, subscriptions and the end. *errors* are what failed in the replay.
    """

    conn: str
    protocol: str
    peer: str
    sent: Sequence[str] = ()
    broker: Sequence[str] = ()
    errors: Sequence[str] = ()

    def __repr__(self) -> str:
        who = (
            escaped(f"connection {self.conn} ({self.protocol}, {self.peer})")
            if self.conn
            else "the app itself"
        )
        parts = [f"{who} differs (- recorded, + replayed):"]
        parts += [f"  {escaped(line)}" for line in (*self.sent, *self.broker)]
        parts += [f"  ! {escaped(line)}" for line in self.errors]
        return "\n".join(parts)


@attrs.frozen(repr=False)
class Case:
    """One connection of a recording, as a test; its text is its name."""

    name: str
    recording: Recording

    def __repr__(self) -> str:
        return self.name

    def check(self, app: App[Any, Any], *, ignore: Iterable[str] = (), protocol: str | None = None) -> None:
        """Replay it; raise `AssertionError` with what differs. The options are those of `replay`."""
        differences = replay(app, self.recording, ignore=ignore, protocol=protocol)
        if differences:
            raise AssertionError("\n".join(map(repr, differences)))


def cases(path: str | Path, *, port: int | None = None) -> list[Case]:
    """Return a case for each connection in the recording, or capture of packets, at *path*.

    For `@pytest.mark.parametrize("case", cases("field.jsonl"), ids=str)`. Each is replayed by itself. *port*
    is the server's, for a capture. Raises `SetupError` for a file that is neither.
    """
    recording = read(path, port=port)
    made = []
    for conn, entries in _by_connection(recording.entries).items():
        if not conn:
            continue
        names = (entry.event.client.clientid for entry in entries if isinstance(entry.event, Registered))
        words = filter(None, (entries[-1].protocol, conn, next(names, "")))
        made.append(Case("-".join(words), attrs.evolve(recording, entries=entries)))
    return made


def replay(
    app: App[Any, Any],
    recording: Recording | str | Path,
    *,
    speed: float | None = None,
    chunk: int | None = None,
    ignore: Iterable[str] = (),
    protocol: str | None = None,
    port: int | None = None,
) -> list[Difference]:
    """Feed *recording*, or the file at that path, to *app* in memory; return how the app differs now.

    Time is virtual and passes as fast as can be, or *speed* times as fast as it really did. *chunk* cuts what
    was received into pieces of so many bytes (not datagrams). What the regular expressions *ignore* match
    (their groups, if they have any) in bytes sent and payloads may differ. *protocol* names the router, or
    those that share a listener, where the recording's name is not the one. *port* is the server's, for a
    capture of packets.
    """
    if not isinstance(recording, Recording):
        recording = read(recording, port=port)
    masks = [masking(pattern, same_length=False) for pattern in ignore]
    player = _Player(app, recording, speed=speed, chunk=chunk, protocol=protocol)
    return list(_compare(recording, player.play(), masks))


def failures(
    app: App[Any, Any], recording: Recording | str | Path, *, protocol: str | None = None
) -> list[str]:
    """Feed *recording* to *app* as `replay` does; return what fails: handlers and framings."""
    if not isinstance(recording, Recording):
        recording = read(recording)
    player = _Player(app, recording, speed=None, chunk=None, protocol=protocol)
    return _errors(entry.event for entry in player.play())


# --- playing


class _Hub:
    """The broker of a recording: it answers as the real one did, and routes nothing."""

    ordered = True
    keeps_wills = False
    keeps_sessions = False
    many_clients = True
    has_properties = True
    roams = True

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._answers: dict[tuple[str, str, str], deque[CommandError | None]] = {}
        for entry in entries:
            match entry.event:
                case Published(message):
                    self._of(entry.conn, "publish", message.topic).append(None)
                case Subscribed(topic):
                    self._of(entry.conn, "subscribe", topic).append(None)
                case Unsubscribed(topic):
                    self._of(entry.conn, "unsubscribe", topic).append(None)
                case Registered(client):
                    self._of(entry.conn, "register", client.clientid).append(None)
                case Refused(what, topic, error):
                    answers = self._of(entry.conn, what, topic)
                    if what != "register" and answers:
                        answers.pop()  # the command that is refused here was shown before
                    answers.append(error)

    def _of(self, conn: str, what: str, topic: str) -> deque[CommandError | None]:
        return self._answers.setdefault((conn, what, topic), deque())

    @property
    def broker_side(self) -> _Hub:
        """Carries out what devices ask: this."""
        return self

    def attach(self, context: Context) -> None:
        """Do nothing: it routes nothing."""

    def judges(self, channel: Channel, command: Register) -> bool:  # noqa: ARG002 - as `BrokerSide` has it
        """Return whether a login may be refused."""
        return False

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        topic = command.client.clientid if isinstance(command, Register) else command.topic
        return self._answer(channel.id, command, topic)

    def publish(self, command: Publish) -> Outcome[None]:
        return self._answer("", command, command.topic)

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        """Do nothing: it routes nothing."""

    def move(self, older: Channel, heir: Channel) -> None:
        """Do nothing: it isn't asked to."""

    def gone(self, channel: Channel) -> None:
        """Do nothing."""

    def _answer(self, conn: str, command: Command, topic: str) -> Outcome[Any]:
        answers = self._of(conn, type(command).__name__.lower(), topic)
        error = answers.popleft() if answers else None
        if error is not None:
            return refused(error)
        return GRANTED[command.qos] if isinstance(command, Subscribe) else DONE


class _Player:
    """Feeds a recording's inputs to an app, each at its time."""

    def __init__(
        self,
        app: App[Any, Any],
        recording: Recording,
        *,
        speed: float | None,
        chunk: int | None,
        protocol: str | None,
    ) -> None:
        self._app = app
        self._recording = recording
        self._speed = speed
        self._chunk = chunk
        self._protocol = protocol
        self._seen: list[Entry] = []
        self._links: dict[str, MemoryLink] = {}
        self._datagrams: set[str] = set()
        self._batches: dict[str, list[Message]] = {}
        self._origin = 0.0
        self._world: World

    def play(self) -> list[Entry]:
        """Return what happened."""
        entries = self._recording.entries
        if not entries:
            return []
        for entry in entries:  # a name that isn't there is told before anything happens
            if isinstance(entry.event, Opened):
                self._app.find_protocols(self._protocol or entry.protocol or None)
        self._app.watch(self._look)
        try:
            self._world = World(self._app, hub=_Hub(entries), began=self._recording.started + entries[0].at)
            self._origin = self._world.loop.now - entries[0].at
            try:
                for entry in entries:
                    self._play(entry)
                self._advance(entries[-1].at + GRACE)
            finally:
                self._app.unwatch(self._look)
                self._world.close()
        finally:
            self._app.unwatch(self._look)
        return self._seen

    def _look(self, tap: Tap, now: float, event: Event) -> None:
        self._seen.append(Entry(now - self._origin, tap.id, tap.protocol, event))

    def _advance(self, at: float) -> None:
        seconds = max(0.0, self._origin + at - self._world.loop.now)
        if self._speed:
            time.sleep(seconds / self._speed)
        self._world.run(seconds)

    def _play(self, entry: Entry) -> None:
        feed = self._feed(entry)
        if feed is not None:
            self._advance(entry.at)
            self._world.loop.call_soon(feed)
            self._world.run()

    def _feed(self, entry: Entry) -> Callable[[], object] | None:
        """Return what has *entry* happen, if that is for us to do."""
        event = entry.event
        if isinstance(event, Opened):
            return partial(self._open, entry, event)
        link = self._links.get(entry.conn)
        if isinstance(event, Delivered):
            return self._deliver(entry.conn, self._child(entry.conn) if link is None else link.channel, event)
        if link is None or link.channel is None or link.channel.gone:
            return None
        match event:
            case Received(data):
                return partial(self._receive, link, data, whole=entry.conn in self._datagrams)
            case Closed(reason) if reason not in OWN:
                return partial(self._close, link, event)
        return None

    def _child(self, conn_id: str) -> Intake | None:
        """Return the child of this id, which its line's handlers have made again, in the same order."""
        channels = self._world.runner.engine.channels
        return next((one for one in channels if one.id == conn_id and one.line is not None), None)

    def _deliver(
        self, conn_id: str, channel: Intake | None, delivered: Delivered
    ) -> Callable[[], object] | None:
        """Return what delivers a batch of messages, when its last one is there."""
        batch = self._batches.setdefault(conn_id, [])
        batch.append(delivered.message)
        if delivered.more:
            return None
        del self._batches[conn_id]
        return None if channel is None or channel.gone else partial(channel.delivered, batch)

    def _open(self, entry: Entry, opened: Opened) -> None:
        routers = self._app.find_protocols(self._protocol or entry.protocol or None)
        link = self._links[entry.conn] = MemoryLink(self._world)
        if opened.info.socktype in ("udp", "dtls"):
            self._datagrams.add(entry.conn)
        engine = self._world.runner.engine
        resumed = opened.resumed or opened.late
        channel = engine.connected(link, opened.info, routers, conn_id=entry.conn, resumed=resumed)
        if opened.client is not None and isinstance(channel, Channel):
            channel.issue(Register(opened.client))

    def _receive(self, link: MemoryLink, data: bytes, *, whole: bool) -> None:
        if self._chunk is None or whole:
            link.arrive(data)
            return
        for start in range(0, len(data), self._chunk):
            self._world.loop.call_soon(link.arrive, data[start : start + self._chunk])

    @staticmethod
    def _close(link: MemoryLink, closed: Closed) -> None:
        """End a connection as its device or its host did, unless the app has done so by then."""
        channel = link.channel
        if channel is None:
            return
        if closed.reason == "shutdown":
            channel.end("shutdown", drain=True)
        elif closed.reason == "device closed":
            link.hang_up()
        else:
            channel.terminated(closed.reason, closed.detail)


# --- comparing


def _compare(recording: Recording, seen: list[Entry], masks: list[Mask]) -> Iterable[Difference]:
    recorded, played = _by_connection(recording.entries), _by_connection(seen)
    for conn in (*filter(None, recorded), ""):
        before, after = recorded.get(conn, []), played.get(conn, [])
        then, now = [entry.event for entry in before], [entry.event for entry in after]
        opened = next((event for event in then if isinstance(event, Opened)), None)
        if conn and opened is None:
            continue
        sent = _sent(
            then, now, masks, datagrams=opened is not None and opened.info.socktype in ("udp", "dtls")
        )
        broker: list[str] = []
        if recording.broker:
            missed = [Registered(opened.client)] if opened is not None and opened.client is not None else []
            broker = _diff(_broker([*missed, *then], masks), _broker(now, masks))
        if sent or broker:
            protocol = (before or after)[-1].protocol
            peer = "" if opened is None else str(opened.info.peername)
            yield Difference(conn, protocol, peer, sent, broker, _errors(now))


def _by_connection(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return the entries of each connection, in the order in which they come first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.conn, []).append(entry)
    return found


def _sent(then: Sequence[object], now: Sequence[object], masks: list[Mask], *, datagrams: bool) -> list[str]:
    """Return the diff of what was sent; on a stream it doesn't matter how it was cut."""
    old, new = ([event.data for event in events if isinstance(event, Sent)] for events in (then, now))
    if not datagrams and _hidden(b"".join(old), masks) == _hidden(b"".join(new), masks):
        return []
    return _diff(*([f"> {_hex(_hidden(data, masks))}" for data in chunks] for chunks in (old, new)))


def _broker(events: Iterable[object], masks: list[Mask]) -> list[str]:
    return [line for event in events if (line := _broker_line(event, masks))]


def _broker_line(event: object, masks: list[Mask]) -> str:
    """Return the line of an event that counts, "" for any other."""
    line = ""
    match event:
        case Published(message):
            flags = f"qos {message.qos}{' retain' if message.retain else ''}"
            data = _hidden(message.payload, masks)
            line = f"^ {plain(message.topic)} {flags} {payload(data, len(data))}"
        case Registered(client):
            fields = attrs.asdict(client, filter=lambda _, value: bool(value))
            line = f"= registered {', '.join(f'{name} {value!r}' for name, value in fields.items())}"
        case Subscribed(topic, qos):
            line = f"= subscribing to {plain(topic)} qos {qos}"
        case Unsubscribed(topic):
            line = f"= unsubscribing from {plain(topic)}"
        case Refused("register", clientid):
            line = f"! register {plain(clientid)} refused"
        case Closed(reason):
            line = f"= closed: {reason}"
    return line


def _errors(events: Iterable[object]) -> list[str]:
    """Return what failed in the replay."""
    failures = (event for event in events if isinstance(event, Failed))
    return [f"{event.where} failed: {event.text}" for event in failures]


def _hex(data: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{data.hex(' ')}  |{text}|"


def _hidden(data: bytes, masks: list[Mask]) -> bytes:
    for mask in masks:
        data = mask(data)
    return data


def _diff(then: list[str], now: list[str]) -> list[str]:
    if then == now:
        return []
    least = min(len(then), len(now))
    first = next((at for at in range(least) if then[at] != now[at]), least)
    begin = max(0, first - CONTEXT)
    old, new = (lines[begin : begin + COMPARED] for lines in (then, now))
    _, _, *lines = difflib.unified_diff(old, new, lineterm="", n=CONTEXT)
    shown = ["…" if line.startswith("@@") else f"{line[0]} {line[1:]}" for line in lines]
    left = max(len(then), len(now)) - begin - COMPARED
    return shown if left <= 0 else [*shown, f"… {left} more lines aren't compared"]
