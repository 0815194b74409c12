"""Migrations for tests, and what a database tells of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from devmesh.store.migration_files import MigrationError
from devmesh.store.migrator import Migrator

FIRST_UP = (
    "create table mcp.things (id bigint primary key, name text not null);\ninsert into mcp.things values (1, 'a;b');\n"
)
FIRST_DOWN = "drop table mcp.things;\n"
SECOND_UP = "alter table mcp.things add column more text default 'x';\ncreate index things_more on mcp.things (more);\n"
SECOND_DOWN = "alter table mcp.things drop column more;\n"
THIRD_UP = """-- Finds things by name.
-- transaction: none
create index concurrently things_name on mcp.things (name);
create index concurrently things_both on mcp.things (name, id);
"""
THIRD_DOWN = """-- transaction: none
drop index concurrently if exists mcp.things_both;
drop index concurrently if exists mcp.things_name;
"""


def write(directory: Path, version: int, name: str, up: str, down: str = "select 1;\n") -> None:
    (directory / f"{version:06d}_{name}.up.sql").write_text(up)
    (directory / f"{version:06d}_{name}.down.sql").write_text(down)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    async with connected(dsn) as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def states(migrator: Migrator) -> list[str]:
    return [f"{status.version} {status.state}" for status in await migrator.status()]


async def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(MigrationError) as caught:
        await action()
    return str(caught.value)
