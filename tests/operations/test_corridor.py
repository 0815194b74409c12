"""What callers are told by the corridor, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from devmesh import operations
from devmesh.core.errors import MeshError
from devmesh.engine.bell import Bell
from devmesh.operations.corridor import Corridor
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.database import Database
from devmesh.store.vault import Vault
from tests.conftest import run_sql
from tests.engine.calling import call
from tests.sealed import new_tenant, opened

operations.load_all()
# At the end of the transaction, when all of it has gone well.
REFUSED_LATE = """
    create function mcp.refuse_late() returns trigger language plpgsql as
    $$ begin raise exception 'no' using errcode = 'check_violation'; end $$;
    create constraint trigger late after insert on mcp.jobs deferrable initially deferred
    for each row when (new.type like 'wrong%') execute function mcp.refuse_late()
"""


@pytest_asyncio.fixture
async def database(fresh_database: str) -> AsyncIterator[Database]:
    async with opened(fresh_database) as database:
        yield database


@pytest.mark.parametrize("about", [{}, {"concurrency_key": "k"}], ids=["in one statement", "in several"])
async def test_nobody_is_told_before_the_commit_what_that_refuses(
    database: Database, fresh_database: str, about: dict[str, Any]
) -> None:
    run_sql(fresh_database, REFUSED_LATE)
    corridor = Corridor(WorkRunner(database, Bell([], 5.0), Vault()), Settings())
    tenant_id = await new_tenant(database)

    async def enqueue(job_type: str) -> dict[str, Any] | BaseException:
        try:
            return await call(corridor, tenant_id, "job.enqueue", type=job_type, **about)
        except MeshError as error:
            return error

    types = ["well", "wrong", "good", "wrong-too"]
    told = await asyncio.gather(*map(enqueue, types))
    assert [isinstance(answer, MeshError) for answer in told] == [False, True, False, True]
    await corridor.drain()
    written = run_sql(fresh_database, "select type, job_id from mcp.jobs order by type").splitlines()
    known = {
        job_type: answer["job"]["id"] for job_type, answer in zip(types, told, strict=True) if isinstance(answer, dict)
    }
    assert dict(line.split("|") for line in written) == known
