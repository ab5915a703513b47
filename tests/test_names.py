"""Names and texts from outside: what is refused, and what a person or a program gets to read."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import DeniedError, InvalidNameError, Router, SetupError
from exproto_app.cli.checks.finding import failed
from exproto_app.cli.emqx_config import HandlerAddress, configuration
from exproto_app.hosts.emqx42 import conf, generate
from exproto_app.masking import format_masked, hide_hex, hide_said, hide_secrets, masking, secrets_in
from exproto_app.models import ClientInfo
from exproto_app.names import check_name, escaped, escaped_lines, to_json
from exproto_app.topics import check_filter, check_topic, matches

TRICKS = [
    *(
        "+",
        "#",
        "a+",
        "a#b",
        "$SYS",
        "$share",
        "a\0",
        "a\n",
        "dev5\nFORGED5",
        "\x1b[2Ja",
        "a\x7f",
        "a\x85",
        "a\x9b",
    ),
    *(
        "a\u2028",
        "a\u2029",
        "a\ud800",
        "\u202eevil",
        "a\u2066b",
        "a\u200b",
        "\ufeffa",
        "a\ufffe",
        "a\U000e0041",
    ),
]
"""What no device may be called."""


@pytest.mark.parametrize("name", [*TRICKS, "a/b", "/"], ids=ascii)
def test_a_name_that_is_more_than_a_level_is_refused_in_one_plain_sentence(name: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_name(name)
    assert isinstance(caught.value, DeniedError)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("clientid ")


@pytest.mark.parametrize(
    "name", ["860123456789012", "dev 5", "müller", "设备", "a$b", "a.b:c-d_e@f", "x" * 1000]
)
def test_other_names_are_taken(name: str) -> None:
    check_name(name)


@given(st.text(st.characters(codec=None), min_size=1))
def test_a_name_that_is_taken_makes_topics_of_its_own(name: str) -> None:
    """Whatever passes stands for itself alone where a filter is made of it, and is shown as it is."""
    try:
        check_name(name)
    except InvalidNameError:
        return
    topic_filter = f"devices/{name}/command"
    check_filter(topic_filter)
    check_topic(topic_filter)
    assert not matches(topic_filter, "devices/another/command")
    assert escaped(name) == name
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)


def test_a_router_may_allow_slashes_and_have_a_rule_of_its_own() -> None:
    Router("a", slash=True).check_client(ClientInfo("line/3"))
    for router in (
        Router("a", clientid=r"\d{15}"),
        Router("a", clientid=re.compile(r"\d{15}")),
        Router("a", clientid=lambda name: len(name) == 15 and int(name)),
    ):
        router.check_client(ClientInfo("860123456789012", username="anybody"))
        for name in ("86012345678901", "86012345678901x"):
            with pytest.raises(
                InvalidNameError, match=f"'{name}' is not what the router's clientid= rule takes"
            ):
                router.check_client(ClientInfo(name))
    with pytest.raises(InvalidNameError, match="username '#' has a wildcard"):
        Router("a", slash=True).check_client(ClientInfo("a", username="#"))


@pytest.mark.parametrize("rule", ["(", re.compile(b"a"), 5])
def test_a_rule_that_is_none_is_refused_at_once(rule: object) -> None:
    with pytest.raises(SetupError, match=r"Router\('a'\): clientid="):
        Router("a", clientid=rule)  # type: ignore[call-overload] # that is what it is about
    with pytest.raises(SetupError, match=r"Router\('a'\): secret="):
        Router("a", secret=rule if rule != re.compile(b"a") else re.compile("a"))  # type: ignore[call-overload] # likewise


@pytest.mark.parametrize("check", [check_topic, check_filter])
@pytest.mark.parametrize(
    "char", ["\0", "\n", "\x1b", "\x7f", "\x9b", "\ud800", "\uffff", "\ufdd0"], ids=ascii
)
def test_no_topic_has_what_brokers_close_a_connection_for(check: object, char: str) -> None:
    with pytest.raises(ValueError, match=r"NUL|control character|surrogates"):
        check(f"a/{char}b")  # type: ignore[operator] # both are functions of a text


@given(st.text(st.characters(codec=None)))
def test_whatever_is_escaped_is_one_line_and_does_nothing_to_a_terminal(text: str) -> None:
    line = escaped(text)
    line.encode()
    assert len((line + "x").splitlines()) == 1
    assert not set(line) & set("\x1b\x9b\x7f\r\x08\u202e\u2066")
    assert escaped_lines(text).split("\n") == [
        escaped(part).replace("\\t", "\t") for part in text.split("\n")
    ]
    encoded = to_json({"a": text})
    encoded.encode()
    assert json.loads(encoded) == {"a": text}
    assert len(encoded.splitlines()) == 1


SAID = b"LOGIN dev7 s3cret\x01\xff"


@pytest.mark.parametrize(
    "told",
    [repr(SAID), SAID.hex(), SAID.hex(" "), SAID.hex(":").upper(), SAID.decode("latin-1"), "no: 's3cret'"],
)
def test_what_a_text_repeats_of_what_was_said_is_counted(told: str) -> None:
    text = hide_said(f"cannot parse {told}", SAID)
    assert "cannot parse " in text
    assert "characters]" in text
    for form in ("s3cret", b"s3cret".hex(), b"s3cret".hex(" "), b"s3cret".hex(":")):
        assert form not in text.lower()


@given(st.binary(max_size=60), st.text(max_size=40))
def test_what_was_not_said_stays(said: bytes, text: str) -> None:
    hidden = hide_said(text, said)
    forms = (
        said.decode("latin-1"),
        said.decode("utf-8", "replace"),
        repr(said),
        said.hex(" :"[len(text) % 2]),
    )
    if not any(text[at : at + 4].lower() in form.lower() for form in forms for at in range(len(text) - 3)):
        assert hidden == text


def test_a_password_is_masked_in_every_form() -> None:
    secret = b"s3cret"
    text = " ".join(("s3cret", secret.hex(), secret.hex(" "), secret.hex(":").upper(), repr(b"<s3cret>")))
    assert "*" in hide_secrets(text, [secret])
    assert "s3cret" not in hide_secrets(text, [secret])
    assert "73" not in hide_secrets(text, [secret])


def test_a_mask_tells_where_secrets_are_and_a_broken_one_hides_all() -> None:
    assert secrets_in(b"pw=abc;u=x;pw=de", masking(rb"pw=(\w+)".decode())) == [b"abc", b"de"]
    assert secrets_in(b"abc", lambda data: data[1:]) == [b"abc"]
    assert secrets_in(b"abc", lambda data: bytes([data[5]])) == [b"abc"]


def test_a_traceback_shows_the_code_and_hides_what_exceptions_say() -> None:
    def fail() -> None:
        try:
            dict[str, int]()["first"]
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as caught:
        fail()
    text = format_masked(caught.value, lambda said: said.replace("first", "1st").replace("second", "2nd"))
    lines = text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: 2nd"
    assert "KeyError: '1st'" in lines
    assert "The above exception was the direct cause of the following exception:" in lines
    assert any("test_names.py" in line for line in lines)


def test_hex_that_a_framing_shows_is_counted() -> None:
    assert hide_hex("frame starts with 7e01, not with 7878") == "frame starts with 7e01, not with 7878"
    assert hide_hex("no framing starts with 4c4f47494e20…") == "no framing starts with [6 and more bytes]"
    numbers = "frame has 16777217 bytes, limit is 16777216"
    assert hide_hex(numbers) == numbers


HOSTILE = 'x"""\nimport os\\\n\x1b[2J\u2028.py:app'
"""What a name of a file would have to be, to get into what is generated."""


def test_a_generated_module_holds_names_as_data() -> None:
    texts = dict(generate.files(HOSTILE, [("tracker", "gt06")], ["/lib"], stock=False, acl=False))
    tree = ast.parse(texts["tracker.py"])
    docstring, imported, *_ = tree.body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(imported, ast.Import)
    assert [alias.name for alias in imported.names] == ["sys"]
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert HOSTILE in strings


def test_a_generated_configuration_has_a_line_for_each_value() -> None:
    with pytest.raises(SetupError, match=r"can't stand in emqx_exproto\.conf"):
        conf.broker_config(
            Path("/tmp/a\nexproto.listener.x = tcp://0.0.0.0:1"), [conf.Planned("tracker", "gt06", 7993)]
        )
    called = HandlerAddress('https://a"\nb:9001', 'x"\n}', ("it can't be \nresolved",))
    text = configuration(called, "9100", [], (5, 8, 5), client_certificate=False)
    assert 'server_name_indication = "x\\"\\n}"' in text
    assert 'address = "https://a\\"\\nb:9001"' in text
    assert "# it can't be \\nresolved" in text


def test_a_finding_of_the_doctor_is_one_line_that_does_nothing_to_a_terminal() -> None:
    line = str(failed("broker", "it says \x1b[2J\nno\u202e", "ask \x9b31m it"))
    assert line == "✗ it says \\x1b[2J no\\u202e; ask \\x9b31m it"
