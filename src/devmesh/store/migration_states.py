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
    NEWER = "newer"  # applied, or being applied, by a newer program; it says that this one keeps working with it
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
    works_with: int | None  # the oldest version whose programs keep working with it; None: only those that have it


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

    @property
    def is_served(self) -> bool:
        """Whether a program may serve with it as it is."""
        return self.state in (State.APPLIED, State.NEWER)

    @property
    def is_stuck(self) -> bool:
        """Whether waiting for another process cannot mend it."""
        has_failed = self.state is State.DIRTY and self.record is not None and self.record.error is not None
        return has_failed or self.state in (State.EDITED, State.UNKNOWN)


def compare(migrations: Iterable[Migration], records: Iterable[MigrationRecord]) -> list[MigrationStatus]:
    """The state of every migration that either side knows, by version."""
    known = {migration.version: migration for migration in migrations}
    recorded = {record.version: record for record in records}
    newest_known = max(known, default=0)
    statuses = []
    for version in sorted(known.keys() | recorded.keys()):
        migration, record = known.get(version), recorded.get(version)
        name = record.name if record is not None else known[version].name
        statuses.append(MigrationStatus(version, name, _state(migration, record, newest_known), record))
    return statuses


def problems(statuses: Sequence[MigrationStatus], program_version: str) -> list[str]:
    """What forbids migrating and serving, one sentence each, with names. Pending migrations are not among it."""
    newest_known = _newest_known(statuses)
    is_newer = any(status.state is State.NEWER for status in statuses)
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
            case State.PENDING if is_newer:
                found.append(f"{status.label} is not applied, but later ones of a newer program are: run that program")
            case State.EDITED:
                found.append(f"{status.label} was edited after it was applied: put it back and write a new migration")
            case State.DIRTY:
                why = _why_dirty(status.record) if status.record is not None else ""
                found.append(f"{status.label} is dirty, {why}; `devmesh migrate repair` mends it")
    return found


def reasons(statuses: Sequence[MigrationStatus], program_version: str) -> list[str]:
    """What forbids serving, one sentence each: the problems and what is pending."""
    pending = [f"{status.label} is pending" for status in statuses if status.state is State.PENDING]
    return [*problems(statuses, program_version), *pending]


def refuse(statuses: Sequence[MigrationStatus], program_version: str) -> None:
    """Raises `MigrationError` that names every problem there is."""
    if found := problems(statuses, program_version):
        raise MigrationError("; ".join(found))


def newer(statuses: Sequence[MigrationStatus], program_version: str) -> list[str]:
    """What a newer program has done to the database that this one keeps working with, one sentence each."""
    newest_known = _newest_known(statuses)
    return [
        f"{status.label} was made by devmesh {status.record.program_version} and works with this program"
        f" (devmesh {program_version}, which knows versions up to {newest_known})"
        + (f"; it is dirty, and that newer program has to mend it: {why}" if (why := _why_dirty(status.record)) else "")
        for status in statuses
        if status.state is State.NEWER and status.record is not None
    ]


def refuse_newer(statuses: Sequence[MigrationStatus], program_version: str) -> None:
    """Raises `MigrationError` if a newer program has migrated: what it knows must not be changed beneath it."""
    if found := newer(statuses, program_version):
        raise MigrationError("the database is newer than this program, which must not change it: " + "; ".join(found))


def _newest_known(statuses: Sequence[MigrationStatus]) -> int:
    others = (State.UNKNOWN, State.NEWER)
    return max((status.version for status in statuses if status.state not in others), default=0)


def _why_dirty(record: MigrationRecord) -> str:
    """Why a migration is dirty; nothing, when it is not."""
    if record.state != State.DIRTY:
        return ""
    return f"it failed: {record.error}" if record.error else "it was begun and not finished"


def _state(migration: Migration | None, record: MigrationRecord | None, newest_known: int) -> State:
    if record is None:
        return State.PENDING
    if migration is None:
        is_newer = record.version > newest_known
        is_compatible = record.works_with is not None and record.works_with <= newest_known
        return State.NEWER if is_newer and is_compatible else State.UNKNOWN
    if record.state == State.DIRTY:
        return State.DIRTY
    is_same = record.checksum == migration.checksum and record.name == migration.name
    return State.APPLIED if is_same else State.EDITED
