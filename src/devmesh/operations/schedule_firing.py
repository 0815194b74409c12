"""How schedules fire: their jobs and their next time are written together, so a firing is neither lost nor done twice."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from devmesh import telemetry
from devmesh.core.schedules import COUNTED_MAX, GRACE_S, Firing, Missed, Timing, TimingUnusable, fire
from devmesh.operations.job_adding import JobSpec, add, new_jobs, prepare
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import load

log = structlog.get_logger(__name__)
SQL = load("schedules")
FIRED_MAX = 100  # schedules in one transaction


class Fired(NamedTuple):
    """A schedule and what it fires; `at` are the times that were due."""

    row: Record
    firing: Firing


def timing_of(row: Record) -> Timing:
    return Timing(row["cron"], row["interval_s"], row["time_zone"], row["starts_at"], row["ends_at"])


def schedule_topic(schedule_id: uuid.UUID) -> str:
    return f"schedule:{schedule_id}"


def spec_of(row: Record, at: datetime.datetime) -> JobSpec:
    """The job of a schedule for one of its times. Its tags say whose it is and which time it stands for."""
    spec = msgspec.json.decode(row["job"], type=JobSpec)
    due = at.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    spec.tags = [*spec.tags, schedule_topic(row["schedule_id"]), f"scheduled_at:{due}"]
    return spec


async def fire_due(work: Work, grace_s: float) -> int:
    """One pass over a tenant: how many schedules were due.

    After a long absence each has thousands of times that were missed. When enough were counted, the others wait for the next
    transaction; it is said then that there may be more.
    """
    rows = await _due(work)
    fired, moments, counted = list[Fired](), list[datetime.datetime](), 0
    for row in rows:
        if counted >= COUNTED_MAX:
            break
        moments.append(moment := max(work.now, row["next_fire_at"]))
        firing = _firing(row, moment, grace_s)
        fired.append(Fired(row, firing))
        counted += firing.missed + len(firing.times)
    await write(work, fired)
    for one, moment in zip(fired, moments, strict=True):
        _count(one.firing, moment)
    return len(rows) if len(fired) == len(rows) else FIRED_MAX


async def due_ids(work: Work) -> list[uuid.UUID]:
    return [row["schedule_id"] for row in await _due(work)]


async def fire_alone(work: Work, schedule_id: uuid.UUID, grace_s: float) -> None:
    """Fires one schedule, unless it is gone or has fired meanwhile."""
    for row in await work.tx.fetch(SQL.lock, work.tenant_id, schedule_id):
        await fire_what_is_due(work, row, grace_s)


async def fire_what_is_due(work: Work, row: Record, grace_s: float = GRACE_S) -> None:
    """What has come due for a locked schedule and was not seen yet is none of the times of a pause, nor of other ones.

    Whoever has no setting for it, as only workers have, knows by the usual grace what is on time.
    """
    due_at = row["next_fire_at"]
    if row["paused_at"] is not None or due_at is None or due_at > work.now or not _is_usable(row):
        return
    firing = _firing(row, work.now, grace_s)
    await write(work, [Fired(row, firing)])
    _count(firing, work.now)


def _firing(row: Record, moment: datetime.datetime, grace_s: float) -> Firing:
    return fire(timing_of(row), row["next_fire_at"], moment, Missed(row["missed"]), grace_s)


def _count(firing: Firing, moment: datetime.datetime) -> None:
    telemetry.SCHEDULE_TIMES.labels("missed").inc(firing.missed)
    telemetry.SCHEDULE_TIMES.labels("fired").inc(len(firing.times))
    if firing.times:
        telemetry.SCHEDULE_LATENESS_SECONDS.observe((moment - firing.times[-1]).total_seconds())


async def _due(work: Work) -> Sequence[Record]:
    """The schedules that are due and that this node can read. Others wait for a node that can, and hold up nobody."""
    left_out: list[uuid.UUID] = []
    while True:
        rows = await work.tx.fetch(SQL.due, work.tenant_id, FIRED_MAX, left_out)
        unusable = [row["schedule_id"] for row in rows if not _is_usable(row)]
        if not unusable:
            return rows
        left_out += unusable


def _is_usable(row: Record) -> bool:
    if row["cron"] is None:
        return True
    try:
        _ = timing_of(row).zone
    except TimingUnusable as problem:
        log.warning("a schedule that is due cannot fire", schedule_id=str(row["schedule_id"]), error=str(problem))
        return False
    return True


async def write(work: Work, fired: Sequence[Fired]) -> list[uuid.UUID]:
    """Enqueues the jobs, and writes what has become of the schedules. Answers with the last job of each that has any."""
    if not fired:
        return []
    wishes = [(one.row["created_by_key_id"], spec_of(one.row, at)) for one in fired for at in one.firing.times]
    made = new_jobs([spec for _, spec in wishes], [key_id for key_id, _ in wishes])
    added = await add(work, made, await prepare(work, made, were_accepted=True))
    ids = iter([added.one(new).id for new in made])
    jobs = [[next(ids) for _ in one.firing.times] for one in fired]
    rows = await work.tx.fetch(
        SQL.fired, work.tenant_id, [one.row["schedule_id"] for one in fired], [one.firing.next_fire_at for one in fired],
        [one.firing.times[-1] if one.firing.times else None for one in fired],
        [of_one[-1] if of_one else None for of_one in jobs],
        [len(of_one) for of_one in jobs], [one.firing.missed for one in fired],
    )  # fmt: skip
    for row in rows:
        work.emit("schedule.fired", (schedule_topic(row["schedule_id"]),), {"schedule": _patch(row)})
    return [of_one[-1] for of_one in jobs if of_one]


def _patch(row: Record) -> dict[str, Any]:
    return {"id": row["schedule_id"], **{name: row[name] for name in row.keys() if name != "schedule_id"}}  # noqa: SIM118
