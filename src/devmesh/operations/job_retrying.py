"""Has a job that is over, but was not completed, run again."""

from __future__ import annotations

import uuid

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Status
from devmesh.operations.dead_letters import SQL as DEAD_LETTERS
from devmesh.operations.job_enqueuing import JobResult
from devmesh.operations.job_events import tell
from devmesh.operations.job_limits import wait_again
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL, from_row


class Retry(Mutation, kw_only=True):
    job_id: uuid.UUID


@operation("job.retry", scope=Scope.WRITE, http="POST /jobs/{job_id}/retry", single=True)
async def retry(work: Work, call: Call[Retry]) -> JobResult:
    """Have a job that is FAILED or CANCELLED run again, at once and with all its retries. Its history goes on."""
    job_id = call.params.job_id
    rows = await work.tx.fetch(DEAD_LETTERS.replay, work.tenant_id, [job_id])
    rows = rows or await work.tx.fetch(DEAD_LETTERS.revive, work.tenant_id, [job_id])
    if rows:
        await wait_again(work, [job_id])
    tell(
        work, "job.replayed", [(row["queue"], {"id": row["job_id"], "retry_count": 0}) for row in rows], Status.PENDING
    )
    row = await work.tx.fetch_row(SQL.get_many, work.tenant_id, [job_id])
    if row is None:
        raise errors.not_found("job", job_id)
    job = from_row(row)
    if not rows:
        raise errors.conflict("job.state", f"the job is {job.status}: only one that is FAILED or CANCELLED is retried")
    return JobResult(job)
