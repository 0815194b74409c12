"""One look at a database's schema as a whole: which migrations it has, and whether each piece is as they make it.

Must not decide what follows from what it sees; whoever looks does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devmesh import __version__
from devmesh.store import catalogue, drift, migration_states
from devmesh.store.catalogue import Catalogue, Piece
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.drift import Drift
from devmesh.store.migration_files import Migration, read_migrations
from devmesh.store.migration_states import MigrationRecord, MigrationStatus, State
from devmesh.store.migrator import LOCK_NUMBER, Migrator
from devmesh.store.statements import load

LOOK_LIMIT_S = 5.0
MIGRATIONS = load("schema_migrations")


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen."""

    statuses: Sequence[MigrationStatus]
    is_migrating: bool  # somebody holds the migration lock
    drift: Drift | None  # None: migrations are missing or wrong, which comes first, or the catalogue is stale
    is_catalogue_stale: bool  # a migration was written or changed, and the expected catalogue was not made anew

    @property
    def migration_problems(self) -> list[str]:
        """Why the migrations forbid to serve, one sentence each."""
        return migration_states.reasons(self.statuses, __version__)

    @property
    def newer(self) -> list[str]:
        """What a newer program has done that this one keeps working with, one sentence each."""
        return migration_states.newer(self.statuses, __version__)


class Inspector:
    """Knows what this program's migrations make, and holds databases against it."""

    def __init__(self, migrations: Sequence[Migration], expected: Catalogue) -> None:
        self._migrations, self._expected = migrations, expected
        self._is_stale = not expected.is_of(migrations)

    @classmethod
    def of_this_program(cls) -> Inspector:
        return cls(read_migrations(), catalogue.expected())

    async def look(self, database: Database) -> Look:
        """Raises MeshError if the database cannot be asked."""
        return await database.run(self._look, deadline_s=LOOK_LIMIT_S)

    async def _look(self, tx: Transaction) -> Look:
        # The pieces first: a migration that is committed in between is then seen to explain what it has changed.
        pieces = await catalogue.read_pieces(tx)
        records: list[Record] = []
        if await tx.fetch_value(MIGRATIONS.is_bootstrapped):
            records = await tx.fetch(MIGRATIONS.list)
        statuses = migration_states.compare(self._migrations, [MigrationRecord(**row) for row in records])
        is_migrating = bool(await tx.fetch_value(MIGRATIONS.is_locked, LOCK_NUMBER))
        return Look(statuses, is_migrating, self._drift(statuses, pieces), self._is_stale)

    def _drift(self, statuses: Sequence[MigrationStatus], pieces: Sequence[Piece]) -> Drift | None:
        if self._is_stale or any(not status.is_served for status in statuses):
            return None
        is_later = any(status.state is State.NEWER for status in statuses)
        return drift.compare(self._expected.pieces, pieces, is_later=is_later)


async def make_catalogue(dsn: str) -> Catalogue:
    """What this program's migrations make of an empty database."""
    migrator = Migrator(dsn)
    await migrator.up()
    database = await Database.open(
        dsn, service="devmesh migrate", pool_size_min=1, pool_size_max=1, transaction_deadline_s=LOOK_LIMIT_S
    )
    try:
        return Catalogue(catalogue.fingerprint(migrator.migrations), await database.run(catalogue.read_pieces))
    finally:
        await database.close()
