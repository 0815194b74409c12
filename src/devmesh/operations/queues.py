"""The verbs of queues: counted, paused, resumed, emptied. A queue is there when somebody puts a job into it."""

from __future__ import annotations

import datetime
import math
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Outcome, QueueName, Status, queue_topic
from devmesh.core.names import Text
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import End, end_blocked, settle
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_limits import leave_places
from devmesh.operations.job_locking import take_in_hand
from devmesh.operations.registry import Call, Mutation, Params, only_with, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import json_text
from devmesh.store.statements import load

SQL = load("queues")
PURGED_MAX = 10_000
COUNTED_MAX = 100_000  # of each queue


class Queue(msgspec.Struct):
    """`waiting` counts those that wait for their time too, `ready` those that may run now, `limited` those that wait for a
    place under their concurrency key, `blocked` those that wait for other jobs; each up to 100,000. With a rate it gives out
    so many jobs a second, and after a pause `burst` at once.
    """

    queue: str
    waiting: int
    ready: int
    limited: int
    blocked: int
    processing: int
    oldest_ready_at: datetime.datetime | None
    paused_at: datetime.datetime | None
    reason: str
    rate_per_s: float | None
    burst: int | None


class Stats(Params, kw_only=True):
    pass


class StatsResult(msgspec.Struct):
    queues: list[Queue]


@operation("job.stats", scope=Scope.READ, http="GET /jobs/stats", single=True)
async def stats(work: Work, call: Call[Stats]) -> StatsResult:
    """Count what waits and what runs in each queue."""
    return StatsResult(await _queues(work))


class OneQueue(Mutation, kw_only=True):
    queue: QueueName


class QueueResult(msgspec.Struct):
    queue: Queue


class Pause(OneQueue, kw_only=True):
    reason: Text = ""


@operation("queue.pause", scope=Scope.WRITE, http="POST /queues/{queue:path}/pause", single=True)
async def pause(work: Work, call: Call[Pause]) -> QueueResult:
    """Give out nothing of a queue any more. What runs goes on."""
    changed = await work.tx.execute(SQL.pause, work.tenant_id, call.params.queue, call.params.reason)
    return await _shown(work, "queue.paused", call.params.queue, is_changed=bool(changed))


@operation("queue.resume", scope=Scope.WRITE, http="POST /queues/{queue:path}/resume", single=True)
async def resume(work: Work, call: Call[OneQueue]) -> QueueResult:
    """Give out jobs of a queue again."""
    changed = await work.tx.execute(SQL.resume, work.tenant_id, call.params.queue)
    return await _shown(work, "queue.resumed", call.params.queue, is_changed=bool(changed))


class Limit(OneQueue, kw_only=True):
    """`burst` is a second's worth unless it is given. Without a rate there is none."""

    together = (only_with("rate_per_s", burst={"type": "null"}),)

    rate_per_s: Annotated[float, Meta(ge=0.001, le=1_000_000)] | None
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


@operation("queue.limit", scope=Scope.WRITE, http="POST /queues/{queue:path}/limit", single=True)
async def limit(work: Work, call: Call[Limit]) -> QueueResult:
    """Give out no more than so many jobs of a queue a second, on all nodes together; null: as many as are asked for."""
    asked = call.params
    if asked.rate_per_s is not None:
        burst = asked.burst or math.ceil(asked.rate_per_s)
        changed = await work.tx.execute(SQL.limit, work.tenant_id, asked.queue, asked.rate_per_s, burst)
    elif asked.burst is not None:
        raise errors.invalid("burst: it goes with a rate, and there is none", "burst")
    else:
        changed = await work.tx.execute(SQL.unlimit, work.tenant_id, asked.queue)
    return await _shown(work, "queue.limited", asked.queue, is_changed=bool(changed))


class Purge(OneQueue, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=PURGED_MAX)] = PURGED_MAX


class PurgedResult(msgspec.Struct):
    """`purged` counts the jobs that were cancelled; as many as `limit` means that there may be more."""

    queue: Queue
    purged: int


@operation("queue.purge", scope=Scope.WRITE, http="POST /queues/{queue:path}/purge", single=True)
async def purge(work: Work, call: Call[Purge]) -> PurgedResult:
    """Cancel what waits in a queue, for a place in it or for other jobs, up to 10,000 jobs at once. What runs goes on."""
    queue, room = call.params.queue, call.params.limit
    why = {"message": "its queue was purged"}
    bound = [row["job_id"] for row in await work.tx.fetch(DEPENDENCIES.ids_of_queue, work.tenant_id, queue, room)]
    parents = [row["job_id"] for row in await work.tx.fetch(SQL.parents, work.tenant_id, queue, room)]
    await take_in_hand(work, [*bound, *parents], queue=queue)
    locked = await work.tx.fetch(DEPENDENCIES.lock_blocked, work.tenant_id, bound)
    limited = [row["job_id"] for row in await work.tx.fetch(LIMITS.ids_of_queue, work.tenant_id, queue, room)]
    rows = list(await work.tx.fetch(LIMITS.end, work.tenant_id, limited, json_text(why))) if limited else []
    room -= len(rows)
    ready = await work.tx.fetch(SQL.take_all, work.tenant_id, queue, room, json_text(why)) if room else []
    if ready:
        await leave_places(work, [row["job_id"] for row in ready])
    rows += ready
    tell(work, "job.cancelled", [(queue, patch(row["job_id"], row["attempt"])) for row in rows], Status.CANCELLED)
    over = [row["job_id"] for row in rows if row["is_parent"]]
    last = [row["job_id"] for row in locked[: room - len(ready)]]
    over += await end_blocked(work, dict.fromkeys(last, why), Outcome.CANCELLED) if last else []
    await settle(work, over, End.GONE)
    return PurgedResult(await _queue(work, queue), len(rows) + len(last))


async def _shown(work: Work, event_type: str, queue: str, *, is_changed: bool) -> QueueResult:
    """The queue as it is now. Nothing is told when it was so already."""
    found = await _queue(work, queue)
    if not is_changed:
        return QueueResult(found)
    told = {
        "queue": queue, "paused_at": found.paused_at, "reason": found.reason,
        "rate_per_s": found.rate_per_s, "burst": found.burst,
    }  # fmt: skip
    work.emit(event_type, (queue_topic(queue),), told)
    return QueueResult(found)


async def _queue(work: Work, name: str) -> Queue:
    """One of them, also if it has neither jobs nor a row; the others are not counted."""
    [queue] = await _queues(work, name)
    return queue


async def _queues(work: Work, only: str | None = None) -> list[Queue]:
    """All that have jobs or a row, or one."""
    return [
        Queue(
            queue=row["queue"], waiting=row["waiting"], ready=row["ready"], limited=row["limited"],
            blocked=row["blocked"], processing=row["held"], oldest_ready_at=row["oldest_ready_at"],
            paused_at=row["paused_at"], reason=row["reason"], rate_per_s=row["rate_per_s"], burst=row["burst"],
        )
        for row in await work.tx.fetch(SQL.stats, work.tenant_id, only, COUNTED_MAX)
    ]  # fmt: skip
