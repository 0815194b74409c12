"""The verbs of snapshots: what is under way in a tenant is written down, looked at, and forgotten."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import msgspec

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.ids import new_id
from devmesh.core.jobs import Status
from devmesh.core.names import PAGE_BYTES_MAX, PageCursor, PageLimit, Text, decode_page_cursor, page_cursor
from devmesh.core.snapshots import PLACES, SnapshotKind
from devmesh.operations.pages import fit
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.task_views import LAST_ID
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import Statement, load

SQL = load("snapshots")
SNAPSHOTS_MAX = 1_000
CHAIN_MAX = 100


class Counts(msgspec.Struct):
    """What is in a snapshot: of an incremental one, what differs from its base. `ended` are jobs that were over by then, and
    `gone` jobs, also those, workers, queues and schedules of its base that were not there any more."""

    jobs: int = 0
    pending: int = 0
    processing: int = 0
    dead_letters: int = 0
    ended: int = 0
    workers: int = 0
    queues: int = 0
    schedules: int = 0
    gone: int = 0


class Snapshot(msgspec.Struct, kw_only=True):
    """`base_id` is what an INCREMENTAL one stands on."""

    id: uuid.UUID
    kind: SnapshotKind
    base_id: uuid.UUID | None
    taken_at: datetime.datetime
    reason: str
    counts: Counts
    created_by_key_id: uuid.UUID | None


class SnapshotResult(msgspec.Struct):
    snapshot: Snapshot


class Create(Mutation, kw_only=True):
    """An INCREMENTAL one has what differs from `base_id`, or from the latest that there is."""

    kind: SnapshotKind = SnapshotKind.FULL
    base_id: uuid.UUID | None = None
    reason: Text = ""


@operation("snapshot.create", scope=Scope.ADMIN, http="POST /snapshots", single=True, audited=True)
async def create(work: Work, call: Call[Create]) -> SnapshotResult:
    """Write down what is under way: jobs, dead letters, queues, workers and schedules, all as of one moment."""
    asked = call.params
    base_id = asked.base_id
    if asked.kind is SnapshotKind.INCREMENTAL:
        base_id = await _base(work, base_id)
    elif base_id is not None:
        raise errors.invalid("base_id: only an INCREMENTAL snapshot has one", "base_id")
    return SnapshotResult(await take(work, asked.kind, base_id, asked.reason, call.caller.key_id))


async def _base(work: Work, base_id: uuid.UUID | None) -> uuid.UUID:
    base_id = base_id or await work.tx.fetch_value(SQL.latest_until, work.tenant_id, work.now)
    if base_id is None:
        raise errors.conflict(
            "snapshot.no_base", "there is no snapshot yet that an INCREMENTAL one could stand on", "kind"
        )
    return (await require(work, base_id, SQL.hold)).id


async def take(
    work: Work, kind: SnapshotKind, base_id: uuid.UUID | None, reason: str, key_id: uuid.UUID | None
) -> Snapshot:
    """Takes a snapshot: everything is read by one statement. What it has of its base already is dropped again."""
    if await work.tx.fetch_value(SQL.count, work.tenant_id, SNAPSHOTS_MAX) >= SNAPSHOTS_MAX:
        message = f"a tenant has {SNAPSHOTS_MAX:,} snapshots at the most; delete some"
        raise errors.MeshError(errors.Kind.QUOTA_EXCEEDED, message)
    snapshot_id = new_id()
    await work.tx.execute(SQL.insert, work.tenant_id, snapshot_id, kind.value, base_id, reason, key_id)
    await work.tx.execute(SQL.capture, work.tenant_id, snapshot_id)
    if base_id is not None:
        whole = await gather(work, base_id, links_max=CHAIN_MAX - 1)
        for statement in (SQL.add_ended, SQL.add_gone, SQL.drop_same):
            await work.tx.execute(statement, work.tenant_id, snapshot_id, whole)
        await work.tx.execute(SQL.delete_rows, work.tenant_id, whole)
    counts = {row["noun"]: row for row in await work.tx.fetch(SQL.counts, work.tenant_id, snapshot_id)}
    text = msgspec.json.encode(_counts(counts)).decode()
    row = await work.tx.fetch_row(SQL.set_counts, work.tenant_id, snapshot_id, text)
    assert row is not None
    snapshot = _from_row(row)
    work.emit("snapshot.created", (f"snapshot:{snapshot_id}",), {"snapshot": snapshot})
    return snapshot


async def gather(work: Work, snapshot_id: uuid.UUID, links_max: int | None = None) -> uuid.UUID:
    """Writes down what a snapshot, which is held, and those that it stands on have together. Whoever asks removes it again."""
    chain = await work.tx.fetch(SQL.chain, work.tenant_id, snapshot_id)
    if missing := chain[-1]["base_id"]:
        raise errors.conflict(
            "snapshot.base", f"snapshot {missing}, on which {snapshot_id} stands, is gone: take a FULL one"
        )
    if links_max is not None and len(chain) > links_max:
        raise errors.conflict("snapshot.chain", f"it would stand on {len(chain)} others: take a FULL one")
    whole = new_id()
    await work.tx.execute(SQL.gather, work.tenant_id, whole, [row["snapshot_id"] for row in chain])
    return whole


def _counts(rows: dict[str, Record]) -> Counts:
    def count(*nouns: str) -> int:
        return sum(rows[noun]["count"] for noun in nouns if noun in rows)

    return Counts(
        jobs=count("jobs_ready", "jobs_limited", "jobs_blocked", "jobs_leased"),
        pending=count("jobs_ready", "jobs_limited", "jobs_blocked"),
        processing=count("jobs_leased"),
        dead_letters=count("dead_letter_queue"),
        ended=count("ended"),
        workers=count("workers"),
        queues=count("queues"),
        schedules=count("schedules"),
        gone=sum(rows[noun]["gone"] for noun in ("jobs", "workers", "queues", "schedules") if noun in rows),
    )


class ById(Params, kw_only=True):
    snapshot_id: uuid.UUID


@operation("snapshot.get", scope=Scope.READ, http="GET /snapshots/{snapshot_id}", single=True)
async def get(work: Work, call: Call[ById]) -> SnapshotResult:
    """Show what a snapshot is of."""
    return SnapshotResult(await require(work, call.params.snapshot_id))


class ListSnapshots(Params, kw_only=True):
    kind: SnapshotKind | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class SnapshotsResult(msgspec.Struct):
    snapshots: list[Snapshot]
    next_cursor: str | None = None


@operation("snapshot.list", scope=Scope.READ, http="GET /snapshots", single=True)
async def list_snapshots(work: Work, call: Call[ListSnapshots]) -> SnapshotsResult:
    """List snapshots, the latest first."""
    asked = call.params
    below = decode_page_cursor(asked.cursor) or LAST_ID
    kind = asked.kind.value if asked.kind is not None else None
    rows = await work.tx.fetch(SQL.page, work.tenant_id, below, kind, asked.limit)
    found = [_from_row(row) for row in rows]
    return SnapshotsResult(found, page_cursor([snapshot.id for snapshot in found], asked.limit))


class SnapshotJob(msgspec.Struct):
    """A job as a snapshot has it."""

    id: uuid.UUID
    status: Status
    queue: str | None
    attempt: int
    worker_id: uuid.UUID | None


class Jobs(ById, kw_only=True):
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class SnapshotJobsResult(msgspec.Struct):
    jobs: list[SnapshotJob]
    next_cursor: str | None = None


@operation("snapshot.jobs", scope=Scope.READ, http="GET /snapshots/{snapshot_id}/jobs", single=True)
async def list_jobs(work: Work, call: Call[Jobs]) -> SnapshotJobsResult:
    """List the jobs in a snapshot, the oldest first; of an incremental one those that differ from its base.

    A page may be short although `next_cursor` leads on: of what is written down of the jobs, such as their errors, it reads
    1 MiB at most, unless its only job has more.
    """
    asked = call.params
    await require(work, asked.snapshot_id)
    above = decode_page_cursor(asked.cursor)
    rows = await work.tx.fetch(
        SQL.jobs, work.tenant_id, asked.snapshot_id, str(above or ""), asked.limit, PAGE_BYTES_MAX
    )
    page = fit(rows, asked.limit)
    found = [_job(row["id"], row["noun"], msgspec.json.decode(row["row"])) for row in page.rows]
    return SnapshotJobsResult(found, page.cursor("id"))


def _job(job_id: str, noun: str, row: dict[str, Any]) -> SnapshotJob:
    status = PLACES.get(noun) or (row["outcome"] if row["outcome"] in ("COMPLETED", "CANCELLED") else "FAILED")
    worker_id = row.get("worker_id")
    return SnapshotJob(
        uuid.UUID(job_id), Status(status), row.get("queue"), row["attempt"], uuid.UUID(worker_id) if worker_id else None
    )


class OneSnapshot(Mutation, kw_only=True):
    snapshot_id: uuid.UUID


@operation("snapshot.delete", scope=Scope.ADMIN, http="DELETE /snapshots/{snapshot_id}", single=True, audited=True)
async def delete(work: Work, call: Call[OneSnapshot]) -> SnapshotResult:
    """Forget a snapshot. One that others stand on is refused."""
    snapshot = await require(work, call.params.snapshot_id, SQL.lock)
    if others := await dependents(work, snapshot.id):
        names = ", ".join(str(snapshot_id) for snapshot_id in others)
        raise errors.conflict("snapshot.base", f"others stand on this snapshot: {names}")
    await forget(work, snapshot.id)
    return SnapshotResult(snapshot)


async def dependents(work: Work, snapshot_id: uuid.UUID) -> list[uuid.UUID]:
    """What stands on a snapshot that this transaction has locked: no more will come to."""
    return [row["snapshot_id"] for row in await work.tx.fetch(SQL.dependents, work.tenant_id, snapshot_id)]


async def forget(work: Work, snapshot_id: uuid.UUID) -> None:
    await work.tx.execute(SQL.delete_rows, work.tenant_id, snapshot_id)
    await work.tx.fetch(SQL.delete, work.tenant_id, snapshot_id)
    work.emit("snapshot.deleted", (f"snapshot:{snapshot_id}",), {"snapshot": {"id": snapshot_id}})


async def require(work: Work, snapshot_id: uuid.UUID, how: Statement = SQL.get) -> Snapshot:
    """One that there is, which may be held or locked by this."""
    row = await work.tx.fetch_row(how, work.tenant_id, snapshot_id)
    if row is None:
        raise errors.not_found("snapshot", snapshot_id)
    return _from_row(row)


def _from_row(row: Record) -> Snapshot:
    counts = msgspec.json.decode(row["counts"], type=Counts)
    return Snapshot(
        id=row["snapshot_id"], kind=SnapshotKind(row["kind"]), base_id=row["base_id"], taken_at=row["taken_at"],
        reason=row["reason"], counts=counts, created_by_key_id=row["created_by_key_id"],
    )  # fmt: skip
