"""The options of `exproto-app run` that make an MQTT broker the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import click

from ..core import Hub
from ..errors import SetupError
from ..hub import Login, MemoryHub
from .secrets import MQTT_PASSWORD, with_password

__all__ = ["make_hub", "uplink_options"]

log = logging.getLogger("exproto_app")

OPTIONS: Final = (
    click.option(
        "--mqtt",
        metavar="URL",
        envvar="EXPROTO_MQTT",
        show_envvar=True,
        help="Use an MQTT 5 broker as the hub: mqtt://USER:PASSWORD@HOST:1883 or mqtts://…; the user is the "
        "gateway's own.",
    ),
    click.option(
        "--mqtt-password-file",
        metavar="FILE",
        help=f"The password of the URL's user, in the file's first line; or set {MQTT_PASSWORD}.",
    ),
    click.option(
        "--mqtt-mode",
        type=click.Choice(["device", "shared"]),
        help="device: each registered device is a client of the broker in its own right, as whom the broker "
        "authenticates and authorises it (default). shared: all use the gateway's own client; the broker "
        "sees no devices, one slow device holds up the messages of all, and a message counts as delivered "
        "before its handler has run. --users FILE says who may register; without it any password "
        "is accepted.",
    ),
    click.option(
        "--mqtt-client-id", metavar="ID", help="Clientid of the gateway's own client; random by default."
    ),
    click.option("--mqtt-required", is_flag=True, help="Exit at the start if the broker can't be used."),
    click.option(
        "--mqtt-timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="How long an answer of the broker may take (default: 10).",
    ),
    click.option(
        "--mqtt-queue",
        type=click.IntRange(1),
        metavar="N",
        help="Messages of a device that may wait while the broker is away or slow (default: 256).",
    ),
    click.option(
        "--mqtt-queue-bytes",
        type=click.IntRange(1),
        metavar="BYTES",
        help="Bytes of such messages (default: 65536).",
    ),
    click.option(
        "--mqtt-when-full",
        type=click.Choice(["wait", "drop-oldest", "disconnect"]),
        help="Then: stop reading from the device (default), drop its oldest message, or disconnect it.",
    ),
    click.option(
        "--mqtt-ca", metavar="FILE", help="The CA of an mqtts broker, PEM; the system's by default."
    ),
    click.option("--mqtt-cert", metavar="FILE", help="Certificate (chain) for the broker, PEM."),
    click.option("--mqtt-key", metavar="FILE", help="Its key, PEM; may be in the same file."),
)


def uplink_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options `--mqtt…`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def make_hub(url: str | None, login: Login | None, options: dict[str, Any]) -> Hub:
    """Return the hub that the options ask for; without *url* it is the embedded one.

    *options* are those that begin with `mqtt_`, None or False where not given. Raises `ExprotoError`, and
    `click.UsageError` for options that contradict each other.
    """
    given = {name.removeprefix("mqtt_"): value for name, value in options.items() if value}
    if url is None:
        if given:
            option = next(iter(given)).replace("_", "-")
            raise click.UsageError(f"--mqtt-{option} needs --mqtt URL.")
        return MemoryHub(login)
    url = with_password(url, given.pop("password_file", None)) or url
    mode = given.pop("mode", "device")
    if login is not None and mode == "device":
        raise click.UsageError(
            "--users and --mqtt: the broker itself decides who may register; leave --users out, or use "
            "--mqtt-mode shared."
        )
    if login is None and mode == "shared":
        log.warning("gateway ! --mqtt-mode shared without --users FILE: any password is accepted")
    from ..hosts.mqtt import MqttHub, Options, Url  # noqa: PLC0415 - an extra, imported where it is used

    try:
        parsed = Url.parse(url)
        context = parsed.context(given.pop("ca", None), given.pop("cert", None), given.pop("key", None))
    except SetupError as error:
        raise click.UsageError(f"{error}.") from None
    return MqttHub(parsed, Options(shared=mode == "shared", **given), context=context, login=login)
