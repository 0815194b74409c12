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

from devmesh.store.connections import session_settings
from devmesh.store.statements import Statement, all_statements

# What is meant to look at all the rows of a tenant that an index holds, each with why that is right.
WHOLE_TENANT = {
    "tasks.overdue_ids": "all that is held: there is no cheaper way to find the late",
    "tasks.page_unfinished": "a list of what has not ended sorts all that has not ended",
    "agents.tasks_of": "an agent leaves for good once; what waits for it alone may be blocked, and so in no lane of its own",
    "agents.candidates": "the assigner weighs all agents",
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
    "jobs.held_by_queue": "counts all that is held",
    "job_limits.ids_of_queue": "what waits for a place, once, to purge a queue",
    "jobs.takers": "explain counts all workers",
    "partitions.oldest_job_alive": "all jobs that are alive, twice a month",
    "queues.list": "a tenant has said something about a handful",
    "contexts.by_vector": "an exact search compares all of a tenant's vectors",
    "snapshots.capture": "everything that is under way",
    "snapshots.latest_until": "a tenant has a thousand at the most",
    "snapshots.surplus": "a tenant has a thousand at the most",
    "snapshots.policy": "one row a tenant",
    "snapshots.drop_policy": "one row a tenant",
    "snapshots.take_due": "one row a tenant",
    "snapshots.with_due_policies": "one row a tenant",
    "snapshot_restoring.put_back_workers": "all workers of a snapshot",
    "snapshot_restoring.put_back_schedules": "all schedules of a snapshot",
    "schedules.page": "a list may ask for any schedules",
    "workers.late": "who is late is found by looking at all workers",
    "workers.optimal": "the best of all workers",
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


async def test_no_statement_looks_through_a_whole_tenant_but_those_that_mean_to(fresh_database: str) -> None:
    if int(run_sql(fresh_database, "show server_version_num")) < 170_000:
        pytest.skip("PostgreSQL 16 filters by an array while a table is empty; its first ANALYZE mends such a plan")
    found = {
        statement.name: whole_scans(fresh_database, statement)
        for statement in all_statements()
        if not statement.name.startswith(OVER_HISTORY)
    }
    guilty = {name: wide for name, wide in found.items() if wide and name not in WHOLE_TENANT}
    assert not guilty, json.dumps(guilty, indent=2)
    innocent = sorted(name for name in WHOLE_TENANT if not found.get(name))
    assert not innocent, f"these need no excuse any more: {innocent}"
