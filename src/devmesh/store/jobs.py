"""Jobs between their tables and the structs that every wire shows."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from devmesh.core.jobs import ENDED_AS, ClaimedJob, Execution, Job, Outcome, Status
from devmesh.store.database import Record, Transaction
from devmesh.store.statements import load

SQL = load("jobs")


# Without their times, which the database gives: one costs the driver more than all the rest of a row.
JOB_COLUMNS = (
    "tenant_id", "job_id", "created_by_key_id", "timeout_ms", "backoff_ms", "max_retries", "priority", "queue", "type",
    "payload", "tags", "unique_key", "concurrency_key", "concurrency_limit",
)  # fmt: skip
READY_COLUMNS = ("tenant_id", "job_id", "priority", "queue")
PROGRESS_DIGITS = 6
Rows = Sequence[tuple[Any, ...]]
Times = Sequence[datetime.datetime]
EventLists = tuple[list[str], list[str], list[str]]  # of each event the type, its topics joined by commas, and its data
NO_EVENTS: EventLists = ([], [], [])


class Keyed(NamedTuple):
    """Idempotency keys of one operation, in order, with the hash and the answer of each one's call.

    `SEPARATOR` stands in an answer for the moment that the statement tells.
    """

    operation: str = ""
    keys: Sequence[str] = ()
    hashes: Sequence[bytes] = ()
    answers: Sequence[str] = ()


async def insert_ready(tx: Transaction, tenant_id: uuid.UUID, rows: Rows) -> datetime.datetime:
    """Writes a few new jobs that may run at once, and puts them into their queues. Answers with when that was.

    Of each the `JOB_COLUMNS` from its id to its unique key, the tags in one text, joined by `SEPARATOR`.
    """
    moment: datetime.datetime = await tx.fetch_value(
        SQL.enqueue, tenant_id, *zip(*rows, strict=True), *Keyed(), *NO_EVENTS
    )
    return moment


async def insert_ready_at_once(
    tx: Transaction, tenant_id: uuid.UUID, rows: Rows, keyed: Keyed, events: EventLists
) -> datetime.datetime | None:
    """The same, with keys and events, as all that there is to do. None: a key was used before, and nothing was done."""
    [row] = await tx.fetch_whole(SQL.enqueue, tenant_id, *zip(*rows, strict=True), *keyed, *events)
    moment: datetime.datetime | None = row["moment"]
    return moment


async def copy_jobs(tx: Transaction, rows: Rows, run_at: Times | None) -> None:
    """Writes what was asked for: `JOB_COLUMNS` of each new job, and when it is to run, if that is not at once."""
    await _copy(tx, "jobs", JOB_COLUMNS, rows, run_at)


async def copy_ready(tx: Transaction, rows: Rows, run_at: Times | None) -> None:
    """Puts new jobs into their queues: `READY_COLUMNS` of each, and when it is to run, if that is not at once."""
    await _copy(tx, "jobs_ready", READY_COLUMNS, rows, run_at)


async def _copy(tx: Transaction, table: str, columns: tuple[str, ...], rows: Rows, run_at: Times | None) -> None:
    if run_at is None:
        await tx.copy(table, columns, rows)
    else:
        await tx.copy(table, (*columns, "run_at"), ((*row, at) for row, at in zip(rows, run_at, strict=True)))


def raw(text: str | None) -> Raw | None:
    return Raw(text) if text is not None else None


def from_row(row: Record) -> Job:
    """A row of `jobs.get_many`: where the job is says what state it is in."""
    job: dict[str, Any] = {
        "id": row["job_id"], "queue": row["queue"], "type": row["type"], "payload": Raw(row["payload"]),
        "tags": row["tags"] or [], "unique_key": row["unique_key"],
        "concurrency_key": row["concurrency_key"], "concurrency_limit": row["concurrency_limit"],
        "max_retries": row["max_retries"], "timeout_ms": row["timeout_ms"], "backoff_ms": row["backoff_ms"],
        "created_at": row["created_at"], "created_by_key_id": row["created_by_key_id"],
        "priority": row["priority"], "progress": None, "progress_message": None, "is_cancel_requested": False,
        "result": None, "error": raw(row["error"]), "run_at": row["run_at"], "lease_until": None, "worker_id": None,
        "started_at": None, "finished_at": None, "attempt": row["latest_attempt"] or 0, "retry_count": 0,
    }  # fmt: skip
    if row["held_by"] is not None:
        job |= {
            "status": Status.PROCESSING, "worker_id": row["held_by"], "attempt": row["held_attempt"],
            "retry_count": row["held_retries"], "priority": row["held_priority"], "started_at": row["held_since"],
            "lease_until": row["lease_until"], "progress": _progress(row["progress"]),
            "progress_message": row["progress_message"], "is_cancel_requested": row["cancel_requested_at"] is not None,
        }  # fmt: skip
    elif row["blocked_attempt"] is not None:
        job |= {
            "status": Status.PENDING, "run_at": row["blocked_run_at"], "priority": row["blocked_priority"],
            "attempt": row["blocked_attempt"], "retry_count": row["blocked_retries"],
        }  # fmt: skip
    elif row["limited_attempt"] is not None:
        job |= {
            "status": Status.PENDING, "run_at": row["next_run_at"] or row["run_at"], "priority": row["limited_priority"],
            "attempt": row["limited_attempt"], "retry_count": row["limited_retries"],
        }  # fmt: skip
    elif row["ready_at"] is not None:
        job |= {
            "status": Status.PENDING, "run_at": row["next_run_at"] or row["run_at"], "priority": row["ready_priority"],
            "attempt": row["ready_attempt"], "retry_count": row["ready_retries"],
        }  # fmt: skip
    else:
        job |= {
            "status": ENDED_AS.get(Outcome(row["outcome"]), Status.PENDING) if row["outcome"] else Status.PENDING,
            "worker_id": row["latest_worker"], "result": raw(row["result"]), "started_at": row["latest_started_at"],
            "finished_at": row["latest_finished_at"], "retry_count": row["latest_retries"] or 0,
            "priority": row["dead_priority"] or row["priority"],
        }  # fmt: skip
    return Job(**job)


def lies_nowhere(row: Record) -> bool:
    """Whether a job, as a row of `jobs.get_many`, neither waits nor runs anywhere: it has ended, or where it lay was lost."""
    places = ("held_by", "blocked_attempt", "limited_attempt", "ready_at")
    return all(row[name] is None for name in places)


def _progress(stored: float | None) -> float | None:
    """As it was said: it is kept in four bytes, which make 0.2 a little more."""
    return round(stored, PROGRESS_DIGITS) if stored is not None else None


def claimed_from_row(row: Record, lease_until: datetime.datetime) -> ClaimedJob:
    """A row of `jobs.claim`, read by its order: by names it takes twice as long."""
    _, id_, queue, type_, payload, priority, attempt, retry_count, max_retries, timeout_ms, tags, created_at, _ = row
    return ClaimedJob(
        id=id_, queue=queue, type=type_, payload=Raw(payload), priority=priority, attempt=attempt, retry_count=retry_count,
        max_retries=max_retries, timeout_ms=timeout_ms, tags=tags or [], created_at=created_at, lease_until=lease_until,
    )  # fmt: skip


def execution_from_row(row: Record) -> Execution:
    started_at, finished_at = row["started_at"], row["finished_at"]
    return Execution(
        attempt=row["attempt"], worker_id=row["worker_id"], outcome=Outcome(row["outcome"]), result=raw(row["result"]),
        error=raw(row["error"]), started_at=started_at, finished_at=finished_at, next_run_at=row["next_run_at"],
        duration_ms=(finished_at - started_at).total_seconds() * 1000 if started_at is not None else None,
    )  # fmt: skip


def json_text(value: msgspec.Struct | dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()
