"""The apps that the behaviour suite talks to, as devices do; importable by hosts in other processes."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextvars import ContextVar
from typing import Any, cast

import attrs

from exproto_app import App, ClientInfo, Connection, Limits, Login, Message
from exproto_app.checksums import XOR
from exproto_app.commands import Outcome
from exproto_app.errors import CommandError
from exproto_app.framing import Checked, Gap, LengthPrefix, Line, Resync
from exproto_app.options import Sniff

# Short times: where a host has a clock of its own, a test waits for them in earnest. Not for handlers that
# await a broker, which may take longer on a busy machine.
SHORT = Limits(handler_timeout=0.4, end_timeout=0.4)


@attrs.define
class State:
    """What the app knows of a device."""

    name: str = ""
    notes: list[str] = attrs.Factory(list)


def say_goodbye(app: App[State]) -> None:
    """Have *app* take names, count for whoever asks, and publish why a named device has gone."""

    @app.on_received(b"name ")
    def name(conn: Connection[State], frame: bytes) -> bytes:
        conn.state.name = frame[5:].decode()
        return b"ok"

    @app.on_received(b"count ")
    def count(conn: Connection[State], frame: bytes) -> bytes:
        return str(app.stats[frame[6:].decode()]).encode()

    @app.on_received(b"echo ")
    def echo(conn: Connection[State], frame: bytes) -> bytes:
        return frame[5:]

    @app.on_terminated
    def gone(conn: Connection[State], reason: str) -> None:
        if conn.state.name:
            conn.publish(f"end/{conn.state.name}", reason.encode())


@attrs.define
class Command:
    """What a device says, where it speaks in words."""

    verb: str
    words: list[str] = attrs.Factory(list)


def shows(conn: Connection[State], clientid: str, password: str) -> Outcome[None]:
    """Register as the one user that a broker knows, or, without a password, as nobody."""
    return conn.register(clientid, username="device" if password else "", password=password or None)


async def outcome(awaitable: object) -> bytes:
    """Return what awaiting a verb comes to, in a word."""
    try:
        value = await awaitable  # type: ignore[misc] # an Outcome of any type
    except CommandError as error:
        return type(error).__name__.encode()
    return b"done" if value is None else str(value).encode()


# --- turns, requests, lanes, verbs

turns = App(framing=Line(limit=1000), state=State)
say_goodbye(turns)
gates: dict[str, asyncio.Event] = {}


@turns.on_received(b"slow ")
async def slow(conn: Connection[State], frame: bytes) -> bytes:
    await asyncio.sleep(0.05)
    return frame


@turns.on_received(b"wait ")
async def wait(conn: Connection[State], frame: bytes) -> bytes:
    gate = gates[frame[5:].decode()] = asyncio.Event()
    conn.send(b"waiting")
    await gate.wait()
    return b"open"


@turns.on_received(b"open ")
def open_gate(conn: Connection[State], frame: bytes) -> bytes:
    gates[frame[5:].decode()].set()
    return b"opened"


@turns.on_received(b"soon ")
async def soon(conn: Connection[State], frame: bytes) -> bytes:
    conn.send(b"very")
    return frame


@turns.on_received(b"time")
def tell_time(conn: Connection[State], frame: bytes) -> bytes:
    return conn.now().isoformat().encode()


@turns.on_received(b"thread time", blocking=True)
def tell_time_from_a_thread(conn: Connection[State], frame: bytes) -> bytes:
    return conn.now().isoformat().encode()


mark: ContextVar[bytes] = ContextVar("mark", default=b"none")


@turns.on_received(b"mark ")
async def leave_mark(conn: Connection[State], frame: bytes) -> bytes:
    found = mark.get()
    mark.set(frame[5:])
    return found + b" then " + mark.get()


@turns.on_received(b"tell ")
async def tell_itself(conn: Connection[State], frame: bytes) -> bytes:
    conn.publish(frame[5:].decode(), b"told")
    return b"telling"


@turns.on_received(b"at most ")
async def at_most(conn: Connection[State], frame: bytes) -> bytes:
    try:
        await asyncio.wait_for(asyncio.Event().wait(), float(frame[8:]))
    except asyncio.TimeoutError:  # TimeoutError itself from Python 3.11 on
        return b"too late"
    return b"in time"


@turns.on_received(b"leave")
async def leave(conn: Connection[State], frame: bytes) -> bytes:
    conn.terminate()
    return b"left"


@turns.on_received(b"thread ", blocking=True)
def thread(conn: Connection[State], frame: bytes) -> bytes:
    conn.send(threading.current_thread().name[:11].encode())
    conn.publish(frame[7:].decode(), b"from a thread")
    return b"done"


@turns.on_received(b"register ")
def register(conn: Connection[State], frame: bytes) -> None:
    clientid, _, password = frame[9:].decode().partition(" ")
    shows(conn, clientid, password)


@turns.on_received(b"anonymous ")
async def call_it_by_its_id(conn: Connection[State], frame: bytes) -> None:
    await conn.register(conn.id)
    conn.publish(frame[10:].decode(), conn.id.encode())


@turns.on_received(b"pretend ")
def pretend(conn: Connection[State], frame: bytes) -> None:
    """Publish, and ask for commands, behind a login that nobody waits for."""
    clientid, password, topic = frame[8:].decode().split(" ")
    shows(conn, clientid, password)
    conn.publish(topic, b"forged")
    conn.subscribe(f"devices/{clientid}/command", qos=1)


@turns.on_received(b"hasty ")
async def hasty(conn: Connection[State], frame: bytes) -> None:
    """Await a publish behind a login that nobody awaits, and tell what has come of it."""
    clientid, password, topic = frame[6:].decode().split(" ")
    shows(conn, clientid, password)
    turns.publish(f"hasty/{clientid}", await outcome(conn.publish(topic, b"hasty", qos=1)))


@turns.on_received(b"login ")
async def login(conn: Connection[State], frame: bytes) -> bytes:
    clientid, _, password = frame[6:].decode().partition(" ")
    return await outcome(shows(conn, clientid, password))


@turns.on_received(b"testament ")
async def testament(conn: Connection[State], frame: bytes) -> bytes:
    clientid = frame[10:].decode()
    # Not every host keeps sessions: the others take no notice.
    will = Message(f"will/{clientid}", b"gone", 1)
    return await outcome(conn.register(clientid, will=will, session_expiry=1))


@turns.on_received(b"stay ")
async def stay(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(conn.register(frame[5:].decode(), session_expiry=60))


@turns.on_received(b"question ")
async def question(conn: Connection[State], frame: bytes) -> bytes:
    topic, answers = frame[9:].decode().split()
    return await outcome(
        conn.publish(topic, b"how warm?", qos=1, expiry=60, response_topic=answers, correlation_data=b"7")
    )


@turns.on_deliver("questions/+", reply=True)
async def answer(conn: Connection[State], message: Message) -> bytes:
    return await conn.request(message.payload, match=lambda frame: frame.startswith(b"answer"), timeout=5)


@turns.on_received(b"mounted ")
async def mounted(conn: Connection[State], frame: bytes) -> bytes:
    clientid = frame[8:].decode()
    client = ClientInfo(clientid, mountpoint=f"{clientid}/")
    return await outcome(conn.register(client, will=Message("will", b"gone")))


@turns.on_received(b"who")
def who(conn: Connection[State], frame: bytes) -> bytes:
    return conn.client.clientid.encode() if conn.client else b"nobody"


@turns.on_received(b"plain ")
async def plain(conn: Connection[State], frame: bytes) -> bytes:
    clientid, password = frame[6:].decode().split()
    await conn.register(clientid, password=password)
    return b"done"


@turns.on_received(b"user")
def user(conn: Connection[State], frame: bytes) -> bytes:
    return conn.client.username.encode() if conn.client else b"nobody"


@turns.on_received(b"online ")
def online(conn: Connection[State], frame: bytes) -> bytes:
    found = turns.connections.get(frame[7:].decode())
    return b"nobody" if found is None else b"this" if found is conn else b"another"


@turns.on_received(b"ask")
async def ask(conn: Connection[State], frame: bytes) -> bytes:
    answer = await conn.request(b"question", match=lambda frame: frame.startswith(b"answer"), timeout=5)
    return b"got " + answer + b" after " + ",".join(conn.state.notes).encode()


@turns.on_received(b"note ")
def note(conn: Connection[State], frame: bytes) -> bytes:
    conn.state.notes.append(frame[5:].decode())
    return b"noted"


@turns.on_received(b"impatient")
async def impatient(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(conn.request(b"hurry", match=lambda frame: frame == b"never", timeout=0.05))


@turns.on_received(b"stubborn ")
async def stubborn(conn: Connection[State], frame: bytes) -> bytes:
    timeout = float(frame[9:])
    return await outcome(
        conn.request(b"hurry", match=lambda frame: frame == b"here", timeout=timeout, retries=1)
    )


@turns.on_received(b"queue")
async def queue(conn: Connection[State], frame: bytes) -> bytes:
    first, second = await asyncio.gather(
        conn.request(b"first?", match=lambda frame: frame.isdigit(), key="number", timeout=5),
        conn.request(b"second?", match=lambda frame: frame.isdigit(), key="number", timeout=5),
    )
    return first + b" then " + second


@turns.on_received(b"three")
def three(conn: Connection[State], frame: bytes) -> bytes:
    conn.send(b"one")
    conn.send(b"two")
    return b"three"


@turns.on_received(b"broker ")
def broker(conn: Connection[State], frame: bytes) -> bytes:
    topic = frame[7:].decode()
    conn.publish(topic, b"before")
    conn.subscribe(topic, qos=1)
    conn.publish(topic, b"between")
    conn.unsubscribe(topic)
    conn.publish(topic, b"behind")
    return b"done"


@turns.on_received(b"subscribe ")
async def subscribe(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(conn.subscribe(frame[10:].decode(), qos=1))


@turns.on_received(b"unsubscribe ")
async def unsubscribe(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(conn.unsubscribe(frame[12:].decode()))


@turns.on_received(b"publish ")
async def publish(conn: Connection[State], frame: bytes) -> bytes:
    topic, _, payload = frame[8:].partition(b" ")
    return await outcome(conn.publish(topic.decode(), payload, qos=1))


@turns.on_received(b"retain ")
async def retain(conn: Connection[State], frame: bytes) -> bytes:
    topic, _, payload = frame[7:].partition(b" ")
    return await outcome(conn.publish(topic.decode(), payload, qos=1, retain=True))


@turns.on_received(b"announce ")
async def announce(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(turns.publish(frame[9:].decode(), b"by the app"))


@turns.on_received(b"last words ")
def last_words(conn: Connection[State], frame: bytes) -> bytes:
    conn.send(b"going")
    conn.publish(frame[11:].decode(), b"last words")
    conn.terminate()
    conn.send(b"said after terminate")
    return b"gone"


@turns.on_received(b"spawn ")
def spawn(conn: Connection[State], frame: bytes) -> bytes:
    async def later() -> None:
        await asyncio.sleep(0.02)
        conn.send(b"later")
        await conn.publish(frame[6:].decode(), b"spawned")
        conn.send(b"published")

    conn.spawn(later())
    return b"spawned"


@turns.on_received(b"bad ")
def bad(conn: Connection[State], frame: bytes) -> bytes:
    kind = frame[4:].decode()
    try:
        if kind == "wildcard":
            conn.publish("up/+", b"")
        elif kind == "surrogate":
            conn.publish("up/\ud800", b"")
        elif kind == "qos":
            conn.publish("up", b"", qos=3)
        elif kind == "clientid":
            conn.register("")
        elif kind == "will":
            conn.register("x", will=b"gone")  # type: ignore[call-overload] # the mistake that is tried
        elif kind == "expiry":
            conn.register("x", session_expiry=-1)
        elif kind == "share":
            conn.subscribe("$share/g")
        elif kind == "text":
            conn.send("text")  # type: ignore[arg-type] # the mistake that is tried
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"taken"


@turns.on_received
def unknown(conn: Connection[State], frame: bytes) -> bytes:
    return b"what is " + frame + b"?"


@turns.on_deliver("jobs/+")
async def job(conn: Connection[State], message: Message) -> bytes:
    await asyncio.sleep(0.01)
    return b"job " + message.payload


@turns.on_deliver
def delivered(conn: Connection[State], message: Message) -> bytes:
    return b"%s qos %d: %s" % (message.topic.encode(), message.qos, message.payload)


# --- several addresses, one client

roaming = App(framing=Line(), roaming=True)


@roaming.on_received(b"login ")
async def roaming_login(conn: Connection, frame: bytes) -> bytes:
    return await outcome(conn.register(frame[6:].decode()))


@roaming.on_received(b"subscribe ")
async def roaming_subscribe(conn: Connection, frame: bytes) -> bytes:
    return await outcome(conn.subscribe(frame[10:].decode(), qos=1))


@roaming.on_received(b"echo ")
def roaming_echo(conn: Connection, frame: bytes) -> bytes:
    return frame[5:]


@roaming.on_deliver
def roaming_message(conn: Connection, message: Message) -> bytes:
    return message.payload


# --- failures and the end

failing = App(framing=Line(limit=100), state=State, limits=SHORT)
say_goodbye(failing)


class RefusedError(Exception):
    """What the app raises."""


@failing.on_received(b"raise")
def fail(conn: Connection[State], frame: bytes) -> bytes:
    conn.send(b"sent before")
    raise RefusedError(frame)


@failing.on_received(b"soon raise")
async def fail_soon(conn: Connection[State], frame: bytes) -> bytes:
    conn.send(b"sent before")
    raise RefusedError(frame)


@failing.on_received(b"soon text")
async def text_soon(conn: Connection[State], frame: bytes) -> bytes:
    return "text"  # type: ignore[return-value] # the mistake that is tried


@failing.on_received(b"cancel")
async def cancel(conn: Connection[State], frame: bytes) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    conn.send(b"sent before")


@failing.on_received(b"cancelled")
async def cancelled(conn: Connection[State], frame: bytes) -> None:
    raise asyncio.CancelledError


@failing.on_received(b"text")
def text(conn: Connection[State], frame: bytes) -> bytes:
    return "text"  # type: ignore[return-value] # the mistake that is tried


@failing.on_received(b"hang")
async def hang(conn: Connection[State], frame: bytes) -> None:
    await asyncio.Event().wait()


@failing.on_received(b"ask")
async def ask_and_fail(conn: Connection[State], frame: bytes) -> None:
    name = conn.state.name
    conn.send(b"question")
    word = await outcome(conn.request(b"?", timeout=60))
    failing.publish(f"asked/{name}", word)


@failing.on_received(b"patient")
async def wait_longer_than_a_handler_may(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(conn.request(b"take your time", timeout=0.8))


@failing.on_received(b"late ")
def late(conn: Connection[State], frame: bytes) -> None:
    topic = frame[5:].decode()

    async def after() -> None:
        while not conn.closed:  # noqa: ASYNC110 - nothing else tells an app's own task
            await asyncio.sleep(0.005)
        words = [await outcome(verb) for verb in (conn.send(b"x"), conn.subscribe("x"), conn.register("x"))]
        failing.publish(topic, b" ".join(words))

    tasks.append(asyncio.ensure_future(after()))


tasks: list[asyncio.Future[None]] = []

keeping = App(framing=Line(limit=100), state=State, limits=SHORT)
say_goodbye(keeping)


@keeping.on_received(b"raise")
def fail_again(conn: Connection[State], frame: bytes) -> None:
    raise RefusedError


@keeping.on_received(b"soon raise")
async def fail_soon_again(conn: Connection[State], frame: bytes) -> None:
    raise RefusedError


@keeping.on_received(b"hang")
async def hang_again(conn: Connection[State], frame: bytes) -> None:
    await asyncio.Event().wait()


@keeping.on_received(b"poison")
def poison(conn: Connection[State], frame: bytes) -> None:
    raise ValueError("poison")


@keeping.on_error
def mend(conn: Connection[State], error: Exception) -> bytes:
    if not isinstance(error, ValueError):
        conn.keep()
    return type(error).__name__.encode()


# --- time

timers = App(framing=Line(), state=State)
say_goodbye(timers)


@timers.on_received(b"timer")
def timer(conn: Connection[State], frame: bytes) -> bytes:
    conn.start_timer(0.15)
    return b"started"


@timers.on_received(b"again")
def again(conn: Connection[State], frame: bytes) -> bytes:
    conn.state.notes.append("again")
    conn.start_timer(0.1)
    return b"started"


@timers.on_received(b"keepalive ")
def keepalive(conn: Connection[State], frame: bytes) -> None:
    conn.register(frame[10:].decode(), keepalive=1)


@timers.on_timeout
def silent(conn: Connection[State]) -> bytes:
    if conn.state.notes:
        conn.state.notes.pop()
        conn.start_timer(0.05)
        return b"still there?"
    return b"silent"


mute = App(framing=Line(), state=State, limits=Limits(first_frame=0.2))
say_goodbye(mute)

ticking = App(framing=Line())


@ticking.on_received
def tick_echo(conn: Connection, frame: bytes) -> bytes:
    return frame


@ticking.every(0.05)
def tick(conn: Connection) -> bytes:
    return b"tick"


# --- framing, several protocols, how a device is connected

protocols = App()
counted = protocols.protocol("counted", framing=LengthPrefix(2), key=lambda frame: frame[:1])
mixed = protocols.protocol("mixed", framing=Line(), reply_framing=LengthPrefix(1))
raw = protocols.protocol("raw")
checked = protocols.protocol("checked", framing=Resync(Checked(LengthPrefix(1, start=b"xx"), XOR)))
answering = protocols.protocol("answering", framing=Checked(Line(), XOR, text=True, mark=b"*"))
pausing = protocols.protocol("pausing", framing=Gap(0.05))
strict = protocols.protocol("strict", framing=Checked(Line(), XOR, text=True, mark=b"*", bad="error"))


def parse(frame: bytes) -> Command:
    """Return the command that *frame* holds: a word, and others behind it."""
    verb, *words = frame.decode().split()
    return Command(verb, words)


def build(command: Command) -> bytes:
    """Return the frame that holds *command*."""
    return " ".join([command.verb, *command.words]).encode()


spoken = protocols.protocol("spoken", framing=Line(), codec=(parse, build), key=lambda command: command.verb)
heard = protocols.protocol("heard", framing=Line(), codec=(parse, None))


@counted.on_connect
def greet(conn: Connection) -> bytes:
    conn.send(b"raw", raw=True)
    return b"hello"


@counted.on_received(b"\x01")
def first(conn: Connection, frame: bytes) -> bytes:
    return b"first " + frame


@counted.on_received
def rest(conn: Connection, frame: bytes) -> bytes:
    return b"rest " + frame


@mixed.on_received
def reply(conn: Connection, frame: bytes) -> bytes:
    return frame


@raw.on_received
def where(conn: Connection, frame: bytes) -> bytes:
    return f"{conn.protocol} {conn.info.socktype} {conn.info.peername.host} ".encode() + frame


@checked.on_received(b"count ")
def count_dropped(conn: Connection, frame: bytes) -> bytes:
    return str(protocols.stats[frame[6:].decode()]).encode()


@checked.on_received
def checked_echo(conn: Connection, frame: bytes) -> bytes:
    return frame


@answering.on_received
async def answering_echo(conn: Connection, frame: bytes) -> bytes:
    return frame


@answering.on_bad_frame
async def refuse(conn: Connection, frame: bytes, reason: str) -> bytes:
    return b"again, not " + frame


@pausing.on_received
def pausing_echo(conn: Connection, frame: bytes) -> bytes:
    return b"<" + frame + b">"


@strict.on_received
def strict_echo(conn: Connection, frame: bytes) -> bytes:
    return frame


@spoken.on_connect
async def ready(conn: Connection[None, Command]) -> Command:
    return Command("ready")


@spoken.on_received("add")
def add(conn: Connection[None, Command], command: Command) -> Command:
    conn.send(Command("adding", command.words))
    return Command("sum", [str(sum(map(int, command.words)))])


@spoken.on_received("ask")
async def ask_in_words(conn: Connection[None, Command], command: Command) -> Command:
    answer = await conn.request(Command("question"), match=lambda answer: answer.verb == "answer", timeout=5)
    return Command("got", answer.words)


@spoken.on_received("wrong")
def wrong(conn: Connection[None, Command], command: Command) -> Command:
    return cast("Command", 3)


@spoken.on_received("think", blocking=True)
def think(conn: Connection[None, Command], command: Command) -> Command:
    return Command("thought", command.words)


@spoken.on_received
async def other_words(conn: Connection[None, Command], command: Command) -> Command | None:
    return None if command.verb == "hush" else command


@spoken.on_error
def sorry(conn: Connection[None, Command], error: Exception) -> Command:
    conn.keep()
    return Command("sorry", [type(error).__name__])


@heard.on_received(b"by prefix")
def by_prefix(conn: Connection[None, Command], command: Command) -> bytes:
    return b"prefix " + " ".join(command.words).encode()


@heard.on_received
def as_bytes(conn: Connection[None, Command], command: Command) -> bytes:
    conn.send(b"heard")
    return command.verb.encode()


datagrams = App(framing=Line(limit=100), state=State, limits=Limits(datagram_idle=0.4))
say_goodbye(datagrams)

# --- several protocols on one listener

shared = App(state=State, limits=Limits(sniff_time=0.4, sniff_bytes=16))
SHARED = "starred,longer,marked,rest"


def marked_by_its_fourth(data: bytes) -> bool | None:
    """Tell a protocol whose fourth byte is a mark."""
    if data.startswith(b"rai"):
        raise ValueError("what a pity")
    return None if len(data) < 4 else data[3:4] == b"!"


def introduce(name: str, sniff: Sniff | None) -> None:
    """Serve a protocol that tells its name, before all answers, and when it ends."""
    router = shared.protocol(name, framing=Line(limit=100), state=State, sniff=sniff)

    @router.on_connect
    def connect(conn: Connection[State]) -> bytes:
        conn.state.notes.append(conn.protocol)
        conn.publish(f"begun/{name}", conn.info.socktype.encode())
        return f"this is {name}".encode()

    @router.on_received
    async def received(conn: Connection[State], frame: bytes) -> bytes:
        await asyncio.sleep(0)
        verb, _, argument = frame.partition(b" ")
        if verb == b"publish":
            conn.publish(argument.decode(), " ".join(conn.state.notes).encode())
        return frame

    @router.on_terminated
    def gone(conn: Connection[State], reason: str) -> None:
        conn.publish(f"end/{name}", reason.encode())


introduce("starred", b"*")
introduce("longer", (b"*HQX", b"$$"))
introduce("marked", marked_by_its_fourth)
introduce("rest", None)

choosy = App(limits=Limits(sniff_time=0.4, sniff_bytes=16))
CHOOSY = "binary,patient,teller"
binary = choosy.protocol("binary", sniff=b"\x01\x02")
patient = choosy.protocol("patient", sniff=lambda data: None if data[:1] == b"\x03" else False)
teller = choosy.protocol("teller", framing=Line(), sniff=b"count ")


@binary.on_received
def binary_taken(conn: Connection, frame: bytes) -> bytes:
    return b"binary " + frame


@patient.on_received
def patient_taken(conn: Connection, frame: bytes) -> None:
    conn.publish("never", frame)


@teller.on_received
def tell(conn: Connection, frame: bytes) -> bytes:
    return str(choosy.stats[frame[6:].decode()]).encode()


# --- limits

bounded = App(
    framing=Line(limit=1_000_000),
    state=State,
    limits=Limits(deliveries=10, inbox=4_096, outbox=4_096, outbox_max=262_144, stall=0.4),
)
say_goodbye(bounded)


@bounded.on_received(b"pour ")
def pour(conn: Connection[State], frame: bytes) -> None:
    for _ in range(int(frame[5:])):
        conn.send(b"x" * 1023)


@bounded.on_received(b"listen ")
async def listen(conn: Connection[State], frame: bytes) -> bytes:
    # Some brokers take subscriptions of clients only.
    await conn.register(f"listener of {frame[7:].decode().replace('/', ' ')}")
    await conn.subscribe(frame[7:].decode())
    return b"listening"


@bounded.on_received(b"busy ")
async def busy(conn: Connection[State], frame: bytes) -> bytes:
    gate = gates[frame[5:].decode()] = asyncio.Event()
    conn.send(b"waiting")
    await gate.wait()
    return b"open"


@bounded.on_received(b"open ")
def open_busy(conn: Connection[State], frame: bytes) -> bytes:
    gates[frame[5:].decode()].set()
    return b"opened"


@bounded.on_deliver
def drop(conn: Connection[State], message: Message) -> bytes:
    return message.payload


# --- slices, and what the end of a stream leaves

sliced = App(framing=Line(limit=60), state=State)
say_goodbye(sliced)
flooded: Counter[bytes] = Counter()


@sliced.on_received(b"flood ")
def flood(conn: Connection[State], frame: bytes) -> None:
    flooded[frame[6:]] += 1


@sliced.on_received(b"frames ")
def count_frames(conn: Connection[State], frame: bytes) -> bytes:
    return b"%d" % flooded[frame[7:]]


@sliced.on_error
def bear(conn: Connection[State], error: Exception) -> None:
    conn.keep()


lasting = App(framing=Line(last=True))


@lasting.on_received
def pass_on(conn: Connection, frame: bytes) -> None:
    topic, _, payload = frame.partition(b" ")
    conn.publish(topic.decode(), payload)


# --- sends that wait for an outcome

stored = App(framing=Line(limit=4000), state=State, limits=Limits(waiting_sends=8, commands=16))
in_order = App(framing=Line(limit=1000), state=State, strict_order=True)
for one in (stored, in_order):
    say_goodbye(one)


@stored.on_received(b"record ")
def record(conn: Connection[State], frame: bytes) -> None:
    topic, _, payload = frame[7:].decode().partition(" ")
    conn.send(b"ack " + payload.encode(), after=conn.publish(topic, payload.encode(), qos=1))


@stored.on_received(b"raw ")
async def raw_record(conn: Connection[State], frame: bytes) -> None:
    topic, _, payload = frame[4:].partition(b" ")
    outcomes = [conn.publish(topic.decode(), payload, qos=qos) for qos in (0, 1)]
    conn.send(b"raw!", raw=True, after=outcomes)


@stored.on_received(b"packet ")
def packet(conn: Connection[State], frame: bytes) -> None:
    topic, *payloads = frame[7:].decode().split(" ")
    records = conn.publish_many([Message(topic, payload.encode(), 1) for payload in payloads])
    conn.send(b"%d records" % len(payloads), after=records)


@stored.on_received(b"many ")
async def many(conn: Connection[State], frame: bytes) -> bytes:
    topic, *payloads = frame[5:].decode().split(" ")
    return await outcome(conn.publish_many(((topic, payload.encode()) for payload in payloads), qos=1))


@stored.on_received(b"thread ", blocking=True)
def record_in_thread(conn: Connection[State], frame: bytes) -> None:
    topic, _, payload = frame[7:].decode().partition(" ")
    conn.send(b"ack " + payload.encode(), after=conn.publish(topic, payload.encode(), qos=1))


@stored.on_received(b"awaits ")
async def awaits(conn: Connection[State], frame: bytes) -> bytes:
    name, password = frame[7:].decode().split(" ")
    return await outcome(conn.send(b"welcome", after=shows(conn, name, password)))


@stored.on_received(b"start ")
async def start_all(conn: Connection[State], frame: bytes) -> bytes:
    topic, number = frame[6:].decode().split(" ")
    outcomes = [conn.publish(topic, b"%d" % one, qos=1) for one in range(int(number))]
    for one in outcomes:
        await one
    return b"all"


@stored.on_received(b"each ")
def after_each(conn: Connection[State], frame: bytes) -> None:
    topic, number = frame[5:].decode().split(" ")
    for one in range(int(number)):
        conn.send(b"%d" % one, after=conn.publish(topic, b"%d" % one, qos=1))


@stored.on_received(b"by the app ")
async def by_the_app(conn: Connection[State], frame: bytes) -> bytes:
    topic, number = frame[11:].decode().split(" ")
    outcomes = [stored.publish(topic, b"app", qos=1) for _ in range(int(number))]
    await asyncio.gather(*outcomes)
    return b"all"


@stored.on_received(b"goodbye ")
def record_and_leave(conn: Connection[State], frame: bytes) -> None:
    conn.send(b"stored", after=conn.publish(frame[8:].decode(), b"last", qos=1))
    conn.terminate()


@stored.on_received(b"login ")
@in_order.on_received(b"login ")
def login_and_go_on(conn: Connection[State], frame: bytes) -> bytes:
    clientid, password = frame[6:].decode().split(" ")
    conn.send(b"before")
    conn.send(b"welcome", after=shows(conn, clientid, password))
    conn.send(b"behind", after=())
    conn.send(b"passes")
    return b"returned"


@stored.on_error
@in_order.on_error
def tell_error(conn: Connection[State], error: Exception) -> bytes:
    if "keep" in conn.state.name:
        conn.keep()
    return type(error).__name__.encode()


# --- a process that was restarted

stateless = App(framing=Line(), resume=True)


@stateless.on_connect
def welcome(conn: Connection) -> bytes:
    return b"welcome"


@stateless.on_received
def carry_on(conn: Connection, frame: bytes) -> bytes:
    return b"carried on with " + frame


# --- a line that many devices share


class Bus(State):
    """What the line knows, besides what all do."""


@attrs.define
class Meter:
    """What is known of a device behind the line."""

    readings: int = 0


bus = App(framing=Line(limit=1000), state=Bus, child_state=Meter, limits=Limits(end_timeout=0.4))
say_goodbye(cast("App[State]", bus))


@bus.on_received(b"line ")
async def log_the_line_in(conn: Connection[Bus], frame: bytes) -> bytes:
    conn.state.name = frame[5:].decode()
    return await outcome(conn.register(conn.state.name))


@bus.on_received(b"meter ")
async def read_meter(conn: Connection[Bus], frame: bytes) -> bytes:
    """Publish what a meter says, which `meter NAME VALUE` is."""
    _, name, value = frame.decode().split()
    meter = await conn.child(name, will=Message(f"will/{name}", b"gone"))
    meter.state.readings += 1
    await meter.publish(f"meters/{name}", f"{value} {meter.state.readings}".encode())
    await meter.subscribe(f"meters/{name}/command")
    return b"read"


@bus.on_received(b"same ")
async def take_a_name_twice(conn: Connection[Bus], frame: bytes) -> bytes:
    name = frame[5:].decode()
    assert conn.child(name) is conn.child(name)
    return b", ".join(sorted(key.encode() for key in conn.children))


@bus.on_received(b"own ")
def take_the_lines_name(conn: Connection[Bus], frame: bytes) -> bytes:
    try:
        conn.child(frame[4:].decode())
    except CommandError as error:
        return type(error).__name__.encode()
    return b"allowed"


@bus.on_received(b"dismiss ")
def dismiss(conn: Connection[Bus], frame: bytes) -> bytes:
    conn.children[frame[8:].decode()].terminate()
    return b"dismissed"


@bus.on_received(b"watch ")
async def watch(conn: Connection[Bus], frame: bytes) -> bytes:
    """Have a meter, or else the line, subscribe, or with a - unsubscribe: `watch NAME FILTER…`."""
    _, name, *filters = frame.decode().split()
    who: Connection[Any] = conn.children.get(name, conn)
    for one in filters:
        await (who.unsubscribe(one[1:]) if one.startswith("-") else who.subscribe(one))
    return b"watching"


@bus.on_deliver("news/#")
@bus.child.on_deliver("news/#")
def hear(conn: Connection[Any], message: Message) -> bytes:
    assert conn.client is not None
    return b"%s hears %s" % (conn.client.clientid.encode(), message.payload)


@bus.child.on_deliver("meters/+/command")
async def command_meter(child: Connection[Meter], message: Message) -> bytes | None:
    """Ask the meter by the line, slowly, or fail."""
    assert child.client is not None
    assert child.line is not None
    name = child.client.clientid.encode()
    if message.payload == b"fail":
        raise ValueError("as it was told")
    if message.payload == b"slow":
        child.send(b"slow %s" % name)
        await asyncio.sleep(0.05)
        return b"slept %s" % name
    answer = await child.request(b"ask %s" % name, match=lambda frame: frame.startswith(b"answer "))
    return b"%s got %s" % (name, answer)


@bus.child.on_terminated
def meter_gone(child: Connection[Meter], reason: str) -> None:
    assert child.client is not None
    child.publish(f"end/{child.client.clientid}", reason.encode())


# --- logins that the app judges itself

gate = App(framing=Line(limit=1000), state=State)
say_goodbye(gate)


@gate.on_login
async def judge(login: Login) -> bool | str | ClientInfo:
    """Let in who is named so, as whom else a name says, after a while."""
    await asyncio.sleep(0.01)
    if login.clientid.endswith("-mounted"):
        return attrs.evolve(login.client, mountpoint="gate/")
    return login.clientid.endswith("-good") or f"{login.protocol} has no such device"


@gate.on_received(b"enter ")
async def enter(conn: Connection[State], frame: bytes) -> bytes:
    return await outcome(conn.register(frame[6:].decode()))


@gate.on_received(b"say ")
async def say_at_the_gate(conn: Connection[State], frame: bytes) -> bytes:
    topic, payload = frame[4:].split(b" ")
    return await outcome(conn.publish(topic.decode(), payload, qos=1))


@gate.on_received(b"rush ")
def rush(conn: Connection[State], frame: bytes) -> None:
    """Log in, and publish behind that, without a wait."""
    name = frame[5:].decode()
    conn.register(name)
    conn.publish(f"rush/{name}", b"in")
