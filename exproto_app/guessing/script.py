"""A guess as a script to start with."""

from __future__ import annotations

from .verdict import Guess

__all__ = ["script_of"]


def script_of(guess: Guess) -> str:
    """Return a script that has the framing of *guess*, and a handler for each kind of frame that was seen."""
    imports = guess.imports if guess.code else ("from exproto_app.framing import RAW",)
    key = guess.key
    options = [f"framing={guess.code or 'RAW'}", *([f"key={key.code}"] if key is not None else [])]
    lines = [
        f'"""A start, by `exproto-app guess`; how sure that is: {guess.certainty}.',
        "",
        *(f"- {_sentence(text)}" for text in guess.evidence),
        '"""',
        "",
        "from exproto_app import App, Connection",
        *imports,
        "",
        f"app = App({', '.join(options)})",
        "",
    ]
    for number, value in enumerate(key.values if key is not None else (), 1):
        lines += [
            "",
            f"@app.on_received({value!r})",
            f"def kind_{number}(conn: Connection, frame: bytes) -> None:",
            f"    print({_said(value)!r}, frame{'' if guess.text else '.hex()'})",
            "",
        ]
    lines += [
        "",
        "@app.on_received",
        "def other(conn: Connection, frame: bytes) -> None:",
        f"    print(frame{'' if guess.text else '.hex()'})",
        "",
    ]
    return "\n".join(lines)


def _said(value: bytes) -> str:
    text = value.decode("ascii", "replace")
    return text if text.isprintable() and text.isascii() else value.hex()


def _sentence(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")
