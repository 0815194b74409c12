"""What moves jobs when nobody asks gets on with all the others, whatever is the matter with one of them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from devmesh import operations
from devmesh.core.errors import Kind, MeshError
from devmesh.engine import job_promoter, scheduler
from devmesh.engine.bell import Bell
from devmesh.engine.job_promoter import JobPromoter
from devmesh.engine.job_reaper import JobReaper
from devmesh.engine.looks import Looks
from devmesh.engine.scheduler import Scheduler
from devmesh.operations import job_dependencies, schedule_firing
from devmesh.operations.corridor import Corridor
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.vault import Vault
from tests.conftest import run_sql
from tests.engine.calling import call
from tests.sealed import new_tenant, opened

operations.load_all()
OVERDUE = "update mcp.jobs_leased set lease_until = now() - interval '1 s'"
TOO_SLOW = """
    create function mcp.be_slow() returns trigger language plpgsql as
    $$ begin raise exception 'too slow' using errcode = 'query_canceled'; end $$;
    create trigger slow before delete on mcp.jobs_leased for each row when (old.job_id = '{}') execute function mcp.be_slow()
"""


class Node:
    """A corridor on a database of its own, with a tenant and a worker of jobs."""

    def __init__(self, dsn: str, runner: WorkRunner, tenant_id: uuid.UUID) -> None:
        self.dsn, self.runner, self.tenant_id = dsn, runner, tenant_id
        self._corridor = Corridor(runner, Settings())

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await call(self._corridor, self.tenant_id, method, **params)

    async def enqueue(self, **spec: Any) -> str:
        return str((await self.call("job.enqueue", type="t", **spec))["job"]["id"])

    async def status(self, job_id: str) -> str:
        return str((await self.call("job.get", job_id=job_id))["job"]["status"])

    async def claim(self) -> None:
        worker = (await self.call("worker.register", name=uuid.uuid4().hex, capacity=100))["worker"]["id"]
        await self.call("job.claim", worker_id=worker, queues=["default"], limit=100)


@pytest_asyncio.fixture
async def node(fresh_database: str) -> AsyncIterator[Node]:
    async with opened(fresh_database) as database:
        runner = WorkRunner(database, Bell([], 5.0), Vault())
        yield Node(fresh_database, runner, await new_tenant(database))


async def test_an_attempt_that_cannot_be_ended_in_time_keeps_no_other_from_its_end(node: Node) -> None:
    slow, *others = [await node.enqueue(max_retries=0) for _ in range(4)]
    await node.claim()
    run_sql(node.dsn, OVERDUE)
    run_sql(node.dsn, TOO_SLOW.format(slow))
    with pytest.raises(MeshError, match="too long") as late:
        await JobReaper(node.runner, Looks(node.runner.database), 1.0).run_once()
    assert late.value.kind is Kind.TIMEOUT
    assert [await node.status(job_id) for job_id in (slow, *others)] == ["PROCESSING"] + ["FAILED"] * 3


async def test_no_more_are_promoted_at_once_than_claims_may_miss_for_a_moment(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_promoter, "PROMOTED_MAX", 2)
    monkeypatch.setattr(job_promoter, "PROMOTED_TOGETHER_MAX", 3)
    for queue in ("a", "b", "c", "d"):
        for _ in range(2):
            await node.enqueue(queue=queue, priority=1)
    promoter = JobPromoter(node.runner, Looks(node.runner.database), 1.0, 1e-6, 0)
    promoted: list[int] = []
    is_more = True
    while is_more:
        is_more = await promoter.run_once()
        promoted.append(int(run_sql(node.dsn, "select count(*) from mcp.jobs_ready where priority = 2")))
    assert promoted[:3] == [3, 6, 8]


async def test_a_schedule_in_a_time_zone_that_is_not_known_here_keeps_no_other_from_firing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_firing, "FIRED_MAX", 2)
    monkeypatch.setattr(scheduler, "FIRED_MAX", 2)
    timing = {"cron": "* * * * *", "time_zone": "Europe/Berlin"}
    made = [await node.call("schedule.create", name=f"s{number}", job={"type": "t"}, **timing) for number in range(6)]
    odd, *others = [each["schedule"]["id"] for each in made]
    run_sql(node.dsn, "update mcp.schedules set next_fire_at = date_trunc('minute', now())")
    run_sql(node.dsn, f"update mcp.schedules set time_zone = 'Europe/Atlantis' where schedule_id = '{odd}'")
    while await Scheduler(node.runner, Looks(node.runner.database), 1.0, 60.0).run_once():
        pass
    fired = {each: (await node.call("schedule.get", schedule_id=each)) for each in (odd, *others)}
    assert [fired[each]["schedule"]["fired_count"] for each in (odd, *others)] == [0, 1, 1, 1, 1, 1]
    assert [len(fired[each]["upcoming"]) for each in (odd, *others)] == [0, 5, 5, 5, 5, 5]
    await node.call("schedule.pause", schedule_id=odd)
    with pytest.raises(MeshError, match="no time zone 'Europe/Atlantis'"):
        await node.call("schedule.resume", schedule_id=odd)
    await node.call("schedule.update", schedule_id=odd, time_zone="Europe/Berlin")
    await node.call("schedule.resume", schedule_id=odd)


async def test_so_many_may_wait_for_one_as_can_go_on_in_one_transaction(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_dependencies, "CHILDREN_MAX", 3)
    parent, other, last = [await node.enqueue() for _ in range(3)]
    children = [await node.enqueue(depends_on=[parent]) for _ in range(3)]
    for method, about in (("job.enqueue", {"type": "t"}), ("job.depend", {"job_id": last})):
        with pytest.raises(MeshError, match=f"3 jobs wait for job {parent} already") as refused:
            await node.call(method, depends_on=[other, parent], **about)
        assert refused.value.data.reason == "job.children_max"
    await node.enqueue(depends_on=[other])
    await node.call("job.cancel", job_id=children[0])
    await node.enqueue(depends_on=[parent])
