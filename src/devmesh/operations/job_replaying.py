"""Puts jobs that are over back to work: one of a unique key at a time, and behind those that they had waited for.

Who is cancelled while it waits, or fails because another did, remembers in its error whom it was waiting for. Put back
together, in whatever order they are named, they run in the order that was asked for.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from devmesh.core import errors
from devmesh.core.jobs import Job, Outcome, Status
from devmesh.operations.job_circles import without_circles
from devmesh.operations.job_dependencies import PARENT_FAILED, End, Parents, Policy, block, mark, settle
from devmesh.operations.job_dependencies import SQL as DEPENDENCIES
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import wait_again
from devmesh.operations.job_locking import lock_dead
from devmesh.operations.job_uniqueness import under_way
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.statements import Statement, load

SQL = load("dead_letters")
KEY_TAKEN = "job.unique_key"  # the reason of a refusal
DRAIN_RETRY_MS = 5_000


class Replayed(NamedTuple):
    """The jobs that are back, and those that stay as they are, each with another of its unique key that is under way."""

    job_ids: list[uuid.UUID]
    refused: dict[uuid.UUID, uuid.UUID]


class Rest(NamedTuple):
    """Dead letters to which a replay in steps comes later: of a queue or a type, as far as these are given, between two ids."""

    queue: str | None
    type: str | None
    up_to: uuid.UUID
    after: uuid.UUID


async def replay(work: Work, job_ids: Sequence[uuid.UUID], rest: Rest | None) -> Replayed:
    """Those of the jobs that are dead letters. They wait for those of the rest, too, for which they had waited."""
    keys = {row["job_id"]: row["unique_key"] for row in await work.tx.fetch(SQL.unique_keys, work.tenant_id, job_ids)}
    return await _put_back(work, job_ids, keys, SQL.replay, rest)


async def retry(work: Work, job: Job) -> Replayed:
    """One that has failed or was cancelled, unless it has come back meanwhile."""
    keys = {job.id: job.unique_key} if job.unique_key is not None else {}
    replayed = await _put_back(work, [job.id], keys, SQL.replay)
    return replayed if any(replayed) else await _put_back(work, [job.id], keys, SQL.revive)


async def _put_back(
    work: Work,
    job_ids: Sequence[uuid.UUID],
    keys: Mapping[uuid.UUID, str],
    statement: Statement,
    rest: Rest | None = None,
) -> Replayed:
    """`statement` puts those of the jobs into their queues that it is made for."""
    refused = await under_way(work, keys) if keys else {}
    # Before any job is locked, as those take it who say what waits for what.
    await work.tx.execute(DEPENDENCIES.lock, work.tenant_id)
    await lock_dead(work, job_ids)
    await settle(work, refused, End.FAILED)  # an earlier step may have had others wait for these
    rows = await work.tx.fetch(statement, work.tenant_id, [job_id for job_id in job_ids if job_id not in refused])
    await refuse_while_drained(work, [row["job_id"] for row in rows])
    # One that others had given a higher priority, or that was promoted, may have its own again.
    moved = [(row["queue"], {"id": row["job_id"], "retry_count": 0, "priority": row["priority"]}) for row in rows]
    tell(work, "job.replayed", moved, Status.PENDING)
    blocked = await _behind_parents(work, rows, rest)
    if free := [row["job_id"] for row in rows if row["job_id"] not in blocked]:
        await wait_again(work, free)
    return Replayed([row["job_id"] for row in rows], refused)


async def refuse_while_drained(work: Work, job_ids: Sequence[uuid.UUID]) -> None:
    """Asked when their attempts were changed. Raises unavailable if that may be lost."""
    if job_ids and await work.tx.fetch_value(SQL.are_being_drained, work.tenant_id, job_ids):
        raise errors.unavailable(
            "how these jobs have ended is being moved to the partition of its month; nothing was changed: try again",
            DRAIN_RETRY_MS,
        )


async def _behind_parents(work: Work, rows: Sequence[Record], rest: Rest | None) -> set[uuid.UUID]:
    """Has jobs that ended while they waited wait again for the same, as far as that is to be completed. Which do."""
    waited = await _waited(work, rows)
    if not waited:
        return set()
    parent_ids = {parent_id for each in waited.values() for parent_id in each.parent_ids}
    parents = await mark(work, parent_ids, [row["job_id"] for row in rows])
    wanted = await _wanted(work, waited, parents, rest)
    edges = await without_circles(work, wanted)
    await work.tx.execute(
        DEPENDENCIES.add, work.tenant_id, [parent_id for parent_id, _ in edges], [job_id for _, job_id in edges]
    )
    policies = {job_id: waited[job_id].on_parent_failure for _, job_id in edges}
    await _block(work, policies)
    return set(policies)


async def _waited(work: Work, rows: Sequence[Record]) -> dict[uuid.UUID, _Waited]:
    """Those that ended while they waited. What had begun has the error of its handler, which may say anything."""
    found = {row["job_id"]: each for row in rows if (each := _Waited.of(row["error"], row["outcome"])) is not None}
    attempts = [row["attempt"] for row in rows if row["job_id"] in found]
    begun = await work.tx.fetch(SQL.begun, work.tenant_id, list(found), attempts) if found else []
    for row in begun:
        del found[row["job_id"]]
    return found


async def _wanted(
    work: Work, waited: Mapping[uuid.UUID, _Waited], parents: Parents, rest: Rest | None
) -> dict[uuid.UUID, list[uuid.UUID]]:
    """For whom each of the jobs is to wait that ended while it waited."""
    patient = {job_id for job_id, each in waited.items() if each.on_parent_failure is Policy.WAIT}
    dead = {parent_id for job_id in patient for parent_id in waited[job_id].parent_ids} & parents.failed
    rows = await work.tx.fetch(DEPENDENCIES.mark_dead, work.tenant_id, sorted(dead)) if dead else []
    kept = {row["job_id"] for row in rows}
    due = parents.alive | parents.lost  # which may still be put back
    if rest is not None and parents.failed:
        due |= {
            row["job_id"] for row in await work.tx.fetch(SQL.mark_due, work.tenant_id, sorted(parents.failed), *rest)
        }
    return {
        job_id: [
            parent_id for parent_id in each.parent_ids if parent_id in due or (parent_id in kept and job_id in patient)
        ]
        for job_id, each in waited.items()
    }


async def _block(work: Work, policies: dict[uuid.UUID, Policy]) -> None:
    """Takes jobs, which this transaction has put into their queues, out again, to wait for others."""
    if not policies:
        return
    rows = await work.tx.fetch(DEPENDENCIES.take_ready, work.tenant_id, list(policies))
    await block(work, rows, policies)
    tell(work, "job.blocked", [(row["queue"], patch(row["job_id"], row["attempt"])) for row in rows], Status.PENDING)


class _Waited(msgspec.Struct):
    """What the error of a job says that was cancelled while it waited for others, or failed because one of them did."""

    waited_for: list[uuid.UUID]
    on_parent_failure: Policy
    type: str = ""

    @property
    def parent_ids(self) -> list[uuid.UUID]:
        return list(dict.fromkeys(self.waited_for))

    @classmethod
    def of(cls, error: Any, outcome: str) -> _Waited | None:
        """None of any other error: they are whatever handlers make them."""
        if error is None or "waited_for" not in error:
            return None
        try:
            found = msgspec.json.decode(error, type=cls)
        except msgspec.MsgspecError:
            return None
        return found if outcome == Outcome.CANCELLED or found.type == PARENT_FAILED else None
