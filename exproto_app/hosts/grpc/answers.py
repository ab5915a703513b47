"""What an adapter's answers mean."""

from __future__ import annotations

import re
from typing import Final

from ...errors import ClosedError, CommandError, DeniedError, UnavailableError, UnsupportedError
from . import exproto_pb2 as pb
from .client import NOT_FOUND, OK, UNAVAILABLE, UNIMPLEMENTED

__all__ = ["DUPLICATE", "MISSING", "Crashed", "Dead", "judge"]

MISSING: Final = {UNIMPLEMENTED, NOT_FOUND}
"""What an adapter answers that has no such method; EMQX's grpc-erl says NOT_FOUND."""

DUPLICATE: Final = "Duplicated authenticate command"
"""What EMQX says to a second Authenticate after one that succeeded."""

HUNG_UP: Final = "Client socket disconnected"
"""What EMQX says to Authenticate while it empties the queue of a device that has hung up."""

CRASHED: Final = "Unknown crashes"
"""What EMQX says when the connection's process died during the call, or took longer than 5 s."""


class Dead(ClosedError):  # noqa: N818 - named for the connection, as its parent is
    """The broker has no such connection."""


class Crashed(ClosedError):  # noqa: N818 - likewise
    """The broker's process of the connection died during the call, or hung; which of both is not known."""


def judge(name: str, status: int, answer: bytes, *, registered: bool = False) -> CommandError | None:
    """Return what an answer of the adapter means, None for success.

    *registered*: the device is a client of the broker's, or was before it hung up. `ClosedError` as such
    means that the device has gone, and that the broker empties its queue.
    """
    if status == OK and not answer:
        return None
    words = answer.decode(errors="replace")
    if status in MISSING:
        return UnsupportedError(f"this EMQX has no {name}: {words}")
    if status != OK:
        hint = "" if status == UNAVAILABLE else f" (status {status})"
        return UnavailableError(f"the adapter's {name} failed{hint}: {words}")
    try:
        response = pb.CodeResponse.FromString(answer)
    except Exception as wrong:  # noqa: BLE001 - protobuf's own error, whose place differs between versions
        return UnavailableError(f"the adapter's answer to {name} is no CodeResponse: {wrong}")
    return _meaning(name, response.code, _unquoted(response.message), registered=registered)


def _meaning(  # noqa: PLR0911 - one code after another
    name: str, code: int, message: str, *, registered: bool
) -> CommandError | None:
    if code == pb.SUCCESS:
        return None
    if code == pb.CONN_PROCESS_NOT_ALIVE:
        return Dead(f"the broker has no such connection any more: {message}")
    if code == pb.PERMISSION_DENY:
        if HUNG_UP in message:
            return ClosedError(f"the device hung up before the broker could judge its {name}")
        return DeniedError(f"the broker refuses {name}: {message or 'not allowed'}")
    if code == pb.UNKNOWN and CRASHED in message and (registered or name == "Authenticate"):
        return Crashed(f"the broker's process of the connection ended during {name}")
    if code == pb.UNKNOWN and "unexpected_call" in message and registered:
        return ClosedError(f"the device hung up before the broker took its {name}")
    if "unexpected_call" in message:
        return CommandError(f"the broker takes no {name} before register has succeeded")
    word = pb.ResultCode.Name(code) if code in pb.ResultCode.values() else str(code)
    return CommandError(f"the broker's {name} failed: {word} {message}".rstrip())


def _unquoted(message: str) -> str:
    """Return the text of an Erlang binary that was printed."""
    found = re.fullmatch(r'<<"(.*)">>', message, re.DOTALL)
    return found[1] if found else message
