"""A dissector for Wireshark: an app's framing, and the handlers that frames go to, in Lua."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from ..router import Router
from .framings import expression, literal

__all__ = ["dissector", "protocol_name"]

PROBE: Final = bytes(range(64)), bytes(range(100, 164))
"""Frames that a `key=` is called with, to see which bytes it takes."""

MAIN: Final = r"""
-- The protocol.

local proto = Proto("%(abbreviation)s", %(title)s)
local wire = ProtoField.bytes("%(abbreviation)s.wire", "Bytes")
local shown = ProtoField.string("%(abbreviation)s.frame", "Frame")
local handler = ProtoField.string("%(abbreviation)s.handler", "Handler")
local bad = ProtoField.string("%(abbreviation)s.bad", "Bad")
proto.fields = {wire, shown, handler, bad}

local frames = %(framing)s
local replies = %(reply_framing)s
local ports = {%(ports)s}
local handlers = {%(handlers)s}

local function hex(data)
  return (data:gsub(".", function(sign) return string.format("%%02x", sign:byte()) end))
end

local function handler_of(frame)
%(key)s
  return %(rest)s
end

function proto.dissector(tvb, pinfo, tree)
  local data, at = tvb:raw(), 1
  local sent = false
  for _, port in ipairs(ports) do sent = sent or pinfo.src_port == port end
  local framing = sent and replies or frames
  local stream = pinfo.can_desegment > 0
  pinfo.cols.protocol = proto.name
  while at <= #data do
    local kind, behind, frame = framing(data, at, not stream)
    if kind == "wait" and stream then
      pinfo.desegment_offset = at - 1
      pinfo.desegment_len = DESEGMENT_ONE_MORE_SEGMENT
      return
    end
    if not behind then behind = #data + 1 end
    local range = tvb:range(at - 1, behind - at)
    if kind == "frame" then
      local branch = tree:add(proto, range)
      branch:add(wire, range)
      branch:add(shown, range, hex(frame))
      local name = not sent and handler_of(frame)
      if name then
        branch:add(handler, range, name)
        branch:append_text(", " .. name)
        pinfo.cols.info = name
      end
    elseif kind ~= "fill" then
      local why = kind == "bad" and "wrong checksum" or "no frame"
      tree:add(proto, range):add(bad, range, why)
    end
    at = behind
  end
end

for _, port in ipairs(ports) do
  DissectorTable.get("tcp.port"):add(port, proto)
  DissectorTable.get("udp.port"):add(port, proto)
end
"""


def protocol_name(router: Router[Any, Any]) -> str:
    """Return the name of the dissector of *router*, as filters have it."""
    return "dev_" + re.sub(r"[^a-z0-9_]", "_", router.name.lower())


def dissector(router: Router[Any, Any], ports: Sequence[int]) -> str:
    """Return the dissector of *router*'s protocol on *ports*, in Lua.

    Raises `SetupError` for a framing that can't be said in Lua, such as a user's generator.
    """
    library = (files(__package__) / "dissector.lua").read_text(encoding="utf-8")
    framing = expression(router.framing)
    reply = framing if router.reply_framing is router.framing else expression(router.reply_framing)
    rest = router.routes.rest
    parts = {
        "abbreviation": protocol_name(router),
        "title": _text(f"{router.name}, by exproto-app"),
        "framing": framing,
        "reply_framing": reply,
        "ports": ", ".join(map(str, ports)),
        "handlers": ", ".join(f"[{literal(key)}] = {_text(name)}" for key, name in _handlers(router).items()),
        "key": _key(router),
        "rest": "nil" if rest is None else _text(rest.name),
    }
    head = f"-- By exproto-app export wireshark. Its place is Wireshark's folder of Lua plugins.\n\n{library}"
    return head + MAIN % parts


def _text(text: str) -> str:
    return literal(text.encode())


def _handlers(router: Router[Any, Any]) -> dict[bytes, str]:
    """Return the names of the handlers whose keys are bytes."""
    return {key: handler.name for key, handler in router.routes.keyed.items() if isinstance(key, bytes)}


def _key(router: Router[Any, Any]) -> str:
    """Return the lines that look a frame's handler up by its first bytes, or where the `key=` looks."""
    if router.key is None:
        sizes = sorted({len(key) for key in _handlers(router)}, reverse=True)
        lines = [
            f"  if handlers[frame:sub(1, {size})] then return handlers[frame:sub(1, {size})] end"
            for size in sizes
        ]
        return "\n".join(lines)
    place = _slice(router.key) if router.codec is None else None
    if place is None:
        return "  -- The key= is a function that can't be written in Lua."
    begin, end = place
    piece = f"handlers[frame:sub({begin + 1}, {end})]"
    return f"  if {piece} then return {piece} end"


def _slice(key: Any) -> tuple[int, int] | None:
    """Return the place of the bytes that *key* returns of any frame; None where it does anything else."""
    places = []
    for probe in PROBE:
        try:
            value = key(probe)
        except Exception:  # noqa: BLE001 - a user's function may raise anything
            return None
        if not isinstance(value, bytes) or not value or probe.find(value) < 0:
            return None
        places.append((probe.find(value), probe.find(value) + len(value)))
    return places[0] if places[0] == places[1] else None
