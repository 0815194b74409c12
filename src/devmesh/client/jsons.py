"""Python values as JSON: what JSON has not is refused, also where msgspec would write null for it."""

from __future__ import annotations

from typing import Any

import msgspec

from devmesh.core.numbers import may_be_infinite, not_finite

NO_JSON = (TypeError, ValueError, OverflowError, RecursionError)  # what `encode` raises, and the same for MessagePack


class NotFinite(ValueError):
    """NaN or an infinity."""

    def __init__(self, number: float) -> None:
        super().__init__(f"it holds {number}, which is no number in JSON")
        self.number = number


def encode(value: Any) -> bytes:
    """Raises one of NO_JSON. Only a text that holds null is looked at twice: it may stand for a number."""
    text = msgspec.json.encode(value)
    if b"null" in text and _may_be_infinite(value):
        number = not_finite(msgspec.to_builtins(value, enc_hook=_finite))
        if number is not None:
            raise NotFinite(number)
    return text


def _may_be_infinite(value: Any) -> bool:
    try:
        return may_be_infinite(msgspec.msgpack.encode(value))
    except OverflowError:  # an integer that only JSON has
        return True


def _finite(_: Any) -> None:
    """For `msgspec.Raw`, which is JSON already and the only thing that has no builtin."""
