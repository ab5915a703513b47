"""What others can use of an app: a dissector for Wireshark, and its topics as AsyncAPI."""

from __future__ import annotations

from .asyncapi import Seen, asyncapi
from .wireshark import dissector, protocol_name

__all__ = ["Seen", "asyncapi", "dissector", "protocol_name"]
