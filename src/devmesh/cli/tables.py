"""Results as tables for people: one thing as a list of its fields, several as rows. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

CELL_CHARACTERS_MAX = 200


def table_of(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for the answer of any operation: the first list in it, else its fields."""
    for value in result.values():
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            columns = list(dict.fromkeys(name for item in value for name in item if _is_told(value, name)))
            return columns, rows_of(value, columns)
    things = [value for value in result.values() if isinstance(value, dict)]
    fields = things[0] if len(result) == 1 and things else result
    return ["field", "value"], [[name, cell(value)] for name, value in fields.items()]


def rows_of(items: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    return [[cell(item.get(column)) for column in columns] for item in items]


def cell(value: Any) -> str:
    """A value as short as it can be read."""
    match value:
        case None | "" | [] | {}:
            return ""
        case str():
            text = value
        case bool():
            text = "yes" if value else "no"
        case list() if all(isinstance(item, str | int | float) for item in value):
            text = ", ".join(str(item) for item in value)
        case _:
            text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return text if len(text) <= CELL_CHARACTERS_MAX else text[: CELL_CHARACTERS_MAX - 1] + "…"


def _is_told(items: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column would say anything."""
    return any(item.get(name) not in (None, "", [], {}) for item in items)
