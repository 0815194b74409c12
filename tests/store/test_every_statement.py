"""Every statement fits the schema that the migrations make. A statement for a missing table or column fails here."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
import pytest

from devmesh.store.statements import SQL_DIRECTORY, Statement, all_statements


async def failures_to_prepare(dsn: str, statements: Iterable[Statement]) -> list[str]:
    """What PostgreSQL says against each statement that does not prepare, with its name."""
    failures = []
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            try:
                await connection.prepare(statement.text)
            except asyncpg.PostgresError as error:
                failures.append(f"{statement.name}: {error}")
    finally:
        await connection.close()
    return failures


@pytest.mark.asyncio
async def test_every_statement_prepares(fresh_database: str) -> None:
    statements = all_statements()
    assert not await failures_to_prepare(fresh_database, statements)
    assert bool(statements) == any(SQL_DIRECTORY.glob("*.sql"))


@pytest.mark.asyncio
async def test_a_statement_that_does_not_fit_is_named(fresh_database: str) -> None:
    wrong = Statement("things.count", "select count(*) from mcp.things", "Counts.")
    failures = await failures_to_prepare(fresh_database, [wrong])
    assert failures == ['things.count: relation "mcp.things" does not exist']
