"""What the processes of a gateway tell of themselves, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlencode

import attrs

from ..errors import ExprotoError
from ..models import Address

__all__ = ["Inspected", "Measured", "SourceError"]

PATIENCE: Final = 5.0
"""Seconds that an answer may take."""

LARGEST: Final = 16 * 1024 * 1024
"""Bytes of an answer that are read."""

# What the environment names as a proxy has no business between us and our own gateway.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SourceError(ExprotoError):
    """A process can't be asked."""


@attrs.frozen
class Inspected:
    """The inspector at *address*, which asks for *token* where others can reach it."""

    address: Address
    token: str | None = None

    def state(self) -> dict[str, Any]:
        """Return its protocols and counters. Raises `SourceError`."""
        return self._json("/api/state")

    def connections(self, search: str, sort: str, limit: int) -> dict[str, Any]:
        """Return the first *limit* connections by *sort* that have all words of *search*."""
        query = {"search": search, "sort": sort, "limit": limit, "descending": 1}
        return self._json(f"/api/connections?{urlencode(query)}")

    def _json(self, path: str) -> dict[str, Any]:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        try:
            answer = json.loads(_get("--inspect", self.address, path, headers))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise SourceError(f"{self.address} is no inspector; give the address of run --inspect")
        return answer


@attrs.frozen
class Handler:
    """What the calls of one handler took since the gateway began."""

    protocol: str
    event: str
    name: str
    calls: int = 0
    seconds: float = 0.0


@attrs.frozen
class Measured:
    """The metrics at *address*."""

    address: Address

    def handlers(self) -> list[Handler]:
        """Return what each handler took. Raises `SourceError`."""
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - an extra

        text = _get("--metrics", self.address, "/metrics", {}).decode(errors="replace")
        found: dict[tuple[str, str, str], Handler] = {}
        try:
            for family in text_string_to_metric_families(text):
                if family.name != "exproto_handler_seconds":
                    continue
                for sample in family.samples:
                    labels = sample.labels
                    key = labels["protocol"], labels["event"], labels["handler"]
                    one = found.get(key, Handler(*key))
                    if sample.name.endswith("_count"):
                        one = attrs.evolve(one, calls=int(sample.value))
                    elif sample.name.endswith("_sum"):
                        one = attrs.evolve(one, seconds=sample.value)
                    found[key] = one
        except (ValueError, KeyError):
            raise SourceError(f"{self.address} has no metrics; give the address of run --metrics") from None
        return list(found.values())


def _get(option: str, address: Address, path: str, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with _OPENER.open(request, timeout=PATIENCE) as answer:
            body: bytes = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403, 429):
            remedy = "give the inspector's token with --inspect-token-file, or in EXPROTO_INSPECT_TOKEN"
            raise SourceError(f"{address} refuses to tell: {remedy}") from None
        raise SourceError(
            f"{address} answers {error.code} {error.reason}; is that {option} of run?"
        ) from None
    except OSError as error:  # also those of urllib
        reason = getattr(error, "reason", None) or error
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        remedy = f"start the gateway with {option} {address}"
        raise SourceError(f"{address} can't be asked: {words.lower()}; {remedy}") from None
    except HTTPException:
        raise SourceError(f"{address} doesn't speak HTTP; is that {option} of run?") from None
    if len(body) > LARGEST:
        raise SourceError(f"{address} answers with more than {LARGEST:,} bytes")
    return body
