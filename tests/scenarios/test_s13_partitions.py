"""S13: no partition for next month, or a row outside of all: it is reported, and mended by the keeper under load."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.commands import devmesh
from tests.conftest import run_sql
from tests.harness import Child, Mesh, eventually, wait_until
from tests.wire import Wire

QUICK_KEEPER = {"DEVMESH_PARTITION_CHECK_INTERVAL_S": "0.5"}
TABLES = ("events", "audit_log", "api_logs", "jobs", "job_executions")
SEEN_WITHIN_S = 15.0  # services look at their partitions every 2 s


def month(number: int) -> datetime.date:
    """This month, or that many later."""
    today = datetime.datetime.now(datetime.UTC).date()
    years, months = divmod(today.year * 12 + today.month - 1 + number, 12)
    return datetime.date(years, months + 1, 1)


def health(child: Child) -> dict[str, Any]:
    answer = httpx.get(f"http://127.0.0.1:{child.port}/health?details=true", timeout=5.0, trust_env=False)
    found: dict[str, Any] = answer.json()
    return found


def component(child: Child) -> dict[str, Any]:
    found: dict[str, Any] = health(child)["components"]["partitions"]
    return found


def metric(child: Child, name: str, table: str) -> float:
    return child.metric(f'devmesh_{name}{{table="{table}"}}')


def command(mesh: Mesh, directory: Path, *arguments: str) -> tuple[int, Any, str]:
    done = devmesh(directory, "partitions", *arguments, "--json", settings={"DATABASE_DSN": mesh.dsn})
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


def partitions_of(dsn: str, table: str) -> set[str]:
    sql = f"select inhrelid::regclass from pg_inherits where inhparent = 'mcp.{table}'::regclass"
    return set(run_sql(dsn, sql).split())


def insert_audit(mesh: Mesh, at: str) -> None:
    run_sql(
        mesh.dsn,
        "insert into mcp.audit_log (tenant_id, audit_id, at, operation, outcome) "
        f"select tenant_id, gen_random_uuid(), '{at}', 'test', 'done' from mcp.tenants",
    )


async def test_s13_what_is_missing_is_reported_by_every_service_and_mended_by_the_keeper(
    own_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    mesh = own_mesh("rest-api", "mcp-server", **QUICK_KEEPER)
    services = list(mesh.children)
    for child in services:
        assert component(child)["status"] == "healthy"
    run_sql(mesh.dsn, f"drop table mcp.events_{month(1):%Y_%m}")
    insert_audit(mesh, "1999-12-31 23:59:59Z")
    for child in services:
        wait_until(lambda: component(child)["status"] == "degraded", "it is reported", SEEN_WITHIN_S)  # noqa: B023
        found = health(child)
        assert found["status"] == "degraded"
        assert found["ready"], "it is no reason to refuse work"
        message = found["components"]["partitions"]["message"]
        assert f"mcp.events has partitions for 0 months ahead, none for {month(1):%Y-%m}" in message
        assert "rows of mcp.audit_log outside of all months: 1" in message
        assert "`devmesh partitions ensure`" in message
        assert "`devmesh partitions drain-default`" in message
        details = {table["table"]: table for table in found["details"]["partitions"]}
        assert set(details) == set(TABLES)
        assert details["events"]["months_ahead"] == 0
        assert details["audit_log"]["rows_in_default"] == 1
        assert details["api_logs"] == {
            "table": "api_logs", "status": "healthy", "message": "", "partitions": 14, "oldest": f"{month(0):%Y-%m}",
            "newest": f"{month(12):%Y-%m}", "months_ahead": 12, "rows_in_default": 0,
            "bytes": None,
        }  # fmt: skip
    code, shown, said = command(mesh, tmp_path, "status")
    assert code == 1
    assert [table["status"] for table in shown] == ["degraded", "degraded", "healthy", "healthy", "healthy"]
    assert f"none for {month(1):%Y-%m}" in said
    mesh.start("worker")
    for child in mesh.children:
        wait_until(lambda: component(child)["status"] == "healthy", "it is mended", SEEN_WITHIN_S)  # noqa: B023
    assert command(mesh, tmp_path, "status")[0] == 0
    assert f"mcp.events_{month(1):%Y_%m}" in partitions_of(mesh.dsn, "events")
    [worker] = mesh.of("worker")
    assert metric(worker, "partition_months_ahead", "events") == 12
    assert metric(worker, "partition_rows_in_default", "audit_log") == 0
    assert metric(worker, "partition_rows_drained_total", "audit_log") == 1
    assert metric(worker, "partitions_dropped_total", "audit_log") == 1, "1999 is not kept"


async def test_s13_the_keeper_mends_what_breaks_while_it_runs(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh(**QUICK_KEEPER)
    whole = {table: partitions_of(mesh.dsn, table) for table in TABLES}
    run_sql(mesh.dsn, f"drop table mcp.events_{month(0):%Y_%m}, mcp.audit_log_default, mcp.api_logs_{month(2):%Y_%m}")
    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        await wire.call("task.create", title="written at once", assign="pull")
        wait_until(lambda: {table: partitions_of(mesh.dsn, table) for table in TABLES} == whole, "all are back")
        page = await wire.call("event.list")
        assert [event["type"] for event in page["events"]] == ["task.created"]
    assert run_sql(mesh.dsn, "select count(*) from mcp.events_default") == "0"


@pytest.mark.soak
async def test_s13_a_table_that_takes_no_rows_makes_services_not_ready_until_it_does(
    own_mesh: Callable[..., Mesh],
) -> None:
    mesh = own_mesh("rest-api", "mcp-server", **QUICK_KEEPER)
    run_sql(mesh.dsn, f"drop table mcp.events_{month(0):%Y_%m}, mcp.events_default")
    for child in mesh.children:
        wait_until(lambda: not health(child)["ready"], "it is not ready", SEEN_WITHIN_S)  # noqa: B023
        assert f"partitions: mcp.events takes no rows of {month(0):%Y-%m}" in health(child)["reasons"][0]
    mesh.add("worker").start()
    for child in mesh.children:
        child.wait_ready()


async def test_s13_rest_api_makes_what_is_missing_at_its_start(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api")
    [rest] = mesh.of("rest-api")
    rest.kill()
    run_sql(mesh.dsn, f"drop table mcp.events_{month(0):%Y_%m}, mcp.events_default")
    rest.start()
    rest.wait_ready()
    assert component(rest)["status"] == "healthy"
    assert f"mcp.events_{month(0):%Y_%m}" in partitions_of(mesh.dsn, "events")


async def test_s13_many_keepers_do_it_once(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", **QUICK_KEEPER)
    for number in range(1, 13):
        run_sql(mesh.dsn, f"drop table mcp.events_{month(number):%Y_%m}")
    for number in range(40):
        insert_audit(mesh, f"{2000 + number % 4}-01-{number % 28 + 1:02}Z")
    mesh.start("worker", "worker", "worker")
    workers = mesh.of("worker")
    for child in mesh.children:
        wait_until(lambda: component(child)["status"] == "healthy", "it is mended", SEEN_WITHIN_S)  # noqa: B023

    def total(name: str, table: str) -> float:
        return sum(metric(worker, name, table) for worker in workers)

    wait_until(lambda: total("partitions_dropped_total", "audit_log") >= 4, "the old ones are dropped")
    assert total("partitions_made_total", "events") == 12
    assert total("partition_rows_drained_total", "audit_log") == 40
    assert total("partitions_dropped_total", "audit_log") == 4
    for worker in workers:
        assert health(worker)["components"]["partition-keeper"]["status"] == "healthy"


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_s13_a_keeper_killed_at_work_is_followed_by_another(own_mesh: Callable[..., Mesh]) -> None:
    mesh = own_mesh("rest-api", **QUICK_KEEPER)
    run_sql(
        mesh.dsn,
        "insert into mcp.audit_log (tenant_id, audit_id, at, operation, outcome) select gen_random_uuid(), gen_random_uuid(),"
        f" '{month(-1)}Z'::timestamptz + n * interval '1 s', 'test', 'done' from generate_series(1, 200000) n",
    )
    mesh.add("worker").start()
    [worker] = mesh.of("worker")
    sql = "select count(*) from pg_class where relname = 'audit_log_drain'"
    wait_until(lambda: run_sql(mesh.dsn, sql) == "1", "the draining has begun", 30.0)
    worker.kill()
    assert run_sql(mesh.dsn, "select count(*) from mcp.audit_log") == "200000"
    insert_audit(mesh, f"{month(-1)}")  # one for the only tenant, while nobody drains
    worker.start()
    where = "select string_agg(distinct tableoid::regclass::text, ' ') from mcp.audit_log where operation = 'test'"
    wait_until(lambda: run_sql(mesh.dsn, where) == f"mcp.audit_log_{month(-1):%Y_%m}", "all have their month", 60.0)
    assert run_sql(mesh.dsn, "select count(*), count(distinct audit_id) from mcp.audit_log") == "200001|200001"
    assert run_sql(mesh.dsn, sql) == "0"


@pytest.mark.timeout(240)
async def test_s13_old_events_go_under_load_and_nothing_that_is_kept(own_mesh: Callable[..., Mesh]) -> None:
    """The gateway still has the old events in memory, and must not answer from there as if they were kept."""
    mesh = own_mesh("rest-api", "mcp-server", **QUICK_KEEPER)
    written: list[str] = []
    is_over = False

    async def write(wire: Wire) -> None:
        while not is_over:
            created = await wire.call("task.create", title="kept", assign="pull")
            written.append(created["task"]["id"])

    async with await Wire.connect(mesh.ws_url, mesh.admin_key) as wire:
        await wire.call("subscribe", topics=["tenant"])
        before = wire.initialized["cursor"]
        for _ in range(100):
            await wire.call("task.create", title="old", assign="pull")
        await wire.until_events(100)
        last_old = wire.cursor
        # As if they had been written long ago. They fall outside of all months, as they do where nobody has kept partitions.
        run_sql(mesh.dsn, "update mcp.events set at = at - interval '9 months' where sequence <= 100")
        writers = [await Wire.connect(mesh.ws_url, mesh.admin_key) for _ in range(4)]
        writing = [asyncio.create_task(write(writer)) for writer in writers]
        await eventually(lambda: len(written) > 20, "tasks are written")
        mesh.add("worker").start()
        await eventually(
            lambda: run_sql(mesh.dsn, "select stream_floor from mcp.tenants where name = 'default'") == "100",
            "the old events are dropped",
            30.0,
        )
        count = len(written)
        await eventually(lambda: len(written) > count + 20, "tasks are written afterwards")
        is_over = True
        await asyncio.gather(*writing)
        assert run_sql(mesh.dsn, "select count(*) from mcp.events where sequence <= 100") == "0"
        await wire.until_events(100 + len(written))

        async def is_told() -> bool:
            async with await Wire.connect(mesh.ws_url, mesh.admin_key) as reader:
                begun = await reader.call("subscribe", topics=["tenant"], since=before)
                return not begun["recovered"]

        await eventually(is_told, "who comes with an old cursor is told of the loss", SEEN_WITHIN_S)
        for since, recovered in ((before, False), (last_old, True)):
            async with await Wire.connect(mesh.ws_url, mesh.admin_key) as reader:
                begun = await reader.call("subscribe", topics=["tenant"], since=since)
                assert begun["recovered"] is recovered
                events = await reader.until_events(len(written))
                assert [event["data"]["task"]["id"] for event in events] == [
                    event["data"]["task"]["id"] for event in wire.events[100:]
                ]
                assert {event["data"]["task"]["id"] for event in events} == set(written)
            listed = await wire.call("event.list", since=since, limit=1000)
            assert listed["recovered"] is recovered
            told = [event["data"]["task"]["id"] for event in listed["events"]]
            assert told
            assert told == [event["data"]["task"]["id"] for event in events[: len(told)]]
        for writer in writers:
            await writer.close()
    sequences = "select min(sequence), max(sequence), count(*) from mcp.events"
    first, last, count_of_events = map(int, run_sql(mesh.dsn, sequences).split("|"))
    assert (first, last - first + 1) == (101, count_of_events), "numbering has neither gap nor repetition"
