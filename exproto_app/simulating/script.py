"""Scripts: what recorded devices sent, when, and what they were answered. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attrs

from ..app import App
from ..errors import FramingError, SetupError
from ..framing import Decoder, Framing
from ..models import SockType
from ..tap import Delivered, Opened, Received, Registered, Sent
from ..traffic.recording import Entry, Recording
from .identities import Identities

__all__ = ["Script", "Step", "scripts"]

DATAGRAMS: tuple[SockType, ...] = ("udp", "dtls")


@attrs.frozen
class Piece:
    """Bytes, and whether they tell who the device is.

    With a *framing* they are a frame, around which it puts marks and a checksum.
    """

    data: bytes
    tells: bool = False
    framing: Framing | None = None

    def of(self, identities: Identities, device: int) -> bytes:
        """Return it as *device* sends or gets it."""
        if not self.tells:
            return self.data
        data = identities.rewritten(self.data, device)
        return data if self.framing is None else self.framing.encode(data)


@attrs.frozen
class Step:
    """What a device sends together, *at* seconds after it connected, *frames* of them.

    *answered* is how many bytes it had been sent by then.
    """

    at: float
    pieces: tuple[Piece, ...]
    frames: int
    answered: int

    def data(self, identities: Identities, device: int) -> bytes:
        """Return it as *device* sends it."""
        if len(self.pieces) == 1 and not self.pieces[0].tells:
            return self.pieces[0].data
        return b"".join([piece.of(identities, device) for piece in self.pieces])


@attrs.frozen
class Script:
    """One recorded connection: its *steps*, and *answers*, as far as the device brought them about.

    What the broker delivered isn't played, so answers count up to the first message for the device.
    """

    conn: str
    datagrams: bool
    steps: tuple[Step, ...]
    answers: tuple[Piece, ...]
    identities: Identities
    size: int = attrs.field(init=False)
    shared: bytes | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        whole = b"".join(piece.of(self.identities, 0) for piece in self.answers)
        object.__setattr__(self, "size", len(whole))
        object.__setattr__(self, "shared", None if any(piece.tells for piece in self.answers) else whole)

    def expected(self, device: int) -> bytes:
        """Return what *device* has to be answered."""
        if self.shared is not None:
            return self.shared
        return b"".join([piece.of(self.identities, device) for piece in self.answers])


def scripts(
    recording: Recording,
    devices: int,
    *,
    app: App | None = None,
    protocol: str | None = None,
    identity: re.Pattern[bytes] | None = None,
) -> tuple[list[Script], list[str]]:
    """Return the scripts of the connections in *recording*, and notes for whoever plays them.

    *app* knows the framings, so that checksums fit the new identities; *protocol* names its router where the
    recording's isn't the one. *identity* matches identities in what devices send (its groups, if it has any);
    without it they are the clientids that were registered. Raises `SetupError`.
    """
    found: list[Script] = []
    notes: list[str] = []
    for conn, entries in _connections(recording.entries).items():
        events = [entry.event for entry in entries]
        opened = next((entry for entry in entries if isinstance(entry.event, Opened)), None)
        if opened is None or not isinstance(opened.event, Opened):
            continue
        received, sent = _heard_and_said(entries, opened.at)
        if not received:
            continue
        if opened.event.late:
            notes.append(f"connection {conn} was open before the recording began; it is left out")
            continue
        datagrams = opened.event.info.socktype in DATAGRAMS
        identities = Identities.of(_identities(events, [heard.data for heard in received], identity), devices)
        framings = _framings(app, protocol or entries[-1].protocol)
        steps, exact = _steps(received, framings and framings[0], identities, datagrams=datagrams)
        answers, exact_too = _cut(sent, framings and framings[1], identities, datagrams=datagrams)
        if app is not None and not (exact and exact_too):
            notes.append(f"connection {conn}: its frames can't be made anew; checksums stay as they are")
        found.append(
            Script(conn, datagrams, steps, tuple(piece for chunk in answers for piece in chunk), identities)
        )
    if not found:
        raise SetupError("the recording has no connection whose device sent something")
    if app is None and any(piece.tells for script in found for step in script.steps for piece in step.pieces):
        notes.append("identities change, checksums over them stay as they are without --app")
    if devices > len(found) and not all(script.identities.texts for script in found):
        notes.append("a recorded device never registered: all that play it have its identity; see --identity")
    return found, notes


def _connections(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return the entries of each line, with those of its children."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        line = entry.conn.rpartition(".")[0]
        if entry.conn:
            found.setdefault(line if line in found else entry.conn, []).append(entry)
    return found


def _identities(
    events: Sequence[object], data: Sequence[bytes], pattern: re.Pattern[bytes] | None
) -> list[str]:
    if pattern is None:
        return [event.client.clientid for event in events if isinstance(event, Registered)]
    found = []
    for match in pattern.finditer(b"".join(data)):
        groups = [group for group in match.groups() if group] or [match[0]]
        found += [group.decode("latin-1") for group in groups]
    if not found:
        raise SetupError(f"--identity {pattern.pattern.decode('latin-1')} matches nothing that a device sent")
    return found


def _framings(app: App | None, name: str) -> tuple[Framing, Framing] | None:
    if app is None:
        return None
    router = app.find_protocol(name, how=": --protocol NAME")
    return router.framing, router.reply_framing


@attrs.frozen
class _Heard:
    """Bytes from the device, and how many it had been sent by then."""

    at: float
    data: bytes
    answered: int


def _heard_and_said(entries: Sequence[Entry], began: float) -> tuple[list[_Heard], list[bytes]]:
    """Return what the device sent, and what it was sent before the first message for it."""
    heard: list[_Heard] = []
    said: list[bytes] = []
    answered = 0
    delivered = False
    for entry in entries:
        event = entry.event
        if isinstance(event, Received):
            heard.append(_Heard(entry.at - began, event.data, answered))
        elif isinstance(event, Delivered):
            delivered = True
        elif isinstance(event, Sent) and not delivered:
            said.append(event.data)
            answered += len(event.data)
    return heard, said


def _steps(
    received: Sequence[_Heard], framing: Framing | None, identities: Identities, *, datagrams: bool
) -> tuple[tuple[Step, ...], bool]:
    """Return what was sent together, and whether its frames could be made anew."""
    chunks, exact = _cut([heard.data for heard in received], framing, identities, datagrams=datagrams)
    steps = [
        Step(heard.at, tuple(_joined(pieces)), len(pieces), heard.answered)
        for heard, pieces in zip(received, chunks, strict=True)
        if pieces
    ]
    return tuple(steps), exact


def _joined(pieces: Iterable[Piece]) -> Iterable[Piece]:
    """Yield *pieces*, those that are the same for all devices as one."""
    same: list[bytes] = []
    for piece in pieces:
        if not piece.tells:
            same.append(piece.data)
            continue
        if same:
            yield Piece(b"".join(same))
            same = []
        yield piece
    if same:
        yield Piece(b"".join(same))


def _cut(
    chunks: Sequence[bytes], framing: Framing | None, identities: Identities, *, datagrams: bool
) -> tuple[list[list[Piece]], bool]:
    """Return what each of *chunks* consists of, and whether all that tells an identity is a frame there.

    What isn't is rewritten as it stands, with the checksum that it has.
    """
    if framing is not None:
        for size in (None, 1):
            found = _framed(chunks, framing, identities, datagrams=datagrams, size=size)
            if found is not None:
                return found, True
    plain = [[Piece(chunk, identities.told_in(chunk))] for chunk in chunks]
    return plain, not any(piece.tells for pieces in plain for piece in pieces)


def _framed(
    chunks: Sequence[bytes], framing: Framing, identities: Identities, *, datagrams: bool, size: int | None
) -> list[list[Piece]] | None:
    """Return the pieces of *chunks*; None if *framing* doesn't make what tells an identity as it came.

    With a *size* of 1 it is known where each frame ends, of a stream.
    """
    decoder = Decoder(framing)
    found: list[list[Piece]] = []
    came = b""
    for chunk in chunks:
        pieces: list[Piece] = []
        step = len(chunk) if datagrams or size is None else size
        for start in range(0, len(chunk), step or 1):
            part = chunk[start : start + step]
            came += part
            frames = decoder.feed(part)
            if datagrams:
                frames += decoder.finish()
                decoder = Decoder(framing)
            if frames or datagrams:
                made = _made(came, frames, framing, identities)
                if made is None:
                    return None
                pieces += made
                came = b""
        found.append(pieces)
    if came:
        if identities.told_in(came):
            return None
        found[-1].append(Piece(came))
    return found


def _made(
    came: bytes, frames: Sequence[bytes], framing: Framing, identities: Identities
) -> list[Piece] | None:
    """Return the pieces of what *came* with *frames* in it; None if they can't be made anew."""
    tells = [identities.told_in(frame) for frame in frames]
    if not any(tells):
        return None if identities.told_in(came) else [Piece(came)]
    try:
        made = [framing.encode(frame) for frame in frames]
    except FramingError:
        made = [b""]
    if b"".join(made) == came:
        return [
            Piece(frame, True, framing) if telling else Piece(data)
            for frame, data, telling in zip(frames, made, tells, strict=True)
        ]
    if len(frames) == 1 and made[0] and came.endswith(made[0]):
        before = came.removesuffix(made[0])
        return None if identities.told_in(before) else [Piece(before), Piece(frames[0], True, framing)]
    return [Piece(came, True)] if _may_be_rewritten(came, frames, framing, identities) else None


def _may_be_rewritten(came: bytes, frames: Sequence[bytes], framing: Framing, identities: Identities) -> bool:
    """Return whether *came* needs nothing else when its identities change: no checksum is over them."""
    for device in (0, 1):
        decoder = Decoder(framing)
        found = decoder.feed(identities.rewritten(came, device))
        found += decoder.finish()
        if found != [identities.rewritten(frame, device) for frame in frames] or decoder.take_bad():
            return False
    return True
