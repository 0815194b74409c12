"""Answers as tables for people: a thing as a list of its fields, several as rows. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from devmesh.cli.console import visible

EMPTY: tuple[Any, ...] = (None, "", [], {})


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_thing: bool  # a field a row


def tables_of(answer: Mapping[str, Any]) -> list[Table]:
    """A table for each thing and each list in the answer of any operation, and one for what stands beside them."""
    found = []
    beside = {}
    for name, value in answer.items():
        if isinstance(value, dict):
            found.append(_of_fields(name, value))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            columns = list(dict.fromkeys(key for item in value for key in item if item[key] not in EMPTY))
            found.append(Table(name, [visible(column) for column in columns], rows_of(value, columns), False))
        elif name != "next_cursor" and value is not None:
            beside[name] = value
    return [*found, *([_of_fields("", beside)] if beside else [])]


def rows_of(items: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    return [[cell(item.get(column)) for column in columns] for item in items]


def cell(value: Any) -> str:
    """A value on one line, as short as it can be read, and nothing in it that a terminal would obey."""
    if value in EMPTY:
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(str(item) for item in value)
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return visible(text)


def _of_fields(title: str, thing: Mapping[str, Any]) -> Table:
    rows = [(visible(name), cell(value)) for name, value in thing.items() if value not in EMPTY]
    return Table(title, ("field", "value"), rows, True)
