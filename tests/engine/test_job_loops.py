"""What moves jobs when nobody asks gets on with all the others, whatever is the matter with one of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from devmesh import operations
from devmesh.core.errors import Kind, MeshError
from devmesh.engine import apart, job_promoter, scheduler
from devmesh.engine.bell import Bell
from devmesh.engine.job_promoter import JobPromoter
from devmesh.engine.job_reaper import JobReaper
from devmesh.engine.looks import Looks
from devmesh.engine.scheduler import Scheduler
from devmesh.engine.worker_watch import WorkerWatch
from devmesh.operations import job_dependencies, schedule_firing
from devmesh.operations.corridor import Corridor
from devmesh.operations.work import WorkRunner
from devmesh.settings import Settings
from devmesh.store.vault import Vault
from tests.conftest import run_sql
from tests.engine.calling import call
from tests.harness import eventually
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

    async def claim(self, limit: int = 100, **about: Any) -> str:
        """A new worker, which holds what it was given."""
        worker = (await self.call("worker.register", name=uuid.uuid4().hex, capacity=100, **about))["worker"]["id"]
        await self.call("job.claim", worker_id=worker, queues=["default"], limit=limit)
        return str(worker)

    async def worker_status(self, worker_id: str) -> str:
        return str((await self.call("worker.get", worker_id=worker_id))["worker"]["status"])


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


async def test_attempts_that_are_ended_apart_keep_no_other_tenant_waiting_for_all_of_them(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "APART_S", 0.0)
    slow, *others = [await node.enqueue(max_retries=0) for _ in range(5)]
    await node.claim()
    run_sql(node.dsn, OVERDUE)
    run_sql(node.dsn, TOO_SLOW.format(slow))
    reaper, ended = JobReaper(node.runner, Looks(node.runner.database), 1.0), list[int]()
    while not ended or ended[-1] < len(others):
        with contextlib.suppress(MeshError):
            assert await reaper.run_once(), "there is more"
        ended.append([await node.status(job_id) for job_id in others].count("FAILED"))
    assert all(now - before <= 1 for before, now in itertools.pairwise([0, *ended]))
    run_sql(node.dsn, "drop trigger slow on mcp.jobs_leased")
    assert not await reaper.run_once()
    assert await node.status(slow) == "FAILED"


async def test_a_worker_whose_jobs_cannot_be_taken_in_time_keeps_none_of_them_nor_another_from_being_given_up(
    node: Node,
) -> None:
    about: dict[str, Any] = {"heartbeat_interval_s": 0.1, "stale_after_s": 0.5}
    slow, *others = [await node.enqueue(max_retries=0) for _ in range(6)]
    stuck = await node.claim(5, **about)
    gone = await node.claim(**about)
    run_sql(node.dsn, TOO_SLOW.format(slow))
    watch = WorkerWatch(node.runner, Looks(node.runner.database), 1.0, 7)

    async def is_given_up() -> bool:
        with contextlib.suppress(MeshError):
            await watch.run_once()
        return await node.worker_status(gone) == "FAILED" and await node.status(others[0]) == "FAILED"

    await eventually(is_given_up, "the other worker is given up")
    with pytest.raises(MeshError, match="too long"):
        await watch.run_once()
    assert await node.worker_status(stuck) != "FAILED", "it is when nothing is left in its hand"
    assert [await node.status(job_id) for job_id in (slow, *others)] == ["PROCESSING"] + ["FAILED"] * 5
    run_sql(node.dsn, "drop trigger slow on mcp.jobs_leased")
    await watch.run_once()
    assert (await node.worker_status(stuck), await node.status(slow)) == ("FAILED", "FAILED")


@pytest.mark.parametrize("verb", ["evacuate", "deregister", "register"])
async def test_what_another_was_given_meanwhile_is_not_taken_from_it_with_the_rest(node: Node, verb: str) -> None:
    """It was looked for while the one held it, and had moved when it was to be locked."""
    job_id = await node.enqueue(max_retries=0)
    former, heir = await node.claim(instance_id=str(uuid.uuid4())), await node.claim()
    name = (await node.call("worker.get", worker_id=former))["worker"]["name"]
    asked = {"name": name, "instance_id": str(uuid.uuid4())} if verb == "register" else {"worker_id": former}
    mover = await asyncpg.connect(node.dsn)
    async with mover.transaction():
        await mover.execute("select from mcp.jobs_leased where job_id = $1 for update", uuid.UUID(job_id))
        taking = asyncio.create_task(node.call(f"worker.{verb}", **asked))
        waiting = "select count(*) from pg_locks where not granted"
        await eventually(lambda: run_sql(node.dsn, waiting) != "0", "it waits for the job")
        await mover.execute("update mcp.jobs_leased set worker_id = $1", uuid.UUID(heir))
    await mover.close()
    assert (await taking).get("released", 0) == 0
    job = (await node.call("job.get", job_id=job_id))["job"]
    assert (job["status"], job["worker_id"]) == ("PROCESSING", heir)


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
