"""Jobs as they are looked at, and what their owners may wish: one, a page, the attempts, counts, a cancellation, a reason."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Sequence

import msgspec

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.jobs import Execution, Job, Outcome, QueueName, Status
from devmesh.core.names import (
    PAGE_BYTES_MAX,
    Label,
    PageCursor,
    PageLimit,
    Text,
    decode_page_cursor,
    fitting,
    page_cursor,
)
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_dependencies import End, end_blocked, settle
from devmesh.operations.job_enqueuing import JobResult
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import SQL as LIMITS
from devmesh.operations.job_limits import leave_places
from devmesh.operations.job_locking import take_in_hand
from devmesh.operations.pages import fit
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.task_views import LAST_ID
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL, execution_from_row, from_row, json_text

WALKED_MAX = 10_000  # jobs that one page looks through
READ_BYTES_MAX = 16 * PAGE_BYTES_MAX  # of jobs, as they are stored, that one page looks through
EXECUTIONS_MAX = 1_000
ATTEMPTS_MAX = 2_147_483_647
EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)
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

    A page holds 1 MiB at most, unless its only job is larger, and looks through 10,000 jobs at most, or 16 MiB of them: it may
    be short, or empty where few match, although `next_cursor` leads on.
    """
    asked = call.params
    page = _Page(asked)
    while not page.is_done and page.walked < WALKED_MAX:
        step = min(asked.limit if page.walked == 0 else 500, WALKED_MAX - page.walked)
        rows = await work.tx.fetch(SQL.page, work.tenant_id, page.below, asked.queue, asked.type, asked.tag, step)
        for some in _in_portions(rows):
            await page.fill(work, some)
        if len(rows) < step and not page.is_done:
            return JobsResult(page.jobs, None)
    return JobsResult(page.jobs, page_cursor([page.below], 1))


class _Page:
    """A page that is being filled. All above `below` was looked through."""

    def __init__(self, asked: ListJobs) -> None:
        self._asked = asked
        self._shown_bytes = self._read_bytes = 0
        self.below = decode_page_cursor(asked.cursor) or LAST_ID
        self.jobs: list[Job] = []
        self.walked, self.is_done = 0, False

    async def fill(self, work: Work, rows: Sequence[Record]) -> None:
        """Takes those of the next jobs that were asked for, as long as there is room."""
        jobs = await _jobs(work, [row["job_id"] for row in rows if row["is_wanted"]]) if not self.is_done else {}
        for row in rows:
            self.is_done = self.is_done or not self._takes(jobs.get(row["job_id"]))
            if self.is_done:
                return
            self.below = row["job_id"]
            self.walked += 1
            self.is_done = len(self.jobs) == self._asked.limit
        self._read_bytes += sum(row["bytes"] for row in rows)
        self.is_done = self.is_done or self._read_bytes >= READ_BYTES_MAX

    def _takes(self, job: Job | None) -> bool:
        """Whether there is room for a job, if it was asked for."""
        if job is None or (self._asked.status is not None and job.status not in self._asked.status):
            return True
        self._shown_bytes += sum(len(bytes(each)) for each in (job.payload, job.result, job.error) if each is not None)
        if self._shown_bytes > PAGE_BYTES_MAX and self.jobs:
            return False
        self.jobs.append(job)
        return True


def _in_portions(rows: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """As many at a time as may be read at once."""
    while rows:
        count = fitting(row["bytes"] for row in rows)
        yield rows[:count]
        rows = rows[count:]


class Executions(ById, kw_only=True):
    cursor: PageCursor | None = None


class ExecutionsResult(msgspec.Struct):
    job: Job
    executions: list[Execution]
    next_cursor: str | None = None


@operation("job.executions", scope=Scope.READ, http="GET /jobs/{job_id}/executions", single=True)
async def executions(work: Work, call: Call[Executions]) -> ExecutionsResult:
    """Show the attempts of a job that have ended, in order, each with its worker, how it ended and how long it took.

    A page has 1,000 of them at most, and of what they ended with 1 MiB, unless its only one has more.
    """
    job_id, after = call.params.job_id, _decode_end(call.params.cursor)
    job = await require_job(work, job_id)
    rows = await work.tx.fetch(SQL.executions, work.tenant_id, job_id, *after, EXECUTIONS_MAX, PAGE_BYTES_MAX)
    page = fit(rows, EXECUTIONS_MAX)
    found = [execution_from_row(row) for row in page.rows]
    return ExecutionsResult(job, found, _end_cursor(found[-1]) if page.is_more else None)


def _end_cursor(execution: Execution) -> str:
    """What stands for the end of an attempt, in the form of any page's cursor."""
    moment = (execution.finished_at - EPOCH) // datetime.timedelta(microseconds=1)
    return f"{execution.attempt:016x}{moment:016x}"


def _decode_end(cursor: str | None) -> tuple[int, datetime.datetime]:
    place = decode_page_cursor(cursor)
    attempt, moment = divmod(place.int, 1 << 64) if place is not None else (0, 0)
    try:
        return min(attempt, ATTEMPTS_MAX), EPOCH + datetime.timedelta(microseconds=moment)
    except OverflowError:
        raise errors.invalid("this is not a cursor that an answer has handed out", "cursor") from None


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
    held = await work.tx.fetch(SQL.request_cancel, work.tenant_id, [job_id], asked.reason)
    if held:  # looked for first, as its lease is locked first by everybody
        told = [(row["queue"], {"id": row["job_id"], "is_cancel_requested": True}) for row in held]
        tell(work, "job.cancel_requested", told, Status.PROCESSING, reason=asked.reason)
        return []
    await take_in_hand(work, [job_id])
    if await work.tx.fetch(DEPENDENCIES.lock_blocked, work.tenant_id, [job_id]):
        return await end_blocked(work, {job_id: why}, Outcome.CANCELLED)
    if rows := await _take_waiting(work, job_id, json_text(why)):
        moved = [(row["queue"], patch(row["job_id"], row["attempt"])) for row in rows]
        tell(work, "job.cancelled", moved, Status.CANCELLED, reason=asked.reason)
        return [row["job_id"] for row in rows if row["is_parent"]]
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
