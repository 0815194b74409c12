"""Jobs that wait for others: they are blocked until the last of those has ended well, and never stranded when one has not.

Whoever says that a job waits for another notes it at that one (`is_parent`), in the row by which it will be ended. Whoever
ends a job that has this note looks for those that wait for it. So a job without dependents costs nothing, and none is
overlooked: the note and the end are made on the same row, one after the other.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from devmesh.core import errors
from devmesh.core.ids import FIRST_ID, new_ids
from devmesh.core.jobs import ENDED_BADLY, UNDER_WAY, Outcome, Status
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import wait_again
from devmesh.operations.job_locking import SQL as LOCKING
from devmesh.operations.job_locking import lock_dead, lock_limits
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL as JOBS
from devmesh.store.jobs import from_row, json_text, lies_nowhere
from devmesh.store.statements import load

SQL = load("job_dependencies")
MARK_TRIES_MAX = 5  # a job that is moved each time that we come to mark it
PARENT_FAILED = "ParentFailed"  # the type of the error of those that fail because another did
EDGES_MAX = 20_000  # looked at in one go, from one parent
CHILDREN_MAX = 20_000  # that wait for one: they all go on, or fail, in the transaction in which it ends


class Policy(enum.StrEnum):
    """What becomes of a job when one that it waits for has failed or was cancelled."""

    FAIL = "fail"
    WAIT = "wait"
    IGNORE = "ignore"


class End(enum.Enum):
    """How a job has ended, to those that wait for it."""

    WELL = "well"
    FAILED = "failed"  # it is a dead letter, and may be replayed
    GONE = "gone"  # it was cancelled, or discarded: it will never be completed


FATES = {End.FAILED: "has failed", End.GONE: "was cancelled, or failed and was discarded"}


class Parents(msgspec.Struct):
    """What is known of jobs that others are to wait for."""

    alive: set[uuid.UUID]  # and noted as parents
    failed: set[uuid.UUID]
    priorities: dict[uuid.UUID, int]
    room: dict[uuid.UUID, int] = {}  # for how many more that wait, where it is not for all that may
    lost: set[uuid.UUID] = set()  # they have not ended, and lie nowhere, as after the loss of a table
    dead: dict[uuid.UUID, bool] = {}  # whether the failed of which this was asked are dead letters, and noted

    def take_room(self, ids: Iterable[uuid.UUID]) -> None:
        """One more waits for each of these."""
        for job_id in ids:
            self.room[job_id] = self.room.get(job_id, CHILDREN_MAX) - 1


async def mark(
    work: Work,
    ids: Iterable[uuid.UUID],
    moving: Collection[uuid.UUID] = (),
    keys: Collection[tuple[str, str]] = (),
) -> Parents:
    """Notes at those of these jobs that there are that others wait for them, wherever they are.

    Locks besides what jobs need that are `moving`, and the limits of `keys`, given with their queues: see `job_locking`.
    """
    wanted = sorted(set(ids))
    rows = await work.tx.fetch(SQL.wishes, work.tenant_id, wanted, CHILDREN_MAX)
    priorities = {row["job_id"]: row["priority"] for row in rows}
    room = {row["job_id"]: CHILDREN_MAX - row["children"] for row in rows if row["children"]}
    over = set[uuid.UUID]()
    await work.tx.execute(LOCKING.begin_again_here)
    for tries_left in reversed(range(MARK_TRIES_MAX)):
        over |= await lock_dead(work, priorities)
        alive, left = await _mark_where_they_are(work, sorted(priorities), moving, keys)
        rows = await work.tx.fetch(JOBS.get_many, work.tenant_id, left) if left else []
        now = {row["job_id"]: from_row(row).status for row in rows}
        failed = {job_id for job_id, status in now.items() if status in ENDED_BADLY}
        lost = {row["job_id"] for row in rows if now[row["job_id"]] in UNDER_WAY and lies_nowhere(row)}
        left = [job_id for job_id in left if now[job_id] in UNDER_WAY and job_id not in lost]
        if not left and (failed <= over or not tries_left):
            return Parents(alive, failed, priorities, room, lost=lost)
        over |= failed  # what has failed just now was no dead letter yet when these were locked
        # To lock leases now, after all this, would be in another order than others do it.
        await work.tx.execute(LOCKING.let_go)
    raise errors.unavailable("a job that is to be waited for is being moved all the time; try again")


async def _mark_where_they_are(
    work: Work, ids: Sequence[uuid.UUID], moving: Collection[uuid.UUID], keys: Collection[tuple[str, str]]
) -> tuple[set[uuid.UUID], list[uuid.UUID]]:
    """Looks for jobs once in each place, in the order of `job_locking`, in which they go on as well.

    Those that are marked, and the rest.
    """
    marked = {row["job_id"] for row in await work.tx.fetch(SQL.mark_held, work.tenant_id, ids)}
    left = [job_id for job_id in ids if job_id not in marked]
    if not left and not moving:
        return marked, left
    await work.tx.fetch(SQL.lock_blocked, work.tenant_id, sorted({*left, *moving}))
    marked |= {row["job_id"] for row in await work.tx.fetch(SQL.mark_blocked, work.tenant_id, left)}
    left = [job_id for job_id in left if job_id not in marked]
    await lock_limits(work, [*left, *moving], keys)
    for statement in (SQL.mark_limited, SQL.mark_ready):
        if left:
            marked |= {row["job_id"] for row in await work.tx.fetch(statement, work.tenant_id, left)}
            left = [job_id for job_id in left if job_id not in marked]
    return marked, left


class Wish(NamedTuple):
    """A job that is to wait for others."""

    job_id: uuid.UUID
    parent_ids: Sequence[uuid.UUID]
    policy: Policy


async def waits_for(work: Work, wish: Wish, parents: Parents) -> list[uuid.UUID]:
    """The parents that a job has to wait for, by its policy. It takes the room of one that waits for them.

    Raises not_found, or conflict when one has failed already, was lost, or has all the children that it may have.
    """
    parent_ids = list(dict.fromkeys(wish.parent_ids))
    if unknown := [job_id for job_id in parent_ids if job_id not in parents.priorities]:
        raise errors.not_found("job", unknown[0], "depends_on")
    if lost := [job_id for job_id in parent_ids if job_id in parents.lost]:
        raise errors.conflict(
            "job.lost",
            f"job {lost[0]}, which it would wait for, has not ended but neither waits nor runs: where it lay was lost;"
            " put it back with snapshot.restore, or enqueue it anew", "depends_on",
        )  # fmt: skip
    if crowded := [job_id for job_id in parent_ids if parents.room.get(job_id, CHILDREN_MAX) <= 0]:
        raise errors.conflict(
            "job.children_max", f"{CHILDREN_MAX:,} jobs wait for job {crowded[0]} already, which is as many as may",
            "depends_on",
        )  # fmt: skip
    failed = [job_id for job_id in parent_ids if job_id in parents.failed]
    if failed and wish.policy is Policy.FAIL:
        raise errors.conflict(
            "job.parent_failed",
            f"job {failed[0]}, which it would wait for, has ended and was not completed",
            "depends_on",
        )
    kept: list[uuid.UUID] = []
    if failed and wish.policy is Policy.WAIT:
        await _mark_dead(work, [job_id for job_id in failed if job_id not in parents.dead], parents)
        kept = [job_id for job_id in failed if parents.dead[job_id]]
        if len(kept) < len(failed):
            raise errors.conflict(
                "job.parent_failed",
                "a job that it would wait for has failed and is no dead letter any more: it cannot be replayed", "depends_on",
            )  # fmt: skip
    waited_for = [*(job_id for job_id in parent_ids if job_id in parents.alive), *kept]
    parents.take_room(waited_for)
    return waited_for


async def _mark_dead(work: Work, ids: Sequence[uuid.UUID], parents: Parents) -> None:
    """Notes at those of these jobs that are dead letters that others wait for them, once for all that do."""
    if ids:
        rows = await work.tx.fetch(SQL.mark_dead, work.tenant_id, ids)
        parents.dead |= {**dict.fromkeys(ids, False), **{row["job_id"]: True for row in rows}}


async def block(work: Work, rows: Sequence[Record], policies: Mapping[uuid.UUID, Policy]) -> None:
    """Has jobs wait for others that this transaction has taken from where they waited, as those rows were."""
    columns = ("job_id", "created_at", "run_at", "attempt", "retries", "priority", "is_parent", "queue")
    await work.tx.execute(
        SQL.block, work.tenant_id, *([row[name] for row in rows] for name in columns),
        [policies[row["job_id"]].value for row in rows],
    )  # fmt: skip


async def settle(work: Work, ids: Iterable[uuid.UUID], end: End) -> None:
    """Lets those go on, or end, that have waited for jobs which have just ended so."""
    left = dict.fromkeys(ids, end)
    while left:
        failed: list[uuid.UUID] = []
        async for edges in _edges(work, sorted(left)):
            failed += await _settle_each(work, left, edges)
        left = dict.fromkeys(failed, End.FAILED)


async def _edges(work: Work, parent_ids: Sequence[uuid.UUID]) -> AsyncIterator[Sequence[Record]]:
    """Who waits for these jobs, some at a time: all that a child waits for comes together."""
    after = FIRST_ID
    while edges := await work.tx.fetch(SQL.children, work.tenant_id, parent_ids, after, EDGES_MAX):
        if len(edges) < EDGES_MAX:
            yield edges
            return
        last: uuid.UUID = edges[-1]["child_id"]  # there may be more of it: it comes again, unless it is all there is
        yield [edge for edge in edges if edge["child_id"] != last] or edges
        after = last if edges[0]["child_id"] != last else uuid.UUID(int=last.int + 1)


async def _settle_each(work: Work, ends: dict[uuid.UUID, End], edges: Sequence[Record]) -> list[uuid.UUID]:
    """What some edges mean to those that wait: which of these have failed, and others wait for them in turn."""
    children = sorted({row["child_id"] for row in edges})
    blocked = {row["job_id"]: row for row in await work.tx.fetch(SQL.lock_blocked, work.tenant_id, children)}
    gone: list[Record] = []
    doomed: dict[uuid.UUID, uuid.UUID] = {}
    for edge in edges:
        child = blocked.get(edge["child_id"])
        if child is None:
            continue
        if ends[edge["parent_id"]] is End.WELL or child["policy"] == Policy.IGNORE:
            gone.append(edge)
        elif ends[edge["parent_id"]] is End.GONE or child["policy"] == Policy.FAIL:
            doomed[edge["child_id"]] = edge["parent_id"]
    if gone:
        pairs = [edge["parent_id"] for edge in gone], [edge["child_id"] for edge in gone]
        await work.tx.execute(SQL.remove, work.tenant_id, *pairs)
    free = [job_id for job_id in dict.fromkeys(edge["child_id"] for edge in gone) if job_id not in doomed]
    await unblock(work, free)
    passing_on = [job_id for job_id in doomed if blocked[job_id]["is_parent"]]
    return await _fail(work, await _doomed_below(work, passing_on) | doomed, ends)


async def _doomed_below(work: Work, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """Those that fail because these jobs do, each with the one that it fails for, through whatever number of others.

    A chain of thousands would take a transaction too long step by step. Who comes to wait for one of them meanwhile, or is
    too many for one go, is found by the next look at those that wait for them.
    """
    if not ids:
        return {}
    rows = await work.tx.fetch(SQL.doomed_below, work.tenant_id, sorted(ids), EDGES_MAX)
    if not (below := sorted({row["job_id"] for row in rows}.difference(ids))):
        return {}
    locked = await work.tx.fetch(SQL.lock_blocked, work.tenant_id, below)
    left = {row["job_id"] for row in locked if row["policy"] == Policy.FAIL}  # it may have been changed meanwhile
    children: dict[uuid.UUID, list[uuid.UUID]] = {}
    async for edges in _edges(work, sorted([*ids, *left])):
        for edge in edges:
            if edge["child_id"] in left:
                children.setdefault(edge["parent_id"], []).append(edge["child_id"])
    doomed: dict[uuid.UUID, uuid.UUID] = {}
    parents = list(ids)
    for parent_id in parents:  # which grows
        for child_id in children.get(parent_id, ()):
            if child_id not in doomed:
                doomed[child_id] = parent_id
                parents.append(child_id)
    return doomed


async def unblock(work: Work, ids: Sequence[uuid.UUID]) -> None:
    """Puts those of these jobs into their queues that wait for nobody any more."""
    if not ids:
        return
    waiting = {row["job_id"] for row in await work.tx.fetch(SQL.still_waiting, work.tenant_id, list(ids))}
    rows = await work.tx.fetch(SQL.unblock, work.tenant_id, [job_id for job_id in ids if job_id not in waiting])
    if limited := [row["job_id"] for row in rows if row["is_limited"]]:
        await wait_again(work, limited)
    moved = [(row["queue"], patch(row["job_id"], row["attempt"], run_at=row["run_at"])) for row in rows]
    tell(work, "job.unblocked", moved, Status.PENDING)


async def _fail(work: Work, doomed: dict[uuid.UUID, uuid.UUID], ends: dict[uuid.UUID, End]) -> list[uuid.UUID]:
    """Fails jobs because the one that they waited for has: those of them that others wait for."""
    whys = {
        child_id: {
            "type": PARENT_FAILED, "job_id": parent_id,
            "message": f"job {parent_id}, which it waited for, {FATES[ends.get(parent_id, End.FAILED)]}",
        }
        for child_id, parent_id in doomed.items()
    }  # fmt: skip
    return await end_blocked(work, whys, Outcome.FAILED) if whys else []


async def end_blocked(work: Work, whys: Mapping[uuid.UUID, dict[str, Any]], outcome: Outcome) -> list[uuid.UUID]:
    """Ends jobs that wait for others, each for its reason, and answers with those of them that others wait for."""
    letters = new_ids(len(whys)) if outcome is Outcome.FAILED else None
    rows = await work.tx.fetch(
        SQL.end_blocked, work.tenant_id, list(whys), outcome.value, [json_text(why) for why in whys.values()], letters
    )
    await work.tx.execute(SQL.forget_children, work.tenant_id, [row["job_id"] for row in rows])
    status = Status.FAILED if outcome is Outcome.FAILED else Status.CANCELLED
    event_type = "job.failed" if outcome is Outcome.FAILED else "job.cancelled"
    tell(work, event_type, [(row["queue"], patch(row["job_id"], row["attempt"])) for row in rows], status)
    return [row["job_id"] for row in rows if row["is_parent"]]
