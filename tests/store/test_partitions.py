"""Partitions are made, drained and dropped while others read and write: nobody waits long, nothing is lost or seen twice."""

from __future__ import annotations

import asyncio
import datetime
import re
import time
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.conftest import run_sql
from tests.harness import eventually

from devmesh.core.errors import Kind, MeshError
from devmesh.engine import partition_keeper
from devmesh.engine.fanout import Fanout
from devmesh.engine.partition_keeper import PartitionKeeper
from devmesh.engine.stream import Stream
from devmesh.settings import Settings
from devmesh.store import partitions
from devmesh.store.database import Database
from devmesh.store.partitions import Policy, TableReport, plus_months
from devmesh.store.statements import load

POLICY = Policy(12, 6)
OTHER_TIMES = "'1999-12-31 23:59:59Z'", "'2001-02-03Z'", "'2001-02-28 23:59:59Z'", "'2900-01-01Z'"


@pytest.fixture
async def database(fresh_database: str) -> AsyncIterator[Database]:
    opened = await Database.open(
        fresh_database, service="tests", pool_size_min=1, pool_size_max=4, transaction_deadline_s=10.0
    )
    yield opened
    await opened.close()


def month(number: int) -> datetime.date:
    """This month, or that many later."""
    return plus_months(datetime.datetime.now(datetime.UTC).date().replace(day=1), number)


def partition_of(table: str, number: int) -> str:
    return f"mcp.{table}_{month(number):%Y_%m}"


async def report_of(database: Database, table: str) -> TableReport:
    return next(report for report in await partitions.report(database) if report.table == table)


def insert_audit(dsn: str, *times: str) -> None:
    for at in times:
        run_sql(
            dsn,
            f"insert into mcp.audit_log (tenant_id, audit_id, at, operation, outcome)"
            f" values (gen_random_uuid(), gen_random_uuid(), {at}, 'test', 'done')",
        )


def rows_by_partition(dsn: str, table: str) -> dict[str, int]:
    found = run_sql(dsn, f"select tableoid::regclass, count(*) from mcp.{table} group by 1 order by 1").splitlines()
    return {name.partition("|")[0].removeprefix("mcp."): int(name.partition("|")[2]) for name in found}


def new_tenant(dsn: str) -> str:
    tenant = str(uuid.uuid4())
    run_sql(dsn, f"insert into mcp.tenants (tenant_id, name) values ('{tenant}', 't{tenant}')")
    return tenant


def append(dsn: str, tenant: str) -> int:
    return int(run_sql(dsn, f"select mcp.append_events('{tenant}', '{{task.created}}', '{{tenant}}', '{{\"{{}}\"}}')"))


async def test_a_fresh_schema_is_well_and_every_partitioned_table_is_known(
    database: Database, fresh_database: str
) -> None:
    reports = await partitions.report(database)
    assert {report.status for report in reports} == {"healthy"}
    assert {report.months_ahead for report in reports} == {12}
    partitioned = run_sql(
        fresh_database, "select relname from pg_class where relkind = 'p' and relnamespace = 'mcp'::regnamespace"
    )
    assert set(partitioned.split()) == set(partitions.TABLES)
    for table in partitions.TABLES:
        settings = Settings.load({"DEVMESH_PARTITION_MONTHS_KEPT_BY_TABLE": f"{table}=24"})
        assert Policy.of(settings).kept(table) == 24


async def test_what_is_missing_is_named_and_made(database: Database, fresh_database: str) -> None:
    run_sql(fresh_database, f"drop table {partition_of('events', 1)}, mcp.events_default")
    report = await report_of(database, "events")
    assert (report.status, report.months_ahead) == ("degraded", 0)
    assert f"none for {month(1):%Y-%m}" in report.message
    assert "no default partition" in report.message
    assert "devmesh partitions ensure" in report.message
    made = await partitions.ensure(database, 14)
    assert {f"mcp.{name}" for name in made if name.startswith("events")} == {
        "mcp.events_default",
        *(partition_of("events", number) for number in (1, 13, 14)),
    }
    assert (await report_of(database, "events")).months_ahead == 14
    assert await partitions.ensure(database, 14) == []


async def test_a_table_that_takes_no_rows_is_unhealthy(database: Database, fresh_database: str) -> None:
    run_sql(fresh_database, f"drop table {partition_of('api_logs', 0)}, mcp.api_logs_default")
    found = partitions.judge(await partitions.report(database))
    assert found.status == "unhealthy"
    assert f"mcp.api_logs takes no rows of {month(0):%Y-%m}" in found.message


async def test_a_month_that_was_detached_comes_back_with_its_rows(database: Database, fresh_database: str) -> None:
    insert_audit(fresh_database, "now()")
    run_sql(fresh_database, f"alter table mcp.audit_log detach partition {partition_of('audit_log', 0)}")
    assert await partitions.ensure(database, 12, ["audit_log"]) == [f"audit_log_{month(0):%Y_%m}"]
    assert rows_by_partition(fresh_database, "audit_log") == {f"audit_log_{month(0):%Y_%m}": 1}


async def test_a_table_that_has_a_month_s_name_is_left_alone(database: Database, fresh_database: str) -> None:
    run_sql(fresh_database, f"drop table {partition_of('events', 2)}")
    run_sql(fresh_database, f"create table {partition_of('events', 2)} as select 'ours' as whose")
    with pytest.raises(MeshError, match=f"events_{month(2):%Y_%m} is a table that does not fit") as refused:
        await partitions.ensure(database, 12)
    assert refused.value.kind is Kind.CONFLICT
    assert run_sql(fresh_database, f"select whose from {partition_of('events', 2)}") == "ours"


async def test_rows_of_any_month_are_drained_to_it(database: Database, fresh_database: str) -> None:
    insert_audit(fresh_database, "now()", *OTHER_TIMES)
    report = await report_of(database, "audit_log")
    assert (report.status, report.rows_in_default) == ("degraded", 4)
    assert "drain-default" in report.message
    assert await partitions.drain(database, "audit_log") == 4
    assert rows_by_partition(fresh_database, "audit_log") == {
        "audit_log_1999_12": 1, "audit_log_2001_02": 2, f"audit_log_{month(0):%Y_%m}": 1, "audit_log_2900_01": 1,
    }  # fmt: skip
    assert (await report_of(database, "audit_log")).status == "healthy"
    assert await partitions.drain(database, "audit_log") == 0
    left = run_sql(
        fresh_database, "select relname from pg_class where relkind <> 'i' and relname ~ '^audit_log.*_(drain|gone)'"
    )
    assert left == "", "nothing of the draining is left"


async def test_rows_in_more_months_than_are_drained_at_once(database: Database, fresh_database: str) -> None:
    run_sql(
        fresh_database,
        "insert into mcp.audit_log (tenant_id, audit_id, at, operation, outcome)"
        " select gen_random_uuid(), gen_random_uuid(), '2001-01-15Z'::timestamptz + n * interval '1 month', 'test', 'done'"
        " from generate_series(0, 19) n",
    )
    assert await partitions.drain(database, "audit_log") == 20
    assert rows_by_partition(fresh_database, "audit_log") == {
        f"audit_log_{plus_months(datetime.date(2001, 1, 1), number):%Y_%m}": 1 for number in range(20)
    }


async def test_readers_see_each_row_once_while_writers_go_on_and_a_month_is_drained(
    database: Database, fresh_database: str
) -> None:
    """The month that everybody writes to has no partition: the hardest case."""
    run_sql(fresh_database, f"drop table {partition_of('audit_log', 0)}")
    run_sql(
        fresh_database,
        "insert into mcp.audit_log (tenant_id, audit_id, operation, outcome)"
        " select gen_random_uuid(), gen_random_uuid(), 'test', 'done' from generate_series(1, 30000)",
    )
    written = read = 0
    is_over = False

    async def write() -> None:
        nonlocal written
        connection = await asyncpg.connect(fresh_database)
        while not is_over:
            await connection.execute(
                "insert into mcp.audit_log (tenant_id, audit_id, operation, outcome)"
                " values (gen_random_uuid(), gen_random_uuid(), 'test', 'done')"
            )
            written += 1
        await connection.close()

    async def look() -> None:
        nonlocal read
        connection = await asyncpg.connect(fresh_database)
        while not is_over:
            at_least = 30_000 + written
            row = await connection.fetchrow("select count(*), count(distinct audit_id) from mcp.audit_log")
            assert row is not None
            counted, different = row
            assert counted == different, "a row was seen twice"
            assert counted >= at_least, "a row was not seen"
            read += 1
        await connection.close()

    tasks = [asyncio.create_task(work()) for work in (write, write, look)]
    await eventually(lambda: written > 50 and read > 2, "rows are written and read")
    drained = await partitions.drain(database, "audit_log")
    seen = written, read
    await eventually(lambda: written > seen[0] + 50 and read > seen[1] + 2, "rows are written and read afterwards")
    is_over = True
    await asyncio.gather(*tasks)
    assert 30_000 <= drained <= 30_000 + written
    assert rows_by_partition(fresh_database, "audit_log") == {f"audit_log_{month(0):%Y_%m}": 30_000 + written}


async def test_a_drain_that_was_cut_off_is_begun_anew(database: Database, fresh_database: str) -> None:
    insert_audit(fresh_database, *OTHER_TIMES)
    run_sql(fresh_database, "select mcp.begin_drain('audit_log', 6)")
    run_sql(fresh_database, "select mcp.copy_drain('audit_log', 0, 1)")
    insert_audit(fresh_database, "'2001-02-04Z'")  # goes to the stand-in as well
    assert await partitions.drain(database, "audit_log") == 5
    assert sum(rows_by_partition(fresh_database, "audit_log").values()) == 5
    assert (await report_of(database, "audit_log")).rows_in_default == 0


async def test_a_drain_that_another_has_begun_anew_ends_in_nothing(database: Database, fresh_database: str) -> None:
    insert_audit(fresh_database, *OTHER_TIMES)
    overtaken = run_sql(fresh_database, "select drain from mcp.begin_drain('audit_log', 6)")
    run_sql(fresh_database, "select mcp.begin_drain('audit_log', 6)")  # throws the first away
    run_sql(fresh_database, "select mcp.begin_drain('audit_log', 6)")
    assert run_sql(fresh_database, f"select mcp.end_drain('audit_log', {overtaken})") == "overtaken"
    assert rows_by_partition(fresh_database, "audit_log") == {"audit_log_default": 4}


@pytest.mark.parametrize("change", ["ensure", "drain", "prune"])
async def test_a_change_does_not_hold_others_up_while_it_cannot_be_made(
    database: Database, fresh_database: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long transaction uses the table. Whoever comes later waits for the change's patience, and not for the transaction."""
    monkeypatch.setattr(partitions, "BUSY_TRIES_MAX", 4)
    run_sql(fresh_database, f"drop table {partition_of('audit_log', 1)}")
    insert_audit(fresh_database, "'2001-02-03Z'")
    if change == "prune":
        await partitions.drain(database, "audit_log")
    work = {
        "ensure": lambda: partitions.ensure(database, 12, ["audit_log"]),
        "drain": lambda: partitions.drain(database, "audit_log"),
        "prune": lambda: partitions.prune(database, POLICY, ["audit_log"]),
    }[change]
    before = rows_by_partition(fresh_database, "audit_log")
    user, other = await asyncpg.connect(fresh_database), await asyncpg.connect(fresh_database)
    async with user.transaction():
        await user.execute("select count(*) from mcp.audit_log")
        changing = asyncio.create_task(work())
        waits_s = []
        while not changing.done():
            began = time.perf_counter()
            await other.execute("select count(*) from mcp.audit_log")
            waits_s.append(time.perf_counter() - began)
            await asyncio.sleep(0)
        with pytest.raises(MeshError, match=r"partitions of mcp\.audit_log cannot be changed: a long transaction"):
            await changing
    assert len(waits_s) > 10
    assert max(waits_s) < 0.5, "the change gives way long before the transaction ends"
    assert rows_by_partition(fresh_database, "audit_log") == before
    await work()
    assert (change == "prune") == (rows_by_partition(fresh_database, "audit_log") == {})
    for connection in (user, other):
        await connection.close()


async def test_what_is_too_old_goes_and_nothing_else(database: Database, fresh_database: str) -> None:
    for table in ("audit_log", "events"):
        assert await partitions.ensure(database, 12, [table]) == []
    kept = [f"'{month(-number)}Z'" for number in range(7)]
    gone = [f"'{month(-6)}Z'::timestamptz - interval '1 microsecond'", f"'{month(-20)}Z'"]
    insert_audit(fresh_database, *kept, *gone)
    await partitions.drain(database, "audit_log")
    expired = [part.name for part in await partitions.expired(database, POLICY)]
    assert expired == [f"audit_log_{month(number):%Y_%m}" for number in (-20, -7)]
    assert [part.name for part in await partitions.prune(database, POLICY)] == expired
    assert rows_by_partition(fresh_database, "audit_log") == {
        f"audit_log_{month(-number):%Y_%m}": 1 for number in range(7)
    }
    shorter = Policy(12, 6, {"audit_log": 2})
    assert len(await partitions.prune(database, shorter)) == 4
    assert await partitions.prune(database, shorter) == []


async def test_numbering_goes_on_after_events_that_are_gone(database: Database, fresh_database: str) -> None:
    whole, partly, empty = (new_tenant(fresh_database) for _ in range(3))
    for tenant in (whole, whole, whole, partly, partly):
        append(fresh_database, tenant)
    run_sql(fresh_database, f"update mcp.events set at = at - interval '2 years' where tenant_id = '{whole}'")
    run_sql(
        fresh_database,
        f"update mcp.events set at = at - interval '2 years' where tenant_id = '{partly}' and sequence = 1",
    )
    assert await partitions.drain(database, "events") == 4
    assert len(await partitions.prune(database, POLICY)) == 1
    floors = run_sql(fresh_database, "select tenant_id, stream_floor from mcp.tenants").splitlines()
    assert set(floors) == {f"{whole}|3", f"{partly}|1", f"{empty}|0"}
    assert [append(fresh_database, tenant) for tenant in (whole, partly, empty)] == [4, 3, 1]


async def test_numbering_goes_on_when_a_clock_was_set_back(database: Database, fresh_database: str) -> None:
    """Later events lie in an older month: when it goes, what is left came before what is gone."""
    tenant = new_tenant(fresh_database)
    for _ in range(3):
        append(fresh_database, tenant)
    run_sql(fresh_database, "update mcp.events set at = at - interval '2 years' where sequence = 3")
    await partitions.drain(database, "events")
    await partitions.prune(database, POLICY)
    assert append(fresh_database, tenant) == 4
    [row] = await database.read(load("events").position, uuid.UUID(tenant))
    assert (row["floor_sequence"], row["last_sequence"]) == (3, 4)


async def test_health_does_not_wait_for_a_partition_that_is_being_rewritten(
    database: Database, fresh_database: str
) -> None:
    await partitions.ensure(database, 2, ["audit_log"])
    holder = await asyncpg.connect(fresh_database)
    await holder.execute(f"begin; lock table {partition_of('audit_log', 2)} in access exclusive mode")
    try:
        async with asyncio.timeout(5):
            reports = await partitions.report(database, is_measured=False)
    finally:
        await holder.close()
    assert {report.bytes for report in reports} == {None}
    measured = await report_of(database, "audit_log")
    assert measured.bytes is not None
    assert measured.bytes > 0


async def test_nothing_is_dropped_while_two_clocks_are_a_day_apart(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await partitions._make(database, "audit_log", month(-9))
    keeper = PartitionKeeper(database, POLICY, "0 3 * * *", 60)
    monkeypatch.setattr(partition_keeper, "CLOCK_OFFSET_MAX", datetime.timedelta(-1))
    await keeper.run_once()
    assert (await report_of(database, "audit_log")).oldest == f"{month(-9):%Y-%m}"
    monkeypatch.undo()
    await PartitionKeeper(database, POLICY, "0 3 * * *", 60).run_once()
    assert (await report_of(database, "audit_log")).oldest != f"{month(-9):%Y-%m}"


async def test_what_a_killed_keeper_has_detached_is_dropped_by_the_next(
    database: Database, fresh_database: str
) -> None:
    insert_audit(fresh_database, "'2001-02-03Z'", "'2001-03-03Z'")
    await partitions.drain(database, "audit_log")
    assert run_sql(fresh_database, "select mcp.detach_partition('audit_log', 'audit_log_2001_02')") == "done"
    await partitions.prune(database, POLICY)
    assert run_sql(fresh_database, "select relname from pg_class where relname like 'audit_log_2001%'") == ""


async def test_one_keeper_at_a_time_until_it_is_gone(database: Database, fresh_database: str) -> None:
    async with partitions.sole_keeper(database) as first:
        async with partitions.sole_keeper(database) as second:
            assert (first, second) == (True, False)
        run_sql(
            fresh_database,
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()",
        )

        async def is_free() -> bool:
            async with partitions.sole_keeper(database) as other:
                return other

        await eventually(is_free, "another takes over")
    async with partitions.sole_keeper(database) as again:
        assert again


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEVMESH_PARTITION_CRON", "every day"),
        ("DEVMESH_PARTITION_MONTHS_KEPT_BY_TABLE", "evnts=3"),
        ("DEVMESH_PARTITION_MONTHS_KEPT_BY_TABLE", "events=0"),
        ("DEVMESH_PARTITION_MONTHS_KEPT_BY_TABLE", "events=3,"),
        ("DEVMESH_PARTITION_MONTHS_AHEAD", "2"),
        ("DEVMESH_API_LOG", "some"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(name: str, value: str) -> None:
    with pytest.raises(Exception, match=re.escape(f"{name} is '{value}'")):
        Settings.load({name: value})


async def test_a_replay_that_retention_overtakes_ends_instead_of_skipping(
    database: Database, fresh_database: str
) -> None:
    """Both wires read pages of the past like this; a page must not begin after what has just been dropped."""
    tenant = new_tenant(fresh_database)
    fanout = Fanout(database, interval_s=60.0, page_events_max=1, ring_bytes_max=1)
    for _ in range(4):
        append(fresh_database, tenant)
    run_sql(fresh_database, "update mcp.events set at = at - interval '2 years' where sequence <= 3")
    await partitions.drain(database, "events")
    stream = Stream(uuid.UUID(tenant), epoch=1, position=4)  # with nothing in memory
    page, reached = await fanout.page(stream, 0, ["tenant"])
    assert ([recent.event.sequence for recent in page], reached) == ([1], 1)
    await partitions.prune(database, POLICY)
    with pytest.raises(MeshError, match="removed by retention while they were read"):
        await fanout.page(stream, reached, ["tenant"])
    page, reached = await fanout.page(stream, 3, ["tenant"])
    assert ([recent.event.sequence for recent in page], reached) == ([4], 4)
