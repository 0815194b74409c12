"""Brings the schema up or down, once, however many instances start together, and never tells a half for a whole.

Must not know any table but its own. It works on a connection of its own, under an advisory lock of that connection:
whatever ends the process ends the lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg
import structlog

from devmesh import __version__
from devmesh.store import connections, migration_states
from devmesh.store.migration_files import MIGRATIONS_DIRECTORY, Migration, MigrationError, Script, read_migrations
from devmesh.store.migration_states import MigrationRecord, MigrationStatus, State
from devmesh.store.statements import load

log = structlog.get_logger(__name__)

LOCK_NUMBER = int.from_bytes(b"devmesh")
LOCK_WAIT_S = 1800.0  # for another instance to finish migrating
LOCK_POLL_INTERVAL_S = 0.2
LOCK_LOG_INTERVAL_S = 10.0
TABLE_LOCK_TRIES_MAX = 5
TABLE_LOCK_PAUSE_S = 1.0
# Lock not available, deadlock, read-only during a failover: nothing is kept of the transaction, and it may pass later.
TRANSIENT_STATES = frozenset({"55P03", "40P01", "25006"})

SETTINGS = {
    "application_name": "devmesh migrate",
    "search_path": connections.DEFAULT_SEARCH_PATH,
    "timezone": "UTC",
    "client_min_messages": "warning",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A migration that waits for a table's lock makes everybody after it wait as well: it gives up and tries again.
    "lock_timeout": "5s",
}
# Without a transaction nothing queues behind the wait, and giving up would leave a half: wait for long transactions.
UNBOUND_LOCK_TIMEOUT = "10min"

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
"""

SQL = load("schema_migrations")


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
            if not await connection.fetchval(SQL.is_bootstrapped.text):
                await connection.execute(BOOTSTRAP)
            statuses = await self._statuses(connection)
            migration_states.refuse(statuses, self._program_version)
            pending = {status.version for status in statuses if status.state is State.PENDING}
            applied = [migration for migration in self.migrations if migration.version in pending]
            for migration in applied:
                await self._move(connection, migration, migration.up)
            return applied

    async def down(self, steps: int) -> list[Migration]:
        """Takes back the last `steps` migrations, the newest first, and answers with them."""
        async with self._locked_connection() as connection:
            statuses = await self._statuses(connection)
            migration_states.refuse(statuses, self._program_version)
            applied = {status.version for status in statuses if status.state is State.APPLIED}
            taken_back = [migration for migration in reversed(self.migrations) if migration.version in applied][:steps]
            for migration in taken_back:
                await self._move(connection, migration, migration.down)
            return taken_back

    async def status(self) -> list[MigrationStatus]:
        """Every migration that the program or the database knows, by version. Changes nothing."""
        async with self._connection() as connection:
            return await self._statuses(connection)

    async def verify(self) -> None:
        """Raises `MigrationError` if the database is newer, an applied file was edited, or a migration is dirty."""
        migration_states.refuse(await self.status(), self._program_version)

    async def wait_for_schema(self, deadline_s: float, interval_s: float, on_wait: Callable[[str], None]) -> None:
        """Waits until another process has migrated. `on_wait` is told what is missing at every look.

        A dirty migration is waited for too, for it may be under way. Raises `MigrationError` when the time is up, and
        at once for what waiting cannot mend.
        """
        ends_at = time.monotonic() + deadline_s
        while True:
            try:
                statuses = await self.status()
            except connections.DatabaseUnreachable as error:
                if error.is_permanent:
                    raise
                missing = str(error)
            else:
                if any(status.state in (State.EDITED, State.UNKNOWN) for status in statuses):
                    migration_states.refuse(statuses, self._program_version)
                lacking = [
                    f"{status.label} is {status.state}" for status in statuses if status.state is not State.APPLIED
                ]
                if not lacking:
                    return
                missing = "the schema is not complete: " + ", ".join(lacking)
            if time.monotonic() + interval_s > ends_at:
                raise MigrationError(f"gave up waiting after {deadline_s:g} s: {missing}")
            on_wait(missing)
            await asyncio.sleep(interval_s)

    async def repair_plan(self) -> list[str]:
        """What `repair` would do, a sentence each. Changes nothing."""
        return [self._repair_sentence(status) for status in await self.status() if status.state is State.DIRTY]

    async def repair(self) -> list[str]:
        """Takes back what dirty migrations left, so that `up` can apply them again. Answers with what it did."""
        done = []
        async with self._locked_connection() as connection:
            statuses = await self._statuses(connection)
            not_dirty = [status for status in statuses if status.state is not State.DIRTY]
            migration_states.refuse(not_dirty, self._program_version)
            for status in reversed(statuses):
                if status.state is not State.DIRTY:
                    continue
                sentence = self._repair_sentence(status)
                migration = self._migration(status.version)
                if migration.up.in_transaction and migration.down.in_transaction:
                    await connection.execute(SQL.forget.text, status.version)
                else:
                    await self._move(connection, migration, migration.down)
                done.append(sentence)
        return done

    def _repair_sentence(self, status: MigrationStatus) -> str:
        migration = self._migration(status.version)
        if migration.up.in_transaction and migration.down.in_transaction:
            return f"{status.label}: forget the failure; its transaction was rolled back, so nothing of it is there"
        return f"{status.label}: run {migration.down.file_name}, because it was applied without a transaction"

    def _migration(self, version: int) -> Migration:
        return next(migration for migration in self.migrations if migration.version == version)

    async def _statuses(self, connection: asyncpg.Connection) -> list[MigrationStatus]:
        records = []
        if await connection.fetchval(SQL.is_bootstrapped.text):
            records = [MigrationRecord(**row) for row in await connection.fetch(SQL.list.text)]
        return migration_states.compare(self.migrations, records)

    async def _move(self, connection: asyncpg.Connection, migration: Migration, script: Script) -> None:
        """Runs one script and records what became of it."""
        started_at = await connection.fetchval(SQL.now.text)
        record = (migration.version, migration.name, migration.checksum, started_at, self._program_version)
        log.info("migrating", script=script.file_name)
        try:
            if script.in_transaction:
                await self._run_whole(connection, migration, script, record)
            else:
                await self._run_apart(connection, migration, script, record)
        except connections.GONE as error:
            after = "it was undone" if script.in_transaction else f"{migration.label} is dirty"
            raise MigrationError(f"the database went away during {script.file_name}, {after}: {error}") from error
        except asyncpg.PostgresError as error:
            failure = _describe(error, script)
            is_kept = script is migration.down and script.in_transaction  # the migration is as applied as before
            if is_kept or (script.in_transaction and error.sqlstate in TRANSIENT_STATES):
                raise MigrationError(f"{script.file_name} failed and changed nothing: {failure}") from error
            await connection.execute(SQL.record_dirty.text, *record, failure)
            raise MigrationError(f"{script.file_name} failed, {migration.label} is dirty: {failure}") from error

    async def _run_whole(
        self,
        connection: asyncpg.Connection,
        migration: Migration,
        script: Script,
        record: tuple[int, str, str, datetime, str],
    ) -> None:
        """One transaction for the script and its record, tried again when it could not get a table's lock."""
        for number in range(1, TABLE_LOCK_TRIES_MAX + 1):
            try:
                async with connection.transaction():
                    await connection.execute(script.text)
                    if script is migration.up:
                        await connection.execute(SQL.record_applied.text, *record)
                    else:
                        await connection.execute(SQL.forget.text, migration.version)
                return
            except asyncpg.PostgresError as error:
                if error.sqlstate not in TRANSIENT_STATES or number == TABLE_LOCK_TRIES_MAX:
                    raise
                log.warning("a migration could not get its locks", script=script.file_name, tries=number)
            await asyncio.sleep(TABLE_LOCK_PAUSE_S)

    async def _run_apart(
        self,
        connection: asyncpg.Connection,
        migration: Migration,
        script: Script,
        record: tuple[int, str, str, datetime, str],
    ) -> None:
        """Statement by statement, marked as dirty until the last is done."""
        await connection.execute(SQL.record_dirty.text, *record, None)
        await connection.execute(f"set lock_timeout = '{UNBOUND_LOCK_TIMEOUT}'")
        for statement in script.statements():
            await connection.execute(statement)
        await connection.execute(f"set lock_timeout = '{SETTINGS['lock_timeout']}'")
        if script is migration.up:
            await connection.execute(SQL.record_applied.text, *record)
        else:
            await connection.execute(SQL.forget.text, migration.version)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await connections.open_connection(self._dsn, SETTINGS, statements_cached_max=0)
        try:
            yield connection
        except connections.GONE as error:
            raise connections.DatabaseUnreachable(f"the database went away: {error}", is_permanent=False) from error
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


def _describe(error: asyncpg.PostgresError, script: Script) -> str:
    """The server's words and the line, for an operator: migrations hold no secrets and no data of callers."""
    place = ""
    if script.in_transaction and (position := getattr(error, "position", None)):
        place = f" (line {script.text.count(chr(10), 0, int(position) - 1) + 1})"
    message, _, more = str(error).partition("\n")
    return f"{message}{place} {more}".strip().replace("\n", " ")
