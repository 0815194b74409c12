"""What the tests of snapshots share: a tenant with one worker, its snapshots, and rows that are lost."""

from __future__ import annotations

import uuid
from typing import Any

import asyncpg

from tests.conftest import run_sql
from tests.harness import Mesh, eventually
from tests.judging import broken_rules
from tests.scenarios.jobs import Bench

TABLES = (
    "jobs", "jobs_ready", "jobs_limited", "jobs_blocked", "jobs_leased", "job_slots", "job_limits", "job_executions",
    "job_dependencies", "dead_letter_queue", "queues", "workers", "schedules", "job_unique_keys",
)  # fmt: skip


class Archive:
    """A tenant with one worker, and its snapshots."""

    def __init__(self, mesh: Mesh, bench: Bench) -> None:
        self.mesh, self.bench = mesh, bench

    async def call(self, name: str, **params: Any) -> dict[str, Any]:
        return dict(await self.bench.wire.call(f"snapshot.{name}", **params))

    async def take(self, **about: Any) -> dict[str, Any]:
        snapshot: dict[str, Any] = (await self.call("create", **about))["snapshot"]
        return snapshot

    async def jobs(self, snapshot: dict[str, Any]) -> dict[str, str]:
        found = (await self.call("jobs", snapshot_id=snapshot["id"]))["jobs"]
        return {job["id"]: job["status"] for job in found}

    @property
    def tenant_id(self) -> uuid.UUID:
        return uuid.UUID(self.bench.wire.initialized["tenant_id"])

    async def restore(self, snapshot: dict[str, Any], on_conflict: str = "preserve") -> dict[str, Any]:
        return await self.call("restore", snapshot_id=snapshot["id"], on_conflict=on_conflict)

    def lose(self, *tables: str) -> None:
        """As if this tenant's rows had been deleted by mistake."""
        for table in tables or TABLES:
            self.run(f"delete from mcp.{table} where tenant_id = $1")

    def run(self, sql: str) -> str:
        """Runs SQL behind the services' back, and gives what it prints. `$1` is the tenant."""
        return run_sql(self.mesh.dsn, sql.replace("$1", f"'{self.tenant_id}'"))

    async def broken_rules(self) -> list[str]:
        """What `devmesh check history` says."""
        return await broken_rules(self.mesh.dsn, self.run("select name from mcp.tenants where tenant_id = $1"))


class Bystander:
    """A session of somebody else, whose transaction is under way."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self._transaction = connection.transaction()

    async def are_held_up(self, count: int) -> None:
        """Waits until so many sessions wait for this one, or for one another."""
        asking = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"

        async def are() -> bool:
            return bool(await self.connection.fetchval(asking) >= count)

        await eventually(are, f"{count} wait")

    async def begin(self, sql: str, *args: object) -> None:
        await self._transaction.start()
        await self.connection.execute(sql, *args)

    async def commit(self) -> None:
        await self._transaction.commit()
