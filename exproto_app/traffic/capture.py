"""Files of traffic: recordings of ours, and captures of packets (pcap, pcapng) as other tools make them."""

from __future__ import annotations

import heapq
import importlib
import ipaddress
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from ..errors import ExprotoError, SetupError
from ..models import Address, ConnectionInfo, SockType
from ..tap import Closed, Opened, Received, Sent
from .recording import Entry, Recording, parse

__all__ = ["is_capture", "read"]

MAGIC: Final = (
    b"\xd4\xc3\xb2\xa1",
    b"\xa1\xb2\xc3\xd4",
    b"\x4d\x3c\xb2\xa1",
    b"\xa1\xb2\x3c\x4d",
    b"\x0a\x0d\x0d\x0a",
)
"""How captures begin: pcap with microseconds or nanoseconds, of either byte order, and pcapng."""

LINKS: Final = {
    0: ("loopback", "Loopback"),
    1: ("ethernet", "Ethernet"),
    108: ("loopback", "Loopback"),
    113: ("sll", "SLL"),
    276: ("sll2", "SLL2"),
}
"""Link types, by their numbers, and who parses them."""

BARE: Final = (12, 101, 228, 229)
"""Link types of IP packets without anything before them."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

WHOLE: Final = 1 << 32
"""TCP's sequence numbers come round; what is more than half of them ahead lies behind."""


def is_capture(path: Path) -> bool:
    """Return whether *path* is a capture of packets."""
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def read(path: str | Path, *, port: int | None = None) -> Recording:
    """Return what the file *path* tells; *port* is the server's, in a capture of packets.

    Raises `SetupError` for a file that is neither a recording nor a capture.
    """
    path = Path(path)
    try:
        if is_capture(path):
            return _read_packets(path, port)
        with path.open(encoding="utf-8") as file:
            return parse(file, path.name)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{path} is neither a recording nor a packet capture") from None


@attrs.define
class _Packet:
    """A TCP segment, or a datagram."""

    at: float
    udp: bool
    source: Address
    target: Address
    data: bytes
    seq: int = 0
    syn: bool = False
    ack: bool = False
    fin: bool = False
    rst: bool = False


@attrs.define
class _Flow:
    """The packets between two ends, from one SYN to the next; *server* is None where none tells it.

    *syns* are the sequence numbers of its SYNs, which may come several times.
    """

    server: Address | None
    packets: list[_Packet] = attrs.Factory(list)
    syns: set[int] = attrs.Factory(set)


def _read_packets(path: Path, port: int | None) -> Recording:
    try:
        dpkt: Any = importlib.import_module("dpkt")
    except ImportError:
        raise ExprotoError("packet captures need: pip install 'exproto-app[pcap]'") from None
    recording = Recording(broker=False)
    with path.open("rb") as file:
        flows = _flows(_packets(dpkt, file, path.name, recording.notes))
    wanted = [flow for flow in flows if port is None or _has_port(flow, port)]
    _check_ports(wanted, path.name, port)
    if wanted:
        recording.started = wanted[0].packets[0].at
    for number, flow in enumerate(wanted, 1):
        ends = {flow.packets[0].source, flow.packets[0].target}
        server = flow.server if port is None else min(ends, key=lambda end: end.port != port)
        if server is not None:
            client = next(iter(ends - {server}), server)
            recording.entries += _assembled(flow, client, server, str(number), recording)
    recording.sort()
    return recording


def _has_port(flow: _Flow, port: int) -> bool:
    return port in (flow.packets[0].source.port, flow.packets[0].target.port)


def _check_ports(flows: list[_Flow], name: str, port: int | None) -> None:
    """Refuse what has no connection, or doesn't tell which side is the server."""
    if not flows:
        where = "" if port is None else f" with port {port}"
        raise SetupError(f"{name} has no TCP or UDP traffic{where}")
    if port is not None:
        return
    ports = {flow.server.port for flow in flows if flow.server is not None}
    if len(ports) == 1:
        (only,) = ports
        for flow in flows:  # those that began before the capture
            ends = (flow.packets[0].source, flow.packets[0].target)
            flow.server = flow.server or next((end for end in ends if end.port == only), None)
        return
    if ports:
        listed = ", ".join(map(str, sorted(ports)))
        raise SetupError(f"{name} has traffic to several ports ({listed}); give the server's with --port")
    raise SetupError(f"{name} doesn't show which side is the server; give its port with --port")


# --- packets


def _packets(dpkt: Any, file: BinaryIO, name: str, notes: list[str]) -> Iterator[_Packet]:
    """Yield what is TCP or UDP in *file*."""
    wrong = (dpkt.Error, ValueError, IndexError, AttributeError, struct.error)
    try:
        reader = importlib.import_module("dpkt.pcap").UniversalReader(file)
        parse_frame = _link(reader.datalink())
    except wrong as error:
        raise SetupError(f"{name} is not a readable capture: {error}") from None
    frames = iter(reader)
    while True:
        try:
            at, frame = next(frames)
        except StopIteration:
            return
        except wrong:
            notes.append(f"{name} was cut off; what comes before that is used")
            return
        try:
            packet = _transport(float(at), parse_frame(frame))
        except wrong:
            continue
        if packet is not None:
            yield packet


def _link(number: int) -> Any:
    """Return what parses packets of this link type."""
    if number in BARE:
        return _bare
    if number not in LINKS:
        raise SetupError(f"captures of link type {number} can't be read; those of Ethernet and IP can")
    module, name = LINKS[number]
    return getattr(importlib.import_module(f"dpkt.{module}"), name)


def _bare(frame: bytes) -> Any:
    six = frame[0] >> 4 == 6
    ip: Any = importlib.import_module("dpkt.ip6" if six else "dpkt.ip")
    return ip.IP6(frame) if six else ip.IP(frame)


def _transport(at: float, layer: Any) -> _Packet | None:
    """Return the segment or datagram in *layer*; None for anything else, fragments too."""
    while type(layer).__name__ not in ("IP", "IP6"):
        layer = layer.data
        if isinstance(layer, bytes):
            return None
    inner = layer.data
    kind = type(inner).__name__
    if kind not in ("TCP", "UDP"):
        return None
    source, target = (ipaddress.ip_address(bytes(raw)) for raw in (layer.src, layer.dst))
    ends = Address(str(source), inner.sport), Address(str(target), inner.dport)
    if kind == "UDP":
        return _Packet(at, True, *ends, bytes(inner.data))
    flags = (bool(inner.flags & bit) for bit in (SYN, ACK, FIN, RST))
    return _Packet(at, False, *ends, bytes(inner.data), inner.seq, *flags)


# --- connections


def _flows(packets: Iterable[_Packet]) -> list[_Flow]:
    """Return the connections, in the order in which they begin."""
    flows: list[_Flow] = []
    latest: dict[tuple[bool, frozenset[Address]], _Flow] = {}
    for packet in packets:
        key = packet.udp, frozenset((packet.source, packet.target))
        flow = latest.get(key)
        begins = packet.syn and not packet.ack
        if flow is None or (begins and packet.seq not in flow.syns):
            server = packet.target if begins or packet.udp else packet.source if packet.syn else None
            flow = latest[key] = _Flow(server)
            flows.append(flow)
        if packet.syn:
            flow.syns.add(packet.seq)
        flow.packets.append(packet)
    return flows


def _assembled(
    flow: _Flow, client: Address, server: Address, conn: str, recording: Recording
) -> Iterator[Entry]:
    """Yield the events of *flow*."""
    first, last = flow.packets[0], flow.packets[-1]
    started = recording.started

    def entry(at: float, event: Opened | Received | Sent | Closed) -> Entry:
        return Entry(at - started, conn, "", event)

    socktype: SockType = "udp" if first.udp else "tcp"
    late = not (first.udp or first.syn)
    yield entry(first.at, Opened(ConnectionInfo(socktype, client, server), late=late))
    ends: dict[Address, None] = {}
    streams = {client: _Stream(), server: _Stream()}
    for packet in flow.packets:
        data = packet.data if packet.udp else streams[packet.source].take(packet)
        if data or (packet.udp and packet.source == client):
            yield entry(packet.at, Received(data) if packet.source == client else Sent(data))
        if packet.fin or packet.rst:
            ends[packet.source] = None
        if packet.rst or len(ends) == 2:
            break
    if ends:
        yield entry(last.at, Closed("device closed" if client == next(iter(ends)) else "terminated", ""))
    for end, stream in streams.items():
        if stream.waiting:
            recording.notes.append(
                f"connection {conn}: the capture lacks bytes of {end}; what follows is skipped"
            )
    if late:
        recording.notes.append(f"connection {conn} began before the capture; on_connect isn't run")


class _Stream:
    """One direction of a TCP connection: segments in any order, several times, come out as the stream."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, bytes]] = []  # a heap, by the place in the stream
        self._next: int | None = None  # a sequence number that doesn't come round

    def take(self, packet: _Packet) -> bytes:
        """Return the bytes that *packet* makes known."""
        if self._next is None:
            self._next = packet.seq + packet.syn
        ahead = (packet.seq + packet.syn - self._next) % WHOLE
        if packet.data:
            begin = self._next + (ahead if ahead < WHOLE // 2 else ahead - WHOLE)
            heapq.heappush(self.waiting, (begin, packet.data))
        known: list[bytes] = []
        while self.waiting and self.waiting[0][0] <= self._next:
            begin, data = heapq.heappop(self.waiting)
            fresh = data[self._next - begin :]
            known.append(fresh)
            self._next += len(fresh)
        return b"".join(known)
