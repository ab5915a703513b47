"""What transparent modems publish and hear, as the URL of their listener says. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from ...errors import SetupError
from ...topics import check_topic
from .serial_line import seconds_of

if TYPE_CHECKING:
    from .listeners import Url

__all__ = ["ID", "OPTIONS", "ModemLine", "Template"]

ID: Final = "{id}"

OPTIONS: Final = frozenset(
    {"client-id", "down", "idle", "max-connections", "max-message", "offline", "qos", "will"}
)

LONGEST: Final = 256
"""Characters of an id."""


@attrs.frozen
class Template:
    """A topic with a level for the modem's id: `dtu/{id}/up`."""

    text: str

    @property
    def filter(self) -> str:
        """The filter for the topics of all modems."""
        return self.text.replace(ID, "+")

    def of(self, modem: str) -> str:
        """Return the topic of one modem."""
        return self.text.replace(ID, modem)

    def find(self, topic: str) -> str:
        """Return the modem whose topic this is; empty if it isn't such a topic, or the id is invalid."""
        levels, known = topic.split("/"), self.text.split("/")
        if len(levels) != len(known):
            return ""
        modem = levels[known.index(ID)]
        return modem if self.of(modem) == topic and 0 < len(modem) <= LONGEST else ""


@attrs.frozen(kw_only=True)
class ModemLine:
    """The topics *up*, *down* and *status* of each modem, and what bounds it.

    *broker* is its URL, None for the uplink's. *idle*: seconds of silence that end a connection; what is
    published to *status* begins one, or, where it is *offline*, ends it. *max_message* is in bytes.
    """

    broker: str | None = attrs.field(default=None, repr=False)  # it may have a password
    up: Template
    down: Template
    status: Template | None = None
    offline: bytes = b"offline"
    qos: int = 1
    idle: float = 600.0
    max_message: int = 65_536
    client_id: str = ""

    @classmethod
    def read(cls, url: Url) -> ModemLine:
        """Read *url*. Raises `SetupError`."""
        scheme = "mqtts" if url.scheme.tls else "mqtt"
        qos = url.options.get("qos", "1")
        if qos not in ("0", "1", "2"):
            raise SetupError(f"{url.what} {url.text!r}: qos is {qos!r}; it must be 0, 1 or 2")
        down = _template(url, "down", url.options.get("down", ""))
        status = url.options.get("will")
        return cls(
            broker=f"{scheme}://{url.parts.netloc}" if url.parts.netloc else None,
            up=_template(url, "its path", url.path.removeprefix("/")),
            down=down,
            status=None if status is None else _template(url, "will", status),
            offline=url.options.get("offline", "offline").encode(),
            qos=int(qos),
            idle=seconds_of(url, "idle") or 600.0,
            max_message=min(url.count("max-message") or 65_536, 1_048_576),
            client_id=url.options.get("client-id", ""),
        )


def _template(url: Url, name: str, text: str) -> Template:
    if text.split("/").count(ID) != 1 or text.count(ID) != 1:
        given = repr(text) if text else "missing"
        words = f"{name} is {given}; it must be a topic with {ID} for one of its levels"
        example = "mqtt-bytes://broker/dtu/{id}/up?down=dtu/{id}/down"
        raise SetupError(f"{url.what} {url.text!r}: {words}, as in {example}")
    try:
        check_topic(text.replace(ID, "1"))
    except ValueError as error:
        raise SetupError(f"{url.what} {url.text!r}: {name}: {error}") from None
    return Template(text)
