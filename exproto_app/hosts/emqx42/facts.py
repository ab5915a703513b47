"""What the broker says and wants to hear, in our words; all of it measured on EMQX 4.2.14."""

from __future__ import annotations

import ipaddress
import secrets
import time
from typing import Any, Final, cast

from ...models import Address, Certificate, ClientInfo, ConnectionInfo, Message, Reason, SockType
from .. import reasons
from .terms import Atom, Opaque, TermError

__all__ = ["client_map", "connection_info", "message_record", "readable", "reason", "text"]

UNDEFINED: Final = Atom("undefined")


def text(value: object) -> str:
    """Return the text of a binary, an atom or a list of characters; of anything else, how Python shows it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Atom):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 0x110000 for item in value):
        return "".join(map(chr, value))
    return repr(value)


def _address(term: Any) -> Address:
    host, port = term
    if len(host) == 8:
        packed = b"".join(part.to_bytes(2, "big") for part in host)
        return Address(str(ipaddress.IPv6Address(packed)), port)
    return Address(".".join(map(str, host)), port)


def connection_info(term: Any) -> ConnectionInfo:
    """Read the proplist that `init` gets, or the map of a running connection. Raises `TermError`."""
    try:
        facts = dict(term)
        socktype = str(facts["socktype"])
        if socktype not in ("tcp", "ssl", "udp", "dtls"):
            raise TermError(f"there is no socket type {socktype!r}")
        peercert = facts.get("peercert", Atom("nossl"))
        certificate = None
        if isinstance(peercert, list) and peercert:
            names = dict(peercert)
            dn, cn = (names.get(key, UNDEFINED) for key in ("dn", "cn"))
            # Both undefined: the device was asked for a certificate, and has none.
            if not dn == cn == UNDEFINED:
                certificate = Certificate(
                    dn="" if dn == UNDEFINED else text(dn), cn="" if cn == UNDEFINED else text(cn)
                )
        return ConnectionInfo(
            cast("SockType", socktype),
            _address(facts["peername"]),
            _address(facts["sockname"]),
            certificate,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, TermError):
            raise
        raise TermError(f"this says nothing about a connection: {error!r}") from None


def readable(terms: object) -> tuple[list[Message], list[str]]:
    """Read a list of messages of the broker; return them, and what is wrong with those that can't be read.

    A plugin of the broker may publish what no MQTT client can.
    """
    if not isinstance(terms, list):
        return [], [f"this is no list of messages: {terms!r:.200}"]
    found, wrong = [], []
    for term in terms:
        try:
            found.append(_message(term))
        except TermError as error:  # noqa: PERF203 - each by itself
            wrong.append(str(error))
    return found, wrong


def _message(term: Any) -> Message:
    """Read one message. Raises `TermError`."""
    try:
        facts = dict(term)
        return Message(
            facts["topic"].decode(errors="replace"),
            _binary(facts["payload"]),
            (0, 1, 2).index(facts["qos"]),
            id=facts["id"].hex(),
            sender=text(facts["from"]),
            timestamp=facts["timestamp"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TermError(f"this is no message: {error!r} in {term!r:.200}") from None


def _binary(term: Any) -> bytes:
    """Return the bytes of an iolist."""
    if isinstance(term, bytes):
        return term
    if not isinstance(term, list):
        raise TypeError(f"{type(term).__name__} is no payload")
    return b"".join(bytes((item,)) if isinstance(item, int) else _binary(item) for item in term)


def reason(term: object) -> tuple[Reason, str]:
    """Return our reason for the broker's words about the end, and the words."""
    words = text(term)
    return reasons.reason(words), words


def client_map(client: ClientInfo) -> dict[Atom, Any]:
    """Return what `{register, Map}` wants. The mountpoint is the engine's, so the broker gets none."""
    return {
        # It becomes an atom over there, so it must never be a name per device.
        Atom("proto_name"): client.proto_name.encode(),
        Atom("proto_ver"): client.proto_ver.encode(),
        Atom("clientid"): client.clientid.encode(),
        Atom("username"): client.username.encode(),
        Atom("keepalive"): client.keepalive,
    }


def authentication(client: ClientInfo, password: str, info: ConnectionInfo) -> dict[Atom, Any]:
    """Return what `emqx_access_control:authenticate/1` wants."""
    return {**_who(client, info), Atom("password"): password.encode()}


def access(client: ClientInfo | None, info: ConnectionInfo) -> dict[Atom, Any]:
    """Return who asks, for `emqx_access_control:check_acl/3`."""
    checked = {Atom("auth_result"): Atom("success"), Atom("anonymous"): client is None}
    return {**_who(client, info), Atom("password"): UNDEFINED, **checked}


def _who(client: ClientInfo | None, info: ConnectionInfo) -> dict[Atom, Any]:
    """Return every key that the map of a connection of the broker's own has.

    A plugin that misses one crashes, and the broker goes on without it: its default is to allow.
    """
    names = {}
    if info.peercert is not None:
        names = {Atom("dn"): info.peercert.dn.encode(), Atom("cn"): info.peercert.cn.encode()}
    return {
        Atom("zone"): Atom("external"),
        Atom("protocol"): Atom((client.proto_name.lower() if client else "")[:255] or "exproto"),
        Atom("peerhost"): peerhost(info),
        Atom("sockport"): info.sockname.port,
        Atom("clientid"): (client.clientid if client else "").encode(),
        Atom("username"): (client.username if client else "").encode(),
        Atom("mountpoint"): UNDEFINED,
        Atom("is_bridge"): False,
        Atom("is_superuser"): False,
        **names,
    }


def peerhost(info: ConnectionInfo) -> tuple[int, ...]:
    """Return the device's address as Erlang has it."""
    address = ipaddress.ip_address(info.peername.host)
    if address.version == 4:
        return tuple(address.packed)
    return tuple(int.from_bytes(address.packed[at : at + 2], "big") for at in range(0, 16, 2))


def message_record(topic: str, payload: bytes, qos: int, sender: bytes | Atom) -> tuple[Any, ...]:
    """Return a `#message{}` of EMQX 4.2."""
    now = time.time_ns()
    guid = (now // 1_000).to_bytes(8, "big") + secrets.token_bytes(8)
    return (Atom("message"), guid, qos, sender, {}, {}, topic.encode(), payload, now // 1_000_000)


def topic(record: object) -> bytes:
    """Return the topic of a `#message{}`, empty if it is none."""
    if isinstance(record, tuple) and len(record) > 6 and record[0] == "message":
        return record[6] if isinstance(record[6], bytes) else b""
    return b""


def peer(info: ConnectionInfo) -> tuple[tuple[int, ...], int]:
    """Return the device's address and port as Erlang has them."""
    return peerhost(info), info.peername.port


def problem(answer: object) -> str:
    """Return why a function of the broker says that it failed, "" if it says nothing of the kind."""
    if isinstance(answer, tuple) and len(answer) == 2 and answer[0] in ("error", "badrpc"):
        return text(answer[1])
    return ""


def failure(error: object) -> str:
    """Return why a function of the broker crashed, and where, without its arguments: they may be secret."""
    match error:
        case ("erlang", _, reason, [(module, function, arity, *_), *_]):
            what = reason[0] if isinstance(reason, tuple) and reason else reason
            number = len(arity) if isinstance(arity, list) else arity
            return f"{what if isinstance(what, Atom) else 'error'} in {module}:{function}/{number}"
        case ("erlang", _, reason, _):
            what = reason[0] if isinstance(reason, tuple) and reason else reason
            return what if isinstance(what, Atom) else "error"
    return text(error)


def is_pid(term: object) -> bool:
    """Return whether *term* is a process."""
    return isinstance(term, Opaque) and term.is_pid
