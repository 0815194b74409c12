"""A failure becomes an answer that says what to do and nothing of the inside, and tells data from a database away."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from devmesh.core.errors import Kind, MeshError
from devmesh.store import faults
from devmesh.store.database import Database, Transaction
from devmesh.store.statements import Statement


@pytest_asyncio.fixture
async def database(empty_database: str) -> AsyncIterator[Database]:
    opened = await Database.open(
        empty_database, service="test", pool_size_min=1, pool_size_max=2, transaction_deadline_s=5.0
    )
    await opened.read(sql("create table things (name text primary key, amount integer not null check (amount < 1000))"))
    try:
        yield opened
    finally:
        await opened.close()


def sql(text: str) -> Statement:
    return Statement("test.statement", text, "For a test.")


async def failure_of(database: Database, statement: Statement, *args: Any) -> MeshError:
    async def work(transaction: Transaction) -> None:
        await transaction.execute(statement, *args)

    with pytest.raises(MeshError) as caught:
        await database.run(work)
    return caught.value


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "argument", "kind", "words", "is_member"),
    [
        ("insert into things values ($1, 1)", "a\0b", Kind.INVALID_PARAMS, "NUL", True),
        ("select $1::jsonb", '{"a": "\\u0000"}', Kind.INVALID_PARAMS, "NUL", True),
        ("insert into things values ($1, 1)", "\ud800", Kind.INVALID_PARAMS, "cannot be stored", True),
        ("select $1::jsonb", "{", Kind.INVALID_PARAMS, "form", True),
        ("select $1::text::uuid", "secret", Kind.INVALID_PARAMS, "form", True),
        ("select $1::int", 2**40, Kind.INVALID_PARAMS, "too large", True),
        ("select ($1::bigint)::int", 2**40, Kind.INVALID_PARAMS, "too large", True),
        ("select $1::text::timestamptz", "2026-13-01", Kind.INVALID_PARAMS, "time", True),
        ("select $1::json", "[" * 100_000, Kind.INVALID_PARAMS, "nested", True),
        ("select 'a' ~ $1", "(", Kind.INVALID_PARAMS, "pattern", True),
        ("insert into things values ('secret', $1)", 1000, Kind.INVALID_PARAMS, "permits", True),
        ("insert into things values ('secret', $1), ('secret', 1)", 1, Kind.CONFLICT, "exists already", True),
        ("select $1::int", "secret", Kind.INTERNAL, "error id", True),
        ("select 1 / $1::int", 0, Kind.INTERNAL, "error id", True),
        ("insert into things values ('secret', $1)", None, Kind.INTERNAL, "error id", True),
        ("select secret from things where name = $1", "secret", Kind.UNAVAILABLE, "schema", False),
    ],
)
async def test_failures_become_answers_without_the_inside(
    database: Database, text: str, argument: Any, kind: Kind, words: str, is_member: bool
) -> None:
    with capture_logs() as logs:
        error = await failure_of(database, sql(text), argument)
    assert error.kind is kind
    assert words in error.message
    assert faults.is_member_fault(error) is is_member
    assert "secret" not in error.message
    assert "things" not in error.message
    if kind is Kind.INTERNAL:
        assert uuid.UUID(error.data.error_id).version == 4
        assert [entry["error_id"] for entry in logs] == [error.data.error_id]
    if "values ('secret'" in text or argument == "secret":
        logged = [{name: value for name, value in entry.items() if name != "where"} for entry in logs]
        assert "values" not in str(logged)
        assert is_member is False or "secret" not in str(logged)


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ("08006", Kind.UNAVAILABLE, "away"),
        ("25006", Kind.UNAVAILABLE, "no writes"),
        ("28P01", Kind.UNAVAILABLE, "operator"),
        ("53100", Kind.UNAVAILABLE, "disk is full"),
        ("53300", Kind.UNAVAILABLE, "to spare"),
        ("55000", Kind.UNAVAILABLE, "refuses this server"),
        ("55P03", Kind.TIMEOUT, "took too long"),
        ("57014", Kind.TIMEOUT, "took too long"),
        ("57P01", Kind.UNAVAILABLE, "stopping"),
        ("57P03", Kind.UNAVAILABLE, "starting"),
        ("54000", Kind.INVALID_PARAMS, "too large"),
        ("99999", Kind.INTERNAL, "error id"),
    ],
)
def test_states_become_answers(state: str, kind: Kind, words: str) -> None:
    error = asyncpg.PostgresError.new({"C": state, "M": "inside", "S": "ERROR"})
    answer = faults.translate(error)
    assert answer.kind is kind
    assert words in answer.message
    assert bool(answer.data.retry_after_ms) is (kind is Kind.UNAVAILABLE)
    assert faults.is_member_fault(error) is (kind is Kind.INVALID_PARAMS)


@pytest.mark.asyncio
async def test_a_mistake_of_ours_is_internal_and_named_only_in_the_log(database: Database) -> None:
    async def work(_transaction: Transaction) -> None:
        raise KeyError("inside")

    with capture_logs() as logs, pytest.raises(MeshError) as caught:
        await database.run(work)
    assert caught.value.kind is Kind.INTERNAL
    assert "inside" not in caught.value.message
    assert logs[0]["error_type"] == "KeyError"
    assert faults.is_member_fault(caught.value)


@pytest.mark.asyncio
async def test_work_goes_on_on_another_connection_when_the_driver_has_lost_track_of_one(database: Database) -> None:
    lost = asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
    tries = []

    async def work(_transaction: Transaction) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise lost
        return "done"

    assert await database.run(work) == "done"
    assert faults.translate(lost).kind is Kind.UNAVAILABLE
    assert faults.translate(asyncpg.InternalClientError("something else")).kind is Kind.INTERNAL
