"""J38, J39, J46 and their kin: workers that stop, die, do not listen, or bear one name; and queues that are long."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from devmesh.client import Client
from devmesh.core.ids import new_ids
from devmesh.store.claim_horizons import BEGINNING
from devmesh.store.connections import session_settings
from devmesh.store.jobs import JOB_COLUMNS, READY_COLUMNS, SQL
from tests.harness import Child, Mesh, create_admin_key, eventually
from tests.judging import broken_rules
from tests.scenarios.archive import Archive, Bystander
from tests.scenarios.jobs import Bench

APP = """
import asyncio, time
from devmesh.client import Mesh

mesh = Mesh(capacity={capacity}, lease_s=1.0, worker={worker!r})

@mesh.job("first_slow")
async def first_slow(job):
    await asyncio.sleep(job.payload if job.attempt == 1 else 0)
    return {worker!r}

@mesh.job("nap")
async def nap(job):
    await asyncio.sleep(job.payload)

@mesh.job("deaf")
async def deaf(job):
    ends_at = time.monotonic() + job.payload
    while time.monotonic() < ends_at:
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            pass
    return "heard nothing"
"""
LEFT = "select (select count(*) from mcp.jobs_ready) + (select count(*) from mcp.jobs_leased)"
ENDS = """
select outcomes, count(*) from (
    select string_agg(outcome, ' ' order by attempt) as outcomes from mcp.job_executions group by job_id) each
group by outcomes
"""


class Broken:
    """A mesh that may be broken, with the client of an owner of jobs, and a look at the tables."""

    def __init__(self, mesh: Mesh, client: Client, connection: asyncpg.Connection, directory: Path) -> None:
        self.mesh, self.client, self._connection, self._directory = mesh, client, connection, directory

    def add_worker(self, file: str, *, name: str = "", capacity: int = 50, **settings: str) -> Child:
        (self._directory / f"{file}.py").write_text(APP.format(capacity=capacity, worker=name or file))
        child = self.mesh.add("worker", DEVMESH_WORKER_APP=f"{file}:mesh", **settings)
        child.start()
        child.wait_ready()
        return child

    async def enqueue(self, count: int, job_type: str, payload: Any, **more: Any) -> list[str]:
        specs = [{"type": job_type, "payload": payload, "backoff_ms": 0, **more}] * count
        return [job["id"] for job in (await self.client.call("job.enqueue_many", jobs=specs))["jobs"]]

    async def value(self, sql: str, *args: Any) -> Any:
        return await self._connection.fetchval(sql, *args)

    async def holds(self, count: int) -> bool:
        return bool(await self.value("select count(*) from mcp.jobs_leased") == count)

    async def all_over(self, within_s: float = 20.0) -> None:
        async def is_over() -> bool:
            return not await self.value(LEFT)

        await eventually(is_over, "no job waits or runs", within_s)

    async def outcomes(self) -> dict[str, int]:
        """How often the attempts of all jobs ended as, in their order."""
        rows = await self._connection.fetch(ENDS)
        return {row["outcomes"]: row["count"] for row in rows}


@pytest_asyncio.fixture
async def broken_mesh(own_mesh: Callable[..., Mesh], tmp_path: Path) -> AsyncIterator[Broken]:
    mesh = own_mesh("rest-api", "mcp-server")
    connection = await asyncpg.connect(mesh.dsn)
    try:
        async with Client(mesh.ws_url, mesh.admin_key) as client:
            yield Broken(mesh, client, connection, tmp_path)
    finally:
        await connection.close()


@pytest.mark.soak
async def test_j38_of_1000_jobs_of_stopped_workers_none_is_written_by_them(broken_mesh: Broken) -> None:
    zombies = [broken_mesh.add_worker(f"zombie_{number}", capacity=500) for number in range(2)]
    await broken_mesh.enqueue(1_000, "first_slow", 3.0)
    await eventually(lambda: broken_mesh.holds(1_000), "all are held")
    for zombie in zombies:
        zombie.signal(signal.SIGSTOP)
    for number in range(2):
        broken_mesh.add_worker(f"other_{number}", capacity=500)
    await broken_mesh.all_over()
    assert await broken_mesh.outcomes() == {"LEASE_LOST COMPLETED": 1_000}
    for zombie in zombies:
        zombie.signal(signal.SIGCONT)

    def have_tried() -> int:
        return sum(zombie.log.read_text().count("is over; the job is not held any more") for zombie in zombies)

    await eventually(lambda: have_tried() == 1_000, "each zombie says what became of its jobs, and is refused")
    assert await broken_mesh.outcomes() == {"LEASE_LOST COMPLETED": 1_000}
    by_others = "select count(*) from mcp.job_executions where outcome = 'COMPLETED' and result #>> '{}' like 'other_%'"
    assert await broken_mesh.value(by_others) == 1_000
    assert await broken_rules(broken_mesh.mesh.dsn) == []


@pytest.mark.soak
async def test_j39_a_worker_is_killed_every_second_for_a_minute_and_no_job_is_lost_or_done_twice(
    broken_mesh: Broken,
) -> None:
    workers = [broken_mesh.add_worker(f"worker_{number}", capacity=40) for number in range(2)]
    made, ends_at, killed = 0, time.monotonic() + 60.0, 0
    while time.monotonic() < ends_at:
        # So many, for so long, that whoever is killed has some in hand, however fast the machine.
        made += len(await broken_mesh.enqueue(60, "nap", 0.7, max_retries=50))
        await asyncio.sleep(1.0)
        victim = workers[killed % 2]
        victim.kill()
        victim.start()
        killed += 1
    await broken_mesh.all_over(60.0)
    assert killed > 30
    assert await broken_mesh.value("select count(*) from mcp.job_executions where outcome = 'COMPLETED'") == made
    # The next process of the name gives back what the one before held, unless the lease ends before.
    cut_off = "select count(*) from mcp.job_executions where outcome in ('RELEASED', 'LEASE_LOST')"
    assert await broken_mesh.value(cut_off) > killed
    assert await broken_rules(broken_mesh.mesh.dsn) == []


def has_registered(worker: Child) -> bool:
    return "takes jobs of" in worker.tail()


async def test_two_workers_of_one_name_share_its_capacity_and_do_each_job_once(broken_mesh: Broken) -> None:
    for file in ("first", "second"):
        added = broken_mesh.add_worker(file, name="same", capacity=10)
        # Who registers under a name takes back what was held under it: that is not what this is about.
        await eventually(functools.partial(has_registered, added), "it has registered")
    assert len((await broken_mesh.client.call("worker.list"))["workers"]) == 1
    await broken_mesh.enqueue(100, "nap", 0.05)
    most = 0
    while left := await broken_mesh.value(LEFT):
        most = max(most, await broken_mesh.value("select count(*) from mcp.jobs_leased"))
        assert left <= 100
    assert 0 < most <= 10
    assert await broken_mesh.outcomes() == {"COMPLETED": 100}
    assert await broken_rules(broken_mesh.mesh.dsn) == []


async def test_a_handler_that_does_not_listen_holds_up_neither_its_worker_s_end_nor_its_job(
    broken_mesh: Broken,
) -> None:
    deaf = broken_mesh.add_worker("deaf", DEVMESH_SHUTDOWN_GRACE_S="0.5")
    [job_id] = await broken_mesh.enqueue(1, "deaf", 30.0)
    await eventually(lambda: broken_mesh.holds(1), "it runs")
    deaf.signal(signal.SIGTERM)
    assert await asyncio.to_thread(deaf.wait, 8.0) == 0
    broken_mesh.add_worker("other")
    again = "select count(*) from mcp.jobs_leased where job_id = $1 and attempt = 2"
    await eventually(lambda: broken_mesh.value(again, job_id), "another has it")
    assert await broken_rules(broken_mesh.mesh.dsn) == []


WORKER_MADE = """
insert into mcp.workers (tenant_id, worker_id, owner_id, name, queues, capacity, heartbeat_interval_s)
values ($1, $2::uuid, $2, $2::text, '{q}', 100, 60)
"""


async def buffers_of_a_claim(dsn: str, waiting: int) -> int:
    """Pages that a claim of 50 jobs touches when so many wait, claimed or not."""
    connection = await asyncpg.connect(dsn, server_settings=session_settings("tests", 60.0))
    try:
        tenant = await connection.fetchval("select tenant_id from mcp.tenants")
        [worker] = new_ids(1)
        await connection.execute(WORKER_MADE, tenant, worker)
        made = new_ids(waiting)
        jobs = [
            (tenant, job_id, worker, 1_000, 0, 3, 1 + place % 5, "q", "t", "{}", None, None, None, None)
            for place, job_id in enumerate(made)
        ]
        ready = [(tenant, job_id, 1 + place % 5, "q") for place, job_id in enumerate(made)]
        async with connection.transaction():
            await connection.copy_records_to_table("jobs", schema_name="mcp", columns=JOB_COLUMNS, records=jobs)
            await connection.copy_records_to_table(
                "jobs_ready", schema_name="mcp", columns=READY_COLUMNS, records=ready
            )
        explained = f"explain (analyze, buffers, format json) {SQL.claim.text}"
        claimed = await connection.fetchval(
            explained, tenant, worker, None, ["q"], 50, 1 << 25, 60.0, [BEGINNING] * 5, BEGINNING, True
        )
        plan = json.loads(claimed)[0]["Plan"]
        assert plan["Actual Rows"] == 1 + 50, "what was found, and the jobs"
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    finally:
        await connection.close()


async def test_a_queue_whose_jobs_others_are_taking_hides_those_of_no_other(
    archive: Archive, bench: Bench, bystander: Bystander
) -> None:
    taken, waiting, rated = queues = [f"{bench.queue}{letter}" for letter in "abc"]
    await bench.wire.call("queue.limit", queue=rated, rate_per_s=1, burst=1)
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": rated, "priority": 1}] * 2)
    assert len(await bench.claim(queues=[rated])) == 1, "there is a row with its tokens now"
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": waiting, "priority": 2}] * 4)
    archive.run(
        f"update mcp.jobs_ready set run_at = run_at - interval '1 min' where tenant_id = $1 and queue = '{waiting}'"
    )
    assert len(await bench.claim(limit=2, queues=[waiting])) == 2, "the look from the front is over"
    await bench.wire.call("job.enqueue_many", jobs=[{"type": "t", "queue": taken, "priority": 5}] * 2)
    await bystander.begin("select from mcp.jobs_ready where queue = $1 for update", taken)
    await bystander.connection.execute("savepoint before")
    await bystander.connection.fetch("select from mcp.queue_tokens where queue = $1 for update", rated)
    claiming = asyncio.create_task(bench.claim(limit=2, queues=queues))

    async def costs_much() -> bool:
        held_up = "wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '50 ms'"
        return bool(await bystander.connection.fetchval(f"select true from pg_stat_activity where {held_up} limit 1"))

    await eventually(costs_much, "its look has taken long")
    await bystander.connection.execute("rollback to savepoint before")
    assert await claiming == [], "there was room for two, which somebody else was taking"
    await bystander.commit()
    assert len(await bench.claim(queues=[waiting])) == 2


async def test_j46_with_100000_waiting_a_claim_touches_no_more_than_twice_the_pages_that_it_does_with_100(
    fresh_database: str,
) -> None:
    await create_admin_key(fresh_database, "default")
    few, many = [await buffers_of_a_claim(fresh_database, waiting) for waiting in (100, 100_000)]
    assert many <= 2 * few, f"{few} pages at 100 waiting, {many} at 100,000"
