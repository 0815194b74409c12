"""How jobs come into the hands of workers: a few statements for as many jobs as a worker has room for."""

from __future__ import annotations

import collections
import datetime
import time
import uuid
from collections.abc import Hashable, Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.events import Concern
from devmesh.core.health import WorkerStatus
from devmesh.core.jobs import ClaimedJob, QueueName, Status
from devmesh.core.names import WaitMs
from devmesh.operations import queue_rates
from devmesh.operations.job_events import patch, tell
from devmesh.operations.registry import Call, Mutation, NotYet, operation
from devmesh.operations.work import Work
from devmesh.operations.workers import SQL as WORKERS
from devmesh.operations.workers import refusal
from devmesh.store.claim_horizons import BEGINNING, ClaimsUnderWay, Look
from devmesh.store.database import Record
from devmesh.store.jobs import SQL, claimed_from_row
from devmesh.store.statements import SEPARATOR

CLAIMED_MAX = 1_000
LOOK_INTERVAL_S = 2.0  # between looks of a claim that waits, when nothing rings and nothing comes due
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


@operation(
    "job.claim", scope=Scope.WORKER, http="POST /jobs/claim", waits_for=Concern.JOBS, reads_clock=False, hurries=True
)
async def claim(work: Work, calls: Sequence[Call[Claim]]) -> Sequence[ClaimedResult | NotYet | errors.MeshError]:
    """Take jobs of some queues, highest priority first, then oldest; wait up to `wait_ms` for one.

    A worker never holds more than its capacity, and gets nothing unless it is ACTIVE, nor from a queue that is paused. What it
    gets is under a lease of `lease_s`; `attempt` must come back with each report.
    """
    under_way = ClaimsUnderWay(work.horizons, work.tenant_id)
    work.tx.after_commit(under_way.committed)
    answers: list[ClaimedResult | NotYet | errors.MeshError | None] = [_spared(work, call) for call in calls]
    asking = [ordinal for ordinal, answer in enumerate(answers) if answer is None]
    workers = sorted({str(calls[ordinal].params.worker_id) for ordinal in asking})
    if workers:  # all of them, and before anything else is locked: batches on any number of nodes have them in common
        await work.tx.execute_spelled_out(WORKERS.lock_claims, str(work.tenant_id), SEPARATOR.join(workers))
    for ordinal in sorted(asking, key=lambda ordinal: sorted(calls[ordinal].params.queues)):  # nearly as tokens are
        try:
            answers[ordinal] = await _answer(work, under_way, calls[ordinal])
        except errors.MeshError as refused:
            answers[ordinal] = refused
    return [answer for answer in answers if answer is not None]


_Times = Sequence[datetime.datetime]  # for each priority from 1 to 5


class _Hands(NamedTuple):
    """Whose hands jobs come into, in which transaction; and when the leases begin, by the database's clock."""

    work: Work
    under_way: ClaimsUnderWay
    worker_id: uuid.UUID
    begins_at: datetime.datetime
    lease_s: float

    @property
    def ends_at(self) -> datetime.datetime:
        return self.begins_at + datetime.timedelta(seconds=self.lease_s)


class _Taken(NamedTuple):
    """Jobs under leases until then, and whether these are all that there were. If there are none: when to look again."""

    rows: Sequence[Record]
    lease_until: datetime.datetime
    again_s: float
    is_all: bool


def _spared(work: Work, call: Call[Claim]) -> NotYet | None:
    """The answer to one who took all there was a moment ago, if nothing rang since."""
    again_s = work.horizons.empty_for_s(_whose(work, call.params), work.rings_so_far(Concern.JOBS))
    return NotYet(ClaimedResult([]), call.params.wait_ms, again_s) if call.params.wait_ms and again_s else None


def _whose(work: Work, asked: Claim) -> Hashable:
    return (work.tenant_id, asked.worker_id, *asked.queues)


async def _answer(work: Work, under_way: ClaimsUnderWay, call: Call[Claim]) -> ClaimedResult | NotYet:
    asked, rings = call.params, work.rings_so_far(Concern.JOBS)
    taken = await _claim(work, under_way, call)
    moved = [(row["queue"], patch(row["id"], row["attempt"])) for row in taken.rows]
    tell(work, "job.claimed", moved, Status.PROCESSING, worker_id=asked.worker_id)
    claimed = ClaimedResult([claimed_from_row(row, taken.lease_until) for row in taken.rows])
    if taken.is_all:
        work.tx.after_commit(lambda: work.horizons.emptied(_whose(work, asked), rings))
    return claimed if taken.rows else NotYet(claimed, asked.wait_ms, taken.again_s)


async def _claim(work: Work, under_way: ClaimsUnderWay, call: Call[Claim]) -> _Taken:
    asked = call.params
    about_now = work.horizons.about_now()
    leases = work.horizons.look_at_leases(work.tenant_id, asked.worker_id, about_now)
    looks = {queue: under_way.look(queue, about_now) for queue in dict.fromkeys(asked.queues)}
    flat = [moment for look in looks.values() for moment in look.since]
    began_s = time.perf_counter()
    found = await work.tx.fetch(SQL.claimable, work.tenant_id, asked.worker_id, leases.since[0], list(looks), flat)
    took_s = time.perf_counter() - began_s
    worker = found[0]  # the same stands in each row
    work.is_at(worker["now"])
    work.horizons.told(worker["moment"])
    room = min(asked.limit, await _room(work, call, worker))
    work.horizons.oldest_lease(work.tenant_id, asked.worker_id, leases, took_s, worker["oldest"] or work.now)
    due = [row for row in found if any(row["due"])]
    for row in due:
        first_due = {priority: run_at for priority, run_at in enumerate(row["due"], 1) if run_at is not None}
        under_way.found(row["queue"], first_due)
    held_up = [row for row in due if row["is_paused"] or row["rate_per_s"] is not None]
    shares, begins_at = await queue_rates.shares(work, held_up, room) if room > 0 else ({}, None)
    given = {row["queue"]: shares.get(row["queue"], max(room, 0)) for row in due}
    first: dict[str, _Times] = {
        row["queue"]: [moment or FOREVER for moment in row["due"]] for row in due if given[row["queue"]] > 0
    }
    hands = _Hands(work, under_way, asked.worker_id, begins_at or worker["moment"], asked.lease_s)
    rows = await _take_from(hands, first, dict(given), room)
    _looked(hands, looks, given, room, rows, took_s)
    await queue_rates.spend(work, shares, rows)
    is_held_up = room <= 0 or any(not row["is_paused"] and not shares[row["queue"]] for row in held_up)
    is_beaten = bool(first) and not rows  # others are taking what was due; what comes due next was not asked for
    again_s = HELD_UP_INTERVAL_S if is_held_up or is_beaten else _again_s(found)
    return _Taken(rows, hands.ends_at, again_s, is_all=0 < len(rows) < room and not held_up)


def _again_s(found: Sequence[Record]) -> float:
    """When the next job of these queues comes due, or may have come without a ring."""
    due_in_s: list[float] = [row["due_in_s"] for row in found if row["due_in_s"] is not None]
    return min([LOOK_INTERVAL_S, *due_in_s])


async def _take_from(hands: _Hands, first: dict[str, _Times], left: dict[str, int], room: int) -> Sequence[Record]:
    """Takes up to `room` jobs, from each queue no more than there are `left` to be given out.

    Each queue comes with the time of its first job at each priority: what is gone before it was walked through once already.
    """
    if len(first) < 2:  # so it mostly is, and need not be found out by counting
        return [row for queue in first for row in await _take(hands, queue, left[queue], first[queue])]
    queues = list(first)
    flat = [moment for queue in queues for moment in first[queue]]
    most = [left[queue] for queue in queues]
    work = hands.work
    heads = await work.tx.fetch(SQL.heads, work.tenant_id, queues, room, flat, most, hands.begins_at)
    rows: list[Record] = []
    for queue, priority, count in heads:
        only = [moment if level == priority - 1 else FOREVER for level, moment in enumerate(first[queue])]
        if left[queue] > 0:
            taken = await _take(hands, queue, min(count, left[queue]), only)
            left[queue] -= len(taken)
            rows += taken
    return sorted(rows, key=lambda row: (-row["priority"], _run_at(row), row["id"]))


def _looked(
    hands: _Hands, looks: dict[str, Look], given: dict[str, int], room: int, rows: Sequence[Record], took_s: float
) -> None:
    """Notes what it took to look into queues, which of them had less than could be given out, and which may give nothing."""
    taken = collections.Counter(row["queue"] for row in rows)
    for queue, look in looks.items():
        is_empty = queue not in given or (len(rows) < room and taken[queue] < given[queue])
        empty_until = hands.work.now if is_empty else None
        hands.under_way.looked(queue, look, took_s, empty_until, in_vain=given.get(queue, 1) <= 0)


async def _take(hands: _Hands, queue: str, count: int, since: _Times) -> Sequence[Record]:
    work, begins_at = hands.work, hands.begins_at
    rows = await work.tx.fetch(
        SQL.claim, work.tenant_id, hands.worker_id, queue, count, hands.lease_s, since, begins_at, hands.ends_at
    )
    last = {row["priority"]: row for row in rows}
    hands.under_way.took(queue, {priority: _run_at(row) for priority, row in last.items()})
    return rows


def _run_at(row: Record) -> datetime.datetime:
    moment: datetime.datetime = row["run_at"] or row["created_at"]
    return moment


async def _room(work: Work, call: Call[Claim], worker: Record) -> int:
    """How many more jobs a worker may hold. Raises what keeps it from holding any."""
    worker_id = call.params.worker_id
    known = {worker_id: worker} if worker["status"] is not None else {}
    if (refused := refusal(call.caller, worker_id, known)) is not None:
        raise refused
    status = worker["status"]
    is_silent = status == WorkerStatus.ACTIVE and worker["is_silent"]
    if is_silent and await work.tx.fetch_row(WORKERS.seen, work.tenant_id, worker_id) is None:
        status = WorkerStatus.FAILED  # who claims is there, but it was given up in this moment
    if status != WorkerStatus.ACTIVE:
        message = f"this worker is {status}, and only an ACTIVE one is given jobs"
        if status == WorkerStatus.FAILED:
            message += "; a heartbeat makes it ACTIVE again"
        raise errors.conflict("worker.state", message)
    room: int = worker["capacity"] - worker["current_load"]
    return room
