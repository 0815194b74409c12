"""Loops that look at one moment go in one statement, and a look that fails or is slow is nobody else's trouble."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

import asyncpg
import pytest
import pytest_asyncio

from devmesh.core.errors import MeshError
from devmesh.engine.looks import SNAPSHOTS, TENANTS, Looks
from devmesh.store.database import Database, Record
from devmesh.store.statements import Statement
from tests.conftest import run_sql
from tests.sealed import new_tenant, opened

APART = ("late_workers", "overdue_jobs", "pending")


class Counted:
    """A database that notes which statements it was asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked: list[str] = []

    async def read(self, statement: Statement, *args: Any) -> list[Record]:
        self.asked.append(statement.name)
        return await self._database.read(statement, *args)


@pytest_asyncio.fixture
async def database(fresh_database: str) -> AsyncIterator[Database]:
    async with opened(fresh_database) as database:
        yield database


def snapshot_is_due(dsn: str, tenant_id: uuid.UUID) -> None:
    run_sql(
        dsn,
        f"insert into mcp.snapshot_policies (tenant_id, interval_s, keep, next_at) values ('{tenant_id}', 60, 1, now())",
    )


def worker_is_late(dsn: str, tenant_id: uuid.UUID) -> None:
    run_sql(
        dsn,
        "insert into mcp.workers (tenant_id, worker_id, owner_id, name, queues, capacity, heartbeat_interval_s, heartbeat_at)"
        f" values ('{tenant_id}', gen_random_uuid(), gen_random_uuid(), 'w', '{{}}', 1, 1, now() - interval '1 minute')",
    )


async def test_those_who_ask_at_one_moment_are_one_statement_and_each_has_its_own_answer(
    database: Database, fresh_database: str
) -> None:
    one, other = await new_tenant(database), await new_tenant(database)
    worker_is_late(fresh_database, one)
    snapshot_is_due(fresh_database, other)
    counted = Counted(database)
    shared = Looks(cast("Database", counted))
    asked = TENANTS.with_late_workers, SNAPSHOTS.with_due_policies, TENANTS.with_overdue_jobs
    assert await asyncio.gather(*map(shared.tenants, asked)) == [[one], [other], []]
    assert counted.asked == ["looks"]
    assert await shared.tenants(TENANTS.with_late_workers) == [one]
    assert counted.asked == ["looks", "looks"]


async def test_a_look_that_fails_leaves_the_others_their_answers(database: Database, fresh_database: str) -> None:
    tenant_id = await new_tenant(database)
    worker_is_late(fresh_database, tenant_id)
    run_sql(fresh_database, "alter table mcp.snapshot_policies rename to gone")
    counted = Counted(database)
    shared = Looks(cast("Database", counted))
    asked = TENANTS.with_late_workers, SNAPSHOTS.with_due_policies
    with pytest.raises(MeshError, match="schema"):
        await shared.tenants(TENANTS.with_late_workers)
    late, failed = await asyncio.gather(*map(shared.tenants, asked), return_exceptions=True)
    assert late == [tenant_id]
    assert isinstance(failed, MeshError)
    assert counted.asked == ["looks", *[each.name for each in asked]]


async def test_a_look_that_is_locked_out_holds_up_no_other(database: Database, fresh_database: str) -> None:
    tenant_id = await new_tenant(database)
    worker_is_late(fresh_database, tenant_id)
    counted = Counted(database)
    shared = Looks(cast("Database", counted))
    bystander = await asyncpg.connect(fresh_database)
    try:
        await bystander.execute("begin; lock table mcp.snapshot_policies")
        waiting = asyncio.create_task(shared.tenants(SNAPSHOTS.with_due_policies))
        assert await shared.tenants(TENANTS.with_late_workers) == [tenant_id]
        assert await asyncio.gather(*map(shared.tenants, (TENANTS.with_overdue_jobs, TENANTS.with_pending))) == [[], []]
        assert not waiting.done()
        await bystander.execute("rollback")
    finally:
        await bystander.close()
    assert await waiting == []
    assert sorted(counted.asked) == [
        "looks",
        "snapshots.with_due_policies",
        *(f"tenants.with_{name}" for name in APART),
    ]


async def test_pauses_of_one_interval_end_at_one_moment_and_are_never_next_to_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Looks(database)
    ends: set[float] = set()
    for tenth in range(100):
        monkeypatch.setattr(time, "monotonic", lambda now=1_000 + tenth / 10: now)
        pause_s = shared.pause_s(2.0)
        assert 0.2 < pause_s <= 2.2
        ends.add(round(1_000 + tenth / 10 + pause_s, 6))
    assert len({round(end % 2, 5) for end in ends}) == 1
    assert len(ends) in (5, 6, 7)  # in ten seconds, of which the phase decides where they end
