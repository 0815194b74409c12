"""Jobs are enqueued: one, or many at once."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Job
from devmesh.core.names import IdempotencyKey
from devmesh.operations.job_adding import (
    Added,
    JobSpec,
    NewJob,
    add,
    add_at_once,
    as_job,
    may_go_at_once,
    new_jobs,
    prepare,
    run_at,
)
from devmesh.operations.registry import Call, Key, Mutation, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import Keyed
from devmesh.store.statements import SEPARATOR

JOBS_PER_CALL_MAX = 10_000
UNKNOWN: Any = msgspec.Raw(f'"{SEPARATOR}"')  # in the place of a moment that the database will tell


class Enqueue(JobSpec, kw_only=True):
    idempotency_key: IdempotencyKey | None = None


class JobResult(msgspec.Struct):
    job: Job


class EnqueuedJobResult(msgspec.Struct):
    """With `is_duplicate` the job is the one that there was, by its unique key."""

    job: Job
    is_duplicate: bool


async def _enqueue_at_once(
    work: Work, calls: Sequence[Call[Enqueue]], keys: Mapping[str, Key]
) -> Sequence[msgspec.Raw] | None:
    """Jobs that ask for nothing special, as they mostly do."""
    specs = [call.params for call in calls]
    if not may_go_at_once(specs):
        return None
    made = new_jobs(specs, [call.caller.key_id for call in calls])
    answers = [msgspec.json.encode(EnqueuedJobResult(as_job(new, UNKNOWN), is_duplicate=False)) for new in made]
    moment = await add_at_once(
        work, made,
        Keyed(
            "job.enqueue", list(keys), [key.hash for key in keys.values()],
            [answers[key.ordinal].decode() for key in keys.values()],
        ),
    )  # fmt: skip
    if moment is None:
        return None
    told = msgspec.json.encode(moment).strip(b'"')
    return [msgspec.Raw(answer.replace(SEPARATOR.encode(), told)) for answer in answers]


@operation("job.enqueue", scope=Scope.WRITE, http="POST /jobs", reads_clock=False, at_once=_enqueue_at_once)
async def enqueue(work: Work, calls: Sequence[Call[Enqueue]]) -> Sequence[EnqueuedJobResult | errors.MeshError]:
    """Enqueue a job. The answer is durable: once it has come, the job will not be lost."""
    made = new_jobs([call.params for call in calls], [call.caller.key_id for call in calls])
    prepared = await prepare(work, made)
    added = await add(work, made, prepared)
    return [prepared.refused.get(new.id) or _shown(new, added) for new in made]


def _shown(new: NewJob, added: Added) -> EnqueuedJobResult:
    one = added.one(new)
    return EnqueuedJobResult(as_job(one, added.moment) if isinstance(one, NewJob) else one, is_duplicate=one is not new)


class EnqueueMany(Mutation, kw_only=True):
    jobs: Annotated[list[JobSpec], Meta(min_length=1, max_length=JOBS_PER_CALL_MAX)]


class Enqueued(msgspec.Struct):
    """A job that waits from now on, or with `is_duplicate` the one that there was."""

    id: uuid.UUID
    queue: str
    run_at: datetime.datetime
    is_duplicate: bool = False


class EnqueuedResult(msgspec.Struct):
    jobs: list[Enqueued]


@operation("job.enqueue_many", scope=Scope.WRITE, http="POST /jobs/batch", single=True, reads_clock=False)
async def enqueue_many(work: Work, call: Call[EnqueueMany]) -> EnqueuedResult:
    """Enqueue up to 10,000 jobs at once: all of them, or, when one is wrong, none. The answer has them in the same order."""
    specs = call.params.jobs
    made = new_jobs(specs, [call.caller.key_id] * len(specs))
    prepared = await prepare(work, made)
    if refused := prepared.refused:
        raise next(
            _of_one(place, problem) for place, new in enumerate(made) if (problem := refused.get(new.id)) is not None
        )
    added = await add(work, made, prepared)
    return EnqueuedResult([_shown_in_short(new, added) for new in made])


def _of_one(place: int, problem: errors.MeshError) -> errors.MeshError:
    """The refusal of one of many, which says of which."""
    said, one = problem.data, f"jobs[{place}]"
    field = f"{one}.{said.field}" if said.field else one
    return errors.MeshError(problem.kind, f"{one}: {problem.message}", reason=said.reason, field=field)


def _shown_in_short(new: NewJob, added: Added) -> Enqueued:
    one = added.one(new)
    if isinstance(one, Job):
        return Enqueued(one.id, one.queue, one.run_at, is_duplicate=True)
    return Enqueued(one.id, one.spec.queue, run_at(one.spec, added.moment), is_duplicate=one is not new)
