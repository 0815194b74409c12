"""How tasks pass from hand to hand: claimed by an agent that asks, delegated by the one that holds them, reassigned."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from devmesh.core import errors, tasks
from devmesh.core.access import Scope
from devmesh.core.names import Labels, Text, WaitMs
from devmesh.core.tasks import Task
from devmesh.operations.assigning import candidates, give, lanes_for, lock_assignment, lock_heads
from devmesh.operations.registry import Call, Mutation, NotYet, operation, subject_of
from devmesh.operations.task_moving import (
    AGENTS, TaskResult, assignee_owners, require_holder, require_own_agent, require_task,
)  # fmt: skip
from devmesh.operations.work import Work
from devmesh.store.tasks import SQL, LockedTasks


class Claim(Mutation, kw_only=True):
    agent_id: uuid.UUID | None = None
    capabilities: Labels | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 1
    wait_ms: WaitMs = 0


class ClaimResult(msgspec.Struct):
    tasks: list[Task]


@operation("task.claim", scope=Scope.AGENT, http="POST /tasks/claim")
async def claim(work: Work, calls: Sequence[Call[Claim]]) -> Sequence[ClaimResult | NotYet | errors.MeshError]:
    """Take waiting tasks that this agent can do, the most urgent first; wait up to `wait_ms` for one.

    `capabilities` narrows what the agent offers this time. It never gets more than its concurrency allows. What it gets is
    assigned to it under a lease; `attempt` must come back with each report.
    """
    await lock_assignment(work)
    answers: list[ClaimResult | NotYet | errors.MeshError] = []
    locked = LockedTasks(work)
    for call in calls:
        try:
            agent_id = await require_own_agent(work, call.caller, call.params.agent_id)
        except errors.MeshError as refused:
            answers.append(refused)
            continue
        given = await _claim_for(work, locked, agent_id, call.params)
        answers.append(ClaimResult(given) if given else NotYet(ClaimResult([]), call.params.wait_ms))
        await locked.save()
    return answers


async def _claim_for(work: Work, locked: LockedTasks, agent_id: uuid.UUID, asked: Claim) -> list[Task]:
    available = await candidates(work, [agent_id])
    if not available:
        return []
    [candidate] = available
    candidate.free = min(candidate.free, asked.limit)
    if asked.capabilities is not None:
        candidate.capabilities &= frozenset(asked.capabilities)
    waiting = await lock_heads(work, locked, await lanes_for(work, available, pull=True), available)
    await give(work, locked, [(task.id, agent_id) for task in waiting])
    return [locked[task.id] for task in waiting]


class Delegate(Mutation, kw_only=True):
    task_id: uuid.UUID
    to_agent: uuid.UUID | None = None
    capabilities: Labels | None = None
    reason: Text = ""
    kind: Literal["manual", "automatic", "failover", "load_balance"] = "manual"
    agent_id: uuid.UUID | None = None
    attempt: Annotated[int, Meta(ge=1)] | None = None


@operation("task.delegate", scope=Scope.AGENT, http="POST /tasks/{task_id}/delegate", single=True)
async def delegate(work: Work, call: Call[Delegate]) -> TaskResult:
    """Hand a held task on, to an agent or to whoever has the capabilities.

    Only its holder or an administrator may; at most 5 times; never back to an agent that has delegated it. The new agent
    gets it at once if it has room, else as soon as it has.
    """
    asked = call.params
    if (asked.to_agent is None) == (asked.capabilities is None):
        raise errors.invalid("give either to_agent or capabilities", "to_agent")
    await lock_assignment(work)
    locked = LockedTasks(work)
    await locked.lock([asked.task_id])
    task = require_task(locked, asked.task_id)
    if asked.attempt is not None:
        tasks.check_attempt(task, asked.attempt)
    tasks.check_legal(task, "delegate")
    if not call.caller.is_admin:
        require_holder(call.caller, asked.agent_id, task, await assignee_owners(work, [call], locked))
    holder = task.assigned_to
    if holder is None:
        raise errors.conflict("task.state", "no agent holds this task; delegate its subtasks")
    if asked.to_agent is not None:
        await _require_agent(work, asked.to_agent)
        rows = await work.tx.fetch(SQL.past_holders, work.tenant_id, [task.id])
        if asked.to_agent in {holder, *(row["from_agent_id"] for row in rows)}:
            raise errors.conflict("task.delegation_cycle", "this agent has held the task and handed it on before")
    capabilities = sorted(set(asked.capabilities)) if asked.capabilities is not None else None
    task = locked.move(task.id, tasks.delegate(task, asked.to_agent, capabilities, work.now))
    await work.tx.execute(
        SQL.insert_delegation, work.tenant_id, task.id, task.delegation_depth, task.attempt - 1, holder, asked.to_agent,
        capabilities or [], asked.kind, asked.reason, work.now,
    )  # fmt: skip
    await _give_to_target(work, locked, task)
    await locked.save()
    return TaskResult(locked[task.id])


class Reassign(Mutation, kw_only=True):
    task_id: uuid.UUID
    to_agent: uuid.UUID | None = None
    reason: Text = ""


@operation(
    "task.reassign", scope=Scope.ADMIN, http="POST /tasks/{task_id}/reassign", single=True, audited=True,
    subject=subject_of("task_id"),
)  # fmt: skip
async def reassign(work: Work, call: Call[Reassign]) -> TaskResult:
    """Take a task from its agent and give it to another, or, without `to_agent`, back to the queue."""
    asked = call.params
    await lock_assignment(work)
    locked = LockedTasks(work)
    await locked.lock([asked.task_id])
    task = require_task(locked, asked.task_id)
    if asked.to_agent is not None:
        await _require_agent(work, asked.to_agent)
    task = locked.move(task.id, tasks.reassign(task, asked.to_agent, work.now))
    await _give_to_target(work, locked, task)
    await locked.save()
    return TaskResult(locked[task.id])


async def _require_agent(work: Work, agent_id: uuid.UUID) -> None:
    if not await work.tx.fetch(AGENTS.owners, work.tenant_id, [agent_id]):
        raise errors.not_found("agent", agent_id)


async def _give_to_target(work: Work, locked: LockedTasks, task: Task) -> None:
    """At once if the agent it is meant for is there and has room; else the assigner will, when it has."""
    if task.target_agent_id is not None and not task.blocked and await candidates(work, [task.target_agent_id]):
        await give(work, locked, [(task.id, task.target_agent_id)])
