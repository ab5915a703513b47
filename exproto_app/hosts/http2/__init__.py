"""HTTP/2 (RFC 9113) as far as gRPC needs it, as a server and as a client.

`connection` is the protocol without I/O, made of `frames`, `header_blocks` and the windows of `flow_control`;
`budget` bounds what is held for peers. `transport` drives a connection on asyncio, and `scheduler` gives each
its share of the event loop; they are imported where they are used.
"""

from .budget import Budget
from .connection import Connection
from .endpoint import Endpoint
from .frames import ProtocolError, pack_frame
from .header_blocks import Fields

__all__ = ["Budget", "Connection", "Endpoint", "Fields", "ProtocolError", "pack_frame"]
