"""The options of `exproto-app run` that make an MQTT broker the hub, and give it a store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from ..core import Hub
from ..errors import SetupError
from ..hub import Login, MemoryHub
from ..store import Lock, lock_folder
from .numbers import POSITIVE
from .secrets import MQTT_PASSWORD, with_password

__all__ = ["hold_store", "make_hub", "take_uplink_options", "uplink_options"]

log = logging.getLogger("exproto_app")

OPTIONS: Final = (
    click.option(
        "--mqtt",
        metavar="URL",
        envvar="EXPROTO_MQTT",
        show_envvar=True,
        help="Use an MQTT broker as the hub: mqtt://USER:PASSWORD@HOST:1883 or mqtts://…; the user is the "
        "gateway's own. Several nodes: mqtt://USER:PASSWORD@ONE:1883,TWO:1883; one is used at a time.",
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
    click.option(
        "--mqtt-version",
        type=click.Choice(["auto", "5", "3.1.1"]),
        help="auto: MQTT 5, or 3.1.1 where the broker doesn't speak 5 (default); the log says what is lost "
        "with 3.1.1.",
    ),
    click.option("--mqtt-required", is_flag=True, help="Exit at the start if the broker can't be used."),
    click.option(
        "--mqtt-timeout",
        type=POSITIVE,
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
        "--mqtt-connects-per-second",
        type=POSITIVE,
        metavar="N",
        help="Devices and children that may connect to the broker in a second, also those that come back "
        "after an outage (default: 1000).",
    ),
    click.option(
        "--store",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Keep messages of QoS 1 and 2 in this folder while the broker is away: they count as published "
        "once they are on the disk, and are sent in order, also after a crash. See the store command.",
    ),
    click.option(
        "--store-when",
        type=click.Choice(["away", "always"]),
        help="away: while the broker is away (default). always: a message counts as published once it is "
        "on the disk.",
    ),
    click.option(
        "--store-bytes",
        type=click.IntRange(65_536),
        metavar="BYTES",
        help="Bytes of messages that may wait there, per worker (default: 268435456).",
    ),
    click.option(
        "--store-when-full",
        type=click.Choice(["wait", "drop-oldest"]),
        help="Then: store nothing more, as without a store (default), or drop the oldest.",
    ),
    click.option(
        "--mqtt-ca", metavar="FILE", help="The CA of an mqtts broker, PEM; the system's by default."
    ),
    click.option("--mqtt-cert", metavar="FILE", help="Certificate (chain) for the broker, PEM."),
    click.option("--mqtt-key", metavar="FILE", help="Its key, PEM; may be in the same file."),
)


def uplink_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options `--mqtt…` and `--store…`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def take_uplink_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take those of `make_hub` out of *options*."""
    names = [name for name in options if name.startswith(("mqtt_", "store"))]
    return {name: options.pop(name) for name in names}


def hold_store(url: str | None, folder: Path | None, *, shared: bool) -> Lock | None:
    """Lock the store's *folder* for this gateway, as long as what is returned lives.

    *shared*: several processes will have parts of it. Raises `SetupError` if another gateway has it.
    """
    if folder is None:
        return None
    if url is None:
        raise click.UsageError("--store needs --mqtt URL: the embedded hub is never away.")
    return lock_folder(folder, shared=shared)


def make_hub(url: str | None, login: Login | None, options: dict[str, Any]) -> Hub:
    """Return the hub that the options ask for; without *url* it is the embedded one.

    *options* are those of `take_uplink_options`, None or False where not given. Raises `ExprotoError`, and
    `click.UsageError` for options that contradict each other.
    """
    given = {name.removeprefix("mqtt_"): value for name, value in options.items() if value}
    if url is None:
        if given:
            option = next(name for name, value in options.items() if value).replace("_", "-")
            raise click.UsageError(f"--{option} needs --mqtt URL.")
        return MemoryHub(login)
    extra = next((name for name in given if name.startswith("store_")), None)
    if extra and not given.get("store"):
        raise click.UsageError(f"--{extra.replace('_', '-')} needs --store DIR.")
    url = with_password(url, given.get("password_file")) or url
    mode = given.pop("mode", "device")
    if login is not None and mode == "device":
        raise click.UsageError(
            "--users and --mqtt: the broker itself decides who may register; leave --users out, or use "
            "--mqtt-mode shared."
        )
    if login is None and mode == "shared":
        log.warning("gateway ! --mqtt-mode shared without --users FILE: any password is accepted")
    from ..hosts.mqtt import MqttHub, Options, Trust, Url  # noqa: PLC0415 - an extra, imported where it is used

    try:
        trust = Trust(**{name: given.pop(name, None) for name in ("ca", "cert", "key")})
        return MqttHub(Url.parse(url), Options(shared=mode == "shared", **given), trust=trust, login=login)
    except SetupError as error:
        raise click.UsageError(f"{error}.") from None
