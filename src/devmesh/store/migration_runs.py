"""Runs one script of a migration and records what became of it; never tells a half for a whole.

Must not know which migrations there are, nor hold the lock: `migrator` does both.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
import structlog

from devmesh.store import connections
from devmesh.store.migration_files import Migration, MigrationError, Script
from devmesh.store.statements import load

log = structlog.get_logger(__name__)

TABLE_LOCK_TRIES_MAX = 5
TABLE_LOCK_PAUSE_S = 1.0
# Lock not available, deadlock, read-only during a failover: nothing is kept of the transaction, and it may pass later.
TRANSIENT_STATES = frozenset({"55P03", "40P01", "25006"})
STATEMENT_SHOWN_CHARACTERS_MAX = 120

SETTINGS = {
    "application_name": "devmesh migrate",
    "search_path": connections.DEFAULT_SEARCH_PATH,
    "timezone": "UTC",
    "client_min_messages": "warning",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A migration that waits for a table's lock makes everybody after it wait as well: it gives up and tries again.
    "lock_timeout": "5s",
    # Whoever migrates may be killed while a statement runs for hours: the server then ends it, and with it the lock.
    "client_connection_check_interval": "1s",
}
# Without a transaction nothing queues behind the wait, and giving up would leave a half: wait for long transactions.
UNBOUND_LOCK_TIMEOUT = "10min"

SQL = load("schema_migrations")


class Run:
    """One script, on the connection that holds the migration lock. `place` says which of how many it is."""

    def __init__(
        self, connection: asyncpg.Connection, migration: Migration, script: Script, program_version: str, place: str
    ) -> None:
        self._connection, self._migration, self._script = connection, migration, script
        self._program_version, self._place = program_version, place
        self._record: tuple[object, ...] = ()  # the parameters of record_applied

    async def run(self) -> None:
        """Raises `MigrationError` that says what became of it."""
        migration, script = self._migration, self._script
        started_at, began = await self._connection.fetchval(SQL.now.text), time.monotonic()
        self._record = (
            migration.version,
            migration.name,
            migration.checksum,
            started_at,
            self._program_version,
            migration.works_with,
        )
        log.info("migrating", script=script.file_name, place=self._place)
        try:
            await (self._run_whole() if script.in_transaction else self._run_apart())
        except connections.GONE as error:
            after = "it was undone" if script.in_transaction else f"{migration.label} is dirty"
            message = f"the database went away during {script.file_name}, {after}: {error}"
            raise connections.DatabaseUnreachable(message, is_permanent=False) from error
        except asyncpg.PostgresError as error:
            await self._record_failure(error)
        log.info("migrated", script=script.file_name, place=self._place, duration_s=round(time.monotonic() - began, 3))

    async def _record_failure(self, error: asyncpg.PostgresError) -> None:
        migration, script = self._migration, self._script
        failure = _describe(error, script)
        is_kept = script is migration.down and script.in_transaction  # the migration is as applied as before
        if is_kept or (script.in_transaction and error.sqlstate in TRANSIENT_STATES):
            raise MigrationError(f"{script.file_name} failed and changed nothing: {failure}") from error
        await self._connection.execute(SQL.record_dirty.text, *self._record, failure)
        raise MigrationError(f"{script.file_name} failed, {migration.label} is dirty: {failure}") from error

    async def _run_whole(self) -> None:
        """One transaction for the script and its record, tried again when it could not get a table's lock."""
        for number in range(1, TABLE_LOCK_TRIES_MAX + 1):
            try:
                async with self._connection.transaction():
                    await self._connection.execute(self._script.text)
                    await self._record_success()
                return
            except asyncpg.PostgresError as error:
                if error.sqlstate not in TRANSIENT_STATES or number == TABLE_LOCK_TRIES_MAX:
                    raise
                log.warning("a migration could not get its locks", script=self._script.file_name, tries=number)
            await asyncio.sleep(TABLE_LOCK_PAUSE_S)

    async def _run_apart(self) -> None:
        """Statement by statement, marked as dirty until the last is done."""
        connection, statements = self._connection, self._script.statements()
        await connection.execute(SQL.record_dirty.text, *self._record, None)
        await connection.execute(f"set lock_timeout = '{UNBOUND_LOCK_TIMEOUT}'")
        for number, statement in enumerate(statements, start=1):
            log.info(
                "migrating", script=self._script.file_name, place=self._place,
                statement=_shown(statement), statement_place=f"{number} of {len(statements)}",
            )  # fmt: skip
            await connection.execute(statement)
        await connection.execute(f"set lock_timeout = '{SETTINGS['lock_timeout']}'")
        await self._record_success()

    async def _record_success(self) -> None:
        if self._script is self._migration.up:
            await self._connection.execute(SQL.record_applied.text, *self._record)
        else:
            await self._connection.execute(SQL.forget.text, self._migration.version)


def _shown(statement: str) -> str:
    """The beginning of a statement, without the comments above it, on one line."""
    lines = [line.strip() for line in statement.splitlines() if line.strip() and not line.startswith("--")]
    return " ".join(lines)[:STATEMENT_SHOWN_CHARACTERS_MAX]


def _describe(error: asyncpg.PostgresError, script: Script) -> str:
    """The server's words and the line, for an operator: migrations hold no secrets and no data of callers."""
    place = ""
    if script.in_transaction and (position := getattr(error, "position", None)):
        place = f" (line {script.text.count(chr(10), 0, int(position) - 1) + 1})"
    message, _, more = str(error).partition("\n")
    return f"{message}{place} {more}".strip().replace("\n", " ")
