"""Sessions with PostgreSQL: how they are set, what values come as, and what is told when there are none."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from tests.store.things import sql

from devmesh.core.errors import Kind, MeshError
from devmesh.store.database import Database

pytestmark = pytest.mark.asyncio


async def test_a_database_that_is_not_there_is_unavailable(tmp_path: Any) -> None:
    dsn = f"postgresql://postgres@/postgres?host={tmp_path}"
    with pytest.raises(MeshError) as caught:
        await Database.open(dsn, service="test", pool_size_min=1, pool_size_max=1, transaction_deadline_s=1)
    assert caught.value.kind is Kind.UNAVAILABLE


async def test_sessions_are_set_alike_in_and_outside_of_the_pool(database: Database) -> None:
    names_of = sql("select name, setting from pg_settings where name = any($1)")
    expected = {
        "application_name": "test",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "enable_seqscan": "off",
        "jit": "off",
        "lock_timeout": "4000",
        "search_path": "mcp,public",
        "TimeZone": "UTC",
    }
    dedicated = await database.open_dedicated()
    try:
        rows = await dedicated.fetch(names_of.text, list(expected))
        assert {row["name"]: row["setting"] for row in rows} == expected
        heard: asyncio.Queue[object] = asyncio.Queue()
        await dedicated.add_listener("bell", lambda *message: heard.put_nowait(message[-1]))
        await database.read(sql("select pg_notify('bell', $1)"), "ding")
        assert await asyncio.wait_for(heard.get(), 5) == "ding"
    finally:
        await dedicated.close()
    assert {row["name"]: row["setting"] for row in await database.read(names_of, list(expected))} == expected


async def test_values_come_as_python_has_them(database: Database) -> None:
    row = (
        await database.read(sql("""select gen_random_uuid() as id, '{"a": 1}'::jsonb as b, '{"a":1}'::json as j"""))
    )[0]
    assert isinstance(row["id"], uuid.UUID)
    assert row["b"] == '{"a": 1}'
    assert row["j"] == '{"a":1}'


async def test_a_closed_database_is_unavailable(database: Database) -> None:
    await database.close()
    with pytest.raises(MeshError, match="shutting down") as caught:
        await database.read(sql("select 1"))
    assert caught.value.kind is Kind.UNAVAILABLE
