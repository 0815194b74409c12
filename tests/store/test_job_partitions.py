"""A month of jobs is dropped when none of them waits, runs or may be replayed, and how they ended not before them."""

from __future__ import annotations

import asyncio
import datetime

import asyncpg
from tests.conftest import run_sql
from tests.harness import eventually

from devmesh import telemetry
from devmesh.store import partitions
from devmesh.store.database import Database
from devmesh.store.partitions import Policy, plus_months
from devmesh.store.statements import load

POLICY = Policy(12, 6)
PUT_BACK = (
    "insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, priority, queue)"
    " select tenant_id, run_at, job_id, created_at, priority, queue from mcp.jobs where created_at = "
)


def month(number: int) -> datetime.date:
    """This month, or that many later."""
    return plus_months(datetime.datetime.now(datetime.UTC).date().replace(day=1), number)


def first_of(number: int) -> str:
    return f"'{month(number)}Z'::timestamptz"


async def make_jobs(database: Database, dsn: str, *months: int) -> None:
    """Old jobs that are over, one a month, in partitions of their own."""
    for table in ("jobs", "job_executions"):
        await partitions.ensure(database, 12, [table])
    run_sql(
        dsn,
        "insert into mcp.jobs (tenant_id, job_id, created_at, run_at, created_by_key_id, timeout_ms, backoff_ms, max_retries,"
        " priority, queue, type, payload)"
        f" select gen_random_uuid(), gen_random_uuid(), at, at, gen_random_uuid(), 1, 1, 1, 3, 'q', 't', '{{}}'"
        f" from unnest(array[{','.join(map(first_of, months))}]) at",
    )
    await partitions.drain(database, "jobs")


async def test_a_month_of_jobs_is_kept_while_one_of_them_is_alive(database: Database, fresh_database: str) -> None:
    await make_jobs(database, fresh_database, -9, -11)
    run_sql(fresh_database, PUT_BACK + first_of(-9))
    assert [part.name for part in await partitions.prune(database, POLICY)] == [f"jobs_{month(-11):%Y_%m}"]
    run_sql(fresh_database, "delete from mcp.jobs_ready")
    assert [part.name for part in await partitions.prune(database, POLICY)] == [f"jobs_{month(-9):%Y_%m}"]


async def test_a_month_of_jobs_is_kept_when_one_of_them_is_put_back_to_work_while_it_is_to_be_dropped(
    database: Database, fresh_database: str
) -> None:
    await make_jobs(database, fresh_database, -9, -11)
    await partitions._make(database, "job_executions", month(-8))

    def put_off() -> float:
        found = telemetry.REGISTRY.get_sample_value("devmesh_partition_changes_put_off_total", {"table": "jobs"})
        return found or 0.0

    before = put_off()
    user = await asyncpg.connect(fresh_database)
    try:
        async with user.transaction():
            await user.fetch(load("job_dependencies").lock.text, "00000000-0000-0000-0000-000000000001")
            pruning = asyncio.create_task(partitions.prune(database, POLICY))

            async def is_put_off() -> bool:
                return put_off() > before or pruning.done()

            await eventually(is_put_off, "it waits until the job is back")
            await user.execute(PUT_BACK + first_of(-9))
        assert [part.name for part in await pruning] == [f"jobs_{month(-11):%Y_%m}"]
    finally:
        await user.close()
    assert run_sql(fresh_database, "select count(*) from mcp.jobs") == "1"
    run_sql(fresh_database, "delete from mcp.jobs_ready")
    names = [part.name for part in await partitions.prune(database, POLICY)]
    assert names == [f"jobs_{month(-9):%Y_%m}", f"job_executions_{month(-8):%Y_%m}"]


async def test_how_jobs_ended_is_kept_as_long_as_they_are(database: Database) -> None:
    for table in ("jobs", "job_executions"):
        await partitions.ensure(database, 2, [table])
    for number in (8, 7):
        for table in ("jobs", "job_executions"):
            await partitions._make(database, table, month(-number))
    longer = Policy(2, 6, {"jobs": 8})
    oldest, next_one = f"job_executions_{month(-8):%Y_%m}", f"job_executions_{month(-7):%Y_%m}"
    assert await partitions.expired(database, longer) == []
    assert await partitions.prune(database, longer, ["job_executions"]) == []
    assert [part.name for part in await partitions.prune(database, Policy(2, 6), ["jobs"])][
        -1
    ] < f"jobs_{month(-6):%Y_%m}"
    assert [part.name for part in await partitions.prune(database, Policy(2, 6))] == [oldest, next_one]
