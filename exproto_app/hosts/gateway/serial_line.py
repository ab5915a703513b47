"""How a serial line is set up, as its URL says. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from ...errors import SetupError

if TYPE_CHECKING:
    from .listeners import Url

__all__ = ["OPTIONS", "SerialLine", "seconds_of"]

Parity: TypeAlias = Literal["N", "E", "O", "M", "S"]

OPTIONS: Final = frozenset({"baud", "bits", "gap", "name", "parity", "rs485", "rtscts", "stop", "xonxoff"})

STOPS: Final = {"1": 1.0, "1.5": 1.5, "2": 2.0}
FASTEST: Final = 20_000_000

SECONDS: Final = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s)?")


@attrs.frozen(kw_only=True)
class SerialLine:
    """Speed and form of what is on the wire, and *gap*: seconds of silence that end what is read at once.

    *rs485*: have the driver switch the direction; *rtscts* and *xonxoff* are flow controls.
    """

    baud: int = 9600
    bits: int = 8
    parity: str = "N"
    stop: float = 1.0
    gap: float | None = None
    rs485: bool = False
    rtscts: bool = False
    xonxoff: bool = False

    def __str__(self) -> str:
        return f"{self.baud} {self.bits}{self.parity}{self.stop:g}"

    @classmethod
    def read(cls, url: Url) -> SerialLine:
        """Read the options of *url*. Raises `SetupError`."""
        baud = url.count("baud") or 9600
        if baud > FASTEST:
            raise SetupError(f"{url.what} {url.text!r}: baud is {baud}; {FASTEST} is the limit")
        return cls(
            baud=baud,
            bits=int(_one_of(url, "bits", ("5", "6", "7", "8"), "8")),
            parity=_one_of(url, "parity", ("N", "E", "O", "M", "S"), "N"),
            stop=STOPS[_one_of(url, "stop", tuple(STOPS), "1")],
            gap=seconds_of(url, "gap"),
            rs485=url.flag("rs485", default=False),
            rtscts=url.flag("rtscts", default=False),
            xonxoff=url.flag("xonxoff", default=False),
        )


def _one_of(url: Url, name: str, known: tuple[str, ...], default: str) -> str:
    value = url.options.get(name, default).upper()
    if value not in known:
        words = f"{name} is {url.options[name]!r}; it must be one of {', '.join(known)}"
        raise SetupError(f"{url.what} {url.text!r}: {words}")
    return value


def seconds_of(url: Url, name: str) -> float | None:
    """Return the option *name*, a time such as 4ms or 1.5s. Raises `SetupError`."""
    text = url.options.get(name)
    if text is None:
        return None
    match = SECONDS.fullmatch(text)
    seconds = float(match[1]) / (1_000 if match[2] == "ms" else 1) if match else 0.0
    if not seconds:
        words = f"{name} is {text!r}; it must be a time such as 4ms or 1.5s"
        raise SetupError(f"{url.what} {url.text!r}: {words}")
    return seconds
