"""The statement files are read strictly: a mistake in one is found when the program starts, with its place."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from devmesh.store.statements import StatementError, all_statements, load, parse

GOOD = """-- About these statements.

-- name: insert_many
-- Inserts them.
-- $1 tenant.
insert into t (a)
-- a remark within
select $1;

-- name: count
-- Counts them. No parameters.
select count(*) from t;
"""


def test_blocks_are_read_with_their_comments(tmp_path: Path) -> None:
    (tmp_path / "things.sql").write_text(GOOD)
    things = load("things", tmp_path)
    assert things.insert_many.name == "things.insert_many"
    assert things.insert_many.comment == "Inserts them. $1 tenant."
    assert things.insert_many.text == "insert into t (a)\n-- a remark within\nselect $1;"
    assert things.count.text == "select count(*) from t;"
    assert [statement.name for statement in things] == ["things.insert_many", "things.count"]
    assert len(things) == 2
    assert [statement.name for statement in all_statements(tmp_path)] == ["things.insert_many", "things.count"]


def test_an_unknown_statement_is_named_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "things.sql").write_text(GOOD)
    things = load("things", tmp_path)
    with pytest.raises(AttributeError, match=r"things\.sql has no statement 'gone'; it has: count, insert_many"):
        _ = things.gone
    assert copy.copy(things).count == things.count


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (GOOD + "-- name: count\n-- Again.\nselect 1;\n", "'count' is there twice"),
        ("-- name: bare\nselect 1;\n", "'bare' has no comment"),
        ("-- name: bare\n--\nselect 1;\n", "'bare' has no comment"),
        ("-- name: empty\n-- Does nothing.\n\n;\n", "'empty' has no SQL"),
        ("-- name: empty\n-- Does nothing.\n-- name: next\n-- One.\nselect 1;", "'empty' has no SQL"),
        ("select 1;\n-- name: late\n-- One.\nselect 1;", "things.sql:1: SQL before the first"),
        ("-- name: Not-a-name\n-- One.\nselect 1;", "'Not-a-name' is not a name"),
        ("-- name:\n-- One.\nselect 1;", "'' is not a name"),
    ],
)
def test_mistakes_are_refused(source: str, complaint: str) -> None:
    with pytest.raises(StatementError, match=complaint):
        parse("things", source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StatementError, match=r"there is no statement file gone\.sql"):
        load("gone", tmp_path)
