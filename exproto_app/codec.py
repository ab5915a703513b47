"""Codecs: what makes messages of frames, and frames of messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs

from .errors import SetupError

__all__ = ["AnyCodec", "Codec", "Functions", "functions_of"]

M = TypeVar("M")


class Codec(Protocol[M]):
    """Any object with `parse` and `build`, such as a struct of construct."""

    def parse(self, data: bytes, /) -> M:
        """Return the message that a frame holds; whatever it raises, the frame is bad."""
        ...

    def build(self, message: M, /) -> bytes:
        """Return the frame for *message*."""
        ...


AnyCodec: TypeAlias = Codec[M] | tuple[Callable[[bytes], M], "Callable[[M], bytes] | None"]
"""A codec, or its two functions; without the second one, what is sent stays bytes."""


@attrs.frozen
class Functions:
    """The two functions of a codec."""

    parse: Callable[[bytes], Any]
    build: Callable[[Any], bytes] | None


def functions_of(codec: object, where: str) -> Functions:
    """Return what *codec* consists of; raises `SetupError` if it is none."""
    if isinstance(codec, tuple) and len(codec) == 2:
        parse, build = codec
    else:
        parse, build = getattr(codec, "parse", None), getattr(codec, "build", codec)
    if not callable(parse) or not (build is None or callable(build)):
        raise SetupError(
            f"{where}: codec={codec!r} is none; give an object with parse and build, or two functions: "
            "(parse, build), or (parse, None) to send bytes"
        )
    return Functions(parse, build if build is None else _checked(build, codec))


def _checked(build: Callable[[Any], object], codec: object) -> Callable[[Any], bytes]:
    def checked(message: Any) -> bytes:
        frame = build(message)
        if type(frame) is not bytes:
            raise TypeError(f"{codec!r} built a frame as {type(frame).__name__}, not bytes")
        return frame

    return checked
