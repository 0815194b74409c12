"""The verbs of queues: counted, paused, resumed, emptied. A queue is there when somebody puts a job into it."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from devmesh.core.access import Scope
from devmesh.core.jobs import QueueName, Status, queue_topic
from devmesh.core.names import Text
from devmesh.operations.job_dependencies import End, settle
from devmesh.operations.job_events import patch, tell
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.jobs import json_text
from devmesh.store.statements import load

SQL = load("queues")
PURGED_MAX = 10_000
COUNTED_MAX = 100_000  # of each queue


class Queue(msgspec.Struct):
    """`waiting` counts those that wait for their time too, `ready` those that may run now; each up to 100,000."""

    queue: str
    waiting: int
    ready: int
    processing: int
    oldest_ready_at: datetime.datetime | None
    paused_at: datetime.datetime | None
    reason: str


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


@operation("queue.pause", scope=Scope.WRITE, http="POST /queues/{queue}/pause", single=True)
async def pause(work: Work, call: Call[Pause]) -> QueueResult:
    """Give out nothing of a queue any more. What runs goes on."""
    await work.tx.execute(SQL.pause, work.tenant_id, call.params.queue, call.params.reason)
    return await _changed(work, "queue.paused", call.params.queue)


@operation("queue.resume", scope=Scope.WRITE, http="POST /queues/{queue}/resume", single=True)
async def resume(work: Work, call: Call[OneQueue]) -> QueueResult:
    """Give out jobs of a queue again."""
    await work.tx.execute(SQL.resume, work.tenant_id, call.params.queue)
    return await _changed(work, "queue.resumed", call.params.queue)


class Purge(OneQueue, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=PURGED_MAX)] = PURGED_MAX


class PurgedResult(msgspec.Struct):
    """`purged` counts the jobs that were cancelled; as many as `limit` means that there may be more."""

    queue: Queue
    purged: int


@operation("queue.purge", scope=Scope.WRITE, http="POST /queues/{queue}/purge", single=True)
async def purge(work: Work, call: Call[Purge]) -> PurgedResult:
    """Cancel what waits in a queue, up to 10,000 jobs at once. What runs goes on."""
    queue = call.params.queue
    why = {"message": "its queue was purged"}
    rows = await work.tx.fetch(SQL.take_all, work.tenant_id, queue, call.params.limit, json_text(why))
    tell(work, "job.cancelled", [(queue, patch(row["job_id"], row["attempt"])) for row in rows], Status.CANCELLED)
    await settle(work, [row["job_id"] for row in rows if row["is_parent"]], End.GONE)
    return PurgedResult(await _queue(work, queue), len(rows))


async def _changed(work: Work, event_type: str, queue: str) -> QueueResult:
    found = await _queue(work, queue)
    told = {"queue": queue, "paused_at": found.paused_at, "reason": found.reason}
    work.emit(event_type, (queue_topic(queue),), told)
    return QueueResult(found)


async def _queue(work: Work, name: str) -> Queue:
    """One of them, also if it has neither jobs nor a row; the others are not counted."""
    [queue] = await _queues(work, name)
    return queue


async def _queues(work: Work, only: str | None = None) -> list[Queue]:
    """All that have jobs or a row, or one."""
    held = {row["queue"]: row["held"] for row in await work.tx.fetch(JOBS.held_by_queue, work.tenant_id)}
    said = {row["queue"]: row for row in await work.tx.fetch(SQL.list, work.tenant_id)}
    if only is None:
        waiting = {row["queue"] for row in await work.tx.fetch(JOBS.queues_waiting, work.tenant_id)}
        names = sorted(waiting | held.keys() | said.keys())
    else:
        names = [only]
    return [
        Queue(
            name := row["queue"],
            row["waiting"],
            row["ready"],
            held.get(name, 0),
            row["oldest_ready_at"],
            said[name]["paused_at"] if name in said else None,
            said[name]["reason"] if name in said else "",
        )
        for row in await work.tx.fetch(JOBS.waiting_by_queue, work.tenant_id, names, COUNTED_MAX)
    ]
