"""Says why a job is not running: looks at what can hold it up, in the order in which a job meets it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from devmesh.core.access import Scope
from devmesh.core.jobs import Job, Status
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_ending import FAILURES
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_views import ById, require_job
from devmesh.operations.queues import SQL as QUEUES
from devmesh.operations.registry import Call, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL

SAID_MAX = 500  # characters of what an error says


class Reason(NamedTuple):
    word: str
    sentence: str
    waits_for: Sequence[uuid.UUID] = ()


class JobExplanation(msgspec.Struct):
    """Why a job is not running, in a word and in a sentence.

    `waits_for` are those that it still waits for, the first hundred of them.
    """

    status: Status
    reason: str
    explanation: str
    waits_for: Sequence[uuid.UUID]


class ExplanationResult(msgspec.Struct):
    explanation: JobExplanation


@operation("job.explain", scope=Scope.READ, http="GET /jobs/{job_id}/explain", single=True)
async def explain(work: Work, call: Call[ById]) -> ExplanationResult:
    """Say why a job is not running."""
    job = await require_job(work, call.params.job_id)
    return ExplanationResult(JobExplanation(job.status, *await _reason(work, job)))


async def _reason(work: Work, job: Job) -> Reason:
    if job.status is Status.PROCESSING:
        return Reason("running", _running(job))
    if job.status is not Status.PENDING:
        return Reason("finished", _over(job))
    for look in LOOKS:
        if (found := await look(work, job)) is not None:
            return found
    return Reason("next", "it is the next of its queue, for the next worker that asks for jobs of it")


def _running(job: Job) -> str:
    assert job.lease_until is not None
    assert job.started_at is not None
    over_at = job.started_at + datetime.timedelta(milliseconds=job.timeout_ms)  # however often its lease is renewed
    asked = "; it has been asked to stop" if job.is_cancel_requested else ""
    return f"worker {job.worker_id} holds it until {min(job.lease_until, over_at).isoformat()}{asked}"


def _over(job: Job) -> str:
    """How a job has ended, and what can be done about it."""
    if job.status is Status.COMPLETED:
        return f"it is {job.status}"
    return f"it is {job.status}{_said(job.error)}; job.retry has it run again"


def _said(error: msgspec.Raw | None) -> str:
    """What an error says, if it says it in words: it is whatever a handler has made it."""
    found = msgspec.json.decode(error) if error is not None else None
    message = found.get("message") if isinstance(found, dict) else found
    if not isinstance(message, str) or not message:
        return ""
    return f": {message[:SAID_MAX]}…" if len(message) > SAID_MAX else f": {message}"


async def _parents(work: Work, job: Job) -> Reason | None:
    row = await work.tx.fetch_row(DEPENDENCIES.parents, work.tenant_id, job.id)
    assert row is not None
    if not row["count"]:
        return None
    if row["failed"]:  # no other will have it go on before that one
        sentence = f"it waits for job {row['failed'][0]}, which has failed, until that is replayed"
    else:
        others = row["count"] - 1
        they = f" and {others:,} other{'s' if others > 1 else ''} are" if others else " is"
        sentence = f"it waits until job {row['waits_for'][0]}{they} completed"
    return Reason("waiting_for_parents", sentence, row["waits_for"])


async def _pause(work: Work, job: Job) -> Reason | None:
    row = await work.tx.fetch_row(SQL.pause_of, work.tenant_id, job.queue)
    if row is None:
        return None
    why = f": {row['reason']}" if row["reason"] else ""
    return Reason("queue_paused", f"the queue {job.queue} is paused since {row['paused_at'].isoformat()}{why}")


async def _time(work: Work, job: Job) -> Reason | None:
    if job.run_at <= work.now:
        return None
    row = await work.tx.fetch_row(SQL.get_many, work.tenant_id, [job.id])
    has_failed = row is not None and row["outcome"] in FAILURES  # and was not put off by a worker since
    return Reason("backing_off" if has_failed else "not_due", f"it runs at {job.run_at.isoformat()} at the earliest")


async def _limit(work: Work, job: Job) -> Reason | None:
    row = await work.tx.fetch_row(LIMITS.standing, work.tenant_id, job.id)
    if row is None:
        return None
    if row["count"] < row["concurrency_limit"]:  # its time has come a moment ago
        return Reason(
            "next",
            f"there is a place of its concurrency key {row['concurrency_key']!r}, which it is given in a moment",
        )
    under_way = f"{row['count']} jobs with its concurrency key {row['concurrency_key']!r} are under way"
    return Reason("limit_reached", f"{under_way}, and {row['concurrency_limit']} may be at once")


async def _workers(work: Work, job: Job) -> Reason | None:
    row = await work.tx.fetch_row(SQL.takers, work.tenant_id, job.queue)
    assert row is not None
    if row["workers"] == 0:
        others = "".join(f"; {other}" for other in row["others"] or ())
        return Reason("no_worker", f"no ACTIVE worker is registered for the queue {job.queue}{others}")
    if row["free"] <= 0:
        return Reason("workers_busy", f"all {row['workers']} workers of the queue {job.queue} are at their capacity")
    return None


async def _others(work: Work, job: Job) -> Reason | None:
    before = await work.tx.fetch_value(SQL.count_before, work.tenant_id, job.queue, job.priority, job.run_at, job.id)
    rate = await work.tx.fetch_row(QUEUES.tokens, work.tenant_id, job.queue)
    if rate is not None and rate["tokens"] < 1:
        return Reason(
            "rate",
            f"the queue {job.queue} gives out {rate['rate_per_s']:g} jobs a second; {before:,} come before it",
        )
    return Reason("others_first", f"{before:,} jobs of its queue come before it") if before else None


LOOKS: tuple[Callable[[Work, Job], Awaitable[Reason | None]], ...] = (
    _parents,
    _pause,
    _time,
    _limit,
    _workers,
    _others,
)
