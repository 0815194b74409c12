"""Has jobs wait for others that were not to when they were enqueued. Circles are refused, whoever draws them together."""

from __future__ import annotations

import uuid
from typing import Annotated

from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Status
from devmesh.operations.job_adding import PARENTS_MAX
from devmesh.operations.job_dependencies import SQL, Policy, Wish, mark, waits_for
from devmesh.operations.job_enqueuing import JobResult
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_limits import leave_places
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.jobs import from_row


class Depend(Mutation, kw_only=True):
    job_id: uuid.UUID
    depends_on: Annotated[list[uuid.UUID], Meta(min_length=1, max_length=PARENTS_MAX)]
    on_parent_failure: Policy = Policy.FAIL


@operation("job.depend", scope=Scope.WRITE, http="POST /jobs/{job_id}/depend", single=True)
async def depend(work: Work, call: Call[Depend]) -> JobResult:
    """Have a job that waits wait for others as well. A circle is refused, and so is a job that runs or is over."""
    asked = call.params
    await work.tx.execute(SQL.lock, work.tenant_id)
    if asked.job_id in asked.depends_on or await work.tx.fetch_value(
        SQL.is_above, work.tenant_id, asked.depends_on, asked.job_id
    ):
        raise errors.conflict("job.cycle", "these jobs would wait for each other in a circle", "depends_on")
    parents = await mark(work, asked.depends_on)
    parent_ids = await waits_for(work, Wish(asked.job_id, asked.depends_on, asked.on_parent_failure), parents)
    if parent_ids:
        await _block(work, asked)
        children = [asked.job_id] * len(parent_ids)
        await work.tx.execute(SQL.add, work.tenant_id, parent_ids, children)
    row = await work.tx.fetch_row(JOBS.get_many, work.tenant_id, [asked.job_id])
    if row is None:
        raise errors.not_found("job", asked.job_id)
    job = from_row(row)
    if job.status is not Status.PENDING:
        raise errors.conflict("job.state", f"the job is {job.status} and waits for nothing any more")
    if parent_ids:
        tell(work, "job.blocked", [(job.queue, patch(job.id, job.attempt))], Status.PENDING)
    return JobResult(job)


async def _block(work: Work, asked: Depend) -> None:
    """Takes the job from where it waits, unless it waits for others already."""
    if await work.tx.fetch(SQL.lock_blocked, work.tenant_id, [asked.job_id]):
        return
    row = await work.tx.fetch_row(LIMITS.take, work.tenant_id, asked.job_id)
    if row is None:
        row = await work.tx.fetch_row(SQL.take_ready, work.tenant_id, asked.job_id)
        await leave_places(work, [asked.job_id])
    if row is None:
        known = await work.tx.fetch(JOBS.known, work.tenant_id, [asked.job_id])
        if not known:
            raise errors.not_found("job", asked.job_id)
        raise errors.conflict("job.state", "the job runs or is over, and waits for nothing any more")
    await work.tx.execute(
        SQL.block, work.tenant_id, [asked.job_id], [row["created_at"]], [row["run_at"]], [row["attempt"]], [row["retries"]],
        [row["priority"]], [row["is_parent"]], [row["queue"]], [asked.on_parent_failure.value],
    )  # fmt: skip
