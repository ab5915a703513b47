"""The login rule from a file."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from exproto_app import ClientInfo
from exproto_app.errors import SetupError
from exproto_app.hosts.gateway.users import Users, hash_password


def ask(users: Users, clientid: str, password: str | None, username: str = "") -> bool:
    return asyncio.run(users(ClientInfo(clientid, username=username), password))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"# the fleet\n\nanna:{hash_password('s3cret: ü')}\n")
    return path


def test_who_may_register(file: Path) -> None:
    users = Users(file)
    assert ask(users, "anna", "s3cret: ü")
    assert ask(users, "anna", "s3cret: ü")  # the second time from memory
    assert ask(users, "device", "s3cret: ü", username="anna")
    assert not ask(users, "anna", "guess")
    assert not ask(users, "anna", None)
    assert not ask(users, "nobody", "s3cret: ü")
    assert not ask(users, "anna", "s3cret: ü", username="bert")


def test_a_changed_file_counts_at_once_a_wrong_one_is_told(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = Users(file)
    assert ask(users, "anna", "s3cret: ü")
    file.write_text(f"anna:{hash_password('new')}\n")
    os.utime(file, (1, 1))
    assert not ask(users, "anna", "s3cret: ü")
    assert ask(users, "anna", "new")
    file.write_text("anna new\n")
    with caplog.at_level(logging.WARNING, "exproto_app"):
        assert ask(users, "anna", "new")
    assert "line 1 has no ':'" in caplog.text
    file.unlink()
    assert ask(users, "anna", "new")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anna", "line 1 has no ':'"),
        ("\nanna:plain", "line 2 has no password hash; make the line with exproto-app hash-password"),
        ("anna:$scrypt$ln=99,r=8,p=1$AAAA$AAAA", "line 1 has no password hash"),
        ("\udcff", "is not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_refused_at_start(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "users"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SetupError, match=words):
        Users(path)


def test_a_file_without_users_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "users"
    path.write_text("# nobody yet\n")
    with caplog.at_level(logging.WARNING, "exproto_app"):
        Users(path)
    assert "has no users, so nobody may register" in caplog.text


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="can't be read: no such file"):
        Users(tmp_path / "nothing")
