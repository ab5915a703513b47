"""The broker's URL, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from exproto_app import Address, SetupError
from exproto_app.hosts.mqtt import Url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("mqtt://broker", Url(host="broker", port=1883)),
        ("mqtts://broker/", Url(host="broker", port=8883, tls=True)),
        ("MQTT://broker:1", Url(host="broker", port=1)),
        ("mqtt://[::1]:1884", Url(host="::1", port=1884)),
        ("mqtt://gate@broker", Url(host="broker", port=1883, username="gate")),
        (
            "mqtts://gate:p%40ss%3A%2Fw@broker:8884",
            Url(host="broker", port=8884, tls=True, username="gate", password="p@ss:/w"),
        ),
        ("mqtt://one,two", Url(host="one", port=1883, others=(Address("two", 1883),))),
        (
            "mqtts://gate:a%2Cb@one:1,[::1],three:3/",
            Url(
                host="one",
                port=1,
                tls=True,
                username="gate",
                password="a,b",
                others=(Address("::1", 8883), Address("three", 3)),
            ),
        ),
        ("mqtt://gate:@broker", Url(host="broker", port=1883, username="gate", password="")),
    ],
)
def test_what_a_url_says(text: str, url: Url) -> None:
    assert Url.parse(text) == url


def test_a_password_is_never_shown() -> None:
    url = Url.parse("mqtts://gate:s3cret@[::1]")
    assert str(url) == "mqtts://[::1]:8883"
    assert "s3cret" not in repr(url)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("broker:1883", "it is neither mqtt:// nor mqtts://"),
        ("http://u:s3cret@broker", "http:// is neither mqtt:// nor mqtts://"),
        ("mqtt://", "has no host"),
        ("mqtt://u:s3cret@", "has no host"),
        ("mqtt://broker:port", "the port has to be a number"),
        ("mqtt://broker:0", "the port has to be a number"),
        ("mqtt://broker:70000", "the port has to be a number"),
        ("mqtt://u:s3cret@b@broker", "write an @ in a user or password as %40"),
        ("mqtt://u:s3c/ret@broker", "%2F"),
        ("mqtt://u:s3cret@broker/topic", "has extra text after its port"),
        ("mqtt://u:%ff@broker", "have to be UTF-8"),
        ("mqtt://u:s3cret@one,", "write several brokers like"),
        ("mqtt://u:s3cret@one,mqtt://two", "write several brokers like"),
        ("mqtt://u:s3cret@one,two:0", "the port has to be a number"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_without_the_password(text: str, words: str) -> None:
    with pytest.raises(SetupError) as caught:
        Url.parse(text)
    assert words in str(caught.value)
    assert "s3c" not in str(caught.value)
    assert "ret@" not in str(caught.value)


def test_files_for_tls_that_cant_be_used(tmp_path: Path) -> None:
    plain, secure = Url.parse("mqtt://broker"), Url.parse("mqtts://broker")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    file, missing = str(nonsense), str(tmp_path / "missing.pem")
    with pytest.raises(SetupError, match="--mqtt-ca needs TLS; write the broker's URL with mqtts://"):
        plain.context(file, None, None)
    with pytest.raises(SetupError, match="--mqtt-cert: there is no file"):
        secure.context(None, missing, None)
    with pytest.raises(SetupError, match="is not a CA file"):
        secure.context(file, None, None)
    with pytest.raises(SetupError, match="its key can't be used"):
        secure.context(None, file, None)
    with pytest.raises(SetupError, match="--mqtt-key needs the certificate"):
        secure.context(None, None, file)
    assert plain.context(None, None, None) is None
    assert secure.context(None, None, None) is not None
