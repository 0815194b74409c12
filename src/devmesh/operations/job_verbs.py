"""What workers say of the jobs that they hold, many at once, and what their owners may still wish.

Every report carries the `attempt` that came with the job: a stale one is refused, so a worker that was given up for dead can
never write over its successor. In a call about one job its refusal is the call's; in one about many it stands in `refused`.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from devmesh.core import errors, jobs
from devmesh.core.access import Scope
from devmesh.core.jobs import DELAY_MS_MAX, Ending, Outcome, Status
from devmesh.core.names import Text
from devmesh.core.tasks import AttemptNumber, JsonValue
from devmesh.operations.job_dependencies import End, settle
from devmesh.operations.job_ending import HeldRow, jitter, lock_held, write_endings
from devmesh.operations.job_events import Patch, patch, tell
from devmesh.operations.job_limits import leave_places
from devmesh.operations.job_locking import lock_leases, take_in_hand
from devmesh.operations.registry import Call, Mutation, operation
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL

REPORTS_PER_CALL_MAX = 1_000


class HeldJob(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    job_id: uuid.UUID
    attempt: AttemptNumber


ReportT = TypeVar("ReportT", bound=HeldJob)
Reports = Annotated[list[ReportT], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


class Refused(msgspec.Struct):
    """A job of a call about many that the call could do nothing about. In a call about one it is the call that is refused."""

    id: uuid.UUID
    kind: str
    reason: str
    message: str


class Moved(msgspec.Struct):
    """Where a job is now. `run_at` is when it goes on; null: it does not."""

    id: uuid.UUID
    attempt: int
    status: Status
    run_at: datetime.datetime | None = None


class MovedResult(msgspec.Struct):
    jobs: list[Moved]
    refused: list[Refused]


class CompletedJob(HeldJob, kw_only=True):
    result: JsonValue | UnsetType = UNSET


class Complete(Mutation, kw_only=True):
    jobs: Annotated[list[CompletedJob], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


@operation(
    "job.complete", scope=Scope.WORKER, http="POST /jobs/complete", in_hand=True, reads_clock=False, hurries=True
)
async def complete(work: Work, calls: Sequence[Call[Complete]]) -> Sequence[MovedResult | errors.MeshError]:
    """Say that jobs are done, each with a result if there is one."""
    reports = _once(calls)
    about = (
        work.tenant_id, [report.job_id for report in reports], [report.attempt for report in reports],
        [None if report.result is UNSET else bytes(report.result).decode() for report in reports],
    )  # fmt: skip
    is_alone = not work.tx.is_begun
    if not is_alone:
        await lock_leases(work, (report.job_id for report in reports))
    [ended] = await work.tx.fetch_whole(SQL.complete, *about, is_alone)
    if is_alone and ended["is_done"]:
        if ended["done"]:
            work.has_told("job.completed")
    else:
        if is_alone:  # there is more to it: nothing was done
            await lock_leases(work, (report.job_id for report in reports))
            [ended] = await work.tx.fetch(SQL.complete, *about, False)
        for topics, data in zip(ended["topics"], ended["data"], strict=True):
            work.emit("job.completed", tuple(topics.split(",")), data.encode())
        if ended["parents"]:
            await take_in_hand(work, ended["parents"], moving=ended["placed"], may_end_badly=False)
        if ended["placed"]:
            await leave_places(work, ended["placed"])
        await settle(work, ended["parents"], End.WELL)
    if len(ended["done"]) == sum(len(call.params.jobs) for call in calls):  # so that none has to be looked for
        return [MovedResult([_completed(each.job_id, each.attempt) for each in call.params.jobs], []) for call in calls]
    done = zip(ended["done"], ended["attempts"], strict=True)
    return await _answers(work, calls, {key: _completed(*key) for key in done})


def _completed(job_id: uuid.UUID, attempt: int) -> Moved:
    return Moved(job_id, attempt, Status.COMPLETED)


class HeartbeatJob(HeldJob, kw_only=True):
    progress: Annotated[float, Meta(ge=0, le=1)] | None = None
    message: Text | None = None


class Heartbeat(Mutation, kw_only=True):
    jobs: Annotated[list[HeartbeatJob], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


class JobLease(msgspec.Struct):
    """How long the caller may rely on holding the job, as long as the job has time: `timeout_ms` goes on. And whether it has
    been asked to stop working on it.
    """

    id: uuid.UUID
    lease_until: datetime.datetime
    is_cancel_requested: bool


class LeasesResult(msgspec.Struct):
    jobs: list[JobLease]
    refused: list[Refused]


@operation("job.heartbeat", scope=Scope.WORKER, http="POST /jobs/heartbeat", in_hand=True)
async def heartbeat(work: Work, calls: Sequence[Call[Heartbeat]]) -> Sequence[LeasesResult | errors.MeshError]:
    """Renew the leases of held jobs by what they were claimed for, and perhaps say how far they are, 0-1.

    A refused one is lost: stop working on it.
    """
    return await _renew(work, calls)


class ProgressJob(HeldJob, kw_only=True):
    progress: Annotated[float, Meta(ge=0, le=1)]
    message: Text | None = None


class Progress(Mutation, kw_only=True):
    jobs: Annotated[list[ProgressJob], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


@operation("job.progress", scope=Scope.WORKER, http="POST /jobs/progress", in_hand=True)
async def progress(work: Work, calls: Sequence[Call[Progress]]) -> Sequence[LeasesResult | errors.MeshError]:
    """Say how far held jobs are, 0-1, which renews their leases as a heartbeat does.

    A refused one is lost: stop working on it.
    """
    return await _renew(work, calls)


async def _renew(
    work: Work, calls: Sequence[Call[Heartbeat]] | Sequence[Call[Progress]]
) -> Sequence[LeasesResult | errors.MeshError]:
    reports = _said_together(report for call in calls for report in call.params.jobs)
    rows = await work.tx.fetch(
        SQL.renew, work.tenant_id, [job_id for job_id, _ in reports], [attempt for _, attempt in reports]
    )
    renewed = {
        (row["job_id"], row["attempt"]): JobLease(row["job_id"], row["lease_until"], row["is_cancelled"])
        for row in rows
    }
    queues = {row["job_id"]: row["queue"] for row in rows}
    far = [
        report for key, report in reports.items()
        if key in renewed and (report.progress is not None or report.message is not None)
    ]  # fmt: skip
    if far:
        await work.tx.execute(
            SQL.note_progress, work.tenant_id, [report.job_id for report in far], [report.progress for report in far],
            [report.message for report in far],
        )  # fmt: skip
        tell(work, "job.progress", [(queues[report.job_id], _progress(report)) for report in far], Status.PROCESSING)
    return await _answers(work, calls, renewed)


def _said_together(
    reports: Iterable[HeartbeatJob | ProgressJob],
) -> dict[tuple[uuid.UUID, int], HeartbeatJob | ProgressJob]:
    """What is said of each attempt. Of one that is named again, as by calls that come together, what is left out then stays."""
    found: dict[tuple[uuid.UUID, int], HeartbeatJob | ProgressJob] = {}
    for report in reports:
        said, before = report, found.get((report.job_id, report.attempt))
        if before is not None:
            progress = before.progress if report.progress is None else report.progress
            message = before.message if report.message is None else report.message
            said = msgspec.structs.replace(report, progress=progress, message=message)
        found[report.job_id, report.attempt] = said
    return found


def _progress(report: HeartbeatJob | ProgressJob) -> Patch:
    """What is left out of a report stays as it was."""
    told = {"progress": report.progress, "progress_message": report.message}
    return patch(report.job_id, report.attempt, **{name: value for name, value in told.items() if value is not None})


class FailedJob(HeldJob, kw_only=True):
    error: JsonValue
    retryable: bool = True


class Fail(Mutation, kw_only=True):
    jobs: Annotated[list[FailedJob], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


@operation("job.fail", scope=Scope.WORKER, http="POST /jobs/fail", in_hand=True)
async def fail(work: Work, calls: Sequence[Call[Fail]]) -> Sequence[MovedResult | errors.MeshError]:
    """Say that attempts failed. While retries are left another follows after a back-off; then the job is a dead letter."""

    def decide(report: Any, held: HeldRow) -> Ending:
        return jobs.after_failure(
            held.held, Outcome.FAILED, is_retryable=report.retryable, now=work.now, jitter=jitter()
        )

    return await _end_each(work, calls, decide, lambda report: bytes(report.error).decode())


class SnoozedJob(HeldJob, kw_only=True):
    delay_ms: Annotated[int, Meta(ge=0, le=DELAY_MS_MAX)]


class Snooze(Mutation, kw_only=True):
    jobs: Annotated[list[SnoozedJob], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


@operation("job.snooze", scope=Scope.WORKER, http="POST /jobs/snooze", in_hand=True)
async def snooze(work: Work, calls: Sequence[Call[Snooze]]) -> Sequence[MovedResult | errors.MeshError]:
    """Put held jobs off: each is given out again after its delay. It costs no retry."""

    def decide(report: Any, held: HeldRow) -> Ending:
        later = work.now + datetime.timedelta(milliseconds=report.delay_ms)
        return jobs.handed_back(held.held, Outcome.SNOOZED, later)

    return await _end_each(work, calls, decide, lambda _: None)


class Release(Mutation, kw_only=True):
    jobs: Annotated[list[HeldJob], Meta(min_length=1, max_length=REPORTS_PER_CALL_MAX)]


@operation("job.release", scope=Scope.WORKER, http="POST /jobs/release", in_hand=True)
async def release(work: Work, calls: Sequence[Call[Release]]) -> Sequence[MovedResult | errors.MeshError]:
    """Give held jobs back unfinished: others get them at once. It costs no retry."""

    def decide(_: Any, held: HeldRow) -> Ending:
        return jobs.handed_back(held.held, Outcome.RELEASED, work.now)

    return await _end_each(work, calls, decide, lambda _: None)


async def _end_each(
    work: Work,
    calls: Sequence[Call[Any]],
    decide: Callable[[Any, HeldRow], Ending],
    error_of: Callable[[Any], str | None],
) -> Sequence[MovedResult | errors.MeshError]:
    """Ends the attempts that are reported and still held. One that has been asked to stop is over, whatever is said of it."""
    reports = {(report.job_id, report.attempt): report for report in _once(calls)}
    locked = await lock_held(work, [job_id for job_id, _ in reports])
    endings: dict[uuid.UUID, Ending] = {}
    texts: dict[uuid.UUID, str | None] = {}
    for job_id, held in locked.items():
        report = reports.get((job_id, held.held.attempt))
        if report is None:
            continue
        endings[job_id] = held.unless_cancelled(decide(report, held))
        texts[job_id] = held.error_text(error_of(report))
    ended = await write_endings(work, locked, endings, texts)
    moved = {
        (each.job_id, each.attempt): Moved(each.job_id, each.attempt, each.status, each.ending.next_run_at)
        for each in ended
    }
    return await _answers(work, calls, moved)


def _once(calls: Sequence[Call[Any]]) -> Sequence[Any]:
    """How attempts are said to have ended: of one that is named twice, in one call or in several, what was said first."""
    reports = [report for call in calls for report in call.params.jobs]
    if len({report.job_id.int for report in reports}) == len(reports):  # so it mostly is; UUIDs are slow to hash
        return reports
    return list({(report.job_id, report.attempt): report for report in reversed(reports)}.values())


async def _answers(work: Work, calls: Sequence[Call[Any]], done: dict[tuple[uuid.UUID, int], Any]) -> list[Any]:
    """Each call's own jobs, and why nothing could be done about some of them.

    A lease is renewed for all who ask for it, but an attempt ends once: who names it again is too late.
    """
    reports = [(report.job_id, report.attempt) for call in calls for report in call.params.jobs]
    missing = list({job_id for job_id, attempt in reports if (job_id, attempt) not in done})
    held: dict[uuid.UUID, int] = {}
    ended: dict[uuid.UUID, int] = {}
    if missing:
        held = {row["job_id"]: row["attempt"] for row in await work.tx.fetch(SQL.leases, work.tenant_id, missing)}
        ended = {row["job_id"]: row["attempt"] for row in await work.tx.fetch(SQL.known, work.tenant_id, missing)}
    ended |= dict(done.keys())  # one that is named again is over as well
    answers: list[Any] = []
    for call in calls:
        is_heartbeat = isinstance(call.params, Heartbeat | Progress)
        mine, refused = [], []
        for report in call.params.jobs:
            key = (report.job_id, report.attempt)
            found = done.get(key) if is_heartbeat else done.pop(key, None)
            if found is not None:
                mine.append(found)
            else:
                refused.append(_refusal(report, held.get(report.job_id), ended.get(report.job_id)))
        if refused and len(call.params.jobs) == 1:
            answers.append(refused[0][1])
            continue
        told = [Refused(job_id, error.kind, error.data.reason or "", error.message) for job_id, error in refused]
        answers.append(LeasesResult(mine, told) if is_heartbeat else MovedResult(mine, told))
    return answers


def _refusal(report: HeldJob, held: int | None, ended: int | None) -> tuple[uuid.UUID, errors.MeshError]:
    """`held` is the attempt in which a worker holds the job, `ended` the latest that is over; None: there is no such job."""
    job_id, attempt = report.job_id, report.attempt
    if held is not None and attempt > held:
        why = errors.conflict(
            "job.stale_attempt", f"attempt {attempt} has not begun; the job is held in attempt {held}", "attempt"
        )
    elif held is not None:
        why = errors.conflict(
            "job.stale_attempt", f"attempt {attempt} is over; the job is held in attempt {held}", "attempt"
        )
    elif ended is None:
        why = errors.not_found("job", job_id)
    elif attempt > ended:
        why = errors.conflict("job.stale_attempt", f"attempt {attempt} has not begun; the job is not held", "attempt")
    else:
        why = errors.conflict(
            "job.stale_attempt", f"attempt {attempt} is over; the job is not held any more", "attempt"
        )
    return job_id, why
