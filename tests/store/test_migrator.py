"""However many start together, however one fails: the schema is whole, or somebody is told by name what is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.conftest import run_sql
from tests.store.migrations import (
    FIRST_DOWN,
    FIRST_UP,
    SECOND_DOWN,
    SECOND_UP,
    THIRD_DOWN,
    THIRD_UP,
    connected,
    refusal,
    rows,
    states,
    write,
)

from devmesh.store import connections, migration_runs
from devmesh.store import migrator as migrator_module
from devmesh.store.connections import DatabaseUnreachable, connect_with_backoff
from devmesh.store.migration_files import MIGRATIONS_DIRECTORY, MigrationError, read_migrations, split_statements
from devmesh.store.migrator import Migrator


async def catalogue(dsn: str) -> list[tuple[Any, ...]]:
    """Everything that migrations make, in a form that can be compared."""
    return await rows(
        dsn,
        """
        select 'column', c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
               pg_get_expr(d.adbin, d.adrelid)
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum where c.relnamespace = 'mcp'::regnamespace
        union all
        select 'index', c.relname::text, pg_get_indexdef(c.oid), i.indisvalid::text, null, null
        from pg_class c join pg_index i on i.indexrelid = c.oid where c.relnamespace = 'mcp'::regnamespace
        union all
        select 'constraint', conname::text, pg_get_constraintdef(oid), null, null, null
        from pg_constraint where connamespace = 'mcp'::regnamespace
        union all
        select 'function', proname::text, pg_get_functiondef(oid), null, null, null
        from pg_proc where pronamespace = 'mcp'::regnamespace and prokind = 'f'
        order by 1, 2, 3, 4
        """,
    )


@pytest.mark.asyncio
async def test_up_applies_in_order_and_records(empty_database: str, directory: Path) -> None:
    migrator = Migrator(empty_database, directory=directory, program_version="9.9")
    assert await states(migrator) == ["1 pending", "2 pending", "3 pending"]
    assert [migration.label for migration in await migrator.up()] == ["000001_things", "000002_more", "000003_index"]
    assert await migrator.up() == []
    await migrator.verify()
    statuses = await migrator.status()
    assert [status.state for status in statuses] == ["applied"] * 3
    for status, migration in zip(statuses, migrator.migrations, strict=True):
        record = status.record
        assert record is not None
        assert record.finished_at is not None
        assert record.finished_at >= record.started_at
        assert record.duration_ms is not None
        assert record.duration_ms > 0
        assert (record.checksum, record.program_version, record.error) == (migration.checksum, "9.9", None)
    assert await rows(empty_database, "select * from mcp.things") == [(1, "a;b", "x")]


@pytest.mark.asyncio
async def test_a_database_that_takes_no_writes_is_waited_for(empty_database: str, directory: Path) -> None:
    name = urlsplit(empty_database).path[1:]
    run_sql(empty_database, f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(DatabaseUnreachable, match="read-only") as refused:
        await Migrator(empty_database, directory=directory).up()
    assert not refused.value.is_permanent
    writable = f"{empty_database}&options=-c%20default_transaction_read_only%3Doff"
    run_sql(writable, f"alter database {name} reset default_transaction_read_only")
    await Migrator(empty_database, directory=directory).up()


async def test_a_certificate_that_is_not_there_or_not_right_is_named(empty_database: str) -> None:
    with pytest.raises(DatabaseUnreachable, match="certificate"):
        await connections.open_connection(f"{empty_database}&sslmode=verify-full", {})


async def test_of_five_at_once_one_migrates(empty_database: str, directory: Path) -> None:
    migrators = [Migrator(empty_database, directory=directory) for _ in range(5)]
    applied = await asyncio.gather(*(migrator.up() for migrator in migrators))
    assert sorted(len(migrations) for migrations in applied) == [0, 0, 0, 0, 3]
    await migrators[0].verify()
    assert await rows(empty_database, "select count(*) from mcp.things") == [(1,)]


@pytest.mark.asyncio
async def test_the_wait_for_another_instance_ends(empty_database: str, directory: Path) -> None:
    async with connected(empty_database) as connection:
        await connection.execute("select pg_advisory_lock($1)", migrator_module.LOCK_NUMBER)
        message = await refusal(Migrator(empty_database, directory=directory, lock_wait_s=0.3).up)
    assert "another instance has been migrating" in message


@pytest.mark.asyncio
async def test_down_and_up_again_give_the_same_catalogue(empty_database: str, directory: Path) -> None:
    migrator = Migrator(empty_database, directory=directory)
    await migrator.up()
    before = await catalogue(empty_database)
    assert [migration.version for migration in await migrator.down(2)] == [3, 2]
    assert await states(migrator) == ["1 applied", "2 pending", "3 pending"]
    await migrator.up()
    assert await catalogue(empty_database) == before
    assert [migration.version for migration in await migrator.down(99)] == [3, 2, 1]
    assert await rows(empty_database, "select to_regclass('mcp.things')::text") == [(None,)]
    await migrator.up()
    assert await catalogue(empty_database) == before


@pytest.mark.asyncio
async def test_the_packaged_migrations_go_up_down_and_up(empty_database: str) -> None:
    migrator = Migrator(empty_database)
    await migrator.up()
    before = await catalogue(empty_database)
    assert len(await migrator.down(len(migrator.migrations))) == len(read_migrations(MIGRATIONS_DIRECTORY))
    left = await rows(empty_database, "select relname::text from pg_class where relnamespace = 'mcp'::regnamespace")
    assert sorted(left) == [("schema_migrations",), ("schema_migrations_pkey",)]
    await migrator.up()
    assert await catalogue(empty_database) == before


@pytest.mark.asyncio
async def test_a_failure_is_undone_recorded_named_and_repaired(empty_database: str, directory: Path) -> None:
    write(directory, 4, "wrong", "create table mcp.half (id bigint);\nselect 1 / 0;\n")
    migrator = Migrator(empty_database, directory=directory)
    assert "000004_wrong.up.sql failed, 000004_wrong is dirty: division by zero" in await refusal(migrator.up)
    assert await states(migrator) == ["1 applied", "2 applied", "3 applied", "4 dirty"]
    assert await rows(empty_database, "select to_regclass('mcp.half')::text") == [(None,)]
    for action in (migrator.up, migrator.verify):
        assert "000004_wrong is dirty, it failed: division by zero" in await refusal(action)

    write(directory, 4, "wrong", "create table mcp.half (id bigint);\n", "drop table mcp.half;\n")
    mended = Migrator(empty_database, directory=directory)
    plan = [repair.sentence for repair in await mended.repair_plan()]
    assert "000004_wrong: forget the failure" in plan[0]
    assert await states(mended) == ["1 applied", "2 applied", "3 applied", "4 dirty"]
    assert [repair.sentence for repair in await mended.repair()] == plan
    assert [migration.version for migration in await mended.up()] == [4]
    await mended.verify()


@pytest.mark.asyncio
async def test_the_line_of_a_mistake_is_told(empty_database: str, directory: Path) -> None:
    write(directory, 4, "wrong", "-- Nothing.\nselect 1;\nselect gone\nfrom mcp.things;\n")
    message = await refusal(Migrator(empty_database, directory=directory).up)
    assert 'column "gone" does not exist (line 3)' in message


@pytest.mark.asyncio
async def test_half_of_a_migration_without_transaction_is_dirty_until_repaired(
    empty_database: str, directory: Path
) -> None:
    wrong = THIRD_UP.replace("(name, id)", "(name, gone)")
    write(directory, 3, "index", wrong, THIRD_DOWN)
    migrator = Migrator(empty_database, directory=directory)
    assert '000003_index is dirty: column "gone" does not exist' in await refusal(migrator.up)
    assert "3 dirty" in await states(migrator)
    assert await rows(empty_database, "select to_regclass('mcp.things_name')::text") == [("mcp.things_name",)]

    write(directory, 3, "index", THIRD_UP, THIRD_DOWN)
    mended = Migrator(empty_database, directory=directory)
    plan = [repair.sentence for repair in await mended.repair_plan()]
    assert "run 000003_index.down.sql" in plan[0]
    assert [repair.sentence for repair in await mended.repair()] == plan
    assert await rows(empty_database, "select to_regclass('mcp.things_name')::text") == [(None,)]
    assert [migration.version for migration in await mended.up()] == [3]
    await mended.verify()


@pytest.mark.asyncio
async def test_a_connection_killed_in_a_migration_leaves_no_half(empty_database: str, directory: Path) -> None:
    write(directory, 4, "slow", "create table mcp.slow (id bigint);\nselect pg_sleep(30);\n")
    migrator = Migrator(empty_database, directory=directory)
    task = asyncio.create_task(migrator.up())
    killed: list[tuple[Any, ...]] = []
    while not killed:
        await asyncio.sleep(0.1)
        killed = await rows(
            empty_database,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'devmesh migrate'"
            " and datname = current_database() and query like '%pg_sleep%' and wait_event = 'PgSleep'",
        )
    with pytest.raises(DatabaseUnreachable, match=r"went away during 000004_slow\.up\.sql, it was undone"):
        await task
    assert (await states(migrator))[-1] == "4 pending"
    assert await rows(empty_database, "select to_regclass('mcp.slow')::text") == [(None,)]


@pytest.mark.asyncio
async def test_a_table_that_stays_locked_is_tried_again_and_is_not_dirty(
    empty_database: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(migration_runs.SETTINGS, "lock_timeout", "200ms")
    monkeypatch.setattr(migration_runs, "TABLE_LOCK_PAUSE_S", 0.05)
    migrator = Migrator(empty_database, directory=directory)
    await migrator.up()
    write(directory, 4, "column", "alter table mcp.things add column late text;\n")
    migrator = Migrator(empty_database, directory=directory)
    async with connected(empty_database) as connection:
        async with connection.transaction():
            await connection.execute("lock table mcp.things in access share mode")
            assert "failed and changed nothing" in await refusal(migrator.up)
        assert (await states(migrator))[-1] == "4 pending"
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("lock table mcp.things in access share mode")
        task = asyncio.create_task(migrator.up())
        await asyncio.sleep(0.4)
        await transaction.rollback()
        assert [migration.version for migration in await task] == [4]


@pytest.mark.asyncio
async def test_an_edited_file_is_refused(empty_database: str, directory: Path) -> None:
    await Migrator(empty_database, directory=directory).up()
    write(directory, 2, "more", SECOND_UP + "-- Edited.\n", SECOND_DOWN + "-- May be edited.\n")
    write(directory, 1, "things", FIRST_UP.replace("\n", "\r\n"), FIRST_DOWN + "-- May be edited.\n")
    migrator = Migrator(empty_database, directory=directory)
    assert await states(migrator) == ["1 applied", "2 edited", "3 applied"]
    for action in (migrator.up, migrator.verify, lambda: migrator.down(1)):
        assert "000002_more was edited after it was applied" in await refusal(action)


@pytest.mark.asyncio
async def test_waiting_for_the_schema_names_what_is_missing(empty_database: str, directory: Path) -> None:
    migrator = Migrator(empty_database, directory=directory)
    told: list[str] = []
    message = await refusal(lambda: migrator.wait_for_schema(0.2, 0.1, told.append))
    assert "gave up waiting" in message
    assert "000001_things is pending; 000002_more is pending" in told[0]
    waiting = asyncio.create_task(migrator.wait_for_schema(20, 0.05, told.append))
    await asyncio.sleep(0.2)
    await migrator.up()
    await waiting


@pytest.mark.asyncio
async def test_a_database_that_is_not_there_is_waited_for(empty_database: str, tmp_path: Path) -> None:
    told: list[str] = []
    missing = f"postgresql://postgres:secret@/postgres?host={tmp_path}"
    with pytest.raises(DatabaseUnreachable, match="cannot reach the database"):
        await connect_with_backoff(missing, told.append, backoff_s=(0.01, 0.02))
    assert len(told) == 2
    assert "try 1 of 3, the next in 0.01 s" in told[0]
    assert "secret" not in str(told)
    with pytest.raises(MigrationError, match="cannot reach the database"):
        await Migrator(missing, directory=tmp_path).wait_for_schema(0.2, 0.1, told.append)
    connection = await connect_with_backoff(empty_database, told.append)
    await connection.close()


@pytest.mark.asyncio
async def test_a_database_that_waiting_does_not_make_is_told_at_once(empty_database: str) -> None:
    told: list[str] = []
    head, _, tail = empty_database.partition("?")
    missing = f"{head.rpartition('/')[0]}/gone?{tail}"
    with pytest.raises(DatabaseUnreachable, match='database "gone" does not exist'):
        await connect_with_backoff(missing, told.append)
    assert told == []


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["000001_a.up.sql"], "000001_a.down.sql is missing"),
        (["000001_a.down.sql"], "000001_a.up.sql is missing"),
        (["000002_a.up.sql", "000002_a.down.sql"], "should be number 1"),
        (["000001_a.up.sql", "000001_a.down.sql", "000001_b.up.sql", "000001_b.down.sql"], "should be number 2"),
        (["1_a.up.sql"], "is not a migration"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, names: list[str], complaint: str) -> None:
    for name in names:
        (tmp_path / name).write_text("select 1;")
    with pytest.raises(MigrationError, match=complaint):
        read_migrations(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-- Nothing.\n", "has no SQL"),
        ("-- transaction: maybe\nselect 1;", "unknown; only `none` is"),
        ("-- works with: 1\nselect 1;", "is no version: write its six digits"),
        ("-- works with: 000001\nselect 1;", "can only with an earlier one"),
        ("select 1;\n-- Done.\ncommit;\nselect 2;", "the migrator begins and ends transactions"),
        ("BEGIN;\nselect 1;", "the migrator begins and ends transactions"),
    ],
)
def test_scripts_that_do_not_fit_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    write(tmp_path, 1, "a", text)
    with pytest.raises(MigrationError, match=complaint):
        read_migrations(tmp_path)


def test_scripts_are_cut_outside_of_strings_and_comments() -> None:
    statements = [
        "select 'a;''b', e'\\';', \";\"",
        "do $$ begin; end; $$",
        "create function f() as $body$ select '$$;'; $body$",
        "select 1 /* ; */ -- ;\n + 1",
        "select $1, $2",
    ]
    assert split_statements(";\n".join(statements) + ";\n-- The end;\n;") == statements
