"""How a snapshot is put back: what is missing is written again, and of what is otherwise now there is a report.

A job that was held gets a fresh lease if nothing has become of it since; else it waits again. Attempts never go back: what is
put back goes on after the latest that there was, so that a worker that was given up since stays refused.
"""

from __future__ import annotations

import collections
import datetime
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Status, queue_topic
from devmesh.core.names import Moment
from devmesh.core.schedules import TimingUnusable
from devmesh.core.snapshots import PLACES, OnConflict
from devmesh.operations.job_circles import without_circles
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import End, mark, settle, unblock
from devmesh.operations.job_events import Patch, patch, tell
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_limits import leave_places, wait_again
from devmesh.operations.job_locking import lock_dead, lock_leases, take_in_hand
from devmesh.operations.job_replaying import refuse_while_drained
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.schedule_firing import timing_of
from devmesh.operations.snapshot_conflicts import (
    TAKEN,
    Conflict,
    Cursor,
    Thing,
    decide,
    next_cursor,
    page,
    refusal,
    told,
)
from devmesh.operations.snapshots import SQL as SNAPSHOTS
from devmesh.operations.snapshots import gather, require
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.statements import load

SQL = load("snapshot_restoring")
TAKES_MAX = 20  # looks for jobs that others move meanwhile
# Workers whose claims wait for a restore: PostgreSQL has room for some thousands of locks. Others may be given too much.
CLAIMS_LOCKED_MAX = 1_000


class Restore(Mutation, kw_only=True):
    """Either `snapshot_id`, or `at`: the latest that was taken by then."""

    together = ({"oneOf": [
        {"required": ["snapshot_id"], "properties": {"snapshot_id": {"not": {"type": "null"}}, "at": {"type": "null"}}},
        {"required": ["at"], "properties": {"snapshot_id": {"type": "null"}, "at": {"not": {"type": "null"}}}},
    ]}, {"anyOf": [
        {"properties": {"cursor": {"type": "null"}}},
        {"required": ["dry_run"], "properties": {"dry_run": {"const": True}}},
    ]})  # fmt: skip

    snapshot_id: uuid.UUID | None = None
    at: Moment | None = None
    on_conflict: OnConflict = OnConflict.PRESERVE
    dry_run: bool = False
    """Nothing is put back: it is told what is otherwise now, and what would become of it, however much that is."""
    cursor: Cursor | None = None
    """Of a dry run: `next_cursor` of the one before it, to go on with its report."""


class Restored(msgspec.Struct):
    """How many of each were put back."""

    jobs: int = 0
    processing: int = 0
    dead_letters: int = 0
    workers: int = 0
    queues: int = 0
    schedules: int = 0


class RestoredResult(msgspec.Struct):
    """`conflicts` are the first thousand, and in a dry run those after `cursor`; `conflict_count` counts all."""

    snapshot_id: uuid.UUID
    taken_at: datetime.datetime
    restored: Restored
    conflicts: list[Conflict]
    conflict_count: int
    next_cursor: str | None = None


@operation("snapshot.restore", scope=Scope.ADMIN, http="POST /snapshots/restore", single=True, audited=True)
async def restore(work: Work, call: Call[Restore]) -> RestoredResult:
    """Put back what a snapshot has. What was made since stays; what is otherwise now stays, is overwritten, or refuses it."""
    asked = call.params
    if asked.cursor is not None and not asked.dry_run:
        raise errors.invalid("cursor: only a dry run goes on with the report of another", "cursor")
    await work.tx.execute(SQL.lock, work.tenant_id)
    snapshot = await require(work, await _chosen(work, asked), SNAPSHOTS.hold)
    whole = await gather(work, snapshot.id)
    is_overwriting = asked.on_conflict is OnConflict.OVERWRITE
    decisions = ["insert", "conflict"] if is_overwriting else ["insert"]
    count = await decide(work, whole, decisions, is_dry=asked.dry_run)
    rows = await page(work, whole, asked.cursor)
    if asked.dry_run:
        written = {(row["noun"], row["id"]) for row in rows if is_overwriting and row["decision"] != TAKEN}
        restored = Restored()
    else:
        if rows and asked.on_conflict is OnConflict.FAIL:
            raise refusal(rows, count)
        restored, written = await _put_back(work, whole, decisions)
        work.emit(
            "snapshot.restored", (f"snapshot:{snapshot.id}",), {"snapshot": {"id": snapshot.id}, "restored": restored}
        )
    await work.tx.execute(SNAPSHOTS.delete_rows, work.tenant_id, whole)
    after = next_cursor(rows) if asked.dry_run else None
    return RestoredResult(snapshot.id, snapshot.taken_at, restored, told(rows, written), count, after)


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


async def _put_back(work: Work, whole: uuid.UUID, decisions: list[str]) -> tuple[Restored, set[Thing]]:
    """Writes what was decided upon, and gives what was written."""
    # Unique keys first: who has a job run again takes its key in hand, and then waits for the lock below.
    await work.tx.execute(SQL.put_back_keys, work.tenant_id, whole)
    # Before any job is locked, as those take it who say what waits for what.
    await work.tx.execute(DEPENDENCIES.lock, work.tenant_id)
    # The same goes for who gives a worker jobs or empties it: after its claims they lock jobs, and the worker itself.
    await work.tx.execute(SQL.lock_claims, work.tenant_id, whole, CLAIMS_LOCKED_MAX)
    await _lock_all(work, whole)
    if "conflict" in decisions:
        await _take_away(work, whole)
    workers = await work.tx.fetch(SQL.put_back_workers, work.tenant_id, whole, decisions)
    queues = await work.tx.fetch(SQL.put_back_queues, work.tenant_id, whole, decisions)
    schedules = await work.tx.fetch(
        SQL.put_back_schedules, work.tenant_id, whole, decisions, *await _next_times(work, whole)
    )
    jobs = await _put_back_jobs(work, whole, decisions)
    _tell_others(work, workers, queues)
    kept = collections.Counter(PLACES[row["place"]] for row in jobs.kept)
    held, dead = len(jobs.held) + kept[Status.PROCESSING], len(jobs.dead) + kept[Status.FAILED]
    restored = Restored(
        jobs=len(jobs.waiting) + len(jobs.blocked) + kept[Status.PENDING] + held, processing=held, dead_letters=dead,
        workers=len(workers), queues=len(queues), schedules=len(schedules),
    )  # fmt: skip
    written = {("jobs", str(row["job_id"])) for rows in jobs for row in rows}
    written |= {("workers", str(row["worker_id"])) for row in workers} | {("queues", row["queue"]) for row in queues}
    return restored, written | {("schedules", str(row["schedule_id"])) for row in schedules}


async def _lock_all(work: Work, whole: uuid.UUID) -> None:
    """Locks the jobs that are to be put back or were waited for, wherever they are now, in the order of `job_locking`."""
    rows = await work.tx.fetch(SQL.meant, work.tenant_id, whole)
    ids = [row["job_id"] for row in rows]
    await lock_dead(work, ids)
    await lock_leases(work, ids)
    keys = {(row["queue"], row["concurrency_key"]) for row in rows if row["concurrency_key"] is not None}
    await take_in_hand(work, ids, keys=keys)


class _NextTimes(NamedTuple):
    """Schedules, when each fires next, and those of them of which that cannot be said here."""

    ids: list[uuid.UUID]
    times: list[datetime.datetime | None]
    unknown: list[uuid.UUID]


async def _next_times(work: Work, whole: uuid.UUID) -> _NextTimes:
    """When schedules fire next that become as they were: as they do now, or with other times, or after a pause, from now on.

    So no time has its job twice, and those of a pause have none.
    """
    found = _NextTimes([], [], [])
    for row in await work.tx.fetch(SQL.lock_schedules, work.tenant_id, whole):
        found.ids.append(row["schedule_id"])
        if row["goes_on"]:
            found.times.append(row["next_fire_at"])
            continue
        try:
            found.times.append(timing_of(row).next_after(max(work.now, row["last_fired_at"] or work.now)))
        except TimingUnusable:  # its time zone is not known here: who fires it next knows it, and counts on from there
            found.times.append(row["next_fire_at"])
            if row["next_fire_at"] is None:  # it is paused, or over: who resumes it knows
                found.unknown.append(row["schedule_id"])
    return found


class _Jobs(NamedTuple):
    """Jobs that were put back: their ids, queues and attempts, by where they are. `kept` are those that were there already."""

    waiting: Sequence[Record]
    held: Sequence[Record]
    blocked: Sequence[Record]
    dead: Sequence[Record]
    kept: Sequence[Record]


async def _put_back_jobs(work: Work, whole: uuid.UUID, decisions: list[str]) -> _Jobs:
    await work.tx.execute(SQL.put_back_jobs, work.tenant_id, whole, decisions)
    await work.tx.execute(SQL.put_back_places, work.tenant_id, whole)
    if left := await work.tx.fetch(SQL.places_left, work.tenant_id, whole):
        await leave_places(work, [row["job_id"] for row in left])
    crowded = await _crowded_out(work, whole)
    jobs = _Jobs(
        await work.tx.fetch(SQL.put_back_waiting, work.tenant_id, whole, [*decisions, "given back", "crowded"]),
        await work.tx.fetch(SQL.put_back_held, work.tenant_id, whole),
        await work.tx.fetch(SQL.put_back_blocked, work.tenant_id, whole, decisions),
        await work.tx.fetch(SQL.put_back_dead, work.tenant_id, whole, decisions),
        await work.tx.fetch(SQL.kept, work.tenant_id, whole),
    )
    tell(work, "job.released", _moved(row for row in jobs.waiting if row["job_id"] in crowded), Status.PENDING)
    tell(work, "job.failed", _moved(row for row in jobs.dead if row["ends_again"]), Status.FAILED)
    tell(work, "job.restored", _as_they_were((*jobs.waiting, *jobs.blocked)), Status.PENDING)
    tell(work, "job.restored", _as_they_were(jobs.held), Status.PROCESSING)
    tell(work, "job.restored", _as_they_were(jobs.dead), Status.FAILED)
    for status in sorted(set(PLACES.values())):
        tell(work, "job.restored", _moved(row for row in jobs.kept if PLACES[row["place"]] == status), Status(status))
    tell(work, "job.unblocked", _moved(jobs.waiting), Status.PENDING)
    if jobs.waiting:
        await wait_again(work, [row["job_id"] for row in jobs.waiting])
    await _bind(work, jobs.blocked)
    await settle(work, [row["job_id"] for row in jobs.dead if row["is_waited_for"]], End.FAILED)
    return jobs


def _moved(rows: Iterable[Record]) -> list[tuple[str, Patch]]:
    return [(row["queue"], patch(row["job_id"], row["attempt"])) for row in rows]


def _as_they_were(rows: Iterable[Record]) -> list[tuple[str, Patch]]:
    """With the failures and the priorities that they had then, whatever they have had since."""
    return [
        (
            row["queue"],
            patch(row["job_id"], row["attempt"], retry_count=row["retries"], priority=row["priority"]),
        )
        for row in rows
    ]


async def _crowded_out(work: Work, whole: uuid.UUID) -> set[uuid.UUID]:
    """Takes the limits of the keys of jobs that were held in hand. Those for which there is no place any more."""
    keys = await work.tx.fetch(SQL.keys_of_held, work.tenant_id, whole)
    if not keys:
        return set()
    columns = zip(*(tuple(row.values()) for row in keys), strict=True)
    await work.tx.execute(LIMITS.lock, work.tenant_id, *(list(column) for column in columns))
    return {row["job_id"] for row in await work.tx.fetch(SQL.crowd, work.tenant_id, whole)}


async def _take_away(work: Work, whole: uuid.UUID) -> None:
    """Takes jobs that are otherwise now from wherever they are. Who moves one meanwhile is waited for; then we look again."""
    places: set[uuid.UUID] = set()
    for _ in range(TAKES_MAX):
        taken = await work.tx.fetch(SQL.take_away, work.tenant_id, whole)
        places |= {row["job_id"] for row in taken}
        tell(work, "job.cancelled", _moved(row for row in taken if row["queue"] is not None), Status.CANCELLED)
        if not await work.tx.fetch_value(SQL.left, work.tenant_id, whole):
            await refuse_while_drained(work, sorted(places))
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
    there = parents.alive | parents.failed | parents.lost  # which may still be put back, from another snapshot
    edges = await without_circles(  # somebody may have said since that one of these waits for the other
        work, {row["job_id"]: [parent_id for parent_id in row["parent_ids"] if parent_id in there] for row in blocked}
    )
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
