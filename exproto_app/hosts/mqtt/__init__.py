"""The MQTT uplink: any MQTT broker as the gateway's hub, each device a client of it in its own right.

The gateway's own client publishes for `app.publish`, for connections that haven't registered, and in
`on_terminated` of one whose session the broker has ended; subscriptions of connections that haven't
registered are its too. A device's `keepalive` is ours to watch; towards the broker the gateway pings.

When the broker is away, what connections say waits in queues (`Options`); a turn that runs may add as much
again three times, then its messages are refused. One connection asks for it every 1.5 seconds at most; when
it is let in, the others follow, more and more at a time. The log tells an
outage once, `app.stats` counts `publishes_dropped` and `sessions_interrupted`. Then sessions are gone on
with or built up anew, and everything is sent in order. What a device said before it left is sent too
(10,000 messages in all), by its own session where it has come back. A message of QoS 1 or 2 whose
acknowledgement was lost with the broker's session is sent again, QoS 2 too: at least once. A message that
the broker ends the connection for is found out (one at a time) and given up with `DeniedError`.
"""

from ...errors import ExprotoError

try:
    import mqtt5  # noqa: F401 - whether it is there
except ImportError:
    import sys

    if sys.version_info < (3, 11):
        raise ExprotoError("an MQTT broker as the hub needs Python 3.11 or newer") from None
    raise ExprotoError("an MQTT broker as the hub needs: pip install 'exproto-app[mqtt]'") from None

from .uplink import MqttHub, Options, WhenFull
from .url import Trust, Url

__all__ = ["MqttHub", "Options", "Trust", "Url", "WhenFull"]
