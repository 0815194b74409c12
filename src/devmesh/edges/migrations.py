"""How far the schema is, as health tells it."""

from __future__ import annotations

from collections.abc import Sequence

from devmesh import __version__
from devmesh.edges.health import Migrations
from devmesh.engine.schema_watch import SchemaWatch
from devmesh.store import migration_states
from devmesh.store.migration_states import MigrationStatus, State


async def migrations_last_seen(watch: SchemaWatch) -> Migrations:
    look = watch.last_look()
    return migration_facts(look.statuses, look.is_migrating)


def migration_facts(statuses: Sequence[MigrationStatus], is_migrating: bool) -> Migrations:
    applied = [status for status in statuses if status.state is State.APPLIED]
    problems = migration_states.reasons(statuses, __version__)
    records = [status.record for status in applied if status.record is not None]
    return Migrations(
        in_progress=is_migrating,
        completed=not problems,
        ready=not problems,
        version=applied[-1].version if applied else None,
        completed_at=max((record.finished_at for record in records if record.finished_at), default=None),
        duration_ms=sum(record.duration_ms or 0.0 for record in records),
        problems=problems,
        newer=[status.label for status in statuses if status.state is State.NEWER],
    )
