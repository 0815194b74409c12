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
from devmesh.core.tasks import AttemptNumber, Task
from devmesh.operations.assigning import candidates_of, give, hand_out, is_any_waiting, lock_assignment
from devmesh.operations.registry import Call, Change, Mutation, NotYet, one_given, operation, subject_of
from devmesh.operations.task_moving import (
    AGENTS,
    TaskResult,
    assignee_owners,
    own_agents,
    require_holder,
    require_task,
    subject_agent,
)
from devmesh.operations.work import Work
from devmesh.store.tasks import SQL, LockedTasks


class Claim(Mutation, kw_only=True):
    agent_id: uuid.UUID | None = None
    capabilities: Labels | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 1
    wait_ms: WaitMs = 0


class ClaimResult(msgspec.Struct):
    tasks: list[Task]


@operation("task.claim", scope=Scope.AGENT, http="POST /tasks/claim", subject=subject_agent)
async def claim(work: Work, calls: Sequence[Call[Claim]]) -> Sequence[ClaimResult | NotYet | errors.MeshError]:
    """Take waiting tasks that this agent can do, the most urgent first; wait up to `wait_ms` for one.

    `capabilities` narrows what the agent offers this time. It never gets more than its concurrency allows, and of large tasks
    a few at a time, of 4 MiB and one more. What it gets is assigned to it under a lease; `attempt` must come back with each
    report.
    """
    acting = await own_agents(work, calls)
    asked = {who: call.params for call, who in zip(calls, acting, strict=True) if isinstance(who, uuid.UUID)}
    given = await _claim(work, asked) if asked and await is_any_waiting(work) else {}
    await work.tx.execute(AGENTS.note_alive, work.tenant_id, list(asked))
    answers: list[ClaimResult | NotYet | errors.MeshError] = []
    for call, who in zip(calls, acting, strict=True):
        if isinstance(who, errors.MeshError):
            answers.append(who)
        elif who in given:
            answers.append(ClaimResult(given[who]))
        else:
            answers.append(NotYet(ClaimResult([]), call.params.wait_ms))
    return answers


async def _claim(work: Work, asked: dict[uuid.UUID, Claim]) -> dict[uuid.UUID, list[Task]]:
    """What each of these agents gets, by the same plan by which the mesh assigns, but among them alone."""
    await lock_assignment(work)
    available = await candidates_of(work, list(asked), are_there=True)
    for candidate in available:
        wish = asked[candidate.agent_id]
        candidate.free = min(candidate.free, wish.limit)
        if wish.capabilities is not None:
            candidate.capabilities &= frozenset(wish.capabilities)
    locked = LockedTasks(work)
    given: dict[uuid.UUID, list[Task]] = {}
    for task_id, agent_id in (await hand_out(work, locked, available, pull=True)).pairs:
        given.setdefault(agent_id, []).append(locked[task_id])
    await locked.save()
    return given


class Delegate(Change, kw_only=True):
    together = (one_given({"to_agent": ...}, {"capabilities": ...}),)

    task_id: uuid.UUID
    to_agent: uuid.UUID | None = None
    capabilities: Labels | None = None
    reason: Text = ""
    kind: Literal["manual", "automatic", "failover", "load_balance"] = "manual"
    agent_id: uuid.UUID | None = None
    attempt: AttemptNumber | None = None


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
        tasks.check_attempt(task.attempt, asked.attempt)
    holder = task.assigned_to
    if not call.caller.is_admin:
        owners = await assignee_owners(work, [call], locked)
        require_holder(call.caller, asked.agent_id, task.status, holder, owners.get(holder))
    tasks.check_version(task, asked.if_version)
    tasks.check_legal(task, "delegate")
    if holder is None:
        raise errors.conflict("task.state", "no agent holds this task; delegate its subtasks")
    if asked.to_agent is not None:
        await _require_agent(work, asked.to_agent)
        rows = await work.tx.fetch(SQL.past_holders, work.tenant_id, task.id)
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


class Reassign(Change, kw_only=True):
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
    tasks.check_version(task, asked.if_version)
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
    if task.target_agent_id is not None and not task.blocked and await candidates_of(work, [task.target_agent_id]):
        await give(work, locked, [(task.id, task.target_agent_id)])
