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
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import Policy, Wish, mark, waits_for
from devmesh.operations.job_events import tell
from devmesh.operations.job_limits import LimitedJob, wait_for_places
from devmesh.operations.job_uniqueness import UniqueWish, twins
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import copy_jobs, copy_ready

JOBS_PER_CALL_MAX = 10_000
PARENTS_MAX = 100
DELAY_MS_MAX = 366 * 86_400_000
TIMEOUT_MS_MAX = 30 * 86_400_000
UNIQUE_PERIOD_S_MAX = 366 * 86_400
UNDER_WAY = (Status.PENDING, Status.PROCESSING)
Key = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class JobSpec(Params, kw_only=True):
    """What is to be done. `run_at` or `delay_ms` say when at the earliest; `backoff_ms` before the first retry doubles.

    It waits until every job of `depends_on` is completed, and has the highest of their priorities unless its own is higher or
    `inherit_priority` is false. When one of them fails, `on_parent_failure` fails it too, waits for a replay, or ignores it.

    With a `unique_key` it is enqueued only if the latest job of that key is in none of `unique_states` (PENDING and PROCESSING,
    unless others are given), or older than `unique_period_s` if that is given. Of the jobs of a queue with one
    `concurrency_key`, `concurrency_limit` at the most are under way at once, as the latest of them says.
    """

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
    depends_on: Annotated[list[uuid.UUID], Meta(max_length=PARENTS_MAX)] = msgspec.field(default_factory=list)
    inherit_priority: bool = True
    on_parent_failure: Policy = Policy.FAIL
    unique_key: Key | None = None
    unique_states: Annotated[list[Status], Meta(min_length=1, max_length=len(Status))] | None = None
    unique_period_s: Annotated[float, Meta(gt=0, le=UNIQUE_PERIOD_S_MAX)] | None = None
    concurrency_key: Key | None = None
    concurrency_limit: Annotated[int, Meta(ge=1, le=10_000)] = 1


class Enqueue(JobSpec, kw_only=True):
    idempotency_key: IdempotencyKey | None = None


class JobResult(msgspec.Struct):
    job: Job


class EnqueuedJobResult(msgspec.Struct):
    """With `is_duplicate` the job is the one that there was, by its unique key."""

    job: Job
    is_duplicate: bool


class _New(msgspec.Struct):
    id: uuid.UUID
    key_id: uuid.UUID
    spec: JobSpec
    parent_ids: list[uuid.UUID] = []
    """What it has to wait for, of `depends_on`."""


@operation("job.enqueue", scope=Scope.WRITE, http="POST /jobs")
async def enqueue(work: Work, calls: Sequence[Call[Enqueue]]) -> Sequence[EnqueuedJobResult | errors.MeshError]:
    """Enqueue a job. The answer is durable: once it has come, the job will not be lost."""
    ids = new_ids(len(calls))
    made = [_New(job_id, call.caller.key_id, call.params) for job_id, call in zip(ids, calls, strict=True)]
    refused: dict[uuid.UUID, errors.MeshError] = {}
    for new in made:
        try:
            await _prepare(work, new)
        except errors.MeshError as error:
            refused[new.id] = error
    good = [new for new in made if new.id not in refused]
    there = await _twins(work, good)
    fresh = {new.id: new for new in good if new.id not in there}
    moment = await _write(work, list(fresh.values())) if fresh else work.now
    return [refused.get(new.id) or _enqueued(new, there.get(new.id), fresh, moment) for new in made]


def _enqueued(
    new: _New, twin: Job | uuid.UUID | None, fresh: dict[uuid.UUID, _New], moment: datetime.datetime
) -> EnqueuedJobResult:
    if isinstance(twin, Job):
        return EnqueuedJobResult(twin, is_duplicate=True)
    return EnqueuedJobResult(_job(new if twin is None else fresh[twin], moment), is_duplicate=twin is not None)


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


@operation("job.enqueue_many", scope=Scope.WRITE, http="POST /jobs/batch", single=True)
async def enqueue_many(work: Work, call: Call[EnqueueMany]) -> EnqueuedResult:
    """Enqueue up to 10,000 jobs at once: all of them, or, when one is wrong, none. The answer has them in the same order."""
    ids, key_id = new_ids(len(call.params.jobs)), call.caller.key_id
    made = [_New(job_id, key_id, spec) for job_id, spec in zip(ids, call.params.jobs, strict=True)]
    for new in made:
        await _prepare(work, new)
    there = await _twins(work, made)
    fresh = {new.id: new for new in made if new.id not in there}
    moment = await _write(work, list(fresh.values())) if fresh else work.now
    return EnqueuedResult([_enqueued_in_short(new, there.get(new.id), fresh, moment) for new in made])


def _enqueued_in_short(
    new: _New, twin: Job | uuid.UUID | None, fresh: dict[uuid.UUID, _New], moment: datetime.datetime
) -> Enqueued:
    if isinstance(twin, Job):
        return Enqueued(twin.id, twin.queue, twin.run_at, is_duplicate=True)
    one = new if twin is None else fresh[twin]
    return Enqueued(one.id, one.spec.queue, _run_at(one.spec, moment), is_duplicate=twin is not None)


async def _twins(work: Work, made: Sequence[_New]) -> dict[uuid.UUID, Job | uuid.UUID]:
    """Those that are there already, by their unique keys."""
    wishes = [
        UniqueWish(new.id, new.spec.unique_key, new.spec.unique_states or UNDER_WAY, new.spec.unique_period_s)
        for new in made
        if new.spec.unique_key is not None
    ]
    return await twins(work, wishes) if wishes else {}


async def _prepare(work: Work, new: _New) -> None:
    """Sees what keeps a job from being enqueued, and what it has to wait for. Raises MeshError."""
    spec = new.spec
    if spec.run_at is not None and spec.delay_ms is not None:
        raise errors.invalid("give run_at or delay_ms, not both", "delay_ms")
    if spec.depends_on:
        parents = await mark(work, spec.depends_on)
        new.parent_ids = await waits_for(work, Wish(new.id, spec.depends_on, spec.on_parent_failure), parents)
        if spec.inherit_priority:
            spec.priority = max(spec.priority, *parents.priorities.values())


async def _write(work: Work, made: Sequence[_New]) -> datetime.datetime:
    """Writes new jobs, and answers with the moment at which they came into their queues."""
    moment = work.now
    await copy_jobs(work.tx, (_row(work.tenant_id, new, moment) for new in made))
    bound = [new for new in made if new.parent_ids]
    limited = [new for new in made if not new.parent_ids and new.spec.concurrency_key is not None]
    ready = [new for new in made if not new.parent_ids and new.spec.concurrency_key is None]
    if ready:
        await copy_ready(work.tx, (_ready_row(work.tenant_id, new, moment) for new in ready))
    if bound:
        await _block(work, bound, moment)
    if limited:
        await wait_for_places(work, [_limited(new, moment) for new in limited], moment)
    _tell(work, made)
    return moment


def _ready_row(tenant_id: uuid.UUID, new: _New, moment: datetime.datetime) -> tuple[Any, ...]:
    return (tenant_id, _run_at(new.spec, moment), new.id, moment, new.spec.priority, new.spec.queue)


def _row(tenant_id: uuid.UUID, new: _New, moment: datetime.datetime) -> tuple[Any, ...]:
    spec = new.spec
    return (
        tenant_id, new.id, moment, _run_at(spec, moment), new.key_id, spec.timeout_ms, spec.backoff_ms, spec.max_retries,
        spec.priority, spec.queue, spec.type, bytes(spec.payload).decode(), spec.tags or None, spec.unique_key,
        spec.concurrency_key, spec.concurrency_limit if spec.concurrency_key is not None else None,
    )  # fmt: skip


async def _block(work: Work, bound: Sequence[_New], moment: datetime.datetime) -> None:
    count = len(bound)
    await work.tx.execute(
        DEPENDENCIES.block, work.tenant_id, [new.id for new in bound], [moment] * count,
        [_run_at(new.spec, moment) for new in bound], [0] * count, [0] * count, [new.spec.priority for new in bound],
        [False] * count, [new.spec.queue for new in bound], [new.spec.on_parent_failure.value for new in bound],
    )  # fmt: skip
    edges = [(parent_id, new.id) for new in bound for parent_id in new.parent_ids]
    await work.tx.execute(
        DEPENDENCIES.add, work.tenant_id, [parent for parent, _ in edges], [child for _, child in edges]
    )


def _limited(new: _New, moment: datetime.datetime) -> LimitedJob:
    spec = new.spec
    assert spec.concurrency_key is not None
    return LimitedJob(
        new.id, _run_at(spec, moment), spec.priority, spec.queue, spec.concurrency_key, spec.concurrency_limit
    )


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
        tags=spec.tags, unique_key=spec.unique_key, concurrency_key=spec.concurrency_key,
        concurrency_limit=spec.concurrency_limit if spec.concurrency_key is not None else None,
        attempt=0, retry_count=0, max_retries=spec.max_retries, timeout_ms=spec.timeout_ms, backoff_ms=spec.backoff_ms,
        worker_id=None, progress=None, progress_message=None, is_cancel_requested=False,
        result=None, error=None, run_at=_run_at(spec, moment), lease_until=None, created_at=moment,
        created_by_key_id=new.key_id, started_at=None, finished_at=None,
    )  # fmt: skip
