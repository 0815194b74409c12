"""Holds what a database says was applied against the migrations that the program has, and says what is wrong.

Must not know a database or a file: pure, so that `migrate status`, `doctor` and `/health` all say the same.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from devmesh.store.migration_files import Migration, MigrationError


class State(enum.StrEnum):
    APPLIED = "applied"
    PENDING = "pending"
    DIRTY = "dirty"  # failed, or being applied without a transaction, or cut off in that
    EDITED = "edited"  # applied, and its file has another text now
    UNKNOWN = "unknown"  # applied by a program that has it; this one does not


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """A row of mcp.schema_migrations."""

    version: int
    name: str
    state: str
    checksum: str
    started_at: datetime
    finished_at: datetime | None
    duration_ms: float | None
    program_version: str
    error: str | None


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration as the program and the database see it together."""

    version: int
    name: str
    state: State
    record: MigrationRecord | None  # None while it is pending

    @property
    def label(self) -> str:
        return f"{self.version:06d}_{self.name}"


def compare(migrations: Iterable[Migration], records: Iterable[MigrationRecord]) -> list[MigrationStatus]:
    """The state of every migration that either side knows, by version."""
    known = {migration.version: migration for migration in migrations}
    recorded = {record.version: record for record in records}
    statuses = []
    for version in sorted(known.keys() | recorded.keys()):
        migration, record = known.get(version), recorded.get(version)
        name = record.name if record is not None else known[version].name
        statuses.append(MigrationStatus(version, name, _state(migration, record), record))
    return statuses


def problems(statuses: Sequence[MigrationStatus], program_version: str) -> list[str]:
    """What forbids migrating and serving, one sentence each, with names. Pending migrations are not among it."""
    known = [status.version for status in statuses if status.state is not State.UNKNOWN]
    newest_known = max(known, default=0)
    found = []
    for status in statuses:
        match status.state:
            case State.UNKNOWN if status.version > newest_known:
                by = status.record.program_version if status.record is not None else "another"
                found.append(
                    f"the database is at version {status.version} ({status.label}, made by devmesh {by}) and is newer"
                    f" than this program (devmesh {program_version}), which knows versions up to {newest_known}:"
                    " run a program that is at least as new"
                )
            case State.UNKNOWN:
                found.append(
                    f"{status.label} was applied, but this program (devmesh {program_version}) has no such file"
                )
            case State.EDITED:
                found.append(f"{status.label} was edited after it was applied: put it back and write a new migration")
            case State.DIRTY:
                error = status.record.error if status.record is not None else None
                why = f"failed: {error}" if error else "was begun and not finished"
                found.append(f"{status.label} is dirty, it {why}; `devmesh migrate repair` mends it")
    return found


def refuse(statuses: Sequence[MigrationStatus], program_version: str) -> None:
    """Raises `MigrationError` that names every problem there is."""
    if found := problems(statuses, program_version):
        raise MigrationError("; ".join(found))


def _state(migration: Migration | None, record: MigrationRecord | None) -> State:
    if record is None:
        return State.PENDING
    if migration is None:
        return State.UNKNOWN
    if record.state == State.DIRTY:
        return State.DIRTY
    is_same = record.checksum == migration.checksum and record.name == migration.name
    return State.APPLIED if is_same else State.EDITED
