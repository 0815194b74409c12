"""How jobs come into the hands of workers: a few statements for as many jobs as a worker has room for."""

from __future__ import annotations

import collections
import datetime
import time
import uuid
from collections.abc import Hashable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.events import Concern
from devmesh.core.jobs import ClaimedJob, QueueName, Status
from devmesh.core.names import WaitMs
from devmesh.operations import queue_rates
from devmesh.operations.job_events import patch, tell
from devmesh.operations.registry import Call, Mutation, NotYet, operation
from devmesh.operations.work import Work
from devmesh.operations.workers import SQL as WORKERS
from devmesh.operations.workers import WorkerStatus, refusal
from devmesh.store.claim_horizons import BEGINNING, Look
from devmesh.store.database import Record
from devmesh.store.jobs import SQL, claimed_from_row

CLAIMED_MAX = 1_000
LOOK_INTERVAL_S = 1.0  # between looks of a claim that waits, when nothing rings and nothing comes due
HELD_UP_INTERVAL_S = 0.25  # the same, while a queue's rate or a full worker holds it up
LEASE_S_DEFAULT = 60.0
LeaseS = Annotated[float, Meta(ge=0.5, le=86_400)]
FOREVER = BEGINNING.replace(year=9000)  # nothing waits from then on


class Claim(Mutation, kw_only=True):
    worker_id: uuid.UUID
    queues: Annotated[list[QueueName], Meta(min_length=1, max_length=100)] = msgspec.field(
        default_factory=lambda: ["default"]
    )
    limit: Annotated[int, Meta(ge=1, le=CLAIMED_MAX)] = 1
    lease_s: LeaseS = LEASE_S_DEFAULT
    wait_ms: WaitMs = 0


class ClaimedResult(msgspec.Struct):
    jobs: list[ClaimedJob]


def _worker(call: Call[Claim]) -> Hashable:
    return call.params.worker_id


@operation("job.claim", scope=Scope.WORKER, http="POST /jobs/claim", subject=_worker, waits_for=Concern.JOBS)
async def claim(work: Work, calls: Sequence[Call[Claim]]) -> Sequence[ClaimedResult | NotYet | errors.MeshError]:
    """Take jobs of some queues, highest priority first, then oldest; wait up to `wait_ms` for one.

    A worker never holds more than its capacity, and gets nothing unless it is ACTIVE, nor from a queue that is paused. What it
    gets is under a lease of `lease_s`; `attempt` must come back with each report.
    """
    answers: dict[uuid.UUID, ClaimedResult | NotYet | errors.MeshError] = {}
    for call in sorted(calls, key=lambda call: call.params.worker_id):  # one order of locks for everybody
        try:
            answers[call.params.worker_id] = await _answer(work, call)
        except errors.MeshError as refused:
            answers[call.params.worker_id] = refused
    return [answers[call.params.worker_id] for call in calls]


async def _answer(work: Work, call: Call[Claim]) -> ClaimedResult | NotYet:
    rows, is_held_up = await _claim(work, call)
    moved = [(row["queue"], patch(row["id"], row["attempt"])) for row in rows]
    tell(work, "job.claimed", moved, Status.PROCESSING, worker_id=call.params.worker_id)
    claimed = ClaimedResult([claimed_from_row(row) for row in rows])
    if rows:
        return claimed
    again_s = HELD_UP_INTERVAL_S if is_held_up else await _again_s(work, call.params.queues)
    return NotYet(claimed, call.params.wait_ms, again_s)


async def _again_s(work: Work, queues: Sequence[str]) -> float:
    """When the next job of these queues comes due, or may have come without a ring."""
    due_s: float | None = await work.tx.fetch_value(SQL.next_due, work.tenant_id, queues)
    return LOOK_INTERVAL_S if due_s is None else min(max(due_s, 0.0), LOOK_INTERVAL_S)


async def _claim(work: Work, call: Call[Claim]) -> tuple[list[Record], bool]:
    """Jobs, and whether there may be more, held up by a queue's rate or because the worker is full."""
    asked = call.params
    room = min(asked.limit, await _room(work, call))
    queues = list(dict.fromkeys(asked.queues))
    if room <= 0:
        return [], True
    held_up = await work.tx.fetch(SQL.held_up, work.tenant_id, queues)
    shares = await queue_rates.shares(work, held_up, room)
    left = {queue: shares.get(queue, room) for queue in queues}
    left = {queue: share for queue, share in left.items() if share > 0}
    rows = await _take_from(work, asked, left, room)
    await queue_rates.spend(work, shares, rows)
    return rows, any(not row["is_paused"] and not shares[row["queue"]] for row in held_up)


async def _take_from(work: Work, asked: Claim, left: dict[str, int], room: int) -> list[Record]:
    """Takes up to `room` jobs, from each queue no more than there are `left` to be given out."""
    if not left:
        return []
    queues = list(left)
    looks = {queue: work.horizons.look(work.tenant_id, queue, work.now) for queue in queues}
    began_s = time.perf_counter()
    if len(queues) == 1:
        rows = await _take(work, asked, queues[0], left[queues[0]], looks[queues[0]].since)
        _looked(work, looks, left, room, collections.Counter({queues[0]: len(rows)}), began_s)
        return rows
    flat = [moment for queue in queues for moment in looks[queue].since]
    heads = await work.tx.fetch(SQL.heads, work.tenant_id, queues, room, flat, list(left.values()))
    found: collections.Counter[str] = collections.Counter()
    for queue, _, count in heads:
        found[queue] += count
    _looked(work, looks, left, room, found, began_s)
    rows = []
    for queue, priority, count in heads:
        only = [moment if level == priority - 1 else FOREVER for level, moment in enumerate(looks[queue].since)]
        taken = await _take(work, asked, queue, min(count, left[queue]), only) if left[queue] > 0 else []
        left[queue] -= len(taken)
        rows += taken
    if len(heads) > 1:
        rows.sort(key=lambda row: (-row["priority"], row["run_at"], row["id"]))
    return rows


def _looked(
    work: Work, looks: dict[str, Look], left: dict[str, int], room: int, found: collections.Counter[str], began_s: float
) -> None:
    """Notes what it took to look into queues, and which of them had less than was asked for."""
    took_s, is_full = time.perf_counter() - began_s, found.total() >= room
    for queue, look in looks.items():
        empty_until = None if is_full or found[queue] >= left[queue] else work.now
        work.horizons.looked(work.tenant_id, queue, look, took_s, empty_until)


async def _take(work: Work, asked: Claim, queue: str, count: int, since: Sequence[datetime.datetime]) -> list[Record]:
    rows = await work.tx.fetch(SQL.claim, work.tenant_id, asked.worker_id, queue, count, asked.lease_s, since)
    work.horizons.claimed(work.tenant_id, queue, rows)
    return list(rows)


async def _room(work: Work, call: Call[Claim]) -> int:
    """How many more jobs a worker may hold. Raises what keeps it from holding any."""
    worker_id = call.params.worker_id
    await work.tx.execute(WORKERS.lock_claims, work.tenant_id, worker_id)
    look = work.horizons.look_at_leases(work.tenant_id, worker_id, work.now)
    began_s = time.perf_counter()
    row = await work.tx.fetch_row(WORKERS.for_claim, work.tenant_id, worker_id, look.since[0])
    took_s = time.perf_counter() - began_s
    if (refused := refusal(call.caller, worker_id, {worker_id: row} if row is not None else {})) is not None:
        raise refused
    assert row is not None
    status = row["status"]
    is_silent = status == WorkerStatus.ACTIVE and row["is_silent"]
    if is_silent and await work.tx.fetch_row(WORKERS.seen, work.tenant_id, worker_id) is None:
        status = WorkerStatus.FAILED  # who claims is there, but it was given up in this moment
    if status != WorkerStatus.ACTIVE:
        message = f"this worker is {status}, and only an ACTIVE one is given jobs"
        if status == WorkerStatus.FAILED:
            message += "; a heartbeat makes it ACTIVE again"
        raise errors.conflict("worker.state", message)
    work.horizons.oldest_lease(work.tenant_id, worker_id, look, took_s, row["oldest"] or work.now)
    room: int = row["capacity"] - row["current_load"]
    return room
