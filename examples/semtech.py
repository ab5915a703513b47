"""Semtech's packet forwarder: LoRa gateways over UDP, the nodes that they hear as devices of their own.

    exproto-app run examples/semtech.py --listen udp://0.0.0.0:1700

A forwarder speaks from two ports. From one it asks for downlinks (PULL_DATA), which is its line here: it
registers by the gateway's EUI. From the other it brings uplinks (PUSH_DATA). Each node is a child of the
line, by its DevAddr:

    gateways/EUI/status     what the forwarder says of itself, JSON
    gateways/EUI/answer     whether a downlink was sent, JSON
    nodes/DEVADDR/up        fcnt, port, payload (hex, encrypted as the node sent it), rssi, snr, …, JSON
    nodes/DEVEUI/raw        another frame, such as a join request, JSON with the payload in hex

What is published to nodes/DEVADDR/down is the "txpk" object of a downlink. The gateway that heard the node
last sends it.

Read: PUSH_DATA, PULL_DATA and TX_ACK of protocol versions 1 and 2; headers of LoRaWAN data frames. Not done:
the work of a network server (keys, frame counters, adaptive rates, two gateways that hear one node).

Try it: exproto-app run examples/semtech.py --listen udp://127.0.0.1:1700, and in another terminal:

    printf 02a1b202aa555a0000000101 | xxd -r -p | nc -u -w1 127.0.0.1 1700 | xxd -p
"""

import base64
import binascii
import json
from typing import Any

from exproto_app import App, Connection, Message

# --- what is on the wire: version, token (2), kind, then the gateway's EUI (8) and JSON

PUSH_DATA, PUSH_ACK, PULL_DATA, PULL_RESP, PULL_ACK, TX_ACK = range(6)
VERSIONS = (1, 2)
JOIN_REQUEST, UNCONFIRMED_UP, CONFIRMED_UP = 0, 2, 4

app = App(key=lambda frame: frame[3] if len(frame) >= 12 and frame[0] in VERSIONS else None)

Conn = Connection[Any]


def eui_of(frame: bytes) -> str:
    return frame[4:12].hex()


def objects_of(frame: bytes) -> dict[str, Any]:
    """Return the JSON object of *frame*, empty if it has none."""
    said = json.loads(frame[12:]) if frame[12:].strip(b"\0 ") else {}
    return said if isinstance(said, dict) else {}


@app.on_received(PULL_DATA)
def on_pull(conn: Conn, frame: bytes) -> bytes:
    conn.register(eui_of(frame))
    conn.start_timer(60)
    return frame[:3] + bytes([PULL_ACK])


@app.on_received(PUSH_DATA)
def on_push(conn: Conn, frame: bytes) -> bytes:
    line = app.connections.get(eui_of(frame), conn)
    said = objects_of(frame)
    if "stat" in said:
        line.publish(f"gateways/{eui_of(frame)}/status", json.dumps(said["stat"]).encode())
    for packet in said.get("rxpk", ()):
        take(line, packet)
    return frame[:3] + bytes([PUSH_ACK])


def take(line: Conn, packet: dict[str, Any]) -> None:
    """Publish one packet that was heard, in the name of its node."""
    try:
        data = base64.b64decode(packet["data"])
    except (KeyError, TypeError, binascii.Error):
        return
    if packet.get("stat", 1) != 1:  # its checksum is wrong, or it has none
        return
    heard = {
        "rssi": packet.get("rssi"),
        "snr": packet.get("lsnr"),
        "frequency": packet.get("freq"),
        "rate": packet.get("datr"),
        "time": packet.get("time"),
        "tmst": packet.get("tmst"),
    }
    if len(data) < 12 or data[0] >> 5 not in (UNCONFIRMED_UP, CONFIRMED_UP):
        name = data[16:8:-1].hex() if len(data) == 23 and data[0] >> 5 == JOIN_REQUEST else "unknown"
        line.publish(f"nodes/{name}/raw", json.dumps({"payload": data.hex(), **heard}).encode())
        return
    address = data[4:0:-1].hex()
    options = data[5] & 0x0F
    body = data[8 + options : -4]
    values = {
        "fcnt": int.from_bytes(data[6:8], "little"),
        "confirmed": data[0] >> 5 == CONFIRMED_UP,
        "port": body[0] if body else None,
        "payload": body[1:].hex(),
        **heard,
    }
    node = line.child(address)
    node.subscribe(f"nodes/{address}/down", qos=1)
    node.publish(f"nodes/{address}/up", json.dumps(values).encode())


@app.on_received(TX_ACK)
def on_sent(conn: Conn, frame: bytes) -> None:
    said = objects_of(frame).get("txpk_ack", {"error": "NONE"})
    conn.publish(f"gateways/{eui_of(frame)}/answer", json.dumps(said).encode())


@app.on_received
def on_other(conn: Conn, frame: bytes) -> None:
    pass  # no version that we know


@app.child.on_deliver("nodes/+/down")
def on_down(node: Conn, message: Message) -> bytes:
    txpk = json.loads(message.payload)
    token = binascii.crc_hqx(message.payload, 0).to_bytes(2, "big")
    return b"\x02" + token + bytes([PULL_RESP]) + json.dumps({"txpk": txpk}).encode()
