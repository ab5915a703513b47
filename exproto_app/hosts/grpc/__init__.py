"""The gRPC service that the ExProto gateway of EMQX 4.3 to 6.2 calls."""

from .broker import AdapterMap
from .service import Service
from .tls import Tls

__all__ = ["AdapterMap", "Service", "Tls"]
