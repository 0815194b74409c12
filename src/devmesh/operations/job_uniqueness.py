"""Jobs of which there is to be one: whoever asks for another gets the one that there is."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from devmesh.core.jobs import UNDER_WAY, Job, Status
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


class Claimed(NamedTuple):
    """Unique keys that this transaction has in hand, for what, and who has had them: in `latest` if that job is kept."""

    wishes: Sequence[UniqueWish]
    holders: dict[str, uuid.UUID]
    latest: dict[str, Job]
    now: datetime.datetime | None


class Judged(NamedTuple):
    """`twins`: of the jobs that are not to be enqueued, those that there are instead, known ones or others of the wishes."""

    twins: dict[uuid.UUID, Job | uuid.UUID]
    accepted: dict[str, uuid.UUID]


async def take_keys(work: Work, wishes: Sequence[UniqueWish]) -> Claimed:
    """Takes the keys of wishes in hand. It comes before all that is locked of jobs: see `job_locking`."""
    first: dict[str, UniqueWish] = {}
    for wish in wishes:
        first.setdefault(wish.unique_key, wish)
    rows = await work.tx.fetch(SQL.claim, work.tenant_id, list(first), [wish.job_id for wish in first.values()])
    holders = {row["unique_key"]: row["job_id"] for row in rows}
    latest = await _known(work, {key: holder for key, holder in holders.items() if holder != first[key].job_id})
    return Claimed(wishes, holders, latest, await work.clock() if latest else None)


def judge(claimed: Claimed, refused: Collection[uuid.UUID]) -> Judged:
    """Each wish is judged by the latest job of its key, which may be that of the wish before it. Those `refused` are none."""
    now, accepted = claimed.now, dict[str, uuid.UUID]()
    found: dict[uuid.UUID, Job | uuid.UUID] = {}
    for wish in claimed.wishes:
        if wish.job_id in refused:
            continue
        before, job = accepted.get(wish.unique_key), claimed.latest.get(wish.unique_key)
        if before is not None and Status.PENDING in wish.states:
            found[wish.job_id] = before
        elif before is None and job is not None and now is not None and wish.is_met_by(job, now):
            found[wish.job_id] = job
        else:
            accepted[wish.unique_key] = wish.job_id
    return Judged(found, accepted)


async def hand_over(work: Work, claimed: Claimed, accepted: Mapping[str, uuid.UUID]) -> None:
    """The jobs that are enqueued have their keys from now on. What a refused one has taken is nobody's again."""
    if new := {key: job_id for key, job_id in accepted.items() if claimed.holders[key] != job_id}:
        await work.tx.execute(SQL.hand_over, work.tenant_id, list(new), list(new.values()))
    wished = {wish.job_id for wish in claimed.wishes}
    if left := [key for key, holder in claimed.holders.items() if holder in wished and key not in accepted]:
        await work.tx.execute(SQL.give_back, work.tenant_id, left)


async def under_way(work: Work, keys: Mapping[uuid.UUID, str]) -> dict[uuid.UUID, uuid.UUID]:
    """Which of jobs that are to run again, given with their keys, must not: another of the key is under way, namely that.

    The others have their keys from now on. Of several with one key it is the first.
    """
    first: dict[str, uuid.UUID] = {}
    for job_id, key in keys.items():
        first.setdefault(key, job_id)
    rows = await work.tx.fetch(SQL.claim, work.tenant_id, list(first), list(first.values()))
    holders = {row["unique_key"]: row["job_id"] for row in rows}
    latest = await _known(work, {key: holder for key, holder in holders.items() if holder != first[key]})
    alive = {key: job.id for key, job in latest.items() if job.status in UNDER_WAY}
    if new := {key: job_id for key, job_id in first.items() if key not in alive and holders[key] != job_id}:
        await work.tx.execute(SQL.hand_over, work.tenant_id, list(new), list(new.values()))
    takers = {**first, **alive}
    return {job_id: takers[key] for job_id, key in keys.items() if takers[key] != job_id}


async def strangers(
    work: Work, keys: Mapping[uuid.UUID, str], together: Collection[uuid.UUID], *, takes: bool
) -> dict[uuid.UUID, uuid.UUID]:
    """Which of jobs that are to be as they were, given with their keys, must not: another, which was none of those that were
    under way `together` with them, is so with its key by now, namely that.

    If it `takes` them, the others have their keys from now on. Of several with one key it is the last.
    """
    last = {keys[job_id]: job_id for job_id in sorted(keys)}
    rows = (
        await work.tx.fetch(SQL.claim, work.tenant_id, list(last), list(last.values()))
        if takes
        else await work.tx.fetch(SQL.holders, work.tenant_id, list(last))
    )
    others = {row["unique_key"]: row["job_id"] for row in rows if row["job_id"] != last[row["unique_key"]]}
    latest = await _known(work, others)
    alive = {key: job.id for key, job in latest.items() if job.status in UNDER_WAY and job.id not in keys}
    if takes and (new := {key: last[key] for key in others if key not in alive}):
        await work.tx.execute(SQL.hand_over, work.tenant_id, list(new), list(new.values()))
    return {job_id: alive[key] for job_id, key in keys.items() if key in alive and alive[key] not in together}


async def _known(work: Work, holders: dict[str, uuid.UUID]) -> dict[str, Job]:
    """The jobs that have keys, as far as they are kept."""
    if not holders:
        return {}
    rows = await work.tx.fetch(JOBS.get_many, work.tenant_id, list(set(holders.values())))
    jobs = {row["job_id"]: from_row(row) for row in rows}
    return {key: jobs[holder] for key, holder in holders.items() if holder in jobs}
