"""What is posted to the inspector is read in time linear in it, if it is no more than a few fields."""

from __future__ import annotations

import contextlib

import pytest
from aiohttp.test_utils import make_mocked_request

from exproto_app.inspector.answers import SMALL, bytes_of, json_body

from ..test_linear import in_proportion, steps

REQUEST = make_mocked_request("POST", "/", headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("unit", ["\\n", "\\x00", "\\\\", "a", "\\n\\x41b"])
def test_text_is_read_in_proportion(unit: str) -> None:
    assert in_proportion(lambda size: steps(lambda: bytes_of({"text": unit * size})))


def test_escapes_are_what_they_stand_for() -> None:
    assert bytes_of({"text": r"a\n\r\t\0\x7f\\é"}) == b"a\n\r\t\0\x7f\\\xc3\xa9"


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": [' + b"0," * SMALL + b"0]}",
        b'{"text": ' + b"[" * (SMALL + 1) + b"}",
        b"{" + b'"a": 1, ' * 100 + b'"b": 1}',
        b"[" * 100_000,
        b'"' * 1_000,
        b'"\\"' * 1_000,
    ],
)
def test_what_is_more_than_a_few_texts_is_refused_unread(body: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_body(REQUEST, body)


def test_texts_may_be_of_any_length_and_hold_anything() -> None:
    text = '\\" [[[[ ,,,, {{{{ \\\\' * SMALL
    assert len(json_body(REQUEST, f'{{"topic": "t", "text": "{text}"}}'.encode())["text"]) > SMALL


@pytest.mark.parametrize("unit", [b'{"', b"[", b'\\"', b"\\", b'""'])
def test_a_body_is_read_in_proportion(unit: bytes) -> None:
    def cost(size: int) -> int:
        def read() -> None:
            with contextlib.suppress(ValueError):
                json_body(REQUEST, (unit * size)[:size])

        return steps(read)

    assert in_proportion(cost)
