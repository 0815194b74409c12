"""Brings the schema up or down, once, however many instances start together.

How one script is run is the noun of `migration_runs`. Must not know any table but its own. It works on a connection of its
own, under an advisory lock of that connection: whatever ends the process ends the lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import structlog

from devmesh import __version__
from devmesh.store import connections, migration_states
from devmesh.store.migration_files import MIGRATIONS_DIRECTORY, Migration, MigrationError, Script, read_migrations
from devmesh.store.migration_runs import SETTINGS, Run
from devmesh.store.migration_states import MigrationRecord, MigrationStatus, State
from devmesh.store.statements import load

log = structlog.get_logger(__name__)

# The database is full, busy or shutting down, takes no writes, or did not come to it in time: that passes.
PASSING_STATES = ("25006", "40", "53", "55P03", "57")
LOCK_NUMBER = int.from_bytes(b"devmesh")
LOCK_WAIT_S = 1800.0  # for another instance to finish migrating
LOCK_POLL_INTERVAL_S = 0.2
LOCK_LOG_INTERVAL_S = 10.0
FIRST_PAUSE_S = 0.1  # between looks for what another instance migrates

BOOTSTRAP = """
do $$ begin
    if to_regnamespace('mcp') is null then create schema mcp; end if;  -- it may be there without the right to make it
end $$;
create table if not exists mcp.schema_migrations (
    version         bigint primary key,
    name            text not null,
    state           text not null check (state in ('applied', 'dirty')),
    checksum        text not null,
    started_at      timestamptz not null,
    finished_at     timestamptz,
    duration_ms     double precision,
    program_version text not null,
    error           text
);
-- Came after the first databases were made.
alter table mcp.schema_migrations add column if not exists works_with bigint;
"""

SQL = load("schema_migrations")


@dataclass(frozen=True, slots=True)
class Repair:
    """What is done about a dirty migration."""

    migration: Migration
    record: MigrationRecord

    @property
    def statements(self) -> list[str]:
        """What is run: nothing, if the failure left nothing behind."""
        whole = self.migration.up.in_transaction and self.migration.down.in_transaction
        return [] if whole else self.migration.down.statements()

    @property
    def sentence(self) -> str:
        label, down = self.migration.label, self.migration.down.file_name
        if self.statements:
            return f"{label}: run {down}, because it was applied without a transaction"
        return f"{label}: forget the failure; its transaction was rolled back, so nothing of it is there"


class Migrator:
    """The migrations of one folder and one database."""

    def __init__(
        self,
        dsn: str,
        *,
        directory: Path = MIGRATIONS_DIRECTORY,
        lock_wait_s: float = LOCK_WAIT_S,
        program_version: str = __version__,
    ) -> None:
        self._dsn = dsn
        self._lock_wait_s = lock_wait_s
        self._program_version = program_version
        self.migrations = read_migrations(directory)

    async def up(self) -> list[Migration]:
        """Applies what is pending and answers with what this call applied: nothing, if another instance was first."""
        async with self._locked_connection() as connection:
            await _bootstrap(connection)
            await self._take_back_what_was_cut_off(connection)
            statuses = await self._statuses(connection)
            migration_states.refuse(statuses, self._program_version)
            pending = {status.version for status in statuses if status.state is State.PENDING}
            applied = [migration for migration in self.migrations if migration.version in pending]
            await self._run(connection, [(migration, migration.up) for migration in applied])
            return applied

    async def down(self, steps: int) -> list[Migration]:
        """Takes back the last `steps` migrations, the newest first, and answers with them."""
        async with self._locked_connection() as connection:
            await _bootstrap(connection)
            statuses = await self._statuses(connection)
            migration_states.refuse(statuses, self._program_version)
            migration_states.refuse_newer(statuses, self._program_version)
            applied = {status.version for status in statuses if status.state is State.APPLIED}
            taken_back = [migration for migration in reversed(self.migrations) if migration.version in applied][:steps]
            await self._run(connection, [(migration, migration.down) for migration in taken_back])
            return taken_back

    async def status(self) -> list[MigrationStatus]:
        """Every migration that the program or the database knows, by version. Changes nothing."""
        async with self._connection() as connection:
            return await self._statuses(connection)

    async def look(self) -> tuple[list[MigrationStatus], bool]:
        """The same, and whether somebody is migrating at this moment."""
        async with self._connection() as connection:
            is_migrating = await connection.fetchval(SQL.is_locked.text, LOCK_NUMBER)
            return await self._statuses(connection), bool(is_migrating)

    async def verify(self) -> None:
        """Raises `MigrationError` if the database is newer, an applied file was edited, or a migration is dirty."""
        migration_states.refuse(await self.status(), self._program_version)

    async def wait_for_schema(self, deadline_s: float, interval_s: float, on_wait: Callable[[str], None]) -> None:
        """Waits until another process has migrated. `on_wait` is told what is missing at every look.

        The first looks come sooner than at intervals: what starts together with the migration is ready soon after it.
        A dirty migration that has not failed is waited for too, for it may be under way. Raises `MigrationError` when the
        time is up, and at once for what waiting cannot mend.
        """
        ends_at, pause_s = time.monotonic() + deadline_s, min(FIRST_PAUSE_S, interval_s)
        while True:
            try:
                statuses = await self.status()
            except connections.DatabaseUnreachable as error:
                if error.is_permanent:
                    raise
                missing = str(error)
            else:
                if any(status.is_stuck for status in statuses):
                    migration_states.refuse(statuses, self._program_version)
                lacking = migration_states.reasons(statuses, self._program_version)
                if not lacking:
                    return
                missing = "the schema is not complete: " + "; ".join(lacking)
            if time.monotonic() + pause_s > ends_at:
                raise MigrationError(f"gave up waiting after {deadline_s:g} s: {missing}")
            on_wait(missing)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, interval_s)

    async def repair_plan(self) -> list[Repair]:
        """What `repair` would do. Changes nothing."""
        async with self._connection() as connection:
            return await self._plan(connection)

    async def repair(self) -> list[Repair]:
        """Takes back what dirty migrations left, so that `up` can apply them again. Answers with what it did."""
        async with self._locked_connection() as connection:
            await _bootstrap(connection)
            plan = await self._plan(connection)
            await self._repair(connection, plan)
            return plan

    async def _plan(self, connection: asyncpg.Connection) -> list[Repair]:
        """The newest first, as whatever is taken back."""
        statuses = await self._statuses(connection)
        migration_states.refuse_newer(statuses, self._program_version)
        not_dirty = [status for status in statuses if status.state is not State.DIRTY]
        migration_states.refuse(not_dirty, self._program_version)
        return [
            Repair(self._migration(status.version), status.record)
            for status in reversed(statuses)
            if status.state is State.DIRTY and status.record is not None
        ]

    async def _repair(self, connection: asyncpg.Connection, plan: Sequence[Repair]) -> None:
        for repair in plan:
            log.warning("repairing a migration", migration=repair.migration.label, action=repair.sentence)
            if repair.statements:
                await self._run(connection, [(repair.migration, repair.migration.down)])
            else:
                await connection.execute(SQL.forget.text, repair.migration.version)

    async def _take_back_what_was_cut_off(self, connection: asyncpg.Connection) -> None:
        """A migration that is dirty without having failed was cut off with its process: whoever held the lock is gone.

        It is begun anew, so that a killed service leaves nothing that the next start cannot mend. One that failed is left to
        people: it would fail again.
        """
        if any(status.state is State.DIRTY for status in await self._statuses(connection)):
            plan = await self._plan(connection)
            await self._repair(connection, [repair for repair in plan if repair.record.error is None])

    def _migration(self, version: int) -> Migration:
        return next(migration for migration in self.migrations if migration.version == version)

    async def _run(self, connection: asyncpg.Connection, steps: Sequence[tuple[Migration, Script]]) -> None:
        for number, (migration, script) in enumerate(steps, start=1):
            place = f"{number} of {len(steps)}"
            await Run(connection, migration, script, self._program_version, place).run()

    async def _statuses(self, connection: asyncpg.Connection) -> list[MigrationStatus]:
        records = []
        if await connection.fetchval(SQL.is_bootstrapped.text):
            records = [MigrationRecord(**row) for row in await connection.fetch(SQL.list.text)]
        return migration_states.compare(self.migrations, records)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await connections.open_connection(self._dsn, SETTINGS, statements_cached_max=0)
        try:
            yield connection
        except connections.GONE as error:
            raise connections.DatabaseUnreachable(f"the database went away: {error}", is_permanent=False) from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise MigrationError(f"the database's role lacks rights: {error}; `devmesh doctor` says which") from error
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "").startswith(PASSING_STATES):
                message = f"the database cannot be migrated for the moment: {error}"
                raise connections.DatabaseUnreachable(message, is_permanent=False) from error
            raise MigrationError(f"the database refused what every migration needs: {error}") from error
        finally:
            await connections.close_connection(connection)

    @asynccontextmanager
    async def _locked_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection that holds the migration lock until it is closed."""
        ends_at = time.monotonic() + self._lock_wait_s
        logs_at = 0.0
        async with self._connection() as connection:
            while not await connection.fetchval(SQL.try_lock.text, LOCK_NUMBER):
                if time.monotonic() > ends_at:
                    raise MigrationError(f"another instance has been migrating for over {self._lock_wait_s:g} s")
                if time.monotonic() >= logs_at:
                    log.info("another instance is migrating; waiting for it")
                    logs_at = time.monotonic() + LOCK_LOG_INTERVAL_S
                await asyncio.sleep(LOCK_POLL_INTERVAL_S)
            yield connection


async def _bootstrap(connection: asyncpg.Connection) -> None:
    """Makes the table of applied migrations, or brings an earlier program's up to date. Held by nobody's lock if it is."""
    if not await connection.fetchval(SQL.is_current.text):
        await connection.execute(BOOTSTRAP)
