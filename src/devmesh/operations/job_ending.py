"""How attempts end other than well: the jobs are locked, core says how each goes on, and one statement writes it."""

from __future__ import annotations

import collections
import random
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from devmesh.core import jobs
from devmesh.core.ids import new_ids
from devmesh.core.jobs import Ending, Held, Outcome, Status
from devmesh.operations.job_dependencies import End, settle
from devmesh.operations.job_events import patch, tell
from devmesh.operations.job_limits import leave_places
from devmesh.operations.job_locking import take_in_hand
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.jobs import SQL, json_text
from devmesh.store.statements import load

AS_THEY_WERE = ("created_at", "started_at", "worker_id", "attempt", "priority", "queue", "type", "is_parent")
FAILURES = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.LEASE_LOST)
WORKERS = load("workers")
_random = random.SystemRandom()
EVENTS = {
    Outcome.FAILED: "job.failed",
    Outcome.TIMED_OUT: "job.failed",
    Outcome.LEASE_LOST: "job.failed",
    Outcome.CANCELLED: "job.cancelled",
}


class HeldRow(NamedTuple):
    """A job that this transaction has locked in the hand of a worker."""

    row: Record
    held: Held

    def unless_cancelled(self, ending: Ending) -> Ending:
        """How the attempt ends: one that has been asked to stop is over, whatever is said of it."""
        return jobs.cancelled(self.held) if self.is_to_stop else ending

    @property
    def is_to_stop(self) -> bool:
        return self.row["cancel_requested_at"] is not None

    def error_text(self, otherwise: str | None) -> str | None:
        """What its execution says, as JSON: of one that has been asked to stop, why it was."""
        if not self.is_to_stop:
            return otherwise
        return json_text({"message": self.row["cancel_reason"] or "it was cancelled"})


class Ended(NamedTuple):
    """A job whose attempt has ended."""

    job_id: uuid.UUID
    queue: str
    attempt: int
    ending: Ending

    @property
    def status(self) -> Status:
        return Status.PENDING if self.ending.next_run_at is not None else jobs.ENDED_AS[self.ending.outcome]


def jitter() -> float:
    return _random.uniform(-1, 1)


async def lock_held(work: Work, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, HeldRow]:
    """Locks jobs that workers hold; those that are not held any more are not among them."""
    rows = await work.tx.fetch(SQL.lock_leases, work.tenant_id, sorted(set(ids)))
    return {row["job_id"]: HeldRow(row, _held(row)) for row in rows}


async def end_held(
    work: Work,
    ids: Iterable[uuid.UUID],
    decide: Callable[[HeldRow], Ending | None],
    error: dict[str, Any] | None = None,
) -> list[Ended]:
    """Ends the attempts of those of these jobs that are still held, as `decide` says or as cancelled, all with one error.

    Those of which it says nothing go on.
    """
    locked = await lock_held(work, ids)
    endings = {
        job_id: held.unless_cancelled(ending) for job_id, held in locked.items() if (ending := decide(held)) is not None
    }
    text = json_text(error) if error is not None else None
    errors = {job_id: held.error_text(text) for job_id, held in locked.items()}
    return await write_endings(work, locked, endings, errors)


async def write_endings(
    work: Work, locked: dict[uuid.UUID, HeldRow], endings: dict[uuid.UUID, Ending], errors: dict[uuid.UUID, str | None]
) -> list[Ended]:
    """Writes how the attempts of locked jobs have ended, and tells of it."""
    if not endings:
        return []
    await work.tx.execute(
        SQL.end_attempts, work.tenant_id, list(endings),
        [ending.outcome.value for ending in endings.values()],
        [errors[job_id] for job_id in endings],
        [ending.next_run_at for ending in endings.values()],
        [ending.retries for ending in endings.values()],
        [ending.is_dead for ending in endings.values()],
        *([locked[job_id].row[name] for job_id in endings] for name in AS_THEY_WERE),
        new_ids(len(endings)),
    )  # fmt: skip
    ended = [
        Ended(job_id, locked[job_id].row["queue"], locked[job_id].held.attempt, ending)
        for job_id, ending in endings.items()
    ]
    _tell(work, ended)
    failed = collections.Counter(
        locked[job_id].row["worker_id"] for job_id, ending in endings.items() if ending.outcome in FAILURES
    )
    if failed:
        await work.tx.execute(WORKERS.note_failures, work.tenant_id, list(failed), list(failed.values()))
    limited = {
        job_id: ending for job_id, ending in endings.items() if locked[job_id].row["concurrency_key"] is not None
    }
    over = [each for each in ended if each.ending.next_run_at is None and locked[each.job_id].row["is_parent"]]
    if over:
        await take_in_hand(work, [each.job_id for each in over], moving=limited)
    if limited:
        await leave_places(
            work, limited, [job_id for job_id, ending in limited.items() if ending.next_run_at is not None]
        )
    await settle(work, [each.job_id for each in over if each.ending.is_dead], End.FAILED)
    await settle(work, [each.job_id for each in over if not each.ending.is_dead], End.GONE)
    return ended


def _tell(work: Work, ended: Iterable[Ended]) -> None:
    groups: dict[tuple[str, Status], list[Ended]] = {}
    for each in ended:
        if each.ending.next_run_at is None:
            event_type = EVENTS[each.ending.outcome]
        elif each.ending.outcome in EVENTS:
            event_type = "job.retrying"
        else:
            event_type = "job.released"
        groups.setdefault((event_type, each.status), []).append(each)
    for (event_type, status), members in groups.items():
        moved = [
            (
                each.queue,
                patch(
                    each.job_id, each.attempt, retry_count=each.ending.retries, outcome=each.ending.outcome,
                    **({"run_at": each.ending.next_run_at} if each.ending.next_run_at is not None else {}),
                ),
            )
            for each in members
        ]  # fmt: skip
        tell(work, event_type, moved, status)


def _held(row: Record) -> Held:
    return Held(row["attempt"], row["retries"], row["max_retries"], row["backoff_ms"])
