"""The store behind the uplink: what devices publish with QoS 1 or 2 is safe once it is on the disk.

With `away` that is so while the broker is away: what is on its way then, and what comes, is written, and
counts as published when it is on the disk. As long as anything of a client is stored, all that it publishes
goes the same way, so that its order holds; then messages go to the broker alone again. With `always` every
message is written; the broker gets it at the same time.

A queue of a client is sent by the session of the device where it is here, else by the gateway's own. What the
disk doesn't take waits in memory, as without a store, within the same bounds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from ...commands import Outcome, Publish, Waiter
from ...core import Channel
from ...errors import CommandError, DeniedError, UnavailableError
from ...models import PLAIN
from ...store import Found, Log, find, lock_part
from .flights import Flight
from .heir import Heir
from .reasons import NOT_AUTHORIZED, in_words
from .stored_order import QueueOrder
from .stored_queue import Carrier, Labelled, Queue, Record

if TYPE_CHECKING:
    from .device import Device, Sender
    from .uplink import MqttHub

__all__ = ["Backlog"]

log = logging.getLogger("exproto_app")

WINDOW: Final = 256
"""Messages of the store that one session has on its way."""

KEPT: Final = 64
"""Messages of one client that stay in memory although they are on the disk, while the broker is there."""

DENIED: Final = in_words(NOT_AUTHORIZED)


class Backlog:
    """What is stored, by client; *hub* is whose it is, *folder* where."""

    def __init__(self, hub: MqttHub, folder: Path) -> None:
        options = hub.options
        self.queues: dict[str, Queue] = {}
        self.stopping = False
        self.waiter: Callable[[], Waiter] = hub.broker.waiter
        self._hub = hub
        self._folder = folder
        self._always = options.store_when == "always"
        self._drops = options.store_when_full == "drop-oldest"
        self._own = Carrier(hub.gateway_client)
        self._carriers: dict[Sender, Carrier] = {hub.gateway_client: self._own}
        self._log: Log[Record]
        self._heir: Heir
        self._order: QueueOrder

    async def start(self) -> None:
        """Take a part of the folder, with what waits there and in parts that nobody has. Raises `OSError`."""
        place = lock_part(self._folder)
        loop = self._hub.broker.loop
        self._log = Log(place.folder, place.number, self._hub.options.store_bytes, self, loop, time.time)
        self._order = QueueOrder(self, self._folder, place.number, loop)
        self._heir = Heir(self._folder, place, self._log, self._order, self._take)
        self._take(await self._log.disk.run(partial(find, place.folder)))
        self._order.ready()
        await self._heir.adopt()
        self._hub.broker.ticks += (self._heir.tick, self._order.tick)
        if self._log.count:
            text = "store = %d messages of %d clients wait in %s"
            log.info(text, self._log.count, len(self.queues), self._folder)

    async def close(self, senders: Sequence[Sender]) -> int:
        """Have what *senders* haven't sent be on the disk, and let go of the folder.

        Return how many messages neither the disk nor the broker has.
        """
        for sender in senders:
            self.offline(sender)
        await self._heir.stop()
        await self._log.close()
        self._order.close(empty=not self._log.count)
        self._heir.place.release()
        held = sum(len(queue.tail or ()) for queue in self.queues.values())
        flights = [flight for sender in senders for flight in sender.link.session.outgoing.messages()]
        return held + sum(not _is_safe(flight) for flight in flights)

    def gauges(self) -> dict[str, float]:
        """Return what is measured: what waits, and whether more can be written."""
        held = sum(len(queue.tail) for queue in self.queues.values() if queue.tail)
        return {
            "store_messages": self._log.count,
            "store_bytes": self._log.live,
            "store_held": held,
            "store_up": not self._log.trouble,
        }

    # --- what was left behind

    def _take(self, found: Found) -> None:
        for note in (*found.notes, *found.torn):
            log.error("store ! %s", note)
        for clientid, runs in self._log.adopt(found).items():
            queue = self.queues.get(clientid) or self._new(clientid, self._own)
            queue.adopt(runs)
            self._order.adopted(queue)
            self.pump(queue)

    # --- publishing

    def publish(self, sender: Sender, channel: Channel | None, command: Publish) -> Outcome[None] | None:
        """Store *command*; return None where it goes to the broker alone."""
        clientid = sender.client_of(channel)
        queue = self.queues.get(clientid)
        if queue is None:
            if not (self._always or self._order.elsewhere(clientid)) and sender.link.session.online:
                return None
            queue = self._new(clientid, self._carriers.get(sender) or self._own)
        safe: Outcome[None] = Outcome(self.waiter)
        record = Record(queue, command, self._log.new_id(), safe)
        self._order.put(queue, record.id)
        if queue.tail or not self._append(record):
            self._hub.count("store_refusals")
            queue.hold(record)
            self._bound(queue, channel)
            self.pump(queue)
        elif queue.idle and self.takes(queue) and self._order.may_pass(queue, record.id):
            self._launch(queue, record)
        else:
            queue.write(record)
            if queue.carrier is self._own:
                self.pump(queue)
        return safe

    def outcome(self, sender: Sender, channel: Channel | None) -> Outcome[None] | None:
        """Return the outcome for a message that goes to the broker alone, None for any.

        It tells whose the message is, where *sender* is the gateway's own client.
        """
        return (
            Labelled(self.waiter, sender.client_of(channel)) if sender is self._hub.gateway_client else None
        )

    def _append(self, record: Record) -> bool:
        """Have *record* written, where need be by dropping what is oldest."""
        command, key = record.command, record.queue.key
        while not self._log.append(record, key, command):
            segment = self._log.oldest() if self._drops and not self._log.trouble else None
            if segment is None:
                return False
            for queue in self.queues.values():
                queue.forget(segment)
            number = self._log.drop(segment)
            self._hub.lost(number, f"the store is full, limit is {self._log.limit} bytes")
        self.count("messages_stored")
        return True

    def _bound(self, queue: Queue, channel: Channel | None) -> None:
        """See to what the disk doesn't take: it has the bounds of a queue without a store."""
        bounds, policy = queue.carrier.sender.link.session.bounds, self._hub.options.when_full
        tail = queue.tail
        while tail and (len(tail) > bounds.messages or queue.tail_bytes > bounds.queue):
            if policy == "drop-oldest" and len(tail) > 1:
                self._hub.count("publishes_dropped")
                oldest = queue.unhold()
                if oldest.safe is not None:
                    oldest.safe.fail(UnavailableError("the message was dropped: the queue was full"))
                continue
            if channel is not None and policy == "wait":
                if queue.channels is None:
                    queue.channels = set()
                queue.channels.add(channel)
                channel.congested()
            elif channel is not None and policy == "disconnect":
                channel.end("error", "the broker is away or too slow, and store and queue are full")
            return

    def _relieve(self, queue: Queue) -> None:
        """Have those go on that wait for room."""
        bounds = queue.carrier.sender.link.session.bounds
        number = len(queue.tail or ())
        if queue.channels and number <= bounds.messages // 2 and queue.tail_bytes <= bounds.queue // 2:
            channels, queue.channels = queue.channels, None
            for channel in channels:
                channel.relieved()

    # --- from the log

    def safe(self, entries: Sequence[Record]) -> None:
        """Take note that *entries* are on the disk."""
        self._hub.engine.release_together(self._safe, entries)

    def _safe(self, entries: Sequence[Record]) -> None:
        for record in entries:
            record.committed = True
            if record.safe is not None:
                record.safe.settle(None)
            queue = record.queue
            if queue.writing:
                queue.spill(KEPT if queue.carrier.sender.link.session.online and not queue.runs else 0)

    def unsafe(self, entries: Sequence[Record]) -> None:
        """Take note that *entries* couldn't be written: they wait in memory."""
        for queue in dict.fromkeys(record.queue for record in entries):
            queue.unwritten()
            self.pump(queue)

    def room(self) -> None:
        """Write what the disk hadn't taken."""
        for queue in tuple(self.queues.values()):
            for record in tuple(queue.launched):
                if record.segment is None and record.safe is not None and not record.safe.done:
                    record.committed = False
                    if not self._append(record):
                        return
            while queue.tail:
                if not self._append(queue.tail[0]):
                    return
                queue.write(queue.unhold())
            self._relieve(queue)
            self.pump(queue)

    # --- sending

    def _new(self, clientid: str, carrier: Carrier) -> Queue:
        queue = self.queues[clientid] = Queue(self, clientid, carrier)
        return queue

    def count(self, name: str) -> None:
        """Count what happens here."""
        self._hub.count(name)

    def takes(self, queue: Queue) -> bool:
        """Return whether what waits in *queue* may be launched, as far as this process is concerned."""
        carrier = queue.carrier
        return (
            carrier.outstanding < WINDOW
            and queue.heir is None
            and carrier.sender.link.session.online
            and not (queue.parked or self.stopping)
        )

    def pump(self, queue: Queue) -> None:
        """Send what may be sent."""
        if queue.pumping:
            return
        queue.pumping = True
        try:
            self._send(queue)
        finally:
            queue.pumping = False
        self._relieve(queue)
        if queue.empty and self.queues.get(queue.clientid) is queue:
            self._order.emptied(queue)
            queue.carrier.waiting.pop(queue, None)
            if not self._always or queue.carrier is self._own:
                del self.queues[queue.clientid]

    def _send(self, queue: Queue) -> None:
        if queue.heir is not None:
            if queue.launched:
                return  # the other session's come first
            queue.carrier.waiting.pop(queue, None)
            queue.carrier, queue.heir = queue.heir, None
            queue.parked = queue.parked and queue.carrier is self._own
        order = self._order
        while self.takes(queue):
            number = queue.next_id
            if number and not order.may_pass(queue, number):
                return
            record = self._next(queue)
            if record is None:
                return
            if not number and not order.may_pass(queue, record.id):
                queue.put_back([record])
                return
            self._launch(queue, record)
        if queue.carrier.outstanding >= WINDOW:
            queue.carrier.waiting[queue] = None

    def _next(self, queue: Queue) -> Record | None:
        """Return the next message of *queue*; None if there is none, or it has to be read."""
        if queue.loading:
            return None
        if queue.ready:
            return queue.ready.popleft()
        while queue.runs:
            run = queue.runs[0]
            found = self._log.read(run, partial(self._loaded, queue))
            if found is None:
                queue.loading = True
                return None
            if run.next == len(run.offsets):
                queue.runs.popleft()
            if found == "gone":
                self._hub.count("publishes_dropped")
                continue
            record = Record(queue, found.command, found.id, None)
            record.segment, record.offset, record.size = run.segment, found.offset, found.size
            record.committed = True
            return record
        if queue.writing:
            return queue.writing.popleft()
        return queue.unhold() if queue.tail else None

    def _loaded(self, queue: Queue) -> None:
        queue.loading = False
        self.pump(queue)

    def _launch(self, queue: Queue, record: Record) -> None:
        queue.launched[record] = None
        queue.carrier.outstanding += 1
        command = record.command
        if command.properties is not PLAIN and command.properties.expiry is not None:
            command = self._aged(record)
            if command.properties.expiry == 0:
                self._hub.count("messages_expired")
                record.settle(None)
                return
        result = queue.carrier.sender.link.session.outgoing.publish(command, record)
        if result is not record and result.error is not None:
            record.fail(result.error)

    def _aged(self, record: Record) -> Publish:
        """Return what *record* publishes, worth something only for as long as is left of its time."""
        properties = record.command.properties
        left = max(0, (properties.expiry or 0) - int(time.time() - (record.id >> 8) / 1_000_000))
        return attrs.evolve(record.command, properties=attrs.evolve(properties, expiry=left))

    # --- the broker's answers

    def acknowledged(self, record: Record) -> None:
        """Take note that the broker has *record*."""
        self._log.done(record)
        safe = record.safe
        if safe is not None and not safe.done:
            safe.settle(None)
        self._landed(record)

    def failed(self, record: Record, error: CommandError) -> None:
        """Take note that the broker hasn't taken *record*: for good, or not by this session."""
        queue = record.queue
        if not isinstance(error, DeniedError):
            self._landed(record, back=True)
        elif queue.carrier is self._own and queue.clientid and self._may_be_allowed(error):
            queue.parked = True
            self._order.leave(queue)
            text = "store ! messages of %r wait for the device: the gateway's own client may not publish them"
            log.warning(text, queue.clientid)
            self._landed(record, back=True)
        else:
            self._log.done(record)
            if record.safe is None or record.safe.done:
                self._hub.lost(1, f"of {queue.clientid!r}, stored: {error}")
            else:
                record.safe.fail(error)
            self._landed(record)

    def _may_be_allowed(self, error: CommandError) -> bool:
        """Return whether the device itself may be allowed what the gateway's own client isn't."""
        return not self._hub.options.shared and DENIED in str(error)

    def _landed(self, record: Record, *, back: bool = False) -> None:
        """Go on behind *record*, which is on its way no more; *back*: it is to be sent again."""
        queue = record.queue
        queue.launched.pop(record, None)
        carrier = queue.carrier
        carrier.outstanding -= 1
        if back:
            queue.put_back([record])
        if not queue.idle or queue.heir is not None or not queue.launched:
            self.pump(queue)
        if carrier.waiting and carrier.outstanding < WINDOW:
            other = next(iter(carrier.waiting))
            del carrier.waiting[other]
            self.pump(other)

    # --- sessions that come and go

    def online(self, sender: Sender) -> None:
        """Send what *sender* is to send: it is connected."""
        for queue in self._queues_of(sender):
            self.pump(queue)

    def offline(self, sender: Sender) -> None:
        """Store what is on its way: *sender* is not connected any more."""
        sent, waiting = sender.link.session.outgoing.take_waiting()
        for flight in sent:
            if not isinstance(flight.outcome, Record):
                flight.outcome = record = self._record(sender, flight)
                self._order.put(record.queue, record.id)
                record.queue.launched[record] = None
                record.queue.carrier.outstanding += 1
                self._append(record)
        back: dict[Queue, list[Record]] = {}
        for flight in waiting:
            if isinstance(flight.outcome, Record):
                back.setdefault(flight.outcome.queue, []).append(flight.outcome)
                continue
            record = self._record(sender, flight)
            self._order.put(record.queue, record.id)
            if record.queue.tail or not self._append(record):
                record.queue.hold(record)
            else:
                record.queue.write(record)
        for queue, records in back.items():
            queue.carrier.outstanding -= len(records)
            queue.put_back(records)
        for queue in self._queues_of(sender):
            queue.spill()
        sender.relieved()

    def _queues_of(self, sender: Sender) -> list[Queue]:
        """Return what *sender* sends, or is to send."""
        if sender is self._hub.gateway_client:
            return [queue for queue in self.queues.values() if self._own in (queue.carrier, queue.heir)]
        queue = self.queues.get(sender.client_of(None))
        return [] if queue is None else [queue]

    def _record(self, sender: Sender, flight: Flight) -> Record:
        """Return what *flight*, which isn't stored yet, is in the store."""
        outcome: Any = flight.outcome
        clientid = outcome.clientid if isinstance(outcome, Labelled) else sender.client_of(None)
        carrier = self._carriers.get(sender) or self._own
        queue = self.queues.get(clientid) or self._new(clientid, carrier)
        command: Any = flight.command
        return Record(queue, command, self._log.new_id(), outcome)

    def arrived(self, device: Device) -> None:
        """Have *device* send what is stored of it: it has a session."""
        carrier = self._carriers.get(device)
        if carrier is None:
            carrier = self._carriers[device] = Carrier(device)
        queue = self.queues.get(device.clientid)
        if queue is not None:
            if queue.parked:
                queue.parked = False
                self._order.put(queue, queue.oldest or 1)
            if queue.carrier is not carrier:
                queue.heir = carrier
            self.pump(queue)

    def left(self, device: Device) -> None:
        """Have the gateway's own client send what *device* hasn't sent: it goes."""
        carrier = self._carriers.pop(device, None)
        queue = self.queues.get(device.clientid)
        if queue is None or carrier is None:
            return
        if queue.heir is carrier:
            queue.heir = None
        if queue.carrier is carrier and queue.heir is None:
            queue.heir = self._own
        self.pump(queue)

    def reclaim(self, flights: list[Flight]) -> list[Flight]:
        """Take back what is stored among *flights* of a session that sends no more; return the others."""
        back: dict[Queue, list[Record]] = {}
        for flight in flights:
            if isinstance(flight.outcome, Record):
                back.setdefault(flight.outcome.queue, []).append(flight.outcome)
        for queue, records in back.items():
            queue.carrier.outstanding -= len(records)
            queue.put_back(records)
            self.pump(queue)
        return [flight for flight in flights if not isinstance(flight.outcome, Record)]


def _is_safe(flight: Flight) -> bool:
    """Return whether *flight* is on the disk."""
    return isinstance(flight.outcome, Record) and flight.outcome.committed
