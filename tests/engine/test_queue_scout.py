"""A scout looks at the front of queues, where claims would walk through what an old transaction keeps."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from devmesh import operations
from devmesh.core.errors import Kind, MeshError
from devmesh.engine import queue_scout
from devmesh.engine.bell import Bell
from devmesh.engine.queue_scout import QueueScout
from devmesh.operations.corridor import Corridor
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store import claim_horizons
from devmesh.store.vault import Vault
from tests.conftest import run_sql
from tests.engine.calling import call
from tests.harness import eventually
from tests.sealed import new_tenant, opened

operations.load_all()
LONG_AGO = "update mcp.jobs_ready set run_at = now() - interval '1 hour' where job_id = '{}'"


class Queue:
    """A corridor on a database of its own, and a worker that claims."""

    def __init__(self, dsn: str, runner: WorkRunner, tenant_id: uuid.UUID) -> None:
        self.dsn, self.runner, self.scout = dsn, runner, QueueScout(runner)
        self._tenant_id, self._corridor = tenant_id, Corridor(runner, Settings())
        self.worker_id = ""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await call(self._corridor, self._tenant_id, method, **params)

    async def enqueue(self) -> str:
        return str((await self.call("job.enqueue", type="t"))["job"]["id"])

    async def claim(self) -> list[str]:
        return [job["id"] for job in (await self.call("job.claim", worker_id=self.worker_id, limit=10))["jobs"]]


@pytest_asyncio.fixture
async def queue(fresh_database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Queue]:
    """Every look from the front counts as one that costs much, and the next is due at once."""
    monkeypatch.setattr(claim_horizons, "COSTLY", datetime.timedelta(0))
    monkeypatch.setattr(claim_horizons, "FRONT_LOOK_INTERVAL", datetime.timedelta(0))
    async with opened(fresh_database) as database:
        made = Queue(fresh_database, WorkRunner(database, Bell([], 5.0), Vault()), await new_tenant(database))
        made.worker_id = (await made.call("worker.register", name="w", capacity=100))["worker"]["id"]
        assert not await made.scout.run_once(), "there is nothing to look through"
        yield made


async def left_behind(queue: Queue) -> str:
    """A job that was committed late: claims have gone on from there, and find it no more by themselves."""
    await queue.claim()
    late = await queue.enqueue()
    run_sql(queue.dsn, LONG_AGO.format(late))
    newer = await queue.enqueue()
    assert await queue.claim() == [newer]
    return late


async def test_what_was_passed_over_is_seen_by_the_scout_and_taken_by_the_next_claim(queue: Queue) -> None:
    first = await queue.enqueue()
    assert await queue.claim() == [first], "the first look is a claim's, and from the front"
    late = await left_behind(queue)
    assert await queue.claim() == []
    assert await queue.scout.run_once()
    assert not await queue.scout.run_once(), "there was one queue to look through"
    assert await queue.claim() == [late]


async def test_a_claim_that_ends_by_its_deadline_leaves_the_front_to_the_scout(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_horizons, "BROKEN_OFF", datetime.timedelta(seconds=0.1))
    queue.runner.database._transaction_deadline_s = 0.3
    old = await queue.enqueue()
    run_sql(queue.dsn, LONG_AGO.format(old))
    holder = await asyncpg.connect(queue.dsn)
    try:
        async with holder.transaction():
            await holder.execute("lock table mcp.jobs_ready in access exclusive mode")
            with pytest.raises(MeshError) as ended:
                await queue.claim()
        assert ended.value.kind is Kind.TIMEOUT
    finally:
        await holder.close()
    newer = await queue.enqueue()
    assert await queue.claim() == [newer]
    assert await queue.scout.run_once()
    assert await queue.claim() == [old]


async def test_a_scout_that_hangs_is_unhealthy_and_one_that_has_failed_degraded(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_scout, "LOOK_S_MAX", 0.5)
    monkeypatch.setattr(queue_scout, "INTERVAL_S", 0.5)
    await left_behind(queue)
    scout = QueueScout(queue.runner)
    holder = await asyncpg.connect(queue.dsn)

    async def is_told(status: str, message: str, pass_s_max: float) -> bool:
        found = await scout.check(pass_s_max)
        return found.status == status and message in (found.message or "")

    try:
        async with holder.transaction():
            await holder.execute("lock table mcp.jobs_ready in access exclusive mode")
            scout.start()
            await eventually(lambda: is_told("unhealthy", "under way", 0.05), "it hangs")
            await eventually(lambda: is_told("degraded", "failed", 30.0), "it has failed")
        await eventually(lambda: is_told("healthy", "", 30.0), "it goes on")
    finally:
        await holder.close()
        await scout.stop()
