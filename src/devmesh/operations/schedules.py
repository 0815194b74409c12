"""The verbs of schedules: jobs that are enqueued again and again, by a cron expression or at an interval."""

from __future__ import annotations

import datetime
import itertools
import uuid
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from devmesh.core import errors
from devmesh.core.access import Scope
from devmesh.core.ids import new_id
from devmesh.core.names import (
    PAGE_BYTES_MAX,
    WITHOUT_NUL,
    Moment,
    Name,
    PageCursor,
    PageLimit,
    decode_page_cursor,
    like,
)
from devmesh.core.schedules import INTERVAL_S_MAX, INTERVAL_S_MIN, Firing, Missed, Timing, TimingUnusable
from devmesh.operations.job_adding import JobTemplate, misfit
from devmesh.operations.pages import fit
from devmesh.operations.registry import Call, Mutation, Params, operation
from devmesh.operations.schedule_firing import SQL, Fired, fire_what_is_due, schedule_topic, timing_of, write
from devmesh.operations.work import Work
from devmesh.store.database import Record

SCHEDULES_MAX = 10_000
UPCOMING = 5
ZONE_NAME = like(r"^[A-Za-z0-9_+/-]+$(?!\n)", "the name of a time zone, as in Europe/Oslo")
Cron = Annotated[str, Meta(min_length=1, max_length=200, pattern=WITHOUT_NUL)]
TimeZone = Annotated[str, Meta(min_length=1, max_length=100, pattern=ZONE_NAME)]
IntervalS = Annotated[float, Meta(ge=INTERVAL_S_MIN, le=INTERVAL_S_MAX)]


class Schedule(msgspec.Struct, kw_only=True):
    """`last_fired_at` is the time that was due. `missed_count` counts times for which there is no job. `next_fire_at` is null
    when it does not fire any more, or is paused.
    """

    id: uuid.UUID
    name: str
    cron: str | None
    interval_s: float | None
    time_zone: str
    missed: Missed
    job: Raw
    starts_at: datetime.datetime
    ends_at: datetime.datetime | None
    paused_at: datetime.datetime | None
    next_fire_at: datetime.datetime | None
    last_fired_at: datetime.datetime | None
    last_job_id: uuid.UUID | None
    fired_count: int
    missed_count: int
    created_at: datetime.datetime
    created_by_key_id: uuid.UUID


class ScheduleResult(msgspec.Struct):
    schedule: Schedule


class Create(Mutation, kw_only=True):
    """Either `cron`, of five fields or six with seconds, read in `time_zone`; or `interval_s`, counted from `starts_at`.

    `missed` says what becomes of times at which no node was there: `skip`, `once` (one job for all of them) or `all`.
    """

    together = ({"oneOf": [
        {"required": ["cron"], "properties": {"cron": {"not": {"type": "null"}}, "interval_s": {"type": "null"}}},
        {"required": ["interval_s"], "properties": {"cron": {"type": "null"}, "interval_s": {"not": {"type": "null"}}}},
    ]},)  # fmt: skip

    name: Name
    job: JobTemplate
    cron: Cron | None = None
    interval_s: IntervalS | None = None
    time_zone: TimeZone = "UTC"
    missed: Missed = Missed.ONCE
    starts_at: Moment | None = None
    ends_at: Moment | None = None


@operation("schedule.create", scope=Scope.WRITE, http="POST /schedules", single=True)
async def create(work: Work, call: Call[Create]) -> ScheduleResult:
    """Have a job enqueued again and again. Its tags say of which schedule it is, and for which time."""
    asked = call.params
    starts_at = asked.starts_at.astimezone(datetime.UTC) if asked.starts_at is not None else work.now
    ends_at = _in_utc(asked.ends_at)
    timing = Timing(asked.cron, asked.interval_s, asked.time_zone, starts_at, ends_at)
    _check(timing)
    _check_template(asked.job)
    next_fire_at = timing.next_after(work.now)
    if next_fire_at is None and ends_at is not None:
        raise errors.invalid(f"it would never fire: it ends at {ends_at.isoformat()}, before its first time", "ends_at")
    if await work.tx.fetch_value(SQL.count, work.tenant_id, SCHEDULES_MAX) >= SCHEDULES_MAX:
        raise errors.MeshError(errors.Kind.QUOTA_EXCEEDED, f"a tenant has {SCHEDULES_MAX:,} schedules at the most")
    await work.tx.execute(SQL.lock_name, work.tenant_id, asked.name)
    row = await work.tx.fetch_row(
        SQL.insert, work.tenant_id, new_id(), call.caller.key_id, asked.name, asked.cron, asked.interval_s, asked.time_zone,
        starts_at, ends_at, next_fire_at, asked.missed.value, _template(asked.job),
    )  # fmt: skip
    if row is None:
        raise errors.conflict("schedule.name", f"there is a schedule {asked.name!r} already", "name")
    return _told(work, "schedule.created", row)


class ById(Params, kw_only=True):
    schedule_id: uuid.UUID


class ShownResult(msgspec.Struct):
    """`upcoming` are the next five times, as if it were not paused; none when this server does not know the time zone."""

    schedule: Schedule
    upcoming: list[datetime.datetime]


@operation("schedule.get", scope=Scope.READ, http="GET /schedules/{schedule_id}", single=True)
async def get(work: Work, call: Call[ById]) -> ShownResult:
    """Show a schedule and the times at which it fires next."""
    row = _require(await work.tx.fetch_row(SQL.get, work.tenant_id, call.params.schedule_id), call.params.schedule_id)
    try:
        upcoming = list(itertools.islice(timing_of(row).after(work.now), UPCOMING))
    except TimingUnusable:
        upcoming = []
    return ShownResult(_from_row(row), upcoming)


class ListSchedules(Params, kw_only=True):
    name: Name | None = None
    limit: PageLimit = 50
    cursor: PageCursor | None = None


class SchedulesResult(msgspec.Struct):
    schedules: list[Schedule]
    next_cursor: str | None = None


@operation("schedule.list", scope=Scope.READ, http="GET /schedules", single=True)
async def list_schedules(work: Work, call: Call[ListSchedules]) -> SchedulesResult:
    """List schedules, newest first; the one of a name, if that is given.

    A page holds 1 MiB at most, unless its only schedule is larger.
    """
    asked = call.params
    below = decode_page_cursor(asked.cursor)
    rows = await work.tx.fetch(SQL.page, work.tenant_id, below, asked.name, asked.limit, PAGE_BYTES_MAX)
    page = fit(rows, asked.limit)
    return SchedulesResult([_from_row(row) for row in page.rows], page.cursor("schedule_id"))


class OneSchedule(Mutation, kw_only=True):
    schedule_id: uuid.UUID


class Update(OneSchedule, kw_only=True):
    """An `ends_at` of null takes the end away. Another one is a time to come: what is to end now is paused, or deleted."""

    name: Name | None = None
    job: JobTemplate | None = None
    cron: Cron | None = None
    interval_s: IntervalS | None = None
    time_zone: TimeZone | None = None
    missed: Missed | None = None
    ends_at: Moment | UnsetType | None = UNSET


@operation("schedule.update", scope=Scope.WRITE, http="PATCH /schedules/{schedule_id}", single=True)
async def update(work: Work, call: Call[Update]) -> ScheduleResult:
    """Change a schedule; what is left out stays. Other times are counted from now on."""
    asked = call.params
    row = await _lock(work, asked.schedule_id)
    is_timed_anew = asked.cron is not None or asked.interval_s is not None
    timing = timing_of(row)._replace(
        cron=asked.cron if is_timed_anew else row["cron"],
        interval_s=asked.interval_s if is_timed_anew else row["interval_s"],
        time_zone=asked.time_zone or row["time_zone"],
        ends_at=row["ends_at"] if asked.ends_at is UNSET else _in_utc(asked.ends_at),
    )
    _check(timing)
    if timing.ends_at is not None and timing.ends_at != row["ends_at"] and timing.ends_at <= work.now:
        raise errors.past("ends_at")
    if asked.job is not None:
        _check_template(asked.job)
    name = asked.name or row["name"]
    if name != row["name"]:
        await work.tx.execute(SQL.lock_name, work.tenant_id, name)
        if await work.tx.fetch_value(SQL.name_of_another, work.tenant_id, asked.schedule_id, name) is not None:
            raise errors.conflict("schedule.name", f"there is a schedule {name!r} already", "name")
    next_fire_at = row["next_fire_at"]
    if timing != timing_of(row):
        await fire_what_is_due(work, row)
        row = await _lock(work, asked.schedule_id)
        next_fire_at = _next_after_now(work, row, timing)
    missed = (asked.missed or Missed(row["missed"])).value
    job = _template(asked.job) if asked.job is not None else row["job"]
    if (timing, name, missed, job) == (timing_of(row), row["name"], row["missed"], row["job"]):
        return ScheduleResult(_from_row(row))
    changed = await work.tx.fetch_row(
        SQL.change, work.tenant_id, asked.schedule_id, timing.cron, timing.interval_s, timing.time_zone, timing.ends_at,
        None if row["paused_at"] is not None else next_fire_at, missed, job, name,
    )  # fmt: skip
    return _told(work, "schedule.updated", _require(changed, asked.schedule_id))


@operation("schedule.pause", scope=Scope.WRITE, http="POST /schedules/{schedule_id}/pause", single=True)
async def pause(work: Work, call: Call[OneSchedule]) -> ScheduleResult:
    """Have a schedule fire no more until it is resumed. What was due and has not fired yet is dealt with first."""
    before = await _lock(work, call.params.schedule_id)
    if before["paused_at"] is not None:
        return ScheduleResult(_from_row(before))
    await fire_what_is_due(work, before)
    row = await work.tx.fetch_row(SQL.set_paused, work.tenant_id, call.params.schedule_id, True, None)
    return _told(work, "schedule.paused", _require(row, call.params.schedule_id))


@operation("schedule.resume", scope=Scope.WRITE, http="POST /schedules/{schedule_id}/resume", single=True)
async def resume(work: Work, call: Call[OneSchedule]) -> ScheduleResult:
    """Have a schedule fire again. The times of the pause do not count as missed."""
    row = await _lock(work, call.params.schedule_id)
    _check(timing_of(row))
    next_fire_at = row["next_fire_at"] or _next_after_now(work, row, timing_of(row))
    if row["paused_at"] is None and next_fire_at == row["next_fire_at"]:
        return ScheduleResult(_from_row(row))
    row = _require(
        await work.tx.fetch_row(SQL.set_paused, work.tenant_id, call.params.schedule_id, False, next_fire_at),
        call.params.schedule_id,
    )
    return _told(work, "schedule.resumed", row)


class TriggeredResult(msgspec.Struct):
    schedule: Schedule
    job_id: uuid.UUID


@operation("schedule.trigger", scope=Scope.WRITE, http="POST /schedules/{schedule_id}/trigger", single=True)
async def trigger(work: Work, call: Call[OneSchedule]) -> TriggeredResult:
    """Enqueue the job of a schedule now, as if this were one of its times. The others stay, and so does a pause."""
    row = await _lock(work, call.params.schedule_id)
    [job_id] = await write(work, [Fired(row, Firing([work.now], 0, row["next_fire_at"]))])
    row = _require(await work.tx.fetch_row(SQL.get, work.tenant_id, call.params.schedule_id), call.params.schedule_id)
    return TriggeredResult(_from_row(row), job_id)


@operation("schedule.delete", scope=Scope.WRITE, http="DELETE /schedules/{schedule_id}", single=True)
async def delete(work: Work, call: Call[OneSchedule]) -> ScheduleResult:
    """End a schedule for good. The jobs that it has enqueued stay."""
    row = await work.tx.fetch_row(SQL.delete, work.tenant_id, call.params.schedule_id)
    return _told(work, "schedule.deleted", _require(row, call.params.schedule_id))


def _check(timing: Timing) -> None:
    try:
        timing.check()
    except TimingUnusable as problem:
        raise errors.invalid(str(problem), problem.field) from None


def _check_template(job: JobTemplate) -> None:
    if (problem := misfit(job)) is not None:
        raise errors.invalid(problem.message, f"job.{problem.data.field}")


def _next_after_now(work: Work, row: Record, timing: Timing) -> datetime.datetime | None:
    """When a schedule fires next that is locked. It may have fired while the lock was waited for, which is after `work.now`."""
    return timing.next_after(max(work.now, row["last_fired_at"] or work.now))


def _in_utc(moment: datetime.datetime | None) -> datetime.datetime | None:
    return moment.astimezone(datetime.UTC) if moment is not None else None


def _template(job: JobTemplate) -> str:
    return msgspec.json.encode(job).decode()


async def _lock(work: Work, schedule_id: uuid.UUID) -> Record:
    return _require(await work.tx.fetch_row(SQL.lock, work.tenant_id, schedule_id), schedule_id)


def _require(row: Record | None, schedule_id: uuid.UUID) -> Record:
    if row is None:
        raise errors.not_found("schedule", schedule_id)
    return row


def _told(work: Work, event_type: str, row: Record) -> ScheduleResult:
    schedule = _from_row(row)
    work.emit(event_type, (schedule_topic(schedule.id),), {"schedule": schedule})
    return ScheduleResult(schedule)


def _from_row(row: Record) -> Schedule:
    return Schedule(
        id=row["schedule_id"], name=row["name"], cron=row["cron"], interval_s=row["interval_s"], time_zone=row["time_zone"],
        missed=Missed(row["missed"]), job=Raw(row["job"]), starts_at=row["starts_at"], ends_at=row["ends_at"],
        paused_at=row["paused_at"], next_fire_at=row["next_fire_at"], last_fired_at=row["last_fired_at"],
        last_job_id=row["last_job_id"], fired_count=row["fired_count"], missed_count=row["missed_count"],
        created_at=row["created_at"], created_by_key_id=row["created_by_key_id"],
    )  # fmt: skip
