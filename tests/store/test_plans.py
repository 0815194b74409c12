"""Statements find their rows by indexes whatever the tables held when they were planned: empty ones are the hardest case.

A plan may be kept from the first minute of a database, when everything was cheap. One that looks through a whole tenant then
goes on doing so: the same statements have taken 15 s instead of 8 ms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import run_sql
from tests.store.functions import statements_in_functions

from devmesh.store.connections import session_settings
from devmesh.store.statements import Statement, all_statements

# What has no plan: savepoints.
UNPLANNED = ("job_locking.begin_again_here", "job_locking.let_go")
# What is meant to look at all the rows of a tenant that an index holds, each with why that is right.
WHOLE_TENANT = {
    "tasks.overdue_ids": "all that is held: there is no cheaper way to find the late",
    "tasks.page_unfinished": "a list of what has not ended sorts all that has not ended",
    "agents.tasks_of": "an agent leaves for good once; what waits for it alone may be blocked, and so in no lane of its own",
    "agents.candidates": "the assigner weighs all agents",
    "tenants.with_pending": "a round looks for an agent with room as the assigner would, and stops at the first",
    "agents.waiting_for": "explain counts all agents",
    "agents.page": "a list may ask for any agents",
    "agents.unannounced": "presence is of all agents",
    "agents.forget_sessions": "presence is of all sessions",
    "agents.renew_sessions": "a gateway renews all its sessions at once",
    "connections.report": "a node knows what all others hold",
    "audit.page": "newest first, with or without a beginning",
    "catalogue.pieces": "the system's own catalogue, of which it wants everything in one schema",
    "keys.page": "an administrator's list",
    "keys.forget_failures": "a table of minutes",
    "issuers.page": "a tenant has twenty at the most",
    "rates.forget": "a table of those that ask right now",
    "schema_migrations.list": "one row a migration",
    "server.administrators": "`devmesh doctor` counts all keys of administrators, once",
    "server.locked_out": "a table of minutes, which `devmesh doctor` reads once",
    "server.oldest_transaction_id": "a handful of databases",
    "vault.count_left": "at the begin and the end of a round of re-encryption",
    "vault.current": "a handful of data keys",
    "vault.data_keys": "a handful of data keys",
    "vault.forget": "a handful of data keys",
    "vault.lock_wrapped_otherwise": "a handful of data keys",
    "vault.note_unused": "a handful of data keys",
    "vault.page": "every sealed value, a page at a time from a place on",
    "vault.usage": "counts all sealed values for an operator",
    "tenants.with_overdue": "all that is held, in all tenants",
    "jobs.overdue_ids": "all that is held: there is no cheaper way to find the late",
    "job_dependencies.ids_of_queue": "what waits for others, once, to purge a queue",
    "queues.parents": "what waits for a place, once, to purge a queue",
    "job_limits.ids_of_queue": "what waits for a place, once, to purge a queue",
    "jobs.takers": "explain counts all workers",
    "partitions.oldest_job_alive": "all jobs that are alive, twice a month",
    "queues.stats": "counts all that is held; a tenant has said something about a handful",
    "contexts.by_vector": "an exact search compares all of a tenant's vectors",
    "snapshots.capture": "everything that is under way",
    "snapshots.latest_until": "a tenant has a thousand at the most",
    "snapshots.surplus": "a tenant has a thousand at the most",
    "snapshots.policy": "one row a tenant",
    "snapshots.drop_policy": "one row a tenant",
    "snapshots.take_due": "one row a tenant",
    "snapshots.postpone": "one row a tenant",
    "snapshots.with_due_policies": "one row a tenant",
    "snapshot_conflicts.decide_jobs": "jobs in queues of which the rest is lost: only if there may be such",
    "snapshot_restoring.put_back_workers": "all workers of a snapshot",
    "snapshot_restoring.put_back_schedules": "all schedules of a snapshot",
    "schedules.page": "a list may ask for any schedules",
    "workers.forget_workers": "a table of the workers that there are and of those that have gone lately",
    "workers.optimal": "the best of all workers",
    "tenants.with_old_workers": "who has gone long ago is found by looking at all workers",
    "tenants.with_late_workers": "who is late is found by looking at all workers",
    "tenants.workers_by_status": "counts all workers",
    "workers.page": "a list may ask for any workers",
    "tenants.with_overdue_jobs": "all that is held, in all tenants",
    "tenants.with_unannounced": "presence is of all agents",
}
OVER_HISTORY = "history."  # these judge all that there is, on a session of their own that may hash it: store/history.py

IN_ORDER = ("Limit", "Append", "Merge Append", "Subquery Scan", "Result", "Recursive Union")


def scans(plan: dict[str, Any], is_first_wanted: bool = False) -> Iterator[dict[str, Any]]:
    """Every node of a plan that reads a table or an index, but for those of which only the first rows are read."""
    is_first_wanted = plan["Node Type"] == "Limit" or (is_first_wanted and plan["Node Type"] in IN_ORDER)
    for below in plan.get("Plans", []):
        if not (is_first_wanted and "Relation Name" in below and "Filter" not in below):
            yield from scans(below, is_first_wanted)
    if "Relation Name" in plan or plan["Node Type"] == "Bitmap Index Scan":
        yield plan


def looks_at_everything(scan: dict[str, Any]) -> bool:
    """Whether a scan is narrowed by nothing but the tenant."""
    if scan["Node Type"] in ("ModifyTable", "Bitmap Heap Scan", "Tid Scan") or scan.get("Relation Name") == "tenants":
        return False
    condition = scan.get("Index Cond", "")
    return " AND " not in condition and ("tenant_id" in condition or not condition)


def whole_scans(dsn: str, statement: Statement) -> list[str]:
    """The scans of a statement's plan for any parameters that look at everything."""
    settings = "".join(f"set {name} = '{value}';" for name, value in session_settings("test", 10.0).items())
    [plan] = json.loads(run_sql(dsn, f"{settings} explain (generic_plan, format json) {statement.text}"))
    return [
        f"{scan['Node Type']} on {scan.get('Relation Name', scan.get('Index Name'))} {scan.get('Index Cond', '')}"
        for scan in scans(plan["Plan"])
        if looks_at_everything(scan)
    ]


def found_wide(dsn: str) -> dict[str, list[str]]:
    """What each statement looks through, but for those that judge all that there is."""
    if int(run_sql(dsn, "show server_version_num")) < 170_000:
        pytest.skip("PostgreSQL 16 filters by an array while a table is empty; its first ANALYZE mends such a plan")
    return {
        statement.name: whole_scans(dsn, statement)
        for statement in [*all_statements(), *statements_in_functions(dsn)]
        if not statement.name.startswith(OVER_HISTORY) and statement.name not in UNPLANNED
    }


def without_those_that_mean_to(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: wide for name, wide in found.items() if wide and name not in WHOLE_TENANT}


async def test_no_statement_looks_through_a_whole_tenant_but_those_that_mean_to(fresh_database: str) -> None:
    found = found_wide(fresh_database)
    guilty = without_those_that_mean_to(found)
    assert not guilty, json.dumps(guilty, indent=2)
    innocent = sorted(name for name in WHOLE_TENANT if not found.get(name))
    assert not innocent, f"these need no excuse any more: {innocent}"


FILLED = """
alter table mcp.jobs_leased set (autovacuum_enabled = false);
alter table mcp.jobs_ready set (autovacuum_enabled = false);
insert into mcp.jobs_leased (tenant_id, job_id, worker_id, created_at, started_at, lease_until, timeout_at, attempt, lease_s,
                             retries, priority, is_parent, queue)
select t.id, gen_random_uuid(), gen_random_uuid(), now(), now(), now(), now(), 1, 60, 0, 3, false, 'q'
from generate_series(1, 20000), (select gen_random_uuid() as id) t;
insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, priority, queue)
select t.id, now(), gen_random_uuid(), now(), 3, 'q' from generate_series(1, 50000), (select gen_random_uuid() as id) t;
"""


async def test_nor_does_one_while_a_queue_has_filled_up_and_was_not_analysed_yet(fresh_database: str) -> None:
    run_sql(fresh_database, FILLED)
    guilty = without_those_that_mean_to(found_wide(fresh_database))
    assert not guilty, json.dumps(guilty, indent=2)


# Rows of every state in every table and index, without regard to what they mean: as after a minute, and not analysed yet.
A_LITTLE_OF_EVERYTHING = """
set session_replication_role = replica;  -- no triggers
do $$
declare
    relation record;
    state text;
begin
    for relation in select conrelid::regclass as name, conname from pg_constraint
                    where connamespace = 'mcp'::regnamespace and contype in ('c', 'f') and conparentid = 0 and coninhcount = 0
    loop
        execute format('alter table %s drop constraint if exists %I', relation.name, relation.conname);
    end loop;
    for relation in
        select c.oid::regclass as name, c.relkind = 'r' as is_leaf,
               string_agg(quote_ident(a.attname), ', ') as columns, string_agg(case
            when a.attname in ('status', 'state') then '$1'
            when not a.attnotnull and (ascii(a.attname) + number) % 2 = 0 then 'null'
            when a.atttypid = 'uuid'::regtype then 'gen_random_uuid()'
            when a.atttypid = 'text'::regtype then 'md5(random()::text)'
            when a.atttypid = 'boolean'::regtype then 'random() < 0.5'
            when a.atttypid = 'timestamptz'::regtype then 'now()'
            when a.atttypid = 'bytea'::regtype then quote_literal(repeat('x', 64)) || '::bytea'
            when t.typcategory = 'N' then 'random() * 5'
            when t.typcategory = 'A' or a.atttypid in ('json'::regtype, 'jsonb'::regtype) then quote_literal('{}')
            else 'null' end, ', ') as of_each
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             and a.attgenerated = '' and a.attidentity <> 'a'
        join pg_type t on t.oid = a.atttypid
        cross join generate_series(0, 1) as number
        where c.relnamespace = 'mcp'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        group by c.oid, number
    loop
        if relation.is_leaf then
            execute format('alter table %s set (autovacuum_enabled = false)', relation.name);
        end if;
        foreach state in array array['pending', 'assigned', 'running', 'completed', 'ACTIVE', 'PENDING'] loop
            execute format('insert into %s (%s) select %s from generate_series(1, 5) on conflict do nothing',
                           relation.name, relation.columns, replace(relation.of_each, '$1', quote_literal(state)));
        end loop;
    end loop;
end $$
"""


async def test_nor_does_one_while_there_is_a_little_of_everything_and_nothing_was_analysed(fresh_database: str) -> None:
    run_sql(fresh_database, A_LITTLE_OF_EVERYTHING)
    guilty = without_those_that_mean_to(found_wide(fresh_database))
    assert not guilty, json.dumps(guilty, indent=2)
