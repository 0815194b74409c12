"""What the agent that holds a task says of it, and what its owner may still wish.

Heartbeat, progress, complete and fail carry the `attempt` that was given with the task: a stale one is refused, so an agent
that was given up for dead can never write over its successor.
"""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from devmesh.core import errors, tasks
from devmesh.core.access import Scope
from devmesh.core.names import Text, Version
from devmesh.core.tasks import AttemptNumber, JsonValue, Task
from devmesh.operations.registry import Call, Change, Mutation, operation, subject_of
from devmesh.operations.task_moving import (
    AGENTS,
    TREE_MAX,
    TaskResult,
    cancel_tree,
    move_each,
    require_holder,
    require_task,
    settle,
)
from devmesh.operations.work import Work
from devmesh.store.database import Record
from devmesh.store.tasks import SQL, LockedTasks

BY_TASK = subject_of("task_id")
_random = random.SystemRandom()


class HeldTask(Change, kw_only=True):
    """`agent_id` is for keys that have registered several agents; `attempt` is optional here, and checked when given."""

    task_id: uuid.UUID
    agent_id: uuid.UUID | None = None
    attempt: AttemptNumber | None = None


class FencedTask(Mutation, kw_only=True):
    task_id: uuid.UUID
    attempt: AttemptNumber
    agent_id: uuid.UUID | None = None


class FencedChange(FencedTask, kw_only=True):
    if_version: Version | None = None


@operation("task.accept", scope=Scope.AGENT, http="POST /tasks/{task_id}/accept", subject=BY_TASK, in_hand=True)
async def accept(work: Work, calls: Sequence[Call[HeldTask]]) -> Sequence[TaskResult | errors.MeshError]:
    """Take an assigned task on."""
    return await move_each(work, calls, lambda _, task: tasks.accept(task, work.now), fenced=False)


class Reject(HeldTask, kw_only=True):
    reason: Text = ""


@operation("task.reject", scope=Scope.AGENT, http="POST /tasks/{task_id}/reject", subject=BY_TASK, in_hand=True)
async def reject(work: Work, calls: Sequence[Call[Reject]]) -> Sequence[TaskResult | errors.MeshError]:
    """Refuse an assigned task: it goes back to the queue and will not come to this agent again."""
    return await move_each(work, calls, lambda _, task: tasks.reject(task, work.now), fenced=False)


class Progress(FencedChange, kw_only=True):
    progress: Annotated[float, Meta(ge=0, le=1)]
    message: Text | None = None


@operation("task.progress", scope=Scope.AGENT, http="POST /tasks/{task_id}/progress", subject=BY_TASK, in_hand=True)
async def progress(work: Work, calls: Sequence[Call[Progress]]) -> Sequence[TaskResult | errors.MeshError]:
    """Report how far a task is, 0-1; the first report marks its start. It renews the lease."""

    def decide(call: Call[Progress], task: Task) -> tasks.Move:
        return tasks.report_progress(task, call.params.progress, call.params.message, work.now)

    return await move_each(work, calls, decide, fenced=True)


class Lease(msgspec.Struct):
    """How long the caller may rely on holding the task."""

    id: uuid.UUID
    attempt: int
    lease_until: datetime.datetime


class LeaseResult(msgspec.Struct):
    task: Lease


@operation("task.heartbeat", scope=Scope.AGENT, http="POST /tasks/{task_id}/heartbeat", subject=BY_TASK, in_hand=True)
async def heartbeat(work: Work, calls: Sequence[Call[FencedTask]]) -> Sequence[LeaseResult | errors.MeshError]:
    """Renew the lease of a held task. An error means that the lease is lost: stop working on it."""
    rows = await work.tx.fetch(SQL.leases, work.tenant_id, [call.params.task_id for call in calls])
    found = {row["task_id"]: row for row in rows}
    answers = [_lease(call, found.get(call.params.task_id)) for call in calls]
    held = [lease for lease in answers if isinstance(lease, Lease)]
    holders = [found[lease.id]["assigned_to"] for lease in held]
    renewed = await work.tx.fetch(
        SQL.renew, work.tenant_id, [lease.id for lease in held], [lease.attempt for lease in held], holders
    )
    until = {row["task_id"]: row["lease_until"] for row in renewed}
    for lease in held:  # one that somebody is moving at this moment keeps the end that it had
        lease.lease_until = until.get(lease.id, lease.lease_until)
    return [LeaseResult(answer) if isinstance(answer, Lease) else answer for answer in answers]


def _lease(call: Call[FencedTask], row: Record | None) -> Lease | errors.MeshError:
    """The lease that a heartbeat may renew, or why there is none."""
    asked = call.params
    if row is None:
        return errors.not_found("task", asked.task_id)
    try:
        tasks.check_attempt(row["attempt"], asked.attempt)
        tasks.check_status(tasks.Status(row["status"]), "heartbeat")
        require_holder(call.caller, asked.agent_id, row["status"], row["assigned_to"], row["owner_id"])
    except errors.MeshError as refused:
        return refused
    return Lease(asked.task_id, asked.attempt, row["lease_until"])


class Complete(FencedChange, kw_only=True):
    result: JsonValue = msgspec.field(default_factory=lambda: Raw(b"null"))


@operation("task.complete", scope=Scope.AGENT, http="POST /tasks/{task_id}/complete", subject=BY_TASK, in_hand=True)
async def complete(work: Work, calls: Sequence[Call[Complete]]) -> Sequence[TaskResult | errors.MeshError]:
    """End a task well, with its result."""
    return await move_each(
        work, calls, lambda call, task: tasks.complete(task, call.params.result, work.now), fenced=True
    )


class Fail(FencedChange, kw_only=True):
    error: JsonValue = msgspec.field(default_factory=lambda: Raw(b'"failed"'))
    retryable: bool = True


@operation("task.fail", scope=Scope.AGENT, http="POST /tasks/{task_id}/fail", subject=BY_TASK, in_hand=True)
async def fail(work: Work, calls: Sequence[Call[Fail]]) -> Sequence[TaskResult | errors.MeshError]:
    """End an attempt badly: another follows after a back-off while retries are left and `retryable` is true."""

    def decide(call: Call[Fail], task: Task) -> tasks.Move:
        asked = call.params
        return tasks.fail(task, asked.error, asked.retryable, work.now, _random.uniform(-1, 1))

    return await move_each(work, calls, decide, fenced=True)


class Cancel(Change, kw_only=True):
    task_id: uuid.UUID
    reason: Text = ""


@operation("task.cancel", scope=Scope.WRITE, http="POST /tasks/{task_id}/cancel", single=True)
async def cancel(work: Work, call: Call[Cancel]) -> TaskResult:
    """Cancel a task and everything below it that has not ended: all of it, or, when it is too much at once, nothing."""
    locked = LockedTasks(work)
    await locked.lock([call.params.task_id])
    task = require_task(locked, call.params.task_id)
    tasks.check_version(task, call.params.if_version)
    task = locked.move(task.id, tasks.cancel(task, call.params.reason, work.now))
    reached = await cancel_tree(work, locked, [task.id], call.params.reason or "its parent was cancelled")
    if reached >= TREE_MAX:
        raise errors.conflict("task.tree", f"{TREE_MAX} tasks or more lie below this one; cancel its branches first")
    await settle(work, locked)
    await locked.save()
    return TaskResult(locked[task.id])


class Retry(Change, kw_only=True):
    task_id: uuid.UUID


@operation("task.retry", scope=Scope.WRITE, http="POST /tasks/{task_id}/retry", single=True)
async def retry(work: Work, call: Call[Retry]) -> TaskResult:
    """Put a failed, timed out or cancelled task back into the queue with all its retries.

    If it was meant for an agent that has left for good, others may have it now.
    """
    locked = LockedTasks(work)
    await locked.lock([call.params.task_id])
    task = require_task(locked, call.params.task_id)
    tasks.check_version(task, call.params.if_version)
    parent = locked.get(task.parent_id) if task.parent_id is not None else None
    if parent is not None and parent.status in tasks.FINISHED:
        raise errors.conflict("task.state", f"its distributed parent is {parent.status}; create it again")
    target = task.target_agent_id
    is_target_gone = target is not None and not await work.tx.fetch(AGENTS.kept, work.tenant_id, [target])
    task = locked.move(task.id, tasks.retry(task, work.now, is_target_gone=is_target_gone))
    await locked.save()
    return TaskResult(task)
