"""How jobs come into the hands of workers: one round trip for as many as a worker has room for (`mcp.claim_jobs`)."""

from __future__ import annotations

import collections
import contextlib
import datetime
import time
import uuid
from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.events import Concern
from devmesh.core.health import WorkerStatus
from devmesh.core.jobs import LEASE_S_MAX, LEASE_S_MIN, ClaimedJob, QueueName
from devmesh.core.names import WaitMs
from devmesh.operations.registry import Call, Mutation, NotYet, operation
from devmesh.operations.work import Work
from devmesh.operations.workers import refusal
from devmesh.store.claim_horizons import Look
from devmesh.store.database import Record
from devmesh.store.jobs import SQL, claimed_from_row

CLAIMED_MAX = 1_000
CLAIMED_BYTES_MAX = 32 << 20  # of payloads, and one more: what is read and sent well within a deadline
UTF8_BYTES_MAX = 4  # of a character
LOOK_INTERVAL_S = 2.0  # between looks of a claim that waits, when nothing rings and nothing comes due
HELD_UP_INTERVAL_S = 0.25  # the same, while a queue's rate or a full worker holds it up
TOKEN_INTERVAL_S = 0.02  # the same at the least, for the first of its process to wait for a rate
LEASE_S_DEFAULT = 60.0
LeaseS = Annotated[float, Meta(ge=LEASE_S_MIN, le=LEASE_S_MAX)]


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


class _Queue(msgspec.Struct):
    """What was found in a queue: when the first `due` job of each priority from 1 to 5 was to run, or when the next one is.

    `token_in_s`: it has a rate, and may give out the next one then.
    """

    queue: str
    is_paused: bool
    is_rated: bool
    share: int
    due: list[datetime.datetime | None]
    due_in_s: float | None
    token_in_s: float | None

    @property
    def is_due(self) -> bool:
        return any(self.due)


class _Found(msgspec.Struct):
    """What a claim has found before it took anything. `status` is the worker's; null: there is none."""

    look_s: float
    moment: datetime.datetime
    status: str | None
    owner_id: uuid.UUID | None
    oldest: datetime.datetime | None
    room: int
    queues: list[_Queue]


class _Told(msgspec.Struct):
    """The events of a claim that has not appended them."""

    topics: list[str]
    data: list[str]


_found_decoder, _told_decoder = msgspec.json.Decoder(_Found), msgspec.json.Decoder(_Told)


class _Looks(NamedTuple):
    """Where a claim begins to look: in its queues, and among the leases of its worker."""

    queues: dict[str, Look]
    leases: Look


@operation(
    "job.claim", scope=Scope.WORKER, http="POST /jobs/claim", single=True, waits_for=Concern.JOBS, reads_clock=False,
    hurries=True,
)  # fmt: skip
async def claim(work: Work, call: Call[Claim]) -> ClaimedResult | NotYet:
    """Take jobs of some queues, highest priority first, then oldest; wait up to `wait_ms` for one.

    A worker never holds more than its capacity, and gets nothing unless it is ACTIVE, nor from a queue that is paused. At once
    it gets 32 MiB of payloads and one job at the most. What it gets is under a lease of `lease_s`; `attempt` must come back
    with each report.
    """
    asked, horizons, rings = call.params, work.horizons, work.rings_so_far(Concern.JOBS)
    whose: Hashable = (work.tenant_id, asked.worker_id, *asked.queues)
    again_s = horizons.empty_for_s(whose, rings) if asked.wait_ms else 0.0  # it took all there was a moment ago
    # Who looks from further back now need not when there are jobs again, which would have to wait for that.
    if again_s and not horizons.is_look_back_due(work.tenant_id, asked.worker_id, asked.queues):
        return NotYet(ClaimedResult([]), asked.wait_ms, again_s)
    about_now = horizons.about_now()
    looks = _Looks(
        {queue: horizons.look(work.tenant_id, queue, about_now) for queue in sorted(set(asked.queues))},
        horizons.look_at_leases(work.tenant_id, asked.worker_id, about_now),
    )
    is_alone = not work.tx.is_begun
    with _broken_off_noted(work, looks):
        first, *rows = await work.tx.fetch_whole(
            SQL.claim, work.tenant_id, asked.worker_id, None if call.caller.is_admin else call.caller.owner_id,
            list(looks.queues), horizons.fitting(work.tenant_id, looks.queues, asked.limit), CLAIMED_BYTES_MAX, asked.lease_s,
            [moment for look in looks.queues.values() for moment in look.since], looks.leases.since[0], is_alone,
        )  # fmt: skip
    found = _found_decoder.decode(first["about"])
    if (refused := _refusal(call, found)) is not None:
        # Nothing was taken, but what was found is true. Were it forgotten, who is refused could have all looks from the front.
        _learn(work, asked.worker_id, looks, found, rows, is_cut=False)
        raise refused
    is_cut = _is_cut(rows)
    work.tx.after_commit(lambda: _learn(work, asked.worker_id, looks, found, rows, is_cut=is_cut))
    if not rows:
        return NotYet(ClaimedResult([]), asked.wait_ms, _again_s(work, found))
    is_held_up = any(queue.is_paused or queue.is_rated for queue in found.queues if queue.is_due)
    if _is_short(found, rows, is_cut=is_cut) and not is_held_up:
        work.tx.after_commit(lambda: horizons.emptied(whose, rings))
    _tell(work, None if is_alone else rows.pop())
    if sum(queue.share > 0 for queue in found.queues) > 1:
        rows.sort(key=lambda row: (-row["priority"], _run_at(row), row["id"]))
    lease_until = found.moment + datetime.timedelta(seconds=asked.lease_s)
    return ClaimedResult([claimed_from_row(row, lease_until) for row in rows])


@contextlib.contextmanager
def _broken_off_noted(work: Work, looks: _Looks) -> Iterator[None]:
    """Whatever ends a claim before it has looked: an error, or its deadline."""
    began_s = time.monotonic()
    try:
        yield
    except BaseException:
        for queue, look in looks.queues.items():
            work.horizons.broken_off(work.tenant_id, queue, look, time.monotonic() - began_s)
        raise


def _tell(work: Work, last: Record | None) -> None:
    """Has it told what was claimed. `last` is a claim's last row; None: the statement has appended the events."""
    if last is None:
        work.has_told("job.claimed")
    else:
        told = _told_decoder.decode(last["about"])
        for topics, data in zip(told.topics, told.data, strict=True):
            work.emit("job.claimed", tuple(topics.split(",")), data.encode())


def _refusal(call: Call[Claim], found: _Found) -> errors.MeshError | None:
    """What keeps a worker from being given jobs."""
    worker_id = call.params.worker_id
    known: dict[uuid.UUID, Any] = {}
    if found.status is not None:
        known[worker_id] = {"owner_id": found.owner_id, "status": found.status}
    if (refused := refusal(call.caller, worker_id, known)) is not None:
        return refused
    if found.status != WorkerStatus.ACTIVE:
        message = f"this worker is {found.status}, and only an ACTIVE one is given jobs"
        if found.status == WorkerStatus.FAILED:
            message += "; a heartbeat makes it ACTIVE again"
        elif found.status == WorkerStatus.DEGRADED:
            message += "; a heartbeat makes it ACTIVE again, unless it says of itself that it is unwell"
        return errors.conflict("worker.state", message)
    return None


def _again_s(work: Work, found: _Found) -> float:
    """When to look again that gave nothing: when the next job of these queues comes due, or may have come without a ring."""
    # A full worker, a rate, or others who are taking what was due: then what comes due next was not asked for.
    if found.room <= 0 or any(queue.is_due and not queue.is_paused for queue in found.queues):
        tokens_s = [
            max(queue.token_in_s, TOKEN_INTERVAL_S)
            for queue in found.queues
            if queue.token_in_s is not None
            and work.horizons.is_first_to_wait(work.tenant_id, queue.queue, queue.token_in_s)
        ]
        return min([HELD_UP_INTERVAL_S, *tokens_s])
    return min([LOOK_INTERVAL_S, *(queue.due_in_s for queue in found.queues if queue.due_in_s is not None)])


def _learn(
    work: Work, worker_id: uuid.UUID, looks: _Looks, found: _Found, rows: Sequence[Record], *, is_cut: bool
) -> None:
    """Notes for the next claims what is gone, what it took to look, and which queues had less than could be given out."""
    horizons, tenant_id = work.horizons, work.tenant_id
    horizons.told(found.moment)
    horizons.oldest_lease(tenant_id, worker_id, looks.leases, found.look_s, found.oldest or found.moment)
    is_short = _is_short(found, rows, is_cut=is_cut)
    counts = collections.Counter(row["queue"] for row in rows) if is_short else {}
    is_shared = sum(queue.share > 0 for queue in found.queues) > 1
    gone: dict[str, dict[int, datetime.datetime]] = {}
    for queue in found.queues:
        look = looks.queues[queue.queue]
        gone[queue.queue] = {level: due for level, due in enumerate(queue.due, 1) if due is not None}
        # Several share the room beforehand: one gives less than it could also where others are taking another's jobs.
        is_empty = not queue.is_due or (is_short and not is_shared and counts[queue.queue] < queue.share)
        horizons.looked(
            tenant_id, queue.queue, look, found.look_s, found.moment if is_empty else None,
            in_vain=queue.is_due and queue.share <= 0,
        )  # fmt: skip
    for row in rows:  # those of a queue and a priority are in order
        gone[row["queue"]][row["priority"]] = _run_at(row)
    for queue in found.queues:
        may_have_left = is_cut and len(rows) < found.room and queue.share > 0
        note = horizons.left if may_have_left else horizons.claimed
        note(tenant_id, queue.queue, looks.queues[queue.queue], gone[queue.queue])
        if queue.share > 0:
            horizons.fitted(tenant_id, queue.queue, len(rows), is_cut=is_cut)


def _is_short(found: _Found, rows: Sequence[Record], *, is_cut: bool) -> bool:
    """Whether fewer were given than there was room for, and not because they are large."""
    return sum(row["id"] is not None for row in rows) < found.room and not is_cut


def _is_cut(rows: Sequence[Record]) -> bool:
    """Whether so much was given that no more might be."""
    payloads = [row["payload"] for row in rows if row["id"] is not None]
    if sum(map(len, payloads)) * UTF8_BYTES_MAX < CLAIMED_BYTES_MAX:  # nearly always
        return False
    return sum(len(text) if text.isascii() else len(text.encode()) for text in payloads) >= CLAIMED_BYTES_MAX


def _run_at(row: Record) -> datetime.datetime:
    moment: datetime.datetime = row["run_at"] or row["created_at"]
    return moment
