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

    def cursor(self, key: str) -> str | None:
        """What leads on to the next page: the id of the last row, if there may be more."""
        return str(self.rows[-1][key]).replace("-", "") if self.is_more else None


def fit(rows: Sequence[Record], limit: int) -> Page:
    """As many rows as PAGE_BYTES_MAX has room for, by all of their texts.

    Each row says with `found` how many there were of the `limit`: the statement has left out those for which there is no room
    even as they are stored.
    """
    shown = rows[: fitting(map(_texts_bytes, rows))]
    return Page(shown, bool(shown) and (len(shown) < rows[0]["found"] or len(shown) == limit))


def _texts_bytes(row: Record) -> int:
    return sum(size_bytes(value) for value in row.values() if isinstance(value, str))
