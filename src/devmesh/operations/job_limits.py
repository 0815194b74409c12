"""Jobs that share a limit: of one queue and concurrency key only so many are in their queue or in a worker's hand together.

A job with a key waits for a place before it comes into its queue, and holds it until it ends or waits again (for a retry, after
a snooze). So claims know nothing of limits, and a job without a key pays nothing. Whoever gives places has the row of the key's
limit in hand: that keeps them exact on any number of nodes.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from devmesh.core.events import Concern
from devmesh.operations.job_locking import lock_limits
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import Statement, load

SQL = load("job_limits")


class LimitedJob(NamedTuple):
    """A new job that has to have a place first."""

    job_id: uuid.UUID
    run_at: datetime.datetime
    priority: int
    queue: str
    concurrency_key: str


async def wait_for_places(
    work: Work, jobs: Sequence[LimitedJob], limits: Mapping[tuple[str, str], int], moment: datetime.datetime
) -> None:
    """New jobs wait for places, and get those that are free.

    `limits` are what the latest new job of each queue and key asks for, also of keys whose new jobs wait for others first.
    """
    if jobs:
        await work.tx.execute(
            SQL.wait, work.tenant_id, [job.job_id for job in jobs], [moment] * len(jobs), [job.run_at for job in jobs],
            [job.priority for job in jobs], [job.queue for job in jobs], [job.concurrency_key for job in jobs],
        )  # fmt: skip
    waited_for = {(job.queue, job.concurrency_key) for job in jobs}
    if others := {place: limit for place, limit in limits.items() if place not in waited_for}:
        columns = [queue for queue, _ in others], [key for _, key in others]
        rows = await work.tx.fetch(SQL.otherwise, work.tenant_id, *columns, list(others.values()))
        waited_for |= {(row["queue"], row["concurrency_key"]) for row in rows}
    if waited_for:
        await _admit(work, SQL.set, {place: limits[place] for place in waited_for})


async def leave_places(work: Work, ids: Iterable[uuid.UUID], again: Sequence[uuid.UUID] = ()) -> None:
    """Others get the places that these jobs had, which have ended or wait. Those of `again` wait for one as well."""
    left = list(await work.tx.fetch(SQL.leave, work.tenant_id, list(ids)))
    if again:
        left += await work.tx.fetch(SQL.hold_back, work.tenant_id, list(again))
    await _give_places(work, left)


async def wait_again(work: Work, ids: Iterable[uuid.UUID]) -> None:
    """This transaction has put jobs into their queues that had no place. Those of them with a key wait for one first."""
    await _give_places(work, await work.tx.fetch(SQL.hold_back, work.tenant_id, list(ids)))


async def come_due(work: Work, count_max: int) -> int:
    """The waiting whose time has come are given places. How many there were."""
    due = await work.tx.fetch(SQL.due, work.tenant_id, count_max)
    if not due:
        return 0
    await lock_limits(work, (), {(row["queue"], row["concurrency_key"]) for row in due})
    rows = await work.tx.fetch(SQL.come_due, work.tenant_id, [row["job_id"] for row in due])
    await _give_places(work, rows)
    return len(rows)


async def _give_places(work: Work, rows: Iterable[Record]) -> None:
    """The keys that these rows name may have free places."""
    limits = {(row["queue"], row["concurrency_key"]): row["concurrency_limit"] for row in rows}
    if limits:
        await _admit(work, SQL.lock, limits)


async def _admit(work: Work, lock: Statement, limits: dict[tuple[str, str], int]) -> None:
    """Takes the limits of keys in hand, and gives their free places to those that wait."""
    columns = [queue for queue, _ in limits], [key for _, key in limits]
    await work.tx.execute(lock, work.tenant_id, *columns, list(limits.values()))
    rows = await work.tx.fetch(SQL.admit, work.tenant_id, *columns)
    if rows:
        work.concerns.add(Concern.JOBS)
    else:
        await work.tx.execute(SQL.forget, work.tenant_id, *columns)
