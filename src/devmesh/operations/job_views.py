"""Jobs as they are looked at, and what their owners may wish: one, a page, the attempts, counts, a cancellation, a reason."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Execution, Job, Outcome, QueueName, Status
from devmesh.core.names import Label, PageCursor, PageLimit, Text, decode_page_cursor, page_cursor
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import End, end_blocked, settle
from devmesh.operations.job_enqueuing import JobResult
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_limits import leave_places
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.task_views import LAST_ID
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL, execution_from_row, from_row, json_text

WALKED_MAX = 10_000  # jobs that one page looks through
EXECUTIONS_MAX = 1_000
MOVES_MAX = 5  # a job may be moved from one place to another while it is looked for in these


class ById(Params, kw_only=True):
    job_id: uuid.UUID


@operation("job.get", scope=Scope.READ, http="GET /jobs/{job_id}")
async def get(work: Work, calls: Sequence[Call[ById]]) -> Sequence[JobResult | errors.MeshError]:
    """Show a job as it is now."""
    found = await _jobs(work, [call.params.job_id for call in calls])
    return [
        JobResult(found[call.params.job_id]) if call.params.job_id in found else errors.not_found("job", call.params.job_id)
        for call in calls
    ]  # fmt: skip


class ListJobs(Params, kw_only=True):
    status: list[Status] | None = None
    queue: QueueName | None = None
    type: Label | None = None
    tag: Label | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class JobsResult(msgspec.Struct):
    jobs: list[Job]
    next_cursor: str | None = None


@operation("job.list", scope=Scope.READ, http="GET /jobs", single=True)
async def list_jobs(work: Work, call: Call[ListJobs]) -> JobsResult:
    """List jobs, newest first, filtered by status, queue, type and one tag.

    A page looks through 10,000 jobs at most: where few match, it may be short or empty although `next_cursor` leads on.
    """
    asked = call.params
    below = decode_page_cursor(asked.cursor) or LAST_ID
    found: list[Job] = []
    walked = 0
    while walked < WALKED_MAX:
        step = min(max(asked.limit - len(found), 1) if walked == 0 else 500, WALKED_MAX - walked)
        rows = await work.tx.fetch(SQL.page, work.tenant_id, below, asked.queue, asked.type, asked.tag, step)
        wanted = [row["job_id"] for row in rows if row["is_wanted"]]
        jobs = await _jobs(work, wanted)
        for row in rows:
            below = row["job_id"]
            job = jobs.get(below)
            if job is not None and (asked.status is None or job.status in asked.status):
                found.append(job)
                if len(found) == asked.limit:
                    return JobsResult(found, page_cursor([below], 1))
        if len(rows) < step:
            return JobsResult(found, None)
        walked += step
    return JobsResult(found, page_cursor([below], 1))


class ExecutionsResult(msgspec.Struct):
    job: Job
    executions: list[Execution]


@operation("job.executions", scope=Scope.READ, http="GET /jobs/{job_id}/executions", single=True)
async def executions(work: Work, call: Call[ById]) -> ExecutionsResult:
    """Show the attempts of a job that have ended, the first 1,000, each with its worker, how it ended and how long it took."""
    job_id = call.params.job_id
    job = await require_job(work, job_id)
    rows = await work.tx.fetch(SQL.executions, work.tenant_id, job_id, EXECUTIONS_MAX)
    return ExecutionsResult(job, [execution_from_row(row) for row in rows])


class Cancel(Mutation, kw_only=True):
    job_id: uuid.UUID
    reason: Text = ""


@operation("job.cancel", scope=Scope.WRITE, http="POST /jobs/{job_id}/cancel", single=True)
async def cancel(work: Work, call: Call[Cancel]) -> JobResult:
    """Cancel a job. One that runs is asked to stop with its worker's next heartbeat, and is CANCELLED when it does."""
    job = None
    for _ in range(MOVES_MAX):
        await settle(work, await _cancel(work, call.params), End.GONE)
        job = await require_job(work, call.params.job_id)
        if job.status is not Status.PENDING:
            break
    assert job is not None
    if job.status not in (Status.PROCESSING, Status.CANCELLED):
        raise errors.conflict("job.state", f"the job is {job.status} and cannot be cancelled")
    return JobResult(job)


async def _cancel(work: Work, asked: Cancel) -> list[uuid.UUID]:
    """Looks for a job in each place, and cancels it there. Whether others wait for it: then it is answered with."""
    job_id, why = asked.job_id, {"message": asked.reason or "it was cancelled"}
    if await work.tx.fetch(DEPENDENCIES.lock_blocked, work.tenant_id, [job_id]):
        return await end_blocked(work, [job_id], Outcome.CANCELLED, why)
    if rows := await _take_waiting(work, job_id, json_text(why)):
        moved = [(row["queue"], patch(row["job_id"], row["attempt"])) for row in rows]
        tell(work, "job.cancelled", moved, Status.CANCELLED, reason=asked.reason)
        return [row["job_id"] for row in rows if row["is_parent"]]
    held = await work.tx.fetch(SQL.request_cancel, work.tenant_id, [job_id], asked.reason)
    told = [(row["queue"], {"id": row["job_id"], "is_cancel_requested": True}) for row in held]
    tell(work, "job.cancel_requested", told, Status.PROCESSING, reason=asked.reason)
    return []


async def _take_waiting(work: Work, job_id: uuid.UUID, why: str) -> list[Record]:
    """Looks where a job may wait, in the order in which it goes."""
    rows = await work.tx.fetch(LIMITS.end, work.tenant_id, [job_id], why)
    if not rows and (rows := await work.tx.fetch(SQL.take_waiting, work.tenant_id, [job_id], why)):
        await leave_places(work, [job_id])
    return list(rows)


async def require_job(work: Work, job_id: uuid.UUID) -> Job:
    found = await _jobs(work, [job_id])
    if job_id not in found:
        raise errors.not_found("job", job_id)
    return found[job_id]


async def _jobs(work: Work, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Job]:
    rows = await work.tx.fetch(SQL.get_many, work.tenant_id, list(ids)) if ids else []
    return {row["job_id"]: from_row(row) for row in rows}
