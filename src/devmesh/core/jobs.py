"""A job and how it goes on when an attempt has ended.

Where a job is, is its state: it waits in a queue, a worker holds it, or its latest execution says how it ended. `attempt` is
the fencing token: it rises with each claim, so that a holder of an older attempt can never write again. Pure: must not know
rows or clocks.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw

from devmesh.core.names import PLAIN

PRIORITY_DEFAULT = 3
MAX_RETRIES_DEFAULT = 3
TIMEOUT_MS_DEFAULT = 300_000
DELAY_MS_MAX = 366 * 86_400_000  # a leap year: how far a job can be put off
BACKOFF_MS_DEFAULT = 1_000
BACKOFF_MS_MAX = 60_000
BACKOFF_JITTER = 0.2  # each way
LEASE_S_MIN, LEASE_S_MAX = 0.5, 86_400.0
CAPACITY_MAX = 10_000  # of a worker

QueueName = Annotated[str, Meta(min_length=1, max_length=100, pattern=PLAIN)]


class Status(enum.StrEnum):
    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


UNDER_WAY = (Status.PENDING, Status.PROCESSING)
ENDED_BADLY = (Status.FAILED, Status.CANCELLED)


class Outcome(enum.StrEnum):
    """How an attempt ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    LEASE_LOST = "LEASE_LOST"
    RELEASED = "RELEASED"
    SNOOZED = "SNOOZED"
    CANCELLED = "CANCELLED"
    UNBLOCKED = "UNBLOCKED"  # no attempt: what it waited for had ended


ENDED_AS = {
    Outcome.COMPLETED: Status.COMPLETED,
    Outcome.FAILED: Status.FAILED,
    Outcome.TIMED_OUT: Status.FAILED,
    Outcome.LEASE_LOST: Status.FAILED,
    Outcome.CANCELLED: Status.CANCELLED,
}


class Job(msgspec.Struct, kw_only=True):
    """A job as every wire shows it. `payload`, `result` and `error` are the caller's own JSON; `attempt` is the latest."""

    id: uuid.UUID
    queue: str
    type: str
    status: Status
    payload: Raw
    priority: int  # 5 first
    tags: list[str]
    unique_key: str | None
    concurrency_key: str | None
    concurrency_limit: int | None
    attempt: int  # 0: it was never claimed
    retry_count: int
    max_retries: int
    timeout_ms: int
    backoff_ms: int
    worker_id: uuid.UUID | None
    progress: float | None
    progress_message: str | None
    is_cancel_requested: bool
    result: Raw | None
    error: Raw | None
    run_at: datetime.datetime  # when it may run, or might
    lease_until: datetime.datetime | None
    created_at: datetime.datetime
    created_by_key_id: uuid.UUID
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None


class ClaimedJob(msgspec.Struct, kw_only=True):
    """What a worker needs to know of a job that it is given. `attempt` must come back with each report."""

    id: uuid.UUID
    queue: str
    type: str
    payload: Raw
    priority: int
    attempt: int
    retry_count: int
    max_retries: int
    timeout_ms: int
    tags: list[str]
    created_at: datetime.datetime
    lease_until: datetime.datetime


class Execution(msgspec.Struct, kw_only=True):
    """An attempt that has ended. `next_run_at` is when the job goes on; null: it does not."""

    attempt: int
    worker_id: uuid.UUID | None
    outcome: Outcome
    result: Raw | None
    error: Raw | None
    started_at: datetime.datetime | None
    finished_at: datetime.datetime
    duration_ms: float | None
    next_run_at: datetime.datetime | None


class Ending(NamedTuple):
    """What becomes of a job when an attempt ends: it goes on at a time, or it is over, perhaps as a dead letter."""

    outcome: Outcome
    next_run_at: datetime.datetime | None
    retries: int
    is_dead: bool


class Held(NamedTuple):
    """What decides how a job goes on."""

    attempt: int
    retries: int
    max_retries: int
    backoff_ms: int


def after_failure(held: Held, outcome: Outcome, *, is_retryable: bool, now: datetime.datetime, jitter: float) -> Ending:
    """An attempt failed, ran out of time, or lost its lease. `jitter` is a random number between -1 and 1."""
    retries = held.retries + 1
    if not is_retryable or retries > held.max_retries:
        return Ending(outcome, None, held.retries, is_dead=True)
    pause_ms = min(held.backoff_ms * 2.0**held.retries, BACKOFF_MS_MAX) * (1 + BACKOFF_JITTER * jitter)
    return Ending(outcome, now + datetime.timedelta(milliseconds=pause_ms), retries, is_dead=False)


def handed_back(held: Held, outcome: Outcome, at: datetime.datetime) -> Ending:
    """A worker gave it back, to run at another time. That costs no retry."""
    return Ending(outcome, at, held.retries, is_dead=False)


def cancelled(held: Held) -> Ending:
    return Ending(Outcome.CANCELLED, None, held.retries, is_dead=False)


def job_topic(job_id: uuid.UUID) -> str:
    return f"job:{job_id}"


def queue_topic(queue: str) -> str:
    return f"queue:{queue}"
