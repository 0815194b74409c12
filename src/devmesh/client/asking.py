"""What the nouns of a client share: whom they ask, and how."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Id = uuid.UUID | str


class Requests(Protocol):
    """The part of a client that its nouns need."""

    timeout_s: float

    async def request(
        self, method: str, params: Mapping[str, Any], shape: type[T], *, timeout_s: float | None = ...
    ) -> T: ...


def given(**params: Any) -> dict[str, Any]:
    """The parameters without those that were left out."""
    return {name: value for name, value in params.items() if value is not None}
