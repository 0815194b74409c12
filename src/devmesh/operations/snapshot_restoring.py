"""How a snapshot is put back: what is missing is written again, and of what is otherwise now there is a report.

A job that was held gets a fresh lease if nothing has become of it since; else it waits again. Attempts never go back: what is
put back goes on after the latest that there was, so that a worker that was given up since stays refused.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Status, queue_topic
from devmesh.core.names import Moment
from devmesh.core.snapshots import CONFLICTS, OnConflict
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import End, mark, settle, unblock
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import leave_places, wait_again
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.snapshots import SQL as SNAPSHOTS
from devmesh.operations.snapshots import gather, require
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.statements import load

SQL = load("snapshot_restoring")
CONFLICTS_TOLD_MAX = 1_000
TAKES_MAX = 20  # looks for jobs that others move meanwhile


class Restore(Mutation, kw_only=True):
    """Either `snapshot_id`, or `at`: the latest that was taken by then."""

    together = ({"oneOf": [
        {"required": ["snapshot_id"], "properties": {"snapshot_id": {"not": {"type": "null"}}, "at": {"type": "null"}}},
        {"required": ["at"], "properties": {"snapshot_id": {"type": "null"}, "at": {"not": {"type": "null"}}}},
    ]},)  # fmt: skip

    snapshot_id: uuid.UUID | None = None
    at: Moment | None = None
    on_conflict: OnConflict = OnConflict.PRESERVE


class Conflict(msgspec.Struct):
    """Something that is otherwise now: as it is (PRESERVED_CURRENT), or as it was (RESTORED_SNAPSHOT)."""

    kind: str
    noun: str
    id: str
    resolution: str
    snapshot_value: str | None
    current_value: str | None


class Restored(msgspec.Struct):
    """How many of each were put back."""

    jobs: int
    processing: int
    dead_letters: int
    workers: int
    queues: int
    schedules: int


class RestoredResult(msgspec.Struct):
    """`conflicts` are the first thousand; `conflict_count` counts all."""

    snapshot_id: uuid.UUID
    taken_at: datetime.datetime
    restored: Restored
    conflicts: list[Conflict]
    conflict_count: int


@operation("snapshot.restore", scope=Scope.ADMIN, http="POST /snapshots/restore", single=True, audited=True)
async def restore(work: Work, call: Call[Restore]) -> RestoredResult:
    """Put back what a snapshot has. What was made since stays; what is otherwise now stays, is overwritten, or refuses it."""
    asked = call.params
    await work.tx.execute(SQL.lock, work.tenant_id)
    snapshot = await require(work, await _chosen(work, asked), SNAPSHOTS.hold)
    whole = await gather(work, snapshot.id)
    for statement in (SQL.decide_jobs, SQL.decide_others):
        await work.tx.execute(statement, work.tenant_id, whole)
    rows = await work.tx.fetch(SQL.conflicts, work.tenant_id, whole, CONFLICTS_TOLD_MAX)
    count = rows[0]["total"] if rows else 0
    if rows and asked.on_conflict is OnConflict.FAIL:
        first = ", ".join(f"{CONFLICTS[row['noun']]} of {row['id']}" for row in rows[:10])
        raise errors.conflict("snapshot.conflicts", f"{count:,} things are otherwise now; nothing was changed: {first}")
    restored = await _put_back(work, whole, is_overwriting=asked.on_conflict is OnConflict.OVERWRITE)
    await work.tx.execute(SNAPSHOTS.delete_rows, work.tenant_id, whole)
    work.emit(
        "snapshot.restored", (f"snapshot:{snapshot.id}",), {"snapshot": {"id": snapshot.id}, "restored": restored}
    )
    resolution = "RESTORED_SNAPSHOT" if asked.on_conflict is OnConflict.OVERWRITE else "PRESERVED_CURRENT"
    told = [
        Conflict(CONFLICTS[row["noun"]], row["noun"], row["id"], resolution, row["was"], row["is_now"]) for row in rows
    ]
    return RestoredResult(snapshot.id, snapshot.taken_at, restored, told, count)


async def _chosen(work: Work, asked: Restore) -> uuid.UUID:
    if (asked.snapshot_id is None) == (asked.at is None):
        raise errors.invalid("give either snapshot_id or at", "snapshot_id")
    if asked.snapshot_id is not None:
        return asked.snapshot_id
    assert asked.at is not None
    found: uuid.UUID | None = await work.tx.fetch_value(SNAPSHOTS.latest_until, work.tenant_id, asked.at)
    if found is None:
        raise errors.MeshError(
            errors.Kind.NOT_FOUND, f"there is no snapshot of {asked.at.isoformat()} or before", field="at"
        )
    return found


async def _put_back(work: Work, whole: uuid.UUID, *, is_overwriting: bool) -> Restored:
    decisions = ["insert", "conflict"] if is_overwriting else ["insert"]
    if is_overwriting:
        await _take_away(work, whole)
    workers = await work.tx.fetch(SQL.put_back_workers, work.tenant_id, whole, decisions)
    queues = await work.tx.fetch(SQL.put_back_queues, work.tenant_id, whole, decisions)
    schedules = await work.tx.fetch(SQL.put_back_schedules, work.tenant_id, whole, decisions)
    await work.tx.execute(SQL.put_back_jobs, work.tenant_id, whole, decisions)
    waiting = await work.tx.fetch(SQL.put_back_waiting, work.tenant_id, whole, decisions)
    held = await work.tx.fetch(SQL.put_back_held, work.tenant_id, whole)
    blocked = await work.tx.fetch(SQL.put_back_blocked, work.tenant_id, whole, decisions)
    dead = await work.tx.fetch(SQL.put_back_dead, work.tenant_id, whole, decisions)
    await work.tx.execute(SQL.put_back_keys, work.tenant_id, whole)
    failed = [(row["queue"], patch(row["job_id"], row["attempt"])) for row in dead if row["ends_again"]]
    tell(work, "job.failed", failed, Status.FAILED)
    for rows, status in (([*waiting, *blocked], Status.PENDING), (held, Status.PROCESSING), (dead, Status.FAILED)):
        tell(work, "job.restored", [(row["queue"], patch(row["job_id"], row["attempt"])) for row in rows], status)
    tell(
        work, "job.unblocked", [(row["queue"], patch(row["job_id"], row["attempt"])) for row in waiting], Status.PENDING
    )
    if waiting:
        await wait_again(work, [row["job_id"] for row in waiting])
    await _bind(work, blocked)
    await settle(work, [row["job_id"] for row in dead if row["is_waited_for"]], End.FAILED)
    _tell_others(work, workers, queues)
    return Restored(
        jobs=len(waiting) + len(held) + len(blocked), processing=len(held), dead_letters=len(dead), workers=len(workers),
        queues=len(queues), schedules=len(schedules),
    )  # fmt: skip


async def _take_away(work: Work, whole: uuid.UUID) -> None:
    """Takes jobs that are otherwise now from wherever they are. Who moves one meanwhile is waited for; then we look again."""
    places: set[uuid.UUID] = set()
    for _ in range(TAKES_MAX):
        taken = await work.tx.fetch(SQL.take_away, work.tenant_id, whole)
        places |= {row["job_id"] for row in taken}
        ended = [(row["queue"], patch(row["job_id"], row["attempt"])) for row in taken if row["queue"] is not None]
        tell(work, "job.cancelled", ended, Status.CANCELLED)
        if not await work.tx.fetch_value(SQL.left, work.tenant_id, whole):
            await leave_places(work, sorted(places))
            return
    raise errors.unavailable(
        "jobs of the snapshot are moved faster than they can be taken; nothing was changed: try again"
    )


async def _bind(work: Work, blocked: Sequence[Record]) -> None:
    """Has jobs wait for those of their parents that were not completed. When one has failed their policy says what follows."""
    if not blocked:
        return
    wanted = sorted({parent_id for row in blocked for parent_id in row["parent_ids"]})
    known = [row["job_id"] for row in await work.tx.fetch(JOBS.known, work.tenant_id, wanted)]
    parents = await mark(work, known)
    dead = {
        row["job_id"] for row in await work.tx.fetch(DEPENDENCIES.mark_dead, work.tenant_id, sorted(parents.failed))
    }
    edges = [
        (parent_id, row["job_id"])
        for row in blocked
        for parent_id in row["parent_ids"]
        if parent_id in parents.alive | parents.failed
    ]
    await work.tx.execute(
        DEPENDENCIES.add, work.tenant_id, [parent for parent, _ in edges], [child for _, child in edges]
    )
    await settle(work, dead, End.FAILED)
    await settle(work, parents.failed - dead, End.GONE)
    await unblock(work, [row["job_id"] for row in blocked])


def _tell_others(work: Work, workers: Sequence[Record], queues: Sequence[Record]) -> None:
    for row in workers:
        told: dict[str, Any] = {"id": row["worker_id"], "status": row["status"], "reason": row["reason"]}
        work.emit("worker.status", (f"worker:{row['worker_id']}",), {"worker": told})
    for row in queues:
        event_type = "queue.paused" if row["paused_at"] is not None else "queue.resumed"
        work.emit(event_type, (queue_topic(row["queue"]),), dict(row))
