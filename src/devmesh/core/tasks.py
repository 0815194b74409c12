"""A task and its legal moves.

Every move is a pure function from a task to the task after it, or a `conflict` that changes nothing. `attempt` is the
fencing token: it rises whenever the task leaves an agent without having ended, so that a holder of an older attempt can
never write again.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors

RETRY_BACKOFF_BASE_S = 1.0
RETRY_BACKOFF_MAX_S = 60.0
RETRY_JITTER = 0.2  # each way
ATTEMPTS_MAX = 100  # a task that kills each agent it meets must end somewhere
DELEGATION_DEPTH_MAX = 5
PRIORITY_DEFAULT = 3

AttemptNumber = Annotated[int, Meta(ge=1, le=1_000_000)]
JsonObject = Annotated[Raw, Meta(title="JsonObject", extra_json_schema={"type": "object"})]
JsonObjectOrNull = Annotated[Raw, Meta(title="JsonObjectOrNull", extra_json_schema={"type": ["object", "null"]})]
JsonValue = Annotated[Raw, Meta(title="JsonValue", extra_json_schema={"description": "any JSON value"})]


class Status(enum.StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


HELD = frozenset({Status.ASSIGNED, Status.ACCEPTED, Status.RUNNING})
FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})


class Strategy(enum.StrEnum):
    LEAST_LOADED = "least_loaded"
    ROUND_ROBIN = "round_robin"
    BEST_MATCH = "best_match"
    PERFORMANCE = "performance"


class Assign(enum.StrEnum):
    AUTO = "auto"
    PULL = "pull"


class Task(msgspec.Struct):
    """A task as every wire shows it. `parameters`, `metadata`, `result` and `error` are the caller's own JSON."""

    id: uuid.UUID
    title: str
    description: str
    type: str
    priority: int  # 5 first
    parameters: JsonObject
    required_capabilities: list[str]
    tags: list[str]
    metadata: JsonObject
    created_by: uuid.UUID | None  # the agent; null when a key without an agent created it
    created_by_key_id: uuid.UUID
    assign: Assign
    strategy: Strategy
    target_agent_id: uuid.UUID | None
    excluded_agent_ids: list[uuid.UUID]
    parent_id: uuid.UUID | None
    position: int
    distribution: Raw | None
    blocked: bool
    delegated_from: uuid.UUID | None
    delegation_depth: int
    status: Status
    attempt: int
    version: int
    assigned_to: uuid.UUID | None
    result: Raw | None
    error: Raw | None
    progress: float
    progress_message: str | None
    retry_count: int
    max_retries: int
    timeout_s: float | None
    lease_s: float
    deadline: datetime.datetime | None
    ready_at: datetime.datetime
    lease_until: datetime.datetime | None
    timeout_at: datetime.datetime | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    assigned_at: datetime.datetime | None
    accepted_at: datetime.datetime | None
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None


class Outcome(enum.StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    LEASE_EXPIRED = "lease_expired"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    DELEGATED = "delegated"
    REASSIGNED = "reassigned"


class Move(msgspec.Struct, frozen=True):
    """What a move does: the fields that change, the event that tells it, and how the running attempt ends, if it does."""

    event: str
    changes: dict[str, object]
    ended: Outcome | None = None


# From which states each move is legal. Everything that is not here is a conflict.
LEGAL: dict[str, frozenset[Status]] = {
    "assign": frozenset({Status.PENDING}),
    "accept": frozenset({Status.ASSIGNED}),
    "reject": frozenset({Status.ASSIGNED, Status.ACCEPTED}),  # accepting may be how it finds out that it cannot
    "progress": HELD,
    "heartbeat": HELD,
    "complete": HELD,
    "fail": HELD,
    "expire": HELD,
    "time_out": HELD | {Status.PENDING},
    "cancel": HELD | {Status.PENDING},
    "delegate": HELD,
    "reassign": HELD | {Status.PENDING},
    "unblock": frozenset({Status.PENDING}),
    "retry": frozenset({Status.FAILED, Status.TIMED_OUT, Status.CANCELLED}),
}

PHRASES = {
    **{move: f"cannot {move}" for move in LEGAL},
    "progress": "cannot report progress of",
    "heartbeat": "cannot renew the lease of",
    "expire": "cannot end the lease of",
    "time_out": "cannot time out",
}


def check_legal(task: Task, move: str) -> None:
    check_status(task.status, move)


def check_status(status: Status, move: str) -> None:
    if status not in LEGAL[move]:
        raise errors.conflict("task.state", f"{PHRASES[move]} a task that is {status}")


def check_version(task: Task, asked: int | None) -> None:
    """Raises a conflict when somebody changed the task after it was looked at."""
    if asked is not None and asked != task.version:
        raise errors.conflict("task.version", f"the task has version {task.version} by now; look at it again")


def check_attempt(attempt_now: int, attempt: int) -> None:
    """The fence: whoever holds an older attempt was given up, and its writes are refused."""
    if attempt != attempt_now:
        told = "was given up" if attempt < attempt_now else "has not begun"
        raise errors.conflict(
            "task.stale_attempt", f"attempt {attempt} of this task {told}; the attempt is now {attempt_now}"
        )


def assign(task: Task, agent_id: uuid.UUID, now: datetime.datetime) -> Move:
    check_legal(task, "assign")
    if task.blocked:
        raise errors.conflict("task.state", "the task still waits for another one")
    return Move(
        "task.assigned",
        {
            "status": Status.ASSIGNED,
            "assigned_to": agent_id,
            "assigned_at": now,
            "lease_until": now + datetime.timedelta(seconds=task.lease_s),
            "timeout_at": now + datetime.timedelta(seconds=task.timeout_s) if task.timeout_s is not None else None,
        },
    )


def accept(task: Task, now: datetime.datetime) -> Move:
    check_legal(task, "accept")
    return Move("task.accepted", {"status": Status.ACCEPTED, "accepted_at": now, **_renewed(task, now)})


def report_progress(task: Task, progress: float, message: str | None, now: datetime.datetime) -> Move:
    """Progress never goes back within an attempt; the first report of a task marks its start."""
    check_legal(task, "progress")
    if progress < task.progress:
        raise errors.conflict("task.progress", f"progress is at {task.progress} and cannot go back to {progress}")
    return Move(
        "task.progress",
        {
            "status": Status.RUNNING,
            "started_at": task.started_at or now,
            "progress": progress,
            "progress_message": message if message is not None else task.progress_message,
            **_renewed(task, now),
        },
    )


def complete(task: Task, result: Raw | None, now: datetime.datetime) -> Move:
    check_legal(task, "complete")
    changes = {"status": Status.COMPLETED, "result": result, "error": None, "progress": 1.0, **_finished(now)}
    return Move("task.completed", changes, Outcome.COMPLETED)


def fail(task: Task, error: Raw, retryable: bool, now: datetime.datetime, jitter: float) -> Move:
    """An attempt failed: back to the queue after a back-off while retries are left, else the end.

    `jitter` lies in [-1, 1] and is drawn by the caller, so that the move itself stays a function.
    """
    check_legal(task, "fail")
    if retryable and task.retry_count < task.max_retries and task.attempt < ATTEMPTS_MAX:
        delay_s = min(RETRY_BACKOFF_BASE_S * 2.0 ** min(task.retry_count, 30), RETRY_BACKOFF_MAX_S)
        delay_s *= 1 + RETRY_JITTER * jitter
        changes = {
            "error": error,
            "retry_count": task.retry_count + 1,
            **_pending_again(task, now + datetime.timedelta(seconds=delay_s)),
        }
        return Move("task.retrying", changes, Outcome.FAILED)
    return Move("task.failed", {"status": Status.FAILED, "error": error, **_finished(now)}, Outcome.FAILED)


def reject(task: Task, now: datetime.datetime) -> Move:
    check_legal(task, "reject")
    agent_id = task.assigned_to
    changes = {
        **_pending_again(task, now),
        "excluded_agent_ids": [*task.excluded_agent_ids, agent_id],
        "target_agent_id": None if task.target_agent_id == agent_id else task.target_agent_id,
    }
    return Move("task.rejected", changes, Outcome.REJECTED)


def expire(task: Task, now: datetime.datetime) -> Move:
    """The lease ended: the agent is given up for this attempt, and the task waits for another one."""
    check_legal(task, "expire")
    if task.attempt >= ATTEMPTS_MAX:
        error = Raw(
            msgspec.json.encode({"message": f"given up after {task.attempt} attempts, the last by a lease that ended"})
        )
        return Move("task.failed", {"status": Status.FAILED, "error": error, **_finished(now)}, Outcome.LEASE_EXPIRED)
    # The task was meant for this agent, perhaps; that it is done matters more than by whom.
    changes = {**_pending_again(task, now), "target_agent_id": None}
    return Move("task.lease_expired", changes, Outcome.LEASE_EXPIRED)


def time_out(task: Task, reason: str, now: datetime.datetime) -> Move:
    check_legal(task, "time_out")
    error = Raw(msgspec.json.encode({"message": reason}))
    changes = {"status": Status.TIMED_OUT, "error": error, **_finished(now)}
    return Move("task.timed_out", changes, Outcome.TIMED_OUT)


def cancel(task: Task, reason: str, now: datetime.datetime) -> Move:
    check_legal(task, "cancel")
    error = Raw(msgspec.json.encode({"message": reason or "cancelled"}))
    changes = {"status": Status.CANCELLED, "error": error, **_finished(now)}
    return Move("task.cancelled", changes, Outcome.CANCELLED)


def delegate(task: Task, to_agent_id: uuid.UUID | None, capabilities: list[str] | None, now: datetime.datetime) -> Move:
    """Hands the task on to an agent, or to whoever has the capabilities. Whether that is a cycle is asked elsewhere."""
    check_legal(task, "delegate")
    if task.delegation_depth >= DELEGATION_DEPTH_MAX:
        raise errors.conflict(
            "task.delegation_depth", f"this task was delegated {task.delegation_depth} times, which is the most"
        )
    changes = {
        **_pending_again(task, now),
        "delegated_from": task.assigned_to,
        "delegation_depth": task.delegation_depth + 1,
        "target_agent_id": to_agent_id,
        # It may have rejected the task before, but whoever names it wants it asked once more.
        "excluded_agent_ids": [a for a in (*task.excluded_agent_ids, task.assigned_to) if a != to_agent_id],
    }
    if capabilities is not None:
        changes["required_capabilities"] = capabilities
    return Move("task.delegated", changes, Outcome.DELEGATED)


def reassign(task: Task, to_agent_id: uuid.UUID | None, now: datetime.datetime) -> Move:
    check_legal(task, "reassign")
    if task.distribution is not None:
        raise errors.conflict("task.state", "a distributed task is held by no agent; reassign its subtasks")
    changes = {**_pending_again(task, now), "target_agent_id": to_agent_id}
    if to_agent_id is not None:
        changes["excluded_agent_ids"] = [a for a in task.excluded_agent_ids if a != to_agent_id]
    return Move("task.reassigned", changes, Outcome.REASSIGNED)


def retry(task: Task, now: datetime.datetime, *, is_target_gone: bool = False) -> Move:
    """A person's second wish: the task begins again with all its retries, for others if whom it was meant for has left."""
    check_legal(task, "retry")
    if task.distribution is not None:
        raise errors.conflict("task.state", "a distributed task cannot be retried; create it again")
    if task.deadline is not None and task.deadline <= now:
        raise errors.conflict("task.deadline", "the deadline of this task has passed; create it again with another")
    changes = {**_pending_again(task, now), "retry_count": 0, "result": None, "error": None, "finished_at": None}
    if is_target_gone:
        changes["target_agent_id"] = None
    return Move("task.retried", changes)


def unblock(task: Task, parameters: Raw | None, now: datetime.datetime) -> Move:
    """What it waited for has ended. `parameters` replaces its own when the earlier one's result flows into it."""
    check_legal(task, "unblock")
    changes: dict[str, object] = {"blocked": False, "ready_at": now}
    if parameters is not None:
        changes["parameters"] = parameters
    return Move("task.unblocked", changes)


def apply(task: Task, move: Move, now: datetime.datetime) -> Task:
    """The task after the move, one version on."""
    return msgspec.structs.replace(task, version=task.version + 1, updated_at=now, **move.changes)


def _renewed(task: Task, now: datetime.datetime) -> dict[str, object]:
    return {"lease_until": now + datetime.timedelta(seconds=task.lease_s)}


def _pending_again(task: Task, ready_at: datetime.datetime) -> dict[str, object]:
    return {
        "status": Status.PENDING,
        "attempt": task.attempt + 1,
        "assigned_to": None,
        "ready_at": ready_at,
        "lease_until": None,
        "timeout_at": None,
        "assigned_at": None,
        "accepted_at": None,
        "started_at": None,
        "progress": 0.0,
        "progress_message": None,
    }


def _finished(now: datetime.datetime) -> dict[str, object]:
    return {"finished_at": now, "lease_until": None, "timeout_at": None}


def topics(task: Task) -> tuple[str, ...]:
    """The task itself, then whom it concerns: its creator, its assignee, and the parent it is a part of."""
    found = [f"task:{task.id}"]
    if task.created_by is not None:
        found.append(f"agent:{task.created_by}")
    if task.assigned_to is not None and task.assigned_to != task.created_by:
        found.append(f"agent:{task.assigned_to}")
    if task.parent_id is not None:
        found.append(f"task:{task.parent_id}")
    return tuple(found)


TOLD_WHOLE = "task.assigned"
_PATCH_ALWAYS = ("id", "version", "updated_at")


def event_data(task: Task, move: Move) -> bytes:
    """The event's data: the whole task when it is handed to an agent, else what changed."""
    if move.event == TOLD_WHOLE:
        return msgspec.json.encode({"task": task})
    patch = {name: getattr(task, name) for name in (*_PATCH_ALWAYS, *move.changes)}
    return msgspec.json.encode({"task": patch})
