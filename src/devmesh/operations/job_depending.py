"""Has jobs wait for others that were not to when they were enqueued. Circles are refused, whoever draws them together."""

from __future__ import annotations

import uuid
from typing import Annotated

from msgspec import Meta

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Status
from devmesh.operations.job_adding import PARENTS_MAX
from devmesh.operations.job_dependencies import SQL, End, Policy, Wish, block, mark, settle, waits_for
from devmesh.operations.job_enqueuing import JobResult
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_limits import leave_places
from devmesh.operations.job_views import MOVES_MAX, require_job
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.work import Work


class Depend(Mutation, kw_only=True):
    """`on_parent_failure` holds for all that the job waits for; as it was, or fail, unless it is given.

    The job comes to have the highest of their priorities, unless its own is higher or `inherit_priority` is false.
    """

    job_id: uuid.UUID
    depends_on: Annotated[list[uuid.UUID], Meta(min_length=1, max_length=PARENTS_MAX)]
    on_parent_failure: Policy | None = None
    inherit_priority: bool = True


@operation("job.depend", scope=Scope.WRITE, http="POST /jobs/{job_id}/depend", single=True)
async def depend(work: Work, call: Call[Depend]) -> JobResult:
    """Have a job that waits wait for others as well. A circle is refused, and so is a job that runs or is over."""
    asked = call.params
    await work.tx.execute(SQL.lock, work.tenant_id)
    if asked.job_id in asked.depends_on:
        await require_job(work, asked.job_id)  # one that is not there is not found, whatever it would wait for
    if asked.job_id in asked.depends_on or await work.tx.fetch_value(
        SQL.is_above, work.tenant_id, asked.depends_on, asked.job_id
    ):
        raise errors.conflict("job.cycle", "these jobs would wait for each other in a circle", "depends_on")
    parents = await mark(work, asked.depends_on, [asked.job_id])
    blocked = await work.tx.fetch_row(SQL.lock_blocked, work.tenant_id, [asked.job_id])
    policy = asked.on_parent_failure or Policy(blocked["policy"] if blocked is not None else Policy.FAIL)
    parent_ids = await waits_for(work, Wish(asked.job_id, asked.depends_on, policy), parents)
    changed = int(blocked is None and bool(parent_ids))
    if changed:
        await _block(work, asked.job_id, policy)
    if parent_ids:
        children = [asked.job_id] * len(parent_ids)
        changed += await work.tx.execute(SQL.add, work.tenant_id, parent_ids, children)
        if asked.inherit_priority:
            highest = max(parents.priorities[job_id] for job_id in asked.depends_on)
            changed += await work.tx.execute(SQL.raise_priority, work.tenant_id, asked.job_id, highest)
    if blocked is not None and policy != blocked["policy"]:
        await _change_policy(work, asked.job_id, policy)
        changed += 1
    job = await require_job(work, asked.job_id)
    if job.status is not Status.PENDING:
        raise errors.conflict("job.state", f"the job is {job.status} and waits for nothing any more")
    if parent_ids and changed:  # it may have waited for them before
        tell(work, "job.blocked", [(job.queue, patch(job.id, job.attempt, priority=job.priority))], Status.PENDING)
    return JobResult(job)


async def _change_policy(work: Work, job_id: uuid.UUID, policy: Policy) -> None:
    """Of a job that waits for others. Some of these may have failed already, and wait to be replayed."""
    await work.tx.execute(SQL.set_policy, work.tenant_id, job_id, policy.value)
    row = await work.tx.fetch_row(SQL.parents, work.tenant_id, job_id)
    failed: list[uuid.UUID] = row["failed"] if row is not None else []
    if failed and policy is Policy.FAIL:
        raise errors.conflict(
            "job.parent_failed", f"job {failed[0]}, which it waits for, has failed", "on_parent_failure"
        )
    await settle(work, failed, End.FAILED)


async def _block(work: Work, job_id: uuid.UUID, policy: Policy) -> None:
    """Takes a job from where it waits, so that it waits for others instead."""
    row = None
    for _ in range(MOVES_MAX):
        row = await work.tx.fetch_row(LIMITS.take, work.tenant_id, job_id)
        if row is None and (row := await work.tx.fetch_row(SQL.take_ready, work.tenant_id, [job_id])):
            await leave_places(work, [job_id])
        if row is not None or (await require_job(work, job_id)).status is not Status.PENDING:
            break
    if row is None:
        raise errors.conflict("job.state", "the job runs or is over, and waits for nothing any more")
    await block(work, [row], {job_id: policy})
