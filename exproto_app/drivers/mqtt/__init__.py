"""The MQTT uplink: any MQTT 5 broker as the gateway's hub, each device a client of it in its own right."""

from ...errors import SetupError

try:
    import mqtt5  # noqa: F401 - whether it is there
except ImportError:
    import sys

    if sys.version_info < (3, 11):
        raise SetupError("an MQTT broker as the hub needs Python 3.11 or newer") from None
    raise SetupError("an MQTT broker as the hub needs: pip install 'exproto-app[mqtt]'") from None

from .uplink import MqttHub, Options, WhenFull
from .url import Url

__all__ = ["MqttHub", "Options", "Url", "WhenFull"]
