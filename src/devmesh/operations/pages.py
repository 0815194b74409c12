"""How much of what a statement found goes on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from devmesh.core.names import fitting, size_bytes
from devmesh.store.database import Record


class Page(NamedTuple):
    """Rows that are shown, and whether there may be more."""

    rows: Sequence[Record]
    is_more: bool


def fit(rows: Sequence[Record], limit: int, *texts: str) -> Page:
    """As many rows as PAGE_BYTES_MAX has room for, by those of their texts that may be long.

    Each row says with `found` how many there were of the `limit`: the statement has left out those for which there is no room
    even as they are stored.
    """
    shown = rows[: fitting(sum(size_bytes(row[name]) for name in texts) for row in rows)]
    return Page(shown, bool(shown) and (len(shown) < rows[0]["found"] or len(shown) == limit))
