"""The MQTT server that lets MQTT clients into the embedded hub."""

from .bounds import Bounds
from .server import MqttServer

__all__ = ["Bounds", "MqttServer"]
