from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from tests.store.migrations import FIRST_DOWN, FIRST_UP, SECOND_DOWN, SECOND_UP, THIRD_DOWN, THIRD_UP, write

from devmesh.store.database import Database


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path, 1, "things", FIRST_UP, FIRST_DOWN)
    write(tmp_path, 2, "more", SECOND_UP, SECOND_DOWN)
    write(tmp_path, 3, "index", THIRD_UP, THIRD_DOWN)
    return tmp_path


@pytest_asyncio.fixture
async def database(fresh_database: str) -> AsyncIterator[Database]:
    connection = await asyncpg.connect(fresh_database)
    await connection.execute(
        "create table things (name text primary key, amount integer not null check (amount < 1000))"
    )
    await connection.close()
    opened = await Database.open(
        fresh_database, service="test", pool_size_min=1, pool_size_max=4, transaction_deadline_s=5.0
    )
    try:
        yield opened
    finally:
        await opened.close()
