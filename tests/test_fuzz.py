"""Hostile structure for what reads from outside: only the errors that are documented come out."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app.errors import SetupError
from exproto_app.hosts.gateway.users import Users, hash_password

from .test_linear import in_proportion, steps

KINDS = st.integers(0, 255)
ids = st.sampled_from([b"\0\0", b"\0\1", b"\0\2", b"\xff\xff"])
strings = st.binary(max_size=6).map(lambda text: len(text).to_bytes(2, "big") + text)
lies = st.binary(max_size=6).map(lambda text: (len(text) + 3).to_bytes(2, "big") + text)
properties = st.lists(st.tuples(st.integers(0, 50), st.binary(max_size=5)), max_size=3).map(
    lambda each: b"".join(bytes((name,)) + value for name, value in each)
)
sized = properties.map(lambda data: bytes((len(data),)) + data)
bodies = st.lists(st.one_of(ids, strings, lies, sized, st.binary(max_size=8)), max_size=5).map(b"".join)
lengths = st.sampled_from([None, b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0", b"\0"])
packets = st.builds(
    lambda kind, body, length: bytes((kind,)) + (length or bytes((len(body) & 0x7F,))) + body,
    KINDS,
    bodies,
    lengths,
)


@given(broker=st.lists(packets, max_size=12), accepted=st.booleans(), cut=st.integers(1, 40))
def test_a_broker_may_say_anything_to_a_client(broker: list[bytes], accepted: bool, cut: int) -> None:
    """It is a `ProtocolError` at worst, and the session can dial again."""
    pytest.importorskip("mqtt5", reason="the uplink needs Python 3.11 and mqtt5")
    from exproto_app.hosts.mqtt.session import ProtocolError  # noqa: PLC0415 - an extra

    from .mqtt.peer import Peer  # noqa: PLC0415 - it needs the extra

    peer = Peer()
    if accepted:
        peer.up()
        peer.publish(b"a", 1)
        peer.publish(b"b", 2)
    else:
        peer.session.connect(0.0)
    data = b"".join(broker)
    try:
        for start in range(0, len(data), cut):
            peer.session.receive(data[start : start + cut])
    except ProtocolError as error:
        peer.session.broken(error)
    peer.down()
    peer.session.connect(1.0)
    assert peer.session.out


lines = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["dev:", ":", "dev:$scrypt$", "dev:$scrypt$ln=99,r=8,p=1$QQ$QQ", "#", "\0:\0"]),
    st.builds(
        lambda name, salt: f"{name}:$scrypt$ln=14,r=8,p=1${salt}$QQ", st.text(max_size=5), st.text(max_size=9)
    ),
)


@given(
    st.one_of(
        st.lists(lines, max_size=6).map(lambda each: "\n".join(each).encode(errors="replace")), st.binary()
    )
)
def test_a_users_file_may_be_anything(data: bytes) -> None:
    """It is read, or a `SetupError` tells its line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "users")
        path.write_bytes(data)
        with contextlib.suppress(SetupError):
            Users(path)


@given(unit=st.sampled_from(["a:b\n", "#\n", "\n", "x", f"n:{hash_password('p')}\n"]))
def test_a_users_file_is_read_in_steps_in_proportion(unit: str) -> None:
    def cost(size: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "users")
            path.write_text((unit * size)[:size])

            def read() -> None:
                with contextlib.suppress(SetupError):
                    Users(path)

            return steps(read)

    assert in_proportion(cost)
