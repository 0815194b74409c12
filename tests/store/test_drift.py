"""Whatever piece of the schema is broken, it is named, and the SQL that is shown with it mends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from tests.conftest import run_sql

from devmesh.store import catalogue
from devmesh.store.catalogue import Catalogue, Piece
from devmesh.store.database import Database
from devmesh.store.drift import Difference, Drift, compare
from devmesh.store.embedded import EmbeddedPostgres
from devmesh.store.inspection import Inspector, make_catalogue
from devmesh.store.migration_files import read_migrations

ROWS = """
insert into mcp.tenants (tenant_id, name) values ('00000000-0000-0000-0000-000000000001', 'one');
insert into mcp.agents (tenant_id, agent_id, owner_id, name, kind, capabilities, concurrency)
select tenant_id, tenant_id, tenant_id, 'a', 'llm', '{x}', 1 from mcp.tenants;
insert into mcp.tasks (tenant_id, task_id, title, created_by_key_id, status, lease_s)
select tenant_id, tenant_id, '7', tenant_id, 'pending', 60 from mcp.tenants;
"""

MISSING, DIFFERENT, EXTRA = Difference.MISSING, Difference.DIFFERENT, Difference.EXTRA


class Break(NamedTuple):
    sql: str
    found: list[str]


TASK_LANE = "mcp.task_lane(boolean, uuid, text, text[])"
BREAKS = {
    "a column with a default": Break(
        "alter table mcp.tasks drop column progress cascade",
        ["missing column mcp.tasks.progress", "missing view mcp.task_rows"],
    ),
    "a column that may be null": Break(
        "alter table mcp.api_keys drop column last_used_at", ["missing column mcp.api_keys.last_used_at"]
    ),
    "a generated column and its index": Break(
        "alter table mcp.tasks drop column lane", ["missing column mcp.tasks.lane", "missing index mcp.tasks_waiting"]
    ),
    "a generated column that is an ordinary one": Break(
        "alter table mcp.tasks alter column lane drop expression", ["different column mcp.tasks.lane"]
    ),
    "a type": Break(
        "alter table mcp.api_keys alter column prefix type varchar(20)", ["different column mcp.api_keys.prefix"]
    ),
    "a type under a view": Break(
        """create temp table kept as select pg_get_viewdef('mcp.task_rows') as text;
           drop view mcp.task_rows; alter table mcp.tasks alter column title type integer using title::integer;
           do $$ begin execute (select 'create view mcp.task_rows as ' || text from kept); end $$""",
        ["different column mcp.tasks.title"],
    ),
    "a type under a generated column": Break(
        """drop view mcp.task_rows; alter table mcp.tasks drop column lane;
           alter table mcp.tasks alter column assign type varchar(9);
           alter table mcp.tasks add column lane text collate "C" not null generated always as
               (mcp.task_lane(blocked, target_agent_id, assign, required_capabilities)) stored""",
        [
            "different column mcp.tasks.assign",
            "different column mcp.tasks.lane",
            "different constraint mcp.tasks.tasks_assign_check",
            "missing index mcp.tasks_waiting",
            "missing view mcp.task_rows",
        ],
    ),
    "a collation": Break(
        """drop view mcp.task_rows; alter table mcp.tasks alter column type type text collate "C" """,
        ["different column mcp.tasks.type", "missing view mcp.task_rows"],
    ),
    "nullability": Break(
        "alter table mcp.tasks alter column title drop not null", ["different column mcp.tasks.title"]
    ),
    "a not null of nobody": Break(
        """alter table mcp.tasks alter column description drop default;
           alter table mcp.api_keys alter column agent_id set not null""",
        ["different column mcp.api_keys.agent_id", "different column mcp.tasks.description"],
    ),
    "a default": Break(
        "alter table mcp.tasks alter column priority set default 4", ["different column mcp.tasks.priority"]
    ),
    "a table": Break("drop table mcp.task_attempts", ["missing table mcp.task_attempts"]),
    "a partitioned table": Break("drop table mcp.events", ["missing table mcp.events"]),
    "a table that others refer to": Break(
        "drop table mcp.agents cascade",
        [
            "missing table mcp.agents",
            "missing constraint mcp.agent_sessions.agent_sessions_tenant_id_agent_id_fkey",
            "missing constraint mcp.agents.agents_tenant_id_fkey",
            "missing view mcp.agents_now",
        ],
    ),
    "a table that is logged": Break("alter table mcp.rate_buckets set logged", ["different table mcp.rate_buckets"]),
    "a table that is not partitioned": Break(
        """create table mcp.plain (like mcp.audit_log including all); drop table mcp.audit_log;
           alter table mcp.plain rename to audit_log;
           alter table mcp.audit_log rename constraint plain_pkey to audit_log_pkey""",
        ["different table mcp.audit_log"],
    ),
    "an index": Break("drop index mcp.tasks_held", ["missing index mcp.tasks_held"]),
    "an index of a partitioned table": Break("drop index mcp.events_by_topic", ["missing index mcp.events_by_topic"]),
    "an index of other columns": Break(
        "drop index mcp.api_keys_by_prefix; create index api_keys_by_prefix on mcp.api_keys (name)",
        ["different index mcp.api_keys_by_prefix"],
    ),
    "an index that is not valid": Break(
        "update pg_index set indisvalid = false where indexrelid = 'mcp.tasks_held'::regclass",
        ["different index mcp.tasks_held"],
    ),
    "a check": Break(
        "alter table mcp.tasks drop constraint tasks_status_check",
        ["missing constraint mcp.tasks.tasks_status_check"],
    ),
    "a check of something else": Break(
        """alter table mcp.tasks drop constraint tasks_priority_check;
           alter table mcp.tasks add constraint tasks_priority_check check (priority > 0)""",
        ["different constraint mcp.tasks.tasks_priority_check"],
    ),
    "a check that was not validated": Break(
        """alter table mcp.tasks drop constraint tasks_assign_check;
           alter table mcp.tasks add constraint tasks_assign_check check (assign in ('auto', 'pull')) not valid""",
        ["different constraint mcp.tasks.tasks_assign_check"],
    ),
    "a key and what refers to it": Break(
        "alter table mcp.agents drop constraint agents_pkey cascade",
        [
            "missing constraint mcp.agents.agents_pkey",
            "missing constraint mcp.agent_sessions.agent_sessions_tenant_id_agent_id_fkey",
        ],
    ),
    "a foreign key": Break(
        "alter table mcp.tasks drop constraint tasks_tenant_id_fkey",
        ["missing constraint mcp.tasks.tasks_tenant_id_fkey"],
    ),
    "a function": Break(
        "drop function mcp.append_events(uuid, text[], text[], text[])",
        ["missing function mcp.append_events(uuid, text[], text[], text[])"],
    ),
    "a function that does something else": Break(
        """create or replace function mcp.ensure_partitions(parent text, months_ahead integer) returns integer
           language sql as 'select 0'""",
        ["different function mcp.ensure_partitions(text, integer)"],
    ),
    "a function that answers with something else": Break(
        """drop function mcp.ensure_partitions(text, integer);
           create function mcp.ensure_partitions(parent text, months_ahead integer) returns bigint
           language sql as 'select 0::bigint'""",
        ["different function mcp.ensure_partitions(text, integer)"],
    ),
    "a function and the column that it generates": Break(
        f"drop function {TASK_LANE} cascade",
        [f"missing function {TASK_LANE}", "missing column mcp.tasks.lane", "missing index mcp.tasks_waiting"],
    ),
    "a view": Break("drop view mcp.agents_now", ["missing view mcp.agents_now"]),
    "a view of something else": Break(
        "drop view mcp.task_rows; create view mcp.task_rows as select task_id as id from mcp.tasks",
        ["different view mcp.task_rows"],
    ),
    "a trigger that is in the way": Break(
        """create function mcp.nothing() returns trigger language plpgsql as 'begin return null; end';
           create trigger stop before insert on mcp.tasks for each row execute function mcp.nothing()""",
        ["extra function mcp.nothing()", "extra trigger mcp.tasks.stop"],
    ),
    "a table, a column, an index, a sequence and a view too many": Break(
        """create table mcp.more (id bigint generated always as identity primary key, name text unique);
           create index more_by_name on mcp.more (name);
           alter table mcp.tasks add column mood text; create index tasks_by_mood on mcp.tasks (mood);
           create sequence mcp.numbers; create view mcp.few as select 1 as one""",
        [
            "extra column mcp.tasks.mood",
            "extra index mcp.tasks_by_mood",
            "extra sequence mcp.numbers",
            "extra table mcp.more",
            "extra view mcp.few",
        ],
    ),
}


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    database = await Database.open(dsn, service="tests", pool_size_min=1, pool_size_max=1, transaction_deadline_s=10.0)
    try:
        yield database
    finally:
        await database.close()


class Migrated(NamedTuple):
    """A database and what was in it when it was new."""

    dsn: str
    expected: Catalogue

    async def drift(self) -> Drift:
        async with opened(self.dsn) as database:
            drift = (await Inspector(read_migrations(), self.expected).look(database)).drift
        assert drift is not None
        return drift


@pytest.fixture(scope="module")
def migrated(create_database: Callable[..., str]) -> Migrated:
    """With a few rows. Each test leaves it as it has found it."""
    dsn = create_database(is_empty=True)
    expected = asyncio.run(make_catalogue(dsn))
    run_sql(dsn, ROWS)
    return Migrated(dsn, expected)


@pytest.mark.parametrize("name", BREAKS)
async def test_what_is_broken_is_named_and_its_sql_mends_it(migrated: Migrated, name: str) -> None:
    broken = BREAKS[name]
    run_sql(migrated.dsn, broken.sql)
    found = await migrated.drift()
    assert sorted(f"{each.difference} {each.kind} {each.name}" for each in found.findings) == sorted(broken.found)
    assert all(each.is_problem == (each.difference is not EXTRA) for each in found.findings)
    assert all(each.name in each.sentence for each in found.findings)
    run_sql(migrated.dsn, "\n".join(each.sql for each in [*found.problems, *reversed(found.extras)]))
    assert await migrated.drift() == Drift()


async def test_a_partitioned_table_that_was_made_again_has_its_partitions(migrated: Migrated) -> None:
    run_sql(migrated.dsn, "drop table mcp.events")
    run_sql(migrated.dsn, (await migrated.drift()).problems[0].sql)
    head = run_sql(
        migrated.dsn, "select mcp.append_events(tenant_id, '{a}', '{t}', array['{}']) from mcp.tenants limit 1"
    )
    assert int(head) == 1
    assert run_sql(migrated.dsn, "select count(*) from only mcp.events_default") == "0"


async def test_months_that_were_detached_are_nothing_to_warn_of(migrated: Migrated) -> None:
    run_sql(migrated.dsn, "create table mcp.events_2001_01 (like mcp.events including all)")
    assert await migrated.drift() == Drift()
    run_sql(migrated.dsn, "drop table mcp.events_2001_01")


async def test_the_committed_catalogue_is_what_the_migrations_make(empty_database: str) -> None:
    made = catalogue.encode(await make_catalogue(empty_database))
    assert catalogue.CATALOGUE_FILE.read_bytes() == made, "run `devmesh migrate catalogue --write`"
    async with opened(empty_database) as database:
        look = await Inspector.of_this_program().look(database)
    assert (look.drift, look.migration_problems, look.newer) == (Drift(), [], [])


def test_postgres_16_and_18_have_the_same_catalogue(tmp_path: Path, postgres: str, migrated: Migrated) -> None:
    version = int(run_sql(postgres, "show server_version_num")) // 10_000
    other = EmbeddedPostgres(tmp_path, major_version=18 if version == 16 else 16)
    try:
        made = asyncio.run(make_catalogue(other.start()))
    finally:
        other.stop("immediate")
    assert made == migrated.expected


async def test_a_look_at_an_empty_database_speaks_of_its_migrations_first(empty_database: str) -> None:
    async with opened(empty_database) as database:
        look = await Inspector.of_this_program().look(database)
    assert look.drift is None
    assert look.migration_problems[0] == "000001_foundation is pending"


def test_of_a_newer_schema_only_what_statements_name_is_judged(migrated: Migrated) -> None:
    pieces = migrated.expected.pieces
    without = [piece for piece in pieces if piece.name not in ("mcp.tasks.title", "mcp.tasks_held")]
    with_more = [*without, Piece("table", "mcp.newer", None, {"logged": True})]
    [finding] = compare(pieces, with_more, is_later=True).findings
    assert (finding.name, finding.difference) == ("mcp.tasks.title", MISSING)
    assert len(compare(pieces, with_more).findings) == 3


async def test_a_catalogue_that_nobody_made_anew_judges_nothing(migrated: Migrated) -> None:
    stale = msgspec.structs.replace(migrated.expected, made_of="something else")
    async with opened(migrated.dsn) as database:
        look = await Inspector(read_migrations(), stale).look(database)
    assert (look.is_catalogue_stale, look.drift, look.migration_problems) == (True, None, [])
