"""`exproto-app doctor`: what is wrong with a set-up, each thing in a line.

`--json` prints `{"ok": …, "findings": [{"check", "outcome", "text", "remedy", "seconds"}, …]}`: `check` is a
stable name such as `broker.login`, `outcome` is `ok`, `failed` or `skipped`.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..errors import SetupError
from ..hosts.gateway import Listen
from ..hosts.gateway.listeners import DEFAULT_LISTEN
from ..hosts.gateway.targets import read_targets
from ..names import to_json
from .checks import CHECKS, EmqxGateway, Finding, Setup, Uplink
from .checks.setup import in_container
from .dialled import dial_target_options, take_targets
from .emqx_ports import protocol_option
from .numbers import POSITIVE
from .observe import parse_address
from .secrets import key_password_option, with_password
from .tls import TLS, tls_options

__all__ = ["command"]


@click.command()
@click.argument("target")
@click.option(
    "--listen",
    "listens",
    multiple=True,
    metavar="[PROTOCOL=]URL",
    help=f"As for run. Default: {DEFAULT_LISTEN}, unless --serve, --driver or --dial is given.",
)
@dial_target_options
@click.option("--cert", metavar="FILE", help="Certificate (chain) of tls listeners, or of --serve, PEM.")
@click.option("--key", metavar="FILE", help="Its key.")
@key_password_option
@click.option("--client-ca", metavar="FILE", help="The CA of devices, or of EMQX.")
@tls_options
@click.option("--mqtt", metavar="URL", envvar="EXPROTO_MQTT", show_envvar=True, help="Check this broker.")
@click.option("--mqtt-password-file", metavar="FILE", help="As for run.")
@click.option("--mqtt-ca", metavar="FILE", help="As for run.")
@click.option("--mqtt-cert", metavar="FILE", help="As for run.")
@click.option("--mqtt-key", metavar="FILE", help="As for run.")
@click.option("--mqtt-version", type=click.Choice(["auto", "5", "3.1.1"]), help="As for run.")
@click.option(
    "--mqtt-topic",
    metavar="TOPIC",
    help="Topic of the round trip. Default: exproto-app/doctor/ and a random name.",
)
@click.option("--serve", is_flag=True, help="Check EMQX 4.3 to 6.2: its adapter, and whether it calls.")
@click.option("--bind", metavar="HOST:PORT", help="As for serve. Default: 127.0.0.1:9001.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="WHERE",
    help="As for serve, repeatable. Default: http://127.0.0.1:9100.",
)
@protocol_option
@click.option(
    "--device",
    metavar="HOST:PORT",
    help="A TCP listener of EMQX's gateway: the doctor connects to it as a device would, so that EMQX calls.",
)
@click.option(
    "--driver",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Check what gen-driver wrote there for EMQX 4.2.",
)
@click.option("--python", metavar="PATH", help="With --driver: the python3 that the broker will find.")
@click.option(
    "--conf", metavar="FILE", type=click.Path(path_type=Path), help="With --driver: EMQX's emqx_exproto.conf."
)
@click.option(
    "--wait",
    type=POSITIVE,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds to wait for each answer, and for EMQX's call.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
def command(target: str, *, wait: float, as_json: bool, **given: Any) -> None:
    """Check the set-up that TARGET will run in, and say how to fix what is wrong.

    Give it what you would give to run, serve or gen-driver. It imports TARGET but runs none of its handlers;
    what it publishes goes to a topic of its own. Exit code 1: something is wrong, 2: wrong usage.
    """
    logging.basicConfig(level=logging.CRITICAL)  # what matters of it is told in the lines
    targets, file = take_targets(given)
    targets += read_targets(file) if file else ()
    setup = Setup(
        target=target,
        wait=wait,
        targets=tuple(targets),
        listens=_listens(given, dials=bool(targets)),
        uplink=_uplink(given),
        gateway=_gateway(given),
        driver=given["driver"],
        python=given["python"],
        conf=given["conf"],
        container=in_container(),
    )
    findings = []
    for finding in _findings(setup):
        findings.append(finding)
        if not as_json:
            click.echo(finding)
    well = not any(finding.outcome == "failed" for finding in findings)
    if as_json:
        facts = {"ok": well, "findings": [finding.facts() for finding in findings]}
        click.echo(to_json(facts, indent=2))
    sys.exit(0 if well else 1)


def _findings(setup: Setup) -> Iterator[Finding]:
    for check in CHECKS:
        yield from check(setup)


def _listens(given: dict[str, Any], *, dials: bool) -> tuple[Listen, ...]:
    texts = given["listens"]
    if not texts:
        texts = () if given["serve"] or given["driver"] or dials else (DEFAULT_LISTEN,)
    files = {} if given["serve"] else {name: given[name] for name in ("cert", "key", "client_ca", *TLS)}
    return tuple(Listen.parse(text, **files) for text in texts)


def _uplink(given: dict[str, Any]) -> Uplink | None:
    if given["mqtt"] is None:
        for name in ("password_file", "ca", "cert", "key", "version", "topic"):
            if given[f"mqtt_{name}"]:
                raise click.UsageError(f"--mqtt-{name.replace('_', '-')} needs --mqtt URL.")
        return None
    topic = given["mqtt_topic"] or f"exproto-app/doctor/{secrets.token_hex(6)}"
    url = with_password(given["mqtt"], given["mqtt_password_file"])
    files = (given["mqtt_ca"], given["mqtt_cert"], given["mqtt_key"])
    return Uplink(url or "", topic, *files, given["mqtt_version"] or "auto")


def _gateway(given: dict[str, Any]) -> EmqxGateway | None:
    if not given["serve"]:
        for name in ("bind", "adapters", "protocols", "device"):
            if given[name]:
                option = name.removesuffix("s")
                raise click.UsageError(f"--{option} needs --serve.")
        return None
    device = parse_address(given["device"], "--device", "127.0.0.1:7993") if given["device"] else None
    bind = parse_address(given["bind"] or "127.0.0.1:9001", "--bind", "127.0.0.1:9001")
    adapters = given["adapters"] or ("http://127.0.0.1:9100",)
    return EmqxGateway(bind, adapters, given["protocols"], _tls(given), device)


def _tls(given: dict[str, Any]) -> Any:
    """Return the files of the service's TLS, None without."""
    if given["cert"] is None:
        if given["key"] or given["client_ca"]:
            raise SetupError("--key and --client-ca need --cert")
        return None
    try:
        from ..hosts.grpc import Tls  # noqa: PLC0415 - protobuf is an extra
    except ImportError:
        return None  # the check of extras tells
    return Tls(given["cert"], given["key"], given["client_ca"])
