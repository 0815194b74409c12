"""How jobs come to be: one, or many at once."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors, jobs
from devmesh.core.access import Scope
from devmesh.core.ids import new_ids
from devmesh.core.jobs import Job, QueueName, Status
from devmesh.core.names import EMPTY_OBJECT, IdempotencyKey, Label, Labels, Moment
from devmesh.core.tasks import JsonValue
from devmesh.operations.job_events import tell
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL

JOBS_PER_CALL_MAX = 10_000
DELAY_MS_MAX = 366 * 86_400_000
TIMEOUT_MS_MAX = 30 * 86_400_000


class JobSpec(Params, kw_only=True):
    """What is to be done. `run_at` or `delay_ms` say when at the earliest; `backoff_ms` before the first retry doubles."""

    together = ({"not": {"required": ["run_at", "delay_ms"], "properties": {
        "run_at": {"not": {"type": "null"}}, "delay_ms": {"not": {"type": "null"}}}}},)  # fmt: skip

    type: Label
    queue: QueueName = "default"
    payload: JsonValue = msgspec.field(default_factory=lambda: EMPTY_OBJECT)
    priority: Annotated[int, Meta(ge=1, le=5)] = jobs.PRIORITY_DEFAULT
    run_at: Moment | None = None
    delay_ms: Annotated[int, Meta(ge=0, le=DELAY_MS_MAX)] | None = None
    max_retries: Annotated[int, Meta(ge=0, le=100)] = jobs.MAX_RETRIES_DEFAULT
    timeout_ms: Annotated[int, Meta(ge=1, le=TIMEOUT_MS_MAX)] = jobs.TIMEOUT_MS_DEFAULT
    backoff_ms: Annotated[int, Meta(ge=0, le=jobs.BACKOFF_MS_MAX)] = jobs.BACKOFF_MS_DEFAULT
    tags: Labels = msgspec.field(default_factory=list)


class Enqueue(JobSpec, kw_only=True):
    idempotency_key: IdempotencyKey | None = None


class JobResult(msgspec.Struct):
    job: Job


class _New(msgspec.Struct):
    id: uuid.UUID
    key_id: uuid.UUID
    spec: JobSpec


@operation("job.enqueue", scope=Scope.WRITE, http="POST /jobs")
async def enqueue(work: Work, calls: Sequence[Call[Enqueue]]) -> Sequence[JobResult | errors.MeshError]:
    """Enqueue a job. The answer is durable: once it has come, the job will not be lost."""
    ids = new_ids(len(calls))
    made = [_New(job_id, call.caller.key_id, call.params) for job_id, call in zip(ids, calls, strict=True)]
    good = [new for new in made if not (new.spec.run_at and new.spec.delay_ms is not None)]
    moment = await _write(work, good) if good else work.now
    answers: list[JobResult | errors.MeshError] = []
    for new in made:
        if new.spec.run_at and new.spec.delay_ms is not None:
            answers.append(_both_given())
        else:
            answers.append(JobResult(_job(new, moment)))
    return answers


class EnqueueMany(Mutation, kw_only=True):
    jobs: Annotated[list[JobSpec], Meta(min_length=1, max_length=JOBS_PER_CALL_MAX)]


class Enqueued(msgspec.Struct):
    """A job that waits from now on."""

    id: uuid.UUID
    queue: str
    run_at: datetime.datetime


class EnqueuedResult(msgspec.Struct):
    jobs: list[Enqueued]


@operation("job.enqueue_many", scope=Scope.WRITE, http="POST /jobs/batch", single=True)
async def enqueue_many(work: Work, call: Call[EnqueueMany]) -> EnqueuedResult:
    """Enqueue up to 10,000 jobs at once: all of them, or, when one is wrong, none. The answer has them in the same order."""
    ids, key_id = new_ids(len(call.params.jobs)), call.caller.key_id
    made = [_New(job_id, key_id, spec) for job_id, spec in zip(ids, call.params.jobs, strict=True)]
    if any(spec.run_at and spec.delay_ms is not None for spec in call.params.jobs):
        raise _both_given()
    moment = await _write(work, made)
    return EnqueuedResult([Enqueued(new.id, new.spec.queue, _run_at(new.spec, moment)) for new in made])


async def _write(work: Work, made: Sequence[_New]) -> datetime.datetime:
    """Writes new jobs, and answers with the moment at which they came into their queues."""
    specs = [new.spec for new in made]
    moment: datetime.datetime = await work.tx.fetch_value(
        SQL.enqueue, work.tenant_id,
        [new.key_id for new in made],
        [new.id for new in made],
        [spec.queue for spec in specs],
        [spec.type for spec in specs],
        [bytes(spec.payload).decode() for spec in specs],
        [spec.priority for spec in specs],
        _some([spec.run_at for spec in specs]),
        _some([spec.delay_ms for spec in specs]),
        [spec.max_retries for spec in specs],
        [spec.timeout_ms for spec in specs],
        [spec.backoff_ms for spec in specs],
        _some([msgspec.json.encode(spec.tags).decode() if spec.tags else None for spec in specs]),
    )  # fmt: skip
    _tell(work, made)
    return moment


def _some(values: list[Any]) -> list[Any] | None:
    """Nothing at all, when there is nothing in it: that is what it is taken for."""
    return values if any(value is not None for value in values) else None


def _tell(work: Work, made: Sequence[_New]) -> None:
    """Of each type and priority apart, so that neither is said of every job."""
    groups: dict[tuple[str, int], list[_New]] = {}
    for new in made:
        groups.setdefault((new.spec.type, new.spec.priority), []).append(new)
    for (job_type, priority), members in groups.items():
        moved = [(new.spec.queue, {"id": new.id}) for new in members]
        tell(work, "job.enqueued", moved, Status.PENDING, type=job_type, priority=priority)


def _run_at(spec: JobSpec, moment: datetime.datetime) -> datetime.datetime:
    if spec.delay_ms is not None:
        return moment + datetime.timedelta(milliseconds=spec.delay_ms)
    return max(spec.run_at.astimezone(datetime.UTC), moment) if spec.run_at is not None else moment


def _job(new: _New, moment: datetime.datetime) -> Job:
    """The new job, as the tables hold it."""
    spec = new.spec
    return Job(
        id=new.id, queue=spec.queue, type=spec.type, status=Status.PENDING, payload=Raw(spec.payload), priority=spec.priority,
        tags=spec.tags, attempt=0, retry_count=0, max_retries=spec.max_retries, timeout_ms=spec.timeout_ms,
        backoff_ms=spec.backoff_ms, worker_id=None, progress=None, progress_message=None, is_cancel_requested=False,
        result=None, error=None, run_at=_run_at(spec, moment), lease_until=None, created_at=moment,
        created_by_key_id=new.key_id, started_at=None, finished_at=None,
    )  # fmt: skip


def _both_given() -> errors.MeshError:
    return errors.invalid("give run_at or delay_ms, not both", "delay_ms")
