"""Has a job that is over, but was not completed, run again."""

from __future__ import annotations

import uuid

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import ENDED_BADLY
from devmesh.operations.job_enqueuing import JobResult
from devmesh.operations.job_replaying import KEY_TAKEN
from devmesh.operations.job_replaying import retry as put_back
from devmesh.operations.job_views import require_job
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.work import Work


class Retry(Mutation, kw_only=True):
    job_id: uuid.UUID


@operation("job.retry", scope=Scope.WRITE, http="POST /jobs/{job_id}/retry", single=True)
async def retry(work: Work, call: Call[Retry]) -> JobResult:
    """Have a job that is FAILED or CANCELLED run again, at once and with all its retries. Its history goes on."""
    job_id = call.params.job_id
    before = await require_job(work, job_id)
    if before.status in ENDED_BADLY:
        retried = await put_back(work, before)
        if other := retried.refused.get(job_id):
            raise errors.conflict(KEY_TAKEN, f"job {other} of its unique key is under way: cancel that one first")
        if retried.job_ids:
            return JobResult(await require_job(work, job_id))
    status = (await require_job(work, job_id)).status
    raise errors.conflict("job.state", f"the job is {status}: only one that is FAILED or CANCELLED is retried")
