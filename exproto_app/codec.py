"""Codecs: what makes messages of frames, and frames of messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs

from .errors import SetupError

__all__ = ["AnyCodec", "Codec", "Functions", "functions_of", "giving_bytes"]

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
    """Return what *codec* consists of; raises `SetupError` if it isn't a codec."""
    if isinstance(codec, tuple) and len(codec) == 2:
        parse, build = codec
    else:
        parse, build = getattr(codec, "parse", None), getattr(codec, "build", codec)
    if not callable(parse) or not (build is None or callable(build)):
        raise SetupError(
            f"{where}: codec={codec!r} is not a codec; give an object with parse and build, or two "
            "functions: (parse, build), or (parse, None) to send bytes"
        )
    return Functions(parse, build if build is None else giving_bytes(build, codec, "built"))


def giving_bytes(call: Callable[[Any], object], owner: object, did: str) -> Callable[[Any], bytes]:
    """Return *call*, checked for its result: the user's *owner* *did* a frame."""

    def checked(item: Any) -> bytes:
        data = call(item)
        if type(data) is not bytes:
            raise TypeError(f"{owner!r} {did} a frame as {type(data).__name__}, not bytes")
        return data

    return checked
