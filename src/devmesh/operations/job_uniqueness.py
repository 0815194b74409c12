"""Jobs of which there is to be one: whoever asks for another gets the one that there is."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from devmesh.core.jobs import Job, Status
from devmesh.operations.work import Work
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.jobs import from_row
from devmesh.store.statements import load

SQL = load("job_uniqueness")


class UniqueWish(NamedTuple):
    """A job that is to be enqueued unless the latest of its key is in one of some states, and not older than a period."""

    job_id: uuid.UUID
    unique_key: str
    states: Sequence[Status]
    period_s: float | None

    def is_met_by(self, job: Job, now: datetime.datetime) -> bool:
        is_recent = self.period_s is None or job.created_at > now - datetime.timedelta(seconds=self.period_s)
        return is_recent and job.status in self.states


async def twins(work: Work, wishes: Sequence[UniqueWish]) -> dict[uuid.UUID, Job | uuid.UUID]:
    """Of the jobs that are not to be enqueued, those that there are instead: known ones, or others among the wishes."""
    first: dict[str, UniqueWish] = {}
    found: dict[uuid.UUID, Job | uuid.UUID] = {}
    for wish in wishes:
        if first.setdefault(wish.unique_key, wish) is not wish and Status.PENDING in wish.states:
            found[wish.job_id] = first[wish.unique_key].job_id
    rows = await work.tx.fetch(SQL.claim, work.tenant_id, list(first), [wish.job_id for wish in first.values()])
    holders = {row["unique_key"]: row["job_id"] for row in rows}
    others = {key: holder for key, holder in holders.items() if holder != first[key].job_id}
    if not others:
        return found
    rows = await work.tx.fetch(JOBS.get_many, work.tenant_id, list(set(others.values())))
    jobs = {row["job_id"]: from_row(row) for row in rows}
    free: dict[str, uuid.UUID] = {}
    now = await work.clock()
    for key, holder in others.items():
        wish = first[key]
        if holder in jobs and wish.is_met_by(jobs[holder], now):
            found[wish.job_id] = jobs[holder]
        else:
            free[key] = wish.job_id
    if free:
        await work.tx.execute(SQL.hand_over, work.tenant_id, list(free), list(free.values()))
    # Who asked for what the first did not get either has the same one.
    return {job_id: found.get(twin, twin) if isinstance(twin, uuid.UUID) else twin for job_id, twin in found.items()}
