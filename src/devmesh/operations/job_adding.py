"""How new jobs are written, whoever wishes for them: callers, and schedules."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors, jobs
from devmesh.core.ids import new_ids
from devmesh.core.jobs import DELAY_MS_MAX, UNDER_WAY, Job, QueueName, Status
from devmesh.core.names import EMPTY_OBJECT, WITHOUT_NUL, Label, Labels, Moment
from devmesh.core.tasks import JsonValue
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import Parents, Policy, Wish, mark, waits_for
from devmesh.operations.job_events import Enqueued, tell
from devmesh.operations.job_limits import LimitedJob, wait_for_places
from devmesh.operations.job_uniqueness import Judged, UniqueWish, hand_over, judge, take_keys
from devmesh.operations.registry import Params, only_with
from devmesh.operations.work import Work
from devmesh.store.jobs import Keyed, copy_jobs, copy_ready, insert_ready, insert_ready_at_once
from devmesh.store.statements import SEPARATOR

PARENTS_MAX = 100
FEW_MAX = 50  # new jobs up to which one statement costs less than two COPYs, which are four round trips
TIMEOUT_MS_MAX = 2**31 - 1  # almost 25 days: four bytes
UNIQUE_PERIOD_S_MAX = 366 * 86_400
CONCURRENCY_LIMIT_DEFAULT = 1
Key = Annotated[str, Meta(min_length=1, max_length=200, pattern=WITHOUT_NUL)]


class JobTemplate(Params, kw_only=True):
    """What is to be done. `backoff_ms` is before the first retry, and doubles.

    With a `unique_key` it is enqueued only if the latest job of that key is in none of `unique_states` (PENDING and PROCESSING,
    unless others are given), or older than `unique_period_s` if that is given. Of the jobs of a queue with one
    `concurrency_key`, `concurrency_limit` at the most are under way at once, as the latest of them says. Without the key that
    they belong to these are refused.
    """

    together: ClassVar[tuple[dict[str, Any], ...]] = (
        only_with("unique_key", unique_states={"type": "null"}, unique_period_s={"type": "null"}),
        only_with("concurrency_key", concurrency_limit={"const": CONCURRENCY_LIMIT_DEFAULT}),
    )

    type: Label
    queue: QueueName = "default"
    payload: JsonValue = msgspec.field(default_factory=lambda: EMPTY_OBJECT)
    priority: Annotated[int, Meta(ge=1, le=5)] = jobs.PRIORITY_DEFAULT
    max_retries: Annotated[int, Meta(ge=0, le=100)] = jobs.MAX_RETRIES_DEFAULT
    timeout_ms: Annotated[int, Meta(ge=1, le=TIMEOUT_MS_MAX)] = jobs.TIMEOUT_MS_DEFAULT
    backoff_ms: Annotated[int, Meta(ge=0, le=jobs.BACKOFF_MS_MAX)] = jobs.BACKOFF_MS_DEFAULT
    tags: Labels = msgspec.field(default_factory=list)
    unique_key: Key | None = None
    unique_states: Annotated[list[Status], Meta(min_length=1, max_length=len(Status))] | None = None
    unique_period_s: Annotated[float, Meta(gt=0, le=UNIQUE_PERIOD_S_MAX)] | None = None
    concurrency_key: Key | None = None
    concurrency_limit: Annotated[int, Meta(ge=1, le=10_000)] = CONCURRENCY_LIMIT_DEFAULT


class JobSpec(JobTemplate, kw_only=True):
    """What is to be done. `run_at` or `delay_ms` say when at the earliest; `backoff_ms` before the first retry doubles.

    It waits until every job of `depends_on` is completed, and has the highest of their priorities unless its own is higher or
    `inherit_priority` is false. When one of them fails, `on_parent_failure` fails it too, waits for a replay, or ignores it.

    With a `unique_key` it is enqueued only if the latest job of that key is in none of `unique_states` (PENDING and PROCESSING,
    unless others are given), or older than `unique_period_s` if that is given. Of the jobs of a queue with one
    `concurrency_key`, `concurrency_limit` at the most are under way at once, as the latest of them says. Without the key that
    they belong to these are refused.
    """

    together = (*JobTemplate.together, {"not": {"required": ["run_at", "delay_ms"], "properties": {
        "run_at": {"not": {"type": "null"}}, "delay_ms": {"not": {"type": "null"}}}}})  # fmt: skip

    run_at: Moment | None = None
    delay_ms: Annotated[int, Meta(ge=0, le=DELAY_MS_MAX)] | None = None
    depends_on: Annotated[list[uuid.UUID], Meta(max_length=PARENTS_MAX)] = msgspec.field(default_factory=list)
    inherit_priority: bool = True
    on_parent_failure: Policy = Policy.FAIL


def misfit(spec: JobTemplate) -> errors.MeshError | None:
    """What is asked for that would be done without, as what it belongs to is not there."""
    if spec.unique_key is None:
        for name, value in (("unique_states", spec.unique_states), ("unique_period_s", spec.unique_period_s)):
            if value is not None:
                return errors.invalid(f"{name} is about a unique_key: give one", name)
    if spec.concurrency_key is None and spec.concurrency_limit != CONCURRENCY_LIMIT_DEFAULT:
        return errors.invalid("concurrency_limit is about a concurrency_key: give one", "concurrency_limit")
    if isinstance(spec, JobSpec) and spec.run_at is not None and spec.delay_ms is not None:
        return errors.invalid("give run_at or delay_ms, not both", "delay_ms")
    return None


class NewJob(msgspec.Struct):
    id: uuid.UUID
    key_id: uuid.UUID
    spec: JobSpec
    parent_ids: list[uuid.UUID] = []
    """What it has to wait for, of `depends_on`."""


def new_jobs(specs: Sequence[JobSpec], key_ids: Sequence[uuid.UUID]) -> list[NewJob]:
    """Each with an id of its own; not written yet."""
    wishes = zip(new_ids(len(specs)), key_ids, specs, strict=True)
    return [NewJob(job_id, key_id, spec) for job_id, key_id, spec in wishes]


class Added(msgspec.Struct):
    """What became of new jobs."""

    moment: datetime.datetime
    twins: dict[uuid.UUID, Job | NewJob]
    """Of those that were not written, the jobs that there are instead, by their unique keys."""

    def one(self, new: NewJob) -> Job | NewJob:
        """The job that there is now: this one, or its twin."""
        return self.twins.get(new.id, new) if self.twins else new


class Prepared(NamedTuple):
    """What was seen of new jobs before any is written: which are there already, and what keeps some from being enqueued."""

    twins: dict[uuid.UUID, Job | uuid.UUID]
    """By their unique keys: jobs that there are, or others of the new ones."""
    refused: dict[uuid.UUID, errors.MeshError]


async def add(work: Work, made: Sequence[NewJob], prepared: Prepared) -> Added:
    """Writes new jobs, but for those that are refused or there already, and tells of them."""
    there, refused = prepared
    is_whole = not (there or refused)  # so it mostly is
    fresh = made if is_whole else [new for new in made if new.id not in there and new.id not in refused]
    moment = await _write(work, fresh) if fresh else await work.clock()
    written = {new.id: new for new in fresh} if there else {}
    return Added(
        moment, {job_id: written[twin] if isinstance(twin, uuid.UUID) else twin for job_id, twin in there.items()}
    )


async def prepare(work: Work, made: Sequence[NewJob], *, were_accepted: bool = False) -> Prepared:
    """Sees what keeps jobs from being enqueued, by their ids, which are there already, and what the others have to wait for.

    One that is there already is that, whatever it would have to wait for. What `were_accepted` when they were planned is not
    held against what may be asked for by now.
    """
    refused: dict[uuid.UUID, errors.MeshError] = {}
    wishes: list[UniqueWish] = []
    bound: list[NewJob] = []
    for new in made:
        spec = new.spec
        if not were_accepted and (problem := misfit(spec)) is not None:
            refused[new.id] = problem
            continue
        if spec.unique_key is not None:
            wishes.append(UniqueWish(new.id, spec.unique_key, spec.unique_states or UNDER_WAY, spec.unique_period_s))
        if spec.depends_on:
            bound.append(new)
    if not (wishes or bound):
        return Prepared({}, refused)
    claimed = await take_keys(work, wishes) if wishes else None
    judged = judge(claimed, refused) if claimed is not None else Judged({}, {})
    bound = [new for new in bound if not isinstance(judged.twins.get(new.id), Job)]
    # All at once, so that batches mark in one order.
    keys = {(new.spec.queue, new.spec.concurrency_key) for new in made if new.spec.concurrency_key is not None}
    parent_ids = {parent_id for new in bound for parent_id in new.spec.depends_on}
    parents = await mark(work, parent_ids, keys=keys) if bound else None
    while parents is not None and (fresh := [new for new in bound if new.id not in judged.twins]):
        refused |= await _bind_all(work, fresh, parents)
        bound = [new for new in bound if new.id in judged.twins]  # what they are twins of may have been refused
        judged = judge(claimed, refused) if claimed is not None else judged
    if claimed is not None:
        await hand_over(work, claimed, judged.accepted)
    return Prepared(judged.twins, refused)


async def _bind_all(work: Work, bound: Sequence[NewJob], parents: Parents) -> dict[uuid.UUID, errors.MeshError]:
    """Has jobs wait for others, and answers with what keeps some from it."""
    refused: dict[uuid.UUID, errors.MeshError] = {}
    for new in bound:
        try:
            await _bind(work, new, parents)
        except errors.MeshError as error:
            refused[new.id] = error
    return refused


async def _bind(work: Work, new: NewJob, parents: Parents) -> None:
    """Has a job wait for others. Raises MeshError."""
    spec = new.spec
    new.parent_ids = await waits_for(work, Wish(new.id, spec.depends_on, spec.on_parent_failure), parents)
    if spec.inherit_priority:
        highest = max(parents.priorities[parent_id] for parent_id in spec.depends_on)
        # The caller's own parameters stay as they are: they tell, if it calls again, that it is the same call.
        new.spec = msgspec.structs.replace(spec, priority=max(spec.priority, highest))


async def _write(work: Work, made: Sequence[NewJob]) -> datetime.datetime:
    """Writes new jobs, and answers with the moment at which they came into their queues."""
    if len(made) <= FEW_MAX and all(_is_plain(new) for new in made):
        moment = work.is_at(await insert_ready(work.tx, work.tenant_id, [_plain(new) for new in made]))
    else:
        moment = await _write_each_kind(work, made)
    _tell(work, made)
    return moment


def may_go_at_once(specs: Sequence[JobSpec]) -> bool:
    """Whether new jobs ask for nothing that takes more than one round trip."""
    return len(specs) <= FEW_MAX and all(
        _runs_at_once(spec) and spec.unique_key is None and not spec.depends_on and misfit(spec) is None
        for spec in specs
    )


async def add_at_once(work: Work, made: Sequence[NewJob], keyed: Keyed) -> datetime.datetime | None:
    """Writes new jobs that `may_go_at_once`, with keys and events, and answers with when that was.

    None: a key was used before, and nothing was done.
    """
    _tell(work, made)
    return await insert_ready_at_once(work.tx, work.tenant_id, [_plain(new) for new in made], keyed, work.take_events())


def _is_plain(new: NewJob) -> bool:
    """Whether it may run at once, without waiting for other jobs or a place."""
    return not new.parent_ids and _runs_at_once(new.spec)


def _runs_at_once(spec: JobSpec) -> bool:
    return spec.concurrency_key is None and spec.run_at is None and spec.delay_ms is None


async def _write_each_kind(work: Work, made: Sequence[NewJob]) -> datetime.datetime:
    moment = await work.clock()
    ready = [new for new in made if not new.parent_ids and new.spec.concurrency_key is None]
    for some, times in _by_time(made, moment):
        await copy_jobs(work.tx, [_row(work.tenant_id, new) for new in some], times)
    for some, times in _by_time(ready, moment):
        await copy_ready(work.tx, [(work.tenant_id, new.id, new.spec.priority, new.spec.queue) for new in some], times)
    if len(ready) < len(made):
        await _write_waiting(work, made, moment)
    return moment


async def _write_waiting(work: Work, made: Sequence[NewJob], moment: datetime.datetime) -> None:
    """Has those wait that wait for other jobs or a place."""
    if bound := [new for new in made if new.parent_ids]:
        await _block(work, bound, moment)
    # The latest job of a key says its limit, whether it waits for others first or not.
    limits = {
        (new.spec.queue, new.spec.concurrency_key): new.spec.concurrency_limit
        for new in made
        if new.spec.concurrency_key is not None
    }
    if limits:
        limited = [new for new in made if not new.parent_ids and new.spec.concurrency_key is not None]
        await wait_for_places(work, [_limited(new, moment) for new in limited], limits, moment)


def _by_time(
    made: Sequence[NewJob], moment: datetime.datetime
) -> Iterator[tuple[Sequence[NewJob], list[datetime.datetime] | None]]:
    """Those that may run at once, and those with a time of their own, with these."""
    later = [new for new in made if new.spec.delay_ms is not None or new.spec.run_at is not None]
    at_once = [new for new in made if new.spec.delay_ms is None and new.spec.run_at is None] if later else made
    if at_once:
        yield at_once, None
    if later:
        yield later, [run_at(new.spec, moment) for new in later]


def _row(tenant_id: uuid.UUID, new: NewJob) -> tuple[Any, ...]:
    spec = new.spec
    return (
        tenant_id, *_asked(new), spec.tags or None, spec.unique_key, spec.concurrency_key,
        spec.concurrency_limit if spec.concurrency_key is not None else None,
    )  # fmt: skip


def _plain(new: NewJob) -> tuple[Any, ...]:
    return (*_asked(new), SEPARATOR.join(new.spec.tags) or None, new.spec.unique_key)


def _asked(new: NewJob) -> tuple[Any, ...]:
    spec = new.spec
    return (
        new.id, new.key_id, spec.timeout_ms, spec.backoff_ms, spec.max_retries, spec.priority, spec.queue, spec.type,
        bytes(spec.payload).decode(),
    )  # fmt: skip


async def _block(work: Work, bound: Sequence[NewJob], moment: datetime.datetime) -> None:
    count = len(bound)
    await work.tx.execute(
        DEPENDENCIES.block, work.tenant_id, [new.id for new in bound], [moment] * count,
        [run_at(new.spec, moment) for new in bound], [0] * count, [0] * count, [new.spec.priority for new in bound],
        [False] * count, [new.spec.queue for new in bound], [new.spec.on_parent_failure.value for new in bound],
    )  # fmt: skip
    edges = [(parent_id, new.id) for new in bound for parent_id in new.parent_ids]
    await work.tx.execute(
        DEPENDENCIES.add, work.tenant_id, [parent for parent, _ in edges], [child for _, child in edges]
    )


def _limited(new: NewJob, moment: datetime.datetime) -> LimitedJob:
    spec = new.spec
    assert spec.concurrency_key is not None
    return LimitedJob(new.id, run_at(spec, moment), spec.priority, spec.queue, spec.concurrency_key)


def _tell(work: Work, made: Sequence[NewJob]) -> None:
    """Of each type and priority apart, so that neither is said of every job."""
    groups: dict[tuple[str, int], list[NewJob]] = {}
    for new in made:
        groups.setdefault((new.spec.type, new.spec.priority), []).append(new)
    for (job_type, priority), members in groups.items():
        moved = [(new.spec.queue, Enqueued(new.id)) for new in members]
        tell(work, "job.enqueued", moved, Status.PENDING, type=job_type, priority=priority)


def run_at(spec: JobSpec, moment: datetime.datetime) -> datetime.datetime:
    if spec.delay_ms is not None:
        return moment + datetime.timedelta(milliseconds=spec.delay_ms)
    return max(spec.run_at.astimezone(datetime.UTC), moment) if spec.run_at is not None else moment


def as_job(new: NewJob, moment: datetime.datetime) -> Job:
    """The new job, as the tables hold it."""
    spec = new.spec
    return Job(
        id=new.id, queue=spec.queue, type=spec.type, status=Status.PENDING, payload=Raw(spec.payload), priority=spec.priority,
        tags=spec.tags, unique_key=spec.unique_key, concurrency_key=spec.concurrency_key,
        concurrency_limit=spec.concurrency_limit if spec.concurrency_key is not None else None,
        attempt=0, retry_count=0, max_retries=spec.max_retries, timeout_ms=spec.timeout_ms, backoff_ms=spec.backoff_ms,
        worker_id=None, progress=None, progress_message=None, is_cancel_requested=False,
        result=None, error=None, run_at=run_at(spec, moment), lease_until=None, created_at=moment,
        created_by_key_id=new.key_id, started_at=None, finished_at=None,
    )  # fmt: skip
