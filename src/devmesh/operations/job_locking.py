"""In which order transactions lock what belongs to jobs, so that no two of them wait for each other in a circle.

First unique keys, then who says what waits for what (`job_dependencies.lock`), dead letters, leases, their workers, the jobs
that wait for others, and the limits of concurrency keys, all of a kind at once and sorted; last the jobs that wait for a place
or in their queues. Whoever has the limits of their keys in hand may take these in any order: nobody who waits for a limit has
one of them.

What a transaction will come to is only found step by step. So whoever ends jobs, or has them wait, takes all in hand here first
that may follow, and what is done afterwards finds it locked. A job that moves in that very moment may still be met in another
order; then PostgreSQL breaks one of them off, and it is done again.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable

from devmesh.operations.work import Work
from devmesh.store.statements import load

SQL = load("job_locking")
DEPENDENCIES = load("job_dependencies")
LOOKS_MAX = 5  # at who waits for whom, while others come to wait
FORESEEN_MAX = 20_000  # jobs that may go on or end because others have ended; more are found when it is their turn


async def take_in_hand(
    work: Work,
    ending: Collection[uuid.UUID],
    *,
    moving: Iterable[uuid.UUID] = (),
    may_end_badly: bool = True,
    keys: Collection[tuple[str, str]] = (),
    queue: str | None = None,
) -> None:
    """Locks what may follow from the end of jobs: who waits for them, and the limits of all their keys and of those `moving`.

    With a `queue` the limits of all of its keys. Leases that are to be locked are so already.
    """
    blocked = await _below(work, ending, may_end_badly=may_end_badly)
    if blocked:
        await work.tx.execute(SQL.begin_again_here)
    for tries_left in reversed(range(LOOKS_MAX if blocked else 0)):
        await work.tx.fetch(DEPENDENCIES.lock_blocked, work.tenant_id, blocked)
        now = await _below(work, ending, may_end_badly=may_end_badly)
        if not tries_left or set(now) <= set(blocked):
            break
        # Others have come to wait for these while they were locked by somebody else; now they are taken together.
        await work.tx.execute(SQL.let_go)
        blocked = now
    await lock_limits(work, [*ending, *moving, *blocked], keys, queue=queue)


async def _below(work: Work, ending: Collection[uuid.UUID], *, may_end_badly: bool) -> list[uuid.UUID]:
    rows = await work.tx.fetch(SQL.below, work.tenant_id, list(ending), may_end_badly, FORESEEN_MAX)
    return [row["job_id"] for row in rows]


async def lock_dead(work: Work, ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Locks those of these jobs that are dead letters, before anything else of jobs, and answers with them."""
    wanted = sorted(set(ids))
    return {row["job_id"] for row in await work.tx.fetch(SQL.lock_dead, work.tenant_id, wanted)} if wanted else set()


async def lock_leases(work: Work, ids: Iterable[uuid.UUID]) -> None:
    """Locks those of these jobs that workers hold. Their workers' own rows are locked after them."""
    if wanted := sorted(set(ids)):
        await work.tx.fetch(SQL.lock_held, work.tenant_id, wanted)


async def lock_limits(
    work: Work, ids: Iterable[uuid.UUID], keys: Collection[tuple[str, str]] = (), *, queue: str | None = None
) -> None:
    """Takes the limits of the keys of jobs in hand, those of other `keys`, given with their queues, and all of a `queue`."""
    columns = [name for name, _ in keys], [key for _, key in keys]
    await work.tx.fetch(SQL.lock_limits, work.tenant_id, sorted(set(ids)), *columns, queue)
