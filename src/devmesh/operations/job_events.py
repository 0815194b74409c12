"""How changes of jobs are told: what moved together in one queue is one event, with every job in it.

An event of each job would cost more than the job itself. `queue:NAME` is its topic, and `job:ID` of each job in it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

import msgspec

from devmesh.core.events import JOBS
from devmesh.core.jobs import Status, queue_topic
from devmesh.operations.work import Work

JOBS_PER_EVENT_MAX = 1_000


class Enqueued(msgspec.Struct, gc=False):
    """A job that is new. A struct costs half of what a dict does."""

    id: uuid.UUID


class Moved(msgspec.Struct, gc=False):
    """A job of which nothing else has changed than what has of all of them."""

    id: uuid.UUID
    attempt: int


Patch = Enqueued | Moved | Mapping[str, object]


def tell(work: Work, event_type: str, moved: Iterable[tuple[str, Patch]], status: Status, **common: object) -> None:
    """`moved` are queues, each with what has changed of a job: its `id` and its fields. `common` holds for all of them."""
    by_queue: dict[str, list[Patch]] = {}
    for queue, patch in moved:
        by_queue.setdefault(queue, []).append(patch)
    for queue, patches in by_queue.items():
        for begin in range(0, len(patches), JOBS_PER_EVENT_MAX):
            data = {"queue": queue, "status": status, **common, "jobs": patches[begin : begin + JOBS_PER_EVENT_MAX]}
            work.emit(event_type, (queue_topic(queue), JOBS), data)


def patch(job_id: uuid.UUID, attempt: int, **changed: object) -> Patch:
    return {"id": job_id, "attempt": attempt, **changed} if changed else Moved(job_id, attempt)
